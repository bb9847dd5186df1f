//! Memory that the system refuses is an error, never an end: an allocator refuses one large allocation after the other
//! while engines open, load adapters, answer and score, and each time the error says so and nothing is lost.
//!
//! What counts is every allocation of at least `least` bytes, which is chosen so that whatever follows the size of
//! weights, adapters, KV cache, activations and scratch lies above. Below, and not part of the promise, are names, maps and
//! messages: as many as a file has tensors and keys, an engine has adapters and requests. Nor is the tokenizer: the models
//! here have none. Vectors that shrink are not refused: systems do that in place.
//!
//! An allocation that Rust takes for granted ends the process when it is refused, so a test that runs to its end has
//! found none.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use graftwork::{Bytes, Engine, EngineOptions, Error, ErrorKind, Event, Format, Request, RequestId, Source};
use graftwork_adapters::TensorFile;
use graftwork_adapters::file::gguf::Value;
use graftwork_adapters::file::{Gguf, GgufWriter};
use graftwork_kernels::Tensor;
use graftwork_tests::reference::{example, golden, smollm2};

/// The system's allocator, which refuses some allocations, whatever thread they are for.
struct Refusing;

/// Smallest allocation that counts.
static LEAST: AtomicUsize = AtomicUsize::new(usize::MAX);
/// How many counted so far.
static COUNTED: AtomicUsize = AtomicUsize::new(0);
/// The first that is refused, and the first that is not any more.
static FIRST: AtomicUsize = AtomicUsize::new(usize::MAX);
static END: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Whether an allocation of `size` bytes is refused.
fn is_refused(size: usize) -> bool {
    if size < LEAST.load(Ordering::Relaxed) {
        return false;
    }
    let number = COUNTED.fetch_add(1, Ordering::Relaxed);
    (FIRST.load(Ordering::Relaxed)..END.load(Ordering::Relaxed)).contains(&number)
}

// SAFETY: every call is handed on to the system's allocator unchanged, or answered with null, which says that memory
// was refused; nothing here allocates or unwinds.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_refused(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise about `layout` is the one asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_refused(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > layout.size() && is_refused(size) {
            return std::ptr::null_mut();
        }
        // SAFETY: the pointer came from the system's allocator, with this layout; the rest is the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Refusing = Refusing;

/// Which allocations are refused.
#[derive(Clone, Copy, Debug)]
struct Refusals {
    /// The smallest that count, in bytes.
    least: usize,
    /// How many pass first.
    pass: usize,
    /// How many are refused then.
    refuse: usize,
}

impl Refusals {
    /// Runs `f` under these refusals; gives its answer and how many allocations counted.
    fn during<T>(self, f: impl FnOnce() -> T) -> (T, usize) {
        COUNTED.store(0, Ordering::SeqCst);
        FIRST.store(self.pass, Ordering::SeqCst);
        END.store(self.pass.saturating_add(self.refuse), Ordering::SeqCst);
        LEAST.store(self.least, Ordering::SeqCst);
        let answer = f();
        LEAST.store(usize::MAX, Ordering::SeqCst);
        (answer, COUNTED.load(Ordering::SeqCst))
    }
}

/// One test at a time: they share the allocator.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an engine is to do: open a model, load adapters, answer the first prompt through the first of them and the second
/// through all, and give the logits of the second.
struct Scene {
    model: Source,
    adapters: Vec<(&'static str, Source)>,
    weight: f32,
    prompts: [Vec<u32>; 2],
    answer: usize,
    /// The smallest allocation that counts.
    least: usize,
}

/// The life of one engine, which goes on where an error interrupted it.
#[derive(Default)]
struct Life {
    engine: Option<Engine>,
    loaded: usize,
    requests: Vec<RequestId>,
    answers: HashMap<RequestId, Vec<u32>>,
    logits: Option<Vec<f32>>,
}

impl Life {
    fn go_on(&mut self, scene: &Scene) -> Result<(), Error> {
        let engine = match &mut self.engine {
            Some(engine) => engine,
            none => {
                let options = EngineOptions { threads: 2, ..EngineOptions::default() };
                none.insert(Engine::open(scene.model.clone(), options)?)
            }
        };
        while let Some((name, source)) = scene.adapters.get(self.loaded) {
            engine.load_adapter(name, source.clone())?;
            self.loaded += 1;
        }
        while let Some(prompt) = scene.prompts.get(self.requests.len()) {
            let used = match self.requests.len() {
                0 => &scene.adapters[..1],
                _ => &scene.adapters[..],
            };
            let request = Request {
                adapters: used.iter().map(|(name, _)| ((*name).to_owned(), scene.weight)).collect(),
                max_tokens: Some(scene.answer),
                ignore_eos: true,
                ..Request::new(prompt.clone())
            };
            self.requests.push(engine.submit(request)?);
        }
        while !engine.is_idle() {
            for event in engine.step()? {
                match event {
                    Event::Token { id, token, .. } => self.answers.entry(id).or_default().push(token),
                    Event::Failed { error, .. } => panic!("{error}"),
                    Event::Finished { .. } => {}
                }
            }
        }
        if self.logits.is_none() {
            let stack = [(scene.adapters[0].0.to_owned(), 1.0)];
            self.logits = Some(engine.logits(&scene.prompts[1], &stack)?);
        }
        Ok(())
    }

