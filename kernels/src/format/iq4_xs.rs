//! `IQ4_XS`: 256 values as 4-bit codes of the levels of `IQ4_NL`; each block of 32 has a scale of 6 bits, `x = d (s - 32) v[q]`.
//!
//! 136 bytes: `d` as a half; 2 bytes with the upper two bits of the scales, the first lowest; 4 bytes with the lower four, two in a byte;
//! 128 bytes of codes, of which each 16 hold 32 values as in `Q4_0`.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::iq4_nl::{BYTES, LEVELS};
use super::levels::{self, Levels, PanelLevels};
use super::search::{extreme, levels, nearest, nearest_level};
use super::{Block, plane};
use crate::cpu::strip::{CodeRange, Int};

/// 256 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ4XS {
    d: [u8; 2],
    scales_high: [u8; 2],
    scales_low: [u8; 4],
    codes: [u8; 128],
}
const _: () = assert!(size_of::<BlockIQ4XS>() == 136);

impl Levels for BlockIQ4XS {
    const VALUES: [u8; 16] = BYTES;
    const RANGE: CodeRange = CodeRange::Signed;
    const ZERO: i32 = 0;
    const UNIT: f32 = 1.0;

    fn d(&self) -> f16 {
        f16::from_le_bytes(self.d)
    }

    fn scales(&self) -> [i8; 16] {
        let high = u16::from_le_bytes(self.scales_high);
        from_fn(|g| {
            let b = g / 2;
            let low = self.scales_low[b / 2] >> (4 * (b % 2)) & 15;
            (low | ((high >> (2 * b)) as u8 & 3) << 4).cast_signed() - 32
        })
    }

    fn codes(&self) -> [u8; 256] {
        let codes = self.codes.as_chunks::<16>().0;
        plane::codes(|b, i| codes[b][i % 16] >> (4 * (i / 16)) & 15)
    }
}

impl Block for BlockIQ4XS {
    const LEN: usize = 256;
    type Strip = Int<PanelLevels<Self, 4, 0, 8>>;

    fn decode(&self, out: &mut [f32]) {
        levels::decode(self, out);
    }

    fn encode(x: &[f32]) -> Self {
        let blocks = x.as_chunks::<32>().0;
        let scales: [f32; 8] = from_fn(|b| levels(&blocks[b], &LEVELS));
        // In steps of a 32nd of the largest.
        let d = -extreme(&scales) / 32.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        let mut block = Self { d: f16::from_f32(d).to_le_bytes(), ..Self::zeroed() };
        let mut high = 0;
        for (b, x) in blocks.iter().enumerate() {
            let scale = nearest(inverse * scales[b]).clamp(-32, 31);
            let step = d * scale as f32;
            let inverse = if step == 0.0 { 0.0 } else { 1.0 / step };
            for (i, &x) in x.iter().enumerate() {
                block.codes[16 * b + i % 16] |= nearest_level(inverse * x, &LEVELS) << (4 * (i / 16));
            }
            let code = (scale + 32) as u16;
            block.scales_low[b / 2] |= (code as u8 & 15) << (4 * (b % 2));
            high |= code >> 4 << (2 * b);
        }
        block.scales_high = high.to_le_bytes();
        block
    }
}
