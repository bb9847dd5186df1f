//! Virtual tokens, and keys and values before the prompt: each computed in two ways.

use std::collections::HashMap;

use graftwork::tokenize::Specials;
use graftwork::{
    Bytes, Engine, EngineOptions, Error, Event, Format, Part, Request, RequestId, Source, sample,
};
use graftwork_adapters::file::{Dtype, TensorView, write_safetensors};
use graftwork_adapters::{Adapter, prompt};
use graftwork_kernels::Tensor;
use graftwork_tests::reference::{Closeness, Expected, golden, tensors};
use graftwork_tests::torch::{Pickle, write};

/// Width of the tiny base.
const WIDTH: usize = 128;

/// What a row of a prefix holds: keys and values of three layers with two heads of 16.
const PREFIX: usize = 3 * 2 * 2 * 16;

/// The formats of keys and values.
const FORMATS: [Format; 3] = [Format::F16, Format::F32, Format::Q8_0];

/// Values in (-scale, scale), the same in every run.
fn random(seed: u32, scale: f32, rows: usize, cols: usize) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let values = (0..rows * cols).map(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state as f32 / u32::MAX as f32 - 0.5) * 2.0 * scale
    });
    Tensor::encode(Format::F32, rows, cols, &values.collect::<Vec<_>>()).unwrap()
}

/// Rows of both, one after the other.
fn both(a: &Tensor, b: &Tensor) -> Tensor {
    let bytes = [&a.bytes()[..], &b.bytes()[..]].concat();
    Tensor::new(a.format(), a.rows() + b.rows(), a.cols(), bytes.into()).unwrap()
}

fn safetensors(all: &[(&str, &Tensor)]) -> Vec<u8> {
    let shape = |tensor: &Tensor| [tensor.rows() as u64, tensor.cols() as u64];
    let shapes: Vec<_> = all.iter().map(|(_, tensor)| shape(tensor)).collect();
    let views: Vec<_> = (all.iter().zip(&shapes))
        .map(|(&(name, tensor), shape)| {
            // The norms are the only vectors.
            let shape = if name.ends_with("norm.weight") { &shape[1..] } else { &shape[..] };
            TensorView { name, dtype: Dtype::F32, shape, bytes: tensor.bytes() }
        })
        .collect();
    let mut out = Vec::new();
    write_safetensors(&mut out, &views, &[]).unwrap();
    out
}

fn files(config: String, name: &str, weights: Vec<u8>) -> Source {
    let config_name = if name == "model.safetensors" { "config.json" } else { "adapter_config.json" };
    let files = vec![
        (config_name.to_owned(), Bytes::new(config.into_bytes())),
        (name.to_owned(), Bytes::new(weights)),
    ];
    Source::files(files).unwrap()
}

/// Virtual tokens in a file without a configuration.
fn bare(rows: &Tensor) -> Source {
    let mut out = Vec::new();
    prompt::write(&mut out, rows).unwrap();
    Bytes::new(out).into()
}

fn prefix(rows: &Tensor) -> Source {
    let config = serde_json::json!({"peft_type": "PREFIX_TUNING", "num_layers": 3}).to_string();
    files(config, "adapter_model.safetensors", safetensors(&[("prompt_embeddings", rows)]))
}

/// The tiny base, its tokens from 400 on with these embeddings.
fn with_tokens(rows: &Tensor) -> Source {
    let config = std::fs::read_to_string(golden("adapters/base/config.json")).unwrap();
    let mut all = tensors("adapters/base/model.safetensors");
    let (_, embedding) = all.iter_mut().find(|(name, _)| name == "model.embed_tokens.weight").unwrap();
    let mut bytes = embedding.bytes().to_vec();
    bytes[400 * embedding.row_bytes()..][..rows.bytes().len()].copy_from_slice(rows.bytes());
    *embedding = Tensor::new(Format::F32, embedding.rows(), embedding.cols(), bytes.into()).unwrap();
    let all: Vec<_> = all.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
    files(config, "model.safetensors", safetensors(&all))
}

fn options() -> EngineOptions {
    EngineOptions { threads: 1, ..EngineOptions::default() }
}

