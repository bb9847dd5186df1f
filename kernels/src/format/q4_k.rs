//! `Q4_K`: 256 values as 4-bit codes; each block of 32 has a scale and a minimum of 6 bits, `x = d s q - dmin m`.
//!
//! 144 bytes: `d` and `dmin` as halves; 12 bytes of scales and minima (see `six_bits`); 128 bytes
//! of codes, of which each 32 hold 64 values: byte `i` has value `i` in its low and value `i + 32` in its high nibble.

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
pub struct BlockQ4K {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    low: [u8; 128],
}
const _: () = assert!(size_of::<BlockQ4K>() == 144);

const TRIES: Tries = Tries { most: 15, first: -1.0, step: 0.1, steps: 20, absolute: false };

impl BlockQ4K {
    fn codes(&self) -> [u8; 256] {
        let low = self.low.as_chunks::<32>().0;
        plane::codes(|b, i| low[b / 2][i] >> (4 * (b % 2)) & 15)
    }
}

impl Block for BlockQ4K {
    const LEN: usize = 256;
    type Strip = Int<PanelQ4K>;

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
        best(x, w, with_size(x, w, 2.0).map(|weights| Self::of_parts(encode_weighted(x, &weights, 15))))
    }
}

impl BlockQ4K {
    fn of_parts((d, dmin, scales, codes): Parts) -> Self {
        let mut block = Self { d, dmin, scales, low: [0; 128] };
        for (i, code) in codes.into_iter().enumerate() {
            block.low[i / 64 * 32 + i % 32] |= code << (4 * (i / 32 % 2));
        }
        block
    }
}

/// Scale and minimum of each block of 32, in twelve bytes: of the first four blocks, the scales in the lower six bits of bytes
/// 0 to 3 and the minima in those of bytes 4 to 7; of the others, both nibbles in bytes 8 to 11 and the upper two bits above the
/// first four's.
pub(super) fn six_bits(bytes: &[u8; 12]) -> [(u8, u8); 8] {
    from_fn(|b| match b {
        0..4 => (bytes[b] & 63, bytes[b + 4] & 63),
        _ => (bytes[b + 4] & 15 | bytes[b - 4] >> 6 << 4, bytes[b + 4] >> 4 | bytes[b] >> 6 << 4),
    })
}

fn pack_six_bits(pairs: [(u8, u8); 8]) -> [u8; 12] {
    let mut bytes = [0; 12];
    for (b, (scale, min)) in pairs.into_iter().enumerate() {
        if b < 4 {
            bytes[b] |= scale;
            bytes[b + 4] |= min;
        } else {
            bytes[b + 4] = scale & 15 | min << 4;
            bytes[b - 4] |= scale >> 4 << 6;
            bytes[b] |= min >> 4 << 6;
        }
    }
    bytes
}

/// `d s` and `dmin m` of each block of 32.
pub(super) fn steps(d: [u8; 2], dmin: [u8; 2], scales: &[u8; 12]) -> [(f32, f32); 8] {
    let [d, dmin] = [d, dmin].map(|half| f16::from_le_bytes(half).to_f32());
    six_bits(scales).map(|(scale, min)| (d * f32::from(scale), dmin * f32::from(min)))
}

/// `d`, `dmin`, the scales and minima, the codes.
pub(super) type Parts = ([u8; 2], [u8; 2], [u8; 12], [u8; 256]);

/// What the encoders of `Q4_K` and `Q5_K` have in common.
pub(super) fn encode(x: &[f32], tries: &Tries) -> Parts {
    let mut codes = [0; 256];
    let (mut scales, mut mins) = ([0.0; 8], [0.0; 8]);
    for (b, (x, codes)) in x.chunks(32).zip(codes.chunks_mut(32)).enumerate() {
        let mut squares = 0.0f32;
        x.iter().for_each(|x| squares += x * x);
        let average = (squares / 32.0).sqrt();
        let weights: [f32; 32] = from_fn(|i| average + x[i].abs());
        (scales[b], mins[b]) = affine(x, &weights, tries, codes);
    }
    // Both in steps of a 63rd of the largest.
    let largest = |values: &[f32]| values.iter().copied().fold(0.0f32, |a, b| if b > a { b } else { a });
    let (max_scale, max_min) = (largest(&scales), largest(&mins));
    let inverse = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let six = |max: f32, value: f32| nearest(inverse(max) * value).min(63) as u8;
    let packed = pack_six_bits(from_fn(|b| (six(max_scale, scales[b]), six(max_min, mins[b]))));
    of_scales(x, codes, tries.most, (max_scale / 63.0, max_min / 63.0), packed)
}

/// The same for codes of `0..=most`, by how much each value matters.
pub(super) fn encode_weighted(x: &[f32], weights: &[f32], most: i32) -> Parts {
    let mut codes = [0; 256];
    let (mut scales, mut mins, mut sums) = ([0.0; 8], [0.0; 8], [0.0; 8]);
    let blocks = x.chunks(32).zip(weights.chunks(32)).zip(codes.chunks_mut(32));
    for (b, ((x, weights), codes)) in blocks.enumerate() {
        (scales[b], mins[b]) = affine(x, weights, &tries(most), codes);
        sums[b] = weights.iter().sum();
    }
    let ((d, s), (dmin, m)) = (unsigned(&scales, &sums, 63), unsigned(&mins, &sums, 63));
    of_scales(x, codes, most, (d, dmin), pack_six_bits(from_fn(|b| (s[b], m[b]))))
}

/// The parts with these scales and minima, codes rounded to them; those given stay where a scale is 0.
fn of_scales(x: &[f32], mut codes: [u8; 256], most: i32, (d, dmin): (f32, f32), packed: [u8; 12]) -> Parts {
    let [d, dmin] = [d, dmin].map(|d| f16::from_f32(d).to_le_bytes());
    let steps = steps(d, dmin, &packed);
    for ((x, codes), (d, m)) in x.chunks(32).zip(codes.chunks_mut(32)).zip(steps) {
        if d != 0.0 {
            let code = |x: f32| nearest((x + m) / d).clamp(0, most) as u8;
            codes.iter_mut().zip(x).for_each(|(to, &x)| *to = code(x));
        }
    }
    (d, dmin, packed, codes)
}

/// 256 columns of sixteen rows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct PanelQ4K {
    d: [u16; LANES],
    dmin: [u16; LANES],
    /// Of each block of 32: scale, and minimum with its sign turned.
    scales: [[i8; LANES]; 8],
    mins: [[i8; LANES]; 8],
    codes: [Plane<4>; 8],
}

impl IntPanel for PanelQ4K {
    type Block = BlockQ4K;

    fn pack(blocks: [&BlockQ4K; LANES]) -> Self {
        let (codes, pairs) = (blocks.map(|b| b.codes()), blocks.map(|b| six_bits(&b.scales)));
        Self {
            d: blocks.map(|b| u16::from_le_bytes(b.d)),
            dmin: blocks.map(|b| u16::from_le_bytes(b.dmin)),
            scales: from_fn(|b| pairs.map(|pairs| pairs[b].0.cast_signed())),
            mins: from_fn(|b| pairs.map(|pairs| -pairs[b].1.cast_signed())),
            codes: from_fn(|b| Plane::pack(part(&codes, b), 0)),
        }
    }
}

impl IntBlocks for PanelQ4K {
    const RANGE: CodeRange = CodeRange::Unsigned(15);
    const ZERO: i32 = 0;
    const MIN: bool = true;

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, b: usize, step: usize) -> S::Codes {
        self.codes[b].codes(s, step)
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
