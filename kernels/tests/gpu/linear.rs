//! Linear layers and their grafts.
//!
//! The bound: an output of `n` inputs passes through `n / 256` fused or unfused multiply-adds of its lane,
//! two additions within and six across lanes, the scale, the bias and the residual stream. Each rounds once
//! or (unfused) twice, by an epsilon of at most the sum of magnitudes.

use std::ops::Range;

use graftwork_kernels::backend::{Backend, Change, Device, Graft, Output, StepShape};
use graftwork_kernels::cpu::{Cpu, isa::Isa};
use graftwork_kernels::{Format, Tensor};

use crate::random::Random;
use crate::{EPSILON, TINY, bits, check, normals, open, room, rows};

/// What an adapter changes, for some rows.
struct Lora {
    rows: Range<usize>,
    scale: f32,
    factors: Option<(Tensor, Tensor)>,
    bias: Option<Vec<f32>>,
}

/// A linear layer, its inputs, and what its outputs are added to.
struct Layer {
    weight: Tensor,
    bias: Option<Vec<f32>>,
    x: Vec<f32>,
    old: Option<Vec<f32>>,
}

fn tensor(random: &mut Random, format: Format, rows: usize, cols: usize) -> Tensor {
    Tensor::encode(format, rows, cols, &normals(random, rows * cols)).unwrap()
}

impl Layer {
    fn new(random: &mut Random, format: Format, [count, outputs, inputs]: [usize; 3], more: bool) -> Self {
        Self {
            weight: tensor(random, format, outputs, inputs),
            bias: more.then(|| normals(random, outputs)),
            x: normals(random, count * inputs),
            old: more.then(|| normals(random, count * outputs)),
        }
    }

    /// The outputs of the rows `range`, with the grafts that are on them.
    fn run<B: Backend>(&self, backend: &mut B, range: Range<usize>, loras: &[Lora]) -> Vec<f32> {
        let (count, outputs, inputs) = (range.len(), self.weight.rows(), self.weight.cols());
        let device = backend.device().clone();
        let matrix = |tensor: &Tensor| device.matrix(tensor).unwrap();
        let vector = |values: &Option<Vec<f32>>| values.as_ref().map(|v| device.vector(v).unwrap());
        let (weight, bias) = (matrix(&self.weight), vector(&self.bias));
        let prepared: Vec<_> = loras
            .iter()
            .map(|lora| (lora.factors.as_ref().map(|(a, b)| (matrix(a), matrix(b))), vector(&lora.bias)))
            .collect();
        let mut grafts: Vec<Graft<'_, B>> = Vec::new();
        for (lora, (factors, bias)) in loras.iter().zip(&prepared) {
            let cut = |row: usize| row.clamp(range.start, range.end) - range.start;
            let change = match factors {
                Some((a, b)) => Change::LowRank { a, b, inner: None, outer: None, bias: bias.as_ref() },
                None => Change::Bias(bias.as_ref().unwrap()),
            };
            grafts.push(Graft { rows: cut(lora.rows.start)..cut(lora.rows.end), scale: lora.scale, change });
        }
        let low = loras.iter().filter_map(|l| Some(l.rows.len() * l.factors.as_ref()?.0.rows())).sum();
        backend.reserve(&StepShape { rows: count, inputs, low, ..StepShape::default() }).unwrap();
        let x = rows(backend, &self.x[range.start * inputs..range.end * inputs], inputs);
        let mut y = match &self.old {
            Some(old) => rows(backend, &old[range.start * outputs..range.end * outputs], outputs),
            None => room(backend, count, outputs),
        };
        backend.step(|backend| {
            let (bias, accumulate) = (bias.as_ref(), self.old.is_some());
            let output = Output { y: &mut y, weight: &weight, bias, accumulate, grafts: &grafts };
            backend.linear(&x, &mut [output]);
        });
        backend.read(&y).to_vec()
    }

