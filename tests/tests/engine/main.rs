//! The engine's promises: adapters, requests, memory and errors.

mod budgets;
mod contexts;
mod events;
mod hostile_requests;
mod mistakes;
mod own_tokens;
mod prefixes;
mod states;

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use graftwork::chat::Message;
use graftwork::sample::Options;
use graftwork::{Engine, EngineOptions, Error, Event, FinishReason, Request, RequestId};
use graftwork_kernels::Format;
use graftwork_tests::reference::{argmax, example, golden, smollm2};

fn engine(options: EngineOptions) -> Engine {
    Engine::open(golden("adapters/base"), EngineOptions { threads: 1, ..options }).unwrap()
}

fn load(engine: &Engine, name: &str) {
    engine.load_adapter(name, golden(&format!("adapters/{name}"))).unwrap();
}

fn prompt(length: usize) -> Vec<u32> {
    (0..length as u32).map(|i| (i * 89 + 7) % 512).collect()
}

fn ask(length: usize, answer: usize, adapters: &[(&str, f32)]) -> Request {
    Request {
        adapters: adapters.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect(),
        max_tokens: Some(answer),
        ignore_eos: true,
        ..Request::new(prompt(length))
    }
}

/// Tokens and reasons of everything that ends.
#[derive(Default)]
struct Answers(HashMap<RequestId, (Vec<u32>, Option<FinishReason>)>);

impl Answers {
    fn step(&mut self, engine: &Engine) {
        for event in engine.step().unwrap() {
            let (tokens, end) = self.0.entry(event.id()).or_default();
            assert!(end.is_none(), "an event after the last");
            match event {
                Event::Token { token, .. } => tokens.push(token),
                Event::Finished { reason, .. } => *end = Some(reason),
                Event::Failed { error, .. } => panic!("{error}"),
            }
        }
    }

    fn drain(mut self, engine: &Engine) -> Self {
        while !engine.is_idle() {
            self.step(engine);
        }
        self
    }

    fn tokens(&self, id: RequestId) -> &[u32] {
        &self.0[&id].0
    }

    fn reason(&self, id: RequestId) -> Option<FinishReason> {
        self.0[&id].1
    }
}

fn answer(engine: &Engine, request: Request) -> Vec<u32> {
    let id = engine.submit(request).unwrap();
    Answers::default().drain(engine).tokens(id).to_vec()
}

/// Greedy answers are those that the logits of all positions, computed afresh for each token, give.
#[test]
fn decoding_agrees_with_scoring() {
    let engine = engine(EngineOptions { kv_format: Format::F32, ..EngineOptions::default() });
    load(&engine, "lora_all");
    let stack = [("lora_all".to_owned(), 0.7)];
    let found = answer(&engine, ask(40, 12, &[("lora_all", 0.7)]));
    let mut tokens = prompt(40);
    for token in found {
        let logits = engine.logits(&tokens, &stack).unwrap();
        assert_eq!(token as usize, argmax(&logits[logits.len() - 512..]));
        tokens.push(token);
    }
}

/// Whatever happens to a name, a request keeps the adapters that the name meant when it was submitted.
#[test]
fn requests_keep_their_generations() {
    let engine = engine(EngineOptions::default());
    load(&engine, "lora");
    let base = answer(&engine, ask(20, 16, &[]));
    let with_lora = answer(&engine, ask(20, 16, &[("lora", 1.0)]));
    let other = golden("adapters/lora_all");
    engine.load_adapter("other", &other).unwrap();
    let with_other = answer(&engine, ask(20, 16, &[("other", 1.0)]));
    assert!(base != with_lora && with_lora != with_other && with_other != base);

    let before = engine.submit(ask(20, 16, &[("lora", 1.0)])).unwrap();
    let mut answers = Answers::default();
    for _ in 0..4 {
        answers.step(&engine);
    }
    let generation = engine.adapters()[0].generation;
    let replaced = engine.replace_adapter("lora", &other, Some(generation)).unwrap();
    assert!(replaced > generation);
    let after = engine.submit(ask(20, 16, &[("lora", 1.0)])).unwrap();
    for _ in 0..4 {
        answers.step(&engine);
    }
    assert_eq!(engine.unload_adapter("lora").unwrap(), replaced);
    assert!(matches!(engine.submit(ask(20, 16, &[("lora", 1.0)])), Err(Error::NoAdapter { .. })));
    let answers = answers.drain(&engine);
    assert_eq!(answers.tokens(before), with_lora);
    assert_eq!(answers.tokens(after), with_other);
}

