//! Many rows of activations where registers are few: codes are unpacked once for all rows rather than for each tile of them.
//!
//! Of one strip after the other, 256 columns are unpacked into the first cache and meet all rows there. Meanwhile the sums
//! wait in the outputs, or apart where they are added to those; each still adds its blocks in order.

use std::marker::PhantomData;

use bytemuck::Zeroable;

use super::isa::{BLOCK, LANES, Simd};
use super::linear::{Inputs, Join, Lane, Multiply};
use super::strip::{CodeRange, Int, IntBlocks, IntPanel, LINE, add_panel};
use crate::format::Block;

/// Rows of activations from which on this is faster.
const MANY: usize = 8;

/// Rows of activations at a time: as many as registers hold sums of.
const TOKENS: usize = 2;

/// Rows whose sums wait apart, where they are to be added to outputs.
const AT_ONCE: usize = 32;

/// Over how many tiles of rows what comes next is asked for: those of the fewest rows.
const ASK: usize = MANY / TOKENS;

/// Blocks of 32 columns that are unpacked at a time.
const BLOCKS: usize = 8;

/// A block of 32 columns of sixteen rows.
#[derive(Clone, Copy, Zeroable)]
#[repr(C, align(64))]
struct Columns {
    codes: [[u8; 4 * LANES]; BLOCK / 4],
    /// Of each group, or the first for both; where blocks share them, in the first of those.
    scales: [Lane; 2],
    mins: [Lane; 2],
}

/// Some columns of a strip in the format of `P`, unpacked.
struct Unpacked<P> {
    blocks: [Columns; BLOCKS],
    format: PhantomData<P>,
}

impl<P: IntPanel> Unpacked<P> {
    /// Unpacks panels, of [`BLOCKS`] blocks at most; gives how many blocks those are.
    #[inline(always)]
    fn fill<S: Simd>(&mut self, s: S, panels: &[P]) -> usize {
        let of_panel = P::Block::LEN / BLOCK;
        for (panel, blocks) in panels.iter().zip(self.blocks.chunks_exact_mut(of_panel)) {
            for (b, block) in blocks.iter_mut().enumerate() {
                for (i, [first, second]) in block.codes.as_chunks_mut().0.iter_mut().enumerate() {
                    let codes = [panel.codes(s, b, 2 * i), panel.codes(s, b, 2 * i + 1)];
                    let codes = if Self::PAIRED { s.pair(codes) } else { codes };
                    s.store_codes(codes[0], first);
                    s.store_codes(codes[1], second);
                }
                if P::SHARED && b > 0 {
                    continue;
                }
                for g in 0..if P::GROUPED { 2 } else { 1 } {
                    s.store(panel.scale(s, b, g), &mut block.scales[g]);
                    if P::MIN {
                        s.store(panel.min(s, b, g), &mut block.mins[g]);
                    }
                }
            }
        }
        panels.len() * of_panel
    }

