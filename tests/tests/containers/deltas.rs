//! Compressed deltas on every base: the merged weights' logits, whichever the method.

use std::collections::HashMap;
use std::fs;

use graftwork::{Engine, Event, Format, Request};
use graftwork_adapters::check::Shape;
use graftwork_adapters::delta::{Coded, Delta, Fingerprint, Layer, Part};
use graftwork_adapters::file::{Gguf, Safetensors};
use graftwork_adapters::{Module, RowOrder, Site, Source};
use graftwork_kernels::Tensor;
use graftwork_tests::deltas::{methods, tuned, with_weights};
use graftwork_tests::reference::{Expected, golden, smollm2};

use super::convert::model_in;
use super::open;

/// The largest difference.
pub fn furthest(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// An adapter gives the logits of `reference`, to a bound; the base alone is far from them.
pub fn assert_merged(engine: &Engine, name: &str, reference: &Engine, expected: &Expected, bound: f32) {
    let mut off = 0.0f32;
    for tokens in &expected.tokens {
        let found = engine.logits(tokens, &[(name.to_owned(), 1.0)]).unwrap();
        let exact = reference.logits(tokens, &[]).unwrap();
        off = off.max(furthest(&exact, &found));
        let change = furthest(&exact, &engine.logits(tokens, &[]).unwrap());
        assert!(change > 0.1, "{name} changes next to nothing: {change}");
    }
    println!("{name}: {off} of {bound}");
    assert!(off <= bound, "{name}: {off} of {bound}");
}

/// A delta in a file gives the logits of the merged weights on a base in F32, to 1e-3; on one in Q8_0 or Q4_1 they are no further off
/// than 1.5 times what rounding the base to it does. On another base than its own it is refused.
#[test]
fn applied_deltas_equal_merged_ones() {
    let expected = Expected::read("adapters/base/expected.safetensors", "logits");
    let sources = || {
        let gguf = |format| model_in(format, "adapters/base");
        let [exact, eight, four] = [Format::F32, Format::Q8_0, Format::Q4_1].map(|f| gguf(f).into());
        [Source::from(golden("adapters/base")), exact, eight, four]
    };
    let gguf = |format| Gguf::parse(model_in(format, "adapters/base")).unwrap();
    let weights = Safetensors::open(golden("adapters/base/model.safetensors")).unwrap();
    let bases = vec![
        Fingerprint::of("llama", &weights),
        Fingerprint::of("llama", &gguf(Format::F32)),
        Fingerprint::of("llama", &gguf(Format::Q8_0)),
        Fingerprint::of("llama", &gguf(Format::Q4_1)),
    ];
    let engines = sources().map(open);
    let mut bounds = [1e-3f32; 4];
    for tokens in &expected.tokens {
        let logits = engines.each_ref().map(|engine| engine.logits(tokens, &[]).unwrap());
        for (bound, rounded) in bounds.iter_mut().zip(&logits).skip(2) {
            *bound = bound.max(1.5 * furthest(&logits[0], rounded));
        }
    }
    let folder = std::env::temp_dir().join(format!("graftwork-deltas-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    for (name, method) in methods() {
        let (delta, merged) = tuned(name, &method, 1);
        let path = folder.join(format!("{name}.safetensors"));
        Delta { bases: bases.clone(), ..delta.clone() }.write(&path).unwrap();
        let reference = open(with_weights(&merged));
        for (engine, bound) in engines.iter().zip(bounds) {
            engine.load_adapter(name, path.as_path()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_merged(engine, name, &reference, &expected, bound);
        }
        let elsewhere = Delta { bases: bases[1..2].to_vec(), ..delta };
        elsewhere.write(&path).unwrap();
        let error = engines[0].load_adapter("elsewhere", path.as_path()).unwrap_err().to_string();
        assert!(error.contains(&bases[1].to_string()) && error.contains(&bases[0].to_string()), "{error}");
    }
    fs::remove_dir_all(folder).unwrap();
}

/// Tokens that were drawn, and the bits of the logits that they were drawn from.
pub type Answer = Vec<(u32, Vec<u32>)>;

/// Runs requests in one batch.
pub fn answers(engine: &Engine, requests: &[Request]) -> Vec<Answer> {
    let submit = |request: &Request| engine.submit(request.clone()).unwrap();
    let ids: Vec<_> = requests.iter().map(submit).collect();
    let mut answers: HashMap<_, Answer> = HashMap::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Token { id, token, logits, .. } = event {
                let bits = logits.unwrap().iter().map(|logit| logit.to_bits()).collect();
                answers.entry(id).or_default().push((token, bits));
            }
        }
    }
    ids.iter().map(|id| answers.remove(id).unwrap()).collect()
}

/// Thirty-two deltas of SmolLM2 in one batch: each answers as alone, to the bit, and otherwise than the others.
#[test]
fn thirty_two_deltas_of_smollm2_in_one_batch_are_as_alone() {
    let engine = open(smollm2());
    let folder = std::env::temp_dir().join(format!("graftwork-many-deltas-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let parts = random_parts(&engine);
    let request = |i: usize| {
        let (name, path) = (format!("delta-{i}"), folder.join(format!("{i}")));
        random_delta(&engine, &parts, i).write(&path).unwrap();
        engine.load_adapter(&name, path.as_path()).unwrap();
        let tokens: Vec<u32> = (0..8 + i as u32).map(|t| (t * 379 + 11) % 49152).collect();
        Request { max_tokens: Some(3), ignore_eos: true, logits: true, ..Request::new(tokens).adapter(&name) }
    };
    let requests: Vec<Request> = (0..32).map(request).collect();
    let together = answers(&engine, &requests);
    for (i, (request, together)) in requests.iter().zip(&together).enumerate() {
        let alone = answers(&engine, std::slice::from_ref(request));
        assert!(alone[0] == *together, "delta {i}");
    }
    let same: Vec<u32> = (0..12).map(|t| t * 379 + 11).collect();
    let logits = |i: usize| engine.logits(&same, &[(format!("delta-{i}"), 1.0)]).unwrap();
    let last: Vec<Vec<f32>> = (0..32).map(|i| logits(i)[11 * 49152..].to_vec()).collect();
    for (i, one) in last.iter().enumerate() {
        assert!(last[..i].iter().all(|other| furthest(one, other) > 0.05), "delta {i} is like another");
    }
    fs::remove_dir_all(folder).unwrap();
}

/// For every linear layer of a block three stages of random vectors, each in three variants.
fn random_parts(engine: &Engine) -> Vec<Vec<Part>> {
    let mut state = 7u64;
    let mut values = |n: usize, size: f32| -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            size * ((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
        };
        (0..n).map(|_| next()).collect()
    };
    let mut parts = |module: &Module| {
        let (outputs, inputs) = engine.config().shape_of(*module);
        let mut part = |(bits, rank): (u32, usize)| {
            let format = |cols| if bits == 8 { Format::I8 } else { Format::coded(bits, cols).unwrap() };
            let size = if bits == 8 { 127.0 } else { 1.0 };
            let mut matrix = |rows: usize, cols: usize| {
                Coded::from(Tensor::encode(format(cols), rows, cols, &values(rows * cols, size)).unwrap())
            };
            let (v, u) = (matrix(rank, inputs), matrix(outputs, rank));
            Part::Factors { v, s: vec![1e-2 / (size * size); rank], u }
        };
        [(8, 2), (3, 32), (2, 32)].repeat(3).into_iter().map(&mut part).collect()
    };
    Module::ALL.iter().map(&mut parts).collect()
}

/// A delta of such parts: which variant a layer has, and how large it is, depends on the number of the delta.
fn random_delta(engine: &Engine, parts: &[Vec<Part>], number: usize) -> Delta {
    let layer = |layer: usize, module: Module| {
        let all = &parts[module as usize];
        let mut parts: Vec<Part> =
            (0..3).map(|stage| all[3 * ((layer + number) % 3) + stage].clone()).collect();
        for (stage, part) in parts.iter_mut().enumerate() {
            if let Part::Factors { s, .. } = part {
                let by = 1.0 + ((number * 7 + layer * 3 + stage) % 32) as f32 / 8.0;
                s.iter_mut().for_each(|s| *s *= by);
            }
        }
        let [outputs, inputs] = match &parts[0] {
            Part::Factors { v, u, .. } => [u.rows(), v.cols()],
            _ => [0, 0],
        };
        Layer { site: Site::Linear { layer, module }, shape: Shape { outputs, inputs }, parts }
    };
    let layers = 0..engine.config().layers;
    Delta {
        method: "random".to_owned(),
        architecture: Some("llama".to_owned()),
        base_model: None,
        bases: vec![engine.fingerprint()],
        row_order: RowOrder::Gguf,
        layers: layers
            .flat_map(|l| Module::ALL.iter().map(move |&m| (l, m)))
            .map(|(l, m)| layer(l, m))
            .collect(),
        carried: Vec::new(),
    }
}

/// Deltas of all methods, twice each, and the base in one batch: each answers as alone, to the bit.
#[test]
fn deltas_in_one_batch_are_as_alone() {
    let engine = open(Source::from(model_in(Format::Q8_0, "adapters/base")));
    let folder = std::env::temp_dir().join(format!("graftwork-mixed-deltas-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let mut stacks = vec![vec![]];
    for seed in [1, 2] {
        for (method, how) in methods() {
            let name = format!("{method}-{seed}");
            let path = folder.join(&name);
            tuned(method, &how, seed).0.write(&path).unwrap();
            engine.load_adapter(&name, path.as_path()).unwrap();
            stacks.push(vec![(name, 1.0)]);
        }
    }
    // A stack of two, with weights.
    stacks.push(vec![("delta-come-1".to_owned(), 0.75), ("bitdelta-2".to_owned(), -0.5)]);
    let request = |(i, stack): (usize, &Vec<(String, f32)>)| {
        let tokens: Vec<u32> = (0..3 + 7 * i as u32).map(|t| (t * 37 + i as u32 * 5) % 500).collect();
        let request = Request { max_tokens: Some(4), ignore_eos: true, logits: true, ..Request::new(tokens) };
        Request { adapters: stack.clone(), ..request }
    };
    let requests: Vec<Request> = stacks.iter().enumerate().map(request).collect();
    let alone: Vec<Answer> =
        requests.iter().flat_map(|request| answers(&engine, std::slice::from_ref(request))).collect();
    let together = answers(&engine, &requests);
    for ((stack, alone), together) in stacks.iter().zip(&alone).zip(&together) {
        assert!(alone == together, "{stack:?}");
    }
    let same: Vec<u32> = vec![1, 5, 17, 300, 4];
    let logits: Vec<Vec<f32>> = stacks.iter().map(|stack| engine.logits(&same, stack).unwrap()).collect();
    for (i, one) in logits.iter().enumerate() {
        assert!(
            logits[..i].iter().all(|other| furthest(one, other) > 0.05),
            "{:?} is like another",
            stacks[i]
        );
    }
    fs::remove_dir_all(folder).unwrap();
}
