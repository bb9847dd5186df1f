//! Limits of memory: never exceeded, and no answer depends on them.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use graftwork::{Engine, EngineOptions, Error, Event, Request, Source};
use graftwork_tests::reference::golden;

use crate::{Answers, answer, ask, engine, load};

const KINDS: [&str; 14] = [
    "lora",
    "lora_all",
    "lora_bias",
    "lora_rslora",
    "dora",
    "vera",
    "loha",
    "lokr",
    "ia3",
    "oft",
    "shira",
    "prompt_tuning",
    "prefix_tuning",
    "bottleneck",
];

fn limited(adapter_bytes: usize) -> Engine {
    engine(EngineOptions { adapter_bytes, ..EngineOptions::default() })
}

/// What each of the adapters takes.
fn sizes(engine: &Engine) -> HashMap<String, usize> {
    engine.adapters().into_iter().map(|info| (info.name, info.bytes)).collect()
}

fn random(state: &mut u64, bound: usize) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 33) as usize % bound
}

/// A copy of an adapter's directory that a test may change.
fn copy(name: &str, to: &Path) -> PathBuf {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(golden(&format!("adapters/{name}"))).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    to.to_owned()
}

fn temporary(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("graftwork-budgets-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    folder
}

/// All kinds, stacked and mixed at random, in a third of the memory that they take: every answer is as without a limit.
#[test]
fn answers_do_not_depend_on_the_limit() {
    let free = limited(usize::MAX);
    KINDS.iter().for_each(|name| load(&free, name));
    let all: usize = sizes(&free).values().sum();
    let limit = all / 3;
    let engine = limited(limit);
    KINDS.iter().for_each(|name| load(&engine, name));
    assert!(engine.adapters().iter().any(|info| !info.resident), "nothing had to leave");
    assert_eq!(engine.memory().adapters_limit, limit);

    let mut state = 0x5eed;
    for round in 0..6 {
        let requests: Vec<Request> = (0..40)
            .map(|i| {
                let pick = |state: &mut u64| (KINDS[random(state, KINDS.len())], 1.0);
                let mut stack = vec![pick(&mut state)];
                let other = pick(&mut state);
                if i % 3 == 0 && other != stack[0] {
                    stack.push(other);
                }
                ask(5 + random(&mut state, 40), 1 + random(&mut state, 6), &stack)
            })
            .collect();
        let mut asked = Vec::new();
        for request in &requests {
            match engine.submit(request.clone()) {
                Ok(id) => asked.push((id, request)),
                // Two that together take more than a third.
                Err(Error::Limit { option: "adapter_bytes", needed, .. }) => assert!(needed > limit),
                Err(error) => panic!("{error}"),
            }
        }
        assert!(asked.len() > 25, "{}", asked.len());
        let mut answers = Answers::default();
        while !engine.is_idle() {
            answers.step(&engine);
            assert!(engine.memory().adapters <= limit);
        }
        for (id, request) in asked {
            assert_eq!(
                answers.tokens(id),
                answer(&free, request.clone()),
                "round {round}: {:?}",
                request.adapters
            );
        }
    }
    let loads: u64 = engine.adapters().iter().map(|info| info.loads).sum();
    assert!(loads > 60, "{loads}");
    assert!(free.adapters().iter().all(|info| info.loads == 1 && info.resident));
}

/// Names are given to other adapters and freed while requests wait for what they meant.
#[test]
fn waiting_requests_keep_their_generations() {
    let free = limited(usize::MAX);
    ["lora", "lora_all", "lora_rslora"].iter().for_each(|name| load(&free, name));
    let limit = sizes(&free).values().max().unwrap() + 1000;
    let engine = engine(EngineOptions { adapter_bytes: limit, max_batch: 2, ..EngineOptions::default() });
    load(&engine, "lora");
    let mut asked = Vec::new();
    for (i, name) in ["lora", "lora_all", "lora_rslora", "lora", "lora_all"].iter().enumerate() {
        if i > 0 {
            match engine.replace_adapter("lora", golden(&format!("adapters/{name}")), None) {
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
        for _ in 0..3 {
            asked.push((engine.submit(ask(12, 5, &[("lora", 1.0)])).unwrap(), *name));
        }
    }
    engine.unload_adapter("lora").unwrap();
    let mut answers = Answers::default();
    while !engine.is_idle() {
        answers.step(&engine);
        assert!(engine.memory().adapters <= limit);
    }
    for (id, name) in asked {
        assert_eq!(answers.tokens(id), answer(&free, ask(12, 5, &[(name, 1.0)])), "{name}");
    }
    assert_eq!(engine.memory().adapters, 0);
}

#[test]
fn pinned_adapters_stay() {
    let free = limited(usize::MAX);
    ["lora", "lora_all", "lora_rslora"].iter().for_each(|name| load(&free, name));
    let sizes = sizes(&free);
    let engine = limited(sizes["lora"] + sizes["lora_all"].max(sizes["lora_rslora"]));
    load(&engine, "lora");
    engine.pin_adapter("lora", true).unwrap();
    for _ in 0..3 {
        for name in ["lora_all", "lora_rslora"] {
            if engine.adapter(name).is_err() {
                load(&engine, name);
            }
            assert_eq!(answer(&engine, ask(9, 3, &[(name, 1.0)])), answer(&free, ask(9, 3, &[(name, 1.0)])));
            let lora = engine.adapter("lora").unwrap();
            assert!(lora.resident && lora.pinned && lora.loads == 1, "{lora:?}");
        }
    }
    // Two may be pinned together, three may not.
    engine.pin_adapter("lora_all", true).unwrap();
    match engine.pin_adapter("lora_rslora", true) {
        Err(Error::Limit { option: "adapter_bytes", needed, limit }) => assert!(needed > limit),
        other => panic!("{other:?}"),
    }
    let refused = engine.submit(ask(9, 3, &[("lora_rslora", 1.0)]));
    assert!(matches!(refused, Err(Error::Limit { .. })), "{refused:?}");
    engine.pin_adapter("lora_all", false).unwrap();
    answer(&engine, ask(9, 3, &[("lora_rslora", 1.0)]));
    // The pin goes with the generation.
    engine.replace_adapter("lora", golden("adapters/lora_all"), None).unwrap();
    assert!(!engine.adapter("lora").unwrap().pinned);
    assert!(matches!(engine.pin_adapter("none", true), Err(Error::NoAdapter { .. })));

    // Pinned after a request was accepted that will never fit beside it: the request fails, and others go on.
    let engine = limited(sizes["lora"].max(sizes["lora_all"]) + 10);
    load(&engine, "lora");
    load(&engine, "lora_all");
    let lost = engine.submit(ask(9, 3, &[("lora", 1.0)])).unwrap();
    let plain = engine.submit(ask(9, 3, &[])).unwrap();
    engine.pin_adapter("lora_all", true).unwrap();
    let (mut failed, mut done) = (false, false);
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            match event {
                Event::Failed { id, error } => {
                    assert_eq!((id, error.detail()), (lost, "adapter_bytes"));
                    failed = true;
                }
                Event::Finished { id, .. } => done = id == plain,
                Event::Token { .. } => {}
            }
        }
    }
    assert!(failed && done);
}

#[test]
fn sources_must_hold_what_they_held() {
    let folder = temporary("changed");
    let path = copy("lora", &folder.join("a"));
    let free = limited(usize::MAX);
    ["lora", "lora_all"].iter().for_each(|name| load(&free, name));
    let sizes = sizes(&free);
    let limit = sizes.values().max().unwrap() + 10;
    let engine = limited(limit);
    engine.load_adapter("a", path.as_path()).unwrap();
    let expected = answer(&free, ask(9, 4, &[("lora", 1.0)]));
    assert_eq!(answer(&engine, ask(9, 4, &[("a", 1.0)])), expected);
    let push_out = || {
        if engine.adapter("lora_all").is_err() {
            load(&engine, "lora_all");
        }
        answer(&engine, ask(9, 1, &[("lora_all", 1.0)]));
        assert!(!engine.adapter("a").unwrap().resident);
    };
    push_out();
    assert_eq!(answer(&engine, ask(9, 4, &[("a", 1.0)])), expected);
    push_out();
    // Other weights of the same shapes.
    copy("lora_rslora", &path);
    let changed = |error: &Error| matches!(error, Error::SourceChanged { name, .. } if name == "a");
    let refused = engine.submit(ask(9, 4, &[("a", 1.0)])).unwrap_err();
    assert!(changed(&refused), "{refused}");
    assert!(engine.memory().adapters <= limit);
    // Behind one that runs, the request finds no room when it comes, and fails when its turn comes.
    copy("lora", &path);
    let first = engine.submit(ask(9, 6, &[("lora_all", 1.0)])).unwrap();
    engine.step().unwrap();
    let second = engine.submit(ask(9, 6, &[("a", 1.0)])).unwrap();
    fs::remove_dir_all(&path).unwrap();
    let (mut tokens, mut failed) = (0, None);
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            match event {
                Event::Token { id, .. } => {
                    assert_eq!(id, first);
                    tokens += 1;
                }
                Event::Failed { id, error } => failed = Some((id, error.kind())),
                Event::Finished { .. } => {}
            }
        }
    }
    assert_eq!((tokens, failed), (5, Some((second, graftwork::ErrorKind::NotFound))));
    // What is in memory needs no source.
    let bytes: Vec<(String, graftwork::Bytes)> = ["adapter_config.json", "adapter_model.safetensors"]
        .map(|file| (file.to_owned(), fs::read(golden("adapters/lora").join(file)).unwrap().into()))
        .into();
    engine.replace_adapter("a", Source::files(bytes).unwrap(), None).unwrap();
    push_out();
    assert_eq!(answer(&engine, ask(9, 4, &[("a", 1.0)])), expected);
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_could_never_fit_is_refused() {
    let free = limited(usize::MAX);
    ["lora", "lora_all"].iter().for_each(|name| load(&free, name));
    let sizes = sizes(&free);
    let engine = limited(sizes["lora_all"]);
    let refused = |error: Error, least: usize| match error {
        Error::Limit { option: "adapter_bytes", needed, limit } => assert!(needed > limit && needed <= least),
        other => panic!("{other}"),
    };
    load(&engine, "lora");
    load(&engine, "lora_all");
    assert!(engine.memory().adapters <= sizes["lora_all"]);
    let both = ask(9, 4, &[("lora", 1.0), ("lora_all", 1.0)]);
    refused(engine.submit(both).unwrap_err(), sizes["lora"] + sizes["lora_all"]);
    let both: Vec<_> =
        [("lora", 1.0), ("lora_all", 1.0)].map(|(name, weight)| (name.to_owned(), weight)).into();
    refused(engine.logits(&[1, 2, 3], &both).unwrap_err(), sizes["lora"] + sizes["lora_all"]);
    assert_eq!(engine.logits(&[1, 2, 3], &both[..1]).unwrap(), free.logits(&[1, 2, 3], &both[..1]).unwrap());
    assert_eq!(engine.logits(&[1, 2, 3], &both[1..]).unwrap(), free.logits(&[1, 2, 3], &both[1..]).unwrap());

    // Half of one: nothing of it stays, and while one runs there is no room for another that would fit alone.
    let half = limited(sizes["lora_all"] / 2);
    let error = half.load_adapter("lora_all", golden("adapters/lora_all")).unwrap_err();
    refused(error, sizes["lora_all"]);
    assert_eq!((half.memory().adapters, half.adapters().len()), (0, 0));
    let id = engine.submit(ask(9, 4, &[("lora_all", 1.0)])).unwrap();
    engine.step().unwrap();
    let busy = engine.load_adapter("more", golden("adapters/lora")).unwrap_err();
    assert!(matches!(&busy, Error::Busy { name, .. } if name == "more"), "{busy}");
    assert_eq!(Answers::default().drain(&engine).tokens(id).len(), 3);
    engine.load_adapter("more", golden("adapters/lora")).unwrap();
}

