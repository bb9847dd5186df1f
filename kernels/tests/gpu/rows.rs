//! The operations on rows. WGSL bounds the errors of `inverseSqrt` and division by 2 and 2.5 units in the
//! last place, that of `exp(x)` by `3 + 2 |x|`; an epsilon is a unit at most.

use graftwork_kernels::backend::{Activation, Angles, Backend, Device, RopeLayout};
use graftwork_kernels::{Format, Tensor};

use crate::random::Random;
use crate::{EPSILON, TINY, bits, check, normals, open, room, rows};

/// Squares are positive, so their sum is off by a rounding for each addition; the root halves that.
#[test]
fn rms_norm_equals_its_formula_in_any_company() {
    let Some(mut gpu) = open() else { return };
    let mut random = Random(81);
    for cols in [1, 15, 16, 17, 48, 576, 2053] {
        let (count, eps) = (9, 0.1);
        let x: Vec<f32> = normals(&mut random, count * cols).iter().map(|x| x * 3.0).collect();
        let weight = normals(&mut random, cols);
        let vector = gpu.device().vector(&weight).unwrap();
        let mut run = |x: &[f32]| {
            let (input, mut y) = (rows(&mut gpu, x, cols), room(&mut gpu, x.len() / cols, cols));
            // In two parts: each leaves the rows of the other alone.
            let count = x.len() / cols;
            gpu.rms_norm(&mut y, &input, count / 2..count, &vector, eps);
            gpu.rms_norm(&mut y, &input, 0..count / 2, &vector, eps);
            gpu.read(&y).to_vec()
        };
        let found = run(&x);
        let (mut exact, mut bound) = (Vec::new(), Vec::new());
        for x in x.chunks(cols) {
            let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / cols as f64;
            let scale = 1.0 / (mean + f64::from(eps)).sqrt();
            exact.extend(x.iter().zip(&weight).map(|(x, w)| f64::from(*x) * f64::from(*w) * scale));
        }
        let relative = EPSILON * (((cols.div_ceil(256) + 1 + 8) as f64 + 3.5) / 2.0 + 2.0 + 2.0);
        bound.extend(exact.iter().map(|y| y.abs() * relative + TINY));
        check(&format!("{cols}"), &found, &exact, &bound);
        for t in 0..count {
            assert_eq!(bits(&run(&x[t * cols..][..cols])), bits(&found[t * cols..][..cols]), "row {t} alone");
        }
    }
}

/// Two products and a sum.
#[test]
fn rotation_equals_its_formula_and_leaves_the_rest_alone() {
    let Some(mut gpu) = open() else { return };
    let mut random = Random(82);
    for (heads, head_dim, rotary) in
        [(1, 16, 16), (3, 64, 64), (5, 80, 32), (2, 20, 10), (7, 6, 2), (3, 5, 2)]
    {
        for layout in [RopeLayout::Halves, RopeLayout::Interleaved] {
            let (count, cols, half) = (7, heads * head_dim, rotary / 2);
            let x = normals(&mut random, count * cols);
            let angles: Vec<f32> = (0..count * half).map(|_| random.uniform() * 6.3).collect();
            let cos: Vec<f32> = angles.iter().map(|a| a.cos() * 1.1).collect();
            let sin: Vec<f32> = angles.iter().map(|a| a.sin() * 1.1).collect();
            let mut y = rows(&mut gpu, &x, cols);
            gpu.rotate(&mut y, heads, &Angles { cos: &cos, sin: &sin, rotary, layout });
            let found = gpu.read(&y).to_vec();
            let mut exact: Vec<f64> = x.iter().map(|&x| x.into()).collect();
            let mut bound = vec![0.0; x.len()];
            for (t, h, i) in (0..count * heads * half).map(|n| (n / half / heads, n / half % heads, n % half))
            {
                let at = t * cols + h * head_dim;
                let (a, b) = match layout {
                    RopeLayout::Halves => (at + i, at + i + half),
                    RopeLayout::Interleaved => (at + 2 * i, at + 2 * i + 1),
                };
                let (cos, sin) = (f64::from(cos[t * half + i]), f64::from(sin[t * half + i]));
                let (xa, xb) = (f64::from(x[a]), f64::from(x[b]));
                (exact[a], exact[b]) = (xa * cos - xb * sin, xa * sin + xb * cos);
                bound[a] = 2.0 * EPSILON * ((xa * cos).abs() + (xb * sin).abs()) + TINY;
                bound[b] = 2.0 * EPSILON * ((xa * sin).abs() + (xb * cos).abs()) + TINY;
            }
            check(&format!("{layout:?} {rotary} of {head_dim}"), &found, &exact, &bound);
        }
    }
}

