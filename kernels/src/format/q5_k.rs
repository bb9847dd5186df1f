//! `Q5_K`: 256 values as 5-bit codes; each block of 32 has a scale and a minimum of 6 bits, `x = d s q - dmin m`.
//!
//! 176 bytes: `d` and `dmin` as halves; 12 bytes of scales and minima (see `six_bits`); 32 bytes with the fifth bit of each code, bit `b` of
//! byte `i` that of value `32 b + i`; 128 bytes
//! of the lower four bits, of which each 32 hold 64 values: byte `i` has value `i` in its low and value `i + 32` in its high nibble.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};

use super::Block;
use super::plane::{self, Plane, part};
use super::q4_k::{Parts, encode, encode_weighted, six_bits, steps};
use super::search::Tries;
use super::weighted::{best, with_size};
use crate::cpu::isa::{LANES, Simd};
use crate::cpu::strip::{CodeRange, Int, IntBlocks, IntPanel};

/// 256 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5K {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    fifth: [u8; 32],
    low: [u8; 128],
}
const _: () = assert!(size_of::<BlockQ5K>() == 176);

const TRIES: Tries = Tries { most: 31, first: -0.5, step: 0.1, steps: 15, absolute: false };

impl BlockQ5K {
    fn codes(&self) -> [u8; 256] {
        let low = self.low.as_chunks::<32>().0;
        plane::codes(|b, i| low[b / 2][i] >> (4 * (b % 2)) & 15 | (self.fifth[i] >> b & 1) << 4)
    }
}

impl Block for BlockQ5K {
    const LEN: usize = 256;
    type Strip = Int<PanelQ5K>;

    fn decode(&self, out: &mut [f32]) {
        let steps = steps(self.d, self.dmin, &self.scales);
        for (i, (x, code)) in out.iter_mut().zip(self.codes()).enumerate() {
            let (d, m) = steps[i / 32];
            *x = d * f32::from(code) - m;
        }
    }

    fn encode(x: &[f32]) -> Self {
        Self::of_parts(encode(x, &TRIES))
    }

    fn encode_weighted(x: &[f32], w: &[f32]) -> Self {
        best(x, w, with_size(x, w, 2.0).map(|weights| Self::of_parts(encode_weighted(x, &weights, 31))))
    }
}

impl BlockQ5K {
    fn of_parts((d, dmin, scales, codes): Parts) -> Self {
        let mut block = Self { d, dmin, scales, fifth: [0; 32], low: [0; 128] };
        for (i, code) in codes.into_iter().enumerate() {
            block.fifth[i % 32] |= code >> 4 << (i / 32);
            block.low[i / 64 * 32 + i % 32] |= (code & 15) << (4 * (i / 32 % 2));
        }
        block
    }
}

/// 256 columns of sixteen rows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct PanelQ5K {
    d: [u16; LANES],
    dmin: [u16; LANES],
    /// Of each block of 32: scale, and minimum with its sign turned.
    scales: [[i8; LANES]; 8],
    mins: [[i8; LANES]; 8],
    low: [Plane<4>; 8],
    high: [Plane<1>; 8],
}

impl IntPanel for PanelQ5K {
    type Block = BlockQ5K;

    fn pack(blocks: [&BlockQ5K; LANES]) -> Self {
        let (codes, pairs) = (blocks.map(|b| b.codes()), blocks.map(|b| six_bits(&b.scales)));
        Self {
            d: blocks.map(|b| u16::from_le_bytes(b.d)),
            dmin: blocks.map(|b| u16::from_le_bytes(b.dmin)),
            scales: from_fn(|b| pairs.map(|pairs| pairs[b].0.cast_signed())),
            mins: from_fn(|b| pairs.map(|pairs| -pairs[b].1.cast_signed())),
            low: from_fn(|b| Plane::pack(part(&codes, b), 0)),
            high: from_fn(|b| Plane::pack(part(&codes, b), 4)),
        }
    }
}

impl IntBlocks for PanelQ5K {
    const RANGE: CodeRange = CodeRange::Unsigned(31);
    const ZERO: i32 = 0;
    const MIN: bool = true;

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, b: usize, step: usize) -> S::Codes {
        s.join(self.low[b].codes(s, step), self.high[b].codes(s, step), 4)
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, b: usize, _g: usize) -> S::F {
        s.mul(s.load_f16(&self.d), s.load_i8(&self.scales[b]))
    }

    #[inline(always)]
    fn min<S: Simd>(&self, s: S, b: usize, _g: usize) -> S::F {
        s.mul(s.load_f16(&self.dmin), s.load_i8(&self.mins[b]))
    }
}
