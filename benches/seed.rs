//! Seed patches: the time of one normal number of one direction in its sum, for each instruction set, and what whole models take.
//! Every instruction set must give the bits of the portable one.

use std::time::Instant;

use graftwork_adapters::check::Shape;
use graftwork_adapters::seed::{SeedPatch, Settings};
use graftwork_adapters::{Module, Site};
use graftwork_benches::{median_seconds, random_values};
use graftwork_kernels::Format;
use graftwork_kernels::cpu::isa::Isa;

/// (name, weights of the linear layers of all blocks).
const MODELS: &[(&str, f64)] = &[("SmolLM2-135M", 106_168_320.0), ("TinyLlama-1.1B", 968_884_224.0)];

fn main() {
    let shape = Shape { outputs: 64, inputs: 1536 };
    let site = Site::Linear { layer: 0, module: Module::Down };
    let patch = |directions| {
        let (bases, modules) = (vec!["0".repeat(64).parse().expect("a fingerprint")], vec![Module::Down]);
        let settings = Settings { bases, base_seed: 1, scale: 1e-3, modules };
        SeedPatch::new(settings, random_values(directions, 2)).expect("a patch")
    };
    let elements = shape.outputs * shape.inputs;
    for directions in [1, 4, 64] {
        let patch = patch(directions);
        let update = patch.update(site, shape).expect("the layer changes");
        let mut expected = vec![0.0f32; elements];
        update.clone().with(Isa::all()[0]).rows(0, &mut expected).expect("all rows");
        for isa in Isa::all() {
            let mut out = vec![0.0f32; elements];
            let seconds = median_seconds(7, || update.clone().with(isa).rows(0, &mut out).expect("all rows"));
            let is_same = out.iter().zip(&expected).all(|(x, y)| x.to_bits() == y.to_bits());
            assert!(is_same, "{} differs", isa.name());
            let ns = seconds * 1e9 / (elements * directions) as f64;
            println!("{directions:>4} directions, {:>10}, one thread: {ns:.3} ns a normal", isa.name());
        }
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let patch = patch(512);
    let update = patch.update(site, shape).expect("the layer changes");
    let start = Instant::now();
    update.materialize(Format::F32, threads, &|_, _| true).expect("an update");
    let ns = start.elapsed().as_secs_f64() * 1e9 / (elements * 512) as f64;
    for (name, weights) in MODELS {
        let seconds = weights * ns * 4096.0 / 1e9;
        println!("{name}, 4096 directions, {threads} threads at {ns:.3} ns a normal: {seconds:.0} s");
    }
}
