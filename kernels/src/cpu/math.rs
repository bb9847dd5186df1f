//! Functions of sixteen lanes that hardware does not have.

use super::isa::{LANES, Simd};

/// `exp(x)`, within 2 units in the last place for `x` in `-87..=88`; clamped to that range.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, then the Taylor polynomial of degree 7 in `r` times `2^n`.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let x = s.min(s.max(x, s.splat(-87.0)), s.splat(88.0));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, the first with trailing zeros so that its product with n is exact (Cody and Waite).
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    const TAYLOR: [f32; 7] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let mut p = s.splat(1.0 / 5040.0);
    for c in TAYLOR {
        p = s.fma(p, r, s.splat(c));
    }
    s.mul(p, s.exp2(n))
}

/// The up to sixteen values of `x`, the missing ones zero.
#[inline(always)]
pub fn load_part<S: Simd>(s: S, x: &[f32]) -> S::F {
    match x.first_chunk() {
        Some(x) => s.load(x),
        None => {
            let mut lanes = [0.0; LANES];
            lanes[..x.len()].copy_from_slice(x);
            s.load(&lanes)
        }
    }
}

/// Writes the first `out.len()` lanes, sixteen at most.
#[inline(always)]
pub fn store_part<S: Simd>(s: S, x: S::F, out: &mut [f32]) {
    match out.first_chunk_mut() {
        Some(out) => s.store(x, out),
        None => {
            let mut lanes = [0.0; LANES];
            s.store(x, &mut lanes);
            let n = out.len();
            out.copy_from_slice(&lanes[..n]);
        }
    }
}
