//! Linear layers: packed weights and the loop nest over strips and tokens.

use std::array::from_fn;
use std::ops::Range;

use super::isa::{BLOCK, GROUP, Isa, Kernel, LANES, Simd};
use super::strip::{Activations, Input, Strip};
use crate::format::{Block, Format, Visitor};
use crate::tensor::{Error, Tensor, reserved, zeros};

/// Sixteen rows of one token's outputs.
pub type Lane = [f32; LANES];

/// A weight matrix whose rows lie side by side in strips of sixteen. Takes the bytes of the original,
/// plus those of the rows missing from the last strip.
pub struct Matrix {
    rows: usize,
    cols: usize,
    bytes: usize,
    strips: Box<dyn Strips>,
}

impl Matrix {
    /// Packs `weight`.
    pub fn pack(weight: &Tensor) -> Result<Self, Error> {
        struct Pack<'a>(&'a Tensor);
        impl Visitor for Pack<'_> {
            type Out = Result<(usize, Box<dyn Strips>), Error>;
            fn visit<B: Block>(self) -> Self::Out {
                let packed = Packed::<B::Strip>::pack(self.0)?;
                Ok((size_of_val(&*packed.panels), Box::new(packed)))
            }
        }
        let (bytes, strips) = weight.format().visit(Pack(weight))?;
        Ok(Self { rows: weight.rows(), cols: weight.cols(), bytes, strips })
    }

    /// The bytes of a packed matrix `[rows, cols]`.
    pub fn bytes_for(format: Format, rows: usize, cols: usize) -> usize {
        struct Size(usize, usize);
        impl Visitor for Size {
            type Out = usize;
            fn visit<B: Block>(self) -> usize {
                Packed::<B::Strip>::bytes(self.0, self.1)
            }
        }
        format.visit(Size(rows, cols))
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether inputs are needed in 8 bits.
    pub fn integer(&self) -> bool {
        self.strips.integer()
    }

    /// `out[j][t] = W[16 s..16 s + 16, :] x[t]` for the `j`-th strip `s` of `strips` and every row `t` of `rows`.
    pub fn multiply(
        &self,
        isa: Isa,
        strips: Range<usize>,
        x: &Inputs<'_>,
        rows: Range<usize>,
        out: &mut [Lane],
    ) {
        self.strips.multiply(isa, strips, x, rows, out);
    }
}

/// The rows of activations that go into a linear layer.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// `[rows, stride]`, of which the first `cols` of each row count.
    pub x: &'a [f32],
    /// Values in a row of `x`.
    pub stride: usize,
    /// Inputs of the layer.
    pub cols: usize,
    /// `[rows, cols / 32]`, or empty if no weight wants 8 bits.
    pub x8: &'a [Activations],
}

impl<'a> Inputs<'a> {
    #[inline(always)]
    fn row(&self, t: usize) -> Input<'a> {
        let blocks = if self.x8.is_empty() { 0 } else { self.cols / BLOCK };
        Input { x: &self.x[t * self.stride..][..self.cols], x8: &self.x8[t * blocks..][..blocks] }
    }
}

/// A packed matrix of any format.
trait Strips: Send + Sync {
    fn integer(&self) -> bool;
    fn multiply(&self, isa: Isa, strips: Range<usize>, x: &Inputs<'_>, rows: Range<usize>, out: &mut [Lane]);
}

struct Packed<P: Strip> {
    /// Panels of a strip.
    length: usize,
    panels: Vec<P::Panel>,
}

impl<P: Strip> Packed<P> {
    /// Panels of a strip, and of all strips.
    fn panels(rows: usize, cols: usize) -> (usize, usize) {
        let length = cols / P::Block::LEN;
        (length, length.saturating_mul(rows.div_ceil(LANES)))
    }

    fn bytes(rows: usize, cols: usize) -> usize {
        Self::panels(rows, cols).1.saturating_mul(size_of::<P::Panel>())
    }

