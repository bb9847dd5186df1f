//! `F32`: one little-endian single per value.
//!
//! A panel is one column of sixteen rows, 64 bytes.

use bytemuck::{Pod, Zeroable};

use super::Block;
use crate::cpu::isa::{LANES, Simd};
use crate::cpu::strip::{Float, FloatPanel};

/// One value.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct BlockF32([u8; 4]);
const _: () = assert!(size_of::<BlockF32>() == 4);

impl Block for BlockF32 {
    const LEN: usize = 1;
    type Strip = Float<PanelF32>;

    fn decode(&self, out: &mut [f32]) {
        out[0] = f32::from_le_bytes(self.0);
    }

    fn encode(x: &[f32]) -> Self {
        Self(x[0].to_le_bytes())
    }
}

/// One column of sixteen rows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
pub struct PanelF32([f32; LANES]);

impl FloatPanel for PanelF32 {
    type Block = BlockF32;

    fn pack(blocks: [&BlockF32; LANES]) -> Self {
        Self(blocks.map(|b| f32::from_le_bytes(b.0)))
    }

    fn unpack(&self) -> [BlockF32; LANES] {
        self.0.map(|x| BlockF32(x.to_le_bytes()))
    }

    #[inline(always)]
    fn values<S: Simd>(&self, s: S) -> S::F {
        s.load(&self.0)
    }
}
