//! Bottlenecks, rotations and directions on rows: against the formula in f64, equal to the bit on every instruction set and
//! for any number of threads, alone and in company, and nothing on the other rows.

use std::ops::Range;

use graftwork_kernels::backend::{
    Activation, Backend, BottleneckWeights, Change, Device, Graft, InputChange, InputGraft, Output, StepShape,
};
use graftwork_kernels::cpu::Cpu;
use graftwork_kernels::cpu::bottleneck::{Bottleneck, Rotation};
use graftwork_kernels::cpu::isa::Isa;
use graftwork_kernels::{Format, Tensor};

mod activations;
mod random;
use activations::{bits, normals, rows};
use random::Random;

/// The unit of rounding of f32, twice over.
const EPSILON: f64 = f32::EPSILON as f64;

/// Runs `operation` on every backend: all must give the same bits, which come back.
fn on_every_backend(operation: impl Fn(&mut Cpu) -> Vec<f32>) -> Vec<f32> {
    let mut first: Option<Vec<f32>> = None;
    for isa in Isa::all() {
        for threads in 1..=3 {
            let mut cpu = Cpu::new(threads, isa).unwrap();
            let found = operation(&mut cpu);
            let first = first.get_or_insert_with(|| found.clone());
            assert_eq!(bits(&found), bits(first), "{} with {threads} threads", isa.name());
        }
    }
    first.expect("there is a backend")
}

/// The error function, by its series where that converges soon.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

fn formula(act: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match act {
        Activation::Silu => x * sigmoid(x),
        Activation::Identity => x,
        Activation::Relu => x.max(0.0),
        Activation::LeakyRelu => {
            if x > 0.0 {
                x
            } else {
                x / 100.0
            }
        }
        Activation::SquaredRelu => x.max(0.0).powi(2),
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => sigmoid(x),
        Activation::Gelu => x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)) / 2.0,
        Activation::GeluTanh => {
            x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()) / 2.0
        }
        Activation::QuickGelu => x * sigmoid(1.702 * x),
    }
}

fn matrix(values: &[f32], cols: usize) -> Tensor {
    Tensor::encode(Format::F32, values.len() / cols, cols, values).unwrap()
}

/// A bottleneck and its values.
struct Made {
    weights: BottleneckWeights,
    down: Vec<f32>,
    up: Vec<f32>,
}

impl Made {
    fn new(random: &mut Random, [inputs, size, outputs]: [usize; 3], act: Activation, biases: bool) -> Self {
        let scaled = |random: &mut Random, n: usize, by: usize| -> Vec<f32> {
            normals(random, n).iter().map(|x| x / (by as f32).sqrt()).collect()
        };
        let (down, up) = (scaled(random, size * inputs, inputs), scaled(random, outputs * size, size));
        let weights = BottleneckWeights {
            down: matrix(&down, inputs),
            down_bias: biases.then(|| normals(random, size)),
            activation: act,
            up: matrix(&up, size),
            up_bias: biases.then(|| normals(random, outputs)),
        };
        Self { weights, down, up }
    }

    /// `z` of a row.
    fn define(&self, x: &[f64]) -> Vec<f64> {
        let dot = |w: &[f32], x: &[f64]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
        let bias = |bias: &Option<Vec<f32>>, i: usize| bias.as_ref().map_or(0.0, |bias| f64::from(bias[i]));
        let size = self.weights.down.rows();
        let inner: Vec<f64> = (self.down.chunks(x.len()).enumerate())
            .map(|(r, w)| dot(w, x) + bias(&self.weights.down_bias, r))
            .map(|x| formula(self.weights.activation, x))
            .collect();
        let outer = self.up.chunks(size).enumerate();
        outer.map(|(o, w)| dot(w, &inner) + bias(&self.weights.up_bias, o)).collect()
    }
}