#[test]
fn adapters_are_listed_with_the_requests_that_hold_them() {
    let engine = engine(EngineOptions::default());
    load(&engine, "lora_bias");
    load(&engine, "lora");
    let first = engine.submit(ask(5, 4, &[("lora", 1.0)])).unwrap();
    engine.submit(ask(5, 4, &[("lora", 1.0), ("lora_bias", 0.5)])).unwrap();
    let held = |engine: &Engine| -> Vec<(String, usize)> {
        engine.adapters().into_iter().map(|adapter| (adapter.name, adapter.requests)).collect()
    };
    assert_eq!(held(&engine), [("lora".to_owned(), 2), ("lora_bias".to_owned(), 1)]);
    engine.cancel(first).unwrap();
    Answers::default().drain(&engine);
    assert_eq!(held(&engine), [("lora".to_owned(), 0), ("lora_bias".to_owned(), 0)]);
    let bytes: usize = engine.adapters().iter().map(|adapter| adapter.bytes).sum();
    assert!(bytes > 0 && bytes == engine.memory().adapters);
    assert!(engine.adapters().iter().all(|adapter| adapter.edits > 0));
}

/// An adapter at weight 0 is the base, to the bit; at another weight it is not.
#[test]
fn weights_scale_adapters() {
    let engine = engine(EngineOptions::default());
    load(&engine, "lora");
    let tokens = prompt(10);
    let at = |weight| engine.logits(&tokens, &[("lora".to_owned(), weight)]).unwrap();
    assert_eq!(at(0.0), engine.logits(&tokens, &[]).unwrap());
    assert_ne!(at(0.5), at(1.0));
    // A change that is linear in its weight at one layer is nearly so in the logits for small weights.
    let (base, one, two) = (at(0.0), at(0.001), at(0.002));
    let slope = |logits: &[f32]| -> f64 {
        logits.iter().zip(&base).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
    };
    let ratio = slope(&two) / slope(&one);
    assert!((ratio - 2.0).abs() < 0.05, "{ratio}");
}

#[test]
fn cancelled_requests_end_and_free_their_pages() {
    let engine = engine(EngineOptions { max_batch: 2, prefill_chunk: 16, ..EngineOptions::default() });
    let ids: Vec<_> = [100, 30, 50].map(|length| engine.submit(ask(length, 40, &[])).unwrap()).into();
    let mut answers = Answers::default();
    answers.step(&engine);
    // The first is reading its prompt, the last is still waiting.
    engine.cancel(ids[0]).unwrap();
    engine.cancel(ids[2]).unwrap();
    answers.step(&engine);
    assert_eq!(answers.reason(ids[0]), Some(FinishReason::Cancelled));
    assert_eq!(answers.reason(ids[2]), Some(FinishReason::Cancelled));
    assert!(matches!(engine.cancel(ids[0]), Err(Error::NoRequest { .. })));
    let answers = answers.drain(&engine);
    assert_eq!(answers.reason(ids[1]), Some(FinishReason::Length));
    assert_eq!(answers.tokens(ids[1]), answer(&engine, ask(30, 40, &[])));
    assert_eq!(engine.memory().kv_used, 0);
}

/// A prompt that takes seconds to read is given up in the middle of its step.
#[test]
fn cancelling_does_not_wait_for_the_step() {
    let engine =
        Engine::open(smollm2(), EngineOptions { prefill_chunk: 2048, ..Default::default() }).unwrap();
    // Too early a cancellation finds no step to end: wait longer then, until one was caught.
    for attempt in 0..8 {
        let prompt: Vec<u32> = (0..2000).map(|i| 100 + (i + attempt) * 17 % 40_000).collect();
        let id = engine.submit(Request::new(prompt)).unwrap();
        std::thread::scope(|scope| {
            let stepping = scope.spawn(|| Answers::default().drain(&engine).reason(id));
            std::thread::sleep(Duration::from_millis(20 << attempt));
            engine.cancel(id).unwrap();
            assert_eq!(stepping.join().unwrap(), Some(FinishReason::Cancelled));
        });
        assert_eq!((engine.counters().steps, engine.memory().kv_used), (0, 0));
        if engine.counters().abandoned > 0 {
            return;
        }
    }
    panic!("no cancellation came in the middle of a step");
}

