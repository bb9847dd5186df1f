//! `IQ2_XXS`: 256 values, eight of which are a point of a grid of 256 with signs; each block of 32 has a scale of 4 bits,
//! `x = d (2 s + 1) v / 8`, `|v|` 8, 25 or 43.
//!
//! 66 bytes: `d` as a half, then for each block four points, a byte each, and a word of 32 bits: seven signs for each point, whose eighth
//! makes the number of negative ones even, and `s` in the upper four bits.

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
pub struct BlockIQ2XXS {
    d: [u8; 2],
    blocks: [Packed; 8],
}
const _: () = assert!(size_of::<BlockIQ2XXS>() == 66);

/// 32 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Packed {
    points: [u8; 4],
    signs_scale: [u8; 4],
}

impl Packed {
    /// Of eight values.
    fn signs(&self, eight: usize) -> u8 {
        with_eighth((u32::from_le_bytes(self.signs_scale) >> (7 * eight)) as u8 & 127)
    }
}

/// The greatest level.
const MOST: u8 = 43;

/// What codes stand for, from `-MOST` on: the level in the lower two bits, the sign in the third.
pub(super) const VALUES: [u8; 16] =
    [MOST + 8, MOST + 25, 2 * MOST, 0, MOST - 8, MOST - 25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Of [`VALUES`].
pub(super) const ZERO: i32 = MOST as i32;
/// Of [`VALUES`].
pub(super) const RANGE: CodeRange = CodeRange::Unsigned(2 * MOST);

/// The code of value `j` of eight.
pub(super) fn code(point: u16, signs: u8, j: usize) -> u8 {
    (point >> (2 * j)) as u8 & 3 | (signs >> j & 1) << 2
}

/// The grid of some points.
pub(super) fn grid(points: &[u16]) -> Grid<8> {
    Grid::new(points, |point, j| i32::from(VALUES[usize::from(code(point, 0, j))]) - ZERO)
}

impl Levels for BlockIQ2XXS {
    const VALUES: [u8; 16] = VALUES;
    const RANGE: CodeRange = RANGE;
    const ZERO: i32 = ZERO;
    const UNIT: f32 = 0.125;

    fn d(&self) -> f16 {
        f16::from_le_bytes(self.d)
    }

    fn scales(&self) -> [i8; 16] {
        from_fn(|g| 2 * (self.blocks[g / 2].signs_scale[3] >> 4).cast_signed() + 1)
    }

    fn codes(&self) -> [u8; 256] {
        plane::codes(|b, i| {
            let block = &self.blocks[b];
            code(points::IQ2XXS[usize::from(block.points[i / 8])], block.signs(i / 8), i % 8)
        })
    }
}

impl Block for BlockIQ2XXS {
    const LEN: usize = 256;
    type Strip = Int<PanelLevels<Self, 2, 8, 8>>;

    fn decode(&self, out: &mut [f32]) {
        levels::decode(self, out);
    }

    fn encode(x: &[f32]) -> Self {
        static GRIDS: LazyLock<[Grid<8>; 1]> = LazyLock::new(|| [grid(&points::IQ2XXS)]);
        let kind = Kind { grids: &*GRIDS, group: 32, most: 15, unit: Self::UNIT, signs: Signs::Even };
        let choice = kind.choose(x);
        let block = |b: usize| {
            let signs = (0..4).map(|l| u32::from(choice.signs[4 * b + l] & 127) << (7 * l)).sum::<u32>();
            Packed {
                points: from_fn(|l| choice.points[4 * b + l] as u8),
                signs_scale: (signs | u32::from(choice.scales[b]) << 28).to_le_bytes(),
            }
        };
        Self { d: choice.d.to_le_bytes(), blocks: from_fn(block) }
    }
}
