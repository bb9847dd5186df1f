//! Logits against transformers and peft.

use graftwork::chat::{ChatInput, Message};
use graftwork::{Bytes, Engine, EngineOptions, Event, Format, Prompt, Request};
use graftwork_adapters::file::gguf::Value;
use graftwork_adapters::file::{Dtype, Gguf, GgufWriter, Safetensors, TensorView, write_safetensors};
use graftwork_adapters::{Source, TensorFile};
use graftwork_kernels::Tensor;
use graftwork_tests::reference::{ADAPTERS, Closeness, Expected, STACKS, example, golden, smollm2, tensors};

fn open(path: &str) -> Engine {
    let options = EngineOptions { threads: 2, ..EngineOptions::default() };
    Engine::open(golden(path), options).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every adapter on the tiny base, to the 2e-3 that f32 arithmetic in another order may differ: three
/// layers of sums of up to 352 products, logits of the order of 10.
#[test]
fn adapters_agree_with_peft() {
    let engine = open("adapters/base");
    for &name in ["base", "resized"].iter().chain(ADAPTERS) {
        let mut stack = Vec::new();
        if name != "base" {
            engine.load_adapter(name, golden(&format!("adapters/{name}"))).unwrap();
            stack.push((name.to_owned(), 1.0));
        }
        let expected = Expected::read(&format!("adapters/{name}/expected.safetensors"), "logits");
        let closeness = expected.compare(|tokens| engine.logits(tokens, &stack).unwrap());
        println!("{name}: {closeness:?}");
        assert!(closeness.max_difference <= 2e-3, "{name}: {closeness:?}");
    }
}

/// An adapter that starts at its invocation tokens answers as peft does, from the first token of them on; without them, as the base.
#[test]
fn adapters_start_at_their_invocation() {
    let engine = open("adapters/base");
    engine.load_adapter("alora", golden("adapters/alora")).unwrap();
    let stack = [("alora".to_owned(), 1.0)];
    let expected = Expected::read("adapters/alora/expected.safetensors", "logits");
    // Where the last invocation starts in each sequence.
    let starts = [Some(0), Some(11), Some(15), Some(21), None, None];
    for (tokens, start) in expected.tokens.iter().zip(starts) {
        let [adapted, base] = [&stack[..], &[]].map(|stack| engine.logits(tokens, stack).unwrap());
        let differs = |position: usize| adapted[position * 512..][..512] != base[position * 512..][..512];
        let first = (0..tokens.len()).find(|&position| differs(position));
        assert_eq!(first, start);
    }
    let answers = Safetensors::open(golden("adapters/alora/answers.safetensors")).unwrap();
    let answers = answers.tensors().get("tokens").unwrap().integers().unwrap();
    for (tokens, answer) in expected.tokens.iter().zip(answers.chunks(8)) {
        let request = Request { max_tokens: Some(8), ignore_eos: true, ..Request::new(tokens.clone()) };
        let events = engine.generate(request.adapter("alora")).unwrap();
        let found: Vec<i64> = events
            .filter_map(|event| match event.unwrap() {
                Event::Token { token, .. } => Some(token.into()),
                _ => None,
            })
            .collect();
        assert_eq!(found, answer);
    }
}

/// One that starts with the prompt, behind given positions, is the LoRA that it holds.
#[test]
fn an_invocation_at_the_start_comes_behind_a_prefix() {
    let engine = open("adapters/base");
    let read = |name: &str| std::fs::read(golden(&format!("adapters/alora/{name}"))).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&read("adapter_config.json")).unwrap();
    config["alora_invocation_tokens"] = serde_json::Value::Null;
    let files = [
        ("adapter_config.json", config.to_string().into_bytes()),
        ("adapter_model.safetensors", read("adapter_model.safetensors")),
    ];
    let files = files.map(|(name, bytes)| (name.to_owned(), Bytes::new(bytes))).into();
    engine.load_adapter("plain", Source::files(files).unwrap()).unwrap();
    for name in ["alora", "prefix_tuning", "prompt_tuning"] {
        engine.load_adapter(name, golden(&format!("adapters/{name}"))).unwrap();
    }
    let tokens = [7, 301, 7, 1, 5, 17, 300, 4];
    let stack = |names: [&str; 2]| names.map(|name| (name.to_owned(), 1.0)).to_vec();
    let logits = |names| engine.logits(&tokens, &stack(names)).unwrap();
    assert_eq!(logits(["prefix_tuning", "alora"]), logits(["prefix_tuning", "plain"]));
    // Virtual tokens come before the invocation, so they are the base's.
    assert_ne!(logits(["prompt_tuning", "alora"]), logits(["prompt_tuning", "plain"]));
    let first = |names| {
        let adapters = stack(names);
        let request =
            Request { adapters, logits: true, max_tokens: Some(1), ..Request::new(tokens.to_vec()) };
        let mut events = engine.generate(request).unwrap().map(Result::unwrap);
        events.find_map(|event| match event {
            Event::Token { logits, .. } => logits,
            _ => None,
        })
    };
    let found = first(["prefix_tuning", "alora"]);
    assert!(found.is_some() && found == first(["prefix_tuning", "plain"]));
}