fn tokens(seed: u32, length: usize) -> Vec<u32> {
    (0..length as u32).map(|i| (i * 89 + 7 + seed * 31) % 400).collect()
}

fn stack(names: &[&str]) -> Vec<(String, f32)> {
    names.iter().map(|&name| (name.to_owned(), 1.0)).collect()
}

/// Answers of five tokens: these, and the bits of the logits that they were chosen from.
fn ask(engine: &Engine, requests: &[Request]) -> Vec<Vec<(u32, Vec<u32>)>> {
    // Never the tokens whose embeddings `with_tokens` changes.
    let sampling = sample::Options {
        logit_bias: (400..512).map(|token| (token, f32::NEG_INFINITY)).collect(),
        ..Default::default()
    };
    let submit = |request: &Request| {
        let (max_tokens, sampling) = (Some(5), sampling.clone());
        let request = Request { max_tokens, sampling, ignore_eos: true, logits: true, ..request.clone() };
        engine.submit(request).unwrap_or_else(|error| panic!("{error}"))
    };
    let ids: Vec<RequestId> = requests.iter().map(submit).collect();
    let mut answers: HashMap<RequestId, Vec<(u32, Vec<u32>)>> = HashMap::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Token { id, token, logits, .. } = event {
                let bits = logits.unwrap().iter().map(|logit| logit.to_bits()).collect();
                answers.entry(id).or_default().push((token, bits));
            }
        }
    }
    assert_eq!(engine.memory().kv_used, 0);
    ids.iter().map(|id| answers.remove(id).unwrap()).collect()
}

fn with(names: &[&str], prompt: impl Into<graftwork::Prompt>) -> Request {
    Request { adapters: stack(names), ..Request::new(prompt) }
}

fn placed(adapter: &str, first: Option<usize>) -> Part {
    Part::Virtual { adapter: adapter.to_owned(), first }
}

/// Virtual tokens, before the prompt and in it, are what tokens with their embeddings are: to the bit, in every cache format,
/// whatever the chunks, with prefixes kept, beside other adapters.
#[test]
fn virtual_tokens_are_tokens_with_other_embeddings() {
    // More than a page of positions, and less.
    let (long, short) = (random(1, 0.1, 40, WIDTH), random(2, 0.1, 3, WIDTH));
    let (ids, more): (Vec<u32>, Vec<u32>) = ((400..440).collect(), (440..443).collect());
    for kv_format in FORMATS {
        for (threads, prefill_chunk) in [(1, 1), (2, 7), (1, 64), (2, 512)] {
            let options = EngineOptions { threads, prefill_chunk, kv_format, ..EngineOptions::default() };
            let virtual_ = Engine::open(golden("adapters/base"), options.clone()).unwrap();
            let real = Engine::open(with_tokens(&both(&long, &short)), options).unwrap();
            virtual_.load_adapter("long", bare(&long)).unwrap();
            virtual_.load_adapter("short", bare(&short)).unwrap();
            for engine in [&virtual_, &real] {
                for name in ["lora_all", "lora_embed_head", "lora_trainable_tokens"] {
                    engine.load_adapter(name, golden(&format!("adapters/{name}"))).unwrap();
                }
            }
            let part = |tokens: &[u32]| Part::Tokens(tokens.to_vec());
            let (a, b, c) = (tokens(1, 30), tokens(2, 5), tokens(3, 60));
            // What is asked with virtual tokens, and the same without.
            let cases = [
                (with(&["long"], c.clone()), with(&[], [&ids[..], &c].concat())),
                (
                    with(&["short", "lora_all", "long"], b.clone()),
                    with(&["lora_all"], [&more[..], &ids, &b].concat()),
                ),
                (with(&["long", "long"], b.clone()), with(&[], [&ids[..], &ids, &b].concat())),
                (
                    with(&[], vec![part(&a), placed("long", Some(9)), part(&b)]),
                    with(&[], [&a[..], &ids[..9], &b].concat()),
                ),
                (
                    with(&["long"], vec![placed("short", None), part(&a), placed("long", None), part(&c)]),
                    with(&[], [&ids[..], &more, &a, &ids, &c].concat()),
                ),
                (
                    with(&["lora_all"], vec![part(&a), placed("short", None), placed("long", Some(1))]),
                    with(&["lora_all"], [&a[..], &more, &ids[..1]].concat()),
                ),
                (
                    with(&[], vec![part(&a), placed("long", Some(0)), part(&b)]),
                    with(&[], [&a[..], &b].concat()),
                ),
                (with(&["lora_all"], c.clone()), with(&["lora_all"], c.clone())),
                (with(&[], a.clone()), with(&[], a.clone())),
            ];
            let (asked, expected): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
            let expected = ask(&real, &expected);
            for (index, pair) in expected.windows(2).enumerate() {
                assert_ne!(pair[0], pair[1], "answers {index} and the next");
            }
            for round in 0..2 {
                let found = ask(&virtual_, &asked);
                for (case, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    assert!(
                        found == expected,
                        "case {case}, {kv_format}, chunk {prefill_chunk}, round {round}"
                    );
                }
            }
            assert!(virtual_.counters().reused_rows > 0);
            // Scoring leaves out what is not a token of the prompt.
            let found = virtual_.logits_with(&c, &stack(&["short", "long"]), kv_format).unwrap();
            let all = real.logits_with(&[&more[..], &ids, &c].concat(), &[], kv_format).unwrap();
            assert!(found == all[43 * 512..], "{kv_format}, chunk {prefill_chunk}");
            // Adapters of the embedding change tokens alone: of the token 0 too, which stands for virtual ones meanwhile.
            for name in ["lora_embed_head", "lora_trainable_tokens"] {
                let changed = virtual_.logits(&c, &stack(&[name, "long"])).unwrap();
                assert!(changed == virtual_.logits(&c, &stack(&["long", name])).unwrap());
                assert!(changed != virtual_.logits(&c, &stack(&["long"])).unwrap(), "{name}");
            }
        }
    }
}

