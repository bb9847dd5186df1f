//! Attention over paged keys and values, with an online softmax (Milakov and Gimelshein, 2018).
//!
//! A query folds the pages of its sequence in order. For each page, with `s[p] = sum_d q[d] k[p,d]` summed over
//! `d` in order and `-inf` beyond the query's position:
//!
//! ```text
//! m' = max(m, max s);  c = exp(m - m');  e[p] = exp(s[p] - m')
//! l = fma(l, c, sum e);  o[d] = o[d] c, then fma(e[p], v[p,d], o[d]) over p in order
//! ```
//!
//! and in the end `y[d] = o[d] (1 / l)`. The pages start at absolute positions, so a query's arithmetic does not
//! depend on how its sequence was cut into steps.

use bytemuck::Pod;

use super::isa::{Kernel, LANES, Simd};
use super::math::exp;
use super::scratch::{Need, Scratch};
use super::team::Tile;
use crate::backend::{CacheShape, PAGE};
use crate::tensor::{Error, zeros};

/// Vectors of scores in a page.
const PARTS: usize = PAGE / LANES;

/// Queries folded side by side: their scores and outputs fill the registers.
const SIDE: usize = 3;

/// The largest score so far and the sum of weights of a query: `m` and `l`.
type Stats = [f32; 2];

/// Floats of `work` that a job of `queries` queries takes: themselves, their outputs, keys and values of a page.
const fn floats(queries: usize, head_dim: usize) -> usize {
    let padded = head_dim.next_multiple_of(LANES);
    queries.saturating_mul(head_dim.saturating_add(padded)).saturating_add(padded.saturating_mul(2 * PAGE))
}

/// Scratch that a job of up to `queries` queries takes.
pub(super) fn scratch(queries: usize, head_dim: usize) -> Need {
    Need {
        lanes: queries.saturating_mul(size_of::<Stats>()),
        work: floats(queries, head_dim).saturating_mul(size_of::<f32>()),
    }
}

/// What keys and values are stored as.
pub trait Element: Pod + Send + Sync {
    /// Rounds to nearest, ties to even.
    fn from_f32(x: f32) -> Self;
    /// Sixteen elements.
    fn load<S: Simd>(s: S, x: &[Self; LANES]) -> S::F;
}

impl Element for f32 {
    fn from_f32(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[f32; LANES]) -> S::F {
        s.load(x)
    }
}

/// The bits of a half.
impl Element for u16 {
    fn from_f32(x: f32) -> Self {
        half::f16::from_f32(x).to_bits()
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[u16; LANES]) -> S::F {
        s.load_f16(x)
    }
}

/// The pages of a cache. In a page each layer and head has its keys `[head_dim, PAGE]`, positions side by side,
/// then its values `[PAGE, head_dim]`; `head_dim` is padded to whole vectors.
pub struct Pages<E> {
    shape: CacheShape,
    pages: Vec<Vec<E>>,
}

impl<E: Element> Pages<E> {
    /// A cache without pages.
    pub fn new(shape: CacheShape) -> Self {
        Self { shape, pages: Vec::new() }
    }

    /// The shape.
    pub fn shape(&self) -> CacheShape {
        self.shape
    }

    /// Elements of the keys of one head, and of its values.
    fn half(&self) -> usize {
        self.shape.padded_head_dim() * PAGE
    }

    /// Gives it pages `0..pages`.
    pub fn grow(&mut self, pages: usize) -> Result<(), Error> {
        let elements = 2 * self.shape.layers * self.shape.kv_heads * self.half();
        let more = pages.saturating_sub(self.pages.len());
        let bytes = more.saturating_mul(size_of::<Vec<E>>());
        self.pages.try_reserve(more).map_err(|_| Error::OutOfMemory { bytes })?;
        while self.pages.len() < pages {
            self.pages.push(zeros(elements)?);
        }
        Ok(())
    }

    /// Keys and values of a head.
    fn head(&self, page: u32, layer: usize, head: usize) -> (&[E], &[E]) {
        let at = 2 * (layer * self.shape.kv_heads + head) * self.half();
        self.pages[page as usize][at..][..2 * self.half()].split_at(self.half())
    }