/// More requests than the batch and the cache hold: all are answered, as if alone, and no page is left.
#[test]
fn requests_wait_for_room() {
    let page = 2 * 3 * 2 * 16 * 32 * 2;
    let kv_bytes = 9 * page;
    let options = EngineOptions {
        kv_bytes,
        max_batch: 3,
        prefill_chunk: 24,
        keep_prefixes: false,
        ..Default::default()
    };
    let engine = engine(options);
    let lengths = [200, 1, 64, 65, 31, 250, 32, 33, 10, 128];
    let alone: Vec<_> = lengths.iter().map(|&length| answer(&engine, ask(length, 9, &[]))).collect();
    let ids: Vec<_> = lengths.map(|length| engine.submit(ask(length, 9, &[])).unwrap()).into();
    let mut answers = Answers::default();
    while !engine.is_idle() {
        answers.step(&engine);
        assert!(engine.memory().kv <= kv_bytes);
    }
    for (id, alone) in ids.into_iter().zip(alone) {
        assert_eq!(answers.tokens(id), alone);
        assert_eq!(answers.reason(id), Some(FinishReason::Length));
    }
    assert_eq!(engine.memory().kv_used, 0);
    let counters = engine.counters();
    assert_eq!(counters.tokens, 2 * 9 * 10);
    assert_eq!(counters.prompt_rows, 2 * lengths.iter().sum::<usize>() as u64);
}

/// While a long prompt is read, those who write go on with one token in every step.
#[test]
fn long_prompts_starve_nobody() {
    let engine = engine(EngineOptions { prefill_chunk: 8, ..EngineOptions::default() });
    let short = engine.submit(ask(3, 30, &[])).unwrap();
    let mut answers = Answers::default();
    answers.step(&engine);
    engine.submit(ask(200, 2, &[])).unwrap();
    for step in 2..=20 {
        answers.step(&engine);
        assert_eq!(answers.tokens(short).len(), step);
    }
    answers.drain(&engine);
}

#[test]
fn answers_end_where_they_should() {
    let engine = engine(EngineOptions::default());
    let free = answer(&engine, ask(12, 20, &[]));
    // The first token that did not occur before it, so that it can only end the answer there.
    let at = (3..20).find(|&i| !free[..i].contains(&free[i])).expect("a token that is new");
    let stopped = Request { stop_tokens: vec![free[at]], ..ask(12, 20, &[]) };
    let id = engine.submit(stopped).unwrap();
    let answers = Answers::default().drain(&engine);
    assert_eq!((answers.tokens(id), answers.reason(id)), (&free[..at], Some(FinishReason::Stop)));
    // The context of 512 ends what nothing else does.
    let id = engine.submit(Request { max_tokens: None, ..ask(500, 1, &[]) }).unwrap();
    let answers = Answers::default().drain(&engine);
    assert_eq!((answers.tokens(id).len(), answers.reason(id)), (12, Some(FinishReason::Length)));
}

#[test]
fn log_probabilities_are_those_of_the_logits() {
    let engine = engine(EngineOptions { kv_format: Format::F32, ..EngineOptions::default() });
    let request = Request { logprobs: Some(3), logits: true, ..ask(9, 4, &[]) };
    for event in engine.generate(request).unwrap() {
        let Event::Token { token, logprob, logits, .. } = event.unwrap() else { continue };
        let (logprob, logits) = (logprob.unwrap(), logits.unwrap());
        let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        let expected = |token: u32| f64::from(logits[token as usize]) - sum.ln();
        assert!((f64::from(logprob.chosen) - expected(token)).abs() < 1e-5);
        assert_eq!(logprob.top.len(), 3);
        assert_eq!(logprob.top[0], (token, logprob.chosen));
        let mut sorted = logits.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for (place, (token, value)) in logprob.top.into_iter().enumerate() {
            assert_eq!(logits[token as usize], sorted[place]);
            assert!((f64::from(value) - expected(token)).abs() < 1e-5);
        }
    }
}

/// Iterating one request moves the others along; their events wait for `step`.
#[test]
fn iterating_one_answer_loses_no_event_of_others() {
    let engine = engine(EngineOptions::default());
    let (one, two) = (ask(8, 10, &[]), ask(30, 10, &[]));
    let (expected_one, expected_two) = (answer(&engine, one.clone()), answer(&engine, two.clone()));
    let other = engine.submit(two).unwrap();
    let mut tokens = Vec::new();
    for event in engine.generate(one.clone()).unwrap() {
        if let Event::Token { token, .. } = event.unwrap() {
            tokens.push(token);
        }
    }
    assert_eq!(tokens, expected_one);
    assert_eq!(Answers::default().drain(&engine).tokens(other), expected_two);
    // An iterator that is dropped cancels its request.
    let mut dropped = engine.generate(one).unwrap();
    dropped.next().unwrap().unwrap();
    drop(dropped);
    Answers::default().drain(&engine);
    assert_eq!(engine.memory().kv_used, 0);
}

