//! Changes of a linear layer that are neither low-rank nor a bias, and changes of its input.

use std::ops::Range;

use super::isa::{Isa, Kernel, LANES, Simd};
use super::linear::{Inputs, Lane, Lanes, Matrix};
use super::math::{load_part, store_part};
use super::rows::Rescale;
use super::scratch::Scratch;
use super::team::{Grid, Tile};
use super::{Cpu, Rows};
use crate::backend::{Change, Generate, Graft, InputChange, InputGraft};

/// Factors of outputs or inputs.
pub struct Scale {
    /// The factors.
    pub by: Vec<f32>,
    /// Taken from the values before.
    pub shift: Option<Vec<f32>>,
}

/// `y[outputs[j]] = values[j]` for the outputs of a strip.
pub(super) fn put(lane: &mut Lane, strip: usize, outputs: &[u32], values: &[f32]) {
    let first = outputs.partition_point(|&o| (o as usize) < strip * LANES);
    for (&o, &value) in outputs[first..].iter().zip(&values[first..]) {
        match lane.get_mut(o as usize - strip * LANES) {
            Some(y) => *y = value,
            None => break,
        }
    }
}

impl Scale {
    /// `y[o] += scale by[o] (y[o] - shift[o])` for the outputs of a strip.
    pub(super) fn apply(&self, lane: &mut Lane, strip: usize, scale: f32) {
        let part = strip * LANES..self.by.len().min((strip + 1) * LANES);
        match &self.shift {
            None => lane.iter_mut().zip(&self.by[part]).for_each(|(y, by)| *y += scale * by * *y),
            Some(shift) => {
                for ((y, by), shift) in lane.iter_mut().zip(&self.by[part.clone()]).zip(&shift[part]) {
                    *y += scale * by * (*y - shift);
                }
            }
        }
    }
}

/// Most rows that are multiplied at a time.
const ROWS: usize = 64;

/// Rows of a tile of a Kronecker product.
const PRODUCT_ROWS: usize = 8;

impl Cpu {
    /// One graft of [`Backend::adapt`](crate::backend::Backend::adapt).
    pub(super) fn change_input(&mut self, x: &mut Rows, graft: &InputGraft<'_, Self>) {
        match &graft.change {
            InputChange::Rotate(rotation) => {
                assert_eq!(graft.scale, 1.0, "a rotation is there or not");
                self.turn(x, &graft.rows, rotation);
            }
            InputChange::Bottleneck(bottleneck) => self.narrow(x, &graft.rows, bottleneck, graft.scale),
            InputChange::Add(direction) => self.steer(x, &graft.rows, direction, graft.scale),
            InputChange::Scale(scale) => {
                let (isa, share, cols) = (self.isa, self.share(graft.rows.len()), x.cols);
                let rows = &mut x.data[graft.rows.start * cols..graft.rows.end * cols];
                assert!(scale.by.len() == cols && scale.shift.is_none(), "factors of an input");
                self.team.tiles(&mut [Grid::by_rows(rows, cols, share)], |_, mut tile, _| {
                    for t in tile.rows.clone() {
                        isa.run(Rescale { x: tile.row(t), by: &scale.by, scale: graft.scale });
                    }
                });
            }
        }
    }
}

/// A Kronecker product on some rows: with `x` as `X [c, d]`, first `U = L X [a, d]`, each value `s = fma(L[i,k], X[k,l], s)` from zero
/// over `k` in order, then `Z = U R^T [a, b]`, every sum in the order of [`Matrix::multiply`].
pub(super) struct Product<'a> {
    pub left: &'a [f32],
    pub right: &'a Matrix,
    /// `a` and `c`.
    pub shape: (usize, usize),
    pub rows: Range<usize>,
    pub scale: f32,
}

