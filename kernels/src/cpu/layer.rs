//! Linear layers with their grafts, shared out among the team.
//!
//! First the input is rounded to 8 bits. Then what stands between the two matrices of a graft is computed, and each tile of the output finished by
//! one thread: `W x`, bias, and `B (scale A x)` while the tile is hot, once that is there. A graft's change is never written out.

use std::ops::Range;

use super::bottleneck::Bottleneck;
use super::change::{Piece, Product, Scale, put};
use super::isa::{BLOCK, Isa, LANES};
use super::linear::{Inputs, Join, Lane, Lanes, Matrix, Quantize, SideBySide, ask};
use super::rows::Inner;
use super::scratch::{Need, Scratch};
use super::strip::{ActivationTile, Activations, TILES};
use super::team::{Early, Grid, Tile};
use super::{CHUNKS, Cpu, Rows};
use crate::backend::{Activation, Change, Graft, Output};

/// Outputs, times sixteen, that a thread keeps before it writes them: 16 KiB, so that they stay in the first cache.
const CLOSE: usize = 256;

/// How many bytes of weights that stay in the second cache a thread keeps one of those outputs for, if it multiplies them with more rows than at a
/// time: then rows of activations come from farther away than outputs.
const WEIGHTS_OF_OUTPUTS: usize = 1 << 9;

/// Most rows of activations at a time; on a matrix unit, [`TILES`] of sixteen.
const CLOSE_ROWS: usize = 32;

/// Most rows of a tile of `scale A x`.
pub(super) const PROJECT_ROWS: usize = 64;

/// Outputs, times sixteen, that a thread keeps where `near` bytes of weights stay near.
fn kept(near: usize) -> usize {
    CLOSE.max(near / WEIGHTS_OF_OUTPUTS)
}

/// Scratch that a linear layer takes: outputs, and a graft's change of as many.
pub(super) fn scratch(near: usize) -> Need {
    const { assert!(PROJECT_ROWS <= 2 * CLOSE) };
    Need { lanes: 2 * kept(near) * size_of::<Lane>(), work: 0 }
}

/// Blocks of 8-bit activations of `rows` rows of `inputs` values.
pub(super) const fn blocks(rows: usize, inputs: usize) -> usize {
    rows.saturating_mul(inputs / BLOCK)
}

/// Blocks of whole sixteens of those rows side by side, where the CPU has a matrix unit for them.
pub(super) fn tiles(isa: Isa, rows: usize, inputs: usize) -> usize {
    if isa.tiles() { blocks(rows / LANES, inputs) } else { 0 }
}

impl Cpu {
    /// [`Backend::linear`](crate::backend::Backend::linear).
    pub(super) fn multiply(&mut self, x: &Rows, outputs: &mut [Output<'_, Self>]) {
        if x.rows == 0 {
            return;
        }
        let integer = outputs.iter().any(|o| {
            let graft = |g: &Graft<'_, Self>| matches!(&g.change, Change::LowRank { a, .. } | Change::Delta(a) | Change::Replace(a) if a.integer());
            o.weight.integer() || o.grafts.iter().any(graft)
        });
        let mut places: Vec<_> = outputs.iter().map(|output| vec![0; output.grafts.len()]).collect();
        let steps = first_steps(x, outputs, &mut places);
        let x8 = if integer { self.quantize(x) } else { 0 };
        let strips: usize = outputs.iter().map(|o| o.weight.rows().div_ceil(LANES)).sum();
        let width = (strips / (self.team.threads() * CHUNKS)).max(1) * LANES;
        let mut layers = Vec::with_capacity(outputs.len());
        let mut grids = Vec::with_capacity(outputs.len());
        for (output, places) in outputs.iter_mut().zip(places) {
            let Output { y, weight, bias, accumulate, grafts } = output;
            assert!(
                y.rows == x.rows && y.cols == weight.rows() && x.cols == weight.cols(),
                "linear layer [{}, {}] from rows [{}, {}] to [{}, {}]",
                weight.rows(),
                weight.cols(),
                x.rows,
                x.cols,
                y.rows,
                y.cols,
            );
            let near = self.near;
            layers.push(Layer { weight, bias: *bias, accumulate: *accumulate, grafts, places, near });
            grids.push(Grid::new(&mut y.data, y.cols, vec![0, x.rows], width));
        }
        let side_by_side = if integer { tiles(self.isa, x.rows, x.cols) } else { 0 };
        let (x8, tiles) = (self.x8.values(x8), self.tiles.values(side_by_side));
        let inputs = Inputs { x: &x.data, stride: x.cols, cols: x.cols, x8, tiles };
        let isa = self.isa;
        let mut low = self.low.slice(steps.iter().map(First::values).sum());
        let mut early = Vec::with_capacity(steps.len());
        for step in &steps {
            let (part, rest) = low.split_at_mut(step.values());
            low = rest;
            early.push(step.grid(part));
        }
        let first = |g: usize, tile: Tile<'_, f32>, scratch: &mut Scratch| {
            steps[g].compute(isa, &inputs, tile, scratch);
        };
        self.team.tiles_after((&mut early, first), &mut grids, |g, tile, early, scratch| {
            layers[g].compute(isa, &inputs, early, tile, scratch);
        });
    }