/// Two prefixes of a stack are one with the positions of both, more than a page together; a prefix comes before virtual tokens
/// in whatever order they are named. In every cache format, to the bit, whatever the chunks.
#[test]
fn prefixes_of_a_stack_are_one() {
    let (first, second) = (random(3, 1.0, 33, PREFIX), random(4, 1.0, 20, PREFIX));
    let rows = random(5, 0.1, 4, WIDTH);
    for kv_format in FORMATS {
        let mut reference = None;
        for prefill_chunk in [1, 7, 512] {
            let engine = Engine::open(
                golden("adapters/base"),
                EngineOptions { prefill_chunk, kv_format, ..options() },
            )
            .unwrap();
            engine.load_adapter("first", prefix(&first)).unwrap();
            engine.load_adapter("second", prefix(&second)).unwrap();
            engine.load_adapter("both", prefix(&both(&first, &second))).unwrap();
            engine.load_adapter("prompt", bare(&rows)).unwrap();
            let prompt = tokens(6, 45);
            let names: [&[&str]; 9] = [
                &["both"],
                &["first", "second"],
                &["second", "first"],
                &["prompt", "first", "second"],
                &["both", "prompt"],
                &["prompt"],
                &["first"],
                &[],
                &["first", "first"],
            ];
            let requests = names.map(|names| with(names, prompt.clone()));
            let found = ask(&engine, &requests);
            assert!(found[0] == found[1] && found[3] == found[4], "{kv_format}, chunk {prefill_chunk}");
            for (one, other) in [(0, 2), (0, 3), (3, 5), (0, 6), (6, 7), (5, 7), (6, 8)] {
                assert!(found[one] != found[other], "{:?} and {:?}", names[one], names[other]);
            }
            // Again, from the pages that were kept.
            let before = engine.counters().reused_rows;
            assert!(ask(&engine, &requests) == found);
            assert!(engine.counters().reused_rows > before);
            assert!(*reference.get_or_insert(found.clone()) == found, "{kv_format}, chunk {prefill_chunk}");
            let both = engine.logits_with(&prompt, &stack(&["both"]), kv_format).unwrap();
            assert!(both == engine.logits_with(&prompt, &stack(&["first", "second"]), kv_format).unwrap());
        }
    }
}

