//! Seed patches on every base: the merged weights' logits, kept or computed on the fly.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use graftwork::{Bytes, Engine, ErrorKind, Event, Format, Kind, Request};
use graftwork_adapters::check::Shape;
use graftwork_adapters::delta::Fingerprint;
use graftwork_adapters::file::{Gguf, Safetensors};
use graftwork_adapters::seed::{SeedPatch, Settings, normals};
use graftwork_adapters::{Module, Site, Source};
use graftwork_kernels::Tensor;
use graftwork_tests::deltas::{LAYERS, with_weights};
use graftwork_tests::reference::{Expected, golden, tensors};

use super::convert::model_in;
use super::deltas::{Answer, answers, assert_merged, furthest};
use super::open;

/// The small base as a Hugging Face directory and as GGUF files in F32 and Q8_0, and their fingerprints.
fn bases() -> [(Source, Fingerprint); 3] {
    let gguf = |format| {
        let bytes = model_in(format, "adapters/base");
        let fingerprint = Fingerprint::of("llama", &Gguf::parse(bytes.clone()).unwrap());
        (Source::from(bytes), fingerprint)
    };
    let weights = Safetensors::open(golden("adapters/base/model.safetensors")).unwrap();
    let directory = (Source::from(golden("adapters/base")), Fingerprint::of("llama", &weights));
    [directory, gguf(Format::F32), gguf(Format::Q8_0)]
}

/// A patch for these bases with so many coefficients that are not zero, one zero among them, that moves weights by a third of what the
/// base's are: 0.02 each.
fn patch(bases: &[Fingerprint], directions: usize, modules: &[Module]) -> SeedPatch {
    let mut coefficients = vec![0.0; directions + 1];
    normals(directions as u64, 1, 0, &mut coefficients);
    coefficients[directions / 2] = 0.0;
    let norm = coefficients.iter().map(|c| c * c).sum::<f32>().sqrt();
    let (bases, modules) = (bases.to_vec(), modules.to_vec());
    let settings = Settings { bases, base_seed: 7 + directions as u64, scale: -0.02 / norm, modules };
    SeedPatch::new(settings, coefficients).unwrap()
}

fn source(patch: &SeedPatch) -> Source {
    let mut file = Vec::new();
    patch.write(&mut file).unwrap();
    Source::from(Bytes::new(file))
}

/// The base's tensors with the updates added.
fn merged(patch: &SeedPatch) -> Vec<(String, Tensor)> {
    let mut merged = tensors("adapters/base/model.safetensors");
    for (layer, &module) in (0..LAYERS).flat_map(|l| Module::ALL.iter().map(move |m| (l, m))) {
        let site = Site::Linear { layer, module };
        let name = format!("{}.weight", site.hf_path().unwrap());
        let (_, weight) = merged.iter_mut().find(|(other, _)| *other == name).unwrap();
        let (outputs, inputs) = (weight.rows(), weight.cols());
        let Some(update) = patch.update(site, Shape { outputs, inputs }) else { continue };
        let update = update.materialize(Format::F32, 2, &|_, _| true).unwrap().unwrap();
        let sum = weight.decode().unwrap().iter().zip(update.decode().unwrap()).map(|(w, d)| w + d).collect();
        let sum: Vec<f32> = sum;
        *weight = Tensor::encode(Format::F32, outputs, inputs, &sum).unwrap();
    }
    merged
}