    /// Rounds the rows of `x` to 8 bits, and puts them side by side for a matrix unit; gives how many blocks that are in `x8`.
    fn quantize(&mut self, x: &Rows) -> usize {
        assert_eq!(x.cols % BLOCK, 0, "quantized weights have whole blocks of inputs");
        let count = blocks(x.rows, x.cols);
        let (isa, share) = (self.isa, self.share(x.rows));
        let out = self.x8.slice::<Activations>(count);
        let mut grid = [Grid::by_rows(out, x.cols / BLOCK, share)];
        self.team.tiles(&mut grid, |_, mut tile, _| {
            for t in tile.rows.clone() {
                isa.run(Quantize { x: x.row(t), out: tile.row(t) });
            }
        });
        let (x8, width) = (self.x8.values::<Activations>(count), x.cols / BLOCK);
        let out = self.tiles.slice::<ActivationTile>(tiles(isa, x.rows, x.cols));
        if !out.is_empty() {
            let mut grid = [Grid::by_rows(out, width, 1)];
            self.team.tiles(&mut grid, |_, mut tile, _| {
                for i in tile.rows.clone() {
                    isa.run(SideBySide { x: &x8[i * LANES * width..][..LANES * width], out: tile.row(i) });
                }
            });
        }
        count
    }
}

/// What a graft computes before the outputs.
enum First<'a> {
    /// Of a low-rank change or bottleneck; or rows that take the place of outputs.
    Inward(Inward<'a>),
    /// Of a Kronecker product.
    Product(Product<'a>),
}

impl First<'_> {
    /// How many f32 they take.
    fn values(&self) -> usize {
        match self {
            Self::Inward(inward) => inward.values(),
            Self::Product(product) => product.rows.len() * product.stride(),
        }
    }

    /// The tiles of its values.
    fn grid<'a>(&self, values: &'a mut [f32]) -> Grid<'a, f32> {
        match self {
            Self::Inward(inward) => inward.grid(values),
            Self::Product(product) => product.grid(values),
        }
    }

    /// Computes one of its tiles.
    fn compute(&self, isa: Isa, x: &Inputs<'_>, tile: Tile<'_, f32>, scratch: &mut Scratch) {
        match self {
            Self::Inward(inward) => inward.compute(isa, x, tile, scratch),
            Self::Product(product) => product.compute(isa, x, tile, scratch),
        }
    }
}

