//! Requests that ask for as much as can be asked for.

use std::collections::HashMap;

use graftwork::sample::Options;
use graftwork::{EngineOptions, Event, FinishReason, Request};
use graftwork_kernels::Format;

use crate::{answer, ask, engine, load, prompt};

/// What a request poisons, infinities and all, stays its own: neighbours in the batch and those who inherit its
/// pages answer as if it had never been.
#[test]
fn numbers_that_overflow_stay_with_their_request() {
    for kv_format in [Format::F16, Format::F32, Format::Q8_0] {
        let options = EngineOptions { kv_format, keep_prefixes: false, ..EngineOptions::default() };
        let engine = engine(options);
        for name in ["lora", "lora_all", "lora_bias"] {
            load(&engine, name);
        }
        let cases = [ask(45, 12, &[]), ask(20, 12, &[("lora", 1.0)])];
        let expected: Vec<_> = cases.iter().map(|case| answer(&engine, case.clone())).collect();
        for poison in ["lora", "lora_all", "lora_bias"] {
            let poisoned = engine.submit(ask(70, 40, &[(poison, f32::MAX)])).unwrap();
            let ids = cases.clone().map(|case| engine.submit(case).unwrap());
            let mut answers = HashMap::<_, Vec<u32>>::new();
            let mut failed = false;
            while !engine.is_idle() {
                for event in engine.step().unwrap() {
                    match event {
                        Event::Token { id, token, .. } => answers.entry(id).or_default().push(token),
                        Event::Finished { .. } => {}
                        Event::Failed { id, error } => {
                            assert_eq!(id, poisoned);
                            assert!(error.to_string().starts_with("logits: expected numbers"), "{error}");
                            failed = true;
                        }
                    }
                }
            }
            assert!(failed, "{poison}");
            for (id, expected) in ids.iter().zip(&expected) {
                assert_eq!(answers[id], *expected, "{poison}");
            }
            // Its pages come back, with what it left in them.
            for (case, expected) in cases.iter().zip(&expected) {
                assert_eq!(answer(&engine, case.clone()), *expected, "{poison}");
            }
        }
        assert_eq!(engine.memory().kv_used, 0);
    }
}

/// Options as large as they can be cost what the request is, not what they say.
#[test]
fn extreme_options_are_harmless() {
    let engine = engine(EngineOptions { prefill_chunk: usize::MAX, ..EngineOptions::default() });
    load(&engine, "lora");
    let expected = answer(&engine, ask(30, 6, &[]));
    let sampling = Options { penalty_last_n: usize::MAX, top_k: usize::MAX, ..Options::default() };
    let request = Request {
        max_tokens: Some(usize::MAX),
        logprobs: Some(usize::MAX),
        stop_tokens: (1000..100_000).collect(),
        sampling,
        ..ask(30, 6, &[])
    };
    let mut tokens = Vec::new();
    for event in engine.generate(request).unwrap() {
        match event.unwrap() {
            Event::Token { token, logprob, .. } => {
                assert_eq!(logprob.unwrap().top.len(), 512);
                tokens.push(token);
            }
            event => assert!(matches!(event, Event::Finished { reason: FinishReason::Length, .. })),
        }
    }
    assert_eq!((&tokens[..6], tokens.len()), (&expected[..], 512 - 30));

    // Every token biased alike changes nothing; a ban of all but one leaves that one.
    let biased = |bias: Vec<(u32, f32)>| Request {
        sampling: Options { logit_bias: bias, ..Options::default() },
        ..ask(30, 6, &[])
    };
    let all = |bias: f32| (0..512).map(|token| (token, bias)).collect::<Vec<_>>();
    let mut but_one = all(f32::NEG_INFINITY);
    but_one.remove(77);
    assert_eq!(answer(&engine, biased(but_one)), [77; 6]);
    assert_eq!(answer(&engine, biased(all(0.0))), expected);

    // Weights of a long stack add up: 200 times 1/2 and 200 times -1/2 of one adapter are the base, all but rounding.
    let stack: Vec<_> = (0..400).map(|i| ("lora".to_owned(), if i % 2 == 0 { 0.5 } else { -0.5 })).collect();
    let (found, base) =
        (engine.logits(&prompt(30), &stack).unwrap(), engine.logits(&prompt(30), &[]).unwrap());
    assert!(found.iter().zip(&base).all(|(a, b)| (a - b).abs() < 1e-2));
    let request = Request { adapters: stack, ..ask(30, 6, &[]) };
    assert_eq!(answer(&engine, request).len(), 6);
}
