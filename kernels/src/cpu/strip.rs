//! Strips: sixteen rows of a weight matrix side by side, so that one vector lane is one row.
//!
//! Each lane sums its row's products in one order, whatever the instruction set, the number of tokens or the
//! number of threads. That order is the definition of [`crate::backend::Backend::linear`]:
//!
//! * integer codes ([`Int`]): over blocks of 32 columns in order, each in two groups of 16 whose products
//!   `n = sum_k q[o,k] x8[t,k]` are exact: `y = fma(d_w[o], fma(d_x[t,1], n_1, d_x[t,0] n_0), y)`, then
//!   `y = fma(m_w[o], sum_k d_x x8, y)` if the format has minima; where each group has a scale (and minimum) of its own,
//!   group after group `y = fma(d_w[o,g], d_x[t,g] n_g, y)` and `y = fma(m_w[o,g], d_x[t,g] sum_k x8, y)`;
//! * floats ([`Float`]): over segments of 64 columns in order, `y += s` with `s = fma(w[o,i], x[t,i], s)` from zero over the segment's columns in order.

use std::array::from_fn;
use std::marker::PhantomData;

use bytemuck::{Pod, Zeroable};

use super::isa::{BLOCK, GROUP, LANES, Simd};
use crate::format::Block;

/// Columns whose products are summed before they join the row's sum, for float weights.
const SEGMENT: usize = 64;

/// How far ahead of their use weights are asked for, in bytes. Without it, a processor that multiplies several rows of activations
/// sees too few reads ahead to keep memory busy.
const AHEAD: usize = 4096;

/// Bytes that memory gives at a time.
const LINE: usize = 64;

/// Thirty-two activations rounded to 8 bits in two groups: `x = d q`.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Activations {
    /// The codes, in `-127..=127`.
    pub q: [[i8; GROUP]; 2],
    /// The scale of each group.
    pub d: [f32; 2],
    /// `sum q` of each group.
    pub sum: [i32; 2],
    /// `d sum` of each group.
    pub dsums: [f32; 2],
    /// `dsums[0] + dsums[1]`.
    pub dsum: f32,
}

/// One row of activations, as both kinds of strips want it.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The values.
    pub x: &'a [f32],
    /// The values in 8 bits; empty if no weight has integer codes.
    pub x8: &'a [Activations],
}

/// How sixteen rows of a format lie side by side, and their dot product with rows of activations.
pub trait Strip: Send + Sync + 'static {
    /// The format's block.
    type Block: Block;
    /// One block of each of sixteen rows.
    type Panel: Pod + Send + Sync;
    /// Whether activations are rounded to 8 bits.
    const INTEGER: bool;
    /// Rows of activations whose sums fit the registers: 8, 4 or 2.
    fn tokens<S: Simd>() -> usize;

    /// Lays sixteen blocks side by side.
    fn pack(blocks: [&Self::Block; LANES]) -> Self::Panel;

    /// The dot products of sixteen rows with each of `T` rows of activations. If the strip comes from memory, `fresh`, what
    /// follows is asked for ahead.
    fn dot<S: Simd, const T: usize>(s: S, strip: &[Self::Panel], x: [Input<'_>; T], fresh: bool)
    -> [S::F; T];
}

/// What the codes of a format can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeRange {
    /// Unsigned, at most this, which is at most 127.
    Unsigned(u8),
    /// Signed 8 bits.
    Signed,
}

/// Some blocks of 32 columns of sixteen rows in a format with integer codes: `w = d (q - ZERO) + m`.
pub trait IntPanel: Pod + Send + Sync {
    /// The format's block.
    type Block: Block;
    /// What the codes can be.
    const RANGE: CodeRange;
    /// The code that stands for `m`.
    const ZERO: i32;
    /// Whether there are minima.
    const MIN: bool;
    /// Whether each group of 16 columns has a scale and minimum of its own, rather than each block.
    const GROUPED: bool = false;
    /// Lays sixteen blocks of the format side by side.
    fn pack(blocks: [&Self::Block; LANES]) -> Self;
    /// The codes of columns `4 step..4 step + 4` of block `b`.
    fn codes<S: Simd>(&self, s: S, b: usize, step: usize) -> S::Codes;
    /// The scales `d` of block `b`, or of its group `g`.
    fn scale<S: Simd>(&self, s: S, b: usize, g: usize) -> S::F;
    /// The minima `m` of block `b`, or of its group `g`, where the format has them.
    #[inline(always)]
    fn min<S: Simd>(&self, s: S, _b: usize, _g: usize) -> S::F {
        s.splat(0.0)
    }
}

