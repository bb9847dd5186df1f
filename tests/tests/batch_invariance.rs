//! An answer never depends on who shares the batch: logits are compared bit by bit.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use graftwork::{Engine, EngineOptions, Event, Executor, Format, Request, RequestId};
use graftwork_tests::reference::{ADAPTERS, INVOCATION, example, golden, smollm2};

/// The threads and prefill chunks that must not matter, and whether a host lends the threads: the first is the reference.
type Setting = (usize, usize, bool);

const SETTINGS: [Setting; 6] =
    [(1, 7, false), (1, 64, false), (1, 512, false), (2, 7, false), (2, 64, true), (3, 512, false)];

/// Threads as a host may lend them: one is started for every task.
fn lent() -> Executor {
    Executor::new(|task| _ = std::thread::spawn(task))
}

/// Tokens of every answer.
const ANSWER: usize = 6;

/// Everything that an answer is made of: its tokens, and the bits of the logits they were chosen from.
type Answer = Vec<(u32, Vec<u32>)>;

fn submit(engine: &Engine, request: &Request) -> RequestId {
    engine.submit(request.clone()).unwrap_or_else(|error| panic!("{error}"))
}

/// Adds what a step brought to the answers.
fn step(engine: &Engine, answers: &mut HashMap<RequestId, Answer>) {
    for event in engine.step().unwrap() {
        if let Event::Token { id, token, logits, .. } = event {
            let bits = logits.unwrap().iter().map(|logit| logit.to_bits()).collect();
            answers.entry(id).or_default().push((token, bits));
        }
    }
}

/// Steps until nothing is left to do.
fn drain(engine: &Engine, answers: &mut HashMap<RequestId, Answer>) {
    while !engine.is_idle() {
        step(engine, answers);
    }
}

/// Sixteen prompts of 1 to about 150 tokens or one for each of the stacks, by turns with these.
fn requests(vocab: usize, stacks: &[Vec<(String, f32)>]) -> Vec<Request> {
    let mut state = 0x5eed_u64;
    let mut next = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let lengths = [1, 2, 7, 8, 31, 32, 33, 63, 64, 65, 5, 20, 40, 90, 130, 150];
    let request = |(index, length): (usize, usize)| {
        let adapters = stacks[index % stacks.len()].clone();
        let mut tokens: Vec<u32> = (0..length).map(|_| next(vocab) as u32).collect();
        // Not at the start, so that the adapter does; across the places where prompts are cut.
        if adapters.iter().any(|(name, _)| name == "alora") && length > 3 {
            tokens[length * 2 / 3 - 1..][..3].copy_from_slice(&INVOCATION);
        }
        // A token that the base does not have.
        if adapters.iter().any(|(name, _)| name == "resized") {
            tokens[length / 2] = 514;
        }
        let request = Request::new(tokens);
        Request { adapters, max_tokens: Some(ANSWER), ignore_eos: true, logits: true, ..request }
    };
    (0..stacks.len().max(lengths.len())).zip(lengths.into_iter().cycle()).map(request).collect()
}

/// The base, one adapter, and two at once.
fn three_stacks(adapters: &[(&str, PathBuf)]) -> Vec<Vec<(String, f32)>> {
    let one = |index: usize, weight| (adapters[index].0.to_owned(), weight);
    vec![vec![], vec![one(0, 1.0)], vec![one(0, 0.5), one(1, -0.75)]]
}