/// Where the exponential is within 2 units in the last place and the error function within 1.5e-7, no activation is off by more
/// than some units of its argument, and less than 1e-37 is nothing.
#[test]
fn activations_equal_their_formulas() {
    let mut random = Random(51);
    let mut x: Vec<f32> = (0..4000).map(|i| (i as f32 - 2000.0) / 200.0).collect();
    x.extend(normals(&mut random, 1000));
    x.extend([0.0, -0.0, 1e-30, -1e-30, 100.0, -100.0, 1e15, -1e15, 3e38, -3e38]);
    for &act in Activation::ALL {
        let found = on_every_backend(|cpu| {
            let weights = BottleneckWeights {
                down: matrix(&[1.0], 1),
                down_bias: None,
                activation: act,
                up: matrix(&[1.0], 1),
                up_bias: None,
            };
            let bottleneck = cpu.device().bottleneck(&weights).unwrap();
            let weight = cpu.device().matrix(&matrix(&[0.0], 1)).unwrap();
            let count = x.len();
            cpu.reserve(&StepShape { rows: count, inputs: 1, low: count, ..StepShape::default() }).unwrap();
            let (input, mut y) = (rows(cpu, &x, 1), cpu.rows(1));
            cpu.resize(&mut y, count).unwrap();
            let graft = Graft { rows: 0..count, scale: 1.0, change: Change::Bottleneck(&bottleneck) };
            let grafts = &[graft];
            cpu.linear(
                &input,
                &mut [Output { y: &mut y, weight: &weight, bias: None, accumulate: false, grafts }],
            );
            cpu.read(&y).to_vec()
        });
        for (&x, &found) in x.iter().zip(&found) {
            let exact = formula(act, f64::from(x));
            if exact.abs() > f64::from(f32::MAX) {
                continue;
            }
            let error = (f64::from(found) - exact).abs();
            // An error of the exponent's argument, an ulp of it, is one of the result; where that is large, the result is 0 or x.
            let bound = match act {
                Activation::Identity | Activation::Relu => 0.0,
                _ => 4e-7 * (1.0 + f64::from(x).abs()).max(exact.abs()),
            };
            assert!(error <= bound, "{act:?} of {x}: {found}, not {exact}");
        }
    }
}

/// In place, one after the other, and beside a linear layer, with sizes around the strips.
#[test]
fn bottlenecks_equal_their_formula() {
    let mut random = Random(52);
    let count = 70;
    for ([inputs, size, outputs], act, biases) in [
        ([96, 12, 96], Activation::Tanh, true),
        ([33, 1, 47], Activation::Relu, true),
        ([47, 17, 33], Activation::Gelu, false),
        ([16, 48, 20], Activation::Silu, true),
    ] {
        let inner = Made::new(&mut random, [inputs, size, inputs], act, biases);
        let other = Made::new(&mut random, [inputs, size + 3, inputs], Activation::Identity, !biases);
        let beside = Made::new(&mut random, [inputs, size, outputs], act, biases);
        let x = normals(&mut random, count * inputs);
        let weight = normals(&mut random, outputs * inputs);
        let ranges: [Range<usize>; 3] = [3..69, 60..70, 1..66];
        let scales = [0.5f32, -1.0, 2.0];
        let run = |cpu: &mut Cpu, x: &[f32], ranges: &[Range<usize>; 3]| {
            let device = cpu.device().clone();
            let [a, b, c]: [Bottleneck; 3] =
                [&inner, &other, &beside].map(|made| device.bottleneck(&made.weights).unwrap());
            let count = x.len() / inputs;
            let low = count * (size + 3);
            cpu.reserve(&StepShape { rows: count, inputs, low, ..StepShape::default() }).unwrap();
            let mut input = rows(cpu, x, inputs);
            let graft =
                |i: usize, change| InputGraft::<Cpu> { rows: ranges[i].clone(), scale: scales[i], change };
            cpu.adapt(
                &mut input,
                &[graft(0, InputChange::Bottleneck(&a)), graft(1, InputChange::Bottleneck(&b))],
            );
            let mut found = cpu.read(&input).to_vec();
            let (input, mut y) = (rows(cpu, x, inputs), cpu.rows(outputs));
            cpu.resize(&mut y, count).unwrap();
            let weight = device.matrix(&matrix(&weight, inputs)).unwrap();
            let grafts =
                &[Graft { rows: ranges[2].clone(), scale: scales[2], change: Change::Bottleneck(&c) }];
            cpu.linear(
                &input,
                &mut [Output { y: &mut y, weight: &weight, bias: None, accumulate: false, grafts }],
            );
            found.extend_from_slice(&cpu.read(&y));
            found
        };
        let found = on_every_backend(|cpu| run(cpu, &x, &ranges));
        let (changed, beside_found) = found.split_at(count * inputs);
        for t in 0..count {
            let old: Vec<f64> = x[t * inputs..][..inputs].iter().map(|&x| f64::from(x)).collect();
            let mut new = old.clone();
            for (i, made) in [&inner, &other].into_iter().enumerate() {
                if ranges[i].contains(&t) {
                    let z = made.define(&new);
                    new.iter_mut().zip(z).for_each(|(x, z)| *x += f64::from(scales[i]) * z);
                }
            }
            // Sums of products of the order of 1, of which each is rounded; sixteen times that for both.
            let bound = 16.0 * (inputs as f64).sqrt() * EPSILON * 8.0;
            for (i, exact) in new.iter().enumerate() {
                let error = (f64::from(changed[t * inputs + i]) - exact).abs();
                assert!(error <= bound, "{act:?}, row {t}, value {i}: off by {error}");
            }
            if !ranges[0].contains(&t) && !ranges[1].contains(&t) {
                assert_eq!(changed[t * inputs..][..inputs], x[t * inputs..][..inputs]);
            }
            let z = beside.define(&old);
            for o in 0..outputs {
                let products =
                    weight[o * inputs..][..inputs].iter().zip(&old).map(|(w, x)| f64::from(*w) * x);
                let mut exact = products.sum::<f64>();
                if ranges[2].contains(&t) {
                    exact += f64::from(scales[2]) * z[o];
                }
                let error = (f64::from(beside_found[t * outputs + o]) - exact).abs();
                assert!(error <= bound, "{act:?}, row {t}, output {o}: off by {error}");
            }
        }
        // A row alone.
        let mut cpu = Cpu::new(2, Isa::best()).unwrap();
        let alone = 62;
        let one = run(&mut cpu, &x[alone * inputs..][..inputs], &[0..1, 0..1, 0..1]);
        assert_eq!(one[..inputs], changed[alone * inputs..][..inputs]);
        assert_eq!(one[inputs..], beside_found[alone * outputs..][..outputs]);
    }
}