    /// The answers in order of the requests, and the bits of the logits.
    fn result(&self) -> (Vec<&[u32]>, Vec<u32>) {
        let answers = self.requests.iter().map(|id| &self.answers[id][..]).collect();
        (answers, self.logits.iter().flatten().map(|logit| logit.to_bits()).collect())
    }
}

/// A life without refusals, and how many allocations count in it.
fn undisturbed(scene: &Scene) -> (Life, usize) {
    let mut life = Life::default();
    let none = Refusals { least: scene.least, pass: usize::MAX, refuse: 0 };
    let (outcome, counted) = none.during(|| life.go_on(scene));
    outcome.unwrap();
    let (answers, logits) = life.result();
    assert!(answers.len() == 2 && answers.iter().all(|answer| answer.len() == scene.answer));
    assert!(!logits.is_empty() && logits.len().is_multiple_of(scene.prompts[1].len()));
    (life, counted)
}

/// A life in which allocation `pass` is refused, or all from there on: if there is one, the life must stop with an error
/// that says so, and must come to the same results once nothing is refused any more. Gives whether there was one.
fn interrupted(scene: &Scene, expected: &Life, pass: usize, refuse: usize) -> bool {
    let refusals = Refusals { least: scene.least, pass, refuse };
    let mut life = Life::default();
    let (outcome, counted) = refusals.during(|| life.go_on(scene));
    let any = counted > pass;
    match outcome {
        Ok(()) => assert!(!any, "{refusals:?}: refused, but nobody said so"),
        Err(error) => {
            assert!(any, "{refusals:?}: nothing was refused, but {error}");
            assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{refusals:?}: {error}");
            life.go_on(scene).unwrap_or_else(|error| panic!("after {refusals:?}: {error}"));
        }
    }
    assert!(life.result() == expected.result(), "{refusals:?} changed the results");
    any
}

fn prompt(length: usize, vocab: u32) -> Vec<u32> {
    (0..length as u32).map(|i| (i * 89 + 7) % vocab).collect()
}

/// A GGUF LoRA in 8 bits on the queries of the small model: its rows are put in another order, its second factors in floats.
fn gguf_lora() -> Bytes {
    let (rank, hidden) = (32, 128);
    let mut writer = GgufWriter::new();
    for (key, text) in
        [("general.architecture", "llama"), ("general.type", "adapter"), ("adapter.type", "lora")]
    {
        writer.key(key, Value::Str(text.to_owned()));
    }
    writer.key("adapter.lora.alpha", Value::F32(8.0));
    for layer in 0..3 {
        for (part, rows, cols) in [("a", rank, hidden), ("b", hidden, rank)] {
            let value = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5;
            let values: Vec<f32> = (0..(rows * cols) as u32).map(|i| value(i + layer) * 0.2).collect();
            let tensor = Tensor::encode(Format::Q8_0, rows, cols, &values).unwrap();
            writer.tensor(format!("blk.{layer}.attn_q.weight.lora_{part}"), tensor);
        }
    }
    let mut bytes = Vec::new();
    writer.write(&mut bytes).unwrap();
    bytes.into()
}

/// Every single refusal, alone and with all after it, in the life of a small model from copied files.
#[test]
fn every_refusal_is_an_error_and_loses_nothing() {
    let _alone = alone();
    let adapter = |name| (name, Source::copied(golden(&format!("adapters/{name}"))));
    let scene = Scene {
        model: Source::copied(golden("adapters/base")),
        adapters: vec![adapter("lora_all"), ("gguf", gguf_lora().into())],
        weight: 0.7,
        prompts: [prompt(200, 512), prompt(150, 512)],
        answer: 12,
        least: 8 << 10,
    };
    let (expected, counted) = undisturbed(&scene);
    // A few chunks of weights; of the adapters, the pages, the activations and the scratch more.
    assert!(counted >= 45, "only {counted} allocations count");
    for refuse in [1, usize::MAX] {
        let mut pass = 0;
        while interrupted(&scene, &expected, pass, refuse) {
            pass += 1;
        }
        assert!(pass + 2 >= counted, "only {pass} refusals");
    }
}

/// What stands before prompts: keys and values of 200 positions, and 200 virtual tokens.
#[test]
fn prompts_survive_refusals() {
    let _alone = alone();
    let rows = |cols: usize| {
        let values: Vec<f32> = (0..200 * cols).map(|i| (i as f32 * 0.37).sin() * 0.2).collect();
        let mut file = Vec::new();
        graftwork_adapters::prompt::write(
            &mut file,
            &Tensor::encode(Format::F32, 200, cols, &values).unwrap(),
        )
        .unwrap();
        Bytes::from(file)
    };
    let config = br#"{"peft_type": "PREFIX_TUNING", "num_layers": 3}"#.to_vec();
    let prefix = vec![
        ("adapter_config.json".to_owned(), Bytes::from(config)),
        ("adapter_model.safetensors".to_owned(), rows(3 * 2 * 2 * 16)),
    ];
    let scene = Scene {
        model: golden("adapters/base").into(),
        adapters: vec![("prefix", Source::files(prefix).unwrap()), ("prompt", rows(128).into())],
        weight: 1.0,
        prompts: [prompt(40, 512), prompt(34, 512)],
        answer: 3,
        least: 8 << 10,
    };
    let (expected, counted) = undisturbed(&scene);
    let mut pass = 0;
    while interrupted(&scene, &expected, pass, 1) {
        pass += 1;
    }
    assert!(pass + 2 >= counted, "only {pass} refusals of {counted}");
}

/// A real model without its tokenizer, which is not part of the promise.
fn without_tokenizer() -> Source {
    let file = Gguf::open(smollm2()).unwrap();
    let mut writer = GgufWriter::new();
    for (key, value) in file.metadata().iter().filter(|(key, _)| !key.starts_with("tokenizer.")) {
        writer.key(key, value.clone());
    }
    for name in file.names() {
        writer.tensor(name, file.require(name).unwrap());
    }
    let mut bytes = Vec::new();
    writer.write(&mut bytes).unwrap();
    Bytes::from(bytes).into()
}

/// Quantized weights of a real model, and adapters for it.
#[test]
fn a_real_model_survives_refusals() {
    let _alone = alone();
    let scene = Scene {
        model: without_tokenizer(),
        adapters: vec![
            ("tools", example("tools-lora").into()),
            ("sentiment", example("sentiment-lora.gguf").into()),
        ],
        weight: 0.7,
        prompts: [prompt(40, 49_152), prompt(34, 49_152)],
        answer: 2,
        least: 64 << 10,
    };
    let (expected, counted) = undisturbed(&scene);
    assert!(counted >= 20, "only {counted} allocations count");
    for pass in 0..counted {
        assert!(interrupted(&scene, &expected, pass, 1), "allocation {pass} of {counted}");
    }
}

/// What is as large as the vocabulary while tokens are drawn and reported: the request fails, and says why.
#[test]
fn a_token_that_has_no_memory_fails_its_request_alone() {
    let _alone = alone();
    let engine = Engine::open(without_tokenizer(), EngineOptions::default()).unwrap();
    let run = |pass| {
        let mut sampling = graftwork::sample::Options { temperature: 1.0, top_p: 0.9, ..Default::default() };
        sampling.logit_bias.push((3, 1.0));
        let request = Request {
            sampling,
            logprobs: Some(3),
            logits: true,
            ..Request::new(prompt(20, 49_152)).max_tokens(2)
        };
        engine.submit(request).unwrap();
        let refusals = Refusals { least: 64 << 10, pass, refuse: 1 };
        let mut tokens = Vec::new();
        // On a thread of its own, which has no room for candidates yet.
        let (failed, counted) = refusals.during(|| {
            std::thread::scope(|scope| {
                let stepped = scope.spawn(|| {
                    while !engine.is_idle() {
                        for event in engine.step().unwrap() {
                            match event {
                                Event::Token { token, .. } => tokens.push(token),
                                Event::Failed { error, .. } => return Some(Error::from(error)),
                                Event::Finished { .. } => {}
                            }
                        }
                    }
                    None
                });
                stepped.join().unwrap()
            })
        });
        (tokens, failed.map(|error| error.kind()), counted)
    };
    // Once to let the engine's own memory grow.
    run(usize::MAX);
    let (expected, none, counted) = run(usize::MAX);
    assert!(expected.len() == 2 && none.is_none() && counted >= 5, "{counted} allocations count");
    for pass in 0..counted {
        let (tokens, failed, _) = run(pass);
        assert_eq!(failed, Some(ErrorKind::OutOfMemory), "allocation {pass} of {counted}");
        assert!(tokens.len() < 2 && expected.starts_with(&tokens));
        assert_eq!(run(usize::MAX).0, expected);
    }
}
