//! Linear layers: packed weights and the loop nest over strips and tokens.

use std::array::from_fn;
use std::marker::PhantomData;
use std::ops::{Deref, Range};

use super::arena::{Arena, Filled};
use super::isa::{BLOCK, GROUP, Isa, Kernel, LANES, Simd};
use super::math::load_part;
use super::strip::{AHEAD, ActivationTile, Activations, Input, LINE, Strip};
use crate::format::{Block, Format, Visitor};
use crate::strips::Strips;
use crate::tensor::{Bytes, Error, Tensor, zeros};

/// Sixteen rows of one token's outputs.
pub type Lane = [f32; LANES];

/// A weight matrix whose rows lie side by side in strips of sixteen. Takes the bytes of the original,
/// plus those of the rows missing from the last strip. Cloning copies no bytes.
#[derive(Clone)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    strips: Memory,
    product: &'static dyn Product,
}

/// Where strips lie.
#[derive(Clone)]
enum Memory {
    Packed(Filled),
    Lent(Bytes),
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Packed(bytes) => bytes,
            Self::Lent(bytes) => bytes,
        }
    }
}

impl Matrix {
    /// Packs `weight` into memory of `arena`.
    pub fn pack(weight: &Tensor, arena: &Arena) -> Result<Self, Error> {
        struct Pack<'a>(&'a Tensor, &'a Arena);
        impl Visitor for Pack<'_> {
            type Out = Result<Matrix, Error>;
            fn visit<B: Block>(self) -> Self::Out {
                let strips = Memory::Packed(pack::<B::Strip>(self.0, self.1)?);
                Ok(Matrix::of::<B>(self.0.rows(), self.0.cols(), strips))
            }
        }
        weight.format().visit(Pack(weight, arena))
    }

    /// The matrix in these strips, which are copied only if they do not begin where a panel can.
    pub fn from_strips(strips: &Strips, arena: &Arena) -> Result<Self, Error> {
        struct Take<'a>(&'a Strips, &'a Arena);
        impl Visitor for Take<'_> {
            type Out = Result<Matrix, Error>;
            fn visit<B: Block>(self) -> Self::Out {
                let bytes = self.0.bytes();
                let mut memory = Memory::Lent(bytes.clone());
                if !bytes.as_ptr().cast::<PanelOf<B::Strip>>().is_aligned() {
                    let mut copy = self.1.region(bytes.len())?;
                    copy.push(bytes);
                    memory = Memory::Packed(copy.fill());
                }
                Ok(Matrix::of::<B>(self.0.rows(), self.0.cols(), memory))
            }
        }
        strips.format().visit(Take(strips, arena))
    }

    /// The matrix in strips that begin where a panel can.
    fn of<B: Block>(rows: usize, cols: usize, strips: Memory) -> Self {
        Self { rows, cols, strips, product: &Packed::<B::Strip>(PhantomData) }
    }

    /// The strips.
    pub(crate) fn into_strips(self) -> Bytes {
        match self.strips {
            Memory::Packed(bytes) => Bytes::of(bytes),
            Memory::Lent(bytes) => bytes,
        }
    }

    /// The bytes of a packed matrix `[rows, cols]`.
    pub fn bytes_for(format: Format, rows: usize, cols: usize) -> usize {
        struct Size(usize, usize);
        impl Visitor for Size {
            type Out = usize;
            fn visit<B: Block>(self) -> usize {
                count::<B::Strip>(self.0, self.1).saturating_mul(size_of::<PanelOf<B::Strip>>())
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

    /// Bytes in memory, or mapped.
    pub fn bytes(&self) -> usize {
        self.strips.len()
    }

    /// Whether inputs are needed in 8 bits.
    pub fn integer(&self) -> bool {
        self.product.integer()
    }

    /// Bytes of a strip, at least one.
    pub fn strip_bytes(&self) -> usize {
        (self.strips.len() / self.rows.div_ceil(LANES).max(1)).max(1)
    }

    /// The bytes of some strips.
    fn some(&self, strips: Range<usize>) -> &[u8] {
        let bytes = self.strip_bytes();
        &self.strips[strips.start * bytes..strips.end * bytes]
    }

    /// Asks for what [`Matrix::multiply`] reads first, when that will be soon.
    pub fn ask(&self, isa: Isa, strips: Range<usize>) {
        ask(isa, self.some(strips));
    }

    /// `W[16 s..16 s + 16, ..x.cols] x[t]` for every strip `s` of `strips` and every row `t` of `rows`. If the strips come from
    /// memory, `fresh`, they are asked for ahead.
    pub fn multiply(
        &self,
        isa: Isa,
        strips: Range<usize>,
        x: &Inputs<'_>,
        rows: Range<usize>,
        fresh: bool,
        out: Lanes<'_>,
    ) {
        self.product.multiply(isa, (self.some(strips), self.cols), (x, rows), fresh, out);
    }
}

/// Asks for the first of some bytes that are soon read.
pub fn ask(isa: Isa, bytes: &[u8]) {
    isa.run(Ask(bytes));
}

struct Ask<'a>(&'a [u8]);

impl Kernel for Ask<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if let Some(first) = self.0.first() {
            for line in (0..self.0.len().min(AHEAD)).step_by(LINE) {
                s.prefetch(first, line);
            }
        }
    }
}