/// Blocks of their own and one for all, of sizes below, at and above a strip.
#[test]
fn rotations_equal_their_formula() {
    let mut random = Random(53);
    let count = 70;
    for (size, blocks, share) in [(3, 11, false), (16, 2, false), (32, 3, true), (40, 3, false), (1, 5, true)]
    {
        let cols = size * blocks;
        let kept = if share { 1 } else { blocks };
        let r = normals(&mut random, kept * size * size);
        let x = normals(&mut random, count * cols);
        let run = |cpu: &mut Cpu, x: &[f32], range: Range<usize>| {
            let blocks: Vec<Tensor> = r.chunks(size * size).map(|block| matrix(block, size)).collect();
            let rotation: Rotation = cpu.device().rotation(&blocks).unwrap();
            let low = x.len();
            cpu.reserve(&StepShape { rows: count, inputs: cols, low, ..StepShape::default() }).unwrap();
            let mut input = rows(cpu, x, cols);
            cpu.adapt(
                &mut input,
                &[InputGraft { rows: range, scale: 1.0, change: InputChange::Rotate(&rotation) }],
            );
            cpu.read(&input).to_vec()
        };
        let found = on_every_backend(|cpu| run(cpu, &x, 2..69));
        for (t, (found, x)) in found.chunks(cols).zip(x.chunks(cols)).enumerate() {
            if !(2..69).contains(&t) {
                assert_eq!(found, x, "row {t}");
                continue;
            }
            for (at, found) in found.iter().enumerate() {
                let (k, c) = (at / size, at % size);
                let block = &r[if share { 0 } else { k * size * size }..];
                let products = (0..size).map(|j| f64::from(x[k * size + j]) * f64::from(block[j * size + c]));
                let (sum, magnitude) = products.fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()));
                let error = (f64::from(*found) - sum).abs();
                assert!(
                    error <= magnitude * size as f64 * EPSILON,
                    "blocks of {size}, row {t}, {at}: off by {error}"
                );
            }
        }
        let mut cpu = Cpu::new(1, Isa::best()).unwrap();
        assert_eq!(run(&mut cpu, &x[68 * cols..][..cols], 0..1), found[68 * cols..][..cols]);
    }
}

/// A product, a sum: the bits of plain arithmetic.
#[test]
fn directions_and_rows_are_added() {
    let mut random = Random(54);
    let (count, cols) = (9, 35);
    let [x, other] = [0; 2].map(|_| normals(&mut random, count * cols));
    let direction = normals(&mut random, cols);
    let found = on_every_backend(|cpu| {
        let vector = cpu.device().direction(&direction).unwrap();
        let mut y = rows(cpu, &x, cols);
        cpu.adapt(&mut y, &[InputGraft { rows: 2..7, scale: -0.75, change: InputChange::Add(&vector) }]);
        let other = rows(cpu, &other, cols);
        cpu.add(&mut y, &other);
        cpu.read(&y).to_vec()
    });
    for (i, found) in found.iter().enumerate() {
        let steered = if (2..7).contains(&(i / cols)) { x[i] + -0.75 * direction[i % cols] } else { x[i] };
        assert_eq!(found.to_bits(), (steered + other[i]).to_bits(), "value {i}");
    }
}
