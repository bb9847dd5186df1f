//! Linear layers of every format on every instruction set, against the definition written out on the raw blocks.

use std::ops::Range;
use std::sync::Arc;

use graftwork_kernels::backend::{
    Backend, Change, Device, Generate, Graft, InputChange, InputGraft, Output, StepShape,
};
use graftwork_kernels::cpu::isa::Isa;
use graftwork_kernels::cpu::{Cpu, Rows};
use graftwork_kernels::{Format, Tensor};

mod random;
use random::Random;

/// Rows of activations in the backend.
fn rows(cpu: &mut Cpu, values: &[f32], cols: usize) -> Rows {
    let mut rows = cpu.rows(cols);
    let count = values.len() / cols;
    cpu.resize(&mut rows, count).unwrap();
    let table = Tensor::encode(Format::F32, count, cols, values).unwrap();
    cpu.embed(&mut rows, &table, &(0..count as u32).collect::<Vec<_>>());
    rows
}

/// `max |x| / 127` and the codes of one group of activations.
fn to_8_bits(x: &[f32]) -> (f32, Vec<i32>) {
    let max = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
    (max / 127.0, x.iter().map(|x| (x * inverse).round_ties_even() as i32).collect())
}

/// One output of one row, as `cpu::strip` defines it, from the decoded weights of the row. The scale and
/// minimum of a block are recovered from its values' definition: codes are whole numbers.
fn define(format: Format, row: &[u8], x: &[f32]) -> f32 {
    if format.block_len() == 1 {
        let mut w = vec![0.0; x.len()];
        format.decode(row, &mut w);
        let mut sum = 0.0f32;
        for (w, x) in w.chunks(64).zip(x.chunks(64)) {
            sum += w.iter().zip(x).fold(0.0f32, |s, (w, x)| w.mul_add(*x, s));
        }
        return sum;
    }
    let blocks = row.chunks(format.block_bytes()).flat_map(|bytes| parse(format, bytes).unwrap());
    let (mut sum, mut rest) = (0.0f32, x);
    for block in blocks {
        let (x, after) = rest.split_at(block.codes.len());
        rest = after;
        let groups: Vec<_> = x.chunks(16).map(to_8_bits).collect();
        let dot = |g: usize| {
            let products = block.codes[16 * g..16 * g + 16].iter().zip(&groups[g].1).map(|(w, x)| w * x);
            products.sum::<i32>() as f32
        };
        let dsum = |g: usize| groups[g].0 * groups[g].1.iter().sum::<i32>() as f32;
        if block.grouped {
            for g in 0..2 {
                sum = block.d[g].mul_add(groups[g].0 * dot(g), sum);
                if let Some(m) = block.m {
                    sum = m[g].mul_add(dsum(g), sum);
                }
            }
            continue;
        }
        let (mut products, mut ones) = (0.0f32, 0.0f32);
        for g in (0..groups.len()).step_by(2) {
            products = groups[g].0.mul_add(dot(g), products);
            products = groups[g + 1].0.mul_add(dot(g + 1), products);
            ones += dsum(g) + dsum(g + 1);
        }
        sum = block.d[0].mul_add(products, sum);
        if let Some(m) = block.m {
            sum = m[0].mul_add(ones, sum);
        }
    }
    sum
}

/// Thirty-two values `d code + m`, with one `d` and `m` or two, or more with one.
struct Parsed {
    codes: Vec<i32>,
    d: [f32; 2],
    m: Option<[f32; 2]>,
    grouped: bool,
}