/// Where products go: to `lanes[strip stride + row]`, both counted from 0.
pub struct Lanes<'a> {
    /// The outputs of the first strip's first row, and all after.
    pub lanes: &'a mut [Lane],
    /// From one strip's outputs to the next.
    pub stride: usize,
    /// What becomes of them there.
    pub join: Join,
    /// The factors of [`Join::Scaled`], of the first strip's first row and all after; else empty. Apart, so that no branch on them that a
    /// compiler moves up reads what was never written.
    pub by: &'a [f32],
}

/// What products are to the outputs that they go to.
#[derive(Clone, Copy)]
pub enum Join {
    /// They take their place.
    Set,
    /// They are added.
    Add,
    /// They are added, times the factor of their weight row.
    Scaled,
}

impl<'a> Lanes<'a> {
    /// Products take the place of `lanes`, which are so many for each strip.
    pub fn set(lanes: &'a mut [Lane], stride: usize) -> Self {
        Self { lanes, stride, join: Join::Set, by: &[] }
    }

    /// They take the place of all of `lanes`, the outputs of one strip.
    pub fn strip(lanes: &'a mut [Lane]) -> Self {
        let stride = lanes.len();
        Self::set(lanes, stride)
    }
}

/// The rows of activations that go into a linear layer.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// `[rows, stride]`, of which the first `cols` of each row count; or empty if all weights want 8 bits.
    pub x: &'a [f32],
    /// Values in a row of `x`.
    pub stride: usize,
    /// Inputs of the layer.
    pub cols: usize,
    /// `[rows, cols / 32]`, or empty if no weight wants 8 bits.
    pub x8: &'a [Activations],
    /// The same of whole sixteens of rows from the first on, `[rows / 16, cols / 32]`, where a matrix unit wants them.
    pub tiles: &'a [ActivationTile],
}

impl<'a> Inputs<'a> {
    #[inline(always)]
    fn row(&self, t: usize) -> Input<'a> {
        let cols = if self.x.is_empty() { 0 } else { self.cols };
        let blocks = if self.x8.is_empty() { 0 } else { self.cols / BLOCK };
        Input { x: &self.x[t * self.stride..][..cols], x8: &self.x8[t * blocks..][..blocks] }
    }

    /// `T` rows from the `t`-th on.
    #[inline(always)]
    pub(super) fn tile<const T: usize>(&self, t: usize) -> [Input<'a>; T] {
        let mut rows = [self.row(t); T];
        for (i, row) in rows.iter_mut().enumerate().skip(1) {
            *row = self.row(t + i);
        }
        rows
    }
}

/// How matrices of some format are multiplied.
trait Product: Send + Sync {
    fn integer(&self) -> bool;
    /// The strips of a matrix with so many columns times some rows.
    fn multiply(
        &self,
        isa: Isa,
        strips: (&[u8], usize),
        x: (&Inputs<'_>, Range<usize>),
        fresh: bool,
        out: Lanes<'_>,
    );
}

/// The format whose strips these are.
struct Packed<P>(PhantomData<P>);

type PanelOf<P> = <P as Strip>::Panel;

/// Panels of a matrix.
fn count<P: Strip>(rows: usize, cols: usize) -> usize {
    (cols / P::Block::LEN).saturating_mul(rows.div_ceil(LANES))
}

/// The panels of `weight`.
fn pack<P: Strip>(weight: &Tensor, arena: &Arena) -> Result<Filled, Error> {
    let length = weight.cols() / P::Block::LEN;
    let count = count::<P>(weight.rows(), weight.cols());
    let mut panels = arena.region(count.saturating_mul(size_of::<P::Panel>()))?;
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
        for b in 0..length {
            panels.push(bytemuck::bytes_of(&P::pack(from_fn(|i| &rows[i][b]))));
        }
    }
    Ok(panels.fill())
}

impl<P: Strip> Product for Packed<P> {
    fn integer(&self) -> bool {
        P::INTEGER
    }

