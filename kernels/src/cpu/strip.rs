//! Strips: sixteen rows of a weight matrix side by side, so that one vector lane is one row.
//!
//! Each lane sums its row's products in one order, whatever the instruction set, the number of tokens or the
//! number of threads. That order is the definition of [`crate::backend::Backend::linear`]:
//!
//! * integer codes ([`Int`]): over blocks of 32 columns in order, each in two groups of 16 whose products
//!   `n = sum_k q[o,k] x8[t,k]` are exact: `y = fma(d_w[o], fma(d_x[t,1], n_1, d_x[t,0] n_0), y)`, then
//!   `y = fma(m_w[o], sum_k d_x x8, y)` if the format has minima; where each group has a scale (and minimum) of its own,
//!   group after group `y = fma(d_w[o,g], d_x[t,g] n_g, y)` and `y = fma(m_w[o,g], d_x[t,g] sum_k x8, y)`; where several blocks share
//!   both, all their groups first, `s = fma(d_x[t,g], n_g, s)` and `r = r + sum_k d_x x8` from zero, then
//!   `y = fma(m_w[o], r, fma(d_w[o], s, y))`;
//! * floats ([`Float`]): over segments of 64 columns in order, `y += s` with `s = fma(w[o,i], x[t,i], s)` from zero over the segment's columns in order.

use std::marker::PhantomData;

use bytemuck::{Pod, Zeroable};

use super::isa::{BLOCK, GROUP, LANES, Simd};
use super::linear::Multiply;
use super::unpacked;
use crate::format::Block;

/// Columns whose products are summed before they join the row's sum, for float weights.
const SEGMENT: usize = 64;

/// How far ahead of their use weights are asked for, in bytes. Without it, a processor that multiplies several rows of activations
/// sees too few reads ahead to keep memory busy.
pub const AHEAD: usize = 8192;

/// Bytes that memory gives at a time.
pub const LINE: usize = 64;

/// Thirty-two activations rounded to 8 bits in two groups: `x = d q`.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Activations {
    /// The codes, in `-127..=127`.
    pub q: [[i8; GROUP]; 2],
    /// The scale of each group.
    pub d: [f32; 2],
    /// `-sum q` of each group.
    pub minus: [i32; 2],
    /// `d sum q` of each group.
    pub dsums: [f32; 2],
    /// `dsums[0] + dsums[1]`.
    pub dsum: f32,
}

/// Tiles of rows that meet columns of weights which are unpacked for a matrix unit.
pub const TILES: usize = 4;

/// Thirty-two activations of sixteen rows side by side, as a matrix unit wants them ([`Simd::tiles`]).
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct ActivationTile {
    /// The codes of each row as bfloat16, of each four columns the first, third, second and fourth.
    pub q: [[u16; BLOCK]; LANES],
    /// What [`Activations`] has of each row.
    pub d: [[f32; LANES]; 2],
    /// Likewise.
    pub dsums: [[f32; LANES]; 2],
    /// Likewise.
    pub dsum: [f32; LANES],
}

impl ActivationTile {
    /// Puts a block of row `t` beside the others.
    #[inline(always)]
    pub fn put(&mut self, t: usize, x: &Activations) {
        let q: &[[i8; 4]] = bytemuck::cast_slice(&x.q);
        for (to, &[a, b, c, d]) in self.q[t].as_chunks_mut().0.iter_mut().zip(q) {
            *to = [a, c, b, d].map(
                #[inline(always)]
                |q| (f32::from(q).to_bits() >> 16) as u16,
            );
        }
        for g in 0..2 {
            (self.d[g][t], self.dsums[g][t]) = (x.d[g], x.dsums[g]);
        }
        self.dsum[t] = x.dsum;
    }
}

/// One row of activations, as both kinds of strips want it.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The values.
    pub x: &'a [f32],
    /// The values in 8 bits; empty if no weight has integer codes.
    pub x8: &'a [Activations],
}

/// Gives the blocks of a panel.
pub type Unpack<B, P> = fn(&P) -> [B; LANES];

