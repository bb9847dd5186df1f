//! Compressed deltas on every base: the merged weights' logits, whichever the method.

use std::collections::HashMap;
use std::fs;

use graftwork::{Bytes, Event, Format, Request};
use graftwork_adapters::Source;
use graftwork_adapters::delta::{Delta, Fingerprint};
use graftwork_adapters::file::{Dtype, Gguf, Safetensors, TensorView, write_safetensors};
use graftwork_kernels::Tensor;
use graftwork_tests::deltas::{methods, tuned};
use graftwork_tests::reference::{Expected, golden};

use super::convert::model_in;
use super::open;

/// The small base with other weights.
pub fn with_weights(weights: &[(String, Tensor)]) -> Source {
    let shapes: Vec<[u64; 2]> = weights.iter().map(|(_, t)| [t.rows() as u64, t.cols() as u64]).collect();
    let views: Vec<_> = weights
        .iter()
        .zip(&shapes)
        .map(|((name, tensor), shape)| {
            let shape = if name.contains("norm") { &shape[1..] } else { &shape[..] };
            TensorView { name, dtype: Dtype::F32, shape, bytes: tensor.bytes() }
        })
        .collect();
    let mut file = Vec::new();
    write_safetensors(&mut file, &views, &[]).unwrap();
    let config = fs::read(golden("adapters/base/config.json")).unwrap();
    let files = [("config.json", Bytes::from(config)), ("model.safetensors", Bytes::from(file))];
    Source::files(files.map(|(name, bytes)| (name.to_owned(), bytes)).into()).unwrap()
}

/// The largest difference.
pub fn furthest(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// A delta in a file gives the logits of the merged weights on a base in F32, to 1e-3; on one in Q8_0 it changes them no further
/// than 1.5 times what rounding the base to it does. On another base than its own it is refused.
#[test]
fn applied_deltas_equal_merged_ones() {
    let expected = Expected::read("adapters/base/expected.safetensors", "logits");
    let sources = || {
        let gguf = |format| model_in(format, "adapters/base");
        [Source::from(golden("adapters/base")), gguf(Format::F32).into(), gguf(Format::Q8_0).into()]
    };
    let gguf = |format| Gguf::parse(model_in(format, "adapters/base")).unwrap();
    let weights = Safetensors::open(golden("adapters/base/model.safetensors")).unwrap();
    let bases = vec![
        Fingerprint::of("llama", &weights),
        Fingerprint::of("llama", &gguf(Format::F32)),
        Fingerprint::of("llama", &gguf(Format::Q8_0)),
    ];
    let engines = sources().map(open);
    let mut rounding = 0.0f32;
    for tokens in &expected.tokens {
        let [exact, _, rounded] = engines.each_ref().map(|engine| engine.logits(tokens, &[]).unwrap());
        rounding = rounding.max(furthest(&exact, &rounded));
    }
    let folder = std::env::temp_dir().join(format!("graftwork-deltas-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    for (name, method) in methods() {
        let (delta, merged) = tuned(name, &method, 1);
        let path = folder.join(format!("{name}.safetensors"));
        Delta { bases: bases.clone(), ..delta.clone() }.write(&path).unwrap();
        let reference = open(with_weights(&merged));
        for (engine, bound) in engines.iter().zip([1e-3, 1e-3, 1.5 * rounding]) {
            engine.load_adapter(name, path.as_path()).unwrap_or_else(|error| panic!("{name}: {error}"));
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
        let elsewhere = Delta { bases: bases[1..2].to_vec(), ..delta };
        elsewhere.write(&path).unwrap();
        let error = engines[0].load_adapter("elsewhere", path.as_path()).unwrap_err().to_string();
        assert!(error.contains(&bases[1].to_string()) && error.contains(&bases[0].to_string()), "{error}");
    }
    fs::remove_dir_all(folder).unwrap();
}

/// Tokens that were drawn, and the bits of the logits that they were drawn from.
type Answer = Vec<(u32, Vec<u32>)>;

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
    let run = |requests: &[Request]| {
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
        ids.iter().map(|id| answers.remove(id).unwrap()).collect::<Vec<Answer>>()
    };
    let alone: Vec<Answer> = requests.iter().flat_map(|request| run(std::slice::from_ref(request))).collect();
    let together = run(&requests);
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
