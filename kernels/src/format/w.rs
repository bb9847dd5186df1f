//! `W2G32` to `W8G128`: 2, 3 or 8-bit codes of 32, 64 or 128 values with one scale and one zero point, `x = d (q - z)`: the groups of
//! GPTQ (arXiv 2210.17323) and Delta-CoMe (arXiv 2406.08903).
//!
//! `3 + LEN BITS / 8` bytes: `d` as half, `z`, then the codes: code `i` is bits `BITS i..BITS (i + 1)`, the lowest bit of the first byte
//! first.
//!
//! A panel is `LEN` columns of sixteen rows, sixteen times the bytes of a block: `d` of each row as half, `z` of each row, then `BITS`
//! vectors of 64 bytes for each 32 columns, in which byte `4 r + k` belongs to row `r`. Of 2 and 3 bits, the lower two of columns
//! `4 s + k` are bits `2 (s % 4)` and up of vector `s / 4`, the third is bit `s` of vector 2. Of 8 bits, vector `s` has the codes of
//! columns `4 s + k` less 128, as signed bytes.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::plane::Plane;
use super::{Block, interleave};
use crate::cpu::isa::{BLOCK, LANES, Simd};
use crate::cpu::strip::{CodeRange, Int, IntBlocks, IntPanel, Unpack};

/// The codes of `bits` bits, 1 to 8, that values of a group are rounded to: `x = d (q - z)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// The step, a half.
    pub d: f32,
    /// The code of 0.
    pub z: u8,
    /// The largest code.
    pub most: u8,
}

impl Grid {
    /// From the least value of `x` to the greatest, 0 within: `d = (max - min) / (2^bits - 1)`, rounded to a half, at most the largest,
    /// then `z = round(-min / d)`. As GPTQ and Delta-CoMe do, but that `d` is rounded first.
    pub fn of(x: &[f32], bits: u32) -> Self {
        let min = x.iter().copied().fold(0.0, f32::min);
        let max = x.iter().copied().fold(0.0, f32::max);
        let most = u8::MAX >> (8 - bits);
        let d = f16::from_f32((max - min) / f32::from(most)).min(f16::MAX).to_f32();
        let z = if d > 0.0 { (-min / d).round_ties_even() as u8 } else { 0 };
        Self { d, z: z.min(most), most }
    }

    /// `round(x / d) + z`, ties to even, within the codes.
    pub fn code(&self, x: f32) -> u8 {
        let steps = if self.d > 0.0 { (x / self.d).round_ties_even() } else { 0.0 };
        (steps + f32::from(self.z)).clamp(0.0, f32::from(self.most)) as u8
    }

    /// `d (q - z)`.
    pub fn value(&self, q: u8) -> f32 {
        self.d * (f32::from(q) - f32::from(self.z))
    }

    /// Writes a block with these codes; as many as it has, each within the codes of the grid.
    pub fn write(&self, codes: &[u8], block: &mut [u8]) {
        let bits = self.most.count_ones() as usize;
        let (head, bytes) = block.split_at_mut(3);
        head[..2].copy_from_slice(&f16::from_f32(self.d).to_le_bytes());
        head[2] = self.z;
        for (bytes, eight) in bytes.chunks_exact_mut(bits).zip(codes.as_chunks().0) {
            bytes.copy_from_slice(&in_a_row(*eight, bits).to_le_bytes()[..bits]);
        }
    }
}

/// Eight codes of `bits` bits.
fn in_a_row(codes: [u8; 8], bits: usize) -> u64 {
    codes.iter().rev().fold(0, |word, &code| word << bits | u64::from(code))
}

/// 32 codes, eight in `BITS` bytes.
fn to_bits<const BITS: usize>(codes: [u8; BLOCK]) -> [[u8; BITS]; BLOCK / 8] {
    let eights: [[u8; 8]; BLOCK / 8] = bytemuck::cast(codes);
    eights.map(|eight| {
        let bytes = in_a_row(eight, BITS).to_le_bytes();
        from_fn(|i| bytes[i])
    })
}

/// `32 B` values as codes of `BITS` bits.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, packed)]
pub struct BlockW<const BITS: usize, const B: usize> {
    d: [u8; 2],
    z: u8,
    /// Eight codes in `BITS` bytes.
    codes: [[[u8; BITS]; BLOCK / 8]; B],
}
const _: () = assert!(size_of::<BlockW<2, 1>>() == 11 && size_of::<BlockW<3, 2>>() == 27);
const _: () = assert!(size_of::<BlockW<2, 4>>() == 35 && size_of::<BlockW<8, 4>>() == 131);

impl<const BITS: usize, const B: usize> BlockW<BITS, B> {
    const MOST: u8 = u8::MAX >> (8 - BITS);

