//! The operations on rows of the CPU backend, on every instruction set: against the formula in f64, and equal to the
//! bit among each other and for any number of threads.

use graftwork_kernels::backend::{
    Activation, Angles, Backend, Device, EmbeddingChange, EmbeddingGraft, RopeLayout,
};
use graftwork_kernels::cpu::Cpu;
use graftwork_kernels::cpu::isa::Isa;
use graftwork_kernels::{Format, Tensor};

mod activations;
mod random;
use activations::{bits, normals, rows};
use random::Random;

/// The unit of rounding of f32, twice over.
const EPSILON: f64 = f32::EPSILON as f64;

/// A backend of each instruction set with one, two and three threads.
fn backends() -> impl Iterator<Item = (String, Cpu)> {
    Isa::all().into_iter().flat_map(|isa| {
        (1..=3).map(move |n| (format!("{} with {n} threads", isa.name()), Cpu::new(n, isa).unwrap()))
    })
}

/// Runs `operation` on every backend: all must give the same bits, which come back.
fn on_every_backend(operation: impl Fn(&mut Cpu) -> Vec<f32>) -> Vec<f32> {
    let mut first: Option<Vec<f32>> = None;
    for (name, mut cpu) in backends() {
        let found = operation(&mut cpu);
        let first = first.get_or_insert_with(|| found.clone());
        assert_eq!(bits(&found), bits(first), "{name} differs from portable");
    }
    first.expect("there is a backend")
}

/// The sum of squares folds `n / 16` terms in a lane and four times over the lanes, each with half an epsilon of
/// relative error on sums of positive terms; the root halves that; division, root and two products add two.
#[test]
fn rms_norm_equals_its_formula() {
    let mut random = Random(21);
    for cols in [1, 15, 16, 17, 48, 576, 2053] {
        for eps in [1e-5, 0.1] {
            let count = 5;
            let x: Vec<f32> = normals(&mut random, count * cols).iter().map(|x| x * 3.0).collect();
            let weight = normals(&mut random, cols);
            let found = on_every_backend(|cpu| {
                let input = rows(cpu, &x, cols);
                let weight = cpu.device().vector(&weight).unwrap();
                let mut y = cpu.rows(cols);
                cpu.resize(&mut y, count).unwrap();
                // In two parts: each leaves the rows of the other alone.
                cpu.rms_norm(&mut y, &input, 2..count, &weight, eps);
                cpu.rms_norm(&mut y, &input, 0..2, &weight, eps);
                cpu.read(&y).to_vec()
            });
            let relative = EPSILON * (cols as f64 / 64.0 + 4.0);
            for (t, (x, y)) in x.chunks(cols).zip(found.chunks(cols)).enumerate() {
                let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / cols as f64;
                let scale = 1.0 / (mean + f64::from(eps)).sqrt();
                for i in 0..cols {
                    let exact = f64::from(x[i]) * f64::from(weight[i]) * scale;
                    let error = (f64::from(y[i]) - exact).abs();
                    assert!(error <= exact.abs() * relative, "row {t} of {cols}, value {i}: off by {error}");
                }
            }
        }
    }
}

