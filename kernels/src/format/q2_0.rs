//! `Q2_0`: 64 values as 2-bit codes with one scale, `x = d (q - 1)`.
//!
//! 18 bytes: `d` as half, then 16 bytes of four codes each, the first in the lowest bits.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use super::plane::Plane;
use super::search::extreme;
use crate::cpu::isa::{BLOCK, LANES, Simd};
use crate::cpu::strip::{CodeRange, Int, IntBlocks, IntPanel};

/// 64 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ2_0 {
    d: [u8; 2],
    codes: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ2_0>() == 18);

impl BlockQ2_0 {
    fn code(&self, i: usize) -> u8 {
        self.codes[i / 4] >> (2 * (i % 4)) & 3
    }

    fn codes(&self, b: usize) -> [u8; BLOCK] {
        from_fn(|i| self.code(BLOCK * b + i))
    }
}

impl Block for BlockQ2_0 {
    const LEN: usize = 64;
    type Strip = Int<PanelQ2_0>;

    fn decode(&self, out: &mut [f32]) {
        let d = f16::from_le_bytes(self.d).to_f32();
        for (i, x) in out.iter_mut().enumerate() {
            *x = (f32::from(self.code(i)) - 1.0) * d;
        }
    }

    /// The largest magnitude; code 3, twice that, is never used.
    fn encode(x: &[f32]) -> Self {
        let d = extreme(x).abs();
        let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
        let code = |i: usize| ((x[i] * inverse).round() as i32 + 1).clamp(0, 3) as u8;
        Self {
            d: f16::from_f32(d).to_le_bytes(),
            codes: from_fn(|byte| (0..4).map(|i| code(4 * byte + i) << (2 * i)).sum()),
        }
    }
}

/// 64 columns of sixteen rows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct PanelQ2_0 {
    d: [u16; LANES],
    codes: [Plane<2>; 2],
}

impl IntPanel for PanelQ2_0 {
    type Block = BlockQ2_0;

    fn pack(blocks: [&BlockQ2_0; LANES]) -> Self {
        Self {
            d: blocks.map(|b| u16::from_le_bytes(b.d)),
            codes: from_fn(|b| Plane::pack(blocks.map(|block| block.codes(b)).each_ref(), 0)),
        }
    }
}

impl IntBlocks for PanelQ2_0 {
    const RANGE: CodeRange = CodeRange::Unsigned(3);
    const ZERO: i32 = 1;
    const MIN: bool = false;
    const SHARED: bool = true;

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, b: usize, step: usize) -> S::Codes {
        self.codes[b].codes(s, step)
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, _b: usize, _g: usize) -> S::F {
        s.load_f16(&self.d)
    }
}
