//! `Q1_0`: 128 signs with one scale, `x = d` where the bit is 1 and `-d` where it is 0.
//!
//! 18 bytes: `d` as half, then 16 bytes; bit `i` is that of value `i`, the lowest bit of the first byte first.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use super::plane::Plane;
use crate::cpu::isa::{BLOCK, LANES, Simd};
use crate::cpu::strip::{CodeRange, Int, IntBlocks, IntPanel};

/// 128 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ1_0 {
    d: [u8; 2],
    bits: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ1_0>() == 18);

impl BlockQ1_0 {
    fn codes(&self, b: usize) -> [u8; BLOCK] {
        from_fn(|i| self.bits[4 * b + i / 8] >> (i % 8) & 1)
    }
}

impl Block for BlockQ1_0 {
    const LEN: usize = 128;
    type Strip = Int<PanelQ1_0>;

    fn decode(&self, out: &mut [f32]) {
        let d = f16::from_le_bytes(self.d).to_f32();
        for (i, x) in out.iter_mut().enumerate() {
            *x = if self.bits[i / 8] >> (i % 8) & 1 == 1 { d } else { -d };
        }
    }

    /// The mean magnitude, and the sign of each value; that of 0 is 1.
    fn encode(x: &[f32]) -> Self {
        let sum = x.iter().fold(0.0f32, |sum, x| sum + x.abs());
        let bit = |i: usize| u8::from(x[i] >= 0.0) << (i % 8);
        Self {
            d: f16::from_f32(sum / 128.0).to_le_bytes(),
            bits: from_fn(|byte| (8 * byte..8 * byte + 8).map(bit).sum()),
        }
    }
}

/// 128 columns of sixteen rows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct PanelQ1_0 {
    d: [u16; LANES],
    bits: [Plane<1>; 4],
}

impl IntPanel for PanelQ1_0 {
    type Block = BlockQ1_0;

    fn pack(blocks: [&BlockQ1_0; LANES]) -> Self {
        Self {
            d: blocks.map(|b| u16::from_le_bytes(b.d)),
            bits: from_fn(|b| Plane::pack(blocks.map(|block| block.codes(b)).each_ref(), 0)),
        }
    }
}

impl IntBlocks for PanelQ1_0 {
    // Codes 0 and 2, so that sums are whole numbers throughout.
    const RANGE: CodeRange = CodeRange::Unsigned(2);
    const ZERO: i32 = 1;
    const MIN: bool = false;
    const SHARED: bool = true;

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, b: usize, step: usize) -> S::Codes {
        self.bits[b].twos(s, step)
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, _b: usize, _g: usize) -> S::F {
        s.load_f16(&self.d)
    }
}
