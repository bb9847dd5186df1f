//! The same model and the same adapters in every container that they come in.

mod compressed;
mod convert;
mod deltas;
mod seeds;
mod wrong;

use std::fs;
use std::path::PathBuf;

use convert::{
    bytes, json, keys, lora_as_gguf, lora_file, model_as_gguf, model_in, model_tensors, safetensors_shards,
};
use graftwork::{Bytes, Engine, EngineOptions, Format, Request};
use graftwork_adapters::Source;
use graftwork_adapters::file::{GgufWriter, gguf::Value};
use graftwork_kernels::Tensor;
use graftwork_tests::reference::{ADAPTERS, Closeness, Expected, golden};

fn open(source: impl Into<Source>) -> Engine {
    Engine::open(source, EngineOptions { threads: 2, ..EngineOptions::default() }).unwrap()
}

/// All four pairs of {PEFT, GGUF} adapter and {Hugging Face, GGUF} base give peft's logits; and the two bases
/// each other's, to the 1e-4 that rounding in rotations of reordered rows may cost.
#[test]
fn four_pairs_of_containers_agree() {
    let (hugging_face, gguf) = (open(golden("adapters/base")), open(model_as_gguf("adapters/base")));
    for name in ["lora", "lora_all", "lora_bias", "alora"] {
        let expected = Expected::read(&format!("adapters/{name}/expected.safetensors"), "logits");
        let path = golden(&format!("adapters/{name}"));
        let config = json(path.join("adapter_config.json"));
        let mut adapters = vec![(format!("{name}-peft"), Source::from(path))];
        // GGUF LoRAs have no biases.
        if name != "lora_bias" {
            let alpha = config["lora_alpha"].as_f64().unwrap() as f32;
            adapters.push((format!("{name}-gguf"), lora_as_gguf(name, alpha)));
        }
        for (adapter, source) in adapters {
            let stack = [(adapter.clone(), 1.0)];
            let logits = [&hugging_face, &gguf].map(|engine| {
                engine.load_adapter(&adapter, source.clone()).unwrap_or_else(|e| panic!("{adapter}: {e}"));
                let closeness = expected.compare(|tokens| engine.logits(tokens, &stack).unwrap());
                assert!(closeness.max_difference <= 2e-3, "{adapter}: {closeness:?}");
                engine.logits(&expected.tokens[0], &stack).unwrap()
            });
            let Closeness { max_difference, .. } = Closeness::of(&logits[0], &logits[1]);
            println!("{adapter}: {max_difference}");
            assert!(max_difference <= 1e-4, "{adapter}: {max_difference}");
        }
    }
}

/// Every kind of adapter on the base as a GGUF file: in F32 as close to peft as on the Hugging Face directory, in Q8_0 at most
/// one and a half times as far from F32 as the base itself.
#[test]
fn every_kind_fits_gguf_bases() {
    let [exact, rounded] = [Format::F32, Format::Q8_0].map(|format| open(model_in(format, "adapters/base")));
    let mean = |expected: &Expected, stack: &[(String, f32)]| {
        let (mut sum, mut count) = (0.0, 0);
        for tokens in &expected.tokens {
            let [a, b] = [&exact, &rounded].map(|engine| engine.logits(tokens, stack).unwrap());
            sum += a.iter().zip(&b).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>();
            count += a.len();
        }
        sum / count as f64
    };
    let base = Expected::read("adapters/base/expected.safetensors", "logits");
    let own = mean(&base, &[]);
    for &name in ADAPTERS {
        let expected = Expected::read(&format!("adapters/{name}/expected.safetensors"), "logits");
        for engine in [&exact, &rounded] {
            engine.load_adapter(name, golden(&format!("adapters/{name}"))).unwrap();
        }
        let stack = [(name.to_owned(), 1.0)];
        let closeness = expected.compare(|tokens| exact.logits(tokens, &stack).unwrap());
        let rounding = mean(&expected, &stack);
        println!("{name}: {closeness:?}, rounding {rounding:.5} beside {own:.5}");
        assert!(closeness.max_difference <= 2e-3, "{name}: {closeness:?}");
        assert!(rounding <= 1.5 * own, "{name}: {rounding} beside {own}");
    }
}

/// Every scaling of the rotation and the optional biases, as GGUF files say them: in keys or in tensors.
#[test]
fn gguf_files_say_all_that_differs() {
    for name in ["llama3_rope", "llama_yarn", "llama_linear_bias"] {
        let path = format!("architectures/{name}");
        let engine = open(model_as_gguf(&path));
        let expected = Expected::read(&format!("{path}/expected.safetensors"), "logits");
        let closeness = expected.compare(|tokens| engine.logits(tokens, &[]).unwrap());
        println!("{name}: {closeness:?}");
        assert!(closeness.max_difference <= 1e-3, "{name}: {closeness:?}");
        let hugging_face = open(golden(&path)).logits(&expected.tokens[0], &[]).unwrap();
        let found = Closeness::of(&hugging_face, &engine.logits(&expected.tokens[0], &[]).unwrap());
        assert!(found.max_difference <= 1e-4, "{name}: {found:?}");
    }
}

