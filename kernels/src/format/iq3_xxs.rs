//! `IQ3_XXS`: 256 values, four of which are a point of a grid of 256 with signs; each block of 32 has a scale of 4 bits,
//! `x = d (2 s + 1) v / 4`, `|v|` one of 4, 12, 20, 28, 36, 44, 52 and 62.
//!
//! 98 bytes: `d` as a half; 64 bytes that name a point each; for each block a word of 32 bits as in `IQ2_XXS`: seven signs for each
//! eight values, whose eighth makes the number of negative ones even, and `s` in the upper four bits.

use std::array::from_fn;
use std::sync::LazyLock;

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::grid::{Grid, Kind, Signs, with_eighth};
use super::levels::{self, Levels, PanelLevels};
use super::{Block, plane, points};
use crate::cpu::strip::{CodeRange, Int};

/// 256 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ3XXS {
    d: [u8; 2],
    points: [u8; 64],
    signs_scales: [[u8; 4]; 8],
}
const _: () = assert!(size_of::<BlockIQ3XXS>() == 98);

/// The code of value `j` of four with the sign of value `i` of eight: the level in the lower three bits, the sign in the fourth.
pub(super) fn code(point: u16, j: usize, signs: u8, i: usize) -> u8 {
    (point >> (3 * j)) as u8 & 7 | (signs >> i & 1) << 3
}

/// The codes of some levels and of their negatives, from that of the last on.
pub(super) const fn values(levels: [u8; 8]) -> [u8; 16] {
    let mut values = [0; 16];
    let mut i = 0;
    while i < 8 {
        values[i] = levels[7] + levels[i];
        values[i + 8] = levels[7] - levels[i];
        i += 1;
    }
    values
}

impl Levels for BlockIQ3XXS {
    const VALUES: [u8; 16] = values([4, 12, 20, 28, 36, 44, 52, 62]);
    const RANGE: CodeRange = CodeRange::Unsigned(124);
    const ZERO: i32 = 62;
    const UNIT: f32 = 0.25;

    fn d(&self) -> f16 {
        f16::from_le_bytes(self.d)
    }

    fn scales(&self) -> [i8; 16] {
        from_fn(|g| 2 * (self.signs_scales[g / 2][3] >> 4).cast_signed() + 1)
    }

    fn codes(&self) -> [u8; 256] {
        plane::codes(|b, i| {
            let signs = u32::from_le_bytes(self.signs_scales[b]) >> (7 * (i / 8));
            let point = points::IQ3XXS[usize::from(self.points[8 * b + i / 4])];
            code(point, i % 4, with_eighth(signs as u8 & 127), i % 8)
        })
    }
}

impl Block for BlockIQ3XXS {
    const LEN: usize = 256;
    type Strip = Int<PanelLevels<Self, 4, 0, 8>>;

    fn decode(&self, out: &mut [f32]) {
        levels::decode(self, out);
    }

    fn encode(x: &[f32]) -> Self {
        static GRIDS: LazyLock<[Grid<4>; 1]> = LazyLock::new(|| {
            [Grid::new(&points::IQ3XXS, |point, j| levels::value::<BlockIQ3XXS>(code(point, j, 0, 0)))]
        });
        let kind = Kind { grids: &*GRIDS, group: 32, most: 15, unit: Self::UNIT, signs: Signs::Even };
        let choice = kind.choose(x);
        let word = |b: usize| {
            let signs = (0..4).map(|l| u32::from(choice.signs[4 * b + l] & 127) << (7 * l)).sum::<u32>();
            (signs | u32::from(choice.scales[b]) << 28).to_le_bytes()
        };
        Self {
            d: choice.d.to_le_bytes(),
            points: choice.points.map(|point| point as u8),
            signs_scales: from_fn(word),
        }
    }
}
