//! The GPU backend: against the formulas in f64, against the CPU's f32 arithmetic, and the same bits in any
//! company.
//!
//! Without a GPU (Mesa's llvmpipe is one) these tests pass with a note, unless `GRAFTWORK_TEST_GPU=1` demands
//! one.
#![cfg(feature = "gpu")]

use graftwork_kernels::backend::{Backend, Device, StepShape};
use graftwork_kernels::gpu::Gpu;
use graftwork_kernels::{Error, Format, Tensor};

mod attention;
mod linear;
#[path = "../random/mod.rs"]
mod random;
mod rows;
use random::Random;

/// The largest relative error of what WGSL calls correctly rounded, in whatever direction.
const EPSILON: f64 = f32::EPSILON as f64;

/// What values below the least normal one may lose, since WGSL lets them be zero; products of many of them.
const TINY: f64 = 1e-33;

/// A GPU, or a note that there is none.
fn open() -> Option<Gpu> {
    match Gpu::open() {
        Ok(gpu) => {
            println!("on {}", gpu.name());
            Some(gpu)
        }
        Err(error) if std::env::var("GRAFTWORK_TEST_GPU").as_deref() != Ok("1") => {
            println!("not tested: {error}");
            None
        }
        Err(error) => panic!("GRAFTWORK_TEST_GPU demands a GPU: {error}"),
    }
}

/// `n` normal numbers.
fn normals(random: &mut Random, n: usize) -> Vec<f32> {
    (0..n).map(|_| random.normal()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// These values as rows of `cols`.
fn rows<B: Backend>(backend: &mut B, values: &[f32], cols: usize) -> B::Rows {
    let count = values.len() / cols;
    let mut rows = backend.rows(cols);
    backend.resize(&mut rows, count).unwrap();
    let table = Tensor::encode(Format::F32, count, cols, values).unwrap();
    let table = backend.device().table(&table).unwrap();
    backend.embed(&mut rows, &table, &(0..count as u32).collect::<Vec<_>>());
    rows
}

/// Room for `count` rows of `cols`.
fn room<B: Backend>(backend: &mut B, count: usize, cols: usize) -> B::Rows {
    let mut rows = backend.rows(cols);
    backend.resize(&mut rows, count).unwrap();
    rows
}

/// Whether `found` are the exact values within their bounds.
fn check(name: &str, found: &[f32], exact: &[f64], bound: &[f64]) {
    assert!(found.len() == exact.len() && found.len() == bound.len(), "{name}: lengths");
    for (i, found) in found.iter().enumerate() {
        let error = (f64::from(*found) - exact[i]).abs();
        assert!(
            error <= bound[i],
            "{name}, value {i}: {found} is off {} by {error}, not {}",
            exact[i],
            bound[i]
        );
    }
}

#[test]
fn memory_is_what_was_announced_and_refusal_is_an_error() {
    let Some(mut gpu) = open() else { return };
    let shape = StepShape { rows: 130, inputs: 96, low: 1001, group: 3, head_dim: 4096 };
    gpu.reserve(&shape).unwrap();
    assert_eq!(gpu.reserved_bytes(), gpu.scratch_bytes(&shape));
    let huge = usize::MAX / 2;
    for shape in [StepShape { rows: huge, ..shape }, StepShape { low: huge, ..shape }] {
        assert!(gpu.scratch_bytes(&shape) > usize::MAX / 4, "{shape:?}");
        assert!(matches!(gpu.reserve(&shape), Err(Error::OutOfMemory { .. })), "{shape:?}");
    }
    for cols in [37, huge] {
        let mut x = gpu.rows(cols);
        assert!(matches!(gpu.resize(&mut x, huge), Err(Error::OutOfMemory { .. })));
        assert_eq!(gpu.held_bytes(&x), 0);
    }
    let mut x = gpu.rows(37);
    for (rows, most) in [(3, 3), (1, 3), (10, 10), (0, 10)] {
        gpu.resize(&mut x, rows).unwrap();
        assert_eq!(gpu.held_bytes(&x), gpu.activation_bytes(most, 37));
    }
    let mut random = Random(91);
    for &format in Format::ALL {
        for (rows, blocks) in [(1, 1), (17, 3)] {
            let cols = blocks * format.block_len();
            let values = normals(&mut random, rows * cols);
            let matrix = gpu.device().matrix(&Tensor::encode(format, rows, cols, &values).unwrap()).unwrap();
            assert_eq!(gpu.device().matrix_bytes(&matrix), gpu.device().packed_bytes(format, rows, cols));
        }
        assert!(gpu.device().packed_bytes(format, usize::MAX, usize::MAX) > usize::MAX / 16, "no overflow");
    }
}
