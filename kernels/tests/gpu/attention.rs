//! Attention over the pages of a cache.

use std::ops::Range;

use graftwork_kernels::Format;
use graftwork_kernels::backend::{Backend, CacheShape, PAGE, Span, StepShape};
use graftwork_kernels::gpu::{Cache, Gpu};

use crate::random::Random;
use crate::{EPSILON, bits, check, normals, open, room, rows};

/// Queries, keys and values of the positions of one sequence, and its pages.
struct Sequence {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    pages: Vec<u32>,
}

const LAYER: usize = 1;

/// One step: stores and attends the given positions of the given sequences. Gives the rows of all.
fn step(
    gpu: &mut Gpu,
    cache: &mut Cache,
    shape: CacheShape,
    group: usize,
    parts: &[(&Sequence, Range<usize>)],
) -> Vec<f32> {
    let kv_cols = shape.kv_heads * shape.head_dim;
    let q_cols = kv_cols * group;
    let (mut spans, mut start) = (Vec::new(), 0);
    let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
    for (sequence, range) in parts {
        let cut = |x: &[f32], cols: usize| x[range.start * cols..range.end * cols].to_vec();
        q.extend(cut(&sequence.q, q_cols));
        k.extend(cut(&sequence.k, kv_cols));
        v.extend(cut(&sequence.v, kv_cols));
        spans.push(Span { rows: start..start + range.len(), position: range.start, pages: &sequence.pages });
        start += range.len();
    }
    let (q, k, v) = (rows(gpu, &q, q_cols), rows(gpu, &k, kv_cols), rows(gpu, &v, kv_cols));
    let mut y = room(gpu, start, q_cols);
    gpu.reserve(&StepShape { rows: start, group, head_dim: shape.head_dim, ..StepShape::default() }).unwrap();
    gpu.step(|gpu| {
        gpu.store(cache, LAYER, (&k, &v), &spans);
        gpu.attend(&mut y, &q, (cache, LAYER), &spans, scale(shape));
    });
    gpu.read(&y).to_vec()
}

fn scale(shape: CacheShape) -> f32 {
    1.0 / (shape.head_dim as f32).sqrt()
}

/// The formula for the positions of a sequence, and how far from it a result may be.
///
/// A score is off by `e = (dim + 3) epsilon` of its magnitudes, a weight by that, the error of `exp`, that of
/// folding the pages and of the sums: `2 e + (3 + 2 |s - max| + positions + 4 pages + 3) epsilon`, of values
/// at most `max |v|`.
fn exact(s: &Sequence, shape: CacheShape, group: usize) -> (Vec<f64>, Vec<f64>) {
    let CacheShape { kv_heads, head_dim: dim, format, .. } = shape;
    let heads = kv_heads * group;
    let length = s.q.len() / (heads * dim);
    // Shaders may round halves in either direction.
    let half = if format == Format::F16 { 2f64.powi(-10) } else { 0.0 };
    let mut out = (Vec::new(), Vec::new());
    for (t, h) in (0..length * heads).map(|n| (n / heads, n % heads)) {
        let q = &s.q[(t * heads + h) * dim..][..dim];
        let at = |p: usize| (p * kv_heads + h / group) * dim;
        let product =
            |p: usize, d: usize| f64::from(q[d]) * f64::from(s.k[at(p) + d]) * f64::from(scale(shape));
        let score = |p: usize| (0..dim).map(|d| product(p, d)).sum::<f64>();
        let size = |p: usize| (0..dim).map(|d| product(p, d).abs()).sum::<f64>();
        let scores: Vec<f64> = (0..=t).map(score).collect();
        let (most, least) = scores.iter().fold((f64::MIN, f64::MAX), |(a, b), &s| (a.max(s), b.min(s)));
        let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
        let total: f64 = weights.iter().sum();
        let off = (0..=t).map(size).fold(0.0, f64::max) * ((dim + 3) as f64 * EPSILON + half);
        let folds = (t + 4 * t.div_ceil(PAGE) + 6) as f64 + 2.0 * (most - least) * 2.0;
        for d in 0..dim {
            let values = || (0..=t).map(|p| f64::from(s.v[at(p) + d]));
            let sum: f64 = values().zip(&weights).map(|(v, w)| v * w).sum();
            let largest = values().fold(0.0, |m: f64, v| m.max(v.abs()));
            out.0.push(sum / total);
            out.1.push(largest * (2.0 * off + 2.0 * folds * EPSILON + half + 1e-4 * half));
        }
    }
    out
}

/// Against the formula; and the same bits with other sequences beside, in pieces, and after the cache has
/// grown.
#[test]
fn attention_equals_its_formula_in_any_company() {
    let Some(mut gpu) = open() else { return };
    let mut random = Random(85);
    for (head_dim, kv_heads, group) in [(64, 1, 3), (20, 2, 2), (5, 3, 1), (256, 1, 2)] {
        for format in [Format::F32, Format::F16] {
            let shape = CacheShape { layers: 2, kv_heads, head_dim, format };
            let kv = kv_heads * head_dim;
            let mut free: Vec<u32> = (0..8).collect();
            let mut sequence = |length: usize| Sequence {
                q: normals(&mut random, length * kv * group).iter().map(|q| q * 2.0).collect(),
                k: normals(&mut random, length * kv),
                v: normals(&mut random, length * kv),
                pages: (0..length.div_ceil(PAGE))
                    .map(|_| free.swap_remove(random.bits() as usize % free.len()))
                    .collect(),
            };
            let (one, two) = (sequence(70), sequence(33));
            let mut cache = gpu.cache(shape);
            gpu.grow(&mut cache, 8).unwrap();
            let together = step(&mut gpu, &mut cache, shape, group, &[(&two, 0..33), (&one, 0..70)]);
            let (of_two, of_one) = together.split_at(33 * kv * group);
            for (name, s, found) in [("one", &one, of_one), ("two", &two, of_two)] {
                let (exact, bound) = exact(s, shape, group);
                check(&format!("{name} of {shape:?}"), found, &exact, &bound);
            }
            let mut cache = gpu.cache(shape);
            let mut pieces = Vec::new();
            for range in [0..1usize, 1..31, 31..32, 32..65, 65..66, 66..70] {
                // What is there stays while the cache grows.
                let most = one.pages[..range.end.div_ceil(PAGE)].iter().max().unwrap() + 1;
                gpu.grow(&mut cache, most as usize).unwrap();
                let known = Sequence {
                    q: one.q.clone(),
                    k: one.k.clone(),
                    v: one.v.clone(),
                    pages: one.pages[..range.end.div_ceil(PAGE)].to_vec(),
                };
                pieces.extend(step(&mut gpu, &mut cache, shape, group, &[(&known, range)]));
            }
            assert_eq!(bits(&pieces), bits(of_one), "in pieces, {shape:?}");
        }
    }
}
