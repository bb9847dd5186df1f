//! Searches by how much each value matters, beside those that ggml's reference quantizers do without.

use super::Block;
use super::search::{Tries, nearest};

/// Values of the largest block.
const MOST: usize = 256;

/// The weights that scales are searched with: those given, and what ggml makes of them, times `sqrt(f mean(x^2) + x[i]^2)`, so that
/// large values, which hardly any other stands in for, count more. Each is the better choice for some blocks.
pub(super) fn with_size(x: &[f32], w: &[f32], f: f32) -> [Vec<f32>; 2] {
    let mean = f * x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
    [w.to_vec(), w.iter().zip(x).map(|(w, x)| w * (mean + x * x).sqrt()).collect()]
}

/// What [`super::search::affine`] tries for codes of `0..=most`.
pub(super) fn tries(most: i32) -> Tries {
    Tries { most, first: -0.9, step: 0.05, steps: 36, absolute: false }
}

/// The least `sum_i w[i] (y[i] - x[i])^2` among these blocks and that of [`Block::encode`], which is taken before equals.
pub(super) fn best<B: Block, const N: usize>(x: &[f32], w: &[f32], searched: [B; N]) -> B {
    let error = |block: &B| {
        let mut y = [0.0; MOST];
        block.decode(&mut y[..B::LEN]);
        let squares = x.iter().zip(&y).map(|(x, y)| f64::from(y - x).powi(2));
        squares.zip(w).map(|(square, w)| square * f64::from(*w)).sum::<f64>()
    };
    let plain = B::encode(x);
    let first = (error(&plain), plain);
    let least = searched.into_iter().map(|block| (error(&block), block));
    least.fold(first, |best, other| if other.0 < best.0 { other } else { best }).1
}

/// `(d, q)` with codes `q` of `0..=most` that make `sum_i w[i] (d q[i] - v[i])^2` small over `v >= 0`: nine ways to round, each with
/// its least-squares `d`.
pub(super) fn unsigned<const N: usize>(v: &[f32; N], w: &[f32; N], most: i32) -> (f32, [u8; N]) {
    let max = v.iter().fold(0.0f32, |max, &v| max.max(v));
    if max <= 0.0 {
        return (0.0, [0; N]);
    }
    let fit = |i: i32| {
        let inverse = (most as f32 + 0.1 * i as f32) / max;
        let codes = v.map(|v| nearest(inverse * v).clamp(0, most) as u8);
        let (mut sum_l2, mut sum_lv) = (0.0f32, 0.0f32);
        for ((&w, &v), &code) in w.iter().zip(v).zip(&codes) {
            let l = f32::from(code);
            sum_l2 += w * l * l;
            sum_lv += w * l * v;
        }
        let d = if sum_l2 > 0.0 { sum_lv / sum_l2 } else { 1.0 / inverse };
        let error = |((w, v), code): ((&f32, &f32), &u8)| w * (d * f32::from(*code) - v).powi(2);
        (w.iter().zip(v).zip(&codes).map(error).sum::<f32>(), d, codes)
    };
    let first = fit(0);
    let (_, d, codes) =
        (-4..=4).map(fit).fold(first, |best, other| if other.0 < best.0 { other } else { best });
    (d, codes)
}
