//! Hugging Face directories as GGUF files: the same model, the same tokens, or an error.

use std::fs;
use std::path::{Path, PathBuf};

use graftwork::quantize::{Calibration, Options, quantize};
use graftwork::tokenize::{Tokenizer, Vocabulary};
use graftwork::{Engine, EngineOptions, Format, Source};
use graftwork_adapters::file::safetensors::{Dtype, Safetensors, TensorView, write_safetensors};
use graftwork_adapters::file::{Gguf, Named};
use graftwork_kernels::{Bytes, Tensor};
use serde_json::{Value, json};

use crate::{Random, folder};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn to_gguf(source: &Source, name: &str, file_type: &str) -> Result<PathBuf, String> {
    let out = folder("directories").join(format!("{name}.gguf"));
    let _ = fs::remove_file(&out);
    let options = Options { file_type: file_type.parse().unwrap(), calibration: None, threads: 2 };
    match quantize(source, &out, &options, &|_, _, _| true) {
        Ok(_) => Ok(out),
        Err(error) => {
            assert!(!out.exists(), "{name}: {error}");
            Err(error.to_string())
        }
    }
}

/// Every scaling of the rotation, biases, grouped keys, an untied head: the logits of the directory, up to the order of sums.
#[test]
fn a_directory_and_its_file_give_the_same_logits() {
    for name in ["llama3_rope", "llama_linear_bias", "llama_yarn"] {
        let directory = root("golden/architectures").join(name);
        let file = to_gguf(&Source::from(&directory), name, "F32").unwrap();
        let expected = Safetensors::open(directory.join("expected.safetensors")).unwrap();
        let tokens = expected.tensors().get("tokens").unwrap().integers().unwrap();
        let tokens: Vec<u32> = tokens[..40].iter().map(|&token| token as u32).collect();
        let bytes = &expected.tensors().get("logits").unwrap().bytes;
        let floats = bytes[..40 * 320 * 4].chunks_exact(4);
        let expected: Vec<f32> = floats.map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
        let engine = Engine::open(&*file, EngineOptions::default()).unwrap();
        let found = engine.logits(&tokens, &[]).unwrap();
        let scale = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let worst = expected.iter().zip(&found).fold(0.0f32, |most, (x, y)| most.max((x - y).abs()));
        assert!(found.len() == expected.len() && worst < 2e-5 * scale, "{name}: {worst} of {scale}");
    }
}

/// A directory in memory with a tokenizer of the golden texts, and changes to its files.
fn directory(tokenizer: Value, config: Value, more: &[(&str, Vec<u8>)]) -> Source {
    let (hidden, vocab) = (32, 1300);
    let mut fields = json!({"model_type": "llama", "hidden_size": hidden, "num_hidden_layers": 1, "intermediate_size": 32,
        "num_attention_heads": 2, "vocab_size": vocab, "max_position_embeddings": 64, "tie_word_embeddings": true,
        "eos_token_id": 2});
    fields.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    let layer = |part: &str| format!("model.layers.0.{part}.weight");
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
        (layer("input_layernorm"), vec![hidden]),
        (layer("post_attention_layernorm"), vec![hidden]),
    ];
    shapes
        .extend(["q", "k", "v", "o"].map(|m| (layer(&format!("self_attn.{m}_proj")), vec![hidden, hidden])));
    shapes.extend(["gate", "up", "down"].map(|m| (layer(&format!("mlp.{m}_proj")), vec![hidden, hidden])));
    let mut random = Random(7);
    let tensors: Vec<_> = shapes
        .iter()
        .map(|(name, shape)| {
            let count = shape.iter().product::<u64>() as usize;
            // Norms make layers add more to the stream than there was, from inputs of very different sizes.
            let size = if name.contains("norm") { 8.0 } else { 1.0 };
            let values: Vec<f32> = (0..count).map(|_| random.next() * size).collect();
            let tensor = Tensor::encode(Format::BF16, 1, count, &values).unwrap();
            (name, shape, tensor.bytes().to_vec())
        })
        .collect();
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, shape, bytes)| TensorView { name, dtype: Dtype::BF16, shape, bytes })
        .collect();
    let mut weights = Vec::new();
    write_safetensors(&mut weights, &views, &[]).unwrap();
    let config = json!({"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": "{{ messages }}"});
    let mut files = vec![
        ("config.json", fields.to_string().into_bytes()),
        ("tokenizer.json", tokenizer.to_string().into_bytes()),
        ("tokenizer_config.json", config.to_string().into_bytes()),
        ("model.safetensors", weights),
    ];
    files.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
    files.extend(more.iter().cloned());
    let files = files.into_iter().map(|(name, bytes)| (name.to_owned(), Bytes::from(bytes))).collect();
    Source::Files(Named::new(files).unwrap())
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&fs::read(root("golden/text").join(name)).unwrap()).unwrap()
}

