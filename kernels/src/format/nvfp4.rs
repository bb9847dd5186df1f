//! `NVFP4`: 64 values as 4-bit floats (E2M1); each group of 16 has a scale of 8 bits, an E4M3 without sign, `x = s v[q]`.
//!
//! 36 bytes: 4 scales, then 32 bytes of codes, of which each 8 hold 16 values: byte `i` has value `i` in its low and value `i + 8` in
//! its high nibble.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::mxfp4::{ABOVE_ZERO, ZERO, code, double};
use super::plane::Plane;
use super::search::extreme;
use super::{Block, mxfp4};
use crate::cpu::isa::{BLOCK, GROUP, LANES, Simd};
use crate::cpu::strip::{CodeRange, Int, IntBlocks, IntPanel};

/// 64 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockNVFP4 {
    scales: [u8; 4],
    codes: [[u8; 8]; 4],
}
const _: () = assert!(size_of::<BlockNVFP4>() == 36);

/// Half the E4M3, exactly; 0 of the code that E4M3 calls NaN.
fn half_of(scale: u8) -> f16 {
    match scale {
        0x7f => f16::ZERO,
        // Exponent and mantissa are as in a half, whose exponents are greater by 8.
        _ => f16::from_f32(f16::from_bits(u16::from(scale & 0x7f) << 7).to_f32() * 128.0),
    }
}

/// The E4M3 nearest to `x`, of two the greater, and 0 of what is not positive. As in ggml all from 248 on, which rounds to 256, give
/// the greatest, 448.
fn e4m3(x: f32) -> u8 {
    let x = if x > 0.0 { x.min(448.0) } else { 0.0 };
    // Below the least normal number in its last place.
    if x < 2f32.powi(-6) {
        return ((x * 512.0 + 0.5) as u8).min(7);
    }
    // Exponent and mantissa of the half, with three bits of mantissa and one to round by.
    let bits = (x.to_bits() >> 19) - ((127 - 7) << 4);
    match bits.div_ceil(2) as u8 {
        0x78.. => 0x7e,
        nearest => nearest,
    }
}

impl BlockNVFP4 {
    /// Of group `g`.
    fn group(&self, g: usize) -> [u8; GROUP] {
        from_fn(|i| self.codes[g][i % 8] >> (4 * (i / 8)) & 15)
    }

    /// Of columns `32 b..32 b + 32`.
    fn codes(&self, b: usize) -> [u8; BLOCK] {
        bytemuck::cast([self.group(2 * b), self.group(2 * b + 1)])
    }
}

impl Block for BlockNVFP4 {
    const LEN: usize = 64;
    type Strip = Int<PanelNVFP4>;

    fn decode(&self, out: &mut [f32]) {
        for (g, out) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
            let d = half_of(self.scales[g]).to_f32();
            *out = self.group(g).map(|code| double(code) * d);
        }
    }

    fn encode(x: &[f32]) -> Self {
        let groups = x.as_chunks::<GROUP>().0;
        // 6 is the largest value.
        let scales: [u8; 4] = from_fn(|g| e4m3(extreme(&groups[g]).abs() / 6.0));
        let codes = from_fn(|g| {
            let (x, d) = (groups[g], half_of(scales[g]).to_f32());
            from_fn(|i| code(x[i], d) | code(x[i + 8], d) << 4)
        });
        Self { scales, codes }
    }
}

/// 64 columns of sixteen rows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct PanelNVFP4 {
    /// Half the scale of each group, as a half.
    d: [[u16; LANES]; 4],
    codes: [Plane<4>; 2],
}

impl IntPanel for PanelNVFP4 {
    type Block = BlockNVFP4;

    fn pack(blocks: [&BlockNVFP4; LANES]) -> Self {
        Self {
            d: from_fn(|g| blocks.map(|b| half_of(b.scales[g]).to_bits())),
            codes: from_fn(|b| Plane::pack(blocks.map(|block| block.codes(b)).each_ref(), 0)),
        }
    }
}

impl IntBlocks for PanelNVFP4 {
    const RANGE: CodeRange = mxfp4::RANGE;
    const ZERO: i32 = ZERO;
    const MIN: bool = false;
    const GROUPED: bool = true;

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, b: usize, step: usize) -> S::Codes {
        s.lookup(&ABOVE_ZERO, self.codes[b].codes(s, step))
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, b: usize, g: usize) -> S::F {
        s.load_f16(&self.d[2 * b + g])
    }
}
