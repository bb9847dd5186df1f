//! Changes of a linear layer that are neither low-rank nor a bias, and changes of its input.

use std::ops::Range;

use super::isa::{Isa, LANES};
use super::linear::{Inputs, Join, Lane, Lanes, Matrix};
use super::rows::Rescale;
use super::team::Grid;
use super::{Cpu, Rows};
use crate::backend::{Change, Graft, InputChange, InputGraft, Output};

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

/// A Kronecker product on some rows.
struct Product<'a> {
    left: &'a Matrix,
    right: &'a Matrix,
    rows: Range<usize>,
    scale: f32,
}

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

    /// Computes `scale z` of all Kronecker products into `low` and puts where each begins into `places`; gives how many values
    /// there are. With `x` as `X [c, d]`: first `T = R X^T [b, c]`, then
    /// `Z = L T^T [a, b]`, every sum in the order of [`Matrix::multiply`].
    pub(super) fn kronecker(
        &mut self,
        x: &Rows,
        outputs: &[Output<'_, Self>],
        places: &mut [Vec<usize>],
    ) -> usize {
        let (mut products, mut inner, mut outer) = (Vec::new(), 0, 0);
        for (output, places) in outputs.iter().zip(places.iter_mut()) {
            for (graft, place) in output.grafts.iter().zip(places) {
                let Change::Kronecker { left, right, order } = &graft.change else { continue };
                let outputs = left.rows() * right.rows();
                assert!(
                    left.cols() * right.cols() == x.cols
                        && outputs == output.weight.rows()
                        && outputs == order.len()
                        && !left.integer()
                        && !right.integer(),
                    "shapes and formats of a Kronecker product"
                );
                *place = outer;
                let rows = graft.rows.clone();
                inner += rows.len() * right.rows() * left.cols();
                outer += rows.len() * outputs;
                products.push(Product { left, right, rows, scale: graft.scale });
            }
        }
        if products.is_empty() {
            return 0;
        }
        for (output, places) in outputs.iter().zip(places.iter_mut()) {
            for (graft, place) in output.grafts.iter().zip(places) {
                if matches!(graft.change, Change::Kronecker { .. }) {
                    *place += inner;
                }
            }
        }
        let isa = self.isa;
        let low = self.low.slice::<f32>(inner + outer);
        let (t_all, z_all) = low.split_at_mut(inner);
        let cuts = |p: &Product<'_>| (0..p.rows.len()).step_by(ROWS).chain([p.rows.len()]).collect();

        let (mut grids, mut rest) = (Vec::with_capacity(products.len()), &mut *t_all);
        for p in &products {
            let (b, c) = (p.right.rows(), p.left.cols());
            let (part, others) = rest.split_at_mut(p.rows.len() * b * c);
            rest = others;
            // The outputs of a strip of `R` lie together.
            grids.push(Grid::new(part, b * c, cuts(p), LANES * c));
        }
        self.team.tiles(&mut grids, |g, mut tile, scratch| {
            let p = &products[g];
            let (c, d) = (p.left.cols(), p.right.cols());
            let lanes = scratch.lanes.slice::<Lane>(ROWS);
            let strip = tile.cols.start / (LANES * c);
            let inputs = Inputs { x: x.values(), stride: d, cols: d, x8: &[] };
            for t in tile.rows.clone() {
                for k in (0..c).step_by(ROWS) {
                    let lanes = &mut lanes[..ROWS.min(c - k)];
                    let first = (p.rows.start + t) * c + k;
                    let rows = first..first + lanes.len();
                    p.right.multiply(isa, strip..strip + 1, &inputs, rows, false, Lanes::strip(lanes));
                    for (j, row) in tile.row(t).chunks_exact_mut(c).enumerate() {
                        for (t, lane) in row[k..].iter_mut().zip(&*lanes) {
                            *t = lane[j];
                        }
                    }
                }
            }
        });

        let (mut grids, mut sources) =
            (Vec::with_capacity(products.len()), Vec::with_capacity(products.len()));
        let (mut rest, mut t_rest) = (z_all, &*t_all);
        for p in &products {
            let (a, b, c) = (p.left.rows(), p.right.rows(), p.left.cols());
            let (part, others) = rest.split_at_mut(p.rows.len() * a * b);
            rest = others;
            let (source, others) = t_rest.split_at(p.rows.len() * b * c);
            t_rest = others;
            sources.push(source);
            grids.push(Grid::new(part, a * b, cuts(p), LANES * b));
        }
        self.team.tiles(&mut grids, |g, mut tile, scratch| {
            let p = &products[g];
            let (b, c) = (p.right.rows(), p.left.cols());
            let lanes = scratch.lanes.slice::<Lane>(ROWS);
            let strip = tile.cols.start / (LANES * b);
            let inputs = Inputs { x: sources[g], stride: c, cols: c, x8: &[] };
            for t in tile.rows.clone() {
                for j in (0..b).step_by(ROWS) {
                    let lanes = &mut lanes[..ROWS.min(b - j)];
                    let first = t * b + j;
                    let rows = first..first + lanes.len();
                    p.left.multiply(isa, strip..strip + 1, &inputs, rows, false, Lanes::strip(lanes));
                    for (i, row) in tile.row(t).chunks_exact_mut(b).enumerate() {
                        for (z, lane) in row[j..].iter_mut().zip(&*lanes) {
                            *z = lane[i] * p.scale;
                        }
                    }
                }
            }
        });
        inner + outer
    }
}

/// A delta, sparse change or Kronecker product on some rows and strips of outputs.
pub(super) struct Piece<'a> {
    pub isa: Isa,
    pub graft: &'a Graft<'a, Cpu>,
    /// The layer's input.
    pub x: &'a Inputs<'a>,
    /// `scale z` of a Kronecker product, from the graft's first row on.
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
                let out = Lanes { lanes: change, stride: count, join: Join::Set };
                delta.multiply(self.isa, self.strips.clone(), self.x, self.rows.clone(), self.fresh, out);
                change.iter_mut().flatten().for_each(|y| *y *= scale);
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
            Change::Kronecker { order, .. } => {
                let outputs = order.len();
                for (strip, lanes) in self.strips.clone().zip(change.chunks_exact_mut(count)) {
                    let order = &order[strip * LANES..order.len().min((strip + 1) * LANES)];
                    for (t, lane) in self.rows.clone().zip(lanes) {
                        let z = &self.low[(t - self.graft.rows.start) * outputs..];
                        for (y, &o) in lane.iter_mut().zip(order) {
                            *y = z[o as usize];
                        }
                    }
                }
            }
        }
    }
}