/// Threads that submit, iterate, cancel and swap adapters at will: every answer is its single run's.
#[test]
fn threads_share_an_engine() {
    fn check<T: Send + Sync + 'static>(_: &T) {}
    let engine = engine(EngineOptions { max_batch: 5, prefill_chunk: 40, ..EngineOptions::default() });
    load(&engine, "lora");
    check(&engine);
    let cases = [ask(70, 8, &[]), ask(20, 8, &[("lora", 1.0)]), ask(33, 8, &[("lora", -0.5)])];
    let expected: Vec<_> = cases.iter().map(|case| answer(&engine, case.clone())).collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (engine, cases, expected) = (&engine, &cases, &expected);
            scope.spawn(move || {
                for round in 0..12 {
                    let case = (thread + round) % cases.len();
                    let mut events = engine.generate(cases[case].clone()).unwrap();
                    if round % 4 == 3 {
                        events.next();
                        continue;
                    }
                    let mut tokens = Vec::new();
                    for event in events {
                        if let Event::Token { token, .. } = event.unwrap() {
                            tokens.push(token);
                        }
                    }
                    assert_eq!(tokens, expected[case]);
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..20 {
                // The same file again: another generation with the same answers.
                engine.replace_adapter("lora", golden("adapters/lora"), None).unwrap();
            }
        });
    });
    Answers::default().drain(&engine);
    assert_eq!(engine.memory().kv_used, 0);
}

/// Text goes in and comes out whole, whatever the tokens: no character is split, and no stop text leaks.
#[test]
fn answers_are_streamed_as_text() {
    let engine = Engine::open(smollm2(), EngineOptions { threads: 2, ..EngineOptions::default() }).unwrap();
    engine.load_adapter("tools", example("tools-lora")).unwrap();
    let chats = fs::read(golden("smollm2/tools.greedy.json")).unwrap();
    let chats: serde_json::Value = serde_json::from_slice(&chats).unwrap();
    let message = |role: &str| Message::new(role, chats[2][role].as_str().unwrap());
    let ask = || Request::new(vec![message("system"), message("user")]).adapter("tools").max_tokens(40);
    let whole = engine.generate(ask()).unwrap().text().unwrap();
    assert_eq!(whole, r#"{"name": "get_weather", "arguments": {"city": "Oslo", "unit": "celsius"}}"#);

    let mut pieces = Vec::new();
    let mut reason = None;
    for event in engine.generate(Request { stop: vec!["ments\": {".into(), "zzz".into()], ..ask() }).unwrap()
    {
        let event = event.unwrap();
        pieces.push(event.text().to_owned());
        if let Event::Finished { reason: why, .. } = event {
            reason = Some(why);
        }
    }
    assert_eq!(reason, Some(FinishReason::StopText));
    assert_eq!(pieces.concat(), r#"{"name": "get_weather", "argu"#);
    // Streamed, not delivered at the end.
    assert!(pieces.iter().filter(|piece| !piece.is_empty()).count() >= 3, "{pieces:?}");

    // Sampling is reproducible by its seed, and differs between seeds.
    let sampled = |seed| {
        let sampling = Options { temperature: 2.0, seed, ..Options::default() };
        engine.generate(Request { sampling, ..ask() }).unwrap().text().unwrap()
    };
    assert_eq!(sampled(1), sampled(1));
    assert!((2..8).any(|seed| sampled(seed) != sampled(1)));

    // Every token banned: the request fails, alone and with the reason.
    let logit_bias = (0..engine.config().vocab as u32).map(|token| (token, f32::NEG_INFINITY)).collect();
    let banned = engine.submit(Request { sampling: Options { logit_bias, ..Options::default() }, ..ask() });
    let (banned, fine) = (banned.unwrap(), engine.submit(ask()).unwrap());
    let mut text = String::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            match event {
                Event::Failed { id, .. } => assert_eq!(id, banned),
                event => {
                    assert_eq!(event.id(), fine);
                    text.push_str(event.text());
                }
            }
        }
    }
    assert_eq!(text, whole);

    let bad = Options { logit_bias: vec![(60_000, 1.0)], ..Options::default() };
    let refused = engine.submit(Request { sampling: bad, ..ask() }).unwrap_err().to_string();
    assert!(refused.contains("logit_bias token 0"), "{refused}");
    let refused = engine.submit(Request { stop: vec![String::new()], ..ask() }).unwrap_err().to_string();
    assert!(refused.contains("stop[0]"), "{refused}");
}
