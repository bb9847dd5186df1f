//! Attention over paged keys and values, with an online softmax (Milakov and Gimelshein, 2018).
//!
//! A query folds the pages of its sequence in order. For each page, with `s[p] = sum_d q[d] k[p,d]`, summed in the order of
//! what is stored ([`Stored::scores`]: floats over `d` in order), and `-inf` beyond the query's position:
//!
//! ```text
//! m' = max(m, max s);  c = exp(m - m');  e[p] = exp(s[p] - m')
//! l = fma(l, c, sum e);  o[d] = o[d] c, then fma(e[p], v[p,d], o[d]) over p in order
//! ```
//!
//! and in the end `y[d] = o[d] (1 / l)`. The pages start at absolute positions, so a query's arithmetic does not
//! depend on how its sequence was cut into steps.

use super::isa::{BLOCK, Kernel, LANES, Simd};
use super::math::exp;
use super::pages::{Head, PARTS, Pages, Place, Stored};
use super::scratch::{Need, Scratch};
use super::team::Tile;
use crate::backend::PAGE;

/// Queries folded side by side: their scores and outputs fill the registers.
const SIDE: usize = 3;

/// The largest score so far and the sum of weights of a query: `m` and `l`.
type Stats = [f32; 2];

/// Floats of `work` that a job of `queries` queries takes: themselves, their outputs, keys and values of a page.
const fn floats(queries: usize, head_dim: usize) -> usize {
    let padded = head_dim.next_multiple_of(BLOCK);
    queries.saturating_add(PAGE).saturating_mul(padded.saturating_mul(2))
}

/// Scratch that a job of up to `queries` queries takes.
pub(super) fn scratch(queries: usize, head_dim: usize) -> Need {
    Need {
        lanes: queries.saturating_mul(size_of::<Stats>()),
        work: floats(queries, head_dim).saturating_mul(size_of::<f32>()),
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
struct State<'a, Q> {
    padded: usize,
    /// Query heads per row.
    heads: usize,
    /// Position of the first row.
    position: usize,
    /// `[queries, query_len]`, times the scale.
    q: &'a [Q],
    query_len: usize,
    /// `[queries, padded]`: `o`.
    out: &'a mut [f32],
    /// `[queries]`.
    stats: &'a mut [Stats],
}

impl<E: Stored> Kernel for Attend<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let shape = self.cache.shape();
        let (dim, padded) = (shape.head_dim, shape.padded_head_dim());
        let (rows, cols) = (self.y.rows.clone(), self.y.cols.clone());
        let heads = cols.len() / dim;
        let queries = rows.len() * heads;
        let stride = self.q.len() / rows.end.max(1);

        let work = self.scratch.work.slice::<f32>(floats(queries, dim));
        let stats = self.scratch.lanes.slice::<Stats>(queries);
        let (q, rest) = work.split_at_mut(queries * padded);
        let (out, page) = rest.split_at_mut(queries * padded);
        out.fill(0.0);
        for (row, out) in rows.clone().zip(out.chunks_exact_mut(heads * padded)) {
            let heads = self.q[row * stride..][cols.clone()].chunks_exact(dim);
            for (out, q) in out.chunks_exact_mut(padded).zip(heads) {
                for (out, q) in out.iter_mut().zip(q) {
                    *out = q * self.scale;
                }
            }
        }
        let query_len = E::query_len(dim);
        let words = queries * query_len * size_of::<E::Query>() / size_of::<f32>();
        let q: &mut [E::Query] = bytemuck::cast_slice_mut(&mut q[..words]);
        for (q, out) in q.chunks_exact_mut(query_len).zip(out.chunks_exact(padded)) {
            E::query(s, out, q);
        }
        out.fill(0.0);
        stats.fill([f32::NEG_INFINITY, 0.0]);
        let mut state = State { padded, heads, position: self.position, q, query_len, out, stats };

        let end = self.position + rows.len();
        for start in (0..end).step_by(PAGE) {
            let head = self.cache.head(self.pages[start / PAGE], self.layer, self.kv_head);
            // Rows before the page's first position do not see it.
            let first = start.saturating_sub(self.position) * heads;
            if queries - first > SIDE {
                state.fold_page(s, E::widen(s, head, page), start, first);
            } else {
                state.fold_page(s, head, start, first);
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

impl<Q> State<'_, Q> {
    /// Folds one page into the queries from `first` on.
    #[inline(always)]
    fn fold_page<S: Simd, E: Stored<Query = Q>>(
        &mut self,
        s: S,
        page: Head<&[E]>,
        start: usize,
        mut first: usize,
    ) {
        let queries = self.stats.len();
        while first + SIDE <= queries {
            self.fold::<S, E, SIDE>(s, page, start, first);
            first += SIDE;
        }
        while first < queries {
            self.fold::<S, E, 1>(s, page, start, first);
            first += 1;
        }
    }

    /// Folds one page into `C` queries.
    #[inline(always)]
    fn fold<S: Simd, E: Stored<Query = Q>, const C: usize>(
        &mut self,
        s: S,
        page: Head<&[E]>,
        start: usize,
        first: usize,
    ) {
        let q = std::array::from_fn(|c| &self.q[(first + c) * self.query_len..][..self.query_len]);
        let mut scores = E::scores::<S, C>(s, page.k, q);

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
            self.add_values::<S, E, C, 2>(s, page.v, (first, at, seen), &weights, &decay);
            at += 2 * LANES;
        }
        if at < self.padded {
            self.add_values::<S, E, C, 1>(s, page.v, (first, at, seen), &weights, &decay);
        }
    }

    /// `o = o c + sum_p e[p] v[p]` for `16 W` dimensions from `at`.
    #[inline(always)]
    fn add_values<S: Simd, E: Stored, const C: usize, const W: usize>(
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
        E::add(s, v, Place { padded: self.padded, at, seen }, weights, &mut out);
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