impl Product<'_> {
    /// Values of `U`, which come before those of `scale Z` in a row.
    fn inner(&self) -> usize {
        self.shape.0 * self.right.cols()
    }

    /// Values of a row.
    pub fn stride(&self) -> usize {
        self.inner() + self.shape.0 * self.right.rows()
    }

    /// The tiles of its values: a few whole rows each.
    pub fn grid<'a>(&self, values: &'a mut [f32]) -> Grid<'a, f32> {
        Grid::by_rows(values, self.stride(), PRODUCT_ROWS)
    }

    /// Computes one of its tiles.
    pub fn compute(&self, isa: Isa, x: &Inputs<'_>, mut tile: Tile<'_, f32>, scratch: &mut Scratch) {
        let ((a, c), b, d) = (self.shape, self.right.rows(), self.right.cols());
        let lanes = scratch.lanes.slice::<Lane>(ROWS);
        for row in tile.rows.clone() {
            let (u, z) = tile.row(row).split_at_mut(self.inner());
            let x = &x.x[(self.rows.start + row) * x.stride..][..c * d];
            isa.run(Combine { left: self.left, x, d, out: u });
            let inputs = Inputs { x: u, stride: d, cols: d, x8: &[], tiles: &[] };
            for strip in 0..b.div_ceil(LANES) {
                let (at, end) = (strip * LANES, b.min((strip + 1) * LANES));
                for first in (0..a).step_by(ROWS) {
                    let lanes = &mut lanes[..ROWS.min(a - first)];
                    let rows = first..first + lanes.len();
                    self.right.multiply(isa, strip..strip + 1, &inputs, rows, false, Lanes::strip(lanes));
                    for (z, lane) in z[first * b..].chunks_mut(b).zip(&*lanes) {
                        z[at..end].iter_mut().zip(lane).for_each(|(z, x)| *z = x * self.scale);
                    }
                }
            }
        }
    }
}

/// `out[i,l] = sum_k left[i,k] x[k,l]` with rows of `d` values in `x` and `out`.
struct Combine<'a> {
    left: &'a [f32],
    x: &'a [f32],
    d: usize,
    out: &'a mut [f32],
}

impl Kernel for Combine<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let c = self.x.len() / self.d;
        let mut rows = self.left.chunks_exact(4 * c).zip(self.out.chunks_exact_mut(4 * self.d));
        for (left, out) in &mut rows {
            combine::<S, 4>(s, left, (self.x, self.d), out);
        }
        let done = self.left.len() / (4 * c) * 4;
        let left = self.left[done * c..].chunks_exact(c);
        for (left, out) in left.zip(self.out[done * self.d..].chunks_exact_mut(self.d)) {
            combine::<S, 1>(s, left, (self.x, self.d), out);
        }
    }
}

/// `N` rows of [`Combine`].
#[inline(always)]
fn combine<S: Simd, const N: usize>(s: S, left: &[f32], (x, d): (&[f32], usize), out: &mut [f32]) {
    let c = x.len() / d;
    for l in (0..d).step_by(LANES) {
        let mut sums = [s.splat(0.0); N];
        for k in 0..c {
            // What is beyond the row falls into lanes that are not stored.
            let x = load_part(s, &x[k * d + l..]);
            for n in 0..N {
                sums[n] = s.fma(s.splat(left[n * c + k]), x, sums[n]);
            }
        }
        for n in 0..N {
            store_part(s, sums[n], &mut out[n * d + l..(n + 1) * d]);
        }
    }
}

/// Columns of a generated matrix that are computed at a time.
const SOME: usize = 512;

/// `y[t] = scale sum_i D[o,i] x[t,i]` for the outputs `o` of a strip of a generated matrix: each a sum of sixteen, of every sixteenth
/// product in order, lane by lane.
fn generated(
    isa: Isa,
    matrix: &dyn Generate,
    (x, rows): (&Inputs<'_>, &Range<usize>),
    (strip, scale): (usize, f32),
    y: &mut [Lane],
) {
    let (outputs, inputs) = matrix.shape();
    let (mut values, mut sums) = ([0.0; SOME], [[0.0; LANES]; ROWS]);
    let sums = &mut sums[..rows.len()];
    for (lane, output) in (strip * LANES..outputs.min((strip + 1) * LANES)).enumerate() {
        sums.fill([0.0; LANES]);
        for first in (0..inputs).step_by(SOME) {
            let values = &mut values[..SOME.min(inputs - first)];
            matrix.generate(output, first, values);
            for (t, sum) in rows.clone().zip(&mut *sums) {
                let x = &x.x[t * x.stride + first..][..values.len()];
                isa.run(Dot { values, x, sum });
            }
        }
        for (y, sum) in y.iter_mut().zip(&*sums) {
            y[lane] = scale * sum.iter().sum::<f32>();
        }
    }
}

/// `sum[l] += sum_i values[16 i + l] x[16 i + l]`, fused and in order.
struct Dot<'a> {
    values: &'a [f32],
    x: &'a [f32],
    sum: &'a mut Lane,
}