/// Prefixes in caches of fewer bits, against peft's logits in f32: as close as the base comes without one, and half again.
#[test]
fn prefixes_survive_rounding() {
    let engine = Engine::open(golden("adapters/base"), options()).unwrap();
    for name in ["prefix_tuning", "prefix_tuning_projected"] {
        engine.load_adapter(name, golden(&format!("adapters/{name}"))).unwrap();
    }
    for (format, most) in [(Format::F16, 0.006), (Format::F32, 2e-5), (Format::Q8_0, 0.1)] {
        for name in ["prefix_tuning", "prefix_tuning_projected"] {
            let expected = Expected::read(&format!("adapters/{name}/expected.safetensors"), "logits");
            let Closeness { max_difference, .. } =
                expected.compare(|tokens| engine.logits_with(tokens, &stack(&[name]), format).unwrap());
            println!("{name}, {format}: {max_difference}");
            assert!(max_difference <= most, "{name}, {format}: {max_difference}");
        }
    }
}

/// What comes before virtual tokens in a prompt is the base's: pages of it are shared with requests without them, and with
/// others' in their place; pages from there on are each their own.
#[test]
fn pages_before_placed_tokens_are_shared() {
    let engine = Engine::open(golden("adapters/base"), options()).unwrap();
    engine.load_adapter("one", bare(&random(40, 0.1, 40, WIDTH))).unwrap();
    engine.load_adapter("two", bare(&random(41, 0.1, 40, WIDTH))).unwrap();
    engine.load_adapter("lora", golden("adapters/lora")).unwrap();
    let (passages, question) = (tokens(0, 100), tokens(1, 30));
    let part = |tokens: &[u32]| Part::Tokens(tokens.to_vec());
    let with_ref = |name: &str, first| vec![part(&passages), placed(name, first), part(&question)];
    let alone = EngineOptions { keep_prefixes: false, ..options() };
    let alone = Engine::open(golden("adapters/base"), alone).unwrap();
    alone.load_adapter("one", bare(&random(40, 0.1, 40, WIDTH))).unwrap();
    alone.load_adapter("two", bare(&random(41, 0.1, 40, WIDTH))).unwrap();
    alone.load_adapter("lora", golden("adapters/lora")).unwrap();
    // Rows that are spared: pages of 32, of 100 tokens and 174 or 134 positions in all, the answers' among them.
    let cases = [
        (with(&[], [&passages[..], &question].concat()), 0),
        (with(&[], with_ref("one", None)), 96),
        (with(&[], with_ref("one", None)), 160),
        (with(&[], with_ref("two", None)), 96),
        (with(&[], with_ref("one", Some(3))), 96),
        (with(&["lora"], with_ref("one", None)), 0),
        (with(&["lora"], with_ref("two", None)), 96),
        (with(&["one"], passages.clone()), 0),
        (with(&["two"], passages.clone()), 0),
    ];
    for (case, (request, spared)) in cases.into_iter().enumerate() {
        let before = engine.counters().reused_rows;
        let request = [request];
        assert!(ask(&engine, &request) == ask(&alone, &request), "case {case}");
        assert_eq!(engine.counters().reused_rows - before, spared, "case {case}");
    }
}