/// One GGUF file, its shards on disk and in memory; and the Hugging Face files, sharded and in memory: equal to the bit.
#[test]
fn shards_and_memory_give_the_same_model() {
    let config = json(golden("adapters/base/config.json"));
    let all = model_tensors("adapters/base", &config);
    let shard = |number: usize| {
        let mut file = GgufWriter::new();
        if number == 0 {
            for (key, value) in keys(&config) {
                file.key(key, value);
            }
        }
        file.key("split.no", Value::U16(number as u16));
        file.key("split.count", Value::U16(3));
        file.key("split.tensors.count", Value::I32(all.len() as i32));
        for (name, tensor) in all.iter().skip(number).step_by(3) {
            file.tensor(name.clone(), tensor.clone());
        }
        (format!("m-{:05}-of-00003.gguf", number + 1), bytes(&file))
    };
    let shards: Vec<_> = [2, 0, 1].map(shard).into();
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("shards");
    fs::create_dir_all(&folder).unwrap();
    for (name, bytes) in &shards {
        fs::write(folder.join(name), &**bytes).unwrap();
    }
    let tokens: Vec<u32> = (0..50).map(|i| i * 37 % 512).collect();
    let logits = |source: Source| open(source).logits(&tokens, &[]).unwrap();
    let expected = logits(model_as_gguf("adapters/base").into());
    assert_eq!(logits(Source::from(folder.join("m-00002-of-00003.gguf"))), expected);
    assert_eq!(logits(Source::files(shards.clone()).unwrap()), expected);
    let refused =
        Engine::open(shards[0].1.clone(), EngineOptions::default()).err().expect("a part of a model");
    assert!(refused.to_string().contains("split.count"), "{refused}");

    let read =
        |name: &str| (name.to_owned(), Bytes::new(fs::read(golden("adapters/base").join(name)).unwrap()));
    let expected = logits(golden("adapters/base").into());
    let files = vec![read("config.json"), read("model.safetensors")];
    assert_eq!(logits(Source::files(files).unwrap()), expected);
    let files = safetensors_shards().into_iter().chain([read("config.json")]).collect();
    assert_eq!(logits(Source::files(files).unwrap()), expected);
}

/// Values in (-scale, scale), the same in every run.
fn random(seed: u32, scale: f32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state as f32 / u32::MAX as f32 - 0.5) * 2.0 * scale
    };
    (0..count).map(|_| next()).collect()
}

/// A GGUF LoRA of random values rounded to Q8_0, each factor stored in its format.
fn random_lora(formats: [Format; 2]) -> Source {
    const RANK: usize = 32;
    let mut file = lora_file(RANK as f32);
    let shapes = [("attn_q", 128, 128), ("attn_k", 32, 128), ("ffn_down", 128, 352)];
    for (seed, (name, outputs, inputs)) in (1..).zip(shapes) {
        let factors = [("a", RANK, inputs, formats[0]), ("b", outputs, RANK, formats[1])];
        for (factor, rows, cols, format) in factors {
            let values = random(seed * 2 + u32::from(factor == "b"), 0.1, rows * cols);
            let rounded = Tensor::encode(Format::Q8_0, rows, cols, &values).unwrap().decode().unwrap();
            let tensor = Tensor::encode(format, rows, cols, &rounded).unwrap();
            file.tensor(format!("blk.1.{name}.weight.lora_{factor}"), tensor);
        }
    }
    bytes(&file).into()
}

/// llama.cpp's converter can write LoRAs in Q8_0: they compute what their values say.
#[test]
fn quantized_loras_are_applied() {
    let tokens: Vec<u32> = (0..40).map(|i| i * 53 % 512).collect();
    let request = |name: &str| Request::new(tokens.clone()).adapter(name).max_tokens(4);
    for engine in [open(golden("adapters/base")), open(model_as_gguf("adapters/base"))] {
        let logits = |name: &str, formats: [Format; 2]| {
            engine.load_adapter(name, random_lora(formats)).unwrap();
            assert_eq!(engine.generate(request(name)).unwrap().count(), 5);
            engine.logits(&tokens, &[(name.to_owned(), 1.0)]).unwrap()
        };
        let base = engine.logits(&tokens, &[]).unwrap();
        let float = logits("float", [Format::F32, Format::F32]);
        assert_eq!(logits("b", [Format::F32, Format::Q8_0]), float);
        // With A in blocks, its input is rounded to 8 bits: half a 127th of the largest in a group at most, so well
        // below a hundredth of the change itself.
        let both = logits("both", [Format::Q8_0, Format::Q8_0]);
        let distance = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
        };
        let (change, error) = (distance(&float, &base), distance(&both, &float));
        println!("change {change}, error {error}");
        assert!(change > 1.0 && error < 0.01 * change, "change {change}, error {error}");
    }
}