    /// The formula, and how far from it a result may be.
    fn exact(&self, loras: &[Lora]) -> (Vec<f64>, Vec<f64>) {
        let (outputs, inputs) = (self.weight.rows(), self.weight.cols());
        let weight = self.weight.decode().unwrap();
        let mut out = (Vec::new(), Vec::new());
        for (t, x) in self.x.chunks(inputs).enumerate() {
            let lows: Vec<_> = loras.iter().map(|lora| lora.low(t, x)).collect();
            for o in 0..outputs {
                let (mut sum, mut size) = dot(&weight[o * inputs..][..inputs], x);
                let old = self.old.as_ref().map_or(0.0, |old| old[t * outputs + o]);
                let bias = self.bias.as_ref().map_or(0.0, |bias| bias[o]);
                sum += f64::from(old) + f64::from(bias);
                size += f64::from(old).abs() + f64::from(bias).abs();
                let mut bound = size * (roundings(inputs) + 2.0);
                for (lora, low) in loras.iter().zip(lows.iter()) {
                    if let Some(low) = low {
                        let (change, error) = lora.change(o, low);
                        sum += change;
                        size += error;
                        bound += size + error * (roundings(inputs) + rank_roundings(low.len()));
                    }
                }
                out.0.push(sum);
                out.1.push(bound * EPSILON + TINY);
            }
        }
        out
    }
}

impl Lora {
    /// `scale A x` with the sums of magnitudes, if row `t` has this graft.
    fn low(&self, t: usize, x: &[f32]) -> Option<Vec<(f64, f64)>> {
        self.rows.contains(&t).then_some(())?;
        let Some((a, _)) = &self.factors else { return Some(Vec::new()) };
        let scale = f64::from(self.scale);
        let scaled = |(sum, size)| (scale * sum, scale.abs() * size);
        Some(a.decode().unwrap().chunks(a.cols()).map(|a| scaled(dot(a, x))).collect())
    }

    /// `B low + scale bias` of an output, and its sum of magnitudes.
    fn change(&self, o: usize, low: &[(f64, f64)]) -> (f64, f64) {
        let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(self.scale) * f64::from(bias[o]));
        let (mut sum, mut size) = (bias, bias.abs());
        if let Some((_, b)) = &self.factors {
            let mut row = vec![0.0; b.cols()];
            b.decode_row(o, &mut row);
            for (b, (low, magnitude)) in row.iter().zip(low) {
                sum += f64::from(*b) * low;
                size += f64::from(*b).abs() * magnitude;
            }
        }
        (sum, size)
    }
}

/// A sum of products and the sum of their magnitudes.
fn dot(w: &[f32], x: &[f32]) -> (f64, f64) {
    let products = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
    products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()))
}

/// Roundings on the way of a product into an output: its own, its lane's sum, four by four, across lanes, the
/// scale.
fn roundings(n: usize) -> f64 {
    (1 + n.div_ceil(256) + 2 + 6 + 1) as f64
}

/// The same for `B low`: one lane sums all the rank, four by four; then the bias.
fn rank_roundings(n: usize) -> f64 {
    (1 + n.div_ceil(4) + 2 + 1) as f64
}

/// What the CPU may be off the formula: a chain of up to 64 in a segment, the segments, bias and residual
/// stream.
fn cpu_roundings(n: usize) -> f64 {
    (64 + n.div_ceil(64) + 3) as f64
}

/// Three grafts, two of them on the same rows, and rows without.
fn loras(random: &mut Random, outputs: usize, inputs: usize) -> Vec<Lora> {
    let mut low_rank = |rows, rank, scale, format| Lora {
        rows,
        scale,
        factors: Some((tensor(random, format, rank, inputs), tensor(random, format, outputs, rank))),
        bias: (rank == 16).then(|| normals(random, outputs)),
    };
    let mut loras = vec![
        low_rank(0..2, 5, 0.5, Format::F16),
        low_rank(2..20, 16, -1.25, Format::F32),
        low_rank(1..11, 33, 2.0, Format::F16),
    ];
    loras.push(Lora { rows: 3..4, scale: 0.75, factors: None, bias: Some(normals(random, outputs)) });
    loras
}

