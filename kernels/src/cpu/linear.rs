//! Linear layers: packed weights and the loop nest over strips and tokens.

use std::array::from_fn;
use std::ops::Range;

use bytemuck::Zeroable;

use super::isa::{BLOCK, Isa, Kernel, LANES, Simd};
use super::strip::{Activations, Input, Strip};
use super::team::Buffer;
use crate::format::{Block, Visitor};
use crate::tensor::{Error, Tensor};

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

    /// `out[j] = W[16 strip..16 strip + 16, :] x[t]` for the `j`-th row `t` of `rows`.
    pub fn strip(
        &self,
        isa: Isa,
        strip: usize,
        x: &Inputs<'_>,
        rows: Range<usize>,
        tile: (&mut [Lane], &mut Buffer),
    ) {
        self.strips.strip(isa, strip, x, rows, tile);
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
    fn strip(
        &self,
        isa: Isa,
        strip: usize,
        x: &Inputs<'_>,
        rows: Range<usize>,
        tile: (&mut [Lane], &mut Buffer),
    );
}

struct Packed<P: Strip> {
    /// Panels of a strip.
    length: usize,
    panels: Vec<P::Panel>,
}

impl<P: Strip> Packed<P> {
    fn pack(weight: &Tensor) -> Result<Self, Error> {
        let length = weight.cols() / P::Block::LEN;
        let count = length * weight.rows().div_ceil(LANES);
        let mut panels = Vec::new();
        let bytes = count * size_of::<P::Panel>();
        panels.try_reserve_exact(count).map_err(|_| Error::OutOfMemory { bytes })?;
        let blocks: &[P::Block] = bytemuck::cast_slice(weight.bytes());
        let missing = P::Block::zeroed();
        for strip in 0..weight.rows().div_ceil(LANES) {
            for b in 0..length {
                panels.push(P::pack(from_fn(|i| {
                    let row = strip * LANES + i;
                    if row < weight.rows() { &blocks[row * length + b] } else { &missing }
                })));
            }
        }
        Ok(Self { length, panels })
    }
}

impl<P: Strip> Strips for Packed<P> {
    fn integer(&self) -> bool {
        P::INTEGER
    }

    fn strip(
        &self,
        isa: Isa,
        strip: usize,
        x: &Inputs<'_>,
        rows: Range<usize>,
        (out, scratch): (&mut [Lane], &mut Buffer),
    ) {
        let panels = &self.panels[strip * self.length..][..self.length];
        isa.run(Multiply::<P> { panels, x, rows, out, scratch });
    }
}

/// One strip times some rows.
struct Multiply<'a, P: Strip> {
    panels: &'a [P::Panel],
    x: &'a Inputs<'a>,
    rows: Range<usize>,
    out: &'a mut [Lane],
    scratch: &'a mut Buffer,
}

impl<P: Strip> Kernel for Multiply<'_, P> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.rows.len() < P::MANY {
            let panels = self.panels;
            over_tokens(s, self.x, self.rows, self.out, Packs::<P>(panels));
        } else {
            let expanded = self.scratch.slice::<P::Expanded>(self.panels.len());
            for (expanded, panel) in expanded.iter_mut().zip(self.panels) {
                *expanded = P::expand(s, panel);
            }
            over_tokens(s, self.x, self.rows, self.out, Expansions::<P>(expanded));
        }
    }
}

/// A strip in one of its two forms.
trait Form {
    fn dot<S: Simd, const T: usize>(&self, s: S, x: [Input<'_>; T]) -> [S::F; T];
}

struct Packs<'a, P: Strip>(&'a [P::Panel]);

impl<P: Strip> Form for Packs<'_, P> {
    #[inline(always)]
    fn dot<S: Simd, const T: usize>(&self, s: S, x: [Input<'_>; T]) -> [S::F; T] {
        P::dot(s, self.0, x)
    }
}

struct Expansions<'a, P: Strip>(&'a [P::Expanded]);

impl<P: Strip> Form for Expansions<'_, P> {
    #[inline(always)]
    fn dot<S: Simd, const T: usize>(&self, s: S, x: [Input<'_>; T]) -> [S::F; T] {
        P::dot_expanded(s, self.0, x)
    }
}

/// Multiplies with four rows at a time, then with those left.
#[inline(always)]
fn over_tokens<S: Simd>(s: S, x: &Inputs<'_>, rows: Range<usize>, out: &mut [Lane], strip: impl Form) {
    let mut tiles = out.chunks_exact_mut(4);
    let mut t = rows.start;
    for out in &mut tiles {
        tokens::<S, 4>(s, x, t, out, &strip);
        t += 4;
    }
    match tiles.into_remainder() {
        out @ [_] => tokens::<S, 1>(s, x, t, out, &strip),
        out @ [_, _] => tokens::<S, 2>(s, x, t, out, &strip),
        out @ [_, _, _] => tokens::<S, 3>(s, x, t, out, &strip),
        _ => {}
    }
}

#[inline(always)]
fn tokens<S: Simd, const T: usize>(s: S, x: &Inputs<'_>, t: usize, out: &mut [Lane], strip: &impl Form) {
    let dots = strip.dot(s, from_fn::<_, T, _>(|i| x.row(t + i)));
    for (out, dot) in out.iter_mut().zip(dots) {
        s.store(dot, out);
    }
}

/// Rounds a row of activations to 8 bits in blocks of 32: `d = max |x| / 127`, `q = round(x 127 / max |x|)`, ties to even.
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
        let (blocks, _) = self.x.as_chunks::<BLOCK>();
        for (x, out) in blocks.iter().zip(self.out) {
            let (x, _) = x.as_chunks::<LANES>();
            let x = [s.load(&x[0]), s.load(&x[1])];
            let max = s.largest(s.max(s.abs(x[0]), s.abs(x[1])));
            let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
            let q = [code(s, x[0], inverse), code(s, x[1], inverse)];
            out.q.as_chunks_mut::<LANES>().0[0] = s.to_bytes(q[0]);
            out.q.as_chunks_mut::<LANES>().0[1] = s.to_bytes(q[1]);
            out.d = max / 127.0;
            // Integers below 2^24: exact in f32 whatever the order.
            let sum = s.sum(s.add(q[0], q[1]));
            out.sum = sum as i32;
            out.dsum = out.d * sum;
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
