//! `TQ2_0`: 256 values of -1, 0 and 1 with one scale, as 2-bit codes, `x = d (q - 1)`.
//!
//! 66 bytes: 64 bytes of codes, laid out as in `Q2_K`; `d` as a half.

use std::array::from_fn;
use std::marker::PhantomData;

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use super::plane::{self, Plane, part};
use super::search::extreme;
use crate::cpu::isa::{LANES, Simd};
use crate::cpu::strip::{CodeRange, Int, IntBlocks, IntPanel};

/// 256 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockTQ2_0 {
    codes: [u8; 64],
    d: [u8; 2],
}
const _: () = assert!(size_of::<BlockTQ2_0>() == 66);

/// A block of 256 codes and one scale.
pub trait Ternary: Block {
    /// The scale.
    fn d(&self) -> f16;
    /// The codes, one more than the values' multiples of the scale.
    fn codes(&self) -> [u8; 256];
}

/// Writes `d (q - 1)`.
pub(super) fn decode(block: &impl Ternary, out: &mut [f32]) {
    let d = block.d().to_f32();
    for (x, code) in out.iter_mut().zip(block.codes()) {
        *x = (f32::from(code) - 1.0) * d;
    }
}

/// The largest magnitude as scale, and the codes.
pub(super) fn encode(x: &[f32]) -> (f16, [u8; 256]) {
    let d = extreme(x).abs();
    let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
    (f16::from_f32(d), from_fn(|i| ((x[i] * inverse).round() as i32 + 1) as u8))
}

impl Ternary for BlockTQ2_0 {
    fn d(&self) -> f16 {
        f16::from_le_bytes(self.d)
    }

    fn codes(&self) -> [u8; 256] {
        let codes = self.codes.as_chunks::<32>().0;
        plane::codes(|b, i| codes[b / 4][i] >> (2 * (b % 4)) & 3)
    }
}

impl Block for BlockTQ2_0 {
    const LEN: usize = 256;
    type Strip = Int<PanelTernary<Self>>;

    fn decode(&self, out: &mut [f32]) {
        decode(self, out);
    }

    fn encode(x: &[f32]) -> Self {
        let (d, codes) = encode(x);
        let mut block = Self { codes: [0; 64], d: d.to_le_bytes() };
        for (i, code) in codes.into_iter().enumerate() {
            block.codes[i / 128 * 32 + i % 32] |= (code & 3) << (2 * (i / 32 % 4));
        }
        block
    }
}

/// 256 columns of sixteen rows of `B`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, packed)]
pub struct PanelTernary<B>
where
    B: 'static,
{
    d: [[u8; 2]; LANES],
    codes: [Plane<2>; 8],
    block: PhantomData<B>,
}

impl<B: Ternary> IntPanel for PanelTernary<B> {
    type Block = B;

    fn pack(blocks: [&B; LANES]) -> Self {
        let codes = blocks.map(|b| b.codes());
        Self {
            d: blocks.map(|b| b.d().to_le_bytes()),
            codes: from_fn(|b| Plane::pack(part(&codes, b), 0)),
            block: PhantomData,
        }
    }
}

impl<B: Ternary> IntBlocks for PanelTernary<B> {
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
        s.load_f16(&bytemuck::cast(self.d))
    }
}