/// Text around virtual tokens is tokenized as around special ones; BOS comes before the first part, once.
#[test]
fn parts_may_be_text() {
    let file = |name: &str, path: &str| (name.to_owned(), Bytes::new(std::fs::read(golden(path)).unwrap()));
    let all = vec![
        file("config.json", "adapters/base/config.json"),
        file("model.safetensors", "adapters/base/model.safetensors"),
        file("tokenizer.json", "text/spm-first.tokenizer.json"),
    ];
    let engine = Engine::open(Source::files(all).unwrap(), options()).unwrap();
    engine.load_adapter("prompt", golden("adapters/prompt_tuning")).unwrap();
    let tokenizer = engine.text().unwrap().tokenizer();
    // Of tokens that this model has.
    let (one, two) = ("they do", "user is the");
    let ids = tokenizer.encode_parts(&[one, two]).unwrap();
    let prefix = tokenizer.prefix().to_vec();
    assert!(prefix.len() == 1 && ids[1] != tokenizer.encode(two, Specials::Recognise).unwrap());
    let text = |text: &str| Part::Text(text.to_owned());
    let tokens = |parts: &[&[u32]]| Part::Tokens(parts.concat());
    let spring = || placed("prompt", Some(4));
    let cases = [
        (
            vec![text(one), spring(), text(two)],
            vec![tokens(&[&prefix, &ids[0]]), spring(), tokens(&[&ids[1]])],
        ),
        (vec![spring(), text(one)], vec![tokens(&[&prefix]), spring(), tokens(&[&ids[0]])]),
        (
            vec![tokens(&[&prefix, &[9]]), spring(), text(one)],
            vec![tokens(&[&prefix, &[9]]), spring(), tokens(&[&ids[0]])],
        ),
        (vec![tokens(&[&[9]]), spring()], vec![tokens(&[&[9]]), spring()]),
    ];
    let (asked, same): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    let [asked, same] =
        [asked, same].map(|all| all.into_iter().map(|parts| with(&[], parts)).collect::<Vec<_>>());
    let (found, expected) = (ask(&engine, &asked), ask(&engine, &same));
    assert!(found == expected && found[0] != found[1] && found[1] != found[2]);
}

/// What is put before the prompt takes positions: of the context, of the cache, and of the batch's rows as far as computed.
#[test]
fn what_comes_before_the_prompt_takes_room() {
    let page = 2 * 3 * 2 * 16 * 32 * 2;
    let engine =
        Engine::open(golden("adapters/base"), EngineOptions { kv_bytes: 4 * page, ..options() }).unwrap();
    engine.load_adapter("prompt", bare(&random(7, 0.1, 40, WIDTH))).unwrap();
    engine.load_adapter("prefix", prefix(&random(8, 1.0, 40, PREFIX))).unwrap();
    engine.load_adapter("huge", bare(&random(9, 0.1, 600, WIDTH))).unwrap();
    let positions = |name: &str| engine.adapter(name).unwrap().positions;
    assert_eq!([positions("prompt"), positions("prefix"), positions("huge")], [40, 40, 600]);
    let refused = |names: &[&str], length: usize, answer: usize| {
        let request = Request { max_tokens: Some(answer), ..with(names, tokens(0, length)) };
        let refused = engine.submit(request).map(|id| engine.cancel(id).unwrap());
        refused.err().map(|error| error.to_string())
    };
    // 128 positions, of which the last token of an answer needs none.
    for name in ["prompt", "prefix"] {
        assert_eq!(refused(&[name], 80, 9), None);
        let message = "the request needs 5 pages of KV cache, the budget is 4";
        assert_eq!(refused(&[name], 80, 10).as_deref(), Some(message));
        assert!(engine.logits(&tokens(0, 472), &stack(&[name])).is_ok());
        let error = engine.logits(&tokens(0, 473), &stack(&[name])).unwrap_err();
        assert!(matches!(error, Error::TooLong { context: 513, found: 513 }), "{error}");
        let message = "expected a prompt of fewer than 512 tokens, the model's context; found 512";
        assert_eq!(refused(&[name], 472, 1).as_deref(), Some(message));
    }
    let message = "expected a prompt of fewer than 512 tokens, the model's context; found 601";
    assert_eq!(refused(&["huge"], 1, 1).as_deref(), Some(message));
    let first = |first| with(&[], vec![Part::Tokens(tokens(0, 3)), placed("huge", Some(first))]);
    ask(&engine, &[first(100)]);
    let before = engine.counters();
    ask(&engine, &[with(&["prefix"], tokens(0, 30))]);
    let after = engine.counters();
    // Given positions are no rows.
    assert_eq!(after.prompt_rows - before.prompt_rows, 30);
    let many = vec![placed("huge", None); 10_000];
    let error = engine.submit(with(&[], [vec![Part::Tokens(vec![1])], many].concat())).unwrap_err();
    assert!(matches!(error, Error::TooLong { found: 601, .. }), "{error}");
}