/// The blocks of 32 values in a block of the format; `None` of those whose arithmetic is not written out here: `grid.rs` holds all
/// formats against their decoded values.
fn parse(format: Format, bytes: &[u8]) -> Option<Vec<Parsed>> {
    let half = |at: usize| half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
    let one = |d: f32, m: Option<f32>, codes: Vec<i32>| {
        vec![Parsed { codes, d: [d; 2], m: m.map(|m| [m; 2]), grouped: false }]
    };
    let nibble = |codes: &[u8], i: usize| i32::from(if i < 16 { codes[i] & 15 } else { codes[i - 16] >> 4 });
    let fifth = |bits: &[u8], i: usize| i32::from(bits[i / 8] >> (i % 8) & 1) << 4;
    // Value `i` of 256, of which the codes of `8 / width` values 32 apart lie in a byte.
    let field = |codes: &[u8], i: usize, width: usize| {
        let per = 8 / width;
        let byte = codes[i / (32 * per) * 32 + i % 32];
        i32::from(byte >> (width * (i / 32 % per)) & (0xff >> (8 - width)))
    };
    let all = |code: &dyn Fn(usize) -> i32| (0..256).map(code).collect::<Vec<_>>();
    let many = |codes: Vec<i32>, scales: &dyn Fn(usize) -> (f32, Option<f32>), grouped: bool| {
        let blocks = codes.chunks(32).enumerate().map(|(b, codes)| {
            let [(d0, m0), (d1, m1)] = [scales(2 * b), scales(2 * b + 1)];
            let m = m0.zip(m1).map(|(m0, m1)| [m0, m1]);
            Parsed { codes: codes.to_vec(), d: [d0, d1], m, grouped }
        });
        blocks.collect::<Vec<_>>()
    };
    // Scale and minimum of eight blocks, 6 bits each: the first four whole, the upper two bits of the others above them.
    let six = |b: usize| {
        let s = &bytes[4..16];
        match b {
            0..4 => (s[b] & 63, s[b + 4] & 63),
            _ => (s[b + 4] & 15 | s[b - 4] >> 6 << 4, s[b + 4] >> 4 | s[b] >> 6 << 4),
        }
    };
    let by_six = |g: usize| {
        let (d, m) = six(g / 2);
        (half(0) * f32::from(d), Some(-(half(2) * f32::from(m))))
    };
    let blocks = match format {
        Format::Q8_0 => one(half(0), None, bytes[2..].iter().map(|&c| i32::from(c as i8)).collect()),
        Format::Q4_0 => one(half(0), None, (0..32).map(|i| nibble(&bytes[2..], i) - 8).collect()),
        Format::Q4_1 => one(half(0), Some(half(2)), (0..32).map(|i| nibble(&bytes[4..], i)).collect()),
        Format::Q5_0 => {
            let code = |i| (nibble(&bytes[6..], i) | fifth(&bytes[2..6], i)) - 16;
            one(half(0), None, (0..32).map(code).collect())
        }
        Format::Q5_1 => {
            let code = |i| nibble(&bytes[8..], i) | fifth(&bytes[4..8], i);
            one(half(0), Some(half(2)), (0..32).map(code).collect())
        }
        Format::Q2K => {
            let scale = |g: usize| {
                let (d, m) = (bytes[g] & 15, bytes[g] >> 4);
                (half(80) * f32::from(d), Some(-(half(82) * f32::from(m))))
            };
            many(all(&|i| field(&bytes[16..80], i, 2)), &scale, true)
        }
        Format::Q3K => {
            let scale = |g: usize| {
                let low = bytes[96 + g % 8] >> (4 * (g / 8)) & 15;
                let high = bytes[104 + g % 4] >> (2 * (g / 4)) & 3;
                (half(108) * (f32::from(low | high << 4) - 32.0), None)
            };
            let code = |i| (field(&bytes[32..96], i, 2) | field(&bytes[..32], i, 1) << 2) - 4;
            many(all(&code), &scale, true)
        }
        Format::Q4K => many(all(&|i| field(&bytes[16..], i, 4)), &by_six, false),
        Format::Q5K => {
            let code = |i| field(&bytes[48..], i, 4) | field(&bytes[16..48], i, 1) << 4;
            many(all(&code), &by_six, false)
        }
        Format::Q6K => {
            let scale = |g: usize| (half(208) * f32::from(bytes[192 + g] as i8), None);
            // Of 128 values, two blocks of 32 lie in the low nibbles of 64 bytes and two in the high ones.
            let low = |i: usize| {
                let byte = bytes[i / 128 * 64 + i % 64];
                i32::from(byte >> (4 * (i % 128 / 64)) & 15)
            };
            many(all(&|i| (low(i) | field(&bytes[128..192], i, 2) << 4) - 32), &scale, true)
        }
        Format::Sign => {
            let code = |i: usize| 2 * i32::from(bytes[i / 8] >> (i % 8) & 1) - 1;
            one(1.0, None, (0..32).map(code).collect())
        }
        _ if format.name().starts_with('W') => {
            let bits: usize = format.name()[1..2].parse().unwrap();
            let bit = |at: usize| i32::from(bytes[3 + at / 8] >> (at % 8) & 1);
            // What is multiplied are bytes: codes of 8 bits are signed.
            let less = if bits == 8 { 128 } else { 0 };
            let code = |i: usize| (0..bits).map(|b| bit(bits * i + b) << b).sum::<i32>() - less;
            let (d, m) = (half(0), half(0) * (less as f32 - f32::from(bytes[2])));
            one(d, Some(m), (0..format.block_len()).map(code).collect())
        }
        _ => return None,
    };
    Some(blocks)
}

/// The formats whose arithmetic is written out here.
fn defined() -> impl Iterator<Item = Format> {
    let known =
        |format: &Format| format.block_len() == 1 || parse(*format, &vec![0; format.block_bytes()]).is_some();
    Format::ALL.iter().copied().filter(known)
}

