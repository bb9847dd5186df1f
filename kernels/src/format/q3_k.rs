//! `Q3_K`: 256 values as 3-bit codes; each group of 16 has a scale of 6 bits, `x = d (s - 32) (q - 4)`.
//!
//! 110 bytes: 32 bytes with the third bit of each code, bit `b` of byte `i` that of value `32 b + i`; 64 bytes with the lower two,
//! laid out as in `Q2_K`; 12 bytes of scales: the lower nibbles of the first eight in the low and of the others in the high nibbles
//! of 8 bytes, then 4 bytes with the upper two bits, byte `j` those of scales `j`, `j + 4`, `j + 8` and `j + 12`; `d` as a half.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use super::plane::{self, Plane, part};
use super::search::{by_turns, extreme, nearest, signed};
use super::weighted::{best, with_size};
use crate::cpu::isa::{LANES, Simd};
use crate::cpu::strip::{CodeRange, Int, IntBlocks, IntPanel};

/// 256 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ3K {
    third: [u8; 32],
    low: [u8; 64],
    scales: [u8; 12],
    d: [u8; 2],
}
const _: () = assert!(size_of::<BlockQ3K>() == 110);

impl BlockQ3K {
    fn codes(&self) -> [u8; 256] {
        let low = self.low.as_chunks::<32>().0;
        plane::codes(|b, i| low[b / 4][i] >> (2 * (b % 4)) & 3 | (self.third[i] >> b & 1) << 2)
    }

    fn scales(&self) -> [i8; 16] {
        from_fn(|g| {
            let low = self.scales[g % 8] >> (4 * (g / 8)) & 15;
            let high = self.scales[8 + g % 4] >> (2 * (g / 4)) & 3;
            (low | high << 4).cast_signed() - 32
        })
    }
}

impl Block for BlockQ3K {
    const LEN: usize = 256;
    type Strip = Int<PanelQ3K>;

    fn decode(&self, out: &mut [f32]) {
        let (d, scales) = (f16::from_le_bytes(self.d).to_f32(), self.scales());
        for (i, (x, code)) in out.iter_mut().zip(self.codes()).enumerate() {
            *x = d * f32::from(scales[i / 16]) * (f32::from(code) - 4.0);
        }
    }

    fn encode(x: &[f32]) -> Self {
        let mut codes = [0; 256];
        let mut scales = [0.0; 16];
        for (g, (x, codes)) in x.chunks(16).zip(codes.chunks_mut(16)).enumerate() {
            scales[g] = by_turns(x, 4, codes);
        }
        let largest = extreme(&scales);
        if largest == 0.0 {
            return Self::of_scales(x, codes, [0; 16], 0.0);
        }
        let inverse = -32.0 / largest;
        let scales = scales.map(|scale| (nearest(inverse * scale).clamp(-32, 31) + 32) as u8);
        Self::of_scales(x, codes, scales, 1.0 / inverse)
    }

    fn encode_weighted(x: &[f32], w: &[f32]) -> Self {
        let searched = with_size(x, w, 2.0).map(|weights| {
            let mut codes = [0; 256];
            let (mut scales, mut sums) = ([0.0; 16], [0.0; 16]);
            let groups = x.chunks(16).zip(weights.chunks(16)).zip(codes.chunks_mut(16));
            for (g, ((x, weights), codes)) in groups.enumerate() {
                scales[g] = signed(x, weights, 4, codes);
                sums[g] = weights.iter().sum();
            }
            let mut rounded = [0; 16];
            let d = signed(&scales, &sums, 32, &mut rounded);
            Self::of_scales(x, codes, if d == 0.0 { [0; 16] } else { rounded }, d)
        });
        best(x, w, searched)
    }
}

impl BlockQ3K {
    /// The block with these scales, codes rounded to them; those given stay where a scale is 0.
    fn of_scales(x: &[f32], mut codes: [u8; 256], scales: [u8; 16], d: f32) -> Self {
        let mut block = Self { third: [0; 32], low: [0; 64], scales: [0; 12], d: [0; 2] };
        for (g, scale) in scales.into_iter().enumerate() {
            block.scales[g % 8] |= (scale & 15) << (4 * (g / 8));
            block.scales[8 + g % 4] |= scale >> 4 << (2 * (g / 4));
        }
        block.d = f16::from_f32(d).to_le_bytes();
        let d = f16::from_le_bytes(block.d).to_f32();
        for ((x, codes), scale) in x.chunks(16).zip(codes.chunks_mut(16)).zip(block.scales()) {
            let d = d * f32::from(scale);
            if d != 0.0 {
                codes.iter_mut().zip(x).for_each(|(c, x)| *c = (nearest(x / d).clamp(-4, 3) + 4) as u8);
            }
        }
        for (i, code) in codes.into_iter().enumerate() {
            block.third[i % 32] |= code >> 2 << (i / 32);
            block.low[i / 128 * 32 + i % 32] |= (code & 3) << (2 * (i / 32 % 4));
        }
        block
    }
}

/// 256 columns of sixteen rows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct PanelQ3K {
    d: [u16; LANES],
    /// Of each group.
    scales: [[i8; LANES]; 16],
    low: [Plane<2>; 8],
    high: [Plane<1>; 8],
}

impl IntPanel for PanelQ3K {
    type Block = BlockQ3K;

    fn pack(blocks: [&BlockQ3K; LANES]) -> Self {
        let (codes, scales) = (blocks.map(|b| b.codes()), blocks.map(|b| b.scales()));
        Self {
            d: blocks.map(|b| u16::from_le_bytes(b.d)),
            scales: from_fn(|g| scales.map(|scales| scales[g])),
            low: from_fn(|b| Plane::pack(part(&codes, b), 0)),
            high: from_fn(|b| Plane::pack(part(&codes, b), 2)),
        }
    }
}

impl IntBlocks for PanelQ3K {
    const RANGE: CodeRange = CodeRange::Unsigned(7);
    const ZERO: i32 = 4;
    const MIN: bool = false;
    const GROUPED: bool = true;

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, b: usize, step: usize) -> S::Codes {
        s.join(self.low[b].codes(s, step), self.high[b].codes(s, step), 2)
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, b: usize, g: usize) -> S::F {
        s.mul(s.load_f16(&self.d), s.load_i8(&self.scales[2 * b + g]))
    }
}