/// Within the bound of the formula and so, with its own added, of the CPU; and a row's bits are those of the
/// row alone and of every smaller batch.
#[test]
fn every_size_equals_the_formula_and_the_cpu_in_any_company() {
    let Some(mut gpu) = open() else { return };
    let mut cpu = Cpu::new(1, Isa::best()).unwrap();
    let mut random = Random(71);
    for format in [Format::Q4_0, Format::F32, Format::Q8_0] {
        for inputs in [32, 64, 576] {
            for outputs in [1, 15, 16, 17, 48] {
                let name = format!("{format} [{outputs}, {inputs}]");
                let mut layer = Layer::new(&mut random, format, [33, outputs, inputs], outputs % 2 == 1);
                let found = layer.run(&mut gpu, 0..33, &[]);
                let (exact, bound) = layer.exact(&[]);
                check(&name, &found, &exact, &bound);
                for count in 1..=9 {
                    for start in [0, 33 - count, 11] {
                        let alone = layer.run(&mut gpu, start..start + count, &[]);
                        let part = &found[start * outputs..][..count * outputs];
                        assert_eq!(bits(&alone), bits(part), "{name}: {count} rows from {start}");
                    }
                }
                let decoded = layer.weight.decode().unwrap();
                layer.weight = Tensor::encode(Format::F32, outputs, inputs, &decoded).unwrap();
                let defined = layer.run(&mut cpu, 0..33, &[]);
                let defined: Vec<f64> = defined.iter().map(|x| f64::from(*x)).collect();
                let more = 1.0 + cpu_roundings(inputs) / roundings(inputs);
                check(&name, &found, &defined, &bound.iter().map(|b| b * more).collect::<Vec<_>>());
            }
        }
    }
}

/// A row's bits depend on its own grafts: not on those of others, not on how many rows have them.
#[test]
fn grafts_equal_the_formula_and_change_their_rows_alone() {
    let Some(mut gpu) = open() else { return };
    let mut random = Random(72);
    for format in [Format::Q4_0, Format::F32] {
        for (outputs, inputs) in [(1, 32), (17, 64), (48, 576)] {
            let layer = Layer::new(&mut random, format, [33, outputs, inputs], outputs != 48);
            let loras = loras(&mut random, outputs, inputs);
            let (base, found) = (layer.run(&mut gpu, 0..33, &[]), layer.run(&mut gpu, 0..33, &loras));
            let (exact, bound) = layer.exact(&loras);
            check(&format!("{format} [{outputs}, {inputs}]"), &found, &exact, &bound);
            let row = |values: &[f32], t: usize| bits(&values[t * outputs..][..outputs]);
            for t in 0..33 {
                assert_eq!(row(&base, t) == row(&found, t), t >= 20, "row {t}");
                assert_eq!(bits(&layer.run(&mut gpu, t..t + 1, &loras)), row(&found, t), "row {t} alone");
            }
        }
    }
}

/// What one step does is submitted once, however many layers it has; reading waits for it.
#[test]
fn a_step_is_submitted_once() {
    let Some(mut gpu) = open() else { return };
    let mut random = Random(73);
    let (count, cols) = (3, 64);
    let weight = tensor(&mut random, Format::Q4_0, cols, cols);
    let weight = gpu.device().matrix(&weight).unwrap();
    let ones = gpu.device().vector(&vec![1.0; cols]).unwrap();
    let mut x = rows(&mut gpu, &normals(&mut random, count * cols), cols);
    let mut n = room(&mut gpu, count, cols);
    let first = gpu.read(&x).to_vec();
    let before = gpu.submissions();
    gpu.step(|gpu| {
        for _ in 0..100 {
            gpu.rms_norm(&mut n, &x, 0..count, &ones, 1e-5);
            let output = Output { y: &mut x, weight: &weight, bias: None, accumulate: true, grafts: &[] };
            gpu.linear(&n, &mut [output]);
        }
        assert_eq!(gpu.submissions(), before, "nothing is submitted on the way");
    });
    assert_eq!(gpu.submissions(), before + 1);
    let last = gpu.read(&x).to_vec();
    assert!(last.iter().all(|x| x.is_finite()) && bits(&last) != bits(&first));
}