impl Kernel for Dot<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut sum = s.load(self.sum);
        for (values, x) in self.values.chunks(LANES).zip(self.x.chunks(LANES)) {
            sum = s.fma(load_part(s, values), load_part(s, x), sum);
        }
        s.store(sum, self.sum);
    }
}

/// A delta, sparse change or Kronecker product on some rows and strips of outputs.
pub(super) struct Piece<'a> {
    pub isa: Isa,
    pub graft: &'a Graft<'a, Cpu>,
    /// The layer's input.
    pub x: &'a Inputs<'a>,
    /// What a Kronecker product has computed, from the graft's first row on.
    pub low: &'a [f32],
    pub strips: Range<usize>,
    /// Of the batch; all of them the graft's.
    pub rows: Range<usize>,
    /// Whether the strips are read for the first time.
    pub fresh: bool,
}

impl Piece<'_> {
    /// The change `[strips][rows]`, to be added as it is.
    pub fn compute(&self, change: &mut [Lane]) {
        let (scale, count) = (self.graft.scale, self.rows.len());
        match &self.graft.change {
            Change::Bias(_)
            | Change::LowRank { .. }
            | Change::Scale(_)
            | Change::Rows { .. }
            | Change::Bottleneck(_) => {
                unreachable!("computed in layer.rs")
            }
            Change::Delta(delta) | Change::Replace(delta) => {
                let out = Lanes::set(change, count);
                delta.multiply(self.isa, self.strips.clone(), self.x, self.rows.clone(), self.fresh, out);
                change.iter_mut().flatten().for_each(|y| *y *= scale);
            }
            Change::Generated(matrix) => {
                for (strip, lanes) in self.strips.clone().zip(change.chunks_exact_mut(count)) {
                    generated(self.isa, &***matrix, (self.x, &self.rows), (strip, scale), lanes);
                }
            }
            Change::Sparse { starts, columns, values } => {
                for (strip, lanes) in self.strips.clone().zip(change.chunks_exact_mut(count)) {
                    for (t, lane) in self.rows.clone().zip(lanes) {
                        let x = &self.x.x[t * self.x.stride..][..self.x.cols];
                        for (y, ends) in lane.iter_mut().zip(starts[strip * LANES..].windows(2)) {
                            let entries = ends[0] as usize..ends[1] as usize;
                            let entries = columns[entries.clone()].iter().zip(&values[entries]);
                            let sum = entries.fold(0.0, |sum, (&column, v)| sum + v * x[column as usize]);
                            *y = scale * sum;
                        }
                    }
                }
            }
            Change::Kronecker { left, right, order } => {
                let stride = self.low.len() / self.graft.rows.len();
                let outputs = left.len() * right.cols() / self.x.cols * right.rows();
                for (strip, lanes) in self.strips.clone().zip(change.chunks_exact_mut(count)) {
                    let part = strip * LANES..outputs.min((strip + 1) * LANES);
                    for (t, lane) in self.rows.clone().zip(lanes) {
                        let row = &self.low[(t - self.graft.rows.start) * stride..][..stride];
                        let z = &row[stride - outputs..];
                        if order.is_empty() {
                            lane[..part.len()].copy_from_slice(&z[part.clone()]);
                        } else {
                            lane.iter_mut().zip(&order[part.clone()]).for_each(|(y, &o)| *y = z[o as usize]);
                        }
                    }
                }
            }
        }
    }
}