#[test]
fn formats_on_every_isa_give_the_bits_of_the_definition() {
    let mut random = Random(1);
    assert!(defined().count() > 20);
    for format in defined() {
        let shapes = match format.block_len() {
            256 => [(1, 256), (15, 512), (16, 768), (33, 1536)].as_slice(),
            block @ (64 | 128) => {
                &[(1, block), (15, 2 * block), (16, 3 * block), (17, 5 * block), (33, 1536)]
            }
            _ => [(1, 32), (15, 64), (16, 96), (17, 320), (48, 576), (33, 1536)].as_slice(),
        };
        for &(outputs, inputs) in shapes {
            let values: Vec<f32> = (0..outputs * inputs).map(|_| random.normal()).collect();
            let weight = Tensor::encode(format, outputs, inputs, &values).unwrap();
            let bias: Vec<f32> = (0..outputs).map(|_| random.normal()).collect();
            for count in [1, 2, 3, 4, 5, 7, 8, 9, 13] {
                let x: Vec<f32> = (0..count * inputs).map(|_| random.normal()).collect();
                let mut expected = Vec::new();
                for x in x.chunks(inputs) {
                    for (o, row) in weight.bytes().chunks(weight.row_bytes()).enumerate() {
                        expected.push(define(format, row, x) + bias[o]);
                    }
                }
                for isa in Isa::all() {
                    for threads in [1, 3] {
                        let mut cpu = Cpu::new(threads, isa).unwrap();
                        cpu.reserve(&StepShape { rows: count, inputs, ..StepShape::default() }).unwrap();
                        let input = rows(&mut cpu, &x, inputs);
                        let matrix = cpu.device().matrix(&weight).unwrap();
                        let bias = cpu.device().vector(&bias).unwrap();
                        let mut y = cpu.rows(outputs);
                        cpu.resize(&mut y, count).unwrap();
                        let output = Output {
                            y: &mut y,
                            weight: &matrix,
                            bias: Some(&bias),
                            accumulate: false,
                            grafts: &[],
                        };
                        cpu.linear(&input, &mut [output]);
                        let found = cpu.read(&y);
                        let same = found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{format} [{outputs}, {inputs}] times {count} rows on {}", isa.name());
                    }
                }
            }
        }
    }
}

/// The 8-bit rounding of activations is the only error beside f32 rounding: half a step of each block's scale.
#[test]
fn quantized_outputs_are_within_the_rounding_of_activations() {
    let mut random = Random(2);
    for &format in Format::ALL {
        let (outputs, inputs) = (24, 512);
        let values: Vec<f32> = (0..outputs * inputs).map(|_| random.normal()).collect();
        let weight = Tensor::encode(format, outputs, inputs, &values).unwrap();
        let decoded = weight.decode().unwrap();
        let x: Vec<f32> = (0..inputs).map(|_| random.normal()).collect();
        let mut cpu = Cpu::new(1, Isa::best()).unwrap();
        cpu.reserve(&StepShape { rows: 1, inputs, ..StepShape::default() }).unwrap();
        let input = rows(&mut cpu, &x, inputs);
        let matrix = cpu.device().matrix(&weight).unwrap();
        let mut y = cpu.rows(outputs);
        cpu.resize(&mut y, 1).unwrap();
        cpu.linear(
            &input,
            &mut [Output { y: &mut y, weight: &matrix, bias: None, accumulate: false, grafts: &[] }],
        );
        for (o, found) in cpu.read(&y).iter().enumerate() {
            let row = &decoded[o * inputs..][..inputs];
            let exact: f64 = row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            let magnitude: f64 = row.iter().zip(&x).map(|(w, x)| f64::from((w * x).abs())).sum();
            let rounding: f64 = if format.block_len() == 1 {
                0.0
            } else {
                let blocks = row.chunks(16).zip(x.chunks(16));
                blocks
                    .map(|(w, x)| {
                        w.iter().map(|w| f64::from(w.abs())).sum::<f64>() * f64::from(to_8_bits(x).0) / 2.0
                    })
                    .sum()
            };
            let bound = rounding + magnitude * inputs as f64 * f64::from(f32::EPSILON);
            assert!(
                (f64::from(*found) - exact).abs() <= bound,
                "{format} output {o}: {found} against {exact}"
            );
        }
    }
}