    /// Adds the products of the first `blocks` blocks, those of whole panels, with rows of activations, from row `t` and block `first`
    /// on, to the sums in `lanes`; where that is the first block, they take their place. Meanwhile asks for what the next strip has in the place of `panels`, strips
    /// being so many panels.
    #[inline(always)]
    fn add<S: Simd>(
        &self,
        s: S,
        blocks: usize,
        (x, t, first): (&Inputs<'_>, usize, usize),
        next: Option<(&[P], usize)>,
        lanes: &mut [Lane],
    ) {
        for (i, lanes) in lanes.as_chunks_mut::<TOKENS>().0.iter_mut().enumerate() {
            if let Some((panels, length)) = next
                && i < ASK
            {
                // Not all at a time, for only so many are on their way.
                let (from, to) = (size_of_val(panels) * i / ASK, size_of_val(panels) * (i + 1) / ASK);
                for line in (from / LINE * LINE..to).step_by(LINE) {
                    s.prefetch(&panels[0], length * size_of::<P>() + line);
                }
            }
            let x = x.tile::<TOKENS>(t + i * TOKENS);
            let x = x.map(|x| &x.x8[first..][..blocks]);
            let mut sums = [[s.splat(0.0); TOKENS]];
            if first > 0 {
                for (sum, lane) in sums[0].iter_mut().zip(&*lanes) {
                    *sum = s.load(lane);
                }
            }
            let of_panel = P::Block::LEN / BLOCK;
            for b in (0..blocks).step_by(of_panel) {
                add_panel(s, ([self], b), x.map(|x| &x[b..b + of_panel]), |_| {}, &mut sums);
            }
            for (sum, lane) in sums[0].into_iter().zip(lanes) {
                s.store(sum, lane);
            }
        }
    }
}

impl<P: IntBlocks> IntBlocks for Unpacked<P> {
    const RANGE: CodeRange = P::RANGE;
    const ZERO: i32 = P::ZERO;
    const MIN: bool = P::MIN;
    const GROUPED: bool = P::GROUPED;
    const SHARED: bool = P::SHARED;
    const PAIRED: bool = matches!(P::RANGE, CodeRange::Unsigned(_));

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, b: usize, step: usize) -> S::Codes {
        s.load_codes(&self.blocks[b].codes[step])
    }

    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, b: usize, g: usize) -> S::F {
        s.load(&self.blocks[b].scales[g])
    }

    #[inline(always)]
    fn min<S: Simd>(&self, s: S, b: usize, g: usize) -> S::F {
        s.load(&self.blocks[b].mins[g])
    }
}

/// [`Strip::many`](super::strip::Strip::many) of integer codes.
#[inline(always)]
pub(super) fn many<S: Simd, P: IntPanel>(s: S, m: &mut Multiply<'_, Int<P>>) -> usize {
    #[cfg(target_arch = "x86_64")]
    if let Some(tiles) = s.tiles() {
        return tiles.many(m);
    }
    // Codes that fill their bytes are as they are.
    if S::WIDE || size_of::<P>() >= LANES * P::Block::LEN || m.rows.len() < MANY {
        return 0;
    }
    let rows = m.rows.len() / TOKENS * TOKENS;
    let at_once = BLOCKS * BLOCK / P::Block::LEN;
    let mut unpacked = Unpacked::<P> { blocks: [Columns::zeroed(); BLOCKS], format: PhantomData };
    let strips = m.panels.len() / m.length;
    if matches!(m.out.join, Join::Set) {
        // All strips meet these columns of the rows before the next, for they stay in the first cache too.
        for first in (0..m.used).step_by(at_once) {
            for strip in 0..strips {
                let panels = &m.panels[strip * m.length..][first..m.used.min(first + at_once)];
                let blocks = unpacked.fill(s, panels);
                let x = (m.x, m.rows.start, first * P::Block::LEN / BLOCK);
                let lanes = &mut m.out.lanes[strip * m.out.stride..][..rows];
                let next = m.fresh.then_some((panels, m.length));
                unpacked.add(s, blocks, x, next, lanes);
            }
        }
        return rows;
    }
    // What is added to outputs is summed first.
    let mut sums = [[0.0; LANES]; AT_ONCE];
    for strip in 0..strips {
        for top in (0..rows).step_by(AT_ONCE) {
            let sums = &mut sums[..AT_ONCE.min(rows - top)];
            for first in (0..m.used).step_by(at_once) {
                let panels = &m.panels[strip * m.length..][first..m.used.min(first + at_once)];
                let blocks = unpacked.fill(s, panels);
                let x = (m.x, m.rows.start + top, first * P::Block::LEN / BLOCK);
                let next = m.fresh.then_some((panels, m.length));
                unpacked.add(s, blocks, x, next, sums);
            }
            for (i, sum) in sums.iter().enumerate() {
                m.join(s, strip, top + i, s.load(sum));
            }
        }
    }
    rows
}
