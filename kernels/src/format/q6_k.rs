//! `Q6_K`: 256 values as 6-bit codes; each group of 16 has a scale of 8 bits, `x = d s (q - 32)`.
//!
//! 210 bytes: 128 bytes with the lower four bits of each code, of which each 64 hold 128 values: byte `i` has value `i` in its low and
//! value `i + 64` in its high nibble; 64 bytes with the upper two, laid out as in `Q2_K`; 16 signed scales; `d` as a half.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use super::plane::{self, Plane, part};
use super::search::{TINY, extreme, nearest, signed};
use super::weighted::best;
use crate::cpu::isa::{LANES, Simd};
use crate::cpu::strip::{CodeRange, Int, IntBlocks, IntPanel};

/// 256 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ6K {
    low: [u8; 128],
    high: [u8; 64],
    scales: [i8; 16],
    d: [u8; 2],
}
const _: () = assert!(size_of::<BlockQ6K>() == 210);

impl BlockQ6K {
    fn codes(&self) -> [u8; 256] {
        let (low, high) = (self.low.as_chunks::<32>().0, self.high.as_chunks::<32>().0);
        plane::codes(|b, i| {
            let low = low[b / 4 * 2 + b % 2][i] >> (4 * (b / 2 % 2)) & 15;
            low | (high[b / 4][i] >> (2 * (b % 4)) & 3) << 4
        })
    }
}

impl Block for BlockQ6K {
    const LEN: usize = 256;
    type Strip = Int<PanelQ6K>;

    fn decode(&self, out: &mut [f32]) {
        let d = f16::from_le_bytes(self.d).to_f32();
        for (i, (x, code)) in out.iter_mut().zip(self.codes()).enumerate() {
            *x = d * f32::from(self.scales[i / 16]) * (f32::from(code) - 32.0);
        }
    }

    fn encode(x: &[f32]) -> Self {
        let squares: [f32; 256] = from_fn(|i| x[i] * x[i]);
        Self::search(x, &squares)
    }

    fn encode_weighted(x: &[f32], w: &[f32]) -> Self {
        best(x, w, [Self::search(x, w)])
    }
}

impl BlockQ6K {
    /// The scales of groups by [`signed`].
    fn search(x: &[f32], weights: &[f32]) -> Self {
        let mut block = Self { low: [0; 128], high: [0; 64], scales: [0; 16], d: [0; 2] };
        let mut codes = [0; 256];
        let mut scales = [0.0; 16];
        let groups = x.chunks(16).zip(weights.chunks(16)).zip(codes.chunks_mut(16));
        for (g, ((x, weights), codes)) in groups.enumerate() {
            scales[g] = signed(x, weights, 32, codes);
        }
        let largest = extreme(&scales);
        if largest.abs() < TINY {
            return block;
        }
        let inverse = -128.0 / largest;
        block.d = f16::from_f32(1.0 / inverse).to_le_bytes();
        block.scales = scales.map(|scale| nearest(inverse * scale).min(127) as i8);
        let d = f16::from_le_bytes(block.d).to_f32();
        for ((x, codes), scale) in x.chunks(16).zip(codes.chunks_mut(16)).zip(block.scales) {
            let d = d * f32::from(scale);
            if d != 0.0 {
                codes.iter_mut().zip(x).for_each(|(c, x)| *c = (nearest(x / d).clamp(-32, 31) + 32) as u8);
            }
        }
        for (i, code) in codes.into_iter().enumerate() {
            block.low[i / 128 * 64 + i % 64] |= (code & 15) << (4 * (i / 64 % 2));
            block.high[i / 128 * 32 + i % 32] |= code >> 4 << (2 * (i / 32 % 4));
        }
        block
    }
}

/// 256 columns of sixteen rows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct PanelQ6K {
    d: [u16; LANES],
    /// Of each group.
    scales: [[i8; LANES]; 16],
    low: [Plane<4>; 8],
    high: [Plane<2>; 8],
}

impl IntPanel for PanelQ6K {
    type Block = BlockQ6K;

    fn pack(blocks: [&BlockQ6K; LANES]) -> Self {
        let codes = blocks.map(|b| b.codes());
        Self {
            d: blocks.map(|b| u16::from_le_bytes(b.d)),
            scales: from_fn(|g| blocks.map(|b| b.scales[g])),
            low: from_fn(|b| Plane::pack(part(&codes, b), 0)),
            high: from_fn(|b| Plane::pack(part(&codes, b), 4)),
        }
    }
}

impl IntBlocks for PanelQ6K {
    const RANGE: CodeRange = CodeRange::Unsigned(63);
    const ZERO: i32 = 32;
    const MIN: bool = false;
    const GROUPED: bool = true;

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, b: usize, step: usize) -> S::Codes {
        s.join(self.low[b].codes(s, step), self.high[b].codes(s, step), 4)
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, b: usize, g: usize) -> S::F {
        s.mul(s.load_f16(&self.d), s.load_i8(&self.scales[2 * b + g]))
    }
}