/// `y += s B A x` for the rows of each graft, and nothing for the others; accumulation adds to what is there.
#[test]
fn grafts_change_their_rows_alone_and_equal_the_formula() {
    let mut random = Random(3);
    let (inputs, outputs, count) = (96, 40, 9);
    let tensor = |random: &mut Random, format, r, c| {
        let values: Vec<f32> = (0..r * c).map(|_| random.normal()).collect();
        Tensor::encode(format, r, c, &values).unwrap()
    };
    let weight = tensor(&mut random, Format::Q4_1, outputs, inputs);
    let x: Vec<f32> = (0..count * inputs).map(|_| random.normal()).collect();
    let old: Vec<f32> = (0..count * outputs).map(|_| random.normal()).collect();
    let specs: [(Range<usize>, usize, f32, Format); 3] =
        [(0..2, 5, 0.5, Format::F16), (2..7, 16, -1.25, Format::F32), (1..7, 33, 2.0, Format::BF16)];
    let factors: Vec<_> = specs
        .iter()
        .map(|(_, r, _, f)| (tensor(&mut random, *f, *r, inputs), tensor(&mut random, *f, outputs, *r)))
        .collect();
    let shift: Vec<f32> = (0..outputs).map(|_| random.normal()).collect();
    let mut base = Vec::new();
    let mut reference: Option<Vec<u32>> = None;
    for isa in Isa::all() {
        for threads in [1, 2] {
            let mut cpu = Cpu::new(threads, isa).unwrap();
            let low = specs.iter().map(|(rows, rank, ..)| rows.len() * rank).sum();
            cpu.reserve(&StepShape { rows: count, inputs, low, ..StepShape::default() }).unwrap();
            let device = cpu.device().clone();
            let input = rows(&mut cpu, &x, inputs);
            let matrix = device.matrix(&weight).unwrap();
            let prepared: Vec<_> =
                factors.iter().map(|(a, b)| (device.matrix(a).unwrap(), device.matrix(b).unwrap())).collect();
            let shift_vector = device.vector(&shift).unwrap();
            let mut grafts: Vec<Graft<'_, Cpu>> = specs
                .iter()
                .zip(&prepared)
                .map(|((rows, _, scale, _), (a, b))| Graft {
                    rows: rows.clone(),
                    scale: *scale,
                    change: Change::LowRank { a, b, inner: None, outer: None, bias: Some(&shift_vector) },
                })
                .collect();
            grafts.push(Graft { rows: 3..4, scale: 0.75, change: Change::Bias(&shift_vector) });
            let mut run = |grafts: &[Graft<'_, Cpu>]| {
                let mut y = rows(&mut cpu, &old, outputs);
                let output = Output { y: &mut y, weight: &matrix, bias: None, accumulate: true, grafts };
                cpu.linear(&input, &mut [output]);
                cpu.read(&y).to_vec()
            };
            base = run(&[]);
            let found = run(&grafts);
            let bits: Vec<u32> = found.iter().map(|x| x.to_bits()).collect();
            assert!(reference.get_or_insert(bits.clone()) == &bits, "{} differs", isa.name());

            for t in 0..count {
                for o in 0..outputs {
                    let mut exact = f64::from(base[t * outputs + o]);
                    let mut magnitude = exact.abs();
                    for ((range, rank, scale, _), (a, b)) in specs.iter().zip(&factors) {
                        if !range.contains(&t) {
                            continue;
                        }
                        let (a, b) = (a.decode().unwrap(), b.decode().unwrap());
                        for r in 0..*rank {
                            let ax: f64 = (0..inputs)
                                .map(|i| f64::from(a[r * inputs + i]) * f64::from(x[t * inputs + i]))
                                .sum();
                            exact += f64::from(*scale) * f64::from(b[o * rank + r]) * ax;
                            magnitude += (f64::from(*scale) * f64::from(b[o * rank + r]) * ax).abs() + 50.0;
                        }
                        exact += f64::from(*scale) * f64::from(shift[o]);
                    }
                    if t == 3 {
                        exact += 0.75 * f64::from(shift[o]);
                    }
                    let error = (f64::from(found[t * outputs + o]) - exact).abs();
                    assert!(
                        error <= magnitude * 128.0 * f64::from(f32::EPSILON),
                        "row {t} output {o}: off by {error}"
                    );
                    if t >= 7 {
                        assert_eq!(found[t * outputs + o].to_bits(), base[t * outputs + o].to_bits());
                    }
                }
            }
        }
    }
    assert!(!base.is_empty());
}

