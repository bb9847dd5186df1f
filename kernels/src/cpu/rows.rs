//! Operations on one row at a time: norm, rotation, gate, sums.

use super::isa::{Kernel, LANES, Simd};
use super::math::{activate, load_part, store_part};
use crate::backend::{Activation, RopeLayout};

/// `y[i] = x[i] w[i] / sqrt(mean x^2 + eps)`. The sum of squares is folded over lanes `i mod 16`.
pub struct RmsNorm<'a> {
    /// The row.
    pub x: &'a [f32],
    /// Its weights.
    pub weight: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
    /// The result.
    pub y: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut squares = s.splat(0.0);
        for x in self.x.chunks(LANES) {
            let x = load_part(s, x);
            squares = s.fma(x, x, squares);
        }
        let mean = s.sum(squares) / self.x.len() as f32;
        let scale = s.splat(1.0 / (mean + self.eps).sqrt());
        let parts = self.y.chunks_mut(LANES).zip(self.x.chunks(LANES)).zip(self.weight.chunks(LANES));
        for ((y, x), w) in parts {
            store_part(s, s.mul(s.mul(load_part(s, x), scale), load_part(s, w)), y);
        }
    }
}

/// Rotates the pairs of every head of one row.
pub struct Rotate<'a> {
    /// The row: heads of `head_dim` values.
    pub x: &'a mut [f32],
    /// Width of a head.
    pub head_dim: usize,
    /// Cosines of the row's position, one per pair.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
    /// Where the members of a pair lie.
    pub layout: RopeLayout,
}

impl Kernel for Rotate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let half = self.cos.len();
        for head in self.x.chunks_exact_mut(self.head_dim) {
            let rotated = &mut head[..2 * half];
            let angles = self.cos.iter().zip(self.sin);
            match self.layout {
                RopeLayout::Halves => {
                    let (a, b) = rotated.split_at_mut(half);
                    for ((a, b), (cos, sin)) in a.iter_mut().zip(b).zip(angles) {
                        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                    }
                }
                RopeLayout::Interleaved => {
                    for ([a, b], (cos, sin)) in rotated.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                    }
                }
            }
        }
    }
}

/// `x[i] += scale by[i] x[i]`.
pub struct Rescale<'a> {
    /// The row.
    pub x: &'a mut [f32],
    /// Factors.
    pub by: &'a [f32],
    /// Their weight.
    pub scale: f32,
}

impl Kernel for Rescale<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let scale = s.splat(self.scale);
        for (x, by) in self.x.chunks_mut(LANES).zip(self.by.chunks(LANES)) {
            let old = load_part(s, x);
            store_part(s, s.fma(s.mul(scale, load_part(s, by)), old, old), x);
        }
    }
}

/// `y[i] = act(y[i]) x[i]`.
pub struct Gate<'a> {
    /// Goes through the activation; overwritten.
    pub y: &'a mut [f32],
    /// The other factor.
    pub x: &'a [f32],
    /// The activation.
    pub act: Activation,
}

impl Kernel for Gate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (y, x) in self.y.chunks_mut(LANES).zip(self.x.chunks(LANES)) {
            let act = activate(s, self.act, load_part(s, y));
            store_part(s, s.mul(act, load_part(s, x)), y);
        }
    }
}

/// `y[i] += scale x[i]`.
pub struct Add<'a> {
    /// Overwritten.
    pub y: &'a mut [f32],
    /// What is added.
    pub x: &'a [f32],
    /// Its weight.
    pub scale: f32,
}

impl Kernel for Add<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let scale = s.splat(self.scale);
        for (y, x) in self.y.chunks_mut(LANES).zip(self.x.chunks(LANES)) {
            store_part(s, s.add(load_part(s, y), s.mul(scale, load_part(s, x))), y);
        }
    }
}

/// `y[r] = scale act(x[r] + bias[r])`.
pub struct Inner<'a> {
    /// The values of a strip.
    pub x: &'a [f32; LANES],
    /// One for each output, or none.
    pub bias: &'a [f32],
    /// The activation.
    pub act: Activation,
    /// Of what comes of it.
    pub scale: f32,
    /// The result: as many as there are outputs.
    pub y: &'a mut [f32],
}

impl Kernel for Inner<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let x = s.add(s.load(self.x), load_part(s, self.bias));
        store_part(s, s.mul(activate(s, self.act, x), s.splat(self.scale)), self.y);
    }
}
