//! Keys and values in 8 bits: of each position and head, 32 dimensions share a scale.
//!
//! A block of 32 values is stored as `d = max |x| / 127`, rounded to a half, and `q = round(x / d)`, ties to even,
//! in `-127..=127`: `x = d q` within `d / 2` (or `127 * 2^-25` where `d` is a subnormal half). Heads whose width is not a
//! multiple of 32 are padded with zeros, which take part in nothing but the bytes. If a value is not finite, `d` is NaN.
//!
//! Queries, times the attention's scale, are rounded to 8 bits in groups of 16 as the inputs of linear layers are
//! ([`Quantize`]): `x = d_x q_x`. With `n_g = sum_k q[p,k] q_x[k]` over a group, exactly, a score sums the blocks in order as
//! `s[p] = fma(d[p], fma(d_x1, n_1, d_x0 n_0), s[p])`. The weights of the values stay floats: `o[k] = fma(e[p] d[p], q[p,k], o[k])`.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::isa::{BLOCK, Kernel, LANES, Simd};
use super::linear::Quantize;
use super::math::load_part;
use super::pages::{Head, PARTS, Place, Stored};
use super::strip::Activations;
use crate::backend::PAGE;

/// Steps of four columns in a block.
const STEPS: usize = BLOCK / 4;

/// 32 dimensions of the positions of a page, keys or values.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Codes {
    /// Of keys, four dimensions of sixteen positions side by side: `[PARTS, STEPS]` vectors. Of values, `[PAGE, BLOCK]`.
    q: [[u8; 4 * LANES]; PARTS * STEPS],
    /// The scale of each position, as half.
    d: [u16; PAGE],
}
const _: () = assert!(size_of::<Codes>() == 34 * PAGE);

impl Codes {
    /// Sixteen scales.
    #[inline(always)]
    fn scales<S: Simd>(&self, s: S, part: usize) -> S::F {
        s.load_f16(&self.d.as_chunks().0[part])
    }

    /// The products of group `g` of the keys of sixteen positions, summed exactly.
    #[inline(always)]
    fn dot<S: Simd, const C: usize>(&self, s: S, part: usize, g: usize, x: [&Activations; C]) -> [S::F; C] {
        let vectors = &self.q[part * STEPS + g * (STEPS / 2)..][..STEPS / 2];
        let mut q = [&x[0].q[g]; C];
        let mut minus = [x[0].minus[g]; C];
        for c in 1..C {
            q[c] = &x[c].q[g];
            minus[c] = x[c].minus[g];
        }
        let [dots] = s.dot_bytes(
            #[inline(always)]
            |_, step| s.load_codes(&vectors[step]),
            q,
            minus,
        );
        let mut out = [s.splat(0.0); C];
        for c in 0..C {
            out[c] = s.to_float(dots[c]);
        }
        out
    }
}

/// Up to 32 values as codes with their scale.
#[inline(always)]
fn encode<S: Simd>(s: S, x: &[f32]) -> ([[i8; LANES]; 2], u16) {
    let (low, high) = x.split_at(x.len().min(LANES));
    let x = [load_part(s, low), load_part(s, high)];
    let max = s.largest(s.max(s.abs(x[0]), s.abs(x[1])));
    // Zero, or NaN if a value is not finite.
    let finite = s.sum(s.add(s.sub(x[0], x[0]), s.sub(x[1], x[1])));
    let d = f16::from_f32(max / 127.0 + finite);
    let inverse = if d.to_f32() > 0.0 { 1.0 / d.to_f32() } else { 0.0 };
    let mut codes = [[0; LANES]; 2];
    for (codes, x) in codes.iter_mut().zip(x) {
        let nearest = s.round(s.mul(x, s.splat(inverse)));
        *codes = s.to_bytes(s.min(s.max(nearest, s.splat(-127.0)), s.splat(127.0)));
    }
    (codes, d.to_bits())
}

impl Stored for Codes {
    type Query = Activations;
    type Wide = Codes;

    fn count(padded: usize) -> usize {
        padded / BLOCK
    }

    fn query_len(dim: usize) -> usize {
        dim.div_ceil(BLOCK)
    }

    #[inline(always)]
    fn store<S: Simd>(s: S, head: Head<&mut [Codes]>, slot: usize, k: &[f32], v: &[f32]) {
        let (part, row) = (slot / LANES, slot % LANES);
        for (keys, k) in head.k.iter_mut().zip(k.chunks(BLOCK)) {
            let (codes, d) = encode(s, k);
            keys.d[slot] = d;
            let codes: [[u8; 4]; STEPS] = bytemuck::cast(codes);
            for (vector, four) in keys.q[part * STEPS..].iter_mut().zip(codes) {
                vector.as_chunks_mut().0[row] = four;
            }
        }
        for (values, v) in head.v.iter_mut().zip(v.chunks(BLOCK)) {
            let (codes, d) = encode(s, v);
            values.d[slot] = d;
            let positions: &mut [[[i8; LANES]; 2]] = bytemuck::cast_slice_mut(&mut values.q);
            positions[slot] = codes;
        }
    }

    #[inline(always)]
    fn query<S: Simd>(s: S, q: &[f32], out: &mut [Activations]) {
        Quantize { x: q, out }.run(s);
    }

    /// As it is: codes are quick to load.
    #[inline(always)]
    fn widen<'a, S: Simd>(_: S, head: Head<&'a [Codes]>, _: &'a mut [f32]) -> Head<&'a [Codes]> {
        head
    }

    #[inline(always)]
    fn scores<S: Simd, const C: usize>(s: S, k: &[Codes], q: [&[Activations]; C]) -> [[S::F; PARTS]; C] {
        let q = q.map(|q| &q[..k.len()]);
        let mut scores = [[s.splat(0.0); PARTS]; C];
        for (b, keys) in k.iter().enumerate() {
            let x = q.map(|q| &q[b]);
            for part in 0..PARTS {
                let d = keys.scales(s, part);
                let first = keys.dot(s, part, 0, x);
                let second = keys.dot(s, part, 1, x);
                for c in 0..C {
                    let block = s.fma(s.splat(x[c].d[1]), second[c], s.mul(s.splat(x[c].d[0]), first[c]));
                    scores[c][part] = s.fma(d, block, scores[c][part]);
                }
            }
        }
        scores
    }

    #[inline(always)]
    fn add<S: Simd, const C: usize, const W: usize>(
        s: S,
        v: &[Codes],
        Place { at, seen, .. }: Place,
        e: &[[f32; PAGE]; C],
        o: &mut [[S::F; W]; C],
    ) {
        let values = &v[at / BLOCK];
        let mut scaled = [[[0.0; LANES]; PARTS]; C];
        for part in 0..PARTS {
            let d = values.scales(s, part);
            for c in 0..C {
                s.store(s.mul(s.load(&e[c].as_chunks().0[part]), d), &mut scaled[c][part]);
            }
        }
        let positions: &[[[i8; LANES]; 2]] = bytemuck::cast_slice(&values.q);
        for (p, codes) in positions.iter().take(seen).enumerate() {
            let codes = &codes[at % BLOCK / LANES..][..W];
            for w in 0..W {
                let q = s.load_i8(&codes[w]);
                for c in 0..C {
                    o[c][w] = s.fma(s.splat(scaled[c].as_flattened()[p]), q, o[c][w]);
                }
            }
        }
    }
}