/// What a linear layer's grafts compute before the outputs. Puts which of these a graft has into `places`.
fn first_steps<'a>(x: &Rows, outputs: &[Output<'a, Cpu>], places: &mut [Vec<usize>]) -> Vec<First<'a>> {
    let mut all = Vec::new();
    for (output, places) in outputs.iter().zip(places) {
        for (graft, place) in output.grafts.iter().zip(places) {
            let rows = graft.rows.clone();
            let inward = match graft.change {
                Change::LowRank { a, b, inner, outer, .. } => {
                    let fits = |by: Option<&Scale>, len| {
                        by.is_none_or(|by| by.by.len() == len && by.shift.is_none())
                    };
                    let inward = Inward {
                        rows,
                        scale: graft.scale,
                        matrix: a,
                        between: Between::Scaled(inner.map(|inner| &inner.by[..])),
                        rounded: b.integer(),
                    };
                    assert!(
                        a.cols() >= x.cols
                            && b.cols() == inward.width()
                            && b.rows() >= output.weight.rows()
                            && fits(inner, a.rows())
                            && fits(outer, output.weight.rows()),
                        "shapes of a low-rank change"
                    );
                    inward
                }
                Change::Bottleneck(bottleneck) => {
                    bottleneck.check(x.cols, output.weight.rows());
                    bottleneck.inward(rows, graft.scale)
                }
                Change::Rows { weight, outputs } => {
                    assert!(
                        weight.cols() == x.cols && weight.rows() == outputs.len(),
                        "shapes of replaced rows"
                    );
                    assert!(!weight.integer(), "replaced rows are in a float format");
                    Inward {
                        rows,
                        scale: 1.0,
                        matrix: weight,
                        between: Between::Scaled(None),
                        rounded: false,
                    }
                }
                Change::Kronecker { left, right, order } => {
                    let (outputs, c) = (output.weight.rows(), x.cols / right.cols());
                    let shape = (outputs / right.rows(), c);
                    assert!(
                        c * right.cols() == x.cols
                            && shape.0 * right.rows() == outputs
                            && shape.0 * c == left.len()
                            && [0, outputs].contains(&order.len())
                            && !right.integer(),
                        "shapes and formats of a Kronecker product"
                    );
                    *place = all.len();
                    all.push(First::Product(Product { left, right, shape, rows, scale: graft.scale }));
                    continue;
                }
                Change::Generated(matrix) => {
                    assert_eq!(matrix.shape(), (output.weight.rows(), x.cols), "shape of a generated matrix");
                    continue;
                }
                _ => continue,
            };
            *place = all.len();
            all.push(First::Inward(inward));
        }
    }
    all
}

/// What stands between the two matrices of a graft, for some rows.
pub(super) struct Inward<'a> {
    pub rows: Range<usize>,
    pub scale: f32,
    /// `A`.
    pub matrix: &'a Matrix,
    pub between: Between<'a>,
    /// Whether the second matrix wants it in 8 bits.
    pub rounded: bool,
}

