//! Formats of 256 values whose codes stand for uneven levels: `x = d s[g] u v[q]`, `s` whole numbers for each group of 16 or block of
//! 32 values, `u` a power of two that is the format's.

use std::array::from_fn;
use std::marker::PhantomData;

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use super::plane::{Plane, part};
use crate::cpu::isa::{LANES, Simd};
use crate::cpu::strip::{CodeRange, IntBlocks, IntPanel};

/// A block of such a format.
pub trait Levels: Block {
    /// `v[q] + ZERO` of each code: bytes of this range.
    const VALUES: [u8; 16];
    /// What [`Self::VALUES`] can be.
    const RANGE: CodeRange;
    /// What stands for 0.
    const ZERO: i32;
    /// `u`.
    const UNIT: f32;

    /// `d`.
    fn d(&self) -> f16;
    /// `s` of each group of 16.
    fn scales(&self) -> [i8; 16];
    /// `q`.
    fn codes(&self) -> [u8; 256];
}

/// Writes the values of a block.
pub(super) fn decode<B: Levels>(block: &B, out: &mut [f32]) {
    let (d, scales) = (block.d().to_f32(), block.scales());
    let values: [f32; 16] = from_fn(|code| value::<B>(code as u8) as f32);
    for (i, (x, code)) in out.iter_mut().zip(block.codes()).enumerate() {
        *x = d * f32::from(scales[i / 16]) * B::UNIT * values[usize::from(code)];
    }
}

/// What a code stands for.
pub(super) fn value<B: Levels>(code: u8) -> i32 {
    let value = B::VALUES[usize::from(code)];
    match B::RANGE {
        CodeRange::Signed => value.cast_signed().into(),
        CodeRange::Unsigned(_) => i32::from(value) - B::ZERO,
    }
}

/// 256 columns of sixteen rows: codes of `LOW` bits, and one bit more if `HIGH` is 8 rather than 0; `SCALES` is 16 where each group has
/// a scale, 8 where each block has.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, packed)]
pub struct PanelLevels<B, const LOW: usize, const HIGH: usize, const SCALES: usize>
where
    B: 'static,
{
    d: [[u8; 2]; LANES],
    scales: [[i8; LANES]; SCALES],
    /// The vectors of planes.
    low: [[[u8; 4 * LANES]; LOW]; 8],
    high: [Plane<1>; HIGH],
    block: PhantomData<B>,
}

impl<B: Levels, const LOW: usize, const HIGH: usize, const SCALES: usize> IntPanel
    for PanelLevels<B, LOW, HIGH, SCALES>
{
    type Block = B;

    fn pack(blocks: [&B; LANES]) -> Self {
        let (codes, scales) = (blocks.map(|b| b.codes()), blocks.map(|b| b.scales()));
        Self {
            d: blocks.map(|b| b.d().to_le_bytes()),
            scales: from_fn(|g| scales.map(|scales| scales[g * 16 / SCALES])),
            low: from_fn(|b| Plane::pack(part(&codes, b), 0).vectors()),
            high: from_fn(|b| Plane::pack(part(&codes, b), LOW)),
            block: PhantomData,
        }
    }
}

impl<B: Levels, const LOW: usize, const HIGH: usize, const SCALES: usize> IntBlocks
    for PanelLevels<B, LOW, HIGH, SCALES>
{
    const RANGE: CodeRange = B::RANGE;
    const ZERO: i32 = B::ZERO;
    const MIN: bool = false;
    const GROUPED: bool = SCALES == 16;

    const LEVELS: Option<[u8; 16]> = Some(B::VALUES);

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, b: usize, step: usize) -> S::Codes {
        s.lookup(&B::VALUES, self.indices(s, b, step))
    }

    #[inline(always)]
    fn indices<S: Simd>(&self, s: S, b: usize, step: usize) -> S::Codes {
        let (vector, part) = (step * LOW / 8, step % (8 / LOW));
        let mut codes = s.bits(&self.low[b][vector], (LOW * part) as u32, LOW as u32);
        if HIGH > 0 {
            codes = s.join(codes, self.high[b].codes(s, step), LOW as u32);
        }
        codes
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, b: usize, g: usize) -> S::F {
        let scale = s.load_i8(&self.scales[if SCALES == 16 { 2 * b + g } else { b }]);
        s.mul(s.mul(s.load_f16(&bytemuck::cast(self.d)), scale), s.splat(B::UNIT))
    }
}
