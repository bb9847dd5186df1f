//! `F16`: one little-endian IEEE half per value.
//!
//! A panel is one column of sixteen rows, 32 bytes.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use crate::cpu::isa::{LANES, Simd};
use crate::cpu::strip::{Float, FloatPanel};

/// One value.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct BlockF16([u8; 2]);
const _: () = assert!(size_of::<BlockF16>() == 2);

impl Block for BlockF16 {
    const LEN: usize = 1;
    type Strip = Float<PanelF16>;

    fn decode(&self, out: &mut [f32]) {
        out[0] = f16::from_le_bytes(self.0).to_f32();
    }

    fn encode(x: &[f32]) -> Self {
        Self(f16::from_f32(x[0]).to_le_bytes())
    }
}

/// One column of sixteen rows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
pub struct PanelF16([u16; LANES]);

impl FloatPanel for PanelF16 {
    type Block = BlockF16;

    fn pack(blocks: [&BlockF16; LANES]) -> Self {
        Self(blocks.map(|b| u16::from_le_bytes(b.0)))
    }

    fn unpack(&self) -> [BlockF16; LANES] {
        self.0.map(|x| BlockF16(x.to_le_bytes()))
    }

    #[inline(always)]
    fn values<S: Simd>(&self, s: S) -> S::F {
        s.load_f16(&self.0)
    }
}