/// What becomes of `A x`.
#[derive(Clone, Copy)]
pub(super) enum Between<'a> {
    /// `scale inner * A x`.
    Scaled(Option<&'a [f32]>),
    /// `scale f(A x + a)`; `a` may be empty.
    Act(&'a [f32], Activation),
}

/// The f32 that a block of 8-bit activations takes.
const ROUNDED: usize = size_of::<Activations>() / size_of::<f32>();
const _: () = assert!(ROUNDED * size_of::<f32>() == size_of::<Activations>());

/// Bytes of weights from which on another tile is worth its hand-over.
const SHARE: usize = 48 << 10;

impl Inward<'_> {
    /// Columns of the second matrix: as many as there are values, rounded up to whole blocks if those are rounded.
    fn width(&self) -> usize {
        let rank = self.matrix.rows();
        if self.rounded { rank.next_multiple_of(BLOCK) } else { rank }
    }

    /// The f32 that a row of them takes.
    fn stride(&self) -> usize {
        if self.rounded { self.width() / BLOCK * ROUNDED } else { self.width() }
    }

    /// How many f32 they take.
    fn values(&self) -> usize {
        self.rows.len() * self.stride()
    }

    /// Strips of `A` whose rows are written together, and the f32 that those take.
    fn unit(&self) -> (usize, usize) {
        if self.rounded { (BLOCK / LANES, ROUNDED) } else { (1, LANES) }
    }

    /// The tiles of its values `[rows, stride]`.
    pub(super) fn grid<'a>(&self, values: &'a mut [f32]) -> Grid<'a, f32> {
        // Decode rows are few and a chunk is cheap; prompts are cut so that all threads have some.
        let cuts = (0..self.rows.len()).step_by(PROJECT_ROWS).chain([self.rows.len()]).collect();
        let (strips, unit) = self.unit();
        let units = (SHARE / (strips * self.matrix.strip_bytes())).max(1);
        Grid::new(values, self.stride(), cuts, units * unit)
    }

    /// Computes one of its tiles.
    pub(super) fn compute(&self, isa: Isa, x: &Inputs<'_>, mut tile: Tile<'_, f32>, scratch: &mut Scratch) {
        let rows = self.rows.start + tile.rows.start..self.rows.start + tile.rows.end;
        let (height, start) = (rows.len(), tile.cols.start);
        let (strips, unit) = self.unit();
        let end = self.matrix.rows().div_ceil(LANES);
        for at in tile.cols.clone().step_by(unit) {
            let first = at / unit * strips;
            let strips = first..end.min(first + strips);
            let lanes = scratch.lanes.slice::<Lane>(strips.len() * height);
            let out = Lanes::set(lanes, height);
            self.matrix.multiply(isa, strips.clone(), x, rows.clone(), true, out);
            for (i, t) in tile.rows.clone().enumerate() {
                let y = &mut tile.row(t)[at - start..];
                if self.rounded {
                    let mut values = [[0.0; LANES]; BLOCK / LANES];
                    for ((n, strip), values) in strips.clone().enumerate().zip(&mut values) {
                        self.finish(isa, strip, &lanes[n * height + i], values);
                    }
                    let out = bytemuck::cast_slice_mut(&mut y[..ROUNDED]);
                    isa.run(Quantize { x: values.as_flattened(), out });
                } else {
                    let len = y.len().min(LANES);
                    self.finish(isa, first, &lanes[i], &mut y[..len]);
                }
            }
        }
    }

    /// What becomes of the products of a strip: as many values as `y` has room for.
    fn finish(&self, isa: Isa, strip: usize, x: &Lane, y: &mut [f32]) {
        match self.between {
            Between::Scaled(None) => y.iter_mut().zip(x).for_each(|(y, x)| *y = x * self.scale),
            Between::Scaled(Some(inner)) => {
                let by = slice(inner, strip);
                y.iter_mut().zip(x).zip(by).for_each(|((y, x), by)| *y = x * (by * self.scale));
            }
            Between::Act(bias, act) => {
                let bias = if bias.is_empty() { bias } else { slice(bias, strip) };
                isa.run(Inner { x, bias, act, scale: self.scale, y });
            }
        }
    }
}

/// One output of a linear layer, without the rows it goes to.
struct Layer<'a> {
    weight: &'a Matrix,
    bias: Option<&'a Vec<f32>>,
    accumulate: bool,
    grafts: &'a [Graft<'a, Cpu>],
    /// Which [`First`] each graft has.
    places: Vec<usize>,
    /// See [`near`](super::near).
    near: usize,
}