/// What `LowRank` says beyond `B A x`: factors of rank and outputs, matrices that are larger than the layer, and a `B` of codes,
/// whose input is rounded.
#[test]
fn low_rank_changes_take_factors_and_parts_of_matrices() {
    let mut random = Random(5);
    // Eleven rows are changed: more than eight, and odd.
    let (inputs, outputs, count) = (64, 40, 12);
    let values = |random: &mut Random, n: usize| (0..n).map(|_| random.normal()).collect::<Vec<f32>>();
    let weight =
        Tensor::encode(Format::F32, outputs, inputs, &values(&mut random, outputs * inputs)).unwrap();
    let x = values(&mut random, count * inputs);
    // Format, rank and columns of A; format and rows of B; factors of the rank, of the outputs.
    let specs = [
        (Format::F32, 5, inputs, Format::F32, outputs, true, false),
        (Format::F16, 33, inputs + 7, Format::BF16, outputs, false, true),
        (Format::Q8_0, 16, inputs + 64, Format::F32, outputs + 21, true, true),
        (Format::Q4_1, 32, inputs + 32, Format::Q8_0, outputs + 2, true, true),
        (Format::F32, 70, inputs, Format::Q5_1, outputs, false, false),
        (Format::BF16, 256, inputs, Format::Q2K, outputs, true, false),
        (Format::W3G64, 320, inputs, Format::W2G64, outputs, true, false),
        (Format::F32, 384, inputs, Format::W3G128, outputs, true, true),
    ];
    for (i, (a_format, rank, a_cols, b_format, b_rows, inner, outer)) in specs.into_iter().enumerate() {
        let (a_values, b_cols) =
            (values(&mut random, rank * a_cols), rank.next_multiple_of(b_format.block_len()));
        let mut b_values = values(&mut random, b_rows * b_cols);
        b_values.chunks_mut(b_cols).for_each(|row| row[rank..].fill(0.0));
        let a = Tensor::encode(a_format, rank, a_cols, &a_values).unwrap();
        let b = Tensor::encode(b_format, b_rows, b_cols, &b_values).unwrap();
        let (a_decoded, b_decoded) = (a.decode().unwrap(), b.decode().unwrap());
        let (by_rank_values, by_output_values) = (values(&mut random, rank), values(&mut random, outputs));
        let mut reference: Option<Vec<u32>> = None;
        for isa in Isa::all() {
            for threads in [1, 2] {
                let mut cpu = Cpu::new(threads, isa).unwrap();
                let device = cpu.device().clone();
                let [a, b, weight] = [&a, &b, &weight].map(|tensor| device.matrix(tensor).unwrap());
                let (by_rank, by_output) = (
                    device.scale(&by_rank_values, None).unwrap(),
                    device.scale(&by_output_values, None).unwrap(),
                );
                let (inner, outer) = (inner.then_some(&by_rank), outer.then_some(&by_output));
                let change = || Change::LowRank { a: &a, b: &b, inner, outer, bias: None };
                let mut run = |grafts: &[Graft<'_, Cpu>], range: Range<usize>| {
                    let low = range.len() * rank;
                    cpu.reserve(&StepShape { rows: range.len(), inputs, low, ..StepShape::default() })
                        .unwrap();
                    let input = rows(&mut cpu, &x[range.start * inputs..range.end * inputs], inputs);
                    let mut y = rows(&mut cpu, &vec![0.0; range.len() * outputs], outputs);
                    let output = Output { y: &mut y, weight: &weight, bias: None, accumulate: false, grafts };
                    cpu.linear(&input, &mut [output]);
                    cpu.read(&y).to_vec()
                };
                let plain = run(&[], 0..count);
                let found = run(&[Graft { rows: 1..count, scale: 0.5, change: change() }], 0..count);
                let bits: Vec<u32> = found.iter().map(|x| x.to_bits()).collect();
                assert!(reference.get_or_insert(bits.clone()) == &bits, "{i}: {} differs", isa.name());
                for t in 1..count {
                    let alone = run(&[Graft { rows: 0..1, scale: 0.5, change: change() }], t..t + 1);
                    let row = &found[t * outputs..][..outputs];
                    assert!(row.iter().zip(&alone).all(|(x, y)| x.to_bits() == y.to_bits()), "{i}: row {t}");
                    assert_eq!(plain[..outputs], found[..outputs], "{i}: another row changed");
                }
                for (t, found) in found.chunks(outputs).enumerate().skip(1) {
                    let x = &x[t * inputs..][..inputs];
                    let low = low(x, &a_decoded, rank, a_format.block_len() > 1);
                    let low: Vec<(f64, f64)> = low
                        .into_iter()
                        .zip(&by_rank_values)
                        .map(|((h, error), by)| {
                            let by = 0.5 * if inner.is_some() { f64::from(*by) } else { 1.0 };
                            (by * h, (by * error).abs())
                        })
                        .collect();
                    for (o, found) in found.iter().enumerate() {
                        let by = if outer.is_some() { f64::from(by_output_values[o]) } else { 1.0 };
                        let (mut sum, mut bound) = (f64::from(plain[t * outputs + o]), 1e-4);
                        for (group, b) in low.chunks(16).zip(b_decoded[o * b_cols..][..rank].chunks(16)) {
                            let largest = group.iter().map(|(h, error)| h.abs() + error).fold(0.0, f64::max);
                            let rounded = if b_format.block_len() > 1 { largest / 254.0 } else { 0.0 };
                            for ((h, error), b) in group.iter().zip(b) {
                                sum += by * f64::from(*b) * h;
                                bound += (by * f64::from(*b)).abs() * (error + rounded + 1e-5 * h.abs());
                            }
                        }
                        let error = (f64::from(*found) - sum).abs();
                        assert!(
                            error <= bound,
                            "{i}: row {t} output {o} is {found}, {sum} expected within {bound}"
                        );
                    }
                }
            }
        }
    }
}

/// `A x` of the first columns of `A`, and how far rounding the input to 8 bits takes each value away.
fn low(x: &[f32], a: &[f32], rank: usize, rounded: bool) -> Vec<(f64, f64)> {
    let value = |a: &[f32]| {
        let sum = a.iter().zip(x).map(|(a, x)| f64::from(*a) * f64::from(*x)).sum();
        let groups = a.chunks(16).zip(x.chunks(16));
        let errors = groups.map(|(a, x)| {
            a.iter().zip(x).map(|(a, _)| f64::from(a.abs())).sum::<f64>() * f64::from(to_8_bits(x).0) / 2.0
        });
        (sum, if rounded { errors.sum() } else { 0.0 })
    };
    a.chunks(a.len() / rank).map(|row| value(&row[..x.len()])).collect()
}

/// A matrix that is there, as if it were computed.
struct Given(Vec<f32>, (usize, usize));

impl Generate for Given {
    fn shape(&self) -> (usize, usize) {
        self.1
    }

    fn generate(&self, row: usize, first: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.0[row * self.1.1 + first..][..out.len()]);
    }
}

