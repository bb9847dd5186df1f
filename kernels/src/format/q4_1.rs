//! `Q4_1`: 32 values as 4-bit codes with a scale and a minimum, `x = d q + m`.
//!
//! 20 bytes: `d` and `m` as halves, then 16 bytes; byte `i` holds the code of value `i` in its low and of
//! value `i + 16` in its high nibble.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use super::search::{affine, range};
use super::weighted::{best, tries, with_size};
use crate::cpu::isa::{LANES, Simd};
use crate::cpu::strip::{CodeRange, Int, IntBlocks, IntPanel};

/// 32 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_1 {
    d: [u8; 2],
    m: [u8; 2],
    codes: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ4_1>() == 20);

impl Block for BlockQ4_1 {
    const LEN: usize = 32;
    type Strip = Int<PanelQ4_1>;

    fn decode(&self, out: &mut [f32]) {
        let d = f16::from_le_bytes(self.d).to_f32();
        let m = f16::from_le_bytes(self.m).to_f32();
        let (low, high) = out.split_at_mut(16);
        for (i, &code) in self.codes.iter().enumerate() {
            low[i] = f32::from(code & 15) * d + m;
            high[i] = f32::from(code >> 4) * d + m;
        }
    }

    fn encode(x: &[f32]) -> Self {
        let (min, max) = range(x);
        let d = (max - min) / 15.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        let code = |x: f32| ((x - min) * inverse + 0.5).clamp(0.0, 15.0) as u8;
        Self {
            d: f16::from_f32(d).to_le_bytes(),
            m: f16::from_f32(min).to_le_bytes(),
            codes: std::array::from_fn(|i| code(x[i]) | code(x[i + 16]) << 4),
        }
    }

    fn encode_weighted(x: &[f32], w: &[f32]) -> Self {
        let searched = with_size(x, w, 1.0).map(|weights| {
            let mut codes = [0; 32];
            let (d, m) = affine(x, &weights, &tries(15), &mut codes);
            let codes = std::array::from_fn(|i| codes[i] | codes[i + 16] << 4);
            Self { d: f16::from_f32(d).to_le_bytes(), m: f16::from_f32(-m).to_le_bytes(), codes }
        });
        best(x, w, searched)
    }
}

/// 32 columns of sixteen rows: four bytes of every row side by side.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct PanelQ4_1 {
    d: [u16; LANES],
    m: [u16; LANES],
    codes: [[u8; 4 * LANES]; 4],
}

impl IntPanel for PanelQ4_1 {
    type Block = BlockQ4_1;

    fn pack(blocks: [&BlockQ4_1; LANES]) -> Self {
        Self {
            d: blocks.map(|b| u16::from_le_bytes(b.d)),
            m: blocks.map(|b| u16::from_le_bytes(b.m)),
            codes: super::interleave(blocks.map(|b| &b.codes)),
        }
    }
}

impl IntBlocks for PanelQ4_1 {
    const RANGE: CodeRange = CodeRange::Unsigned(15);
    const ZERO: i32 = 0;
    const MIN: bool = true;

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, _b: usize, step: usize) -> S::Codes {
        s.bits(&self.codes[step % 4], 4 * (step as u32 / 4), 4)
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
