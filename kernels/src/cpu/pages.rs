//! The pages of the KV cache, and what they store: values of a floating-point format here, 8-bit codes in
//! [`codes`](super::codes).

use bytemuck::{Pod, Zeroable};

use super::isa::{Kernel, LANES, Simd};
use super::math::load_part;
use crate::backend::{CacheShape, PAGE};
use crate::tensor::{Error, zeros};

/// Vectors of positions in a page.
pub const PARTS: usize = PAGE / LANES;

/// What a cache stores, and how attention computes with it.
pub trait Stored: Pod + Send + Sync {
    /// What a query is made of.
    type Query: Pod;
    /// What a page is turned into before many queries meet it, with the same results.
    type Wide: Stored<Query = Self::Query>;

    /// How many of these the keys of a head take, and its values, whose width is padded to `padded`.
    fn count(padded: usize) -> usize;
    /// How many [`Stored::Query`] a query of `dim` values takes; they are no larger than the values, padded.
    fn query_len(dim: usize) -> usize;

    /// Stores the key and the value of one position of a page.
    fn store<S: Simd>(s: S, head: Head<&mut [Self]>, slot: usize, k: &[f32], v: &[f32]);
    /// Prepares a query: `[padded]`, of which `dim` values are its own and the others zero.
    fn query<S: Simd>(s: S, q: &[f32], out: &mut [Self::Query]);
    /// Keys and values as [`Stored::Wide`], in `room` if need be: twice `padded` times [`PAGE`] values.
    fn widen<'a, S: Simd>(s: S, head: Head<&'a [Self]>, room: &'a mut [f32]) -> Head<&'a [Self::Wide]>;
    /// `s[p] = sum_d q[d] k[p,d]` for the positions of a page.
    fn scores<S: Simd, const C: usize>(s: S, k: &[Self], q: [&[Self::Query]; C]) -> [[S::F; PARTS]; C];
    /// `o[d] += e[p] v[p,d]` over the first `seen` positions `p` in order, for `16 W` dimensions from `at`.
    fn add<S: Simd, const C: usize, const W: usize>(
        s: S,
        v: &[Self],
        place: Place,
        e: &[[f32; PAGE]; C],
        o: &mut [[S::F; W]; C],
    );
}

/// Keys and values of a head in a page.
#[derive(Clone, Copy)]
pub struct Head<T> {
    /// The keys.
    pub k: T,
    /// The values.
    pub v: T,
}

/// Which values of a head [`Stored::add`] takes.
#[derive(Clone, Copy)]
pub struct Place {
    /// Width of the head in memory.
    pub padded: usize,
    /// The first dimension.
    pub at: usize,
    /// Positions.
    pub seen: usize,
}

/// A floating-point format: keys lie as `[padded, PAGE]`, positions side by side, values as `[PAGE, padded]`.
pub trait Element: Pod + Zeroable + Send + Sync {
    /// Sixteen elements.
    fn load<S: Simd>(s: S, x: &[Self; LANES]) -> S::F;
    /// Rounds to nearest, ties to even.
    fn round<S: Simd>(s: S, x: S::F, out: &mut [Self; LANES]);
}

impl Element for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[f32; LANES]) -> S::F {
        s.load(x)
    }

    #[inline(always)]
    fn round<S: Simd>(s: S, x: S::F, out: &mut [f32; LANES]) {
        s.store(x, out);
    }
}

/// The bits of a half.
impl Element for u16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[u16; LANES]) -> S::F {
        s.load_f16(x)
    }

    #[inline(always)]
    fn round<S: Simd>(s: S, x: S::F, out: &mut [u16; LANES]) {
        s.store_f16(x, out);
    }
}

impl<E: Element> Stored for E {
    type Query = f32;
    type Wide = f32;

    fn count(padded: usize) -> usize {
        padded * PAGE
    }

    fn query_len(dim: usize) -> usize {
        dim
    }

    #[inline(always)]
    fn store<S: Simd>(s: S, head: Head<&mut [E]>, slot: usize, k: &[f32], v: &[f32]) {
        let padded = head.v.len() / PAGE;
        let mut rounded = [E::zeroed(); LANES];
        for (keys, k) in head.k.chunks_mut(PAGE * LANES).zip(k.chunks(LANES)) {
            E::round(s, load_part(s, k), &mut rounded);
            for (keys, &k) in keys.chunks_exact_mut(PAGE).zip(&rounded[..k.len()]) {
                keys[slot] = k;
            }
        }
        for (values, v) in head.v[slot * padded..].as_chunks_mut().0.iter_mut().zip(v.chunks(LANES)) {
            E::round(s, load_part(s, v), values);
        }
    }

