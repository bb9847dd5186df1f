//! What callers and files can get wrong, and that the message names it.

use std::fs;

use graftwork::chat::Message;
use graftwork::{Engine, EngineOptions, Error, Prompt, Request};
use graftwork_adapters::Source;
use graftwork_kernels::{Bytes, Format};
use graftwork_tests::reference::golden;

use crate::{answer, ask, engine, load, prompt};

/// Everything that a caller can get wrong, and what the message must name.
#[test]
fn mistakes_are_named() {
    let page = 2 * 3 * 2 * 16 * 32 * 2;
    let engine = engine(EngineOptions { kv_bytes: 4 * page, ..EngineOptions::default() });
    load(&engine, "lora");
    let refused = |request: Request| engine.submit(request).unwrap_err().to_string();
    let table = [
        (refused(Request::new(Vec::<u32>::new())), "at least one token"),
        (refused(Request::new(vec![3, 512])), "prompt token 1: expected an id below 512, found 512"),
        (refused(ask(512, 1, &[])), "fewer than 512 tokens"),
        (refused(ask(100, 100, &[])), "needs 7 pages of KV cache, the budget is 4"),
        (refused(ask(4, 0, &[])), "max_tokens"),
        (refused(ask(4, 4, &[("nobody", 1.0)])), "\"nobody\""),
        (refused(ask(4, 4, &[("lora", f32::NAN)])), "\"lora\": expected a finite weight"),
        (refused(Request::new(Prompt::Text("hello".into()))), "without a tokenizer"),
        (refused(Request { stop: vec!["x".into()], ..ask(4, 4, &[]) }), "without a tokenizer"),
        (engine.load_adapter("lora", golden("adapters/lora")).unwrap_err().to_string(), "\"lora\""),
        (engine.unload_adapter("nobody").unwrap_err().to_string(), "\"nobody\""),
        (engine.replace_adapter("nobody", "nowhere", None).unwrap_err().to_string(), "\"nobody\""),
        (
            engine.replace_adapter("lora", golden("adapters/lora"), Some(0.into())).unwrap_err().to_string(),
            "expected generation 0",
        ),
        (engine.load_adapter("x", golden("adapters/base")).unwrap_err().to_string(), "adapter_config.json"),
        (engine.logits(&[], &[]).unwrap_err().to_string(), "at least one token"),
        (engine.logits(&[600], &[]).unwrap_err().to_string(), "found 600"),
        (engine.logits(&prompt(513), &[]).unwrap_err().to_string(), "found 513"),
        (engine.logits_with(&[1], &[], Format::Q4_0).unwrap_err().to_string(), "kv_format"),
    ];
    for (message, part) in table {
        assert!(message.contains(part), "expected {part:?} in {message:?}");
    }
    assert!(engine.is_idle() && engine.memory().kv_used == 0);
}

/// A model whose files say what we cannot compute, or not enough.
#[test]
fn bad_models_are_refused_by_name() {
    let read = |name: &str| fs::read(golden(&format!("adapters/base/{name}"))).unwrap();
    let config = String::from_utf8(read("config.json")).unwrap();
    let open = |from: &str, to: &str| {
        assert!(config.contains(from), "{from}");
        let config = config.replace(from, to).into_bytes();
        let files = [("config.json", config), ("model.safetensors", read("model.safetensors"))];
        let files = files.map(|(name, bytes)| (name.to_owned(), Bytes::new(bytes))).into();
        Engine::open(Source::files(files).unwrap(), EngineOptions { threads: 1, ..EngineOptions::default() })
    };
    assert!(open("512", "512").is_ok());
    // A head of its own beside a tied one is left alone, as transformers does.
    assert!(open("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true").is_ok());
    let table = [
        ("\"llama\"", "\"lama\"", "`model_type`: expected llama, found \"lama\""),
        ("\"silu\"", "\"gelu\"", "`hidden_act`: expected \"silu\", found \"gelu\""),
        ("\"default\"", "\"dynamic\"", "`rope_parameters.rope_type`"),
        ("\"hidden_size\": 128", "\"hidden_size\": \"x\"", "`hidden_size`: expected a size, found \"x\""),
        ("\"hidden_size\": 128,", "", "`hidden_size`: expected a size, found nothing"),
        ("\"hidden_size\": 128", "\"hidden_size\": 64", "expected shape [512, 64], found [512, 128]"),
        ("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2", "tensor model.layers.2."),
        ("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4", "model.layers.3."),
        ("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 16000000", "model.layers."),
        ("\"num_attention_heads\": 8", "\"num_attention_heads\": 0", "number of attention heads"),
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "multiple of the 3"),
        ("\"head_dim\": 16", "\"head_dim\": 15", "even number"),
        ("\"head_dim\": 16", "\"head_dim\": 32", "self_attn.q_proj.weight"),
        (
            "\"tie_word_embeddings\": false",
            "\"tie_word_embeddings\": 0",
            "`tie_word_embeddings`: expected true or",
        ),
        ("\"attention_bias\": false", "\"attention_bias\": true", "self_attn.q_proj.bias"),
        ("\"vocab_size\": 512", "\"vocab_size\": 99999999999", "vocabulary size"),
        ("\"rope_theta\": 10000.0", "\"rope_theta\": -1.0", "rope theta"),
        ("\"eos_token_id\": 2", "\"eos_token_id\": [2, -7]", "`eos_token_id`"),
    ];
    for (from, to, part) in table {
        match open(from, to) {
            Ok(_) => panic!("{from} -> {to} was accepted"),
            Err(error) => {
                let message = error.to_string();
                assert!(message.contains(part), "{from} -> {to}: expected {part:?} in {message:?}");
            }
        }
    }
    for options in [
        EngineOptions { max_batch: 0, ..EngineOptions::default() },
        EngineOptions { prefill_chunk: 0, ..EngineOptions::default() },
        EngineOptions { kv_format: Format::Q4_0, ..EngineOptions::default() },
        EngineOptions { threads: usize::MAX, ..EngineOptions::default() },
        EngineOptions { isa: Some("avx9".into()), ..EngineOptions::default() },
    ] {
        assert!(matches!(Engine::open(golden("adapters/base"), options), Err(Error::Option { .. })));
    }
}

/// A chat template that is not valid is in the way of conversations only.
#[test]
fn bad_templates_do_not_keep_a_model_from_opening() {
    let file = |name: &str, path: &str| (name.to_owned(), Bytes::new(fs::read(golden(path)).unwrap()));
    let files = vec![
        file("config.json", "adapters/base/config.json"),
        file("model.safetensors", "adapters/base/model.safetensors"),
        file("tokenizer.json", "text/smollm.tokenizer.json"),
        ("chat_template.jinja".to_owned(), Bytes::new(b"{% for m in %}".to_vec())),
    ];
    let options = EngineOptions { threads: 1, ..EngineOptions::default() };
    let engine = Engine::open(Source::files(files).unwrap(), options).unwrap();
    assert_eq!(answer(&engine, ask(5, 3, &[])).len(), 3);
    let refused = engine.submit(Request::new(vec![Message::new("user", "hi")])).unwrap_err().to_string();
    assert!(refused.starts_with("chat template: expected valid Jinja"), "{refused}");
    assert_eq!(engine.text().unwrap().template().unwrap_err().to_string(), refused);
}
