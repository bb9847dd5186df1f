//! `Q5_1`: 32 values as 5-bit codes with a scale and a minimum, `x = d q + m`.
//!
//! 24 bytes: `d` and `m` as halves, 4 bytes of which bit `i` is the fifth bit of code `i`, then 16 bytes with the lower
//! four: byte `i` holds those of value `i` in its low and of value `i + 16` in its high nibble.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use super::plane::Plane;
use super::search::{affine, range};
use super::weighted::{best, tries, with_size};
use crate::cpu::isa::{BLOCK, LANES, Simd};
use crate::cpu::strip::{CodeRange, Int, IntBlocks, IntPanel};

/// 32 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_1 {
    d: [u8; 2],
    m: [u8; 2],
    fifth: [u8; 4],
    low: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ5_1>() == 24);

impl BlockQ5_1 {
    fn codes(&self) -> [u8; BLOCK] {
        let fifth = u32::from_le_bytes(self.fifth);
        std::array::from_fn(|i| {
            let low = if i < 16 { self.low[i] & 15 } else { self.low[i - 16] >> 4 };
            low | ((fifth >> i & 1) as u8) << 4
        })
    }

    fn of_codes(d: f32, m: f32, code: impl Fn(usize) -> u8) -> Self {
        let fifth = (0..BLOCK).map(|i| u32::from(code(i) >> 4) << i).sum::<u32>();
        Self {
            d: f16::from_f32(d).to_le_bytes(),
            m: f16::from_f32(m).to_le_bytes(),
            fifth: fifth.to_le_bytes(),
            low: std::array::from_fn(|i| code(i) & 15 | code(i + 16) << 4),
        }
    }
}

impl Block for BlockQ5_1 {
    const LEN: usize = 32;
    type Strip = Int<PanelQ5_1>;

    fn decode(&self, out: &mut [f32]) {
        let d = f16::from_le_bytes(self.d).to_f32();
        let m = f16::from_le_bytes(self.m).to_f32();
        for (x, code) in out.iter_mut().zip(self.codes()) {
            *x = f32::from(code) * d + m;
        }
    }

    fn encode(x: &[f32]) -> Self {
        let (min, max) = range(x);
        let d = (max - min) / 31.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        Self::of_codes(d, min, |i| ((x[i] - min) * inverse + 0.5).clamp(0.0, 31.0) as u8)
    }

    fn encode_weighted(x: &[f32], w: &[f32]) -> Self {
        let searched = with_size(x, w, 1.0).map(|weights| {
            let mut codes = [0; BLOCK];
            let (d, m) = affine(x, &weights, &tries(31), &mut codes);
            Self::of_codes(d, -m, |i| codes[i])
        });
        best(x, w, searched)
    }
}

/// 32 columns of sixteen rows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct PanelQ5_1 {
    d: [u16; LANES],
    m: [u16; LANES],
    low: Plane<4>,
    high: Plane<1>,
}

impl IntPanel for PanelQ5_1 {
    type Block = BlockQ5_1;

    fn pack(blocks: [&BlockQ5_1; LANES]) -> Self {
        let codes = blocks.map(|b| b.codes());
        Self {
            d: blocks.map(|b| u16::from_le_bytes(b.d)),
            m: blocks.map(|b| u16::from_le_bytes(b.m)),
            low: Plane::pack(codes.each_ref(), 0),
            high: Plane::pack(codes.each_ref(), 4),
        }
    }
}

impl IntBlocks for PanelQ5_1 {
    const RANGE: CodeRange = CodeRange::Unsigned(31);
    const ZERO: i32 = 0;
    const MIN: bool = true;

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, _b: usize, step: usize) -> S::Codes {
        s.join(self.low.codes(s, step), self.high.codes(s, step), 4)
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, _b: usize, _g: usize) -> S::F {
        s.load_f16(&self.d)
    }

    #[inline(always)]
    fn min<S: Simd>(&self, s: S, _b: usize, _g: usize) -> S::F {
        s.load_f16(&self.m)
    }
}
