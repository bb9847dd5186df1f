//! `IQ1_M`: 256 values, eight of which are a point of the grid of `IQ1_S` and all 1/8 more or less; each group of 16 has a scale of
//! 3 bits, `x = d (2 s + 1) (v - 1/8)` or `d (2 s + 1) (v + 1/8)`, `v` -1, 0 or 1.
//!
//! 56 bytes: 32 bytes with the lower eight bits that name a point; 16 bytes with the upper three of two points each, the first lowest,
//! and above each three a bit that is 1 for less; 8 bytes, four words of 16 bits: four scales each, the first lowest, and above them four
//! bits of `d`, a half, its lowest in the first word.

use std::array::from_fn;
use std::sync::LazyLock;

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::grid::{Grid, Kind, Signs};
use super::levels::{self, Levels, PanelLevels};
use super::{Block, plane, points};
use crate::cpu::strip::{CodeRange, Int};

/// 256 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ1M {
    points_low: [u8; 32],
    points_high: [u8; 16],
    scales_d: [[u8; 2]; 4],
}
const _: () = assert!(size_of::<BlockIQ1M>() == 56);

/// Bit 11 of a point that is less by 1/8 rather than more.
const LESS: usize = 2048;

impl BlockIQ1M {
    /// The name of a point and whether it is less.
    fn point(&self, p: usize) -> usize {
        usize::from(self.points_low[p]) | usize::from(self.points_high[p / 2] >> (4 * (p % 2)) & 15) << 8
    }
}

/// `v + 1` in the lower two bits, whether it is less in the third.
fn code(point: usize, j: usize) -> u8 {
    (points::IQ1S[point % LESS] >> (2 * j)) as u8 & 3 | u8::from(point >= LESS) << 2
}

impl Levels for BlockIQ1M {
    // Eighths, from -9 on.
    const VALUES: [u8; 16] = [2, 10, 18, 0, 0, 8, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const RANGE: CodeRange = CodeRange::Unsigned(18);
    const ZERO: i32 = 9;
    const UNIT: f32 = 0.125;

    fn d(&self) -> f16 {
        f16::from_bits((0..4).map(|w| u16::from(self.scales_d[w][1] >> 4) << (4 * w)).sum())
    }

    fn scales(&self) -> [i8; 16] {
        let words = self.scales_d.map(u16::from_le_bytes);
        from_fn(|g| 2 * (words[g / 4] >> (3 * (g % 4)) & 7) as i8 + 1)
    }

    fn codes(&self) -> [u8; 256] {
        plane::codes(|b, i| code(self.point(4 * b + i / 8), i % 8))
    }
}

impl Block for BlockIQ1M {
    const LEN: usize = 256;
    type Strip = Int<PanelLevels<Self, 2, 8, 16>>;

    fn decode(&self, out: &mut [f32]) {
        levels::decode(self, out);
    }

    fn encode(x: &[f32]) -> Self {
        static GRIDS: LazyLock<[Grid<8>; 1]> = LazyLock::new(|| {
            let names: Vec<u16> = (0..2 * LESS as u16).collect();
            [Grid::new(&names, |point, j| levels::value::<BlockIQ1M>(code(point.into(), j)))]
        });
        let kind = Kind { grids: &*GRIDS, group: 16, most: 7, unit: Self::UNIT, signs: Signs::Own };
        let choice = kind.choose(x);
        let word = |w: usize| {
            let scales = (0..4).map(|l| u16::from(choice.scales[4 * w + l]) << (3 * l)).sum::<u16>();
            (scales | (choice.d.to_bits() >> (4 * w) & 15) << 12).to_le_bytes()
        };
        let high = |p: usize| (choice.points[p] >> 8) as u8;
        Self {
            points_low: from_fn(|p| choice.points[p] as u8),
            points_high: from_fn(|two| high(2 * two) | high(2 * two + 1) << 4),
            scales_d: from_fn(word),
        }
    }
}