/// Several adapters at once, of one kind and of several, in the orders in which peft can have them.
#[test]
fn stacks_agree_with_peft() {
    let engine = open("adapters/base");
    for name in ADAPTERS {
        engine.load_adapter(name, golden(&format!("adapters/{name}"))).unwrap();
    }
    for names in STACKS {
        let stack: Vec<_> = names.iter().map(|&name| (name.to_owned(), 1.0)).collect();
        let expected = Expected::read(&format!("adapters/stacks/{}.safetensors", names.join("+")), "logits");
        let closeness = expected.compare(|tokens| engine.logits(tokens, &stack).unwrap());
        println!("{names:?}: {closeness:?}");
        assert!(closeness.max_difference <= 2e-3, "{names:?}: {closeness:?}");
    }
    // Inputs change before outputs, whatever the order.
    let logits = |names: [&str; 2]| {
        let stack = names.map(|name| (name.to_owned(), 1.0));
        engine.logits(&[1, 5, 17, 300, 4], &stack).unwrap()
    };
    assert_eq!(logits(["lora", "oft"]), logits(["oft", "lora"]));
}

/// A control vector as llama.cpp's GGUF file and as that in a directory, whole and in part; components as NumPy's files: the
/// same bits as from safetensors. Strengths are weights, of both signs.
#[test]
fn directions_are_the_same_from_every_file() {
    let engine = open("adapters/base");
    let tokens = [1, 5, 17, 300, 4];
    let logits = |name: &str, weight: f32| engine.logits(&tokens, &[(name.to_owned(), weight)]).unwrap();
    let load = |name: &str, source: Source| engine.load_adapter(name, source).unwrap();
    let mut file = GgufWriter::new();
    let text = |text: &str| Value::Str(text.to_owned());
    file.key("general.architecture", text("controlvector"));
    file.key("controlvector.model_hint", text("llama")).key("controlvector.layer_count", Value::I32(2));
    for (name, tensor) in tensors("adapters/control_vector/adapter_model.safetensors") {
        file.tensor(name, tensor);
    }
    let mut gguf = Vec::new();
    file.write(&mut gguf).unwrap();
    let directory = |layers: &str| {
        let config = format!(r#"{{"peft_type": "CONTROL_VECTOR", "layers": {layers}}}"#).into_bytes();
        let files = [("adapter_config.json", config), ("control_vector.gguf", gguf.clone())];
        Source::files(files.map(|(name, bytes)| (name.to_owned(), Bytes::new(bytes))).into()).unwrap()
    };
    load("safetensors", golden("adapters/control_vector").into());
    load("gguf", Bytes::new(gguf.clone()).into());
    load("both", directory("[1, 2]"));
    load("first", directory("[1, 1]"));
    load("second", directory("[2, 40]"));
    let base = engine.logits(&tokens, &[]).unwrap();
    for weight in [1.0, 0.5, -2.0] {
        let expected = logits("safetensors", weight);
        assert!(expected != base);
        assert_eq!(logits("gguf", weight), expected);
        assert_eq!(logits("both", weight), expected);
        let parts = [("first".to_owned(), weight), ("second".to_owned(), weight)];
        assert_eq!(engine.logits(&tokens, &parts).unwrap(), expected);
        assert!(logits("first", weight) != expected && logits("second", weight) != expected);
    }
    load("components", golden("adapters/ablation").into());
    load("npy", golden("adapters/ablation_npy").into());
    assert!(logits("components", 1.0) != base);
    assert_eq!(logits("npy", 1.0), logits("components", 1.0));
}

/// What replaces parts of the model is there or not: any weight but 0 and 1 is refused, and 0 is the base.
#[test]
fn replacements_are_there_or_not() {
    let engine = open("adapters/base");
    let tokens = [1, 5, 17, 300, 4];
    let base = engine.logits(&tokens, &[]).unwrap();
    for (name, site) in [
        ("lora_modules_to_save", "layer 0 attention norm"),
        ("lora_trainable_tokens", "embedding"),
        ("ln_tuning", "layer 0 attention norm"),
        ("oft", "layer 0 q"),
    ] {
        engine.load_adapter(name, golden(&format!("adapters/{name}"))).unwrap();
        let logits = |weight: f32| engine.logits(&tokens, &[(name.to_owned(), weight)]);
        assert_eq!(
            logits(0.5).unwrap_err().to_string(),
            format!(
                "adapter \"{name}\": it changes the {site} as a whole, so its weight is 0 or 1, found 0.5"
            )
        );
        assert!(logits(0.0).unwrap() == base && logits(1.0).unwrap() != base, "{name}");
    }
    // The base's own weights beside the adapters of embedding and head replace nothing.
    engine.load_adapter("embed_head", golden("adapters/lora_embed_head")).unwrap();
    engine.logits(&tokens, &[("embed_head".to_owned(), 0.5)]).unwrap();
}

/// Trained tokens change the head too where it is tied to the embedding: as if the base had these rows, to the bit.
#[test]
fn trained_tokens_change_a_tied_head() {
    const EMBEDDING: &str = "model.embed_tokens.weight";
    const TRAINED: [usize; 3] = [5, 17, 300];
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden("adapters/base/config.json")).unwrap()).unwrap();
    config["tie_word_embeddings"] = true.into();
    let model = |embedding: Option<&[u8]>| {
        let tensors = tensors("adapters/base/model.safetensors");
        let shape = |t: &Tensor| [t.rows() as u64, t.cols() as u64][usize::from(t.rows() == 1)..].to_vec();
        let shapes: Vec<_> = tensors.iter().map(|(_, tensor)| shape(tensor)).collect();
        let views: Vec<_> = (tensors.iter().zip(&shapes))
            .map(|((name, tensor), shape)| {
                let bytes = embedding.filter(|_| name == EMBEDDING).unwrap_or(tensor.bytes());
                TensorView { name, dtype: Dtype::F32, shape, bytes }
            })
            .collect();
        let mut weights = Vec::new();
        write_safetensors(&mut weights, &views, &[]).unwrap();
        let files = [("config.json", config.to_string().into_bytes()), ("model.safetensors", weights)];
        let files = files.map(|(name, bytes)| (name.to_owned(), Bytes::new(bytes))).into();
        Engine::open(Source::files(files).unwrap(), EngineOptions { threads: 1, ..EngineOptions::default() })
            .unwrap()
    };
    let all = tensors("adapters/base/model.safetensors");
    let mut embedding = all.iter().find(|(name, _)| name == EMBEDDING).unwrap().1.bytes().to_vec();
    // The adapter without its LoRA.
    let tensors = tensors("adapters/lora_trainable_tokens/adapter_model.safetensors");
    let (name, rows) = tensors.iter().find(|(name, _)| name.ends_with("trainable_tokens_delta")).unwrap();
    let size = rows.row_bytes();
    for (row, token) in rows.bytes().chunks_exact(size).zip(TRAINED) {
        embedding[token * size..][..size].copy_from_slice(row);
    }
    let shape = [rows.rows() as u64, rows.cols() as u64];
    let mut weights = Vec::new();
    let view = TensorView { name, dtype: Dtype::F32, shape: &shape, bytes: rows.bytes() };
    write_safetensors(&mut weights, &[view], &[]).unwrap();
    let config = serde_json::json!({"peft_type": "LORA", "trainable_token_indices": TRAINED});
    let files =
        [("adapter_config.json", config.to_string().into_bytes()), ("adapter_model.safetensors", weights)];
    let files = files.map(|(name, bytes)| (name.to_owned(), Bytes::new(bytes))).into();
    let (adapted, other) = (model(None), model(Some(&embedding)));
    adapted.load_adapter("tokens", Source::files(files).unwrap()).unwrap();
    let tokens = [1, 5, 17, 300, 4];
    let found = adapted.logits(&tokens, &[("tokens".to_owned(), 1.0)]).unwrap();
    assert_eq!(found, other.logits(&tokens, &[]).unwrap());
    assert_ne!(found, adapted.logits(&tokens, &[]).unwrap());
}