/// With few coefficients and with many, of all layers and of some, a patch gives the logits of the merged weights on bases in F32, to 1e-3;
/// on one in Q8_0 it changes them no further than 1.5 times what rounding the base to it does. The two bases in F32, whose
/// rows of q and k differ in order, give each other's. On the fly nothing is kept.
#[test]
fn applied_patches_equal_merged_ones() {
    let expected = Expected::read("adapters/base/expected.safetensors", "logits");
    let (sources, fingerprints): (Vec<_>, Vec<_>) = bases().into_iter().unzip();
    let engines: Vec<Engine> = sources.into_iter().map(open).collect();
    let mut rounding = 0.0f32;
    for tokens in &expected.tokens {
        let logits = |i: usize| engines[i].logits(tokens, &[]).unwrap();
        rounding = rounding.max(furthest(&logits(0), &logits(2)));
    }
    let some = &[Module::K, Module::O, Module::Down][..];
    for (directions, modules) in [(1, Module::ALL), (4, Module::ALL), (5, Module::ALL), (64, some), (3, some)]
    {
        let patch = patch(&fingerprints, directions, modules);
        let reference = open(with_weights(&merged(&patch)));
        let name = format!("{directions} of {}", modules.len());
        let mut first = None;
        for (engine, bound) in engines.iter().zip([1e-3, 1e-3, 1.5 * rounding]) {
            engine.load_adapter(&name, source(&patch)).unwrap();
            let info = engine.adapter(&name).unwrap();
            assert_eq!((info.kind, info.edits), (Kind::SeedPatch, LAYERS * modules.len()));
            let weights = engine.memory().weights;
            match directions <= 4 {
                true => assert!(info.bytes < 300 * info.edits, "{} bytes", info.bytes),
                false => {
                    assert!(info.bytes > weights / 10 && info.bytes < 5 * weights / 4, "{} bytes", info.bytes)
                }
            }
            assert_merged(engine, &name, &reference, &expected, bound);
            let logits = engine.logits(&expected.tokens[0], &[(name.clone(), 1.0)]).unwrap();
            let apart = furthest(first.get_or_insert(logits.clone()), &logits);
            assert!(apart <= 1e-4 || bound > 1e-3, "{name}: containers differ by {apart}");
        }
        // Half of it twice is all of it.
        let half = [(name.clone(), 0.5), (name.clone(), 0.5)];
        let halves = engines[0].logits(&expected.tokens[0], &half).unwrap();
        assert!(furthest(&halves, &first.unwrap()) < 1e-3);
    }
}

/// A patch for another base is refused before anything is computed, by both fingerprints.
#[test]
fn other_bases_are_refused() {
    let [(directory, own), (_, other), _] = bases();
    let engine = open(directory);
    for directions in [2, 20] {
        let progress = |_, _| -> bool { panic!("nothing is computed") };
        let source = source(&patch(&[other], directions, Module::ALL));
        let error = engine.load_adapter_with("elsewhere", source, &progress).unwrap_err().to_string();
        assert!(error.contains(&own.to_string()) && error.contains(&other.to_string()), "{error}");
    }
    assert!(engine.adapters().is_empty());
}

/// A patch without a coefficient that is not zero is the base, to the bit.
#[test]
fn zeros_change_nothing() {
    let [(directory, own), ..] = bases();
    let engine = open(directory);
    let settings = Settings { bases: vec![own], base_seed: 1, scale: 1.0, modules: Module::ALL.to_vec() };
    engine.load_adapter("zeros", source(&SeedPatch::new(settings, vec![0.0; 9]).unwrap())).unwrap();
    let tokens = [1, 5, 17, 300, 4];
    let zeros = [("zeros".to_owned(), 1.0)];
    assert_eq!(engine.logits(&tokens, &zeros).unwrap(), engine.logits(&tokens, &[]).unwrap());
}