fn tokenizer(name: &str) -> Value {
    golden(&format!("{name}.tokenizer.json"))
}

fn vocabulary(name: &str) -> Vocabulary {
    serde_json::from_value(golden(&format!("{name}.vocabulary.json"))).unwrap()
}

#[test]
fn byte_level_tokenizers_become_vocabularies() {
    for name in ["gpt-2", "llama-bpe", "smollm"] {
        let out = to_gguf(&directory(tokenizer(name), json!({}), &[]), name, "Q8_0").unwrap();
        let file = Gguf::open(&out).unwrap();
        let (found, expected) = (Vocabulary::from_metadata(file.metadata()).unwrap(), vocabulary(name));
        let count = expected.tokens.len();
        assert_eq!(found.pre, expected.pre);
        assert_eq!(found.tokens[..count], expected.tokens);
        assert_eq!(found.token_type[..count], expected.token_type);
        assert_eq!((found.tokens.len(), &*found.tokens[count]), (1300, &*format!("[PAD{count}]")));
        assert!(found.token_type[count..].iter().all(|&kind| kind == 5));
        assert_eq!(found.merges, expected.merges);
        assert_eq!((found.bos_token_id, found.eos_token_id), (expected.bos_token_id, expected.eos_token_id));
        // The post-processor of one of them has a token before the text.
        assert_eq!(found.add_bos_token, Some(name == "llama-bpe"));
        assert_eq!(found.chat_template.as_deref(), Some("{{ messages }}"));
        Engine::open(&*out, EngineOptions::default()).unwrap();
    }
}

/// Texts of inputs that differ in size, as the norms make them: the logits of a file that was calibrated on some are nearer on others.
#[test]
fn calibration_makes_logits_better() {
    let source = directory(tokenizer("smollm"), json!({}), &[]);
    let engine = Engine::open(source.clone(), EngineOptions::default()).unwrap();
    let text = |seed: u32| (0..48).map(|i| (i * 31 + seed * 97) % 1190).collect::<Vec<u32>>();
    let (texts, other) = ([1, 2, 3, 4].map(text), text(9));
    let expected = engine.logits(&other, &[]).unwrap();
    let out = folder("directories").join("calibrated.gguf");
    let mut sums = [0.0; 2];
    for file_type in ["Q4_0", "Q4_1", "Q5_0", "Q5_1"] {
        let file_type = file_type.parse().unwrap();
        let [plain, calibrated] =
            [None, Some(Calibration { engine: &engine, texts: &texts })].map(|calibration| {
                quantize(&source, &out, &Options { file_type, calibration, threads: 2 }, &|_, _, _| true)
                    .unwrap();
                let found =
                    Engine::open(&*out, EngineOptions::default()).unwrap().logits(&other, &[]).unwrap();
                found.iter().zip(&expected).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>()
            });
        assert!(calibrated < plain, "{file_type}: {calibrated} with texts, {plain} without");
        sums = [sums[0] + plain, sums[1] + calibrated];
    }
    // Embedding and head, which no text changes, have a part in it.
    assert!(sums[1] < 0.95 * sums[0], "{sums:?}");
}

/// `tokenizer.model` with the pieces of a vocabulary.
fn sentence_piece(vocabulary: &Vocabulary) -> Vec<u8> {
    let mut message = Vec::new();
    for ((text, score), kind) in vocabulary.tokens.iter().zip(&vocabulary.scores).zip(&vocabulary.token_type)
    {
        let mut piece = vec![0x0a, text.len() as u8];
        piece.extend(text.as_bytes());
        piece.push(0x15);
        piece.extend(score.to_le_bytes());
        piece.extend([0x18, *kind as u8]);
        message.extend([0x0a, piece.len() as u8]);
        message.extend(piece);
    }
    message
}