impl Layer<'_> {
    /// Computes the tile's strips for its rows, as many strips at a time as their outputs stay close.
    fn compute(
        &self,
        isa: Isa,
        x: &Inputs<'_>,
        early: &Early<'_, f32>,
        mut tile: Tile<'_, f32>,
        scratch: &mut Scratch,
    ) {
        let rows = tile.rows.clone();
        let height = rows.len().min(if isa.tiles() { TILES * LANES } else { CLOSE_ROWS });
        let kept = kept(self.near);
        // Strips at a time. A single row meets them once.
        let near = if height > 1 { self.near / self.weight.strip_bytes() } else { CLOSE };
        let close = if rows.len() > height { kept } else { CLOSE };
        let many = (close / height).min(near).max(2);
        let (first, end) = (tile.cols.start / LANES, tile.cols.end.div_ceil(LANES));
        // Alike, for a last few would want all activations for themselves.
        let parts = (end - first).div_ceil(many).max(1);
        let many = (end - first).div_ceil(parts).max(1);
        let (lanes, change) = scratch.lanes.slice::<Lane>(2 * kept).split_at_mut(kept);
        for first in (first..end).step_by(many) {
            let strips = first..end.min(first + many);
            for graft in self.grafts {
                match &graft.change {
                    Change::LowRank { b, outer, .. } => {
                        b.ask(isa, strips.clone());
                        if let Some(outer) = outer {
                            let end = outer.by.len().min(strips.end * LANES);
                            ask(isa, bytemuck::cast_slice(&outer.by[strips.start * LANES..end]));
                        }
                    }
                    Change::Bottleneck(bottleneck) => bottleneck.up.ask(isa, strips.clone()),
                    _ => {}
                }
            }
            for top in rows.clone().step_by(height) {
                let part = Part { strips: strips.clone(), rows: top..rows.end.min(top + height) };
                let (lanes, fresh) = (&mut lanes[..strips.len() * part.rows.len()], top == rows.start);
                // Rows with another weight have no use for this one.
                if !self.grafts.iter().any(|graft| replaces(graft, &part.rows)) {
                    let out = Lanes::set(lanes, part.rows.len());
                    self.weight.multiply(isa, strips.clone(), x, part.rows.clone(), fresh, out);
                }
                self.finish(isa, (x, early), (&part, fresh), (lanes, change));
                part.write(&mut tile, lanes, self.accumulate);
            }
        }
    }

    /// Adds the bias and the grafts to the outputs `lanes`; `change` is room for as many.
    fn finish(
        &self,
        isa: Isa,
        (x, early): (&Inputs<'_>, &Early<'_, f32>),
        (part, fresh): (&Part, bool),
        (lanes, change): (&mut [Lane], &mut [Lane]),
    ) {
        if let Some(bias) = self.bias {
            for (strip, lanes) in part.strips.clone().zip(lanes.chunks_exact_mut(part.rows.len())) {
                lanes.iter_mut().for_each(|lane| add(lane, slice(bias, strip), 1.0));
            }
        }
        for (graft, &place) in self.grafts.iter().zip(&self.places) {
            add_graft(isa, graft, (x, early, place), (part, fresh), (lanes, change));
        }
    }
}

/// Some strips' outputs for some rows, as `[strips][rows]`.
struct Part {
    strips: Range<usize>,
    rows: Range<usize>,
}

impl Part {
    /// Writes outputs to their place in the tile: all of a row before the next, for rows lie far apart.
    fn write(&self, tile: &mut Tile<'_, f32>, lanes: &[Lane], accumulate: bool) {
        let at = self.strips.start * LANES - tile.cols.start;
        for (i, row) in self.rows.clone().enumerate() {
            let lanes = lanes[i..].iter().step_by(self.rows.len());
            for (y, lane) in tile.row(row)[at..].chunks_mut(LANES).zip(lanes) {
                match <&mut Lane>::try_from(&mut *y) {
                    // A copy of known length takes no call.
                    Ok(y) if !accumulate => *y = *lane,
                    _ if accumulate => add(y, lane, 1.0),
                    _ => y.copy_from_slice(&lane[..y.len()]),
                }
            }
        }
    }
}

/// Whether a graft takes nothing over from the layer's own weight, for any of the rows.
fn replaces(graft: &Graft<'_, Cpu>, rows: &Range<usize>) -> bool {
    matches!(graft.change, Change::Replace(_)) && graft.rows.start <= rows.start && rows.end <= graft.rows.end
}

