//! Attention through the backend: against softmax in f64, and the same bits however a sequence came into the cache.

use std::ops::Range;

use graftwork_kernels::Format;
use graftwork_kernels::backend::{Backend, CacheShape, PAGE, Span, StepShape};
use graftwork_kernels::cpu::isa::Isa;
use graftwork_kernels::cpu::{Cache, Cpu};

mod activations;
mod random;
use activations::{bits, emulated, normals, rows};
use random::Random;

/// The shape of the layers under test.
#[derive(Clone, Copy, Debug)]
struct Heads {
    dim: usize,
    kv: usize,
    group: usize,
}

impl Heads {
    fn q_cols(self) -> usize {
        self.dim * self.kv * self.group
    }

    fn kv_cols(self) -> usize {
        self.dim * self.kv
    }

    fn shape(self, format: Format) -> CacheShape {
        CacheShape { layers: 2, kv_heads: self.kv, head_dim: self.dim, format }
    }

    fn scale(self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

/// Queries, keys and values of the positions of one sequence, and its pages.
struct Sequence {
    heads: Heads,
    length: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    pages: Vec<u32>,
}

/// Sequences of these lengths, whose pages are scattered over the cache; and how many pages that takes.
fn sequences(random: &mut Random, heads: Heads, lengths: &[usize]) -> (Vec<Sequence>, usize) {
    let total: usize = lengths.iter().map(|n| n.div_ceil(PAGE)).sum();
    let mut free: Vec<u32> = (0..total as u32).collect();
    let sequences = lengths.iter().map(|&length| Sequence {
        heads,
        length,
        // Some scores are large, so that the largest changes from page to page.
        q: normals(random, length * heads.q_cols()).iter().map(|q| q * 2.0).collect(),
        k: normals(random, length * heads.kv_cols()),
        v: normals(random, length * heads.kv_cols()),
        pages: (0..length.div_ceil(PAGE))
            .map(|_| free.swap_remove(random.bits() as usize % free.len()))
            .collect(),
    });
    (sequences.collect(), total)
}

/// One step: stores and attends the given positions of the given sequences. Gives the rows of each.
fn step(
    cpu: &mut Cpu,
    cache: &mut Cache,
    layer: usize,
    parts: &[(&Sequence, Range<usize>)],
) -> Vec<Vec<f32>> {
    let heads = parts[0].0.heads;
    let mut spans = Vec::new();
    let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
    let mut start = 0;
    for (sequence, range) in parts {
        let cut = |x: &[f32], cols: usize| x[range.start * cols..range.end * cols].to_vec();
        q.extend(cut(&sequence.q, heads.q_cols()));
        k.extend(cut(&sequence.k, heads.kv_cols()));
        v.extend(cut(&sequence.v, heads.kv_cols()));
        spans.push(Span { rows: start..start + range.len(), position: range.start, pages: &sequence.pages });
        start += range.len();
    }
    let (q, k, v) =
        (rows(cpu, &q, heads.q_cols()), rows(cpu, &k, heads.kv_cols()), rows(cpu, &v, heads.kv_cols()));
    let mut y = cpu.rows(heads.q_cols());
    cpu.resize(&mut y, start).unwrap();
    let Heads { dim: head_dim, group, .. } = heads;
    cpu.reserve(&StepShape { rows: start, group, head_dim, ..StepShape::default() }).unwrap();
    cpu.step(|cpu| {
        cpu.store(cache, layer, (&k, &v), &spans);
        cpu.attend(&mut y, &q, (cache, layer), &spans, heads.scale());
    });
    let all = cpu.read(&y).to_vec();
    spans.iter().map(|s| all[s.rows.start * heads.q_cols()..s.rows.end * heads.q_cols()].to_vec()).collect()
}

fn cache(cpu: &mut Cpu, shape: CacheShape, pages: usize) -> Cache {
    let mut cache = cpu.cache(shape);
    cpu.grow(&mut cache, pages).unwrap();
    cache
}

/// Everything that a cache can store.
const FORMATS: [Format; 3] = [Format::F16, Format::F32, Format::Q8_0];

/// Heads of `dim` values as the cache keeps them.
fn stored(x: &[f32], dim: usize, format: Format) -> Vec<f64> {
    let coded = |x: &[f32]| -> Vec<f64> {
        let d = half::f16::from_f32(x.iter().fold(0.0, |max: f32, x| max.max(x.abs())) / 127.0);
        let inverse = if d.to_f32() > 0.0 { 1.0 / d.to_f32() } else { 0.0 };
        x.iter()
            .map(|x| d.to_f64() * f64::from((x * inverse).round_ties_even().clamp(-127.0, 127.0)))
            .collect()
    };
    match format {
        Format::F16 => x.iter().map(|&x| half::f16::from_f32(x).to_f64()).collect(),
        Format::Q8_0 => x.chunks(dim).flat_map(|head| head.chunks(32)).flat_map(coded).collect(),
        _ => x.iter().map(|&x| x.into()).collect(),
    }
}

/// A query times the scale, as it meets the keys.
fn scaled(q: &[f32], scale: f32, format: Format) -> Vec<f64> {
    if format != Format::Q8_0 {
        return q.iter().map(|&q| f64::from(q) * f64::from(scale)).collect();
    }
    let q: Vec<f32> = q.iter().map(|q| q * scale).collect();
    let coded = |x: &[f32]| -> Vec<f64> {
        let max = x.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
        let (d, inverse) = (max / 127.0, if max > 0.0 { 127.0 / max } else { 0.0 });
        x.iter().map(|x| f64::from(d) * f64::from((x * inverse).round_ties_even())).collect()
    };
    q.chunks(16).flat_map(coded).collect()
}

/// Compares the rows of one sequence with the formula. With `u` half an epsilon:
///
/// * a score is off by at most `d u A`, `A = scale max_p sum_d |q k|`, plus the roundings of `scale q` and of the
///   difference to the largest; an exponential by that, relatively, and 2 units (`4 u`) of its own;
/// * each page multiplies what came before by another exponential and a fused product: `7 u` a page;
/// * the weighted sum adds `u` a position, as the sum of the weights does (less, it is folded over lanes).
///
/// With 8-bit codes, queries are those that were rounded and a score has less roundings, at most 5 in 32 dimensions and of
/// smaller sums; the weights of the values have one more, by the scale.
///
/// Numerator and denominator both have all this, relative to `sum w |v|` and `sum w`.
fn assert_close(sequence: &Sequence, found: &[f32], format: Format) {
    let Heads { dim, group, .. } = sequence.heads;
    let (q_cols, kv_cols) = (sequence.heads.q_cols(), sequence.heads.kv_cols());
    let keys = stored(&sequence.k, dim, format);
    let values = stored(&sequence.v, dim, format);
    let more = if format == Format::Q8_0 { 1.0 } else { 0.0 };
    for t in 0..sequence.length {
        for h in 0..q_cols / dim {
            let q = scaled(&sequence.q[t * q_cols + h * dim..][..dim], sequence.heads.scale(), format);
            let at = |p: usize| p * kv_cols + h / group * dim;
            let mut magnitude = 0.0f64;
            let scores: Vec<f64> = (0..=t)
                .map(|p| {
                    let products = q.iter().zip(&keys[at(p)..]).map(|(q, k)| q * k);
                    magnitude = magnitude.max(products.clone().map(f64::abs).sum());
                    products.sum()
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            let unit = f64::from(f32::EPSILON) / 2.0;
            let pages = (t / PAGE + 1) as f64;
            let score = (dim as f64 + 2.0) * magnitude + 2.0 * magnitude;
            let relative = 2.0 * unit * (score + 4.0 + 7.0 * pages + t as f64 + 1.0) + (2.0 + more) * unit;
            for d in 0..dim {
                let terms = (0..=t).map(|p| weights[p] / total * values[at(p) + d]);
                let exact: f64 = terms.clone().sum();
                let bound = relative * terms.map(f64::abs).sum::<f64>();
                let error = (f64::from(found[t * q_cols + h * dim + d]) - exact).abs();
                assert!(
                    error <= bound,
                    "{:?} {format}, position {t}, head {h}, dimension {d}: off by {error:e}, bound {bound:e}",
                    sequence.heads
                );
            }
        }
    }
}

/// Every combination of widths and groups, sequences of lengths around the edges of pages, several in one step.
#[test]
fn attention_equals_softmax_on_every_isa() {
    let mut random = Random(31);
    let (lengths, dims, groups): (&[_], &[_], &[_]) = if emulated() {
        (&[1, 33, 39], &[16, 20, 64], &[1, 3])
    } else {
        (&[1, 31, 32, 33, 65, 100], &[6, 16, 20, 32, 34, 64, 80, 128], &[1, 2, 3, 4, 8])
    };
    for &dim in dims {
        for &group in groups {
            for format in FORMATS {
                let heads = Heads { dim, kv: if group > 2 { 1 } else { 2 }, group };
                let (sequences, pages) = sequences(&mut random, heads, lengths);
                let whole: Vec<_> = sequences.iter().map(|s| (s, 0..s.length)).collect();
                let mut first: Option<Vec<Vec<u32>>> = None;
                for isa in Isa::all() {
                    let mut cpu = Cpu::new(2, isa).unwrap();
                    let mut cache = cache(&mut cpu, heads.shape(format), pages);
                    let found = step(&mut cpu, &mut cache, 1, &whole);
                    let found_bits: Vec<_> = found.iter().map(|y| bits(y)).collect();
                    if let Some(first) = &first {
                        assert!(first == &found_bits, "{heads:?} {format}: {} differs", isa.name());
                        continue;
                    }
                    for (sequence, y) in sequences.iter().zip(&found) {
                        assert_close(sequence, y, format);
                    }
                    first = Some(found_bits);
                }
            }
        }
    }
}

/// The promise of the backend: a row's bits depend on its own sequence alone.
#[test]
fn chunks_company_and_threads_change_no_bit() {
    let mut random = Random(32);
    let lengths: &[_] = if emulated() { &[33, 7] } else { &[100, 33, 65, 7] };
    let shapes = [
        (64, 1, 3, Format::F16),
        (20, 2, 1, Format::Q8_0),
        (20, 2, 1, Format::F32),
        (16, 3, 8, Format::F16),
        (80, 1, 2, Format::F16),
        (80, 1, 6, Format::Q8_0),
    ];
    for (dim, kv, group, format) in shapes.into_iter().take(if emulated() { 2 } else { 6 }) {
        let heads = Heads { dim, kv, group };
        let (sequences, pages) = sequences(&mut random, heads, lengths);
        for isa in Isa::all() {
            let mut cpu = Cpu::new(1, isa).unwrap();
            let alone: Vec<Vec<u32>> = sequences
                .iter()
                .map(|s| {
                    let mut cache = cache(&mut cpu, heads.shape(format), pages);
                    bits(&step(&mut cpu, &mut cache, 0, &[(s, 0..s.length)])[0])
                })
                .collect();
            for threads in 1..=3 {
                let mut cpu = Cpu::new(threads, isa).unwrap();
                for chunk in [1, 7, 32, 1000] {
                    let mut cache = cache(&mut cpu, heads.shape(format), pages);
                    let mut found = vec![Vec::new(); sequences.len()];
                    // The others begin later, so that they meet at different positions.
                    let mut at: Vec<isize> = (0..sequences.len()).map(|i| -(i as isize * 3)).collect();
                    while at.iter().zip(&sequences).any(|(&at, s)| at < s.length as isize) {
                        let mut parts = Vec::new();
                        let mut owners = Vec::new();
                        for (i, s) in sequences.iter().enumerate() {
                            if at[i] < 0 {
                                at[i] += 1;
                            } else if (at[i] as usize) < s.length {
                                let start = at[i] as usize;
                                let end = s.length.min(start + chunk);
                                parts.push((s, start..end));
                                owners.push(i);
                                at[i] = end as isize;
                            }
                        }
                        if parts.is_empty() {
                            continue;
                        }
                        for (i, y) in owners.into_iter().zip(step(&mut cpu, &mut cache, 0, &parts)) {
                            found[i].extend(bits(&y));
                        }
                    }
                    let name = isa.name();
                    assert!(
                        found == alone,
                        "{heads:?} {format} on {name}, {threads} threads, chunks of {chunk}"
                    );
                }
            }
        }
    }
}

/// Two sequences share the page of their common beginning and go on in pages of their own: neither sees the other's.
#[test]
fn sequences_that_share_a_page_are_apart_after_it() {
    let mut random = Random(33);
    let heads = Heads { dim: 20, kv: 2, group: 2 };
    for format in FORMATS {
        for isa in Isa::all() {
            let mut cpu = Cpu::new(2, isa).unwrap();
            let (mut both, _) = sequences(&mut random, heads, &[60, 60]);
            let mut fork = both.pop().unwrap();
            let trunk = both.pop().unwrap();
            let shared = PAGE;
            for (to, from, cols) in [
                (&mut fork.q, &trunk.q, heads.q_cols()),
                (&mut fork.k, &trunk.k, heads.kv_cols()),
                (&mut fork.v, &trunk.v, heads.kv_cols()),
            ] {
                to[..shared * cols].copy_from_slice(&from[..shared * cols]);
            }
            let mut cache = cache(&mut cpu, heads.shape(format), 4);
            step(&mut cpu, &mut cache, 0, &[(&trunk, 0..shared)]);
            step(&mut cpu, &mut cache, 1, &[(&trunk, 0..shared)]);
            let spare = (0..4).find(|p| !trunk.pages.contains(p)).unwrap();
            fork.pages = vec![trunk.pages[0], spare];
            // New pages keep the content of old ones.
            cpu.grow(&mut cache, 9).unwrap();
            for layer in [1, 0] {
                let rest = step(&mut cpu, &mut cache, layer, &[(&trunk, shared..60), (&fork, shared..60)]);
                for (sequence, rest) in [&trunk, &fork].into_iter().zip(&rest) {
                    let mut fresh = self::cache(&mut cpu, heads.shape(format), 9);
                    let whole = step(&mut cpu, &mut fresh, 0, &[(sequence, 0..60)]);
                    let expected = &whole[0][shared * heads.q_cols()..];
                    assert_eq!(bits(rest), bits(expected), "{format} on {}, layer {layer}", isa.name());
                }
            }
        }
    }
}

/// Two layers of one cache hold different things.
#[test]
fn layers_are_apart() {
    let mut random = Random(34);
    let heads = Heads { dim: 16, kv: 2, group: 1 };
    let (pair, _) = sequences(&mut random, heads, &[50, 50]);
    let mut cpu = Cpu::new(1, Isa::best()).unwrap();
    let mut shared = cache(&mut cpu, heads.shape(Format::F16), 4);
    let mut alone = cache(&mut cpu, heads.shape(Format::F16), 4);
    // Both sequences in the pages of the first, each in its own layer.
    let second = Sequence {
        pages: pair[0].pages.clone(),
        heads,
        length: 50,
        q: pair[1].q.clone(),
        k: pair[1].k.clone(),
        v: pair[1].v.clone(),
    };
    step(&mut cpu, &mut shared, 0, &[(&pair[0], 0..40)]);
    step(&mut cpu, &mut shared, 1, &[(&second, 0..50)]);
    let found = step(&mut cpu, &mut shared, 0, &[(&pair[0], 40..50)]);
    let expected = step(&mut cpu, &mut alone, 0, &[(&pair[0], 0..50)]);
    assert_eq!(bits(&found[0]), bits(&expected[0][40 * heads.q_cols()..]));
}

#[test]
fn a_page_takes_the_bytes_that_its_shape_says() {
    let shape = CacheShape { layers: 3, kv_heads: 2, head_dim: 20, format: Format::F16 };
    assert_eq!(shape.padded_head_dim(), 32);
    assert_eq!(shape.page_bytes(), 2 * 3 * 2 * 32 * PAGE * 2);
    assert_eq!(CacheShape { format: Format::F32, ..shape }.page_bytes(), 2 * shape.page_bytes());
    assert_eq!(CacheShape { format: Format::Q8_0, ..shape }.page_bytes(), 2 * 3 * 2 * 34 * PAGE);
    // A head that is no whole number of blocks of 32 takes those that it begins.
    let shape = CacheShape { head_dim: 80, format: Format::Q8_0, ..shape };
    assert_eq!((shape.padded_head_dim(), shape.page_bytes()), (96, 2 * 3 * 2 * 3 * 34 * PAGE));
}

/// A sequence of one position answers with its value: in 8 bits within half a step, `max |x| / 254` over 32 dimensions, plus what
/// rounds the scale to a half (`2^-11` of up to 127 steps, or `2^-25` below the least normal half), whatever the size of the
/// values and wherever the blocks of a head end.
#[test]
fn eight_bits_keep_a_value_within_half_a_step() {
    let mut random = Random(35);
    for dim in [1, 8, 16, 31, 32, 33, 63, 64, 65, 80, 96, 128] {
        for size in [0.0, 1e-9, 1e-5, 1e-3, 1.0, 300.0, 1e6] {
            let heads = Heads { dim, kv: 2, group: 1 };
            let (mut sequences, pages) = sequences(&mut random, heads, &[1]);
            let sequence = &mut sequences[0];
            sequence.v.iter_mut().for_each(|v| *v *= size);
            // In each head, one block that is zero but for its last value.
            sequence.v.chunks_mut(dim).for_each(|head| head[..(dim - 1).min(31)].fill(0.0));
            let mut cpu = Cpu::new(1, Isa::best()).unwrap();
            let mut cache = cache(&mut cpu, heads.shape(Format::Q8_0), pages);
            let found = step(&mut cpu, &mut cache, 0, &[(sequence, 0..1)]);
            for (x, y) in sequence.v.chunks(dim).zip(found[0].chunks(dim)) {
                for (x, y) in x.chunks(32).zip(y.chunks(32)) {
                    let max = x.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
                    let bound = max * (1.0 / 254.0 + 1.0 / 2048.0) + 127.0 / (1u32 << 25) as f32;
                    assert!(
                        x.iter().zip(y).all(|(x, y)| (x - y).abs() <= bound),
                        "{dim} {size}: {x:?} {y:?}"
                    );
                }
            }
        }
    }
}

/// What is not finite stays so, and stays with its head: NaN in 8 bits would otherwise pass for a number.
#[test]
fn numbers_that_are_not_finite_are_not_hidden() {
    let mut random = Random(36);
    let heads = Heads { dim: 64, kv: 2, group: 1 };
    for format in FORMATS {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut sequences, pages) = sequences(&mut random, heads, &[1]);
            sequences[0].v[40] = wrong;
            for isa in Isa::all() {
                let mut cpu = Cpu::new(1, isa).unwrap();
                let mut cache = cache(&mut cpu, heads.shape(format), pages);
                let found = step(&mut cpu, &mut cache, 0, &[(&sequences[0], 0..1)]);
                assert!(
                    !found[0][40].is_finite(),
                    "{format} on {}: {wrong} became {}",
                    isa.name(),
                    found[0][40]
                );
                assert!(found[0][..32].iter().chain(&found[0][64..]).all(|y| y.is_finite()));
            }
        }
    }
}
