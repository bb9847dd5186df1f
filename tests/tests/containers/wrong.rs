//! Models whose descriptions hold wrong values.

use std::fs;

use graftwork::{Bytes, Engine, EngineOptions, Request};
use graftwork_adapters::Source;
use graftwork_adapters::file::GgufWriter;
use graftwork_adapters::file::gguf::{Array, Value};
use graftwork_tests::reference::golden;
use serde_json::Value as Json;

use crate::convert::{bytes, json, keys, model_tensors};
use crate::random;

/// One of some values that a description should not hold, or holds only elsewhere.
fn odd_value(at: usize) -> Value {
    let values = [
        Value::U32(0),
        Value::U32(1),
        Value::U32(3),
        Value::U32(16),
        Value::U32(64),
        Value::U32(1 << 24),
        Value::U32(u32::MAX),
        Value::I32(-1),
        Value::U64(u64::MAX),
        Value::U64(1 << 40),
        Value::F32(f32::NAN),
        Value::F32(f32::INFINITY),
        Value::F32(0.0),
        Value::F32(1.0),
        Value::F32(-1.0),
        Value::F32(1e-38),
        Value::F32(1e38),
        Value::F64(1e300),
        Value::Str("yarn".into()),
        Value::Str("linear".into()),
        Value::Str(String::new()),
        Value::Bool(true),
        Value::Array(Array::U32(vec![2; 3])),
    ];
    values[at % values.len()].clone()
}

/// A value of GGUF metadata in JSON, as far as it has one.
fn as_json(value: Value) -> Json {
    match value {
        Value::U32(x) => x.into(),
        Value::I32(x) => x.into(),
        Value::U64(x) => x.into(),
        Value::F32(x) => f64::from(x).into(),
        Value::F64(x) => x.into(),
        Value::Str(x) => x.into(),
        Value::Bool(x) => x.into(),
        _ => Json::Array(vec![2.into(); 3]),
    }
}

/// Descriptions with one or two wrong values are refused, or give a model that answers or fails: nothing panics, and
/// nothing is allocated for sizes that are only claimed.
#[test]
fn wrong_descriptions_are_refused_or_harmless() {
    let (mut refused, mut answered) = (0, 0);
    let mut check = |source: Source| {
        let options = EngineOptions { threads: 1, kv_bytes: 1 << 24, ..EngineOptions::default() };
        let Ok(engine) = Engine::open(source, options) else {
            refused += 1;
            return;
        };
        answered += 1;
        // A context of a token or two, or a KV cache that no page fits, is an answer too.
        if let Ok(events) = engine.generate(Request::new(vec![1, 2, 3]).max_tokens(3)) {
            assert!(events.map(|event| event.unwrap()).any(|event| event.is_last()));
        }
    };
    for (seed, name) in (1..).zip(["llama3_rope", "llama_yarn", "llama_linear_bias"]) {
        let path = format!("architectures/{name}");
        let config = json(golden(&path).join("config.json"));
        let weights = Bytes::new(fs::read(golden(&path).join("model.safetensors")).unwrap());
        let (model_keys, model_tensors) = (keys(&config), model_tensors(&path, &config));
        let more = ["factor", "attn_factor", "yarn_beta_fast", "yarn_beta_slow", "original_context_length"];
        let more = more.map(|key| format!("llama.rope.scaling.{key}"));
        let mut random = random(seed, 1.0, 10_000).into_iter().map(|x| ((x + 1.0) * 5e5) as usize);
        let mut next = |below: usize| random.next().unwrap() % below;
        for _ in 0..600 {
            let (mut changed, mut fields) = (model_keys.clone(), config.clone());
            for _ in 0..1 + next(2) {
                let value = odd_value(next(1000));
                let at = next(changed.len() + more.len());
                let key =
                    changed.get(at).map_or_else(|| more[at % more.len()].clone(), |(key, _)| key.clone());
                changed.retain(|(name, _)| *name != key);
                changed.push((key, value.clone()));

                let fields = match next(2) {
                    0 => fields.as_object_mut().unwrap(),
                    _ => match fields["rope_parameters"].as_object_mut() {
                        Some(rope) => rope,
                        None => continue,
                    },
                };
                let at = next(fields.len());
                *fields.values_mut().nth(at).unwrap() = as_json(value);
            }
            let mut file = GgufWriter::new();
            for (key, value) in changed {
                file.key(key, value);
            }
            for (name, tensor) in &model_tensors {
                file.tensor(name.clone(), tensor.clone());
            }
            check(bytes(&file).into());
            let fields = Bytes::new(fields.to_string().into_bytes());
            let files = vec![("config.json".into(), fields), ("model.safetensors".into(), weights.clone())];
            check(Source::files(files).unwrap());
        }
    }
    println!("{refused} refused, {answered} answered");
    assert!(refused > 500 && answered > 500, "{refused} refused, {answered} answered");
}