/// Generated matrices of odd sizes, of more columns than are computed at a time and fewer: the formula, the same bits on every instruction
/// set and alone as in company, and nothing on the other rows.
#[test]
fn generated_matrices_equal_the_formula() {
    let mut random = Random(17);
    for (inputs, outputs, count) in [(1, 1, 3), (33, 40, 70), (512, 16, 2), (1061, 35, 35)] {
        let mut values = |n: usize| (0..n).map(|_| random.normal()).collect::<Vec<f32>>();
        let (weight, x, matrix) =
            (values(outputs * inputs), values(count * inputs), values(outputs * inputs));
        let generated: Arc<dyn Generate> = Arc::new(Given(matrix.clone(), (outputs, inputs)));
        let own = 1..count;
        let mut reference: Option<Vec<u32>> = None;
        for isa in Isa::all() {
            let mut cpu = Cpu::new(2, isa).unwrap();
            cpu.reserve(&StepShape { rows: count, inputs, ..StepShape::default() }).unwrap();
            let device = cpu.device().clone();
            let weight = Tensor::encode(Format::F32, outputs, inputs, &weight).unwrap();
            let (weight, generated) =
                (device.matrix(&weight).unwrap(), device.generated(generated.clone()).unwrap());
            let mut run = |range: Range<usize>, rows_of: Range<usize>| {
                let input = rows(&mut cpu, &x[range.start * inputs..range.end * inputs], inputs);
                let mut y = rows(&mut cpu, &vec![0.0; range.len() * outputs], outputs);
                let grafts = [Graft { rows: rows_of, scale: -0.5, change: Change::Generated(&generated) }];
                let output =
                    Output { y: &mut y, weight: &weight, bias: None, accumulate: false, grafts: &grafts };
                cpu.linear(&input, &mut [output]);
                cpu.read(&y).to_vec()
            };
            let (base, found) = (run(0..count, 0..0), run(0..count, own.clone()));
            let bits: Vec<u32> = found.iter().map(|x| x.to_bits()).collect();
            assert!(reference.get_or_insert(bits.clone()) == &bits, "{} differs", isa.name());
            assert_eq!(found[..outputs], base[..outputs], "a row without the change");
            for t in own.clone() {
                for o in 0..outputs {
                    let (d, x) = (&matrix[o * inputs..][..inputs], &x[t * inputs..][..inputs]);
                    let products = d.iter().zip(x).map(|(d, x)| -0.5 * f64::from(*d) * f64::from(*x));
                    let start = f64::from(base[t * outputs + o]);
                    let (sum, magnitude) = products.fold((start, start.abs()), |(sum, most), product| {
                        (sum + product, most + product.abs())
                    });
                    let error = (f64::from(found[t * outputs + o]) - sum).abs();
                    // Of sixteen sums of products, summed, times the scale, and the sum with the base.
                    let bound = magnitude * (inputs / 16 + 20) as f64 * f64::from(f32::EPSILON);
                    assert!(error <= bound, "{inputs} inputs, row {t} output {o}: off by {error}");
                }
            }
            for t in [1, count / 2, count - 1] {
                assert_eq!(run(t..t + 1, 0..1), found[t * outputs..(t + 1) * outputs], "row {t} alone");
            }
        }
    }
}