/// Keys and values of fewer bits, on the same models, against those in f32. Logits of the order of 10 come within 0.006 in
/// halves and within 0.1 in 8 bits (twice what is measured), of whose values each is off by half a 127th of the largest of 32 at most.
#[test]
fn caches_of_fewer_bits_stay_close() {
    for name in ["adapters/base", "architectures/llama3_rope", "architectures/llama_linear_bias"] {
        let engine = open(name);
        let expected = Expected::read(&format!("{name}/expected.safetensors"), "logits");
        for (format, most, most_kl) in [(Format::F16, 0.006, 3e-7), (Format::Q8_0, 0.1, 1e-4)] {
            let mut sum = Closeness::default();
            for tokens in &expected.tokens {
                let exact = engine.logits(tokens, &[]).unwrap();
                let found = engine.logits_with(tokens, &[], format).unwrap();
                for (exact, found) in exact.chunks(expected.vocab).zip(found.chunks(expected.vocab)) {
                    let one = Closeness::of(exact, found);
                    sum.max_difference = sum.max_difference.max(one.max_difference);
                    sum.mean_kl += one.mean_kl / (expected.tokens.len() * tokens.len()) as f64;
                }
            }
            println!("{name}, {format}: {sum:?}");
            assert!(sum.max_difference <= most && sum.mean_kl <= most_kl, "{name}, {format}: {sum:?}");
            // Something was rounded.
            assert!(sum.max_difference > 0.0);
        }
    }
}

