//! Requests that outgrow the context or the KV cache.

use graftwork::chat::Message;
use graftwork::{Context, Engine, EngineOptions, Error, Event, FinishReason, Request};
use graftwork_kernels::Format;
use graftwork_kernels::backend::PAGE;
use graftwork_tests::reference::{golden, smollm2};

use crate::{Answers, answer, ask, load, prompt};

/// An engine whose requests are full at `positions` positions and one.
fn small(positions: usize, options: EngineOptions) -> Engine {
    let open = |kv_bytes| {
        Engine::open(golden("adapters/base"), EngineOptions { threads: 2, kv_bytes, ..options.clone() })
            .unwrap()
    };
    open(page_bytes(&open(1 << 20)) * positions.div_ceil(PAGE))
}

fn page_bytes(engine: &Engine) -> usize {
    let config = engine.config();
    let width = match engine.options().kv_format {
        Format::F32 => 4 * config.head_dim,
        Format::F16 => 2 * config.head_dim,
        _ => config.head_dim.div_ceil(32) * 34,
    };
    2 * PAGE * config.layers * config.kv_heads * width
}

/// What the manual says: a request whose prompt is what is left.
fn by_hand(engine: &Engine, request: &Request, window: usize, (own, keep): (usize, usize)) -> Vec<u32> {
    let (mut sequence, mut tokens) = (prompt_of(request), Vec::new());
    let wanted = request.max_tokens.unwrap();
    while tokens.len() < wanted {
        let room = (window - own - sequence.len()).min(wanted - tokens.len());
        let part = Request {
            prompt: sequence.clone().into(),
            max_tokens: Some(room),
            context: Context::Stop,
            ..request.clone()
        };
        let part = answer(engine, part);
        assert_eq!(part.len(), room);
        sequence.extend(&part);
        tokens.extend(part);
        let gone = (sequence.len() - keep).div_ceil(2);
        sequence.drain(keep..keep + gone);
    }
    tokens
}

fn prompt_of(request: &Request) -> Vec<u32> {
    match &request.prompt {
        graftwork::Prompt::Tokens(tokens) => tokens.clone(),
        other => panic!("{other:?}"),
    }
}

/// The answer goes on as that to a request whose prompt is what is left, equal to the bit: with adapters, with what they put before the
/// prompt, in every format of the cache, alone and beside others.
#[test]
fn shifted_answers_are_those_to_what_is_left() {
    for kv_format in [Format::F16, Format::F32, Format::Q8_0] {
        let engine = small(96, EngineOptions { kv_format, ..EngineOptions::default() });
        for name in ["lora", "prompt_tuning", "prefix_tuning"] {
            load(&engine, name);
        }
        for (adapters, keep) in [
            (&[][..], 0),
            (&[("lora", 0.7)], 5),
            (&[("prompt_tuning", 1.0)], 3),
            (&[("prefix_tuning", 1.0), ("lora", 1.0)], 20),
        ] {
            let own = adapters.iter().map(|(name, _)| engine.adapter(name).unwrap().positions).sum();
            let request = Request { context: Context::Shift { keep }, ..ask(30, 250, adapters) };
            let expected = by_hand(&engine, &request, 97, (own, keep));
            assert_eq!(answer(&engine, request.clone()), expected, "{adapters:?} in {kv_format}");

            // Beside one that takes turns with it: the cache holds one of them at a time.
            let ids =
                [request.clone(), ask(20, 60, &[]), request].map(|request| engine.submit(request).unwrap());
            let answers = Answers::default().drain(&engine);
            assert_eq!([answers.tokens(ids[0]), answers.tokens(ids[2])], [&expected[..]; 2], "{adapters:?}");
            assert_eq!(answers.tokens(ids[1]).len(), 60);
            assert_eq!(answers.reason(ids[0]), Some(FinishReason::Length));
            assert_eq!(engine.memory().kv_used, 0);
        }
    }
}

