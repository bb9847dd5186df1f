//! `IQ2_S`: 256 values, eight of which are a point of a grid of 1024 with signs; each group of 16 has a scale of 4 bits,
//! `x = d (2 s + 1) v / 8`, `|v|` 8, 25 or 43.
//!
//! 82 bytes: `d` as a half; 32 bytes with the lower eight bits that name a point; 32 bytes of signs, the first value's lowest; 8 bytes
//! with the upper two bits of four points each, the first lowest; 8 bytes of scales, two in a byte.

use std::array::from_fn;
use std::sync::LazyLock;

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::grid::{Grid, Kind, Signs};
use super::iq2_xxs::{self, code, grid};
use super::levels::{self, Levels, PanelLevels};
use super::{Block, plane, points};
use crate::cpu::strip::{CodeRange, Int};

/// 256 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ2S {
    d: [u8; 2],
    points_low: [u8; 32],
    signs: [u8; 32],
    points_high: [u8; 8],
    scales: [u8; 8],
}
const _: () = assert!(size_of::<BlockIQ2S>() == 82);

impl Levels for BlockIQ2S {
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
            let p = 4 * b + i / 8;
            let high = usize::from(self.points_high[b] >> (2 * (p % 4)) & 3) << 8;
            code(points::IQ2S[usize::from(self.points_low[p]) | high], self.signs[p], i % 8)
        })
    }
}

impl Block for BlockIQ2S {
    const LEN: usize = 256;
    type Strip = Int<PanelLevels<Self, 2, 8, 16>>;

    fn decode(&self, out: &mut [f32]) {
        levels::decode(self, out);
    }

    fn encode(x: &[f32]) -> Self {
        static GRIDS: LazyLock<[Grid<8>; 1]> = LazyLock::new(|| [grid(&points::IQ2S)]);
        let kind = Kind { grids: &*GRIDS, group: 16, most: 15, unit: Self::UNIT, signs: Signs::Free };
        let choice = kind.choose(x);
        Self {
            d: choice.d.to_le_bytes(),
            points_low: from_fn(|p| choice.points[p] as u8),
            signs: choice.signs,
            points_high: from_fn(|b| {
                (0..4).map(|l| ((choice.points[4 * b + l] >> 8) as u8) << (2 * l)).sum()
            }),
            scales: from_fn(|b| choice.scales[2 * b] | choice.scales[2 * b + 1] << 4),
        }
    }
}
