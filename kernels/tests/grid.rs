//! Linear layers of every format on every instruction set, at the edges of strips and blocks, of 1 to 33 rows: each output within a
//! derived bound of the exact sum, and each row with the bits that it has alone, whatever the rows beside it, the
//! threads, and the grafts.

use graftwork_kernels::backend::{Backend, Change, Device, Graft, Output, StepShape};
use graftwork_kernels::cpu::Cpu;
use graftwork_kernels::cpu::isa::Isa;
use graftwork_kernels::{Format, Tensor};

mod activations;
mod random;
use activations::{bits, emulated, normals, rows, weights};
use random::Random;

/// Most rows of a product.
const MOST: usize = 33;

/// Of the low-rank graft, whose scale is [`SCALE`]; the bias graft has [`BIAS_SCALE`].
const RANK: usize = 3;
const SCALE: f32 = -0.75;
const BIAS_SCALE: f32 = 1.5;

const EPSILON: f64 = f32::EPSILON as f64;

/// What one layer computes with.
struct Layer {
    weight: Tensor,
    bias: Vec<f32>,
    a: Tensor,
    b: Tensor,
    shift: Vec<f32>,
    /// `[MOST, inputs]`.
    x: Vec<f32>,
    /// `weight`, `a` and `b`, decoded.
    decoded: [Vec<f32>; 3],
}

impl Layer {
    fn random(random: &mut Random, format: Format, outputs: usize, inputs: usize) -> Self {
        let mut tensor = |format, r, c| weights(random, format, r, c);
        let (weight, a, b) = (
            tensor(format, outputs, inputs),
            tensor(Format::F16, RANK, inputs),
            tensor(Format::F16, outputs, RANK),
        );
        let (bias, shift) = (normals(random, outputs), normals(random, outputs));
        let decoded = [&weight, &a, &b].map(|tensor| tensor.decode().unwrap());
        Self { weight, bias, a, b, shift, x: normals(random, MOST * inputs), decoded }
    }

    fn outputs(&self) -> usize {
        self.bias.len()
    }

    /// The first `count` rows from `first` on through the layer: the low-rank graft on those that `low` names, the bias graft on those
    /// of `shifted`, both counted from `first`.
    fn run(&self, cpu: &mut Cpu, matrices: &Matrices, part: &Part) -> Vec<f32> {
        let cols = self.x.len() / MOST;
        let input = rows(cpu, &self.x[part.first * cols..][..part.count * cols], cols);
        let mut y = cpu.rows(self.outputs());
        cpu.resize(&mut y, part.count).unwrap();
        let Matrices { weight, bias, a, b, shift } = matrices;
        let mut grafts: Vec<Graft<'_, Cpu>> = Vec::new();
        if !part.low.is_empty() {
            let change = Change::LowRank { a, b, inner: None, outer: None, bias: Some(shift) };
            grafts.push(Graft { rows: part.low.clone(), scale: SCALE, change });
        }
        if !part.shifted.is_empty() {
            grafts.push(Graft { rows: part.shifted.clone(), scale: BIAS_SCALE, change: Change::Bias(shift) });
        }
        let output = Output { y: &mut y, weight, bias: Some(bias), accumulate: false, grafts: &grafts };
        cpu.linear(&input, &mut [output]);
        cpu.read(&y).to_vec()
    }

    /// The exact outputs of row `t` under the grafts, and how far off each may be.
    fn exact(&self, t: usize, low: bool, shifted: bool) -> Vec<(f64, f64)> {
        let cols = self.x.len() / MOST;
        let x = &self.x[t * cols..][..cols];
        let [weight, a, b] = &self.decoded;
        let product = |o: usize| {
            let (mut sum, mut bound) = base(self.weight.format(), &weight[o * cols..][..cols], x);
            let mut terms = sum.abs() + f64::from(self.bias[o].abs());
            sum += f64::from(self.bias[o]);
            if low {
                for r in 0..RANK {
                    let (ax, ax_bound) = float(&a[r * cols..][..cols], x);
                    let bs = f64::from(b[o * RANK + r]) * f64::from(SCALE);
                    sum += bs * ax;
                    terms += (bs * ax).abs();
                    bound += bs.abs() * ax_bound;
                }
            }
            for (on, scale) in [(low, SCALE), (shifted, BIAS_SCALE)] {
                if on {
                    let shift = f64::from(scale) * f64::from(self.shift[o]);
                    sum += shift;
                    terms += shift.abs();
                }
            }
            // Scaling `A x`, `RANK` products, two shifts and the bias: so many roundings of partial sums.
            (sum, bound + (RANK + 6) as f64 * EPSILON * terms)
        };
        (0..self.outputs()).map(product).collect()
    }
}

