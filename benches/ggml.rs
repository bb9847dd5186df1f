//! Single linear layers of every format against ggml's `ggml_mul_mat`: in one process, with the same weights, activations and
//! number of threads, in turns.
//!
//! `RUSTFLAGS="-C target-cpu=native" cargo bench -p graftwork-benches --features ggml --bench ggml -- [--threads N] [--quick]
//! [--format NAME] [--json FILE]`; `GRAFTWORK_ISA=avx2` forces our instruction set (ggml's is that of its build: `haswell`).

#[path = "ggml/ours.rs"]
mod ours;
#[path = "ggml/reference.rs"]
mod reference;
#[path = "ggml/report.rs"]
mod report;

use std::time::Instant;

use graftwork_benches::{gaussian, median};
use graftwork_kernels::cpu::Cpu;
use graftwork_kernels::cpu::isa::Isa;
use graftwork_kernels::cpu::limits::{self, Memory};
use graftwork_kernels::{Format, Tensor};
use ours::{Layers, error, weights};
use reference::{BufferType, Ggml, Graph};
use report::{Row, document};

/// Outputs and inputs of the layers of SmolLM2-135M, Llama-3.2-1B and Llama-3.1-8B.
const SHAPES: [(usize, usize); 9] = [
    (576, 576),
    (1536, 576),
    (576, 1536),
    (2048, 2048),
    (8192, 2048),
    (2048, 8192),
    (4096, 4096),
    (14336, 4096),
    (4096, 14336),
];

/// Those of `--quick`.
const QUICK: [(usize, usize); 2] = [SHAPES[6], SHAPES[7]];

/// Bytes of different matrices that a single row goes over: more than any cache keeps.
const ROTATED: usize = 512 << 20;

/// Rows of activations with the rounds to measure of each.
const ROWS: [(usize, usize); 2] = [(1, 15), (512, 5)];

/// Rows of activations that the answers are proven with.
const PROVEN: usize = 5;

/// Most error of an answer, relative to its RMS: 8-bit activations make about 0.01.
const ERROR: f64 = 0.03;

/// A median so many times the best round says that the machine had other work.
const DISTURBED: f64 = 1.25;

#[derive(Default)]
struct Arguments {
    threads: Option<usize>,
    format: Option<Format>,
    json: Option<String>,
    quick: bool,
}

impl Arguments {
    fn parse() -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--threads" => {
                    let n = value()?.parse().ok().filter(|&n| n > 0);
                    parsed.threads = Some(n.ok_or("--threads needs a number")?);
                }
                "--format" => {
                    let name = value()?;
                    let format = Format::from_name(&name).filter(|format| format.ggml_id().is_some());
                    parsed.format = Some(format.ok_or(format!("ggml has no format {name}"))?);
                }
                "--json" => parsed.json = Some(value()?),
                "--quick" => parsed.quick = true,
                // What cargo adds.
                "--bench" => {}
                _ => return Err(format!("unknown argument {word}")),
            }
        }
        Ok(parsed)
    }
}

fn main() {
    let arguments = Arguments::parse().unwrap_or_else(|message| {
        eprintln!("{message}");
        std::process::exit(2)
    });
    let isa = std::env::var("GRAFTWORK_ISA").ok().map_or(Isa::best(), |name| {
        Isa::named(&name).unwrap_or_else(|| panic!("this CPU has no instruction set {name}"))
    });
    let threads = arguments.threads.unwrap_or(2);
    let mut cpu = Cpu::new(threads, isa).expect("threads");
    let ggml = Ggml::new(threads);
    let lacks = Ggml::lacks(isa);
    if !lacks.is_empty() {
        let target = if isa.name() == "avx2" { "haswell" } else { "native" };
        println!(
            "ggml was built without {}, so there are no ratios: set RUSTFLAGS=\"-C target-cpu={target}\"",
            lacks.join(", ")
        );
    }
    println!("{} against ggml ({}), {threads} threads each", isa.name(), Ggml::features());
    let memory = Memory::new();
    let shapes = if arguments.quick { &QUICK[..] } else { &SHAPES[..] };
    let mut measured = Vec::new();
    let formats = Format::ALL.iter().filter(|format| format.ggml_id().is_some());
    for &format in formats.filter(|&&f| arguments.format.is_none_or(|only| only == f)) {
        for (i, &(outputs, inputs)) in
            shapes.iter().filter(|(_, inputs)| inputs.is_multiple_of(format.block_len())).enumerate()
        {
            if i == 0 {
                prove(&mut cpu, &ggml, format, (outputs, inputs));
            }
            for (rows, rounds) in ROWS {
                let row = measure(&mut cpu, &memory, &ggml, (format, outputs, inputs), rows, rounds);
                row.print(lacks.is_empty());
                measured.push(row);
            }
        }
    }
    if let Some(path) = arguments.json {
        let all = document(isa.name(), &Ggml::features(), threads, lacks.is_empty(), &measured);
        std::fs::write(&path, format!("{all:#}\n")).unwrap_or_else(|e| panic!("{path}: {e}"));
    }
}

