//! `TQ1_0`: 256 values of -1, 0 and 1 with one scale, five in a byte, `x = d (q - 1)`.
//!
//! 54 bytes: 48 bytes of five codes, 4 bytes of four, `d` as a half. A byte is the fraction `sum_n q_n 3^-(n+1)`, in 256ths and
//! rounded up: three times the byte has `q_0` above its lower eight bits, three times those have `q_1`, and so on. Code `n` of byte `i`
//! is that of value `32 n + i` in the first 32 bytes, `160 + 16 n + i` in the next 16 and `240 + 4 n + i` in the last 4.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use super::tq2_0::{self, PanelTernary, Ternary};
use crate::cpu::strip::Int;

/// 256 values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockTQ1_0 {
    fives: [u8; 48],
    fours: [u8; 4],
    d: [u8; 2],
}
const _: () = assert!(size_of::<BlockTQ1_0>() == 54);

/// Of each run of bytes: the first byte, how many, the first value, codes in a byte.
const RUNS: [(usize, usize, usize, usize); 3] = [(0, 32, 0, 5), (32, 16, 160, 5), (48, 4, 240, 4)];

impl Ternary for BlockTQ1_0 {
    fn d(&self) -> f16 {
        f16::from_le_bytes(self.d)
    }

    fn codes(&self) -> [u8; 256] {
        let bytes: &[u8] = bytemuck::bytes_of(self);
        let mut codes = [0; 256];
        for (first, count, value, per_byte) in RUNS {
            let mut bytes: [u8; 32] = std::array::from_fn(|i| bytes[first + i % count]);
            for n in 0..per_byte {
                let to = &mut codes[value + n * count..][..count];
                for (code, byte) in to.iter_mut().zip(&mut bytes) {
                    let three = 3 * u16::from(*byte);
                    (*code, *byte) = ((three >> 8) as u8, three as u8);
                }
            }
        }
        codes
    }
}

impl Block for BlockTQ1_0 {
    const LEN: usize = 256;
    type Strip = Int<PanelTernary<Self>>;

    fn decode(&self, out: &mut [f32]) {
        tq2_0::decode(self, out);
    }

    fn encode(x: &[f32]) -> Self {
        let (d, codes) = tq2_0::encode(x);
        let mut block = Self { fives: [0; 48], fours: [0; 4], d: d.to_le_bytes() };
        let bytes = bytemuck::bytes_of_mut(&mut block);
        for (first, count, value, per_byte) in RUNS {
            for i in 0..count {
                // A fifth code of 0 where there are four.
                let number = (0..5).fold(0, |number: u8, n| {
                    let code = if n < per_byte { codes[value + n * count + i] } else { 0 };
                    number.wrapping_mul(3).wrapping_add(code)
                });
                bytes[first + i] = (u16::from(number) * 256).div_ceil(243) as u8;
            }
        }
        block
    }
}
