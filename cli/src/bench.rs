//! `bench`: prefill and decode speed, beside what this machine can do at most.

use std::time::Instant;

use graftwork::{Engine, EngineOptions, Request};
use graftwork_kernels::cpu::isa::Isa;
use graftwork_kernels::cpu::{Cpu, limits};
use serde_json::json;

use crate::arguments::Bench;
use crate::{Failure, chart, open, output, random_adapter};

/// Runs the command.
pub fn bench(arguments: &Bench) -> Result<(), Failure> {
    let options = EngineOptions {
        threads: arguments.threads,
        kv_format: arguments.cache_type,
        max_batch: arguments.batch,
        // All sequences run at once, whatever that takes, and every prompt is computed.
        kv_bytes: usize::MAX,
        keep_prefixes: false,
        ..EngineOptions::default()
    };
    // Fetching a known model is not loading it.
    open::model_path(&arguments.model)?;
    // Unused adapters have an engine to themselves, which takes turns with one that has none.
    let crowded = match arguments.unused_adapters {
        Some(_) => Some(open::engine(&arguments.model, options.clone())?),
        None => None,
    };
    let start = Instant::now();
    let engine = open::engine(&arguments.model, options)?;
    let load_seconds = start.elapsed().as_secs_f64();
    // An answer follows a prompt of one token.
    let context = engine.config().context;
    for (option, tokens, most) in
        [("pp", arguments.pp, context - 1), ("tg", arguments.tg, context.saturating_sub(2))]
    {
        if tokens > most {
            let found = format!("the model's context allows at most {most}, found {tokens}");
            return Err(Failure::Other(format!("--{option}: {found}")));
        }
    }
    let stacks = load_adapters(&engine, arguments)?;
    if let (Some(crowded), Some(unused)) = (&crowded, arguments.unused_adapters) {
        random_adapter::load_loras(crowded, unused)?;
    }
    round(&engine, &stacks, arguments.pp.min(32), arguments.tg.min(4))?;
    let loaded_memory = peak_memory();

    // The machine is measured right before and after, since a shared one drifts.
    let threads = engine.options().threads;
    let isa = Isa::named(engine.isa()).unwrap_or_else(Isa::best);
    let mut cpu = Cpu::new(threads, isa).map_err(Failure::io("starting threads"))?;
    let mut limits = || {
        (
            limits::Memory::new().bytes_per_second(&mut cpu, 3),
            limits::multiply_operations_per_second(&mut cpu, 3),
        )
    };
    let before = limits();
    forget_peak_memory();
    let mut prefill = Vec::new();
    let mut decode = Vec::new();
    // With adapters, rounds without them take turns.
    let base = vec![Vec::new(); stacks.len()];
    let (mut used, mut unused) = (Cost::default(), Cost::default());
    for _ in 0..arguments.repeat {
        let run = |engine: &Engine, stacks| round(engine, stacks, arguments.pp, arguments.tg);
        let with = run(&engine, &stacks)?;
        prefill.push(with.0);
        decode.push(with.1);
        let mut without = with;
        if stacks != base {
            without = run(&engine, &base)?;
            used.add(with, without);
        }
        if let Some(crowded) = &crowded {
            unused.add(run(crowded, &base)?, without);
        }
    }
    let memory = loaded_memory.max(peak_memory());
    let after = limits();
    let (read, multiply) = (before.0.max(after.0), before.1.max(after.1));

    let sequences = arguments.batch as f64;
    let prefill_rate = sequences * arguments.pp as f64 / median(&mut prefill);
    let decode_rate = sequences * arguments.tg as f64 / median(&mut decode);
    let shape = Shape::of(&engine);
    let decode_bytes = shape.streamed_bytes * decode_rate / sequences;
    let prefill_operations = shape.layer_operations * prefill_rate;
    let mut result = json!({
        "model": arguments.model,
        "threads": threads,
        "isa": isa.name(),
        "prefill_tokens": arguments.pp,
        "prefill_tokens_per_second": prefill_rate,
        "decode_tokens": arguments.tg,
        "decode_tokens_per_second": decode_rate,
        "decode_gb_per_second": decode_bytes / 1e9,
        "prefill_gop_per_second": prefill_operations / 1e9,
        "read_limit_gb_per_second": read / 1e9,
        "multiply_limit_gop_per_second": multiply / 1e9,
        "load_seconds": load_seconds,
        "peak_memory_bytes": memory,
    });
    let mut costs = String::new();
    let percent = |x: f64| format!("{:+.1} %", 100.0 * x);
    for (name, key, cost) in
        [("adapters", "adapters", &used), ("unused adapters", "unused_adapters", &unused)]
    {
        if let (Some(prefill), Some(decode)) = (ratio(&cost.prefill, 0.0), ratio(&cost.decode, 0.0)) {
            result[format!("{key}_prefill_cost")] = (prefill - 1.0).into();
            result[format!("{key}_decode_cost")] = (decode - 1.0).into();
            costs += &format!(
                "{name}: {} time in prefill, {} in decode\n",
                percent(prefill - 1.0),
                percent(decode - 1.0)
            );
        }
    }
    let bytes = adapter_bytes(&engine, &stacks);
    // At least, a step takes what it takes without adapters, and the time to read theirs.
    let reading = arguments.tg as f64 * bytes as f64 / read;
    if let (Some(prefill), Some(decode)) = (ratio(&used.prefill, 0.0), ratio(&used.decode, reading)) {
        result["adapters_bytes"] = bytes.into();
        result["adapters_prefill_speed"] = (1.0 / prefill).into();
        result["adapters_decode_limit_ratio"] = decode.into();
        costs += &format!(
            "adapters: {}; prefill at {:.0} % of the base's speed, decode steps {decode:.2} times the base's and the time to read them\n",
            chart::bytes(bytes),
            100.0 / prefill
        );
    }
    if arguments.json {
        return output::result(&format!("{result}\n"));
    }
    let percent = |part: f64, whole: f64| format!("{:.0} %", 100.0 * part / whole);
    let table = chart::table(&[
        ["", "tokens/s", "rate", "limit", "share"].map(String::from).to_vec(),
        vec![
            format!("prefill {} x {}", arguments.batch, arguments.pp),
            format!("{prefill_rate:.1}"),
            format!("{:.1} GOP/s", prefill_operations / 1e9),
            format!("{:.1} GOP/s", multiply / 1e9),
            percent(prefill_operations, multiply),
        ],
        vec![
            format!("decode {} x {}", arguments.batch, arguments.tg),
            format!("{decode_rate:.1}"),
            format!("{:.1} GB/s", decode_bytes / 1e9),
            format!("{:.1} GB/s", read / 1e9),
            percent(decode_bytes, read),
        ],
    ]);
    let peak = memory.map_or("unknown".to_owned(), chart::bytes);
    output::result(&format!(
        "{}, {threads} threads, {}\n{table}{costs}loaded in {load_seconds:.2} s, peak memory {peak}\n",
        arguments.model,
        isa.name()
    ))
}

