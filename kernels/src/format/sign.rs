//! `SIGN`: 32 values of one bit, `x = 1` where it is 1 and `-1` where it is 0. What scales them lies outside (BitDelta, arXiv 2402.10193).
//!
//! 4 bytes: bit `i` is that of value `i`, the lowest bit of the first byte first.
//!
//! A panel is 32 columns of sixteen rows, 64 bytes: bit `s` of byte `4 r + k` is that of row `r`, column `4 s + k`.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};

use super::Block;
use super::plane::Plane;
use crate::cpu::isa::{BLOCK, LANES, Simd};
use crate::cpu::strip::{CodeRange, Int, IntBlocks, IntPanel, Unpack};

/// 32 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct BlockSign([u8; 4]);
const _: () = assert!(size_of::<BlockSign>() == 4);

impl BlockSign {
    fn codes(&self) -> [u8; BLOCK] {
        let bits = u32::from_le_bytes(self.0);
        from_fn(|i| (bits >> i & 1) as u8)
    }
}

impl Block for BlockSign {
    const LEN: usize = 32;
    type Strip = Int<PanelSign>;

    fn decode(&self, out: &mut [f32]) {
        for (x, code) in out.iter_mut().zip(self.codes()) {
            *x = 2.0 * f32::from(code) - 1.0;
        }
    }

    /// The sign of each value; that of 0 is 1.
    fn encode(x: &[f32]) -> Self {
        Self(x.iter().enumerate().map(|(i, &x)| u32::from(x >= 0.0) << i).sum::<u32>().to_le_bytes())
    }
}

/// 32 columns of sixteen rows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
pub struct PanelSign(Plane<1>);

impl IntPanel for PanelSign {
    type Block = BlockSign;

    fn pack(blocks: [&BlockSign; LANES]) -> Self {
        Self(Plane::pack(blocks.map(|b| b.codes()).each_ref(), 0))
    }

    const UNPACK: Option<Unpack<BlockSign, Self>> = Some(|panel| {
        let [bytes] = panel.0.vectors();
        let bit = |row: usize, i: usize| u32::from(bytes[4 * row + i % 4] >> (i / 4) & 1) << i;
        from_fn(|row| BlockSign((0..BLOCK).map(|i| bit(row, i)).sum::<u32>().to_le_bytes()))
    });
}

impl IntBlocks for PanelSign {
    // Codes 0 and 2, so that sums are whole numbers throughout.
    const RANGE: CodeRange = CodeRange::Unsigned(2);
    const ZERO: i32 = 1;
    const MIN: bool = false;

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, _b: usize, step: usize) -> S::Codes {
        self.0.twos(s, step)
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, _b: usize, _g: usize) -> S::F {
        s.splat(1.0)
    }
}