#[test]
fn without_a_shift_the_context_is_the_end() {
    let engine = small(64, EngineOptions::default());
    let long = ask(30, 100, &[]);
    assert!(matches!(engine.submit(long.clone()), Err(Error::Budget { .. })));
    let stopped = answer(&engine, Request { max_tokens: None, ..long.clone() });
    assert_eq!(stopped.len(), 65 - 30);
    let shifted = answer(&engine, Request { context: Context::Shift { keep: 0 }, ..long });
    assert_eq!((shifted.len(), &shifted[..35]), (100, &stopped[..]));
    // It stays within the cache.
    assert!(engine.memory().kv <= engine.memory().kv_limit);
    let keep = |keep| engine.submit(Request { context: Context::Shift { keep }, ..ask(64, 9, &[]) });
    assert!(matches!(keep(64), Err(Error::Option { option: "keep", .. })));
    assert!(matches!(keep(usize::MAX), Err(Error::Option { option: "keep", .. })));
    keep(63).unwrap();
    Answers::default().drain(&engine);
}

/// An adapter that acts from its invocation on goes on from there, also once its tokens are gone.
#[test]
fn invocations_move_with_their_tokens() {
    let engine = small(64, EngineOptions::default());
    load(&engine, "alora");
    let mut tokens = prompt(20);
    tokens.extend([7, 301, 7, 1]);
    let request = Request {
        prompt: tokens.into(),
        context: Context::Shift { keep: 2 },
        ..ask(1, 150, &[("alora", 1.0)])
    };
    let with = answer(&engine, request.clone());
    let without = answer(&engine, Request { adapters: Vec::new(), ..request });
    assert_eq!((with.len(), without.len()), (150, 150));
    assert_ne!(with[..40], without[..40]);
    assert_ne!(with[100..], without[100..]);
}

/// Text comes whole, across shifts and a state saved behind one.
#[test]
fn texts_go_on() {
    let options = || EngineOptions { threads: 2, ..EngineOptions::default() };
    let probe = Engine::open(smollm2(), options()).unwrap();
    let kv_bytes = page_bytes(&probe) * 3;
    let engine = Engine::open(smollm2(), EngineOptions { kv_bytes, ..options() }).unwrap();
    let messages = vec![Message::new("user", "Write a very long story about a lighthouse, with many names.")];
    let request = Request {
        max_tokens: Some(160),
        ignore_eos: true,
        stop: vec!["neverwords".into()],
        context: Context::Shift { keep: 8 },
        ..Request::new(messages)
    };
    let (mut tokens, mut text, mut states) = (Vec::new(), String::new(), Vec::new());
    let id = engine.submit(request).unwrap();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            text.push_str(event.text());
            if let Event::Token { token, .. } = event {
                tokens.push(token);
                if [30, 90, 151].contains(&tokens.len()) {
                    states.push((tokens.len(), text.len(), engine.save(id).unwrap()));
                }
            }
        }
    }
    let plain = engine.detokenize(&tokens).unwrap().replace("<|im_start|>", "").replace("<|im_end|>", "");
    assert_eq!((tokens.len(), text.trim()), (160, plain.trim()));
    for (count, length, state) in states {
        let other = Engine::open(smollm2(), EngineOptions { kv_bytes, ..options() }).unwrap();
        let (mut more, mut rest) = (Vec::new(), String::new());
        for event in other.resume_apart(&state).unwrap() {
            let event = event.unwrap();
            rest.push_str(event.text());
            if let Event::Token { token, .. } = event {
                more.push(token);
            }
        }
        assert_eq!((&more[..], &rest[..]), (&tokens[count..], &text[length..]), "after {count}");
    }
}

/// One that has no end and takes the whole cache lets others have their turn.
#[test]
fn endless_requests_starve_nobody() {
    let engine = small(64, EngineOptions::default());
    let endless = Request { max_tokens: None, context: Context::Shift { keep: 4 }, ..ask(30, 1, &[]) };
    let [first, second] = [0, 1].map(|_| engine.submit(endless.clone()).unwrap());
    let others = [0, 1].map(|_| engine.submit(ask(40, 20, &[])).unwrap());
    let (mut ended, mut counts) = (0, [0; 2]);
    for _ in 0..2000 {
        for event in engine.step().unwrap() {
            match event {
                Event::Token { id, .. } if id == first => counts[0] += 1,
                Event::Token { id, .. } if id == second => counts[1] += 1,
                Event::Finished { id, .. } => {
                    assert!(others.contains(&id));
                    ended += 1;
                }
                _ => {}
            }
        }
    }
    assert!(ended == 2 && counts[0] > 500 && counts[1] > 500, "{ended} {counts:?}");
    [first, second].into_iter().for_each(|id| engine.cancel(id).unwrap());
    Answers::default().drain(&engine);
    assert_eq!(engine.memory().kv_used, 0);
}