    /// Stores one position's key and value rows `[kv_heads * head_dim]`.
    pub fn store(&mut self, (page, slot): (u32, usize), layer: usize, k: &[f32], v: &[f32]) {
        let (half, dim, padded) = (self.half(), self.shape.head_dim, self.shape.padded_head_dim());
        let at = 2 * layer * self.shape.kv_heads * half;
        let heads = self.pages[page as usize][at..].chunks_exact_mut(2 * half);
        for ((head, k), v) in heads.zip(k.chunks_exact(dim)).zip(v.chunks_exact(dim)) {
            let (keys, values) = head.split_at_mut(half);
            for (keys, &k) in keys.chunks_exact_mut(PAGE).zip(k) {
                keys[slot] = E::from_f32(k);
            }
            for (value, &v) in values[slot * padded..].iter_mut().zip(v) {
                *value = E::from_f32(v);
            }
        }
    }
}

/// Attention of some rows of one sequence and some query heads of one key-value head.
pub struct Attend<'a, E> {
    /// The cache.
    pub cache: &'a Pages<E>,
    /// The layer.
    pub layer: usize,
    /// The sequence's pages.
    pub pages: &'a [u32],
    /// Position of the first row of `y`.
    pub position: usize,
    /// Query rows `[rows, heads * head_dim]`.
    pub q: &'a [f32],
    /// Key-value head.
    pub kv_head: usize,
    /// Scores are multiplied by this.
    pub scale: f32,
    /// The rows and columns (heads) to compute.
    pub y: Tile<'a, f32>,
    /// Memory for the state.
    pub scratch: &'a mut Scratch,
}

/// The state of the queries of one job.
struct State<'a> {
    head_dim: usize,
    padded: usize,
    /// Query heads per row.
    heads: usize,
    /// Position of the first row.
    position: usize,
    /// `[queries, head_dim]`, times the scale.
    q: &'a [f32],
    /// `[queries, padded]`: `o`.
    out: &'a mut [f32],
    /// `[queries]`.
    stats: &'a mut [Stats],
}

impl<E: Element> Kernel for Attend<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let shape = self.cache.shape;
        let (dim, padded) = (shape.head_dim, shape.padded_head_dim());
        let (rows, cols) = (self.y.rows.clone(), self.y.cols.clone());
        let heads = cols.len() / dim;
        let queries = rows.len() * heads;
        let stride = self.q.len() / rows.end.max(1);

        let half = padded * PAGE;
        let work = self.scratch.work.slice::<f32>(floats(queries, dim));
        let stats = self.scratch.lanes.slice::<Stats>(queries);
        let (q, rest) = work.split_at_mut(queries * dim);
        let (out, page) = rest.split_at_mut(queries * padded);
        for (row, q) in rows.clone().zip(q.chunks_exact_mut(cols.len())) {
            for (q, x) in q.iter_mut().zip(&self.q[row * stride..][cols.clone()]) {
                *q = x * self.scale;
            }
        }
        out.fill(0.0);
        stats.fill([f32::NEG_INFINITY, 0.0]);
        let mut state = State { head_dim: dim, padded, heads, position: self.position, q, out, stats };

        let end = self.position + rows.len();
        for start in (0..end).step_by(PAGE) {
            let (k, v) = self.cache.head(self.pages[start / PAGE], self.layer, self.kv_head);
            // Rows before the page's first position do not see it.
            let first = start.saturating_sub(self.position) * heads;
            if queries - first > SIDE {
                let (keys, values) = page.split_at_mut(half);
                widen(s, k, keys);
                widen(s, v, values);
                state.fold_page::<S, f32>(s, keys, values, start, first);
            } else {
                state.fold_page(s, k, v, start, first);
            }
        }

        for (i, row) in rows.enumerate() {
            for (h, y) in self.y.row(row).chunks_exact_mut(dim).enumerate() {
                let query = i * heads + h;
                let inverse = 1.0 / state.stats[query][1];
                for (y, o) in y.iter_mut().zip(&state.out[query * padded..]) {
                    *y = o * inverse;
                }
            }
        }
    }
}

#[inline(always)]
fn widen<S: Simd, E: Element>(s: S, x: &[E], out: &mut [f32]) {
    for (x, out) in x.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        s.store(E::load(s, x), out);
    }
}