#[test]
fn mistakes_with_prompts_are_named() {
    let engine = Engine::open(golden("adapters/base"), options()).unwrap();
    engine.load_adapter("prompt", golden("adapters/prompt_tuning")).unwrap();
    engine.load_adapter("prefix", golden("adapters/prefix_tuning")).unwrap();
    engine.load_adapter("lora", golden("adapters/lora")).unwrap();
    let part = || Part::Tokens(tokens(0, 4));
    let refused = |request| engine.submit(request).unwrap_err().to_string();
    let weighted = |name: &str, weight| Request {
        adapters: vec![(name.to_owned(), weight)],
        ..Request::new(tokens(0, 4))
    };
    for name in ["prompt", "prefix"] {
        let message = "what it puts before the prompt is there or not, so its weight is 0 or 1, found";
        assert_eq!(refused(weighted(name, 0.5)), format!("adapter \"{name}\": {message} 0.5"));
        assert_eq!(refused(weighted(name, -1.0)), format!("adapter \"{name}\": {message} -1"));
        let found = ask(&engine, &[weighted(name, 0.0), weighted(name, 1.0), with(&[], tokens(0, 4))]);
        assert!(found[0] == found[2] && found[1] != found[2], "{name}");
    }
    let table = [
        (vec![part(), placed("nobody", None)], "no adapter named \"nobody\" is loaded"),
        (
            vec![part(), placed("lora", None)],
            "adapter \"lora\": it has no virtual tokens that a prompt could place",
        ),
        (vec![part(), placed("prefix", None)], "adapter \"prefix\": it has no virtual tokens"),
        (
            vec![part(), placed("prompt", Some(7))],
            "expected at most the first 6 of its virtual tokens, found 7",
        ),
        (vec![placed("prompt", None)], "expected a prompt of at least one token, found none"),
        (vec![], "expected a prompt of at least one token, found none"),
        (vec![part(), Part::Tokens(vec![512])], "prompt token 4: expected an id below 512, found 512"),
        // The numbers by which virtual tokens are known inside.
        (vec![part(), Part::Tokens(vec![1 << 31])], "prompt token 4: expected an id below 512"),
        (vec![part(), Part::Tokens(vec![u32::MAX])], "prompt token 4: expected an id below 512"),
        (vec![Part::Text("hello".into())], "the model came without a tokenizer"),
    ];
    for (parts, part) in table {
        let message = refused(with(&["prompt"], parts));
        assert!(message.contains(part), "expected {part:?} in {message:?}");
    }
    let error = engine.logits(&[1 << 31], &stack(&["prompt"])).unwrap_err().to_string();
    assert!(error.contains("expected an id below 512"), "{error}");
    let error = engine.prompt_tokens(vec![part(), placed("prompt", None)].into()).unwrap_err().to_string();
    assert_eq!(error, "the prompt places virtual tokens, which have no token ids");
    assert_eq!(
        engine.prompt_tokens(vec![part(), part()].into()).unwrap(),
        [tokens(0, 4), tokens(0, 4)].concat()
    );
}

/// A request keeps the virtual tokens of its names, whatever becomes of these; and prefixes that are kept belong to a generation.
#[test]
fn replaced_prompts_are_never_mixed_up() {
    let engine =
        Engine::open(golden("adapters/base"), EngineOptions { prefill_chunk: 8, ..options() }).unwrap();
    let (one, two) = (random(11, 0.1, 40, WIDTH), random(12, 0.1, 40, WIDTH));
    engine.load_adapter("one", bare(&one)).unwrap();
    engine.load_adapter("two", bare(&two)).unwrap();
    let parts = |name: &str| vec![Part::Tokens(tokens(0, 5)), placed(name, None), Part::Tokens(tokens(1, 5))];
    let alone = ask(&engine, &[with(&[], parts("one")), with(&[], parts("two"))]);
    assert!(alone[0] != alone[1]);
    engine.load_adapter("name", bare(&one)).unwrap();
    let mut events =
        engine.generate(Request { logits: true, ..with(&[], parts("name")) }.max_tokens(1)).unwrap();
    engine.step().unwrap();
    engine.replace_adapter("name", bare(&two), None).unwrap();
    // The name's former tokens go on to be read.
    assert!(engine.counters().tokens == 10);
    let Some(Ok(Event::Token { logits: Some(logits), .. })) = events.next() else { panic!("a token") };
    assert!(logits.iter().map(|logit| logit.to_bits()).eq(alone[0][0].1.iter().copied()));
    drop(events);
    assert!(ask(&engine, &[with(&[], parts("name"))])[0] == alone[1]);
}