    #[inline(always)]
    fn query<S: Simd>(_: S, q: &[f32], out: &mut [f32]) {
        out.copy_from_slice(&q[..out.len()]);
    }

    #[inline(always)]
    fn widen<'a, S: Simd>(s: S, head: Head<&'a [E]>, room: &'a mut [f32]) -> Head<&'a [f32]> {
        let (keys, values) = room.split_at_mut(head.k.len());
        for (x, out) in [(head.k, &mut *keys), (head.v, &mut *values)] {
            for (x, out) in x.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
                s.store(E::load(s, x), out);
            }
        }
        Head { k: keys, v: &values[..head.v.len()] }
    }

    /// Summed over `d` in order.
    #[inline(always)]
    fn scores<S: Simd, const C: usize>(s: S, k: &[E], q: [&[f32]; C]) -> [[S::F; PARTS]; C] {
        let dim = q[0].len();
        let q = q.map(|q| &q[..dim]);
        let mut scores = [[s.splat(0.0); PARTS]; C];
        for (d, k) in k.as_chunks::<PAGE>().0[..dim].iter().enumerate() {
            for (part, k) in k.as_chunks::<LANES>().0.iter().enumerate() {
                let k = E::load(s, k);
                for c in 0..C {
                    scores[c][part] = s.fma(s.splat(q[c][d]), k, scores[c][part]);
                }
            }
        }
        scores
    }

    #[inline(always)]
    fn add<S: Simd, const C: usize, const W: usize>(
        s: S,
        v: &[E],
        Place { padded, at, seen }: Place,
        e: &[[f32; PAGE]; C],
        o: &mut [[S::F; W]; C],
    ) {
        for (p, v) in v.chunks_exact(padded).take(seen).enumerate() {
            let v = &v[at..at + W * LANES].as_chunks::<LANES>().0[..W];
            for w in 0..W {
                let v = E::load(s, &v[w]);
                for c in 0..C {
                    o[c][w] = s.fma(s.splat(e[c][p]), v, o[c][w]);
                }
            }
        }
    }
}

/// The pages of a cache: of each layer and head its keys, then its values.
pub struct Pages<E> {
    shape: CacheShape,
    pages: Vec<Vec<E>>,
}

impl<E: Stored> Pages<E> {
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
        E::count(self.shape.padded_head_dim())
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

    /// The bytes of a page: of each layer and head its keys, then its values.
    pub fn bytes(&self, page: u32) -> &[u8] {
        bytemuck::cast_slice(&self.pages[page as usize])
    }

    /// Fills a page with such bytes.
    pub fn set_bytes(&mut self, page: u32, bytes: &[u8]) -> Result<(), Error> {
        let own: &mut [u8] = bytemuck::cast_slice_mut(&mut self.pages[page as usize]);
        let (expected, found) = (own.len(), bytes.len());
        if expected != found {
            return Err(Error::Length { format: self.shape.format, rows: PAGE, cols: 1, expected, found });
        }
        own.copy_from_slice(bytes);
        Ok(())
    }

    /// Keys and values of a head.
    pub fn head(&self, page: u32, layer: usize, head: usize) -> Head<&[E]> {
        let half = self.half();
        let at = 2 * (layer * self.shape.kv_heads + head) * half;
        let (k, v) = self.pages[page as usize][at..][..2 * half].split_at(half);
        Head { k, v }
    }
}

/// Stores one position's key and value rows `[kv_heads * head_dim]`.
pub struct Store<'a, E> {
    /// The cache.
    pub cache: &'a mut Pages<E>,
    /// The layer.
    pub layer: usize,
    /// Page, and position in it.
    pub place: (u32, usize),
    /// The keys.
    pub k: &'a [f32],
    /// The values.
    pub v: &'a [f32],
}

impl<E: Stored> Kernel for Store<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (half, CacheShape { kv_heads, head_dim, .. }) = (self.cache.half(), self.cache.shape);
        let (page, slot) = self.place;
        let heads = &mut self.cache.pages[page as usize][2 * self.layer * kv_heads * half..];
        let rows = self.k.chunks_exact(head_dim).zip(self.v.chunks_exact(head_dim));
        for (head, (key, value)) in heads.chunks_exact_mut(2 * half).zip(rows) {
            let (k, v) = head.split_at_mut(half);
            E::store(s, Head { k, v }, slot, key, value);
        }
    }
}