/// The scalings of RoPE and the optional biases.
#[test]
fn architectures_agree_with_transformers() {
    for name in ["llama3_rope", "llama_yarn", "llama_linear_bias"] {
        let engine = open(&format!("architectures/{name}"));
        let expected = Expected::read(&format!("architectures/{name}/expected.safetensors"), "logits");
        let closeness = expected.compare(|tokens| engine.logits(tokens, &[]).unwrap());
        println!("{name}: {closeness:?}");
        assert!(closeness.max_difference <= 1e-3, "{name}: {closeness:?}");
    }
}

/// SmolLM2 in Q4_1 with activations rounded to 8 bits, against f32 on the same weights. The thresholds are
/// those of the references' note: a quarter above what llama.cpp reaches with the same rounding.
#[test]
fn smollm2_agrees_with_transformers() {
    let engine = Engine::open(smollm2(), EngineOptions { threads: 2, ..EngineOptions::default() }).unwrap();
    for (name, most_kl) in [("base", 0.0025), ("tools", 0.0035), ("sentiment", 0.0038)] {
        let path = format!("smollm2/{name}.expected.safetensors");
        let expected = Expected::read(&path, "logits_last8");
        for (file, stack) in stacks(&engine, name) {
            let closeness = expected.compare(|tokens| engine.logits(tokens, &stack).unwrap());
            println!("{name} from {file}: {closeness:?}");
            assert!(closeness.mean_kl <= most_kl, "{name} from {file}: {closeness:?}");
            assert!(closeness.top1 >= 0.96, "{name} from {file}: {closeness:?}");
        }
    }
}