/// How sixteen rows of a format lie side by side, and their dot product with rows of activations.
pub trait Strip: Send + Sync + 'static {
    /// The format's block.
    type Block: Block;
    /// One block of each of sixteen rows.
    type Panel: Pod + Send + Sync;
    /// Whether activations are rounded to 8 bits.
    const INTEGER: bool;
    /// Rows of activations whose sums fit the registers: 4 or 2.
    fn tokens<S: Simd>() -> usize;

    /// The inverse of [`Strip::pack`], of the formats whose panels have a fixed layout, so that files can hold them.
    const UNPACK: Option<Unpack<Self::Block, Self::Panel>>;

    /// Lays sixteen blocks side by side.
    fn pack(blocks: [&Self::Block; LANES]) -> Self::Panel;

    /// The dot products of the sixteen rows of each of `N` strips, of one length, with each of `T` rows of activations. If
    /// the strips come from memory, `fresh`, what follows is asked for ahead.
    fn dot<S: Simd, const T: usize, const N: usize>(
        s: S,
        strips: [&[Self::Panel]; N],
        x: [Input<'_>; T],
        fresh: bool,
    ) -> [[S::F; T]; N];

    /// Multiplies the first of many rows in an order of its own, where that is faster; gives how many those are.
    #[inline(always)]
    fn many<S: Simd>(_s: S, _m: &mut Multiply<'_, Self>) -> usize
    where
        Self: Sized,
    {
        0
    }
}

/// What the codes of a format can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeRange {
    /// Unsigned, at most this, which is at most 127.
    Unsigned(u8),
    /// Signed 8 bits.
    Signed,
}

/// Some blocks of 32 columns of sixteen rows with integer codes: `w = d (q - ZERO) + m`.
pub trait IntBlocks {
    /// What the codes can be.
    const RANGE: CodeRange;
    /// The code that stands for `m`.
    const ZERO: i32;
    /// Whether there are minima.
    const MIN: bool;
    /// Whether each group of 16 columns has a scale and minimum of its own, rather than each block.
    const GROUPED: bool = false;
    /// Whether all blocks have one scale and minimum, that of block 0.
    const SHARED: bool = false;
    /// Whether the codes of two steps are paired ([`Simd::pair`]): of unsigned codes alone.
    const PAIRED: bool = false;
    /// The codes of columns `4 step..4 step + 4` of block `b`.
    fn codes<S: Simd>(&self, s: S, b: usize, step: usize) -> S::Codes;
    /// The codes that indices of 4 bits stand for, of formats that look them up.
    const LEVELS: Option<[u8; 16]> = None;
    /// Those indices, or codes that stand for themselves.
    #[inline(always)]
    fn indices<S: Simd>(&self, s: S, b: usize, step: usize) -> S::Codes {
        self.codes(s, b, step)
    }
    /// The scales `d` of block `b`, or of its group `g`.
    fn scale<S: Simd>(&self, s: S, b: usize, g: usize) -> S::F;
    /// The minima `m` of block `b`, or of its group `g`, where the format has them.
    #[inline(always)]
    fn min<S: Simd>(&self, s: S, _b: usize, _g: usize) -> S::F {
        s.splat(0.0)
    }
}

/// The blocks of a format.
pub trait IntPanel: IntBlocks + Pod + Send + Sync {
    /// The format's block.
    type Block: Block;
    /// See [`Strip::UNPACK`].
    const UNPACK: Option<Unpack<Self::Block, Self>> = None;
    /// Lays sixteen blocks of the format side by side.
    fn pack(blocks: [&Self::Block; LANES]) -> Self;
}

/// The strip of a format with integer codes.
pub struct Int<P>(PhantomData<P>);

impl<P: IntPanel> Strip for Int<P> {
    type Block = P::Block;
    type Panel = P;
    const INTEGER: bool = true;
    const UNPACK: Option<Unpack<P::Block, P>> = P::UNPACK;

    #[inline(always)]
    fn tokens<S: Simd>() -> usize {
        if S::WIDE { 4 } else { 2 }
    }

