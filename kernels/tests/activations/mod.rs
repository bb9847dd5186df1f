//! Rows of activations for tests, and how they are compared.

use graftwork_kernels::backend::Backend;
use graftwork_kernels::cpu::{Cpu, Rows};
use graftwork_kernels::{Format, Tensor};

use crate::random::Random;

/// `n` normal numbers.
pub fn normals(random: &mut Random, n: usize) -> Vec<f32> {
    (0..n).map(|_| random.normal()).collect()
}

/// These values as rows of `cols` in the backend.
pub fn rows(cpu: &mut Cpu, values: &[f32], cols: usize) -> Rows {
    let count = values.len() / cols;
    let mut rows = cpu.rows(cols);
    cpu.resize(&mut rows, count).unwrap();
    let table = Tensor::encode(Format::F32, count, cols, values).unwrap();
    cpu.embed(&mut rows, &table, &(0..count as u32).collect::<Vec<_>>());
    rows
}

/// Their bits.
#[allow(dead_code, reason = "not every test compares bits")]
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Whether the processor is emulated, a hundred times slower than a real one: few cases must do there.
#[allow(dead_code, reason = "not every test is slow")]
pub fn emulated() -> bool {
    std::env::var_os("GRAFTWORK_TEST_ISA").is_some()
}