/// Prints the errors of both sides against the exact product, and panics if one is not rounding.
fn prove(cpu: &mut Cpu, ggml: &Ggml, format: Format, (outputs, inputs): (usize, usize)) {
    let (weight, x) = (weights(format, outputs, inputs), gaussian(PROVEN * inputs, 2));
    let mut ours = Layers::new(cpu, &weight, 1, &x);
    ours.run(cpu);
    let mut errors = vec![("ours".to_string(), error(&weight, &x, &ours.output(cpu)))];
    for (place, mut graph) in graphs(ggml, &weight, 1, &x) {
        graph.run();
        graph.pause();
        errors.push((format!("ggml {}", place.name()), error(&weight, &x, &graph.output())));
    }
    let list: Vec<_> = errors.iter().map(|(name, error)| format!("{name} {error:.2e}")).collect();
    println!("{:>5} RMS error, relative: {}", format.name(), list.join(", "));
    for (name, error) in errors {
        assert!(error < ERROR, "{format}: {name} is off by {error}");
    }
}

/// Medians of all sides and of what limits them, which take turns; seconds a layer.
fn measure(
    cpu: &mut Cpu,
    memory: &Memory,
    ggml: &Ggml,
    (format, outputs, inputs): (Format, usize, usize),
    rows: usize,
    rounds: usize,
) -> Row {
    let weight = weights(format, outputs, inputs);
    let copies = if rows == 1 { ROTATED.div_ceil(weight.bytes().len()) } else { 2 };
    let x = gaussian(rows * inputs, 2);
    let mut ours = Layers::new(cpu, &weight, copies, &x);
    let mut graphs = graphs(ggml, &weight, copies, &x);
    let (mut times, mut limits) = (vec![Vec::new(); 1 + graphs.len()], Vec::new());
    // The first round only warms up.
    for round in 0..=rounds {
        let mut keep = |side: usize, seconds: f64| {
            if round > 0 {
                times[side].push(seconds / copies as f64);
            }
        };
        limits.push(match rows {
            1 => memory.bytes_per_second(cpu, 1),
            _ => limits::multiply_operations_per_second(cpu, 3),
        });
        let start = Instant::now();
        ours.run(cpu);
        keep(0, start.elapsed().as_secs_f64());
        for (side, (_, graph)) in graphs.iter_mut().enumerate() {
            graph.resume();
            let start = Instant::now();
            graph.run();
            keep(side + 1, start.elapsed().as_secs_f64());
            graph.pause();
        }
    }
    let best = |times: &Vec<f64>| times.iter().copied().fold(f64::INFINITY, f64::min);
    let disturbed = times.iter_mut().any(|times| median(times) > DISTURBED * best(times));
    let mut medians = times.iter_mut().map(|times| median(times));
    let ours = medians.next().expect("our side");
    let mut ggml: Vec<_> = graphs.iter().map(|(place, _)| place.name()).zip(medians).collect();
    ggml.sort_by(|a, b| a.1.total_cmp(&b.1));
    Row { format, outputs, inputs, rows, ours, ggml, limit: median(&mut limits), disturbed }
}

/// A graph for every buffer type that takes such weights.
fn graphs<'a>(ggml: &'a Ggml, weight: &Tensor, copies: usize, x: &[f32]) -> Vec<(BufferType, Graph<'a>)> {
    let graph = |place| Some((place, Graph::new(ggml, place, weight, copies, x)?));
    ggml.buffer_types().into_iter().filter_map(graph).collect()
}
