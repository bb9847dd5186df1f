//! Requests that are saved and go on later: the same tokens and texts, or an error.

use graftwork::sample;
use graftwork::{Context, Engine, EngineOptions, Event, Format, Prompt, Request, RequestId};
use graftwork_tests::reference::golden;
use sha2::{Digest, Sha256};

fn open(kv: Format) -> Engine {
    let options = EngineOptions { threads: 2, kv_format: kv, ..EngineOptions::default() };
    let engine = Engine::open(golden("adapters/base"), options).unwrap();
    for name in ["lora", "lora_all", "prompt_tuning", "prefix_tuning", "alora"] {
        engine.load_adapter(name, golden(&format!("adapters/{name}"))).unwrap();
    }
    engine
}

fn request(names: &[(&str, f32)], prompt: usize) -> Request {
    let tokens: Vec<u32> = (0..prompt as u32).map(|t| (t * 37 + 11) % 500).chain([7, 301, 7, 1]).collect();
    let sampling = sample::Options {
        temperature: 1.3,
        top_p: 0.95,
        repetition_penalty: 1.1,
        seed: 99,
        logit_bias: vec![(3, f32::NEG_INFINITY), (4, 0.5)],
        ..Default::default()
    };
    let adapters = names.iter().map(|&(name, weight)| (name.to_owned(), weight)).collect();
    Request {
        adapters,
        sampling,
        ignore_eos: true,
        max_tokens: Some(70),
        ..Request::new(Prompt::Tokens(tokens))
    }
}

/// The tokens that come until the request ends, or so many.
fn tokens(engine: &Engine, id: RequestId, most: usize) -> Vec<u32> {
    let mut tokens = Vec::new();
    while tokens.len() < most {
        match engine.poll(Some(id), std::time::Duration::MAX).unwrap() {
            Some(Event::Token { token, .. }) => tokens.push(token),
            Some(Event::Finished { .. }) => break,
            other => panic!("{other:?}"),
        }
    }
    tokens
}

