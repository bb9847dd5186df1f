//! What the benchmarks share: random weights and medians of interleaved rounds.

use std::time::Instant;

use graftwork_kernels::cpu::isa::Isa;
use graftwork_kernels::{Format, Tensor};

/// The instruction sets to measure: that which `GRAFTWORK_ISA` names, else all but the portable one.
pub fn isas() -> Vec<Isa> {
    let only = std::env::var("GRAFTWORK_ISA").ok();
    let mut all = Isa::all();
    all.retain(|isa| only.as_deref().map_or(isa.name() != "portable", |name| name == isa.name()));
    all
}

/// A reproducible random matrix in `format`.
pub fn random_matrix(format: Format, rows: usize, cols: usize, seed: u64) -> Tensor {
    let values = random_values(rows * cols, seed);
    Tensor::encode(format, rows, cols, &values).expect("whole blocks")
}

/// Reproducible values, roughly uniform in `-1..1` (SplitMix64).
pub fn random_values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Reproducible values of a standard normal distribution.
pub fn gaussian(n: usize, seed: u64) -> Vec<f32> {
    let uniform = random_values(2 * n, seed);
    let (pairs, _) = uniform.as_chunks::<2>();
    // Box and Muller, of values in 0..1 and -1..1.
    pairs
        .iter()
        .map(|[u, v]| (-2.0 * (0.5 - 0.5 * u).ln()).sqrt() * (std::f32::consts::PI * v).cos())
        .collect()
}

/// Seconds of the median of `rounds` runs.
pub fn median_seconds(rounds: usize, mut f: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .collect();
    median(&mut times)
}

/// The median, of at least one value.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
