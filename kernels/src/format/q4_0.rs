//! `Q4_0`: 32 values as 4-bit codes with one scale, `x = d (q - 8)`.
//!
//! 18 bytes: `d` as half, then 16 bytes; byte `i` holds the code of value `i` in its low and of value
//! `i + 16` in its high nibble.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use super::search::{extreme, signed};
use super::weighted::{best, with_size};
use crate::cpu::isa::{LANES, Simd};
use crate::cpu::strip::{CodeRange, Int, IntBlocks, IntPanel};

/// 32 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_0 {
    d: [u8; 2],
    codes: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ4_0>() == 18);

impl Block for BlockQ4_0 {
    const LEN: usize = 32;
    type Strip = Int<PanelQ4_0>;

    fn decode(&self, out: &mut [f32]) {
        let d = f16::from_le_bytes(self.d).to_f32();
        let (low, high) = out.split_at_mut(16);
        for (i, &code) in self.codes.iter().enumerate() {
            low[i] = (f32::from(code & 15) - 8.0) * d;
            high[i] = (f32::from(code >> 4) - 8.0) * d;
        }
    }

    fn encode(x: &[f32]) -> Self {
        // The value of largest magnitude (the first of equals) becomes code 0, that is -8, whatever its sign.
        let d = extreme(x) / -8.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        let code = |x: f32| (x * inverse + 8.5).clamp(0.0, 15.0) as u8;
        Self {
            d: f16::from_f32(d).to_le_bytes(),
            codes: std::array::from_fn(|i| code(x[i]) | code(x[i + 16]) << 4),
        }
    }

    fn encode_weighted(x: &[f32], w: &[f32]) -> Self {
        let searched = with_size(x, w, 1.0).map(|weights| {
            let mut codes = [0; 32];
            let d = signed(x, &weights, 8, &mut codes);
            let codes = std::array::from_fn(|i| codes[i] | codes[i + 16] << 4);
            Self { d: f16::from_f32(d).to_le_bytes(), codes }
        });
        best(x, w, searched)
    }
}

/// 32 columns of sixteen rows: four bytes of every row side by side.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct PanelQ4_0 {
    d: [u16; LANES],
    codes: [[u8; 4 * LANES]; 4],
}

impl IntPanel for PanelQ4_0 {
    type Block = BlockQ4_0;

    fn pack(blocks: [&BlockQ4_0; LANES]) -> Self {
        Self {
            d: blocks.map(|b| u16::from_le_bytes(b.d)),
            codes: super::interleave(blocks.map(|b| &b.codes)),
        }
    }
}

impl IntBlocks for PanelQ4_0 {
    const RANGE: CodeRange = CodeRange::Unsigned(15);
    const ZERO: i32 = 8;
    const MIN: bool = false;

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, _b: usize, step: usize) -> S::Codes {
        s.bits(&self.codes[step % 4], 4 * (step as u32 / 4), 4)
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, _b: usize, _g: usize) -> S::F {
        s.load_f16(&self.d)
    }
}
