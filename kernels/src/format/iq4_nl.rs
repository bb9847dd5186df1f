//! `IQ4_NL`: 32 values as 4-bit codes of uneven levels with one scale, `x = d v[q]`.
//!
//! 18 bytes: `d` as half, then codes as in `Q4_0`.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use super::search::{levels, nearest_level};
use crate::cpu::isa::{LANES, Simd};
use crate::cpu::strip::{CodeRange, Int, IntBlocks, IntPanel};

/// What the codes stand for.
pub(super) const LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// They, as a panel looks them up.
pub(super) const BYTES: [u8; 16] = {
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < 16 {
        bytes[i] = LEVELS[i].cast_unsigned();
        i += 1;
    }
    bytes
};

/// 32 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ4NL {
    d: [u8; 2],
    codes: [u8; 16],
}
const _: () = assert!(size_of::<BlockIQ4NL>() == 18);

impl Block for BlockIQ4NL {
    const LEN: usize = 32;
    type Strip = Int<PanelIQ4NL>;

    fn decode(&self, out: &mut [f32]) {
        let d = f16::from_le_bytes(self.d).to_f32();
        let (low, high) = out.split_at_mut(16);
        for (i, &code) in self.codes.iter().enumerate() {
            low[i] = d * f32::from(LEVELS[usize::from(code & 15)]);
            high[i] = d * f32::from(LEVELS[usize::from(code >> 4)]);
        }
    }

    fn encode(x: &[f32]) -> Self {
        let d = levels(x, &LEVELS);
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        let code = |x: f32| nearest_level(inverse * x, &LEVELS);
        Self {
            d: f16::from_f32(d).to_le_bytes(),
            codes: std::array::from_fn(|i| code(x[i]) | code(x[i + 16]) << 4),
        }
    }
}

/// 32 columns of sixteen rows: four bytes of every row side by side.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct PanelIQ4NL {
    d: [u16; LANES],
    codes: [[u8; 4 * LANES]; 4],
}

impl IntPanel for PanelIQ4NL {
    type Block = BlockIQ4NL;

    fn pack(blocks: [&BlockIQ4NL; LANES]) -> Self {
        Self {
            d: blocks.map(|b| u16::from_le_bytes(b.d)),
            codes: super::interleave(blocks.map(|b| &b.codes)),
        }
    }
}

impl IntBlocks for PanelIQ4NL {
    const RANGE: CodeRange = CodeRange::Signed;
    const ZERO: i32 = 0;
    const MIN: bool = false;

    const LEVELS: Option<[u8; 16]> = Some(BYTES);

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, b: usize, step: usize) -> S::Codes {
        s.lookup(&BYTES, self.indices(s, b, step))
    }

    #[inline(always)]
    fn indices<S: Simd>(&self, s: S, _b: usize, step: usize) -> S::Codes {
        s.bits(&self.codes[step % 4], 4 * (step as u32 / 4), 4)
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, _b: usize, _g: usize) -> S::F {
        s.load_f16(&self.d)
    }
}