/// Two products and a sum: three roundings.
#[test]
fn rotation_equals_its_formula_and_leaves_the_rest_alone() {
    let mut random = Random(22);
    for (heads, head_dim, rotary) in [(1, 16, 16), (3, 64, 64), (5, 80, 32), (2, 20, 10), (7, 6, 2)] {
        for layout in [RopeLayout::Halves, RopeLayout::Interleaved] {
            let (count, cols, half) = (7, heads * head_dim, rotary / 2);
            let x = normals(&mut random, count * cols);
            let angles: Vec<f32> = (0..count * half).map(|_| random.uniform() * 6.3).collect();
            let cos: Vec<f32> = angles.iter().map(|a| a.cos() * 1.1).collect();
            let sin: Vec<f32> = angles.iter().map(|a| a.sin() * 1.1).collect();
            let found = on_every_backend(|cpu| {
                let mut y = rows(cpu, &x, cols);
                cpu.rotate(&mut y, heads, &Angles { cos: &cos, sin: &sin, rotary, layout });
                cpu.read(&y).to_vec()
            });
            let mut expected: Vec<f64> = x.iter().map(|&x| x.into()).collect();
            let mut bound = vec![0.0; x.len()];
            for t in 0..count {
                for h in 0..heads {
                    for i in 0..half {
                        let at = t * cols + h * head_dim;
                        let (a, b) = match layout {
                            RopeLayout::Halves => (at + i, at + i + half),
                            RopeLayout::Interleaved => (at + 2 * i, at + 2 * i + 1),
                        };
                        let (cos, sin) = (f64::from(cos[t * half + i]), f64::from(sin[t * half + i]));
                        let (xa, xb) = (f64::from(x[a]), f64::from(x[b]));
                        expected[a] = xa * cos - xb * sin;
                        expected[b] = xa * sin + xb * cos;
                        bound[a] = EPSILON * ((xa * cos).abs() + (xb * sin).abs());
                        bound[b] = EPSILON * ((xa * sin).abs() + (xb * cos).abs());
                    }
                }
            }
            for (i, y) in found.iter().enumerate() {
                let error = (f64::from(*y) - expected[i]).abs();
                assert!(error <= bound[i], "{layout:?} {rotary} of {head_dim}, value {i}: off by {error}");
            }
        }
    }
}

/// `exp` is within 2 units in the last place (one epsilon each at most), the rest is a sum, a quotient and a
/// product. Below -88 the exponential is clamped: what should be less than `|x| e^-88` is about that.
#[test]
fn gate_equals_its_formula() {
    let mut random = Random(23);
    for cols in [1, 16, 31, 1536] {
        let count = 4;
        let mut y = normals(&mut random, count * cols);
        for (i, y) in y.iter_mut().enumerate() {
            *y *= [1.0, 10.0, 40.0][i % 3];
        }
        if cols > 16 {
            y[..8].copy_from_slice(&[0.0, -0.0, 100.0, -100.0, 1e30, -87.5, -88.5, 1e-40]);
        }
        let x = normals(&mut random, count * cols);
        let found = on_every_backend(|cpu| {
            let (mut y, x) = (rows(cpu, &y, cols), rows(cpu, &x, cols));
            cpu.gate(&mut y, &x, Activation::Silu);
            cpu.read(&y).to_vec()
        });
        for (i, found) in found.iter().enumerate() {
            let (y, x) = (f64::from(y[i]), f64::from(x[i]));
            let exact = y / (1.0 + (-y).exp()) * x;
            let error = (f64::from(*found) - exact).abs();
            let bound = 4.0 * EPSILON * exact.abs() + (x * y).abs() * (-88f64).exp() * 2.0 + 1e-44;
            assert!(error <= bound, "gate of {y} and {x}: {found}, not {exact}");
        }
    }
}

#[test]
fn rows_are_embedded_and_selected_as_they_are() {
    let mut random = Random(24);
    let entries = 50;
    for &format in Format::ALL {
        let cols = 96usize.next_multiple_of(format.block_len());
        let table = Tensor::encode(format, entries, cols, &normals(&mut random, entries * cols)).unwrap();
        let decoded = table.decode().unwrap();
        let tokens: Vec<u32> = (0..23).map(|_| (random.bits() % entries as u64) as u32).collect();
        let chosen: Vec<usize> = (0..11).map(|_| random.bits() as usize % tokens.len()).collect();
        let found = on_every_backend(|cpu| {
            let table = cpu.device().table(&table).unwrap();
            let (mut x, mut y) = (cpu.rows(cols), cpu.rows(cols));
            // More rows first: what is left of them must not show.
            cpu.resize(&mut x, 40).unwrap();
            cpu.resize(&mut x, tokens.len()).unwrap();
            cpu.resize(&mut y, chosen.len()).unwrap();
            cpu.step(|cpu| {
                cpu.embed(&mut x, &table, &tokens);
                cpu.select(&mut y, &x, &chosen);
            });
            let mut all = cpu.read(&x).to_vec();
            all.extend_from_slice(&cpu.read(&y));
            all
        });
        let row = |token: u32| &decoded[token as usize * cols..][..cols];
        let expected: Vec<f32> = tokens
            .iter()
            .copied()
            .chain(chosen.iter().map(|&i| tokens[i]))
            .flat_map(|token| row(token).to_vec())
            .collect();
        assert_eq!(bits(&found), bits(&expected), "{format}");
    }
}

