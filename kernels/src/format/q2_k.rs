//! `Q2_K`: 256 values as 2-bit codes; each group of 16 has a scale and a minimum of 4 bits, `x = d s q - dmin m`.
//!
//! 84 bytes: 16 bytes with the scale of each group in the low and its minimum in the high nibble; 64 bytes of codes, of which each
//! 32 hold 128 values: byte `i` has values `i`, `i + 32`, `i + 64` and `i + 96`, from its lowest bits on; `d` and `dmin` as halves.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use super::plane::{self, Plane, part};
use super::search::{Tries, affine, nearest};
use super::weighted::{best, tries, unsigned, with_size};
use crate::cpu::isa::{LANES, Simd};
use crate::cpu::strip::{CodeRange, Int, IntBlocks, IntPanel};

/// 256 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ2K {
    scales: [u8; 16],
    codes: [u8; 64],
    d: [u8; 2],
    dmin: [u8; 2],
}
const _: () = assert!(size_of::<BlockQ2K>() == 84);

const TRIES: Tries = Tries { most: 3, first: -0.5, step: 0.1, steps: 15, absolute: true };

impl BlockQ2K {
    fn codes(&self) -> [u8; 256] {
        let codes = self.codes.as_chunks::<32>().0;
        plane::codes(|b, i| codes[b / 4][i] >> (2 * (b % 4)) & 3)
    }

    fn d_and_min(&self, g: usize) -> (f32, f32) {
        let [d, dmin] = [self.d, self.dmin].map(|half| f16::from_le_bytes(half).to_f32());
        (d * f32::from(self.scales[g] & 15), dmin * f32::from(self.scales[g] >> 4))
    }
}

impl Block for BlockQ2K {
    const LEN: usize = 256;
    type Strip = Int<PanelQ2K>;

    fn decode(&self, out: &mut [f32]) {
        for (i, (x, code)) in out.iter_mut().zip(self.codes()).enumerate() {
            let (d, m) = self.d_and_min(i / 16);
            *x = d * f32::from(code) - m;
        }
    }

    fn encode(x: &[f32]) -> Self {
        let mut codes = [0; 256];
        let (mut scales, mut mins) = ([0.0; 16], [0.0; 16]);
        for (g, (x, codes)) in x.chunks(16).zip(codes.chunks_mut(16)).enumerate() {
            let weights: [f32; 16] = from_fn(|i| x[i].abs());
            (scales[g], mins[g]) = affine(x, &weights, &TRIES, codes);
        }
        // Both in steps of a fifteenth of the largest.
        let in_nibbles = |values: &[f32; 16]| {
            let max = values.iter().copied().fold(0.0f32, |a, b| if b > a { b } else { a });
            let inverse = if max > 0.0 { 15.0 / max } else { 0.0 };
            (if max > 0.0 { max / 15.0 } else { 0.0 }, values.map(|value| nearest(inverse * value) as u8))
        };
        Self::of_scales(x, codes, in_nibbles(&scales), in_nibbles(&mins))
    }

    fn encode_weighted(x: &[f32], w: &[f32]) -> Self {
        let searched = with_size(x, w, 1.0).map(|weights| {
            let mut codes = [0; 256];
            let (mut scales, mut mins, mut sums) = ([0.0; 16], [0.0; 16], [0.0; 16]);
            let groups = x.chunks(16).zip(weights.chunks(16)).zip(codes.chunks_mut(16));
            for (g, ((x, weights), codes)) in groups.enumerate() {
                (scales[g], mins[g]) = affine(x, weights, &tries(3), codes);
                sums[g] = weights.iter().sum();
            }
            Self::of_scales(x, codes, unsigned(&scales, &sums, 15), unsigned(&mins, &sums, 15))
        });
        best(x, w, searched)
    }
}

impl BlockQ2K {
    /// The block with these scales and minima, codes rounded to them; those given stay where a scale is 0.
    fn of_scales(
        x: &[f32],
        mut codes: [u8; 256],
        (d, s): (f32, [u8; 16]),
        (dmin, m): (f32, [u8; 16]),
    ) -> Self {
        let mut block = Self {
            scales: from_fn(|g| s[g] | m[g] << 4),
            codes: [0; 64],
            d: f16::from_f32(d).to_le_bytes(),
            dmin: f16::from_f32(dmin).to_le_bytes(),
        };
        for (g, (x, codes)) in x.chunks(16).zip(codes.chunks_mut(16)).enumerate() {
            let (d, m) = block.d_and_min(g);
            if d != 0.0 {
                codes.iter_mut().zip(x).for_each(|(c, x)| *c = nearest((x + m) / d).clamp(0, 3) as u8);
            }
        }
        for (i, code) in codes.into_iter().enumerate() {
            block.codes[i / 128 * 32 + i % 32] |= code << (2 * (i / 32 % 4));
        }
        block
    }
}

/// 256 columns of sixteen rows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct PanelQ2K {
    d: [u16; LANES],
    dmin: [u16; LANES],
    /// Of each group: the scale in the low nibble, the minimum in the high one.
    scales: [[u8; LANES]; 16],
    codes: [Plane<2>; 8],
}

impl IntPanel for PanelQ2K {
    type Block = BlockQ2K;

    fn pack(blocks: [&BlockQ2K; LANES]) -> Self {
        let codes = blocks.map(|b| b.codes());
        Self {
            d: blocks.map(|b| u16::from_le_bytes(b.d)),
            dmin: blocks.map(|b| u16::from_le_bytes(b.dmin)),
            scales: from_fn(|g| blocks.map(|b| b.scales[g])),
            codes: from_fn(|b| Plane::pack(part(&codes, b), 0)),
        }
    }
}

impl IntBlocks for PanelQ2K {
    const RANGE: CodeRange = CodeRange::Unsigned(3);
    const ZERO: i32 = 0;
    const MIN: bool = true;
    const GROUPED: bool = true;

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, b: usize, step: usize) -> S::Codes {
        self.codes[b].codes(s, step)
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, b: usize, g: usize) -> S::F {
        s.mul(s.load_f16(&self.d), s.load_bits(&self.scales[2 * b + g], 0, 4))
    }

    #[inline(always)]
    fn min<S: Simd>(&self, s: S, b: usize, g: usize) -> S::F {
        let m = s.mul(s.load_f16(&self.dmin), s.load_bits(&self.scales[2 * b + g], 4, 4));
        s.sub(s.splat(-0.0), m)
    }
}