/// Progress counts every element once, and can end it at any time: then nothing is left, and the name is free, or means what it meant.
#[test]
fn progress_counts_and_cancels() {
    let [.., (gguf, own)] = bases();
    let engine = open(gguf);
    let patch = patch(&[own], 50, Module::ALL);
    let shapes: Vec<_> = tensors("adapters/base/model.safetensors")
        .iter()
        .filter(|(name, _)| name.contains("_proj."))
        .map(|(_, tensor)| tensor.rows() * tensor.cols())
        .collect();
    let elements: usize = shapes.iter().sum();
    let (calls, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let count = |done, all| {
        assert_eq!(all, elements);
        most.fetch_max(done, Ordering::Relaxed);
        calls.fetch_add(1, Ordering::Relaxed);
        true
    };
    let before = engine.load_adapter("kept", source(&patch)).unwrap();
    let bytes = engine.memory().adapters;
    engine.load_adapter_with("counted", source(&patch), &count).unwrap();
    assert_eq!(most.into_inner(), elements);
    engine.unload_adapter("counted").unwrap();
    let calls = calls.into_inner();
    assert!(calls > shapes.len(), "{calls} calls");
    for last in [0, 1, 2, calls / 2, calls - 1] {
        for replace in [false, true] {
            let calls = AtomicUsize::new(0);
            let stop = |_, _| calls.fetch_add(1, Ordering::Relaxed) < last;
            let outcome = match replace {
                true => engine.replace_adapter_with("kept", source(&patch), None, &stop),
                false => engine.load_adapter_with("new", source(&patch), &stop),
            };
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Cancelled, "after {last}");
            let names: Vec<_> =
                engine.adapters().into_iter().map(|info| (info.name, info.generation)).collect();
            assert_eq!(names, [("kept".to_owned(), before)]);
            assert_eq!(engine.memory().adapters, bytes);
        }
    }
    // Every other kind can be ended too.
    let error = engine.load_adapter_with("lora", golden("adapters/lora"), &|done, _| done < 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    engine.load_adapter("new", source(&patch)).unwrap();
}

/// Requests are answered while a patch is computed: its progress waits until one is.
#[test]
fn loading_blocks_no_request() {
    let [.., (gguf, own)] = bases();
    let engine = open(gguf);
    let patch = patch(&[own], 50, Module::ALL);
    let (started, starts) = mpsc::channel();
    let answered = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let progress = |_, _| {
                let _ = started.send(());
                while !answered.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                true
            };
            engine.load_adapter_with("patch", source(&patch), &progress)
        });
        starts.recv().unwrap();
        let request = Request { ignore_eos: true, ..Request::new(vec![1, 2, 3]) }.max_tokens(4);
        let tokens =
            engine.generate(request).unwrap().filter(|e| matches!(e, Ok(Event::Token { .. }))).count();
        answered.store(true, Ordering::Release);
        assert_eq!(tokens, 4);
        load.join().unwrap().unwrap();
    });
}

/// Patches, kept and on the fly, a LoRA and the base in one batch, also stacked: each answers as alone, to the bit.
#[test]
fn patches_in_one_batch_are_as_alone() {
    for (base, own) in bases().into_iter().skip(1) {
        let engine = open(base);
        engine.load_adapter("lora", golden("adapters/lora_all")).unwrap();
        let mut stacks = vec![vec![], vec![("lora".to_owned(), 1.0)]];
        for directions in [1, 2, 4, 6, 40] {
            let name = directions.to_string();
            engine.load_adapter(&name, source(&patch(&[own], directions, Module::ALL))).unwrap();
            stacks.push(vec![(name, 1.0)]);
        }
        stacks.push(vec![("2".to_owned(), 0.75), ("lora".to_owned(), 1.0), ("40".to_owned(), -0.5)]);
        let request = |(i, stack): (usize, &Vec<(String, f32)>)| {
            let tokens: Vec<u32> = (0..3 + 9 * i as u32).map(|t| (t * 37 + i as u32 * 5) % 500).collect();
            let request = Request { ignore_eos: true, logits: true, ..Request::new(tokens).max_tokens(4) };
            Request { adapters: stack.clone(), ..request }
        };
        let requests: Vec<Request> = stacks.iter().enumerate().map(request).collect();
        let alone: Vec<Answer> =
            requests.iter().flat_map(|request| answers(&engine, std::slice::from_ref(request))).collect();
        let together = answers(&engine, &requests);
        for ((stack, alone), together) in stacks.iter().zip(&alone).zip(&together) {
            assert!(alone == together, "{stack:?}");
        }
        let logits: Vec<_> = stacks.iter().map(|stack| engine.logits(&[1, 5, 17], stack).unwrap()).collect();
        for (i, one) in logits.iter().enumerate() {
            assert!(logits[..i].iter().all(|other| furthest(one, other) > 0.05), "{:?}", stacks[i]);
        }
    }
}
