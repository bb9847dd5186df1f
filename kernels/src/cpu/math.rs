//! Functions of sixteen lanes that hardware does not have.

use super::isa::{LANES, Simd};
use crate::backend::Activation;

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

/// `x / (1 + exp(-z))`.
#[inline(always)]
fn logistic<S: Simd>(s: S, x: S::F, z: S::F) -> S::F {
    s.div(x, s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), z))))
}

/// `act(x)`. The error function is that of Abramowitz and Stegun, 7.1.26, within 1.5e-7.
#[inline(always)]
pub fn activate<S: Simd>(s: S, act: Activation, x: S::F) -> S::F {
    let zero = s.splat(0.0);
    match act {
        Activation::Silu => logistic(s, x, x),
        Activation::Identity => x,
        Activation::Relu => s.max(x, zero),
        Activation::LeakyRelu => s.max(x, s.mul(x, s.splat(0.01))),
        Activation::SquaredRelu => {
            let x = s.max(x, zero);
            s.mul(x, x)
        }
        Activation::Tanh => s.sub(logistic(s, s.splat(2.0), s.add(x, x)), s.splat(1.0)),
        Activation::Sigmoid => logistic(s, s.splat(1.0), x),
        Activation::Gelu => {
            // x erf(x) is even: no sign is needed.
            let z = s.mul(s.abs(x), s.splat(std::f32::consts::FRAC_1_SQRT_2));
            let t = s.div(s.splat(1.0), s.fma(z, s.splat(0.327_591_1), s.splat(1.0)));
            let mut p = s.splat(1.061_405_4);
            for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
                p = s.fma(p, t, s.splat(c));
            }
            let tail = s.mul(s.mul(p, t), exp(s, s.sub(zero, s.mul(z, z))));
            let half = s.mul(x, s.splat(0.5));
            s.fma(s.abs(half), s.sub(s.splat(1.0), tail), half)
        }
        Activation::GeluTanh => {
            let cubic = s.fma(s.mul(x, x), s.splat(0.044715), s.splat(1.0));
            // (1 + tanh(z)) / 2 = 1 / (1 + exp(-2 z)), with 2 sqrt(2 / pi).
            logistic(s, x, s.mul(s.mul(x, cubic), s.splat(1.595_769)))
        }
        Activation::QuickGelu => logistic(s, x, s.mul(x, s.splat(1.702))),
    }
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