/// The same weights without their codes, so that no activation is rounded: all that is left is the order of
/// f32 sums. This tells an error from the rounding that the thresholds above allow.
#[test]
fn smollm2_in_f32_agrees_with_transformers() {
    let file = Gguf::open(smollm2()).unwrap();
    let mut decoded = GgufWriter::new();
    for (key, value) in file.metadata().iter() {
        decoded.key(key, value.clone());
    }
    for name in file.names() {
        let tensor = file.require(name).unwrap();
        let values = tensor.decode().unwrap();
        decoded.tensor(name, Tensor::encode(Format::F32, tensor.rows(), tensor.cols(), &values).unwrap());
    }
    let mut bytes = Vec::new();
    decoded.write(&mut bytes).unwrap();
    drop(decoded);
    let options = EngineOptions { threads: 2, ..EngineOptions::default() };
    let engine = Engine::open(Bytes::new(bytes), options).unwrap();
    for name in ["base", "tools"] {
        let expected = Expected::read(&format!("smollm2/{name}.expected.safetensors"), "logits_last8");
        for (file, stack) in stacks(&engine, name) {
            let closeness = expected.compare(|tokens| engine.logits(tokens, &stack).unwrap());
            println!("{name} from {file}: {closeness:?}");
            assert!(closeness.mean_kl <= 1e-4, "{name} from {file}: {closeness:?}");
            assert_eq!(closeness.top1, 1.0, "{name} from {file}: {closeness:?}");
        }
    }
}

/// Greedy answers of SmolLM2 to conversations, all in one batch. Rounding may leave the reference's path,
/// except where an adapter is trained for the question: those answers must be equal, from both files of each.
#[test]
fn smollm2_answers_as_transformers() {
    let engine = Engine::open(smollm2(), EngineOptions { threads: 2, ..EngineOptions::default() }).unwrap();
    let mut asked = Vec::new();
    for (name, must_be_equal) in [("base", 0..0), ("tools", 2..5), ("sentiment", 5..8)] {
        let path = golden(&format!("smollm2/{name}.greedy.json"));
        let chats: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for (file, stack) in stacks(&engine, name) {
            for (index, chat) in chats.as_array().unwrap().iter().enumerate() {
                let request = Request {
                    adapters: stack.clone(),
                    max_tokens: Some(chat["tokens"].as_array().unwrap().len()),
                    ..Request::new(prompt(&engine, chat))
                };
                let id = engine.submit(request).unwrap();
                let expected = chat["text"].as_str().unwrap().trim_end_matches("<|im_end|>").to_owned();
                asked.push((id, format!("{file} {index}"), expected, must_be_equal.contains(&index)));
            }
        }
    }
    let mut answers = std::collections::HashMap::<_, String>::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            answers.entry(event.id()).or_default().push_str(event.text());
        }
    }
    let equal = asked.iter().filter(|(id, _, expected, _)| answers[id] == *expected).count();
    println!("{equal} of {} answers are equal", asked.len());
    for (id, name, expected, must_be_equal) in asked {
        assert!(!must_be_equal || answers[&id] == expected, "{name}: {:?}, not {expected:?}", answers[&id]);
    }
    assert_eq!(engine.memory().kv_used, 0);
}

/// A reference's conversation, its tokens checked against the reference's, as a conversation and as text.
fn prompt(engine: &Engine, chat: &serde_json::Value) -> Prompt {
    let field = |key: &str| chat[key].as_str().unwrap();
    let mut messages = vec![Message::new("user", field("user"))];
    if !field("system").is_empty() {
        messages.insert(0, Message::new("system", field("system")));
    }
    let tokens = chat["prompt_tokens"].as_array().unwrap();
    let tokens: Vec<u32> = tokens.iter().map(|token| token.as_u64().unwrap() as u32).collect();
    let text = engine.text().unwrap();
    assert_eq!(text.encode(field("prompt")).unwrap(), tokens);
    assert_eq!(text.encode_chat(&ChatInput::new(messages.clone())).unwrap(), tokens);
    messages.into()
}

/// The stacks that are `name`: none, or its adapter from PEFT's directory and from the GGUF file.
fn stacks(engine: &Engine, name: &str) -> Vec<(String, Vec<(String, f32)>)> {
    if name == "base" {
        return vec![("base".to_owned(), Vec::new())];
    }
    let files = [format!("{name}-lora"), format!("{name}-lora.gguf")];
    let stack = |file: String| {
        engine.load_adapter(&file, example(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        (file.clone(), vec![(file, 1.0)])
    };
    files.into_iter().map(stack).collect()
}
