//! Planes: some bits of the codes of 32 columns of sixteen rows, in whole vectors.

use bytemuck::{Pod, Zeroable};

use crate::cpu::isa::{BLOCK, LANES, Simd};

/// `W` bits (1, 2 or 4) of each code. A vector has the same four columns of all rows side by side, `8 / W` times over: those
/// of the first step in the lowest bits of its bytes, those of the next in the bits above.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
pub struct Plane<const W: usize>([[u8; 4 * LANES]; W]);

impl<const W: usize> Plane<W> {
    const STEPS: usize = 8 / W;

    /// The bits from bit `shift` on of the codes of each row.
    pub fn pack(rows: &[[u8; BLOCK]; LANES], shift: usize) -> Self {
        let mask = u32::from_le_bytes([u8::MAX >> (8 - W); 4]);
        let mut vectors = [[0; LANES]; W];
        for (step, columns) in (0..BLOCK).step_by(4).enumerate() {
            let place = W * (step % Self::STEPS);
            for (four, row) in vectors[step / Self::STEPS].iter_mut().zip(rows) {
                let codes = u32::from_le_bytes(std::array::from_fn(|i| row[columns + i]));
                *four |= (codes >> shift & mask) << place;
            }
        }
        Self(bytemuck::cast(vectors.map(|vector| vector.map(u32::to_le_bytes))))
    }

    /// The bits of columns `4 step..4 step + 4`.
    #[inline(always)]
    pub fn codes<S: Simd>(&self, s: S, step: usize) -> S::Codes {
        s.bits(&self.0[step / Self::STEPS], (W * (step % Self::STEPS)) as u32, W as u32)
    }
}

/// Block `b` of 32 of the codes of each row.
pub fn part(codes: &[[u8; 256]; LANES], b: usize) -> [[u8; BLOCK]; LANES] {
    codes.map(|codes| std::array::from_fn(|i| codes[b * BLOCK + i]))
}