/// Adds a graft's change to the outputs `lanes`, with what `early` has for it at `place`; `change` is room for as many outputs.
fn add_graft(
    isa: Isa,
    graft: &Graft<'_, Cpu>,
    (x, early, place): (&Inputs<'_>, &Early<'_, f32>, usize),
    (part, fresh): (&Part, bool),
    (lanes, change): (&mut [Lane], &mut [Lane]),
) {
    let rows = graft.rows.start.max(part.rows.start)..graft.rows.end.min(part.rows.end);
    if rows.is_empty() {
        return;
    }
    let (height, top) = (part.rows.len(), rows.start - part.rows.start);
    let own = rows.start - graft.rows.start..rows.end - graft.rows.start;
    let change = &mut change[..part.strips.len() * rows.len()];
    let low = match &graft.change {
        Change::LowRank { .. } | Change::Bottleneck(_) | Change::Rows { .. } | Change::Kronecker { .. } => {
            early.rows(place)
        }
        _ => &[],
    };
    match &graft.change {
        &Change::LowRank { b, .. } | Change::Bottleneck(Bottleneck { up: b, .. }) => {
            let (join, by) = match graft.change {
                Change::LowRank { outer: Some(outer), .. } => {
                    (Join::Scaled, &outer.by[part.strips.start * LANES..])
                }
                _ => (Join::Add, [].as_slice()),
            };
            let (x, x8): (&[f32], &[Activations]) =
                if b.integer() { (&[], bytemuck::cast_slice(low)) } else { (low, &[]) };
            let x =
                Inputs { x, stride: if b.integer() { 0 } else { b.cols() }, cols: b.cols(), x8, tiles: &[] };
            let out = Lanes { lanes: &mut lanes[top..], stride: height, join, by };
            b.multiply(isa, part.strips.clone(), &x, own.clone(), fresh, out);
        }
        Change::Bias(_) | Change::Scale(_) | Change::Rows { .. } => {}
        Change::Delta(_)
        | Change::Generated(_)
        | Change::Replace(_)
        | Change::Sparse { .. }
        | Change::Kronecker { .. } => {
            Piece { isa, graft, x, low, strips: part.strips.clone(), rows, fresh }.compute(change);
        }
    }
    let no_bias = matches!(
        graft.change,
        Change::LowRank { bias: None, .. } | Change::Bottleneck(Bottleneck { up_bias: None, .. })
    );
    if no_bias {
        return;
    }
    let changes = change.chunks_exact(own.len());
    for ((strip, lanes), changes) in part.strips.clone().zip(lanes.chunks_exact_mut(height)).zip(changes) {
        for ((t, lane), change) in own.clone().zip(&mut lanes[top..]).zip(changes) {
            match graft.change {
                Change::Bias(v)
                | Change::LowRank { bias: Some(v), .. }
                | Change::Bottleneck(Bottleneck { up_bias: Some(v), .. }) => {
                    add(lane, slice(v, strip), graft.scale)
                }
                Change::LowRank { bias: None, .. } | Change::Bottleneck(_) => {}
                Change::Scale(by) => by.apply(lane, strip, graft.scale),
                Change::Rows { outputs, .. } => put(lane, strip, outputs, &low[t * outputs.len()..]),
                Change::Replace(_) => *lane = *change,
                Change::Delta(_)
                | Change::Generated(_)
                | Change::Sparse { .. }
                | Change::Kronecker { .. } => add(lane, change, 1.0),
            }
        }
    }
}

/// The values of a vector that belong to a strip.
pub(super) fn slice(v: &[f32], strip: usize) -> &[f32] {
    &v[strip * LANES..v.len().min((strip + 1) * LANES)]
}

/// `lane += scale v`.
pub(super) fn add(lane: &mut [f32], v: &[f32], scale: f32) {
    for (y, v) in lane.iter_mut().zip(v) {
        *y += scale * v;
    }
}