/// Some consecutive rows, and which of them have which graft.
struct Part {
    first: usize,
    count: usize,
    low: std::ops::Range<usize>,
    shifted: std::ops::Range<usize>,
}

/// A layer as prepared.
struct Matrices {
    weight: <<Cpu as Backend>::Device as Device>::Matrix,
    bias: Vec<f32>,
    a: <<Cpu as Backend>::Device as Device>::Matrix,
    b: <<Cpu as Backend>::Device as Device>::Matrix,
    shift: Vec<f32>,
}

/// `sum_i w_i x_i` in f32, and how far off it may be: segments of 64 products, a chain each, then a chain of segments.
/// A product goes through one rounding for each addition after it, of at most half an epsilon of what is summed (a whole one covers the
/// second order).
fn float(w: &[f32], x: &[f32]) -> (f64, f64) {
    let products = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
    let (sum, terms) = products.fold((0.0, 0.0), |(sum, terms), p| (sum + p, terms + p.abs()));
    let roundings = w.len().min(64) + w.len().div_ceil(64) + 1;
    (sum, roundings as f64 * EPSILON * terms)
}

/// `sum_i w_i x_i` for weights of a format, and how far off it may be.
///
/// With integer codes, `x` is rounded to multiples of `d = max |x| / 127` in groups of 16: off by half a `d`, and by some
/// roundings of f32 in `d`, its inverse and their products, each below `128 epsilon d`. Weights are `d_w q + m`: `|m|` is at most
/// about the largest weight that shares the scale (the smallest code is 0 or near it), and `|d_w q|` twice that, so what is summed
/// is at most four times that weight. Each block of 32 adds up to four roundings.
fn base(format: Format, w: &[f32], x: &[f32]) -> (f64, f64) {
    if format.block_len() == 1 {
        return float(w, x);
    }
    let largest = |values: &[f32]| f64::from(values.iter().fold(0.0f32, |m, v| m.max(v.abs())));
    let (mut sum, mut rounding, mut terms) = (0.0, 0.0, 0.0);
    // In K formats, groups of 16 have a scale of their own.
    let scaled = if format.block_len() == 256 { 16 } else { format.block_len() };
    for (w, x) in w.chunks(scaled).zip(x.chunks(scaled)) {
        let most = 4.0 * largest(w);
        for (w, x) in w.chunks(16).zip(x.chunks(16)) {
            let d = largest(x) / 127.0;
            for (w, x) in w.iter().zip(x) {
                sum += f64::from(*w) * f64::from(*x);
                rounding += f64::from(w.abs()) * d * (0.5 + 4.0 * 128.0 * EPSILON);
            }
            terms += most * x.iter().map(|x| f64::from(x.abs()) + d).sum::<f64>();
        }
    }
    (sum, rounding + (4 * w.len().div_ceil(32) + 6) as f64 * EPSILON * terms)
}

#[test]
fn rows_of_float_formats_are_within_their_bounds_and_equal_to_themselves_alone() {
    check_formats(&|format| format.block_len() == 1);
}

#[test]
fn rows_of_integer_formats_are_within_their_bounds_and_equal_to_themselves_alone() {
    check_formats(&|format| format.block_len() > 1);
}

/// Of a unit vector the 8-bit code and its scale make one again, so the product is the weight but for some roundings of f32: of `d_w q`
/// and `m`, at most four times the largest weight of a block together, not more than sixteen.
#[test]
fn unit_vectors_give_back_the_decoded_weights() {
    let mut random = Random(12);
    let outputs = if emulated() { 17 } else { 33 };
    for &format in Format::ALL {
        let cols = format.block_len().max(32) * if emulated() { 1 } else { 2 };
        let weight = weights(&mut random, format, outputs, cols);
        let decoded = weight.decode().unwrap();
        let units: Vec<f32> = (0..cols * cols).map(|i| f32::from(u8::from(i / cols == i % cols))).collect();
        for isa in Isa::all() {
            let mut cpu = Cpu::new(1, isa).unwrap();
            cpu.reserve(&StepShape { rows: cols, inputs: cols, ..StepShape::default() }).unwrap();
            let matrix = cpu.device().matrix(&weight).unwrap();
            let input = rows(&mut cpu, &units, cols);
            let mut y = cpu.rows(outputs);
            cpu.resize(&mut y, cols).unwrap();
            let output = Output { y: &mut y, weight: &matrix, bias: None, accumulate: false, grafts: &[] };
            cpu.linear(&input, &mut [output]);
            let found = cpu.read(&y);
            for (o, row) in decoded.chunks(cols).enumerate() {
                for (b, block) in row.chunks(format.block_len().max(32)).enumerate() {
                    let bound = block.iter().fold(0.0f32, |most, w| most.max(w.abs())) * 64.0 * f32::EPSILON;
                    for (i, w) in block.iter().enumerate() {
                        let t = b * block.len() + i;
                        let y = found[t * outputs + o];
                        let same = (y - w).abs() <= bound;
                        assert!(same, "{format}, row {o}, column {t} on {}: {y}, not {w}", isa.name());
                    }
                }
            }
        }
    }
}

