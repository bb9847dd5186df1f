//! `I8`: one signed byte per value, `x = q`. What scales it lies outside: in a vector over the rows, or over the columns.
//!
//! A panel is one column of sixteen rows, 16 bytes.

use bytemuck::{Pod, Zeroable};

use super::Block;
use crate::cpu::isa::{LANES, Simd};
use crate::cpu::strip::{Float, FloatPanel};

/// One value.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct BlockI8(i8);
const _: () = assert!(size_of::<BlockI8>() == 1);

impl Block for BlockI8 {
    const LEN: usize = 1;
    type Strip = Float<PanelI8>;

    fn decode(&self, out: &mut [f32]) {
        out[0] = f32::from(self.0);
    }

    /// To the nearest, ties to even, within `-128..=127`.
    fn encode(x: &[f32]) -> Self {
        Self(x[0].round_ties_even() as i8)
    }
}

/// One column of sixteen rows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
pub struct PanelI8([i8; LANES]);

impl FloatPanel for PanelI8 {
    type Block = BlockI8;

    fn pack(blocks: [&BlockI8; LANES]) -> Self {
        Self(blocks.map(|b| b.0))
    }

    fn unpack(&self) -> [BlockI8; LANES] {
        self.0.map(BlockI8)
    }

    #[inline(always)]
    fn values<S: Simd>(&self, s: S) -> S::F {
        s.load_i8(&self.0)
    }
}