impl State<'_> {
    /// Folds one page into the queries from `first` on.
    #[inline(always)]
    fn fold_page<S: Simd, E: Element>(&mut self, s: S, k: &[E], v: &[E], start: usize, mut first: usize) {
        let queries = self.stats.len();
        while first + SIDE <= queries {
            self.fold::<S, E, SIDE>(s, k, v, start, first);
            first += SIDE;
        }
        while first < queries {
            self.fold::<S, E, 1>(s, k, v, start, first);
            first += 1;
        }
    }

    /// Folds one page into `C` queries.
    #[inline(always)]
    fn fold<S: Simd, E: Element, const C: usize>(
        &mut self,
        s: S,
        k: &[E],
        v: &[E],
        start: usize,
        first: usize,
    ) {
        let dim = self.head_dim;
        let q: [&[f32]; C] = std::array::from_fn(|c| &self.q[(first + c) * dim..][..dim]);
        let mut scores = [[s.splat(0.0); PARTS]; C];
        for (d, k) in k.as_chunks::<PAGE>().0[..dim].iter().enumerate() {
            for (part, k) in k.as_chunks::<LANES>().0.iter().enumerate() {
                let k = E::load(s, k);
                for c in 0..C {
                    scores[c][part] = s.fma(s.splat(q[c][d]), k, scores[c][part]);
                }
            }
        }

        let mut weights = [[0.0; PAGE]; C];
        let mut decay = [0.0; C];
        let mut seen = 0;
        for c in 0..C {
            // Positions of this page that the query sees: at least one.
            let visible = (self.position + (first + c) / self.heads - start + 1).min(PAGE);
            seen = seen.max(visible);
            let w = weights[c].as_chunks_mut::<LANES>().0;
            if visible < PAGE {
                for part in 0..PARTS {
                    s.store(scores[c][part], &mut w[part]);
                }
                w.as_flattened_mut()[visible..].fill(f32::NEG_INFINITY);
                for part in 0..PARTS {
                    scores[c][part] = s.load(&w[part]);
                }
            }
            let [max, sum] = &mut self.stats[first + c];
            let mut largest = scores[c][0];
            for part in 1..PARTS {
                largest = s.max(largest, scores[c][part]);
            }
            let largest = s.largest(largest);
            let new_max = if largest > *max { largest } else { *max };
            for part in 0..PARTS {
                let e = exp(s, s.sub(scores[c][part], s.splat(new_max)));
                s.store(e, &mut w[part]);
            }
            w.as_flattened_mut()[visible..].fill(0.0);
            let mut total = s.load(&w[0]);
            for w in &w[1..] {
                total = s.add(total, s.load(w));
            }
            let total = s.sum(total);
            let mut one = [0.0; LANES];
            s.store(exp(s, s.splat(*max - new_max)), &mut one);
            decay[c] = one[0];
            *sum = sum.mul_add(decay[c], total);
            *max = new_max;
        }

        let mut at = 0;
        while at + 2 * LANES <= self.padded {
            self.add_values::<S, E, C, 2>(s, v, (first, at, seen), &weights, &decay);
            at += 2 * LANES;
        }
        if at < self.padded {
            self.add_values::<S, E, C, 1>(s, v, (first, at, seen), &weights, &decay);
        }
    }

    /// `o = o c + sum_p e[p] v[p]` for `16 W` dimensions from `at`.
    #[inline(always)]
    fn add_values<S: Simd, E: Element, const C: usize, const W: usize>(
        &mut self,
        s: S,
        v: &[E],
        (first, at, seen): (usize, usize, usize),
        weights: &[[f32; PAGE]; C],
        decay: &[f32; C],
    ) {
        let place = |c: usize, w: usize| (first + c) * self.padded + at + w * LANES;
        let mut out = [[s.splat(0.0); W]; C];
        for c in 0..C {
            for w in 0..W {
                if let Some(old) = self.out[place(c, w)..].first_chunk() {
                    out[c][w] = s.mul(s.load(old), s.splat(decay[c]));
                }
            }
        }
        for (p, v) in v.chunks_exact(self.padded).take(seen).enumerate() {
            let v = &v[at..at + W * LANES].as_chunks::<LANES>().0[..W];
            for w in 0..W {
                let v = E::load(s, &v[w]);
                for c in 0..C {
                    out[c][w] = s.fma(s.splat(weights[c][p]), v, out[c][w]);
                }
            }
        }
        for c in 0..C {
            for w in 0..W {
                let at = place(c, w);
                if let Some(o) = self.out[at..].first_chunk_mut() {
                    s.store(out[c][w], o);
                }
            }
        }
    }
}
