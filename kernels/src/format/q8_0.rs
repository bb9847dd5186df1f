//! `Q8_0`: 32 values as signed 8-bit codes with one scale, `x = d q`.
//!
//! 34 bytes: `d` as half, then one byte per value.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use crate::cpu::isa::{LANES, Simd};
use crate::cpu::strip::{CodeRange, Int, IntBlocks, IntPanel};

/// 32 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ8_0 {
    d: [u8; 2],
    codes: [u8; 32],
}
const _: () = assert!(size_of::<BlockQ8_0>() == 34);

impl Block for BlockQ8_0 {
    const LEN: usize = 32;
    type Strip = Int<PanelQ8_0>;

    fn decode(&self, out: &mut [f32]) {
        let d = f16::from_le_bytes(self.d).to_f32();
        for (out, &code) in out.iter_mut().zip(&self.codes) {
            *out = f32::from(code.cast_signed()) * d;
        }
    }

    fn encode(x: &[f32]) -> Self {
        let max = x.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
        let d = max / 127.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        Self {
            d: f16::from_f32(d).to_le_bytes(),
            codes: std::array::from_fn(|i| ((x[i] * inverse).round() as i8).cast_unsigned()),
        }
    }
}

/// 32 columns of sixteen rows: four bytes of every row side by side.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct PanelQ8_0 {
    d: [u16; LANES],
    codes: [[u8; 4 * LANES]; 8],
}

impl IntPanel for PanelQ8_0 {
    type Block = BlockQ8_0;

    fn pack(blocks: [&BlockQ8_0; LANES]) -> Self {
        Self {
            d: blocks.map(|b| u16::from_le_bytes(b.d)),
            codes: super::interleave(blocks.map(|b| &b.codes)),
        }
    }
}

impl IntBlocks for PanelQ8_0 {
    const RANGE: CodeRange = CodeRange::Signed;
    const ZERO: i32 = 0;
    const MIN: bool = false;

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, _b: usize, step: usize) -> S::Codes {
        s.load_codes(&self.codes[step])
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, _b: usize, _g: usize) -> S::F {
        s.load_f16(&self.d)
    }
}