/// ProMoT's pair: a change of the model that was trained with a prompt attached, and that prompt. Each is there or not by
/// itself, request by request, in one batch.
#[test]
fn a_model_delta_and_its_prompt_are_toggled_apart() {
    let engine = Engine::open(golden("adapters/base"), options()).unwrap();
    engine.load_adapter("delta", golden("adapters/lora_all")).unwrap();
    engine.load_adapter("prompt", golden("adapters/prompt_tuning")).unwrap();
    let ask_at = |delta, prompt| Request {
        adapters: vec![("delta".to_owned(), delta), ("prompt".to_owned(), prompt)],
        ..Request::new(tokens(2, 20))
    };
    let toggled = [ask_at(0.0, 0.0), ask_at(1.0, 0.0), ask_at(0.0, 1.0), ask_at(1.0, 1.0)];
    let apart = [with(&[], tokens(2, 20)), with(&["delta"], tokens(2, 20)), with(&["prompt"], tokens(2, 20))];
    let (found, expected) = (ask(&engine, &toggled), ask(&engine, &apart));
    assert!(found[..3] == expected);
    for (index, one) in found.iter().enumerate() {
        assert!(found[..index].iter().all(|other| other != one), "{index}");
    }
    // Both: as where the prompt's rows are tokens, under the delta.
    let rows = prompt::embeddings(&Adapter::open(golden("adapters/prompt_tuning")).unwrap()).unwrap().clone();
    let real = Engine::open(with_tokens(&rows), options()).unwrap();
    real.load_adapter("delta", golden("adapters/lora_all")).unwrap();
    let ids: Vec<u32> = (400..406).chain(tokens(2, 20)).collect();
    assert!(ask(&real, &[with(&["delta"], ids)])[0] == found[3]);
}

/// `P = origin + c sum (P_t - P_init)`, against f64; from a file without a configuration it does what its rows do.
#[test]
fn task_prompts_add_up() {
    let open = |rows: &Tensor| {
        let mut out = Vec::new();
        prompt::write(&mut out, rows).unwrap();
        Adapter::open(Bytes::new(out)).unwrap()
    };
    let all = [
        random(20, 0.1, 6, WIDTH),
        random(21, 0.1, 6, WIDTH),
        random(22, 0.1, 6, WIDTH),
        random(23, 0.1, 6, WIDTH),
    ];
    let [origin, initial, one, two] = all.each_ref().map(open);
    let moved = prompt::task_prompts(&origin, &initial, &[&one, &two], -0.7).unwrap();
    let rows = prompt::embeddings(&moved).unwrap();
    let [o, i, a, b] = all.each_ref().map(|tensor| tensor.decode().unwrap());
    for (index, found) in rows.decode().unwrap().into_iter().enumerate() {
        let [o, i, a, b] = [o[index], i[index], a[index], b[index]].map(f64::from);
        let expected = o - f64::from(0.7f32) * ((a - i) + (b - i));
        // Six operations on values below 0.5.
        assert!(
            (f64::from(found) - expected).abs() <= 3.0 * f64::from(f32::EPSILON),
            "{found}, not {expected}"
        );
    }
    // The task's own prompt, where it started.
    let same = prompt::task_prompts(&initial, &initial, &[&one], 1.0).unwrap();
    let same = prompt::embeddings(&same).unwrap().decode().unwrap();
    assert!(same.iter().zip(&a).all(|(x, y)| (x - y).abs() <= f32::EPSILON));
    let engine = Engine::open(golden("adapters/base"), options()).unwrap();
    engine.load_adapter("moved", bare(rows)).unwrap();
    engine.load_adapter("origin", bare(&all[0])).unwrap();
    let found = engine.logits(&tokens(0, 9), &stack(&["moved"])).unwrap();
    assert!(found != engine.logits(&tokens(0, 9), &stack(&["origin"])).unwrap());

    let other = open(&random(24, 0.1, 5, WIDTH));
    let lora = Adapter::open(golden("adapters/lora")).unwrap();
    let refused = |tasks: &[&Adapter], initial| {
        prompt::task_prompts(&origin, initial, tasks, 1.0).unwrap_err().to_string()
    };
    let expected = "adapter tensor prompt_embeddings of the task 1: expected shape [6, 128], found [5, 128]";
    assert_eq!(refused(&[&one, &other], &initial), expected);
    assert!(refused(&[&one], &other).contains("of the initial prompt: expected shape [6, 128]"));
    let message = refused(&[&lora], &initial);
    assert_eq!(message, "a prompt as the task 0 is not supported: the adapter has no virtual tokens");
}