/// Seconds of rounds with adapters and of the same rounds without.
#[derive(Default)]
struct Cost {
    prefill: Vec<[f64; 2]>,
    decode: Vec<[f64; 2]>,
}

impl Cost {
    /// Adds the seconds of prefill and decode of one round, and those of the same round without.
    fn add(&mut self, with: (f64, f64), without: (f64, f64)) {
        self.prefill.push([with.0, without.0]);
        self.decode.push([with.1, without.1]);
    }
}

/// The median of times with adapters by those without and `more` seconds.
fn ratio(times: &[[f64; 2]], more: f64) -> Option<f64> {
    let mut ratios: Vec<f64> = times.iter().map(|[with, without]| with / (without + more)).collect();
    (!ratios.is_empty()).then(|| median(&mut ratios))
}

/// Work and traffic of one token.
struct Shape {
    /// Multiplications and additions in the linear layers of all blocks.
    layer_operations: f64,
    /// Weight bytes that a decode step reads.
    streamed_bytes: f64,
}

impl Shape {
    fn of(engine: &Engine) -> Self {
        let c = engine.config();
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let layer = c.hidden * (2 * q + 2 * kv + 3 * c.ffn);
        Self {
            layer_operations: 2.0 * (c.layers * layer) as f64,
            streamed_bytes: engine.memory().weights as f64,
        }
    }
}

/// Seconds of prefill and of decode, all sequences together.
fn round(
    engine: &Engine,
    stacks: &[Vec<(String, f32)>],
    pp: usize,
    tg: usize,
) -> Result<(f64, f64), Failure> {
    let vocab = engine.config().vocab as u64;
    let tokens = |n: usize, sequence: u64| -> Vec<u32> {
        (0..n as u64).map(|i| ((i * 2_654_435_761 + sequence * 40_503 + 97) % vocab) as u32).collect()
    };
    let request = |tokens: Vec<u32>, stack: &[(String, f32)], most: usize| Request {
        adapters: stack.to_vec(),
        ignore_eos: true,
        max_tokens: Some(most),
        ..Request::new(tokens)
    };
    let start = Instant::now();
    for (i, stack) in stacks.iter().enumerate() {
        engine.submit(request(tokens(pp, i as u64), stack, 1))?;
    }
    while !engine.is_idle() {
        engine.step()?;
    }
    let prefill = start.elapsed().as_secs_f64();

    // The first step reads the one-token prompts; `tg` steps follow.
    for (i, stack) in stacks.iter().enumerate() {
        engine.submit(request(tokens(1, i as u64), stack, tg + 1))?;
    }
    engine.step()?;
    let start = Instant::now();
    while !engine.is_idle() {
        engine.step()?;
    }
    Ok((prefill, start.elapsed().as_secs_f64()))
}

/// The adapter stack of each sequence.
fn load_adapters(engine: &Engine, arguments: &Bench) -> Result<Vec<Vec<(String, f32)>>, Failure> {
    let mut common = Vec::new();
    for path in &arguments.adapters {
        let name = format!("file {}", common.len());
        engine.load_adapter(&name, path.as_path())?;
        common.push((name, 1.0));
    }
    let random = match (arguments.random_adapters, arguments.random_deltas) {
        (Some(loras), _) => random_adapter::load_loras(engine, loras)?,
        (None, Some(deltas)) => random_adapter::load_deltas(engine, deltas)?,
        (None, None) => Vec::new(),
    };
    let own = |sequence: usize| random.get(sequence % random.len().max(1)).map(|name| (name.clone(), 1.0));
    Ok((0..arguments.batch).map(|sequence| common.iter().cloned().chain(own(sequence)).collect()).collect())
}

/// Bytes of the adapters of these stacks, each once.
fn adapter_bytes(engine: &Engine, stacks: &[Vec<(String, f32)>]) -> usize {
    let used = |name: &str| stacks.iter().flatten().any(|(used, _)| used == name);
    engine.adapters().iter().filter(|adapter| used(&adapter.name)).map(|adapter| adapter.bytes).sum()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Starts [`peak_memory`] anew: the buffers of a measurement are not the model's. Where the system does not
/// know how, the peak is too high, never too low.
fn forget_peak_memory() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Most memory that this process has held, where the system tells.
fn peak_memory() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<usize>().ok().map(|kilobytes| kilobytes * 1024)
}