    fn pack(weight: &Tensor) -> Result<Self, Error> {
        let (length, count) = Self::panels(weight.rows(), weight.cols());
        let mut panels = reserved(count)?;
        let blocks: &[P::Block] = bytemuck::cast_slice(weight.bytes());
        // What stands for the rows missing from the last strip.
        let mut missing = Vec::new();
        if !weight.rows().is_multiple_of(LANES) {
            missing = zeros(length)?;
        }
        for strip in 0..weight.rows().div_ceil(LANES) {
            let rows: [&[P::Block]; LANES] = from_fn(|i| {
                blocks.get((strip * LANES + i) * length..).filter(|rest| !rest.is_empty()).unwrap_or(&missing)
            });
            let rows = rows.map(|row| &row[..length]);
            panels.extend((0..length).map(|b| P::pack(from_fn(|i| &rows[i][b]))));
        }
        Ok(Self { length, panels })
    }
}

impl<P: Strip> Strips for Packed<P> {
    fn integer(&self) -> bool {
        P::INTEGER
    }

    fn multiply(&self, isa: Isa, strips: Range<usize>, x: &Inputs<'_>, rows: Range<usize>, out: &mut [Lane]) {
        let panels = &self.panels[strips.start * self.length..strips.end * self.length];
        isa.run(Multiply::<P> { panels, length: self.length, x, rows, out });
    }
}

/// Some strips times some rows, at least one.
struct Multiply<'a, P: Strip> {
    panels: &'a [P::Panel],
    /// Panels of a strip.
    length: usize,
    x: &'a Inputs<'a>,
    rows: Range<usize>,
    out: &'a mut [Lane],
}

impl<P: Strip> Kernel for Multiply<'_, P> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let outs = self.out.chunks_exact_mut(self.rows.len());
        for (panels, out) in self.panels.chunks_exact(self.length).zip(outs) {
            let mut tiles =
                Tiles { s, panels, x: self.x, next: self.rows.start, first: self.rows.start, out };
            // As many rows of activations at a time as registers hold sums of, then those left.
            if P::tokens::<S>() >= 8 {
                tiles.multiply::<P, 8>();
            }
            if P::tokens::<S>() >= 4 {
                tiles.multiply::<P, 4>();
            }
            tiles.multiply::<P, 2>();
            tiles.multiply::<P, 1>();
        }
    }
}

/// A strip, and the rows that it is still to be multiplied with.
struct Tiles<'a, S, Q> {
    s: S,
    panels: &'a [Q],
    x: &'a Inputs<'a>,
    first: usize,
    next: usize,
    out: &'a mut [Lane],
}

impl<S: Simd, Q> Tiles<'_, S, Q> {
    /// Multiplies with `T` rows at a time while there are as many.
    #[inline(always)]
    fn multiply<P: Strip<Panel = Q>, const T: usize>(&mut self) {
        let (tiles, rest) = std::mem::take(&mut self.out).as_chunks_mut::<T>();
        for tile in tiles {
            let mut rows = [self.x.row(self.next); T];
            for (i, row) in rows.iter_mut().enumerate().skip(1) {
                *row = self.x.row(self.next + i);
            }
            let dots = P::dot(self.s, self.panels, rows, self.next == self.first);
            for (out, dot) in tile.iter_mut().zip(dots) {
                self.s.store(dot, out);
            }
            self.next += T;
        }
        self.out = rest;
    }
}

/// Rounds a row of activations to 8 bits in groups of 16: `d = max |x| / 127`, `q = round(x 127 / max |x|)`, ties to even.
pub struct Quantize<'a> {
    /// The row; whole blocks.
    pub x: &'a [f32],
    /// Its blocks.
    pub out: &'a mut [Activations],
}

impl Kernel for Quantize<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (groups, _) = self.x.as_chunks::<GROUP>();
        for (x, out) in groups.as_chunks::<2>().0.iter().zip(self.out) {
            for g in 0..2 {
                let x = s.load(&x[g]);
                let max = s.largest(s.abs(x));
                let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
                let q = code(s, x, inverse);
                out.q[g] = s.to_bytes(q);
                out.d[g] = max / 127.0;
                // Integers below 2^24: exact in f32 whatever the order.
                out.sum[g] = s.sum(q) as i32;
            }
            out.dsums = [0, 1].map(|g| out.d[g] * out.sum[g] as f32);
            out.dsum = out.dsums[0] + out.dsums[1];
        }
    }
}

/// `round(x inverse)`. The bounds are written so that infinities and NaN, which no sound model has, cannot leave the
/// range of codes.
#[inline(always)]
fn code<S: Simd>(s: S, x: S::F, inverse: f32) -> S::F {
    let nearest = s.round(s.mul(x, s.splat(inverse)));
    s.min(s.max(nearest, s.splat(-127.0)), s.splat(127.0))
}
