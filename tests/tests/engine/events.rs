//! How events reach those who wait for them: by polling, by sinks, across threads; and what an engine says about itself.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::{answer, ask, engine, load, prompt};
use graftwork::{
    Engine, EngineOptions, Error, ErrorKind, Event, FinishReason, Level, Log, Request, RequestId,
};
use graftwork_tests::reference::golden;

const FOREVER: Duration = Duration::MAX;

/// The tokens of one request, polled for alone.
fn polled(engine: &Engine, id: RequestId) -> Vec<u32> {
    let mut tokens = Vec::new();
    loop {
        match engine.poll(Some(id), FOREVER).unwrap().unwrap() {
            Event::Token { id: of, token, .. } => {
                assert_eq!(of, id);
                tokens.push(token);
            }
            Event::Finished { reason, .. } => {
                assert_eq!(reason, FinishReason::Length);
                return tokens;
            }
            Event::Failed { error, .. } => panic!("{error}"),
        }
    }
}

#[test]
fn polling_for_one_leaves_the_events_of_others() {
    let engine = engine(EngineOptions::default());
    load(&engine, "lora");
    let alone = [answer(&engine, ask(20, 9, &[])), answer(&engine, ask(33, 12, &[("lora", 1.0)]))];
    let first = engine.submit(ask(20, 9, &[])).unwrap();
    let second = engine.submit(ask(33, 12, &[("lora", 1.0)])).unwrap();
    assert!(engine.poll(None, Duration::ZERO).unwrap().is_none(), "computed without time for it");
    assert_eq!(polled(&engine, second), alone[1]);
    assert!(matches!(engine.poll(Some(second), FOREVER), Err(Error::NoRequest { .. })));
    // The other's events were made by the same steps and wait; whoever asks for any gets them in order.
    let mut tokens = Vec::new();
    while let Some(event) = engine.poll(None, Duration::ZERO).unwrap() {
        assert_eq!(event.id(), first);
        if let Event::Token { token, .. } = event {
            tokens.push(token);
        }
    }
    assert_eq!(tokens, alone[0]);
    assert!(engine.is_idle() && !engine.is_live());
}

/// Eight threads, each with its own requests, some polling for theirs and some with sinks that others may call.
#[test]
fn threads_get_their_own_events() {
    let engine = engine(EngineOptions { threads: 2, ..EngineOptions::default() });
    load(&engine, "lora");
    let lengths = [3, 17, 31, 32, 33, 64, 65, 90];
    let request = |i: usize| match i % 2 {
        0 => ask(lengths[i], 7 + i, &[]),
        _ => ask(lengths[i], 7 + i, &[("lora", 1.0)]),
    };
    let alone: Vec<_> = (0..lengths.len()).map(|i| answer(&engine, request(i))).collect();
    thread::scope(|scope| {
        for i in 0..lengths.len() {
            let (engine, alone) = (&engine, &alone);
            scope.spawn(move || {
                for round in 0..6 {
                    if (i + round) % 3 > 0 {
                        let id = engine.submit(request(i)).unwrap();
                        assert_eq!(polled(engine, id), alone[i]);
                        continue;
                    }
                    let heard = Arc::new(Mutex::new((Vec::new(), false)));
                    let hears = heard.clone();
                    let sink = move |event| {
                        let (tokens, ended) = &mut *hears.lock().unwrap();
                        assert!(!*ended, "an event after the last");
                        match event {
                            Event::Token { token, .. } => tokens.push(token),
                            _ => *ended = true,
                        }
                        ControlFlow::Continue(())
                    };
                    engine.submit_to(sink, request(i)).unwrap();
                    while !heard.lock().unwrap().1 {
                        engine.step_only().unwrap();
                    }
                    assert_eq!(heard.lock().unwrap().0, alone[i]);
                }
            });
        }
    });
    assert!(engine.is_idle());
}

/// A poller that sleeps hears of what another thread submits.
#[test]
fn an_idle_poll_waits_for_work() {
    let engine = engine(EngineOptions::default());
    let start = Instant::now();
    assert!(engine.poll(None, Duration::from_millis(30)).unwrap().is_none());
    assert!(start.elapsed() >= Duration::from_millis(30));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| engine.poll(None, FOREVER).unwrap());
        thread::sleep(Duration::from_millis(20));
        let id = engine.submit(ask(5, 2, &[])).unwrap();
        assert_eq!(waiting.join().unwrap().unwrap().id(), id);
    });
}

