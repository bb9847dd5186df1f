//! Rows of activations for tests, and how they are compared.

use graftwork_kernels::backend::Backend;
use graftwork_kernels::cpu::{Cpu, Rows};
use graftwork_kernels::{Format, Tensor};

use crate::random::Random;

/// `n` normal numbers.
pub fn normals(random: &mut Random, n: usize) -> Vec<f32> {
    (0..n).map(|_| random.normal()).collect()
}

/// A random matrix. Of formats with blocks few are encoded, of which all are then picked: some encoders search, and would take most of
/// a test's time.
#[allow(dead_code, reason = "not every test multiplies matrices")]
pub fn weights(random: &mut Random, format: Format, rows: usize, cols: usize) -> Tensor {
    let (len, size) = (format.block_len(), format.block_bytes());
    let count = rows * cols / len;
    if len == 1 || count < 16 {
        return Tensor::encode(format, rows, cols, &normals(random, rows * cols)).unwrap();
    }
    let some = Tensor::encode(format, 1, 16 * len, &normals(random, 16 * len)).unwrap();
    let blocks: Vec<&[u8]> = some.bytes().chunks(size).collect();
    let bytes: Vec<u8> = (0..count).flat_map(|_| blocks[random.bits() as usize % 16]).copied().collect();
    Tensor::new(format, rows, cols, bytes.into()).unwrap()
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