    fn multiply(
        &self,
        isa: Isa,
        (strips, cols): (&[u8], usize),
        (x, rows): (&Inputs<'_>, Range<usize>),
        fresh: bool,
        out: Lanes<'_>,
    ) {
        let (panels, length) = (bytemuck::cast_slice(strips), cols / P::Block::LEN);
        let used = x.cols / P::Block::LEN;
        isa.run(Multiply::<P> { panels, length, used, x, rows, fresh, out });
    }
}

/// Rows of activations that codes meet at a time as they come from memory, where registers hold as many sums: the more of them, the more time
/// memory has to bring the next, and all rows of a small batch unpack them once.
const FRESH: usize = 8;

/// Columns of a strip of floats up to which several strips are multiplied side by side with one row.
const SHORT: usize = 128;

/// Some strips times some rows, at least one of each.
pub struct Multiply<'a, P: Strip> {
    /// The strips.
    pub(super) panels: &'a [P::Panel],
    /// Panels of a strip.
    pub(super) length: usize,
    /// Those of them that are multiplied, from the first on.
    pub(super) used: usize,
    /// The activations, of which `rows` are multiplied.
    pub(super) x: &'a Inputs<'a>,
    pub(super) rows: Range<usize>,
    /// Whether the strips come from memory.
    pub(super) fresh: bool,
    pub(super) out: Lanes<'a>,
}

impl<P: Strip> Kernel for Multiply<'_, P> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut t = P::many(s, &mut self);
        // As many rows of activations at a time as registers hold sums of, then those left. All strips meet one tile of
        // rows before the next, for a tile stays in the first cache.
        if P::tokens::<S>() >= 4 {
            if S::MANY_SUMS && P::INTEGER && self.fresh && t + FRESH <= self.rows.len() {
                for strip in 0..self.panels.len() / self.length {
                    self.tile::<S, FRESH, 1>(s, t, strip);
                }
                t += FRESH;
            }
            while t + 4 <= self.rows.len() {
                let mut strip = 0;
                // Codes that come from memory are best asked for and unpacked one strip at a time.
                if S::WIDE && !(P::INTEGER && self.fresh && t == 0) {
                    while (strip + 2) * self.length <= self.panels.len() {
                        self.tile::<S, 4, 2>(s, t, strip);
                        strip += 2;
                    }
                }
                while strip * self.length < self.panels.len() {
                    self.tile::<S, 4, 1>(s, t, strip);
                    strip += 1;
                }
                t += 4;
            }
        }
        while t + 2 <= self.rows.len() {
            for strip in 0..self.panels.len() / self.length {
                self.tile::<S, 2, 1>(s, t, strip);
            }
            t += 2;
        }
        if t < self.rows.len() {
            let (mut strip, strips) = (0, self.panels.len() / self.length);
            // The additions of a short strip, such as those of `B` of a LoRA, would wait for each other.
            while !P::INTEGER && self.used <= SHORT && strip + 4 <= strips {
                self.tile::<S, 1, 4>(s, t, strip);
                strip += 4;
            }
            for strip in strip..strips {
                self.tile::<S, 1, 1>(s, t, strip);
            }
        }
    }
}

impl<P: Strip> Multiply<'_, P> {
    /// Multiplies the `N` strips from `strip` on with the `T` rows from the `t`-th on.
    #[inline(always)]
    fn tile<S: Simd, const T: usize, const N: usize>(&mut self, s: S, t: usize, strip: usize) {
        let x = self.x.tile::<T>(self.rows.start + t);
        let mut panels = [&self.panels[..0]; N];
        for (n, panels) in panels.iter_mut().enumerate() {
            *panels = &self.panels[(strip + n) * self.length..][..self.used];
        }
        let dots = P::dot(s, panels, x, self.fresh && t == 0);
        for (n, dots) in dots.into_iter().enumerate() {
            for (i, dot) in dots.into_iter().enumerate() {
                self.join(s, strip + n, t + i, dot);
            }
        }
    }

    /// Joins the product of a strip and row `t` to its output.
    #[inline(always)]
    pub(super) fn join<S: Simd>(&mut self, s: S, strip: usize, t: usize, dot: S::F) {
        let out = &mut self.out.lanes[strip * self.out.stride + t];
        let y = match self.out.join {
            Join::Set => dot,
            Join::Add => s.add(s.load(out), dot),
            Join::Scaled => s.fma(load_part(s, &self.out.by[strip * LANES..]), dot, s.load(out)),
        };
        s.store(y, out);
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
                let sum = s.sum(q);
                out.minus[g] = -sum as i32;
                out.dsums[g] = out.d[g] * sum;
            }
            out.dsum = out.dsums[0] + out.dsums[1];
        }
    }
}

/// Puts sixteen rows of activations, of as many blocks as `out`, side by side.
pub struct SideBySide<'a> {
    /// The rows, one after the other.
    pub x: &'a [Activations],
    /// Their blocks.
    pub out: &'a mut [ActivationTile],
}

impl Kernel for SideBySide<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        for (t, row) in self.x.chunks_exact(self.out.len()).enumerate() {
            for (tile, x) in self.out.iter_mut().zip(row) {
                tile.put(t, x);
            }
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