/// Files without a configuration: one matrix of a known name, whole and finite; anything else asks for its configuration.
#[test]
fn bare_files_hold_virtual_tokens_and_nothing_else() {
    let engine = Engine::open(golden("adapters/base"), options()).unwrap();
    let rows = random(30, 0.1, 8, WIDTH);
    let file = |all: &[(&str, &Tensor)]| Bytes::new(safetensors(all));
    engine.load_adapter("spring", file(&[("added_token_embeddings", &rows)])).unwrap();
    engine.load_adapter("prompt", file(&[("prompt_embeddings", &rows)])).unwrap();
    let logits = |name: &str| engine.logits(&tokens(0, 9), &stack(&[name])).unwrap();
    assert!(logits("spring") == logits("prompt"));
    let path = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("spring.safetensors");
    std::fs::write(&path, safetensors(&[("added_token_embeddings", &rows)])).unwrap();
    engine.load_adapter("path", path.as_path()).unwrap();
    assert!(logits("spring") == logits("path"));
    // The same from torch: a dictionary, and a tensor by itself.
    let dictionary =
        write([("prompt_embeddings", Dtype::F32, &[8, WIDTH as u64][..], &rows.bytes()[..])].into_iter());
    let size = (8 * WIDTH) as i64;
    let pickle = Pickle::new().tensor(("FloatStorage", "0", size), 0, &[8, WIDTH as i64], &[WIDTH as i64, 1]);
    for (name, file) in [("dictionary", dictionary), ("alone", pickle.file(&[("0", rows.bytes())]))] {
        let path = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.pt"));
        std::fs::write(&path, &file).unwrap();
        engine.load_adapter(name, path.as_path()).unwrap();
        assert!(logits("spring") == logits(name), "{name}");
        engine.load_adapter(&format!("{name} in memory"), Bytes::new(file)).unwrap();
    }
    let code = Pickle::new().raw(b"cos\nsystem\n(X\x04\x00\x00\x00truetR").file(&[]);
    let error = engine.load_adapter("code", Bytes::new(code)).unwrap_err().to_string();
    assert!(error.contains("os.system"), "{error}");

    let mut nan = rows.bytes().to_vec();
    nan[512..516].copy_from_slice(&f32::NAN.to_le_bytes());
    let nan = Tensor::new(Format::F32, 8, WIDTH, nan.into()).unwrap();
    let narrow = random(31, 0.1, 8, 64);
    let table = [
        (
            file(&[("prompt_embeddings", &nan)]),
            "prompt_embeddings: expected finite values, found NaN in row 1, column 0",
        ),
        (file(&[("prompt_embeddings", &narrow)]), "the base expects [8, 128], found [8, 64]"),
        (
            file(&[("prompt_embeddings", &rows), ("added_token_embeddings", &rows)]),
            "expected adapter_config.json",
        ),
        (file(&[("something", &rows)]), "expected adapter_config.json"),
        (file(&[("spring.added_token_embeddings", &rows)]), "expected adapter_config.json"),
        (Bytes::new(vec![7; 100]), "expected adapter_config.json"),
    ];
    for (bytes, part) in table {
        let message = engine.load_adapter("bad", bytes).unwrap_err().to_string();
        assert!(message.contains(part), "expected {part:?} in {message:?}");
    }
}