fn check_formats(which: &dyn Fn(Format) -> bool) {
    let isas = Isa::all();
    let threads: &[usize] = if emulated() { &[1] } else { &[1, 2, 3] };
    let counts: Vec<usize> = if emulated() { vec![1, 2, 5, MOST] } else { (1..=MOST).collect() };
    let mut cpus: Vec<Vec<Cpu>> = isas
        .iter()
        .map(|&isa| threads.iter().map(|&threads| Cpu::new(threads, isa).unwrap()).collect())
        .collect();
    let largest = StepShape { rows: MOST, inputs: 3 * 256, low: MOST * RANK, ..StepShape::default() };
    cpus.iter_mut().flatten().for_each(|cpu| cpu.reserve(&largest).unwrap());
    let mut random = Random(11);
    for &format in Format::ALL.iter().filter(|&&format| which(format)) {
        let inputs = match format.block_len() {
            1 => vec![1, 63, 64, 65, 127, 129],
            // With many rows 256 columns may be multiplied at a time.
            block @ 32..256 => vec![block, 2 * block, 3 * block, 256 + block],
            block => vec![block, 2 * block, 3 * block],
        };
        for outputs in [1, 15, 16, 17, 31, 33] {
            for &inputs in &inputs {
                let layer = Layer::random(&mut random, format, outputs, inputs);
                check(&layer, &mut cpus, &counts);
            }
        }
    }
}

/// One layer, on each instruction set with each number of threads.
fn check(layer: &Layer, cpus: &mut [Vec<Cpu>], counts: &[usize]) {
    let outputs = layer.outputs();
    let shape = format!("{} [{outputs}, {}]", layer.weight.format(), layer.x.len() / MOST);
    // By which grafts a row has, then by row: alone on the first instruction set, the definition.
    let mut alone: Option<[Vec<Vec<u32>>; 4]> = None;
    for cpus in cpus {
        let device = cpus[0].device().clone();
        let matrix = |tensor| device.matrix(tensor).unwrap();
        let matrices = Matrices {
            weight: matrix(&layer.weight),
            bias: device.vector(&layer.bias).unwrap(),
            a: matrix(&layer.a),
            b: matrix(&layer.b),
            shift: device.vector(&layer.shift).unwrap(),
        };
        let isa = cpus[0].isa().name();
        let alone = alone.get_or_insert_with(|| {
            std::array::from_fn(|which| {
                let (low, shifted) = (which & 1, which >> 1);
                let row = |t: usize| {
                    let part = Part { first: t, count: 1, low: 0..low, shifted: 0..shifted };
                    let found = layer.run(&mut cpus[0], &matrices, &part);
                    for (o, (found, (exact, bound))) in
                        found.iter().zip(layer.exact(t, low == 1, shifted == 1)).enumerate()
                    {
                        let off = (f64::from(*found) - exact).abs();
                        assert!(
                            off <= bound,
                            "{shape}, row {t}, output {o}, grafts {which}: {off} > {bound}"
                        );
                    }
                    bits(&found)
                };
                (0..MOST).map(row).collect()
            })
        });
        for &count in counts {
            let parts = [
                Part { first: 0, count, low: 0..0, shifted: 0..0 },
                // On some rows one, on some both, on the first and the last few other ones.
                Part { first: 0, count, low: count / 3..count, shifted: 0..count - count / 4 },
            ];
            for part in &parts {
                for cpu in &mut *cpus {
                    let threads = cpu.threads();
                    let found = bits(&layer.run(cpu, &matrices, part));
                    for (t, found) in found.chunks(outputs).enumerate() {
                        let which =
                            usize::from(part.low.contains(&t)) | usize::from(part.shifted.contains(&t)) << 1;
                        let same = found == alone[which][t];
                        assert!(
                            same,
                            "{shape}: row {t} of {count} with grafts {which}, {threads} threads, {isa}"
                        );
                    }
                }
            }
        }
    }
}