/// One rounding.
#[test]
fn rows_are_added() {
    let Some(mut gpu) = open() else { return };
    let mut random = Random(84);
    for cols in [1, 16, 31, 1536] {
        let [y, x] = [0; 2].map(|_| normals(&mut random, 4 * cols));
        let (mut out, input) = (rows(&mut gpu, &y, cols), rows(&mut gpu, &x, cols));
        Backend::add(&mut gpu, &mut out, &input);
        let found = gpu.read(&out).to_vec();
        let exact: Vec<f64> = y.iter().zip(&x).map(|(y, x)| f64::from(*y) + f64::from(*x)).collect();
        let bound: Vec<f64> = exact.iter().map(|exact| exact.abs() * EPSILON + TINY).collect();
        check(&format!("{cols}"), &found, &exact, &bound);
    }
}

/// Below -87 the exponential is clamped: what should be less than `|x y| e^-87` is about that.
#[test]
fn gate_equals_its_formula() {
    let Some(mut gpu) = open() else { return };
    let mut random = Random(83);
    for cols in [1, 16, 31, 1536] {
        let mut y = normals(&mut random, 4 * cols);
        for (i, y) in y.iter_mut().enumerate() {
            *y *= [1.0, 10.0, 40.0][i % 3];
        }
        if cols > 16 {
            y[..8].copy_from_slice(&[0.0, -0.0, 100.0, -100.0, 1e30, -86.5, -87.5, 1e-40]);
        }
        let x = normals(&mut random, 4 * cols);
        let (mut out, input) = (rows(&mut gpu, &y, cols), rows(&mut gpu, &x, cols));
        gpu.gate(&mut out, &input, Activation::Silu);
        let found = gpu.read(&out).to_vec();
        let pairs = || y.iter().zip(&x).map(|(y, x)| (f64::from(*y), f64::from(*x)));
        let exact: Vec<f64> = pairs().map(|(y, x)| y / (1.0 + (-y).exp()) * x).collect();
        let bound = |((y, x), exact): ((f64, f64), &f64)| {
            let ulps = 3.0 + 2.0 * (-y).clamp(0.0, 87.0) + 1.0 + 2.5 + 1.0;
            exact.abs() * ulps * EPSILON + (x * y).abs() * (-87f64).exp() * 2.0 + TINY
        };
        let bound: Vec<f64> = pairs().zip(&exact).map(bound).collect();
        check(&format!("{cols}"), &found, &exact, &bound);
    }
}

#[test]
fn rows_are_embedded_and_selected_as_they_are() {
    let Some(mut gpu) = open() else { return };
    let mut random = Random(84);
    for &format in Format::ALL {
        let (entries, cols) = (50, 3 * format.block_len());
        let table = Tensor::encode(format, entries, cols, &normals(&mut random, entries * cols)).unwrap();
        let decoded = table.decode().unwrap();
        let tokens: Vec<u32> = (0..23).map(|_| (random.bits() % entries as u64) as u32).collect();
        let chosen: Vec<usize> = (0..11).map(|_| random.bits() as usize % tokens.len()).collect();
        let table = gpu.device().table(&table).unwrap();
        // More rows first: what is left of them must not show.
        let (mut x, mut y) = (room(&mut gpu, 40, cols), room(&mut gpu, chosen.len(), cols));
        let (mut again, mut other) = (room(&mut gpu, 11, cols), room(&mut gpu, 11, cols));
        gpu.resize(&mut x, tokens.len()).unwrap();
        gpu.step(|gpu| {
            gpu.embed(&mut x, &table, &tokens);
            gpu.select(&mut y, &x, &chosen);
            // Lists of the same length: an equal one, which is sent once, and another.
            gpu.select(&mut again, &x, &chosen);
            gpu.select(&mut other, &x, &(11..22).collect::<Vec<_>>());
        });
        let mut found = gpu.read(&x).to_vec();
        assert_eq!(bits(&found[11 * cols..22 * cols]), bits(&gpu.read(&other)));
        found.extend_from_slice(&gpu.read(&y));
        assert_eq!(bits(&gpu.read(&again)), bits(&gpu.read(&y)));
        let all = tokens.iter().copied().chain(chosen.iter().map(|&i| tokens[i]));
        let expected: Vec<f32> = all.flat_map(|t| decoded[t as usize * cols..][..cols].to_vec()).collect();
        assert_eq!(bits(&found), bits(&expected), "{format}");
    }
}

/// A step with no rows does nothing, and nothing goes wrong.
#[test]
fn no_rows_are_no_trouble() {
    let Some(mut gpu) = open() else { return };
    let (mut x, mut y) = (gpu.rows(32), gpu.rows(32));
    gpu.resize(&mut x, 0).unwrap();
    let weight = gpu.device().vector(&[1.0; 32]).unwrap();
    gpu.rms_norm(&mut y, &x, 0..0, &weight, 1e-5);
    gpu.rotate(&mut x, 2, &Angles { cos: &[], sin: &[], rotary: 16, layout: RopeLayout::Halves });
    gpu.gate(&mut y, &x, Activation::Silu);
    gpu.select(&mut y, &x, &[]);
    assert!(gpu.read(&y).is_empty());
}
