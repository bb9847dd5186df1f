//! Keys and values that are kept for requests that start alike.

use graftwork::{Engine, EngineOptions, Event, Request};
use graftwork_tests::reference::{INVOCATION, golden, smollm2};

use crate::{Answers, answer, ask, engine, load};

/// Bytes of a page of the tiny base's KV cache in halves: keys and values of 3 layers, 2 heads of 16, 32 positions.
const PAGE: usize = 2 * 3 * 2 * 16 * 32 * 2;

/// What is kept of one request spares later ones work, never under other adapters, and makes room for all.
#[test]
fn prefixes_are_reused_under_equal_stacks_only() {
    let fresh = engine(EngineOptions { keep_prefixes: false, ..EngineOptions::default() });
    let engine = engine(EngineOptions { kv_bytes: 12 * PAGE, ..EngineOptions::default() });
    for engine in [&engine, &fresh] {
        load(engine, "lora");
    }
    let mut reused = 0;
    let mut check = |request: Request, expected_reuse| {
        assert_eq!(answer(&engine, request.clone()), answer(&fresh, request));
        let now = engine.counters().reused_rows;
        assert_eq!(now - reused, expected_reuse);
        reused = now;
    };
    check(ask(100, 8, &[]), 0);
    check(ask(100, 8, &[]), 96);
    check(ask(100, 8, &[("lora", 1.0)]), 0);
    check(ask(100, 8, &[("lora", 0.5)]), 0);
    check(ask(100, 8, &[("lora", 1.0)]), 96);
    engine.replace_adapter("lora", golden("adapters/lora_all"), None).unwrap();
    fresh.replace_adapter("lora", golden("adapters/lora_all"), None).unwrap();
    check(ask(100, 8, &[("lora", 1.0)]), 0);
    // It needs the whole cache: what is kept of others makes room. Of its own beginning, which was of no use for the
    // longest time, the request before took the last page.
    check(ask(370, 8, &[]), 64);
    check(ask(100, 8, &[("lora", 1.0)]), 0);
    assert!(engine.memory().kv <= 12 * PAGE && engine.memory().kv_used == 0);
}

/// What comes before an invocation is the base's: its pages serve base and adapters alike, those after only whom they belong to.
#[test]
fn pages_before_an_invocation_are_the_bases() {
    let fresh = engine(EngineOptions { keep_prefixes: false, ..EngineOptions::default() });
    let engine = engine(EngineOptions::default());
    for engine in [&engine, &fresh] {
        load(engine, "alora");
        load(engine, "lora");
    }
    let mut reused = 0;
    let mut check = |at: usize, adapters: &[(&str, f32)], expected_reuse| {
        let mut request = ask(150, 8, adapters);
        let graftwork::Prompt::Tokens(tokens) = &mut request.prompt else { panic!("tokens") };
        tokens[at..at + 3].copy_from_slice(&INVOCATION);
        assert_eq!(answer(&engine, request.clone()), answer(&fresh, request));
        let now = engine.counters().reused_rows;
        assert_eq!(now - reused, expected_reuse, "{at} {adapters:?}");
        reused = now;
    };
    // All tokens are equal but for the invocation, at 70: two pages come before it, and two more are full.
    check(70, &[], 0);
    check(70, &[("alora", 1.0)], 64);
    check(70, &[("alora", 1.0)], 128);
    check(70, &[("alora", 0.5)], 64);
    check(70, &[], 128);
    // At the edge of a page.
    check(96, &[("alora", 1.0)], 64);
    check(96, &[("alora", 1.0)], 128);
    check(96, &[], 96);
    check(96, &[("alora", 1.0)], 128);
    // Another adapter below it acts on the first token already.
    check(70, &[("lora", 1.0), ("alora", 1.0)], 0);
    check(70, &[("lora", 1.0)], 64);
    check(70, &[("lora", 1.0), ("alora", 1.0)], 128);
    // A stack that starts where this one does, in another order.
    check(70, &[("alora", 1.0), ("lora", 1.0)], 64);
    assert_eq!(engine.adapter("alora").unwrap().requests, 0);
}

/// Pages that requests share count once: a cache of 12 pages holds four requests of six pages with five in common.
#[test]
fn shared_pages_count_once() {
    let engine = engine(EngineOptions { kv_bytes: 12 * PAGE, ..EngineOptions::default() });
    let expected = answer(&engine, ask(170, 8, &[]));
    let ids = [(); 4].map(|()| engine.submit(ask(170, 8, &[])).unwrap());
    let mut answers = Answers::default();
    answers.step(&engine);
    for id in ids {
        assert_eq!(answers.tokens(id).len(), 1, "all run in the first step");
    }
    assert_eq!(engine.memory().kv_used, 9 * PAGE);
    let answers = answers.drain(&engine);
    assert!(ids.iter().all(|&id| answers.tokens(id) == expected));
    assert_eq!((engine.memory().kv_used, engine.counters().reused_rows), (0, 4 * 160));
}

/// A request that has to wait for others anyway takes nothing from what is kept.
#[test]
fn waiting_costs_no_prefixes() {
    let engine = engine(EngineOptions { kv_bytes: 12 * PAGE, prefill_chunk: 8, ..EngineOptions::default() });
    answer(&engine, ask(100, 8, &[]));
    let other = |first: u32, length: usize| {
        let tokens = (first..first + length as u32).collect::<Vec<_>>();
        Request { max_tokens: Some(2), ignore_eos: true, ..Request::new(tokens) }
    };
    // Three pages are kept, five go to the first of these: the second needs eight.
    let running = engine.submit(other(1, 150)).unwrap();
    engine.submit(other(200, 250)).unwrap();
    let mut answers = Answers::default();
    answers.step(&engine);
    assert_eq!(engine.memory().kv_used, PAGE);
    engine.cancel(running).unwrap();
    answers.drain(&engine);
    let reused = engine.counters().reused_rows;
    answer(&engine, ask(100, 8, &[]));
    assert_eq!(engine.counters().reused_rows - reused, 96);
}

/// A conversation goes on: what was written as an answer is read as a prompt, and spares the work without a bit of
/// difference, in block formats too.
#[test]
fn answers_are_reused_as_prompts() {
    for model in [golden("adapters/base"), smollm2()] {
        let [keeping, fresh] = [true, false].map(|keep_prefixes| {
            let options = EngineOptions { threads: 2, keep_prefixes, ..EngineOptions::default() };
            Engine::open(&model, options).unwrap()
        });
        let mut tokens = ask(50, 1, &[]).prompt;
        for turn in 0..3 {
            let request = Request { prompt: tokens.clone(), logits: true, ..ask(1, 70, &[]) };
            let [kept, computed] = [&keeping, &fresh].map(|engine| {
                let mut all = (Vec::new(), Vec::new());
                for event in engine.generate(request.clone()).unwrap() {
                    if let Event::Token { token, logits: Some(logits), .. } = event.unwrap() {
                        all.0.push(token);
                        all.1.extend(logits);
                    }
                }
                all
            });
            assert!(kept == computed, "turn {turn}");
            let graftwork::Prompt::Tokens(prompt) = &mut tokens else { panic!("tokens") };
            prompt.extend(kept.0);
            prompt.extend([3, 4, 5]);
        }
        // 119 tokens of the first turn and 192 of the second have keys and values: 3 and 6 pages are full.
        assert_eq!((keeping.counters().reused_rows, fresh.counters().reused_rows), ((3 + 6) * 32, 0));
    }
}
