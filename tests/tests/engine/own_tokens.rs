//! Adapters that have tokens of their own, after the base's 512: read, written, chosen and told apart.

use std::path::Path;

use graftwork::sample::Options;
use graftwork::{Bytes, Engine, EngineOptions, Event, Prompt, Request, Source};
use graftwork_adapters::file::{Safetensors, TensorView, write_safetensors};
use graftwork_tests::reference::golden;
use serde_json::{Value, json};

use crate::{ask, load};

/// A tokenizer of one character for each of the base's tokens, and more.
fn tokenizer(more: &[&str]) -> Value {
    after(512, more)
}

/// A tokenizer of so many characters, and more.
fn after(characters: u32, more: &[&str]) -> Value {
    let character = |id: u32| char::from_u32(0x61 + id).unwrap().to_string();
    let vocabulary: serde_json::Map<_, _> = (0..characters).map(|id| (character(id), id.into())).collect();
    let added = more.iter().zip(characters..).map(|(content, id)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": false})
    });
    json!({"added_tokens": added.collect::<Vec<_>>(), "decoder": {"type": "Fuse"},
           "model": {"type": "BPE", "vocab": vocabulary, "merges": []}})
}

/// A directory in memory: some of its files, and a tokenizer.
fn directory(folder: &Path, names: [&str; 2], tokenizer: &Value) -> Source {
    let files = names.map(|name| (name.to_owned(), Bytes::new(std::fs::read(folder.join(name)).unwrap())));
    let tokenizer = ("tokenizer.json".to_owned(), Bytes::new(tokenizer.to_string().into_bytes()));
    Source::files(files.into_iter().chain([tokenizer]).collect()).unwrap()
}

fn base() -> Engine {
    base_with(&tokenizer(&[]))
}

fn base_with(tokenizer: &Value) -> Engine {
    let source = directory(&golden("adapters/base"), ["config.json", "model.safetensors"], tokenizer);
    Engine::open(source, EngineOptions { threads: 1, ..EngineOptions::default() }).unwrap()
}

fn resized(tokenizer: &Value) -> Source {
    directory(&golden("adapters/resized"), ["adapter_config.json", "adapter_model.safetensors"], tokenizer)
}

const TOKENS: [&str; 3] = ["<tool>", "<call>", "<end>"];

/// Tokens, text and numbers of logits of an answer.
fn answer(engine: &Engine, request: Request) -> (Vec<u32>, String, Vec<usize>) {
    let (mut tokens, mut text, mut widths) = (Vec::new(), String::new(), Vec::new());
    for event in engine.generate(Request { logits: true, ..request }).unwrap() {
        let event = event.unwrap();
        text.push_str(event.text());
        if let Event::Token { token, logits, .. } = event {
            tokens.push(token);
            widths.push(logits.unwrap().len());
        }
    }
    (tokens, text, widths)
}

#[test]
fn tokens_of_an_adapter_are_read_written_and_chosen() {
    let engine = base();
    engine.load_adapter("own", resized(&tokenizer(&TOKENS))).unwrap();
    let request = |prompt: Prompt, adapters: &[(&str, f32)]| Request { prompt, ..ask(1, 4, adapters) };
    let own = [("own", 1.0)];
    let from_text = answer(&engine, request("ab<call>".into(), &own));
    let from_tokens = answer(&engine, request(vec![0, 1, 513].into(), &own));
    assert_eq!(from_text, from_tokens);
    assert_eq!(from_text.2, [517; 4]);
    // To the base these are eight characters, of which it has six.
    let base_text = answer(&engine, request("ab<call>".into(), &[]));
    assert_eq!(base_text, answer(&engine, request(vec![0, 1, 2, 0, 11, 11].into(), &[])));
    assert_eq!(base_text.2, [512; 4]);
    // Chosen and decoded, and read as the token before the next.
    let sampling = Options { logit_bias: vec![(514, 1e9)], ..Options::default() };
    let biased = Request { sampling: sampling.clone(), ..request("ab".into(), &own) };
    let (tokens, text, _) = answer(&engine, biased);
    assert_eq!((tokens, text.as_str()), (vec![514; 4], "<end><end><end><end>"));
    let refused = |request: Request| engine.submit(request).unwrap_err().to_string();
    let vocabulary = "expected an id below 512, found";
    assert!(refused(Request { sampling, ..request("ab".into(), &[]) }).contains(vocabulary));
    assert!(refused(request(vec![0, 513].into(), &[])).contains(vocabulary));
    assert!(refused(request(vec![0, 517].into(), &own)).contains("expected an id below 517, found 517"));
    assert!(refused(request("ab".into(), &[("own", 0.5)])).contains("so its weight is 0 or 1"));
    // Of weight 0, it is not there.
    assert!(refused(request(vec![0, 513].into(), &[("own", 0.0)])).contains(vocabulary));
    assert_eq!(engine.logits(&[1, 515, 2], &[("own".to_owned(), 1.0)]).unwrap().len(), 3 * 517);
    // Others that change linear layers can be beside it, those that change its tokens not.
    load(&engine, "lora");
    load(&engine, "lora_embed_head");
    assert_eq!(answer(&engine, request("ab<call>".into(), &[("lora", 0.5), ("own", 1.0)])).2, [517; 4]);
    assert_eq!(
        refused(request("ab".into(), &[("lora_embed_head", 1.0), ("own", 1.0)])),
        "adapters \"own\" and \"lora_embed_head\": the one has tokens of its own, so no other may change embedding or head"
    );
}

