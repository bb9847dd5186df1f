//! `IQ1_S`: 256 values, eight of which are a point of a grid of 2048; each block of 32 has a scale of 3 bits and is all 1/8 more or less,
//! `x = d (2 s + 1) (v - 1/8)` or `d (2 s + 1) (v + 1/8)`, `v` -1, 0 or 1.
//!
//! 50 bytes: `d` as a half; 32 bytes with the lower eight bits that name a point; for each block a word of 16 bits: the upper three bits of
//! four points, the first lowest, three bits of scale, and a bit that is 1 for less.

use std::array::from_fn;
use std::sync::LazyLock;

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::grid::{Grid, Kind, Signs};
use super::plane::{self, Plane, part};
use super::{Block, points};
use crate::cpu::isa::{LANES, Simd};
use crate::cpu::strip::{CodeRange, Int, IntBlocks, IntPanel};

/// 256 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ1S {
    d: [u8; 2],
    points_low: [u8; 32],
    high_scales: [[u8; 2]; 8],
}
const _: () = assert!(size_of::<BlockIQ1S>() == 50);

impl BlockIQ1S {
    /// One more than the values.
    fn codes(&self) -> [u8; 256] {
        let high = self.high_scales.map(u16::from_le_bytes);
        plane::codes(|b, i| {
            let name = u16::from(self.points_low[4 * b + i / 8]) | (high[b] >> (3 * (i / 8)) & 7) << 8;
            (points::IQ1S[usize::from(name)] >> (2 * (i % 8))) as u8 & 3
        })
    }

    /// `2 s + 1` of a block, with the sign of what is added.
    fn scale(&self, b: usize) -> i8 {
        let high = self.high_scales[b][1];
        let scale = 2 * (high >> 4 & 7).cast_signed() + 1;
        if high >> 7 == 1 { -scale } else { scale }
    }
}

impl Block for BlockIQ1S {
    const LEN: usize = 256;
    type Strip = Int<PanelIQ1S>;

    fn decode(&self, out: &mut [f32]) {
        let d = f16::from_le_bytes(self.d).to_f32();
        for (i, (x, code)) in out.iter_mut().zip(self.codes()).enumerate() {
            let scale = f32::from(self.scale(i / 32));
            *x = d * scale.abs() * (f32::from(code) - 1.0 + 0.125f32.copysign(scale));
        }
    }

    fn encode(x: &[f32]) -> Self {
        static GRIDS: LazyLock<[Grid<8>; 2]> = LazyLock::new(|| {
            // In eighths.
            [1, -1].map(|more| Grid::new(&points::IQ1S, |p, j| 8 * i32::from(p >> (2 * j) & 3) - 8 + more))
        });
        let kind = Kind { grids: &*GRIDS, group: 32, most: 7, unit: 0.125, signs: Signs::Own };
        let choice = kind.choose(x);
        let word = |b: usize| {
            let high = (0..4).map(|l| choice.points[4 * b + l] >> 8 << (3 * l)).sum::<u16>();
            (high | u16::from(choice.scales[b]) << 12 | (choice.grids[b] as u16) << 15).to_le_bytes()
        };
        Self {
            d: choice.d.to_le_bytes(),
            points_low: from_fn(|p| choice.points[p] as u8),
            high_scales: from_fn(word),
        }
    }
}

/// 256 columns of sixteen rows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct PanelIQ1S {
    d: [u16; LANES],
    /// Of each block, with the sign of what is added.
    scales: [[i8; LANES]; 8],
    codes: [Plane<2>; 8],
}

impl IntPanel for PanelIQ1S {
    type Block = BlockIQ1S;

    fn pack(blocks: [&BlockIQ1S; LANES]) -> Self {
        let codes = blocks.map(|b| b.codes());
        Self {
            d: blocks.map(|b| u16::from_le_bytes(b.d)),
            scales: from_fn(|b| blocks.map(|block| block.scale(b))),
            codes: from_fn(|b| Plane::pack(part(&codes, b), 0)),
        }
    }
}

impl IntBlocks for PanelIQ1S {
    const RANGE: CodeRange = CodeRange::Unsigned(2);
    const ZERO: i32 = 1;
    const MIN: bool = true;

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, b: usize, step: usize) -> S::Codes {
        self.codes[b].codes(s, step)
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, b: usize, _g: usize) -> S::F {
        s.mul(s.load_f16(&self.d), s.abs(s.load_i8(&self.scales[b])))
    }

    #[inline(always)]
    fn min<S: Simd>(&self, s: S, b: usize, _g: usize) -> S::F {
        s.mul(s.mul(s.load_f16(&self.d), s.load_i8(&self.scales[b])), s.splat(0.125))
    }
}
