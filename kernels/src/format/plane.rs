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
    #[inline(always)]
    pub fn pack(rows: [&[u8; BLOCK]; LANES], shift: usize) -> Self {
        let mask = u32::from_le_bytes([u8::MAX >> (8 - W); 4]);
        let mut vectors = [[0; LANES]; W];
        for (lane, row) in rows.into_iter().enumerate() {
            for (step, four) in row.as_chunks().0.iter().enumerate() {
                let codes = u32::from_le_bytes(*four) >> shift & mask;
                vectors[step / Self::STEPS][lane] |= codes << (W * (step % Self::STEPS));
            }
        }
        let mut bytes = [[[0; 4]; LANES]; W];
        for (bytes, four) in bytes.as_flattened_mut().iter_mut().zip(vectors.as_flattened()) {
            *bytes = four.to_le_bytes();
        }
        Self(bytemuck::cast(bytes))
    }

    /// Whole vectors of bits.
    #[inline(always)]
    pub fn vectors(self) -> [[u8; 4 * LANES]; W] {
        self.0
    }

    /// The bits of columns `4 step..4 step + 4`.
    #[inline(always)]
    pub fn codes<S: Simd>(&self, s: S, step: usize) -> S::Codes {
        s.bits(&self.0[step / Self::STEPS], (W * (step % Self::STEPS)) as u32, W as u32)
    }
}

impl Plane<1> {
    /// Twice the bits of columns `4 step..4 step + 4`.
    #[inline(always)]
    pub fn twos<S: Simd>(&self, s: S, step: usize) -> S::Codes {
        s.twos(&self.0[0], step as u32)
    }
}

/// The codes of 256 values, in blocks: `code(b, i)` of value `i` of block `b`, which the compiler computes for all `i` at once.
#[inline(always)]
pub fn codes(code: impl Fn(usize, usize) -> u8) -> [u8; 256] {
    let mut codes = [[0; BLOCK]; 8];
    for (b, codes) in codes.iter_mut().enumerate() {
        for (i, to) in codes.iter_mut().enumerate() {
            *to = code(b, i);
        }
    }
    bytemuck::cast(codes)
}

/// Block `b` of the codes of each row.
#[inline(always)]
pub fn part(codes: &[[u8; 256]; LANES], b: usize) -> [&[u8; BLOCK]; LANES] {
    let mut part = [&codes[0].as_chunks().0[b]; LANES];
    for (part, codes) in part.iter_mut().zip(codes) {
        *part = &codes.as_chunks().0[b];
    }
    part
}