#[test]
fn weights_and_scratch_have_limits() {
    let options = EngineOptions { threads: 2, prefill_chunk: 48, max_batch: 3, ..EngineOptions::default() };
    let open = |options: &EngineOptions| Engine::open(golden("adapters/base"), options.clone());
    let plan = Engine::plan(golden("adapters/base"), options.clone()).unwrap();
    let refused = |result: Result<Engine, Error>, of: &str| match result {
        Err(Error::Limit { option, needed, limit }) => {
            assert_eq!((option, needed), (of, limit + 1));
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("opened"),
    };
    let weight_bytes = plan.weights + plan.embedding;
    refused(open(&EngineOptions { weight_bytes: weight_bytes - 1, ..options.clone() }), "weight_bytes");
    refused(open(&EngineOptions { scratch_bytes: plan.scratch - 1, ..options.clone() }), "scratch_bytes");
    // Without room for what adapters need, then with room for some.
    for (more, fitting) in [(0, &[][..]), (60 << 10, &["ia3", "lora"][..]), (1 << 20, &KINDS[..])] {
        let scratch_bytes = plan.scratch + more;
        let engine = open(&EngineOptions { weight_bytes, scratch_bytes, ..options.clone() }).unwrap();
        KINDS.iter().for_each(|name| load(&engine, name));
        let mut served = Vec::new();
        for name in KINDS {
            let mut submit = || -> Result<(), Error> {
                for _ in 0..3 {
                    engine.submit(ask(120, 4, &[(name, 1.0)]))?;
                }
                served.push(name);
                Ok(())
            };
            match submit() {
                Ok(()) => {}
                Err(Error::Limit { option: "scratch_bytes", needed, limit }) => assert!(needed > limit),
                Err(error) => panic!("{error}"),
            }
            Answers::default().drain(&engine);
            assert!(engine.memory().scratch <= scratch_bytes, "{name}: {}", engine.memory().scratch);
        }
        fitting.iter().for_each(|name| assert!(served.contains(name), "{name} within {more}: {served:?}"));
        assert!(more > 0 || !served.contains(&"lora"), "{served:?}");
    }
}

/// Steps of a row or two store given positions in parts.
#[test]
fn given_positions_take_no_more_scratch_than_they_may() {
    let options = EngineOptions { threads: 1, prefill_chunk: 1, max_batch: 1, ..EngineOptions::default() };
    let plan = Engine::plan(golden("adapters/base"), options.clone()).unwrap();
    let expected = answer(&limited(usize::MAX), ask(9, 4, &[]));
    for more in (0..200 << 10).step_by(10 << 10) {
        let scratch_bytes = plan.scratch + more;
        let engine =
            Engine::open(golden("adapters/base"), EngineOptions { scratch_bytes, ..options.clone() })
                .unwrap();
        load(&engine, "prefix_tuning");
        match engine.submit(ask(9, 4, &[("prefix_tuning", 1.0)])) {
            Err(Error::Limit { option: "scratch_bytes", .. }) => assert!(more < 100 << 10),
            Err(error) => panic!("{error}"),
            Ok(_) => drop(Answers::default().drain(&engine)),
        }
        assert!(engine.memory().scratch <= scratch_bytes, "{more}");
        assert_eq!(answer(&engine, ask(9, 4, &[])), expected);
    }
    let huge = EngineOptions { prefill_chunk: usize::MAX, ..options };
    assert_eq!(Engine::plan(golden("adapters/base"), huge).unwrap().scratch, usize::MAX);
}

/// Nothing leaves memory for what does not come in.
#[test]
fn room_is_not_made_in_vain() {
    let free = limited(usize::MAX);
    ["lora", "lora_all", "ia3"].iter().for_each(|name| load(&free, name));
    let sizes = sizes(&free);
    // While the large one runs there is room for the smallest, not for another.
    let engine = limited(sizes["lora_all"] + sizes["ia3"] + 10);
    ["lora", "lora_all", "ia3"].iter().for_each(|name| load(&engine, name));
    let running = engine.submit(ask(9, 8, &[("lora_all", 1.0)])).unwrap();
    engine.step().unwrap();
    engine.pin_adapter("ia3", true).unwrap();
    engine.pin_adapter("ia3", false).unwrap();
    let waiting = engine.submit(ask(9, 8, &[("lora", 1.0)])).unwrap();
    for _ in 0..3 {
        engine.step().unwrap();
        assert!(matches!(engine.pin_adapter("lora", true), Err(Error::Busy { .. })));
        let ia3 = engine.adapter("ia3").unwrap();
        assert!(ia3.resident && ia3.loads <= 2, "{ia3:?}");
    }
    let answers = Answers::default().drain(&engine);
    assert_eq!(answers.tokens(waiting), answer(&free, ask(9, 8, &[("lora", 1.0)])));
    assert!(!answers.tokens(running).is_empty());
}

/// Pinned is in memory, whoever was about to let it leave.
#[test]
fn pins_win_races() {
    let free = limited(usize::MAX);
    let names = ["lora", "lora_rslora", "lora_bias"];
    names.iter().for_each(|name| load(&free, name));
    let limit = sizes(&free).values().max().unwrap() * 2 + 100;
    let engine = limited(limit);
    names.iter().for_each(|name| load(&engine, name));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (engine, over) = (&engine, &over);
        for name in &names[1..] {
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    match engine.pin_adapter(name, true) {
                        Ok(()) => engine.pin_adapter(name, false).unwrap(),
                        Err(Error::Busy { .. } | Error::Limit { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        for _ in 0..300 {
            if engine.pin_adapter("lora", true).is_ok() {
                let loads = engine.adapter("lora").unwrap().loads;
                std::thread::yield_now();
                engine.pin_adapter("lora", true).unwrap();
                let lora = engine.adapter("lora").unwrap();
                assert!(lora.pinned && lora.loads == loads, "{lora:?}");
                engine.pin_adapter("lora", false).unwrap();
            }
            std::thread::yield_now();
        }
        over.store(true, Ordering::Relaxed);
    });
}

/// Threads that submit, load, replace, pin and unload while one steps.
#[test]
fn threads_share_the_limit() {
    let free = limited(usize::MAX);
    KINDS.iter().for_each(|name| load(&free, name));
    let limit = sizes(&free).values().sum::<usize>() / 3;
    let engine = Arc::new(limited(limit));
    KINDS.iter().for_each(|name| load(&engine, name));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let over = &over;
        let (engine, free) = (&engine, &free);
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                assert!(engine.memory().adapters <= limit);
                std::thread::yield_now();
            }
        });
        scope.spawn(move || {
            let mut state = 77;
            while !over.load(Ordering::Relaxed) {
                let name = KINDS[random(&mut state, KINDS.len())];
                match engine.replace_adapter(name, golden(&format!("adapters/{name}")), None) {
                    Ok(_) | Err(Error::Busy { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        scope.spawn(move || {
            let mut state = 99;
            while !over.load(Ordering::Relaxed) {
                let name = ["ia3", "prompt_tuning"][random(&mut state, 2)];
                match engine.pin_adapter(name, true) {
                    Ok(()) => engine.pin_adapter(name, false).unwrap(),
                    Err(Error::Busy { .. } | Error::Changed { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let asking: Vec<_> = (1..=3u64)
            .map(|seed| {
                scope.spawn(move || {
                    let mut state = seed * 1234;
                    for _ in 0..60 {
                        let name = KINDS[random(&mut state, KINDS.len())];
                        let request =
                            ask(5 + random(&mut state, 20), 1 + random(&mut state, 4), &[(name, 1.0)]);
                        let mut tokens = Vec::new();
                        for event in engine.generate(request.clone()).unwrap() {
                            match event.unwrap() {
                                Event::Token { token, .. } => tokens.push(token),
                                Event::Failed { error, .. } => panic!("{name}: {error}"),
                                Event::Finished { .. } => {}
                            }
                        }
                        let id = free.submit(request).unwrap();
                        let mut expected = Vec::new();
                        while let Some(event) = free.poll(Some(id), std::time::Duration::MAX).unwrap() {
                            match event {
                                Event::Token { token, .. } => expected.push(token),
                                _ => break,
                            }
                        }
                        assert_eq!(tokens, expected, "{name}");
                    }
                })
            })
            .collect();
        let ends: Vec<_> = asking.into_iter().map(|thread| thread.join()).collect();
        over.store(true, Ordering::Relaxed);
        ends.into_iter().for_each(|end| end.unwrap());
    });
    for name in KINDS {
        engine.unload_adapter(name).unwrap();
    }
    assert_eq!(engine.memory().adapters, 0);
}
