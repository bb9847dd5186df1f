//! `Q5_0`: 32 values as 5-bit codes with one scale, `x = d (q - 16)`.
//!
//! 22 bytes: `d` as a half, 4 bytes of which bit `i` is the fifth bit of code `i`, then 16 bytes with the lower
//! four: byte `i` holds those of value `i` in its low and of value `i + 16` in its high nibble.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use super::plane::Plane;
use super::search::{extreme, signed};
use super::weighted::{best, with_size};
use crate::cpu::isa::{BLOCK, LANES, Simd};
use crate::cpu::strip::{CodeRange, Int, IntBlocks, IntPanel};

/// 32 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_0 {
    d: [u8; 2],
    fifth: [u8; 4],
    low: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ5_0>() == 22);

impl BlockQ5_0 {
    fn codes(&self) -> [u8; BLOCK] {
        let fifth = u32::from_le_bytes(self.fifth);
        std::array::from_fn(|i| {
            let low = if i < 16 { self.low[i] & 15 } else { self.low[i - 16] >> 4 };
            low | ((fifth >> i & 1) as u8) << 4
        })
    }

    fn of_codes(d: f32, code: impl Fn(usize) -> u8) -> Self {
        let fifth = (0..BLOCK).map(|i| u32::from(code(i) >> 4) << i).sum::<u32>();
        Self {
            d: f16::from_f32(d).to_le_bytes(),
            fifth: fifth.to_le_bytes(),
            low: std::array::from_fn(|i| code(i) & 15 | code(i + 16) << 4),
        }
    }
}

impl Block for BlockQ5_0 {
    const LEN: usize = 32;
    type Strip = Int<PanelQ5_0>;

    fn decode(&self, out: &mut [f32]) {
        let d = f16::from_le_bytes(self.d).to_f32();
        for (x, code) in out.iter_mut().zip(self.codes()) {
            *x = (f32::from(code) - 16.0) * d;
        }
    }

    /// The value of largest magnitude, the first of several, gets the code 0.
    fn encode(x: &[f32]) -> Self {
        let d = extreme(x) / -16.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        Self::of_codes(d, |i| ((x[i] * inverse + 16.5) as u8).min(31))
    }

    fn encode_weighted(x: &[f32], w: &[f32]) -> Self {
        let searched = with_size(x, w, 1.0).map(|weights| {
            let mut codes = [0; BLOCK];
            let d = signed(x, &weights, 16, &mut codes);
            Self::of_codes(d, |i| codes[i])
        });
        best(x, w, searched)
    }
}

/// 32 columns of sixteen rows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct PanelQ5_0 {
    d: [u16; LANES],
    low: Plane<4>,
    high: Plane<1>,
}

impl IntPanel for PanelQ5_0 {
    type Block = BlockQ5_0;

    fn pack(blocks: [&BlockQ5_0; LANES]) -> Self {
        let codes = blocks.map(|b| b.codes());
        Self {
            d: blocks.map(|b| u16::from_le_bytes(b.d)),
            low: Plane::pack(codes.each_ref(), 0),
            high: Plane::pack(codes.each_ref(), 4),
        }
    }
}

impl IntBlocks for PanelQ5_0 {
    const RANGE: CodeRange = CodeRange::Unsigned(31);
    const ZERO: i32 = 16;
    const MIN: bool = false;

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, _b: usize, step: usize) -> S::Codes {
        s.join(self.low.codes(s, step), self.high.codes(s, step), 4)
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, _b: usize, _g: usize) -> S::F {
        s.load_f16(&self.d)
    }
}
