//! One linear layer of every format, few and many tokens, beside the machine's measured limits. Arguments are the names of
//! formats to do alone, and shapes (`4096x1024`: outputs, inputs) to do instead; `GRAFTWORK_ISA` names the only instruction set.

use graftwork_benches::{isas, median_seconds, random_matrix, random_values};
use graftwork_kernels::backend::{Backend, Device, Output, StepShape};
use graftwork_kernels::cpu::{Cpu, limits};
use graftwork_kernels::{Format, Tensor};

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for isa in isas() {
        let mut cpu = Cpu::new(threads, isa).expect("threads");
        let read = limits::Memory::new().bytes_per_second(&mut cpu, 5);
        let multiply = limits::multiply_operations_per_second(&mut cpu, 5);
        println!(
            "{} with {threads} threads: reads {:.1} GB/s, multiplies {:.0} GOP/s",
            isa.name(),
            read / 1e9,
            multiply / 1e9
        );
        let named: Vec<_> = std::env::args().filter_map(|name| Format::from_name(&name)).collect();
        let mut shapes: Vec<(usize, usize)> = std::env::args().filter_map(shape).collect();
        if shapes.is_empty() {
            shapes = vec![(1536, 576), (576, 1536), (5632, 2048)];
        }
        for &format in if named.is_empty() { Format::ALL } else { &named } {
            for &(outputs, inputs) in
                shapes.iter().filter(|(_, inputs)| inputs.is_multiple_of(format.block_len()))
            {
                let weight = random_matrix(format, outputs, inputs, 1);
                // Enough copies that decoding streams from memory, as a model does.
                let copies = (96 << 20) / weight.bytes().len() + 1;
                let device = cpu.device().clone();
                let matrices: Vec<_> = (0..copies).map(|_| device.matrix(&weight).expect("memory")).collect();
                for tokens in [1, 4, 8, 512] {
                    let values = random_values(tokens * inputs, 2);
                    let table = Tensor::encode(Format::F32, tokens, inputs, &values).expect("whole rows");
                    let mut x = cpu.rows(inputs);
                    cpu.resize(&mut x, tokens).expect("memory");
                    cpu.embed(&mut x, &table, &(0..tokens as u32).collect::<Vec<_>>());
                    let mut y = cpu.rows(outputs);
                    cpu.resize(&mut y, tokens).expect("memory");
                    cpu.reserve(&StepShape { rows: tokens, inputs, ..StepShape::default() }).expect("memory");
                    prove(&mut cpu, &x, &weight, &values);
                    let used = if tokens <= 8 { copies } else { 2 };
                    let seconds = median_seconds(5, || {
                        for weight in &matrices[..used] {
                            cpu.linear(
                                &x,
                                &mut [Output {
                                    y: &mut y,
                                    weight,
                                    bias: None,
                                    accumulate: false,
                                    grafts: &[],
                                }],
                            );
                        }
                    }) / used as f64;
                    let bytes = device.matrix_bytes(&matrices[0]) as f64 / seconds;
                    let operations = 2.0 * (outputs * inputs * tokens) as f64 / seconds;
                    println!(
                        "{:>6} [{outputs}, {inputs}] x {tokens:>3}: {:8.1} us  {:6.1} GB/s ({:3.0} %)  {:6.0} GOP/s ({:3.0} %)",
                        format.name(),
                        seconds * 1e6,
                        bytes / 1e9,
                        100.0 * bytes / read,
                        operations / 1e9,
                        100.0 * operations / multiply,
                    );
                }
            }
        }
    }
}

/// `4096x1024`.
fn shape(text: String) -> Option<(usize, usize)> {
    let (outputs, inputs) = text.split_once('x')?;
    Some((outputs.parse().ok()?, inputs.parse().ok()?))
}

/// The last row's first output against the dot product of the decoded weights, within 2 % of the sum of magnitudes.
fn prove(cpu: &mut Cpu, x: &<Cpu as Backend>::Rows, weight: &Tensor, values: &[f32]) {
    let (tokens, inputs) = (values.len() / weight.cols(), weight.cols());
    let matrix = cpu.device().matrix(weight).expect("memory");
    let mut y = cpu.rows(weight.rows());
    cpu.resize(&mut y, tokens).expect("memory");
    cpu.linear(x, &mut [Output { y: &mut y, weight: &matrix, bias: None, accumulate: false, grafts: &[] }]);
    let mut row = vec![0.0; inputs];
    weight.decode_row(0, &mut row);
    let last = &values[(tokens - 1) * inputs..];
    let exact: f32 = row.iter().zip(last).map(|(w, x)| w * x).sum();
    let size: f32 = row.iter().zip(last).map(|(w, x)| (w * x).abs()).sum();
    let found = cpu.read(&y)[(tokens - 1) * weight.rows()];
    assert!((found - exact).abs() <= 0.02 * size, "{}: {found} against {exact}", weight.format());
}
