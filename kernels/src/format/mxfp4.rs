//! `MXFP4`: 32 values as 4-bit floats (E2M1) with a power of two, `x = 2^(e - 127) v[q]`, of the Open Compute Project's microscaling
//! formats, version 1.0.
//!
//! 17 bytes: `e`, then codes as in `Q4_0`; bit 3 of a code is the sign.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};

use super::Block;
use super::search::extreme;
use crate::cpu::isa::{LANES, Simd};
use crate::cpu::strip::{CodeRange, Int, IntBlocks, IntPanel};

/// Twice what the codes stand for.
const DOUBLES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// [`DOUBLES`] of codes, from [`ZERO`] on.
pub(super) const ABOVE_ZERO: [u8; 16] = {
    let mut values = [0; 16];
    let mut i = 0;
    while i < 16 {
        values[i] = (DOUBLES[i] as i32 + ZERO) as u8;
        i += 1;
    }
    values
};

/// What stands for 0 in [`ABOVE_ZERO`].
pub(super) const ZERO: i32 = 12;

/// The codes of [`ABOVE_ZERO`].
pub(super) const RANGE: CodeRange = CodeRange::Unsigned(24);

/// Twice the value of a code.
pub(super) fn double(code: u8) -> f32 {
    f32::from(DOUBLES[usize::from(code & 15)])
}

/// The code whose value times `2 d` is nearest to `x`, the first of several.
pub(super) fn code(x: f32, d: f32) -> u8 {
    let error = |code: u8| (double(code) * d - x).abs();
    (1..16).fold(0, |best, code| if error(code) < error(best) { code } else { best })
}

/// 32 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockMXFP4 {
    e: u8,
    codes: [u8; 16],
}
const _: () = assert!(size_of::<BlockMXFP4>() == 17);

/// `2^(e - 128)` as bfloat16, which holds the least of them as denormals.
fn half_of_power(e: u8) -> u16 {
    match e {
        0 | 1 => 0x20 << e,
        _ => (u16::from(e) - 1) << 7,
    }
}

impl BlockMXFP4 {
    fn d(e: u8) -> f32 {
        f32::from_bits(u32::from(half_of_power(e)) << 16)
    }
}

impl Block for BlockMXFP4 {
    const LEN: usize = 32;
    type Strip = Int<PanelMXFP4>;

    fn decode(&self, out: &mut [f32]) {
        let d = Self::d(self.e);
        let (low, high) = out.split_at_mut(16);
        for (i, &code) in self.codes.iter().enumerate() {
            low[i] = double(code) * d;
            high[i] = double(code >> 4) * d;
        }
    }

    fn encode(x: &[f32]) -> Self {
        let largest = extreme(x).abs();
        // 4 is the power of two in the largest value, 6.
        let e = if largest > 0.0 { (largest.log2().floor() - 2.0 + 127.0) as u8 } else { 0 };
        let d = Self::d(e);
        Self { e, codes: from_fn(|i| code(x[i], d) | code(x[i + 16], d) << 4) }
    }
}

/// 32 columns of sixteen rows: four bytes of every row side by side.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct PanelMXFP4 {
    /// As bfloat16.
    d: [u16; LANES],
    codes: [[u8; 4 * LANES]; 4],
}

impl IntPanel for PanelMXFP4 {
    type Block = BlockMXFP4;

    fn pack(blocks: [&BlockMXFP4; LANES]) -> Self {
        Self { d: blocks.map(|b| half_of_power(b.e)), codes: super::interleave(blocks.map(|b| &b.codes)) }
    }
}

impl IntBlocks for PanelMXFP4 {
    const RANGE: CodeRange = RANGE;
    const ZERO: i32 = ZERO;
    const MIN: bool = false;

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, _b: usize, step: usize) -> S::Codes {
        s.lookup(&ABOVE_ZERO, s.bits(&self.codes[step % 4], 4 * (step as u32 / 4), 4))
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, _b: usize, _g: usize) -> S::F {
        s.load_bf16(&self.d)
    }
}
