//! `IQ2_XS`: 256 values, eight of which are a point of a grid of 512 with signs; each group of 16 has a scale of 4 bits,
//! `x = d (2 s + 1) v / 8`, `|v|` 8, 25 or 43.
//!
//! 74 bytes: `d` as a half; for each point 2 bytes: 9 bits that name it and seven signs, whose eighth makes the number of negative ones
//! even; 8 bytes of scales, two in a byte.

use std::array::from_fn;
use std::sync::LazyLock;

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::grid::{Grid, Kind, Signs, with_eighth};
use super::iq2_xxs::{self, code, grid};
use super::levels::{self, Levels, PanelLevels};
use super::{Block, plane, points};
use crate::cpu::strip::{CodeRange, Int};

/// 256 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ2XS {
    d: [u8; 2],
    points_signs: [[u8; 2]; 32],
    scales: [u8; 8],
}
const _: () = assert!(size_of::<BlockIQ2XS>() == 74);

impl Levels for BlockIQ2XS {
    const VALUES: [u8; 16] = iq2_xxs::VALUES;
    const RANGE: CodeRange = iq2_xxs::RANGE;
    const ZERO: i32 = iq2_xxs::ZERO;
    const UNIT: f32 = 0.125;

    fn d(&self) -> f16 {
        f16::from_le_bytes(self.d)
    }

    fn scales(&self) -> [i8; 16] {
        from_fn(|g| 2 * (self.scales[g / 2] >> (4 * (g % 2)) & 15).cast_signed() + 1)
    }

    fn codes(&self) -> [u8; 256] {
        plane::codes(|b, i| {
            let word = u16::from_le_bytes(self.points_signs[4 * b + i / 8]);
            code(points::IQ2XS[usize::from(word & 511)], with_eighth((word >> 9) as u8), i % 8)
        })
    }
}

impl Block for BlockIQ2XS {
    const LEN: usize = 256;
    type Strip = Int<PanelLevels<Self, 2, 8, 16>>;

    fn decode(&self, out: &mut [f32]) {
        levels::decode(self, out);
    }

    fn encode(x: &[f32]) -> Self {
        static GRIDS: LazyLock<[Grid<8>; 1]> = LazyLock::new(|| [grid(&points::IQ2XS)]);
        let kind = Kind { grids: &*GRIDS, group: 16, most: 15, unit: Self::UNIT, signs: Signs::Even };
        let choice = kind.choose(x);
        Self {
            d: choice.d.to_le_bytes(),
            points_signs: from_fn(|p| {
                (choice.points[p] | u16::from(choice.signs[p] & 127) << 9).to_le_bytes()
            }),
            scales: from_fn(|b| choice.scales[2 * b] | choice.scales[2 * b + 1] << 4),
        }
    }
}