/// Saved in its prompt, after some tokens and just before its end, and resumed in another engine, beside others and alone.
#[test]
fn what_follows_is_equal_to_the_bit() {
    for kv in [Format::F16, Format::F32, Format::Q8_0] {
        for stack in [
            &[][..],
            &[("lora", 0.5), ("lora_all", 1.0)],
            &[("prompt_tuning", 1.0)],
            &[("prefix_tuning", 1.0), ("lora", 1.0)],
            &[("alora", 1.0)],
        ] {
            for prompt in [1, 40, 150] {
                let first = open(kv);
                let whole = first.submit(request(stack, prompt)).unwrap();
                let expected = tokens(&first, whole, usize::MAX);
                assert_eq!(expected.len(), 70);
                for after in [0, 1, 33, 69] {
                    let id = first.submit(request(stack, prompt)).unwrap();
                    let begun = tokens(&first, id, after);
                    assert_eq!(begun, expected[..after]);
                    let state = first.save(id).unwrap();
                    first.cancel(id).unwrap();
                    let other = open(kv);
                    let beside = other.submit(request(&[("lora", 1.0)], 20)).unwrap();
                    let resumed = other.resume(&state).unwrap();
                    assert_eq!(
                        tokens(&other, resumed, usize::MAX),
                        expected[after..],
                        "{kv} {stack:?} {prompt} {after}"
                    );
                    assert_eq!(tokens(&other, beside, usize::MAX).len(), 70);
                    // Its pages are kept for the next; saved again on the way.
                    let again = other.resume(&state).unwrap();
                    let next = tokens(&other, again, 1);
                    if after < 69 {
                        let state = other.save(again).unwrap();
                        let last = other.resume(&state).unwrap();
                        assert_eq!([next, tokens(&other, last, usize::MAX)].concat(), expected[after..]);
                    }
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let engine = open(Format::F16);
    let id = engine.submit(request(&[("lora", 0.5)], 40)).unwrap();
    tokens(&engine, id, 5);
    let state = engine.save(id).unwrap();
    let refused = |engine: &Engine, state: &[u8], expected: &str| {
        let error = engine.resume(state).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    };
    // Any byte, and any end.
    for at in (0..state.len()).step_by(state.len() / 200).chain(0..40) {
        let mut changed = state.clone();
        changed[at] ^= 0x40;
        assert!(engine.resume(&changed).is_err(), "{at}");
        assert!(engine.resume(&state[..at]).is_err(), "{at}");
    }
    refused(&engine, b"", "bytes: expected more than 32, found 0");
    refused(&open(Format::Q8_0), &state, "format of keys and values: expected Q8_0, found F16");
    engine.unload_adapter("lora").unwrap();
    refused(&engine, &state, "adapter: expected lora of content");
    // Under another name it is the same; with other content the name is not.
    engine.load_adapter("lora", golden("adapters/lora_rslora")).unwrap();
    refused(&engine, &state, "adapter: expected lora of content");
    engine.load_adapter("other", golden("adapters/lora")).unwrap();
    engine.resume(&state).unwrap();
    let other = Engine::open(golden("architectures/llama_yarn"), EngineOptions::default()).unwrap();
    refused(&other, &state, "base: expected");
    let error = engine.save(RequestId::from(1 << 40)).unwrap_err().to_string();
    assert!(!error.is_empty());
}

/// Who writes a state writes its digest. What it says of keys and values is for its own request alone.
#[test]
fn forged_pages_reach_nobody_else() {
    let plain = |engine: &Engine| {
        let id = engine.submit(request(&[], 150)).unwrap();
        tokens(engine, id, usize::MAX)
    };
    let honest = open(Format::F16);
    let expected = plain(&honest);
    let id = honest.submit(request(&[], 150)).unwrap();
    tokens(&honest, id, 1);
    let mut forged = honest.save(id).unwrap();
    // Behind the tokens, before the digest.
    let end = forged.len() - 32;
    for at in (end - 40_000..end).step_by(2) {
        forged[at] ^= 0x11;
    }
    let digest = Sha256::digest(&forged[..end]);
    forged[end..].copy_from_slice(&digest);
    let engine = open(Format::F16);
    let id = engine.resume(&forged).unwrap();
    assert_ne!(tokens(&engine, id, usize::MAX), expected[1..], "nothing was forged");
    assert_eq!(plain(&engine), expected);
    // What is computed here is kept as ever.
    let before = engine.counters().reused_rows;
    assert_eq!(plain(&engine), expected);
    assert!(engine.counters().reused_rows > before);
}

/// Saved between shifts of the context, with an adapter that acts from a place of the prompt on.
#[test]
fn shifted_requests_go_on() {
    let options = EngineOptions { threads: 2, kv_bytes: 3 << 15, ..EngineOptions::default() };
    let open = || {
        let engine = Engine::open(golden("adapters/base"), options.clone()).unwrap();
        for name in ["alora", "prefix_tuning"] {
            engine.load_adapter(name, golden(&format!("adapters/{name}"))).unwrap();
        }
        engine
    };
    let engine = open();
    for stack in [&[("alora", 1.0)][..], &[("prefix_tuning", 1.0), ("alora", 1.0)]] {
        let request =
            || Request { context: Context::Shift { keep: 3 }, max_tokens: Some(300), ..request(stack, 20) };
        let id = engine.submit(request()).unwrap();
        let expected = tokens(&engine, id, usize::MAX);
        assert_eq!(expected.len(), 300);
        let id = engine.submit(request()).unwrap();
        for after in 0..200 {
            assert_eq!(tokens(&engine, id, 1), expected[after..=after]);
            if after % 23 == 0 {
                let other = open();
                let resumed = other.resume(&engine.save(id).unwrap()).unwrap();
                assert_eq!(tokens(&other, resumed, usize::MAX), expected[after + 1..], "{stack:?} {after}");
            }
        }
        engine.cancel(id).unwrap();
    }
}

/// A state of a valid digest whose header or tokens say what no engine writes: refused, or harmless.
#[test]
fn forged_headers_are_harmless() {
    let engine = open(Format::F16);
    let stack = [("prefix_tuning", 1.0), ("prompt_tuning", 1.0), ("alora", 1.0)];
    let id = engine.submit(Request { context: Context::Shift { keep: 2 }, ..request(&stack, 40) }).unwrap();
    tokens(&engine, id, 3);
    let state = engine.save(id).unwrap();
    engine.cancel(id).unwrap();
    let length = u64::from_le_bytes(*state[8..].first_chunk().unwrap()) as usize;
    let (header, rest) = state[16..state.len() - 32].split_at(length);
    let header: serde_json::Value = serde_json::from_slice(header).unwrap();
    let forged = |header: &serde_json::Value, rest: &[u8]| {
        let json = serde_json::to_vec(header).unwrap();
        let mut bytes = [&b"GWSTATE1"[..], &(json.len() as u64).to_le_bytes(), &json, rest].concat();
        let digest = Sha256::digest(&bytes);
        bytes.extend_from_slice(&digest);
        bytes
    };
    let run = |bytes: &[u8]| match engine.resume(bytes) {
        Err(_) => false,
        Ok(id) => {
            // Whatever comes, it comes to an end.
            for _ in 0..200 {
                match engine.poll(Some(id), std::time::Duration::MAX).unwrap() {
                    Some(Event::Token { .. }) => {}
                    _ => break,
                }
            }
            let _ = engine.cancel(id);
            true
        }
    };
    assert!(run(&forged(&header, rest)), "as it was written");
    let mut ran = 0;
    let numbers =
        [0u64, 1, 2, 7, 39, 40, 41, 200, 511, 512, 513, 1 << 31, u64::from(u32::MAX), 1 << 62, u64::MAX];
    let fields = ["tokens", "prompt", "filled", "most_tokens", "left", "keep", "page_bytes", "logprobs"];
    for number in numbers {
        for field in fields {
            let mut changed = header.clone();
            changed[field] = number.into();
            ran += usize::from(run(&forged(&changed, rest)));
        }
        for adapter in 0..3 {
            for (field, value) in [("from", number), ("weight", number & 0xffff_ffff)] {
                let mut changed = header.clone();
                changed["adapters"][adapter][field] = value.into();
                ran += usize::from(run(&forged(&changed, rest)));
            }
        }
    }
    for (at, number) in [0usize, 1, 10, 45, 60].into_iter().flat_map(|at| {
        [0u32, 511, 512, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 31) + 9, 3 << 30, (3 << 30) + 1, u32::MAX]
            .map(|n| (at, n))
    }) {
        let mut changed = rest.to_vec();
        changed[4 * at..4 * at + 4].copy_from_slice(&number.to_le_bytes());
        ran += usize::from(run(&forged(&header, &changed)));
    }
    // Adapters in another order, and one twice.
    for order in [[2, 1, 0], [1, 0, 2], [0, 0, 1], [2, 2, 2]] {
        let mut changed = header.clone();
        changed["adapters"] =
            order.map(|index: usize| header["adapters"][index].clone()).into_iter().collect();
        ran += usize::from(run(&forged(&changed, rest)));
    }
    assert!(ran > 5, "{ran}");
    assert_eq!(tokens(&engine, engine.submit(request(&[], 40)).unwrap(), usize::MAX).len(), 70);
}

/// What is saved depends on the request alone, not on who had its pages before.
#[test]
fn states_hold_nothing_of_others() {
    for kv_format in [Format::F16, Format::F32, Format::Q8_0] {
        let open = || {
            let options =
                EngineOptions { threads: 1, kv_format, keep_prefixes: false, ..EngineOptions::default() };
            Engine::open(golden("adapters/base"), options).unwrap()
        };
        let state = |engine: &Engine| {
            let id = engine.submit(request(&[], 50)).unwrap();
            tokens(engine, id, 3);
            engine.save(id).unwrap()
        };
        let used = open();
        let other = used.submit(Request { max_tokens: Some(20), ..Request::new(vec![9; 90]) }).unwrap();
        tokens(&used, other, usize::MAX);
        assert!(state(&used) == state(&open()), "{kv_format}");
    }
}
