//! Graftwork's linear layers, and the answer that both sides are held against.

use graftwork_benches::gaussian;
use graftwork_kernels::backend::{Backend, Device, Output, StepShape};
use graftwork_kernels::cpu::Cpu;
use graftwork_kernels::{Bytes, Format, Tensor};

/// Rows of a matrix that are encoded; the others repeat them, as encoding is slow.
const DISTINCT: usize = 64;

/// A matrix of Gaussian values whose rows repeat after [`DISTINCT`].
pub fn weights(format: Format, outputs: usize, inputs: usize) -> Tensor {
    let part =
        Tensor::encode(format, DISTINCT, inputs, &gaussian(DISTINCT * inputs, 1)).expect("whole blocks");
    let row = part.bytes().len() / DISTINCT;
    let bytes: Vec<u8> = part.bytes().iter().copied().cycle().take(row * outputs).collect();
    Tensor::new(format, outputs, inputs, Bytes::new(bytes)).expect("whole rows")
}

/// RMS of `y - W x` over the RMS of `W x`, in f64, with the decoded weights and the activations as they are.
pub fn error(weight: &Tensor, x: &[f32], y: &[f32]) -> f64 {
    let (inputs, outputs) = (weight.cols(), weight.rows());
    let mut decoded = vec![0.0; inputs];
    let (mut off, mut size) = (0.0, 0.0);
    for r in 0..DISTINCT.min(outputs) {
        weight.decode_row(r, &mut decoded);
        for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact(outputs)) {
            let exact: f64 = decoded.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
            for &y in y[r..].iter().step_by(DISTINCT) {
                off += (f64::from(y) - exact).powi(2);
                size += exact.powi(2);
            }
        }
    }
    (off / size).sqrt()
}

/// Copies of one matrix, each at its own address, and the same activations for all.
pub struct Layers {
    matrices: Vec<<<Cpu as Backend>::Device as Device>::Matrix>,
    x: <Cpu as Backend>::Rows,
    y: <Cpu as Backend>::Rows,
}

impl Layers {
    /// `copies` times `weight`, and activations `x`, whole rows.
    pub fn new(cpu: &mut Cpu, weight: &Tensor, copies: usize, x: &[f32]) -> Self {
        let (inputs, rows) = (weight.cols(), x.len() / weight.cols());
        let table = Tensor::encode(Format::F32, rows, inputs, x).expect("whole rows");
        let (mut input, mut y) = (cpu.rows(inputs), cpu.rows(weight.rows()));
        cpu.resize(&mut input, rows).expect("memory");
        cpu.resize(&mut y, rows).expect("memory");
        cpu.reserve(&StepShape { rows, inputs, ..StepShape::default() }).expect("memory");
        cpu.embed(&mut input, &table, &(0..rows as u32).collect::<Vec<_>>());
        let device = cpu.device().clone();
        let matrices = (0..copies).map(|_| device.matrix(weight).expect("memory")).collect();
        Self { matrices, x: input, y }
    }

    /// Multiplies with every copy.
    pub fn run(&mut self, cpu: &mut Cpu) {
        let Self { matrices, x, y } = self;
        cpu.step(|cpu| {
            for weight in matrices {
                cpu.linear(x, &mut [Output { y, weight, bias: None, accumulate: false, grafts: &[] }]);
            }
        });
    }

    /// The outputs of the last copy.
    pub fn output(&self, cpu: &mut Cpu) -> Vec<f32> {
        cpu.read(&self.y).into_owned()
    }
}