/// Other tables, other rows and low-rank updates of an embedding, on some rows of the batch.
#[test]
fn embeddings_are_changed_for_their_rows_alone() {
    let mut random = Random(41);
    let (vocab, width, rank) = (9, 21, 3);
    let matrix = |random: &mut Random, rows: usize, cols: usize| {
        Tensor::encode(Format::F32, rows, cols, &normals(random, rows * cols)).unwrap()
    };
    let [table, other] = [0; 2].map(|_| matrix(&mut random, vocab, width));
    let some = matrix(&mut random, 2, width);
    let (a, b) = (matrix(&mut random, rank, vocab), matrix(&mut random, width, rank));
    let tokens = [3, 8, 0, 7, 8, 3, 1];
    let found = on_every_backend(|cpu| {
        let device = cpu.device().clone();
        let changes = [
            EmbeddingChange::Table(other.clone()),
            EmbeddingChange::Rows { tokens: vec![3, 8], rows: some.clone() },
            EmbeddingChange::LowRank { a: a.clone(), b: b.clone() },
        ]
        .map(|change| device.embedding(&change).unwrap());
        let graft = |rows, scale, change| EmbeddingGraft::<Cpu> { rows, scale, change: &changes[change] };
        let mut y = cpu.rows(width);
        cpu.resize(&mut y, tokens.len()).unwrap();
        cpu.embed(&mut y, &device.table(&table).unwrap(), &tokens);
        cpu.adapt_embedding(
            &mut y,
            &tokens,
            &[graft(1..3, 1.0, 0), graft(3..6, 1.0, 1), graft(5..7, 0.5, 2)],
        );
        cpu.read(&y).to_vec()
    });
    let [table, other, some, a, b] = [&table, &other, &some, &a, &b].map(|t| t.decode().unwrap());
    for (t, &token) in tokens.iter().enumerate() {
        for i in 0..width {
            let at = token as usize * width + i;
            let mut exact = f64::from(match (t, token) {
                (1..3, _) => other[at],
                (3..6, 3) => some[i],
                (3..6, 8) => some[width + i],
                _ => table[at],
            });
            if t >= 5 {
                let terms =
                    (0..rank).map(|r| f64::from(a[r * vocab + token as usize]) * f64::from(b[i * rank + r]));
                exact += 0.5 * terms.sum::<f64>();
            }
            let error = (f64::from(found[t * width + i]) - exact).abs();
            assert!(error <= 100.0 * EPSILON, "row {t}, value {i}: off by {error}");
        }
    }
}

/// A step with no rows does nothing, and nothing goes wrong.
#[test]
fn no_rows_are_no_trouble() {
    for (_, mut cpu) in backends() {
        let (mut x, mut y) = (cpu.rows(32), cpu.rows(32));
        cpu.resize(&mut x, 0).unwrap();
        let weight = cpu.device().vector(&[1.0; 32]).unwrap();
        cpu.rms_norm(&mut y, &x, 0..0, &weight, 1e-5);
        cpu.rotate(&mut x, 2, &Angles { cos: &[], sin: &[], rotary: 16, layout: RopeLayout::Halves });
        cpu.gate(&mut y, &x, Activation::Silu);
        cpu.select(&mut y, &x, &[]);
        assert!(cpu.read(&y).is_empty());
    }
}