/// Runs the requests alone and together, some of them joining while others run, under every setting.
fn mixed_equals_alone(
    model: &Path,
    adapters: &[(&str, PathBuf)],
    stacks: &[Vec<(String, f32)>],
    kv_format: Format,
    settings: &[Setting],
) {
    let mut reference: Option<Vec<Answer>> = None;
    for &(threads, prefill_chunk, is_lent) in settings {
        // Under the first setting, all were just run alone: with prefixes kept, little would be left to run.
        let keep_prefixes = reference.is_some() && prefill_chunk == 64;
        let executor = is_lent.then(lent);
        let options = EngineOptions {
            threads,
            executor,
            prefill_chunk,
            keep_prefixes,
            kv_format,
            ..EngineOptions::default()
        };
        let engine = Engine::open(model, options).unwrap_or_else(|error| panic!("{error}"));
        for (name, path) in adapters {
            engine.load_adapter(name, path.as_path()).unwrap_or_else(|error| panic!("{error}"));
        }
        let requests = requests(engine.config().vocab, stacks);
        if reference.is_none() {
            let alone = |request: &Request| {
                let id = submit(&engine, request);
                let mut answers = HashMap::new();
                drain(&engine, &mut answers);
                answers.remove(&id).unwrap()
            };
            let alone: Vec<Answer> = requests.iter().map(alone).collect();
            // A test that compares equal things with equal things proves nothing.
            assert!(alone.windows(2).all(|pair| pair[0] != pair[1]));
            reference = Some(alone);
        }
        let alone = reference.as_ref().unwrap();
        let mut answers = HashMap::new();
        let mut ids = Vec::new();
        for (index, request) in requests.iter().enumerate() {
            ids.push(submit(&engine, request));
            if index % 5 == 4 {
                // Those so far start; those after join them in the middle of their answers.
                step(&engine, &mut answers);
            }
        }
        drain(&engine, &mut answers);
        if keep_prefixes {
            // Once more, from what the first round left.
            ids = requests.iter().map(|request| submit(&engine, request)).collect();
            drain(&engine, &mut answers);
            assert!(engine.counters().reused_rows > 0);
        }
        for (index, id) in ids.iter().enumerate() {
            let (mixed, alone) = (&answers[id], &alone[index]);
            assert_eq!(mixed.len(), ANSWER);
            for (position, (mixed, alone)) in mixed.iter().zip(alone).enumerate() {
                let same = mixed == alone;
                let lent = if is_lent { "lent " } else { "" };
                assert!(
                    same,
                    "request {index}, token {position}, {threads} {lent}threads, chunk {prefill_chunk}"
                );
            }
        }
        assert_eq!(engine.memory().kv_used, 0);
    }
}

#[test]
fn mixed_equals_alone_on_the_tiny_base() {
    let adapters = [("all", golden("adapters/lora_all")), ("bias", golden("adapters/lora_bias"))];
    // Also more threads than there are cores.
    let settings =
        |threads| [7, 64, 512].into_iter().flat_map(move |c| [(threads, c, false), (threads, c, true)]);
    let settings: Vec<Setting> = (1..=8).flat_map(settings).collect();
    for kv in [Format::F16, Format::Q8_0] {
        mixed_equals_alone(&golden("adapters/base"), &adapters, &three_stacks(&adapters), kv, &settings);
    }
}

#[test]
fn mixed_equals_alone_on_smollm2() {
    let adapters = [("tools", example("tools-lora")), ("sentiment", example("sentiment-lora"))];
    mixed_equals_alone(&smollm2(), &adapters, &three_stacks(&adapters), Format::F16, &SETTINGS);
}

/// Every kind in one batch with the base and with stacks of several kinds.
#[test]
fn mixed_equals_alone_for_every_kind() {
    let adapters: Vec<_> = ADAPTERS
        .iter()
        .chain(&["resized"])
        .map(|&name| (name, golden(&format!("adapters/{name}"))))
        .collect();
    let stack = |names: &[&str]| names.iter().map(|&name| (name.to_owned(), 1.0)).collect::<Vec<_>>();
    let around = ["hub_double_seq_bn", "hub_par_bn", "oft", "bottleneck", "control_vector", "ablation"];
    let mut stacks = vec![vec![], stack(&["lokr", "shira"]), stack(&around)];
    stacks.extend(ADAPTERS.iter().map(|&name| stack(&[name])));
    stacks.extend([&["resized"][..], &["lora_all", "resized"]].map(stack));
    // One that starts late, beside others that do not, at prompts of several lengths.
    let late: [&[&str]; 7] = [
        &["alora"],
        &["lora_all", "alora"],
        &["alora", "ia3"],
        &["alora"],
        &["dora", "alora"],
        &["alora", "prompt_tuning"],
        &["prefix_tuning", "alora"],
    ];
    stacks.extend(late.map(stack));
    mixed_equals_alone(&golden("adapters/base"), &adapters, &stacks, Format::F16, &SETTINGS);
}