/// Rows that the base has and its tokenizer does not use can get a meaning, too.
#[test]
fn tokens_may_take_unused_rows() {
    let engine = base_with(&after(510, &[]));
    let names = ["adapter_config.json", "adapter_model.safetensors"];
    let trained = directory(&golden("adapters/lora_trainable_tokens"), names, &after(510, &["<x>", "<y>"]));
    engine.load_adapter("trained", trained).unwrap();
    let request = |prompt: Prompt, adapters: &[(&str, f32)]| Request { prompt, ..ask(1, 4, adapters) };
    let trained = [("trained", 1.0)];
    let from_text = answer(&engine, request("ab<y>".into(), &trained));
    assert_eq!(from_text, answer(&engine, request(vec![0, 1, 511].into(), &trained)));
    assert_eq!(from_text.2, [512; 4]);
    let sampling = Options { logit_bias: vec![(510, 1e9)], ..Options::default() };
    let text = |adapters| {
        answer(&engine, Request { sampling: sampling.clone(), ..request("ab".into(), adapters) }).1
    };
    assert_eq!((text(&trained).as_str(), text(&[]).as_str()), ("<x><x><x><x>", ""));
}

/// A request with an adapter's tokens beside one without: each has the logits that it has alone.
#[test]
fn others_keep_their_vocabulary() {
    let engine = base();
    engine.load_adapter("own", resized(&tokenizer(&TOKENS))).unwrap();
    let requests = [ask(9, 6, &[]), ask(40, 6, &[("own", 1.0)]), ask(7, 6, &[]), ask(5, 6, &[("own", 1.0)])];
    let alone = requests.clone().map(|request| {
        let events = engine.generate(Request { logits: true, ..request }).unwrap();
        let logits = events.filter_map(|event| match event.unwrap() {
            Event::Token { logits, .. } => logits,
            _ => None,
        });
        logits.collect::<Vec<_>>()
    });
    let ids = requests.map(|request| engine.submit(Request { logits: true, ..request }).unwrap());
    let mut together = [const { Vec::new() }; 4];
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Token { id, logits: Some(logits), .. } = event {
                together[ids.iter().position(|own| *own == id).unwrap()].push(logits);
            }
        }
    }
    assert!(alone == together);
    assert_eq!(alone.map(|logits| logits[0].len()), [512, 517, 512, 517]);
}

#[test]
fn vocabularies_that_do_not_extend_the_bases_are_refused() {
    let engine = base();
    let refused = |source: Source| engine.load_adapter("own", source).unwrap_err().to_string();
    let error = refused(resized(&tokenizer(&["1", "2", "3", "4", "5", "6"])));
    assert_eq!(error, "the adapter's tokenizer: expected at most the 517 tokens of the embedding, found 518");
    let mut other = tokenizer(&TOKENS);
    let vocabulary = other["model"]["vocab"].as_object_mut().unwrap();
    vocabulary.insert("a".into(), 1.into());
    vocabulary.insert("b".into(), 0.into());
    let error = refused(resized(&other));
    assert_eq!(error, "the adapter's tokenizer: expected the base's token 0, \"a\", found \"b\"");
    // Without one of the two, or with fewer rows than the base has.
    let file = Safetensors::open(golden("adapters/resized/adapter_model.safetensors")).unwrap();
    let config = std::fs::read(golden("adapters/resized/adapter_config.json")).unwrap();
    let with = |keep: &dyn Fn(&str) -> bool, rows: u64| {
        let shapes = file.tensors().iter().map(|(name, info)| match name.contains("layers") {
            false => vec![rows, info.shape[1]],
            true => info.shape.clone(),
        });
        let shapes: Vec<_> = shapes.collect();
        let views: Vec<_> = (file.tensors().iter().zip(&shapes))
            .filter(|((name, _), _)| keep(name))
            .map(|((name, info), shape)| {
                let bytes = &info.bytes[..shape.iter().product::<u64>() as usize * 2];
                TensorView { name, dtype: info.dtype, shape, bytes }
            })
            .collect();
        let mut weights = Vec::new();
        write_safetensors(&mut weights, &views, &[]).unwrap();
        let files = [("adapter_config.json", config.clone()), ("adapter_model.safetensors", weights)];
        Source::files(files.map(|(name, bytes)| (name.to_owned(), Bytes::new(bytes))).into()).unwrap()
    };
    let error = refused(with(&|name| !name.contains("embed_tokens"), 517));
    assert!(error.contains("adapter at head, weight: the base expects at most the 512 tokens of the embedding, found [517, 128]"), "{error}");
    let error = refused(with(&|_| true, 511));
    assert!(
        error.contains("adapter at embedding, weight: the base expects [512, 128], found [511, 128]"),
        "{error}"
    );
    // Tokens that can only be read: the head stays as it is.
    engine.load_adapter("read", with(&|name| !name.contains("lm_head"), 517)).unwrap();
    assert_eq!(engine.logits(&[1, 515, 2], &[("read".to_owned(), 1.0)]).unwrap().len(), 3 * 512);
    // The copy of the module that replaces must be a copy.
    let mut saved = Vec::new();
    let mut bytes: Vec<_> =
        file.tensors().iter().map(|(name, info)| (name, info, info.bytes.to_vec())).collect();
    bytes.iter_mut().find(|tensor| tensor.0.ends_with("lm_head.modules_to_save.weight")).unwrap().2[0] ^= 1;
    let views: Vec<_> = (bytes.iter())
        .map(|(name, info, bytes)| TensorView { name, dtype: info.dtype, shape: &info.shape, bytes })
        .collect();
    write_safetensors(&mut saved, &views, &[]).unwrap();
    let files = [("adapter_config.json", config), ("adapter_model.safetensors", saved)];
    let source =
        Source::files(files.map(|(name, bytes)| (name.to_owned(), Bytes::new(bytes))).into()).unwrap();
    assert!(refused(source).contains("both set the weight of head"));
}
