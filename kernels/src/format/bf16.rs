//! `BF16`: one little-endian bfloat16 per value, the upper half of a single.
//!
//! A panel is one column of sixteen rows, 32 bytes.

use bytemuck::{Pod, Zeroable};
use half::bf16;

use super::Block;
use crate::cpu::isa::{LANES, Simd};
use crate::cpu::strip::{Float, FloatPanel};

/// One value.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct BlockBF16([u8; 2]);
const _: () = assert!(size_of::<BlockBF16>() == 2);

impl Block for BlockBF16 {
    const LEN: usize = 1;
    type Strip = Float<PanelBF16>;

    fn decode(&self, out: &mut [f32]) {
        out[0] = f32::from_bits(u32::from(u16::from_le_bytes(self.0)) << 16);
    }

    fn encode(x: &[f32]) -> Self {
        Self(bf16::from_f32(x[0]).to_le_bytes())
    }
}

/// One column of sixteen rows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
pub struct PanelBF16([u16; LANES]);

impl FloatPanel for PanelBF16 {
    type Block = BlockBF16;

    fn pack(blocks: [&BlockBF16; LANES]) -> Self {
        Self(blocks.map(|b| u16::from_le_bytes(b.0)))
    }

    fn unpack(&self) -> [BlockBF16; LANES] {
        self.0.map(|x| BlockBF16(x.to_le_bytes()))
    }

    #[inline(always)]
    fn values<S: Simd>(&self, s: S) -> S::F {
        s.load_bf16(&self.0)
    }
}