/// A delta, sparse changes and Kronecker products of odd sizes, on some rows: the formula, the same bits on every
/// instruction set and alone as in company, and nothing on the other rows.
#[test]
fn changes_of_other_forms_equal_the_formula() {
    let mut random = Random(11);
    let (inputs, outputs, count) = (96, 40, 70);
    let values = |random: &mut Random, n: usize| (0..n).map(|_| random.normal()).collect::<Vec<f32>>();
    let matrix = |random: &mut Random, r: usize, c: usize| {
        Tensor::encode(Format::F32, r, c, &values(random, r * c)).unwrap()
    };
    let weight = matrix(&mut random, outputs, inputs);
    let x = values(&mut random, count * inputs);
    let delta = matrix(&mut random, outputs, inputs);
    let order: Vec<u32> = (0..outputs as u32).map(|o| (o * 7 + 3) % outputs as u32).collect();
    // Outputs without entries, at both ends too, and one with all.
    let lengths: Vec<usize> = (0..outputs).map(|o| [0, 3, 1, 0, inputs][o % 5]).collect();
    let starts: Vec<u32> = (0..=outputs).map(|o| lengths[..o].iter().sum::<usize>() as u32).collect();
    let columns: Vec<u32> = (0..starts[outputs]).map(|e| (e * 5) % inputs as u32).collect();
    let entries = values(&mut random, columns.len());
    let sizes = [(5, 8, 6, 16), (20, 2, 32, 3), (1, 40, 1, 96), (40, 1, 96, 1)];
    let factors = sizes.map(|(a, b, c, d)| (matrix(&mut random, a, c), matrix(&mut random, b, d)));

    // Every change as a matrix, with its scale and rows.
    let mut exact = vec![(delta.decode().unwrap(), 0.5, 3..count)];
    let mut dense = vec![0.0; outputs * inputs];
    for o in 0..outputs {
        for e in starts[o] as usize..starts[o + 1] as usize {
            dense[o * inputs + columns[e] as usize] += entries[e];
        }
    }
    exact.push((dense, -1.5, 0..66));
    for (i, (&(_, b, c, d), (left, right))) in sizes.iter().zip(&factors).enumerate() {
        let (left, right) = (left.decode().unwrap(), right.decode().unwrap());
        let value = |at: usize| {
            let (row, col) =
                (if i % 2 == 0 { order[at / inputs] as usize } else { at / inputs }, at % inputs);
            left[row / b * c + col / d] * right[row % b * d + col % d]
        };
        exact.push(((0..outputs * inputs).map(value).collect(), 0.25, i..count - i));
    }
    let mut reference: Option<Vec<u32>> = None;
    for isa in Isa::all() {
        for threads in [1, 2] {
            let mut cpu = Cpu::new(threads, isa).unwrap();
            let device = cpu.device().clone();
            let matrix = |tensor: &Tensor| device.matrix(tensor).unwrap();
            let (weight, delta) = (matrix(&weight), matrix(&delta));
            let index = |numbers: &[u32]| device.index(numbers).unwrap();
            let (starts, columns, order) = (index(&starts), index(&columns), index(&order));
            let left = |tensor: &Tensor| device.vector(&tensor.decode().unwrap()).unwrap();
            let factors: Vec<_> = factors.iter().map(|(l, right)| (left(l), matrix(right))).collect();
            let values = device.vector(&entries).unwrap();
            let mut changes = vec![
                Change::Delta(&delta),
                Change::Sparse { starts: &starts, columns: &columns, values: &values },
            ];
            let none = index(&[]);
            changes.extend(factors.iter().enumerate().map(|(i, (left, right))| Change::Kronecker {
                left,
                right,
                order: if i % 2 == 0 { &order } else { &none },
            }));
            let mut grafts: Vec<Graft<'_, Cpu>> = changes
                .into_iter()
                .zip(&exact)
                .map(|(change, (_, scale, rows))| Graft { rows: rows.clone(), scale: *scale, change })
                .collect();
            let mut run = |grafts: &[Graft<'_, Cpu>], range: Range<usize>| {
                let low = sizes.iter().map(|(a, _, _, d)| range.len() * (a * d + outputs)).sum();
                let shape = StepShape { rows: range.len(), inputs, low, ..StepShape::default() };
                cpu.reserve(&shape).unwrap();
                let input = rows(&mut cpu, &x[range.start * inputs..range.end * inputs], inputs);
                let mut y = rows(&mut cpu, &vec![0.0; range.len() * outputs], outputs);
                let output = Output { y: &mut y, weight: &weight, bias: None, accumulate: false, grafts };
                cpu.linear(&input, &mut [output]);
                cpu.read(&y).to_vec()
            };
            let (base, found) = (run(&[], 0..count), run(&grafts, 0..count));
            let bits: Vec<u32> = found.iter().map(|x| x.to_bits()).collect();
            assert!(reference.get_or_insert(bits.clone()) == &bits, "{} differs", isa.name());
            for t in 0..count {
                let x = &x[t * inputs..][..inputs];
                for o in 0..outputs {
                    let mut sum = f64::from(base[t * outputs + o]);
                    let mut magnitude = sum.abs();
                    for (change, scale, _) in exact.iter().filter(|(_, _, rows)| rows.contains(&t)) {
                        let products = change[o * inputs..].iter().zip(x);
                        for product in
                            products.map(|(w, x)| f64::from(*scale) * f64::from(*w) * f64::from(*x))
                        {
                            (sum, magnitude) = (sum + product, magnitude + product.abs());
                        }
                    }
                    // Each product is rounded twice, and summed with at most `inputs` others.
                    let error = (f64::from(found[t * outputs + o]) - sum).abs();
                    let bound = magnitude * (inputs + 8) as f64 * f64::from(f32::EPSILON);
                    assert!(error <= bound, "row {t} output {o}: off by {error}");
                }
            }
            // A row alone.
            let alone = 5;
            for graft in &mut grafts {
                graft.rows = 0..1;
            }
            assert_eq!(run(&grafts, alone..alone + 1), found[alone * outputs..(alone + 1) * outputs]);
        }
    }
}