    fn grid(&self) -> Grid {
        Grid { d: f16::from_le_bytes(self.d).to_f32(), z: self.z, most: Self::MOST }
    }

    /// Of columns `32 b..32 b + 32`.
    fn codes(&self, b: usize) -> [u8; BLOCK] {
        let eights = { self.codes[b] };
        bytemuck::cast(eights.map(|bytes| {
            let word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
            from_fn::<_, 8, _>(|i| (word >> (BITS * i)) as u8 & Self::MOST)
        }))
    }
}

impl<const BITS: usize, const B: usize> Block for BlockW<BITS, B> {
    const LEN: usize = B * BLOCK;
    type Strip = Int<PanelW<BITS, B>>;

    fn decode(&self, out: &mut [f32]) {
        let grid = self.grid();
        for (b, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            *out = self.codes(b).map(|code| grid.value(code));
        }
    }

    /// On the [`Grid`] of the values.
    fn encode(x: &[f32]) -> Self {
        let grid = Grid::of(x, BITS as u32);
        let mut codes = [[0; BLOCK]; B];
        for (code, &x) in codes.as_flattened_mut().iter_mut().zip(x) {
            *code = grid.code(x);
        }
        let mut block = Self::zeroed();
        grid.write(codes.as_flattened(), bytemuck::bytes_of_mut(&mut block));
        block
    }
}

/// `32 B` columns of sixteen rows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, packed)]
pub struct PanelW<const BITS: usize, const B: usize> {
    d: [[u8; 2]; LANES],
    z: [u8; LANES],
    codes: [[[u8; 4 * LANES]; BITS]; B],
}

impl<const BITS: usize, const B: usize> PanelW<BITS, B> {
    /// Of one row, column `i` of block `b`.
    fn code(&self, b: usize, row: usize, i: usize) -> u8 {
        let (step, at) = (i / 4, 4 * row + i % 4);
        if BITS == 8 {
            return self.codes[b][step][at] ^ 128;
        }
        let low = self.codes[b][step / 4][at] >> (2 * (step % 4)) & 3;
        if BITS == 2 { low } else { low | (self.codes[b][2][at] >> step & 1) << 2 }
    }
}

impl<const BITS: usize, const B: usize> IntPanel for PanelW<BITS, B> {
    type Block = BlockW<BITS, B>;

    const UNPACK: Option<Unpack<BlockW<BITS, B>, Self>> = Some(|panel| {
        from_fn(|row| {
            let code = |b: usize, i: usize| panel.code(b, row, i);
            BlockW { d: panel.d[row], z: panel.z[row], codes: from_fn(|b| to_bits(from_fn(|i| code(b, i)))) }
        })
    });

    fn pack(blocks: [&BlockW<BITS, B>; LANES]) -> Self {
        let mut codes = [[[0; 4 * LANES]; BITS]; B];
        for (b, vectors) in codes.iter_mut().enumerate() {
            let rows = blocks.map(|block| block.codes(b));
            if BITS == 8 {
                let signed = rows.map(|row| row.map(|code| code ^ 128));
                vectors.copy_from_slice(&interleave::<BLOCK, 8>(signed.each_ref()));
            } else {
                vectors[..2].copy_from_slice(&Plane::<2>::pack(rows.each_ref(), 0).vectors());
                if BITS == 3 {
                    vectors[2..].copy_from_slice(&Plane::<1>::pack(rows.each_ref(), 2).vectors());
                }
            }
        }
        Self { d: blocks.map(|b| b.d), z: blocks.map(|b| b.z), codes }
    }
}

impl<const BITS: usize, const B: usize> IntBlocks for PanelW<BITS, B> {
    const RANGE: CodeRange =
        if BITS == 8 { CodeRange::Signed } else { CodeRange::Unsigned(BlockW::<BITS, B>::MOST) };
    const ZERO: i32 = 0;
    const MIN: bool = true;
    const SHARED: bool = B > 1;

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, b: usize, step: usize) -> S::Codes {
        if BITS == 8 {
            return s.load_codes(&self.codes[b][step]);
        }
        let low = s.bits(&self.codes[b][step / 4], 2 * (step as u32 % 4), 2);
        if BITS == 2 { low } else { s.join(low, s.bits(&self.codes[b][2], step as u32, 1), 2) }
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, _b: usize, _g: usize) -> S::F {
        s.load_f16(&bytemuck::cast(self.d))
    }

    /// `-d z`, or `d (128 - z)` where codes are less by 128.
    #[inline(always)]
    fn min<S: Simd>(&self, s: S, b: usize, g: usize) -> S::F {
        let zero = s.splat(if BITS == 8 { 128.0 } else { 0.0 });
        s.mul(self.scale(s, b, g), s.sub(zero, s.load_bits(&self.z, 0, 8)))
    }
}