    fn pack(blocks: [&P::Block; LANES]) -> P {
        P::pack(blocks)
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize, const N: usize>(
        s: S,
        strips: [&[P]; N],
        x: [Input<'_>; T],
        fresh: bool,
    ) -> [[S::F; T]; N] {
        const { assert!(matches!(P::Block::LEN, 32 | 64 | 128 | 256)) };
        match P::Block::LEN {
            32 => dot_int::<S, P, T, N, 1>(s, strips, x, fresh),
            64 => dot_int::<S, P, T, N, 2>(s, strips, x, fresh),
            128 => dot_int::<S, P, T, N, 4>(s, strips, x, fresh),
            _ => dot_int::<S, P, T, N, 8>(s, strips, x, fresh),
        }
    }

    #[inline(always)]
    fn many<S: Simd>(s: S, m: &mut Multiply<'_, Self>) -> usize {
        unpacked::many(s, m)
    }
}

/// The dot products of panels with `B` blocks each.
#[inline(always)]
fn dot_int<S: Simd, P: IntPanel, const T: usize, const N: usize, const B: usize>(
    s: S,
    strips: [&[P]; N],
    x: [Input<'_>; T],
    fresh: bool,
) -> [[S::F; T]; N] {
    let length = strips[0].len();
    let strips = strips.map(|strip| &strip[..length]);
    let x = x.map(|x| &x.x8.as_chunks::<B>().0[..length]);
    let mut sums = [[s.splat(0.0); T]; N];
    for i in 0..length {
        let panels = strips.map(|strip| &strip[i]);
        let x = x.map(|x| x[i].as_slice());
        add_panel(
            s,
            (panels, 0),
            x,
            #[inline(always)]
            |b| {
                if fresh {
                    let share = size_of::<P>() / B;
                    for panel in panels {
                        for line in (0..share).step_by(LINE) {
                            s.prefetch(panel, AHEAD + b * share + line);
                        }
                    }
                }
            },
            &mut sums,
        );
    }
    sums
}

/// Adds the products of the blocks of a panel, from the given one on, with as many of each of `T` rows of activations. Calls `before` before
/// each.
#[inline(always)]
pub(super) fn add_panel<S: Simd, P: IntBlocks, const T: usize, const N: usize>(
    s: S,
    (mut panels, first): ([&P; N], usize),
    x: [&[Activations]; T],
    before: impl Fn(usize),
    sums: &mut [[S::F; T]; N],
) {
    let blocks = x[0].len();
    if !P::SHARED {
        for b in 0..blocks {
            before(b);
            add_products(s, panels, first + b, x.map(|x| &x[b]), sums);
        }
        return;
    }
    let (mut parts, mut rest) = ([[s.splat(0.0); T]; N], [0.0; T]);
    for b in 0..blocks {
        before(b);
        let x = x.map(|x| &x[b]);
        panels = add_part(s, panels, (first + b, 0), x, &mut parts);
        panels = add_part(s, panels, (first + b, 1), x, &mut parts);
        for t in 0..T {
            rest[t] += x[t].dsum;
        }
    }
    for n in 0..N {
        let (d, m) = (panels[n].scale(s, first, 0), panels[n].min(s, first, 0));
        for t in 0..T {
            sums[n][t] = s.fma(m, s.splat(rest[t]), s.fma(d, parts[n][t], sums[n][t]));
        }
    }
}

/// Adds a group, before it is scaled.
#[inline(always)]
fn add_part<'a, S: Simd, P: IntBlocks, const T: usize, const N: usize>(
    s: S,
    mut panels: [&'a P; N],
    (b, g): (usize, usize),
    x: [&Activations; T],
    parts: &mut [[S::F; T]; N],
) -> [&'a P; N] {
    let dots = dot_group(s, panels, (b, g), x);
    for n in 0..N {
        for t in 0..T {
            parts[n][t] = s.fma(s.splat(x[t].d[g]), dots[n][t], parts[n][t]);
        }
        panels[n] = s.after(panels[n], parts[n][T - 1]);
    }
    panels
}

/// Adds the products of a block.
#[inline(always)]
fn add_products<S: Simd, P: IntBlocks, const T: usize, const N: usize>(
    s: S,
    mut panels: [&P; N],
    b: usize,
    x: [&Activations; T],
    sums: &mut [[S::F; T]; N],
) {
    if P::GROUPED {
        add_group(s, panels, (b, 0), x, sums);
        for n in 0..N {
            panels[n] = s.after(panels[n], sums[n][T - 1]);
        }
        add_group(s, panels, (b, 1), x, sums);
    } else {
        add_block(s, panels, b, x, sums);
    }
}

/// Adds a block whose groups share a scale.
#[inline(always)]
fn add_block<S: Simd, P: IntBlocks, const T: usize, const N: usize>(
    s: S,
    mut panels: [&P; N],
    b: usize,
    x: [&Activations; T],
    sums: &mut [[S::F; T]; N],
) {
    let first = dot_group(s, panels, (b, 0), x);
    for n in 0..N {
        panels[n] = s.after(panels[n], first[n][T - 1]);
    }
    let second = dot_group(s, panels, (b, 1), x);
    for n in 0..N {
        let d = panels[n].scale(s, b, 0);
        for t in 0..T {
            let block = s.fma(s.splat(x[t].d[1]), second[n][t], s.mul(s.splat(x[t].d[0]), first[n][t]));
            sums[n][t] = s.fma(d, block, sums[n][t]);
        }
        if P::MIN {
            let m = panels[n].min(s, b, 0);
            for t in 0..T {
                sums[n][t] = s.fma(m, s.splat(x[t].dsum), sums[n][t]);
            }
        }
    }
}

/// Adds a group with a scale of its own.
#[inline(always)]
fn add_group<S: Simd, P: IntBlocks, const T: usize, const N: usize>(
    s: S,
    panels: [&P; N],
    (b, g): (usize, usize),
    x: [&Activations; T],
    sums: &mut [[S::F; T]; N],
) {
    let dots = dot_group(s, panels, (b, g), x);
    for n in 0..N {
        let d = panels[n].scale(s, b, g);
        for t in 0..T {
            sums[n][t] = s.fma(d, s.mul(s.splat(x[t].d[g]), dots[n][t]), sums[n][t]);
        }
        if P::MIN {
            let m = panels[n].min(s, b, g);
            for t in 0..T {
                sums[n][t] = s.fma(m, s.splat(x[t].dsums[g]), sums[n][t]);
            }
        }
    }
}

/// `n` of one group.
#[inline(always)]
fn dot_group<S: Simd, P: IntBlocks, const T: usize, const N: usize>(
    s: S,
    panels: [&P; N],
    (b, g): (usize, usize),
    x: [&Activations; T],
) -> [[S::F; T]; N] {
    let (q, minus) = (x.map(|x| &x.q[g]), x.map(|x| x.minus[g]));
    let start = minus.map(
        #[inline(always)]
        |minus| s.splat_int(P::ZERO * minus),
    );
    let dots: [[S::I; T]; N] = match P::RANGE {
        CodeRange::Unsigned(most) if P::PAIRED => s.dot_paired(
            #[inline(always)]
            |n, step| panels[n].codes(s, b, 4 * g + step),
            most,
            q,
            start,
        ),
        CodeRange::Unsigned(most) => s.dot_unsigned(
            #[inline(always)]
            |n, step| panels[n].codes(s, b, 4 * g + step),
            most,
            q,
            start,
        ),
        CodeRange::Signed => s.dot_bytes(
            #[inline(always)]
            |n, step| panels[n].codes(s, b, 4 * g + step),
            q,
            minus,
        ),
    };
    let mut out = [[s.splat(0.0); T]; N];
    for n in 0..N {
        for t in 0..T {
            out[n][t] = s.to_float(dots[n][t]);
        }
    }
    out
}

/// One column of sixteen rows in a floating-point format.
pub trait FloatPanel: Pod + Send + Sync {
    /// The format's block.
    type Block: Block;
    /// Lays sixteen values side by side.
    fn pack(blocks: [&Self::Block; LANES]) -> Self;
    /// The inverse.
    fn unpack(&self) -> [Self::Block; LANES];
    /// The sixteen values.
    fn values<S: Simd>(&self, s: S) -> S::F;
}

/// The strip of a floating-point format.
pub struct Float<P>(PhantomData<P>);

impl<P: FloatPanel> Strip for Float<P> {
    type Block = P::Block;
    type Panel = P;
    const INTEGER: bool = false;
    const UNPACK: Option<Unpack<P::Block, P>> = Some(P::unpack);

    #[inline(always)]
    fn tokens<S: Simd>() -> usize {
        4
    }

    fn pack(blocks: [&P::Block; LANES]) -> P {
        P::pack(blocks)
    }

    #[inline(always)]
    fn dot<S: Simd, const T: usize, const N: usize>(
        s: S,
        strips: [&[P]; N],
        x: [Input<'_>; T],
        fresh: bool,
    ) -> [[S::F; T]; N] {
        dot_float(s, strips, x, fresh)
    }
}

#[inline(always)]
fn dot_float<S: Simd, P: FloatPanel, const T: usize, const N: usize>(
    s: S,
    strips: [&[P]; N],
    x: [Input<'_>; T],
    fresh: bool,
) -> [[S::F; T]; N] {
    let length = strips[0].len();
    let mut columns = Columns {
        strips: strips.map(|strip| &strip[..length]),
        x: x.map(|x| &x.x[..length]),
        sums: [[s.splat(0.0); T]; N],
        fresh,
    };
    // With few sums the additions of one segment would wait for each other, so several segments are summed
    // side by side; the order of additions within each, and of the segments, stays the same.
    if T * N == 1 {
        columns.add_segments::<4>(s);
    }
    if T * N <= 2 {
        columns.add_segments::<2>(s);
    }
    columns.add_segments::<1>(s);
    columns.add_rest(s);
    columns.sums
}

/// The columns that are still to be added to the sums of `N` strips and `T` rows of activations.
struct Columns<'a, S: Simd, P, const T: usize, const N: usize> {
    strips: [&'a [P]; N],
    x: [&'a [f32]; T],
    sums: [[S::F; T]; N],
    fresh: bool,
}

impl<S: Simd, P: FloatPanel, const T: usize, const N: usize> Columns<'_, S, P, T, N> {
    /// Sums the first segments, `G` side by side while there are that many, then adds them in order.
    #[inline(always)]
    fn add_segments<const G: usize>(&mut self, s: S) {
        let segments = self.strips[0].len() / SEGMENT;
        for _ in 0..segments / G {
            let mut panels: [&[[P; SEGMENT]; G]; N] = [first_segments(&mut self.strips[0]); N];
            for n in 1..N {
                panels[n] = first_segments(&mut self.strips[n]);
            }
            let mut x: [&[[f32; SEGMENT]; G]; T] = [first_segments(&mut self.x[0]); T];
            for t in 1..T {
                x[t] = first_segments(&mut self.x[t]);
            }
            let mut parts = [[[s.splat(0.0); G]; T]; N];
            for i in 0..SEGMENT {
                for g in 0..G {
                    let mut w = [s.splat(0.0); N];
                    for n in 0..N {
                        if self.fresh && (i * size_of::<P>()).is_multiple_of(LINE) {
                            // Beyond the segments that are read at the same time.
                            s.prefetch(&panels[n][g][i], AHEAD.max(G * SEGMENT * size_of::<P>()));
                        }
                        w[n] = panels[n][g][i].values(s);
                    }
                    for t in 0..T {
                        let x = s.splat(x[t][g][i]);
                        for n in 0..N {
                            parts[n][t][g] = s.fma(w[n], x, parts[n][t][g]);
                        }
                    }
                }
            }
            for n in 0..N {
                for t in 0..T {
                    for part in parts[n][t] {
                        self.sums[n][t] = s.add(self.sums[n][t], part);
                    }
                }
            }
        }
    }

    /// Adds the columns after the last whole segment.
    #[inline(always)]
    fn add_rest(&mut self, s: S) {
        let rest = self.strips[0].len();
        if rest == 0 {
            return;
        }
        for n in 0..N {
            self.strips[n] = &self.strips[n][..rest];
        }
        for t in 0..T {
            self.x[t] = &self.x[t][..rest];
        }
        let mut parts = [[s.splat(0.0); T]; N];
        for i in 0..rest {
            let mut w = [s.splat(0.0); N];
            for n in 0..N {
                if self.fresh && (i * size_of::<P>()).is_multiple_of(LINE) {
                    s.prefetch(&self.strips[n][i], AHEAD);
                }
                w[n] = self.strips[n][i].values(s);
            }
            for t in 0..T {
                let x = s.splat(self.x[t][i]);
                for n in 0..N {
                    parts[n][t] = s.fma(w[n], x, parts[n][t]);
                }
            }
        }
        for n in 0..N {
            for t in 0..T {
                self.sums[n][t] = s.add(self.sums[n][t], parts[n][t]);
            }
        }
    }
}

/// Takes the first `G` segments off a slice that has them.
#[inline(always)]
fn first_segments<'a, Q, const G: usize>(columns: &mut &'a [Q]) -> &'a [[Q; SEGMENT]; G] {
    let (first, rest) = columns.split_at(G * SEGMENT);
    *columns = rest;
    first.as_chunks().0.first_chunk().expect("as many segments")
}