/// Another weight, or other rows of it, on some rows of the batch: the same bits as a layer that has them.
#[test]
fn replaced_weights_and_rows_are_those_of_another_layer() {
    let mut random = Random(13);
    let (inputs, outputs, count) = (70, 41, 40);
    let values = |random: &mut Random, n: usize| (0..n).map(|_| random.normal()).collect::<Vec<f32>>();
    let [weight, other] = [0; 2].map(|_| values(&mut random, outputs * inputs));
    let x = values(&mut random, count * inputs);
    let tokens = [0u32, 15, 16, 17, 40];
    let mut mixed = weight.clone();
    for &token in &tokens {
        let row = token as usize * inputs..(token as usize + 1) * inputs;
        mixed[row.clone()].copy_from_slice(&other[row]);
    }
    let some: Vec<f32> =
        tokens.iter().flat_map(|&t| &other[t as usize * inputs..][..inputs]).copied().collect();
    for isa in Isa::all() {
        let mut cpu = Cpu::new(2, isa).unwrap();
        let low = count * tokens.len();
        cpu.reserve(&StepShape { rows: count, inputs, low, ..StepShape::default() }).unwrap();
        let device = cpu.device().clone();
        let matrix = |rows: usize, values: &[f32]| {
            device.matrix(&Tensor::encode(Format::F32, rows, inputs, values).unwrap()).unwrap()
        };
        let [weight, other, mixed] = [&weight, &other, &mixed].map(|values| matrix(outputs, values));
        let (some, index) = (matrix(tokens.len(), &some), device.index(&tokens).unwrap());
        let input = rows(&mut cpu, &x, inputs);
        let mut run = |weight: &_, grafts: &[Graft<'_, Cpu>]| {
            let mut y = rows(&mut cpu, &vec![0.0; count * outputs], outputs);
            let output = Output { y: &mut y, weight, bias: None, accumulate: false, grafts };
            cpu.linear(&input, &mut [output]);
            cpu.read(&y).to_vec()
        };
        let expected = [&weight, &other, &mixed].map(|weight| run(weight, &[]));
        let graft = |rows: Range<usize>, change| Graft { rows, scale: 1.0, change };
        let found = run(
            &weight,
            &[
                graft(5..37, Change::Replace(&other)),
                graft(37..39, Change::Rows { outputs: &index, weight: &some }),
            ],
        );
        for (t, found) in found.chunks(outputs).enumerate() {
            let which = usize::from((5..37).contains(&t)) + 2 * usize::from((37..39).contains(&t));
            assert_eq!(found, &expected[which][t * outputs..][..outputs], "row {t}");
        }
    }
}

/// Factors of outputs take the bias off first where they are told to, work on what the grafts before left, and leave what an
/// accumulating output held before alone; factors of inputs change rows in place.
#[test]
fn factors_scale_outputs_and_inputs() {
    let mut random = Random(12);
    let (inputs, outputs, count) = (33, 35, 6);
    let values = |random: &mut Random, n: usize| (0..n).map(|_| random.normal()).collect::<Vec<f32>>();
    let weight = values(&mut random, outputs * inputs);
    let x = values(&mut random, count * inputs);
    let old = values(&mut random, count * outputs);
    let [bias, by, other] = [0; 3].map(|_| values(&mut random, outputs));
    let of_inputs = values(&mut random, inputs);
    for isa in Isa::all() {
        let mut cpu = Cpu::new(2, isa).unwrap();
        cpu.reserve(&StepShape { rows: count, inputs, ..StepShape::default() }).unwrap();
        let device = cpu.device().clone();
        let matrix = device.matrix(&Tensor::encode(Format::F32, outputs, inputs, &weight).unwrap()).unwrap();
        let (bias_vector, other_vector) = (device.vector(&bias).unwrap(), device.vector(&other).unwrap());
        let (own, all) = (device.scale(&by, Some(&bias)).unwrap(), device.scale(&by, None).unwrap());
        let graft = |rows: Range<usize>, scale, change| Graft::<Cpu> { rows, scale, change };
        let grafts = [
            graft(1..4, 0.5, Change::Bias(&other_vector)),
            graft(0..5, 0.75, Change::Scale(&own)),
            graft(2..6, -0.25, Change::Scale(&all)),
        ];
        let input_scale = device.scale(&of_inputs, None).unwrap();
        let mut input = rows(&mut cpu, &x, inputs);
        let change = InputChange::Scale(&input_scale);
        cpu.adapt(&mut input, &[InputGraft { rows: 3..5, scale: 0.5, change }]);
        let mut y = rows(&mut cpu, &old, outputs);
        let bias_vector = Some(&bias_vector);
        let output =
            Output { y: &mut y, weight: &matrix, bias: bias_vector, accumulate: true, grafts: &grafts };
        cpu.linear(&input, &mut [output]);
        let found = cpu.read(&y).to_vec();
        for t in 0..count {
            for o in 0..outputs {
                let products = (0..inputs).map(|i| {
                    let by = if (3..5).contains(&t) { 1.0 + 0.5 * f64::from(of_inputs[i]) } else { 1.0 };
                    f64::from(weight[o * inputs + i]) * by * f64::from(x[t * inputs + i])
                });
                let mut y = products.sum::<f64>() + f64::from(bias[o]);
                if (1..4).contains(&t) {
                    y += 0.5 * f64::from(other[o]);
                }
                if t < 5 {
                    y += 0.75 * f64::from(by[o]) * (y - f64::from(bias[o]));
                }
                if t >= 2 {
                    y -= 0.25 * f64::from(by[o]) * y;
                }
                y += f64::from(old[t * outputs + o]);
                let error = (f64::from(found[t * outputs + o]) - y).abs();
                // Sums of 33 products of the order of 10 at most, scaled by less than 10.
                assert!(error < 1e-3, "row {t} output {o}: off by {error}");
            }
        }
    }
}