#[test]
fn sentence_piece_tokenizers_become_vocabularies() {
    let expected = vocabulary("spm-legacy");
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}).to_string();
    let files = [
        ("tokenizer.model", sentence_piece(&expected)),
        ("tokenizer_config.json", config.clone().into_bytes()),
    ];
    for name in ["spm-legacy", "spm-first"] {
        let mut json = tokenizer(name);
        for token in json["added_tokens"].as_array_mut().unwrap() {
            (token["lstrip"], token["rstrip"]) = (json!(false), json!(false));
        }
        let out = to_gguf(&directory(json, json!({}), &files), name, "Q4_0").unwrap();
        let file = Gguf::open(&out).unwrap();
        let found = Vocabulary::from_metadata(file.metadata()).unwrap();
        assert_eq!((&*found.model, found.add_bos_token), ("llama", Some(true)));
        assert_eq!(found.unknown_token_id, Some(0));
        for (id, token) in expected.tokens.iter().enumerate() {
            assert_eq!(&found.tokens[id], token);
            let is_added = matches!(expected.token_type[id], 2..=4);
            let score = if is_added { -1000.0 } else { expected.scores[id] };
            assert_eq!((id, found.scores[id]), (id, score));
        }
        let text = "Why is 3.14 not 22/7?\n\u{3c0}";
        let encode = |vocabulary: Vocabulary| {
            Tokenizer::from_vocabulary(vocabulary)
                .unwrap()
                .encode(text, graftwork::tokenize::Specials::AsText)
                .unwrap()
        };
        assert_eq!(encode(found), encode(expected.clone()));
    }
    let without = [("tokenizer_config.json", config.into_bytes())];
    let error = to_gguf(&directory(tokenizer("spm-legacy"), json!({}), &without), "without", "Q4_0");
    assert!(error.unwrap_err().contains("tokenizer.model: expected the scores"));
}

#[test]
fn what_has_no_form_in_gguf_files_is_named() {
    let with = |pointer: &str, value: Value| {
        let mut changed = tokenizer("smollm");
        *changed.pointer_mut(pointer).expect(pointer) = value;
        changed
    };
    let plain = || tokenizer("smollm");
    let none = json!({});
    let lstrip = with("/added_tokens/1/lstrip", json!(true));
    let digits = with("/pre_tokenizer/pretokenizers/0/individual_digits", json!(false));
    let other_merges = with("/model/merges/0", json!(["a b", "c"]));
    let template = json!({"type": "TemplateProcessing", "pair": [], "special_tokens":
        {"<|eot_id|>": {"id": "<|eot_id|>", "ids": [3], "tokens": ["<|eot_id|>"]}},
        "single": [{"SpecialToken": {"id": "<|eot_id|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]});
    let yarn = json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 2.0}});
    for (name, source, message) in [
        (
            "normalizer",
            directory(tokenizer("qwen2"), none.clone(), &[]),
            "tokenizer.json: normalizer: expected none",
        ),
        ("lstrip", directory(lstrip, none.clone(), &[]), "tokenizer.json: added_tokens"),
        (
            "digits",
            directory(digits, none.clone(), &[]),
            "tokenizer.json: pre_tokenizer: expected one of default",
        ),
        ("merges", directory(other_merges, none.clone(), &[]), "`a b`"),
        ("unigram", directory(with("/model/type", json!("Unigram")), none.clone(), &[]), "Unigram"),
        (
            "frame",
            directory(with("/post_processor", template), none.clone(), &[]),
            "tokenizer.json: post_processor",
        ),
        ("yarn", directory(plain(), yarn, &[]), "config.json: rope_parameters: expected attention_factor"),
        ("partial", directory(plain(), json!({"partial_rotary_factor": 0.5}), &[]), "partial_rotary_factor"),
        ("mamba", directory(plain(), json!({"model_type": "mamba"}), &[]), "`model_type`: expected llama"),
        ("rows", directory(plain(), json!({"vocab_size": 1100}), &[]), "below 1100"),
        ("untied", directory(plain(), json!({"tie_word_embeddings": false}), &[]), "lm_head.weight"),
        ("wide", directory(plain(), json!({"intermediate_size": 64}), &[]), "mlp.gate_proj.weight"),
        ("biased", directory(plain(), json!({"mlp_bias": true}), &[]), "mlp.gate_proj.bias"),
    ] {
        let error = to_gguf(&source, name, "Q8_0").expect_err(name);
        assert!(error.contains(message), "{name}: {error}");
    }
    let out = to_gguf(&directory(plain(), none, &[("tokenizer.json", Vec::new())]), "empty", "Q8_0");
    assert!(out.unwrap_err().contains("tokenizer.json"));
}