/// The strip of a format with integer codes.
pub struct Int<P>(PhantomData<P>);

impl<P: IntPanel> Strip for Int<P> {
    type Block = P::Block;
    type Panel = P;
    const INTEGER: bool = true;

    #[inline(always)]
    fn tokens<S: Simd>() -> usize {
        S::INT_TOKENS
    }

    fn pack(blocks: [&P::Block; LANES]) -> P {
        P::pack(blocks)
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize>(s: S, strip: &[P], x: [Input<'_>; T], fresh: bool) -> [S::F; T] {
        dot_int(s, strip, x, fresh)
    }
}

#[inline(always)]
fn dot_int<S: Simd, P: IntPanel, const T: usize>(
    s: S,
    strip: &[P],
    x: [Input<'_>; T],
    fresh: bool,
) -> [S::F; T] {
    let blocks = P::Block::LEN / BLOCK;
    let x = x.map(|x| &x.x8[..strip.len() * blocks]);
    let mut sums = [s.splat(0.0); T];
    for (i, panel) in strip.iter().enumerate() {
        for b in 0..blocks {
            let x = x.map(|x| &x[i * blocks + b]);
            if fresh {
                let share = size_of::<P>() / blocks;
                for line in (0..share).step_by(LINE) {
                    s.prefetch(panel, AHEAD + b * share + line);
                }
            }
            if P::GROUPED {
                for g in 0..2 {
                    add_group(s, panel, (b, g), x, &mut sums);
                }
            } else {
                add_block(s, panel, b, x, &mut sums);
            }
        }
    }
    sums
}

/// Adds a block whose groups share a scale.
#[inline(always)]
fn add_block<S: Simd, P: IntPanel, const T: usize>(
    s: S,
    panel: &P,
    b: usize,
    x: [&Activations; T],
    sums: &mut [S::F; T],
) {
    let first = dot_group(s, panel, (b, 0), x);
    let second = dot_group(s, panel, (b, 1), x);
    let d = panel.scale(s, b, 0);
    for t in 0..T {
        let block = s.fma(s.splat(x[t].d[1]), second[t], s.mul(s.splat(x[t].d[0]), first[t]));
        sums[t] = s.fma(d, block, sums[t]);
        if P::MIN {
            sums[t] = s.fma(panel.min(s, b, 0), s.splat(x[t].dsum), sums[t]);
        }
    }
}

/// Adds a group with a scale of its own.
#[inline(always)]
fn add_group<S: Simd, P: IntPanel, const T: usize>(
    s: S,
    panel: &P,
    (b, g): (usize, usize),
    x: [&Activations; T],
    sums: &mut [S::F; T],
) {
    let dots = dot_group(s, panel, (b, g), x);
    let d = panel.scale(s, b, g);
    for t in 0..T {
        sums[t] = s.fma(d, s.mul(s.splat(x[t].d[g]), dots[t]), sums[t]);
        if P::MIN {
            sums[t] = s.fma(panel.min(s, b, g), s.splat(x[t].dsums[g]), sums[t]);
        }
    }
}

/// `n` of one group.
#[inline(always)]
fn dot_group<S: Simd, P: IntPanel, const T: usize>(
    s: S,
    panel: &P,
    (b, g): (usize, usize),
    x: [&Activations; T],
) -> [S::F; T] {
    let q = x.map(|x| &x.q[g]);
    let dots = match P::RANGE {
        CodeRange::Unsigned(most) => s.dot_unsigned(
            #[inline(always)]
            |step| panel.codes(s, b, 4 * g + step),
            most,
            q,
        ),
        CodeRange::Signed => s.dot_bytes(
            #[inline(always)]
            |step| panel.codes(s, b, 4 * g + step),
            q,
            x.map(|x| x.sum[g]),
        ),
    };
    let mut out = [s.splat(0.0); T];
    for t in 0..T {
        let n = if P::ZERO == 0 { dots[t] } else { s.sub_int(dots[t], P::ZERO * x[t].sum[g]) };
        out[t] = s.to_float(n);
    }
    out
}

/// One column of sixteen rows in a floating-point format.
pub trait FloatPanel: Pod + Send + Sync {
    /// The format's block.
    type Block: Block;
    /// Lays sixteen values side by side.
    fn pack(blocks: [&Self::Block; LANES]) -> Self;
    /// The sixteen values.
    fn values<S: Simd>(&self, s: S) -> S::F;
}

/// The strip of a floating-point format.
pub struct Float<P>(PhantomData<P>);

impl<P: FloatPanel> Strip for Float<P> {
    type Block = P::Block;
    type Panel = P;
    const INTEGER: bool = false;

    #[inline(always)]
    fn tokens<S: Simd>() -> usize {
        4
    }

    fn pack(blocks: [&P::Block; LANES]) -> P {
        P::pack(blocks)
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize>(s: S, strip: &[P], x: [Input<'_>; T], fresh: bool) -> [S::F; T] {
        dot_float(s, strip, x, fresh)
    }
}

#[inline(always)]
fn dot_float<S: Simd, P: FloatPanel, const T: usize>(
    s: S,
    strip: &[P],
    x: [Input<'_>; T],
    fresh: bool,
) -> [S::F; T] {
    let (mut segments, rest) = strip.as_chunks::<SEGMENT>();
    let mut xs = x.map(|x| x.x[..strip.len()].as_chunks::<SEGMENT>().0);
    let tails = x.map(|x| &x.x[strip.len() - rest.len()..strip.len()]);
    let mut sums = [s.splat(0.0); T];
    // With few tokens the additions of one segment would wait for each other, so several segments are summed
    // side by side; the order of additions within each, and of the segments, stays the same.
    if T == 1 {
        add_segments::<S, P, T, 4>(s, &mut segments, &mut xs, &mut sums, fresh);
    }
    if T <= 2 {
        add_segments::<S, P, T, 2>(s, &mut segments, &mut xs, &mut sums, fresh);
    }
    add_segments::<S, P, T, 1>(s, &mut segments, &mut xs, &mut sums, fresh);
    if !rest.is_empty() {
        let tails = tails.map(|x| &x[..rest.len()]);
        let mut tail = [s.splat(0.0); T];
        for (i, panel) in rest.iter().enumerate() {
            let w = panel.values(s);
            for t in 0..T {
                tail[t] = s.fma(w, s.splat(tails[t][i]), tail[t]);
            }
        }
        for t in 0..T {
            sums[t] = s.add(sums[t], tail[t]);
        }
    }
    sums
}

/// Sums the first segments, `G` side by side while there are that many, then adds them in order.
#[inline(always)]
fn add_segments<S: Simd, P: FloatPanel, const T: usize, const G: usize>(
    s: S,
    segments: &mut &[[P; SEGMENT]],
    xs: &mut [&[[f32; SEGMENT]]; T],
    sums: &mut [S::F; T],
    fresh: bool,
) {
    while let Some((panels, rest)) = segments.split_first_chunk::<G>() {
        *segments = rest;
        let x: [&[[f32; SEGMENT]; G]; T] = from_fn(|t| {
            let (x, rest) = xs[t].split_first_chunk::<G>().expect("as many inputs as columns");
            xs[t] = rest;
            x
        });
        let mut parts = [[s.splat(0.0); G]; T];
        for i in 0..SEGMENT {
            for g in 0..G {
                if fresh && (i * size_of::<P>()).is_multiple_of(LINE) {
                    s.prefetch(&panels[g][i], AHEAD);
                }
                let w = panels[g][i].values(s);
                for t in 0..T {
                    parts[t][g] = s.fma(w, s.splat(x[t][g][i]), parts[t][g]);
                }
            }
        }
        for t in 0..T {
            for part in parts[t] {
                sums[t] = s.add(sums[t], part);
            }
        }
    }
}