#[test]
fn a_sink_can_cancel_submit_and_step() {
    let engine = Arc::new(engine(EngineOptions::default()));
    let expected = answer(&engine, ask(20, 9, &[]));
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (inner, hears) = (engine.clone(), heard.clone());
    let sink = move |event: Event| {
        hears.lock().unwrap().push(event.clone());
        if let Event::Finished { .. } = event {
            // From inside: another request, stepped to its end.
            let id = inner.submit(ask(20, 9, &[])).unwrap();
            assert_eq!(polled(&inner, id), expected);
        }
        if hears.lock().unwrap().len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let id = engine.submit_to(sink, ask(20, 200, &[])).unwrap();
    assert!(matches!(engine.poll(Some(id), Duration::ZERO), Err(Error::NoRequest { .. })));
    while engine.is_live() {
        engine.step_only().unwrap();
    }
    let events = heard.lock().unwrap();
    assert!(events[..3].iter().all(|event| matches!(event, Event::Token { .. })));
    let last = &events[3..];
    assert!(matches!(last, [Event::Finished { reason: FinishReason::Cancelled, .. }]), "{last:?}");
    assert_eq!(Arc::strong_count(&engine), 1, "the sink is still there");
}

#[test]
fn a_plan_says_what_opening_takes() {
    for (threads, batch, chunk) in [(1, 2, 16), (2, 8, 100)] {
        let options =
            EngineOptions { threads, max_batch: batch, prefill_chunk: chunk, ..EngineOptions::default() };
        let plan = Engine::plan(golden("adapters/base"), options.clone()).unwrap();
        let engine = Engine::open(golden("adapters/base"), options).unwrap();
        let opened = engine.memory();
        assert_eq!(
            (plan.weights, plan.embedding, plan.kv_limit),
            (opened.weights, opened.embedding, opened.kv_limit)
        );
        assert_eq!((plan.adapters, plan.kv, plan.kv_used, opened.scratch), (0, 0, 0, 0));
        // As large a step as can be: prompts in full chunks beside answers of all others.
        let ids: Vec<_> =
            (0..batch + 2).map(|i| engine.submit(ask(2 * chunk + i, 6, &[])).unwrap()).collect();
        for id in ids {
            polled(&engine, id);
        }
        engine.logits(&prompt(chunk + 5), &[]).unwrap();
        let used = engine.memory();
        assert!(used.scratch <= plan.scratch, "planned {plan:?}, found {used:?}");
        assert!(used.scratch * 10 >= plan.scratch * 8, "planned far too much: {plan:?}, found {used:?}");
        assert!(used.kv > 0 && used.kv <= used.kv_limit && used.kv_used == 0);
    }
    let missing = Engine::plan("no/such/model", EngineOptions::default()).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

/// Adapters count as long as anybody uses them.
#[test]
fn memory_of_adapters_goes_with_their_last_request() {
    let engine = engine(EngineOptions::default());
    load(&engine, "lora");
    let bytes = engine.adapter("lora").unwrap().bytes;
    assert_eq!(engine.memory().adapters, bytes);
    let id = engine.submit(ask(20, 3, &[("lora", 1.0)])).unwrap();
    assert_eq!(engine.adapter("lora").unwrap().requests, 1);
    engine.unload_adapter("lora").unwrap();
    assert_eq!(engine.adapter("lora").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(engine.memory().adapters, bytes);
    polled(&engine, id);
    let kept = EngineOptions::default().keep_prefixes;
    assert!(kept, "prefixes of an adapter that is gone must not keep it");
    assert_eq!(engine.memory().adapters, 0);
}

#[test]
fn the_log_hears_what_matters_and_the_caller_can_end_loading() {
    let said = Arc::new(Mutex::new(Vec::new()));
    let hears = said.clone();
    let log =
        Log::new(Level::Info, move |level, message| hears.lock().unwrap().push((level, message.to_owned())));
    let engine = engine(EngineOptions { log: Some(log), ..EngineOptions::default() });
    load(&engine, "lora");
    answer(&engine, ask(5, 2, &[]));
    engine.unload_adapter("lora").unwrap();
    let said = said.lock().unwrap();
    let texts: Vec<_> = said.iter().map(|(_, text)| text.split([':', '#']).next().unwrap()).collect();
    assert_eq!(texts, ["opened llama", "adapter lora", "adapter lora"]);

    let ended = Engine::open_with(golden("adapters/base"), EngineOptions::default(), &|done, _| done < 2);
    assert_eq!(ended.err().unwrap().kind(), ErrorKind::Cancelled);
    let empty = engine.submit(Request::new(Vec::<u32>::new())).unwrap_err();
    assert_eq!((empty.kind(), empty.detail()), (ErrorKind::InvalidArgument, "prompt"));
}
