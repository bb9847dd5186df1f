//! `IQ3_S`: 256 values, four of which are a point of a grid of 512 with signs; each block of 32 has a scale of 4 bits,
//! `x = d (2 s + 1) v`, `|v|` odd, 1 to 15.
//!
//! 110 bytes: `d` as a half; 64 bytes with the lower eight bits that name a point; 8 bytes with the ninth of eight points each, the first
//! lowest; 32 bytes of signs, the first value's lowest; 4 bytes of scales, two in a byte.

use std::array::from_fn;
use std::sync::LazyLock;

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::grid::{Grid, Kind, Signs};
use super::iq3_xxs::{code, values};
use super::levels::{self, Levels, PanelLevels};
use super::{Block, plane, points};
use crate::cpu::strip::{CodeRange, Int};

/// 256 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ3S {
    d: [u8; 2],
    points_low: [u8; 64],
    points_high: [u8; 8],
    signs: [u8; 32],
    scales: [u8; 4],
}
const _: () = assert!(size_of::<BlockIQ3S>() == 110);

impl Levels for BlockIQ3S {
    const VALUES: [u8; 16] = values([1, 3, 5, 7, 9, 11, 13, 15]);
    const RANGE: CodeRange = CodeRange::Unsigned(30);
    const ZERO: i32 = 15;
    const UNIT: f32 = 1.0;

    fn d(&self) -> f16 {
        f16::from_le_bytes(self.d)
    }

    fn scales(&self) -> [i8; 16] {
        from_fn(|g| 2 * (self.scales[g / 4] >> (4 * (g / 2 % 2)) & 15).cast_signed() + 1)
    }

    fn codes(&self) -> [u8; 256] {
        plane::codes(|b, i| {
            let high = usize::from(self.points_high[b] >> (i / 4) & 1) << 8;
            let point = points::IQ3S[usize::from(self.points_low[8 * b + i / 4]) | high];
            code(point, i % 4, self.signs[4 * b + i / 8], i % 8)
        })
    }
}

impl Block for BlockIQ3S {
    const LEN: usize = 256;
    type Strip = Int<PanelLevels<Self, 4, 0, 8>>;

    fn decode(&self, out: &mut [f32]) {
        levels::decode(self, out);
    }

    fn encode(x: &[f32]) -> Self {
        static GRIDS: LazyLock<[Grid<4>; 1]> = LazyLock::new(|| {
            [Grid::new(&points::IQ3S, |point, j| levels::value::<BlockIQ3S>(code(point, j, 0, 0)))]
        });
        let kind = Kind { grids: &*GRIDS, group: 32, most: 15, unit: Self::UNIT, signs: Signs::Free };
        let choice = kind.choose(x);
        Self {
            d: choice.d.to_le_bytes(),
            points_low: choice.points.map(|point| point as u8),
            points_high: from_fn(|b| (0..8).map(|l| ((choice.points[8 * b + l] >> 8) as u8) << l).sum()),
            signs: choice.signs,
            scales: from_fn(|i| choice.scales[2 * i] | choice.scales[2 * i + 1] << 4),
        }
    }
}
