//! The same model and the same adapters in every container that they come in.

use std::fs;
use std::path::PathBuf;

use graftwork::{Bytes, Engine, EngineOptions, Format, Request};
use graftwork_adapters::file::{Dtype, GgufWriter, TensorView, gguf::Value, write_safetensors};
use graftwork_adapters::{Module, Source};
use graftwork_kernels::Tensor;
use graftwork_tests::reference::{Closeness, Expected, golden, tensors};
use serde_json::Value as Json;

const HEAD_DIM: usize = 16;

/// Names of the parts of a layer in Hugging Face and GGUF files: the linear layers in the order of [`Module::ALL`].
const PARTS: [(&str, &str); Module::ALL.len() + 2] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];

/// Puts the two halves of each head's rows (or of a vector's values) by turns, as llama.cpp's converter does with
/// queries and keys.
fn interleaved(tensor: &Tensor) -> Tensor {
    let (rows, cols) = match tensor.rows() {
        1 => (tensor.cols(), 1),
        rows => (rows, tensor.cols()),
    };
    let values = tensor.decode();
    let mut out = vec![0.0; values.len()];
    for row in 0..rows {
        let (head, within) = (row / HEAD_DIM, row % HEAD_DIM);
        let (half, pair) = (within / (HEAD_DIM / 2), within % (HEAD_DIM / 2));
        let target = head * HEAD_DIM + 2 * pair + half;
        out[target * cols..][..cols].copy_from_slice(&values[row * cols..][..cols]);
    }
    Tensor::encode(tensor.format(), tensor.rows(), tensor.cols(), &out).unwrap()
}

fn bytes(writer: &GgufWriter) -> Bytes {
    let mut out = Vec::new();
    writer.write(&mut out).unwrap();
    Bytes::new(out)
}

/// The GGUF name of a part of a layer, and its rows as a GGUF file has them.
fn converted(name: &str, tensor: Tensor, rows_are_outputs: bool) -> (String, Tensor) {
    let rest = name.strip_prefix("model.layers.").expect("a layer");
    let (layer, part) = rest.split_once('.').expect("a part of a layer");
    let (_, gguf) = PARTS.iter().find(|(hf, _)| *hf == part).expect("a known part");
    let rotated = rows_are_outputs && matches!(*gguf, "attn_q" | "attn_k");
    (format!("blk.{layer}.{gguf}"), if rotated { interleaved(&tensor) } else { tensor })
}

fn json(path: PathBuf) -> Json {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The keys of the GGUF file of a model in Hugging Face layout.
fn keys(config: &Json) -> Vec<(String, Value)> {
    let size = |field: &str| Value::U32(config[field].as_u64().expect(field) as u32);
    let rope = &config["rope_parameters"];
    let float = |value: &Json| Value::F32(value.as_f64().expect("a number") as f32);
    let mut keys = vec![
        ("embedding_length", size("hidden_size")),
        ("block_count", size("num_hidden_layers")),
        ("feed_forward_length", size("intermediate_size")),
        ("attention.head_count", size("num_attention_heads")),
        ("attention.head_count_kv", size("num_key_value_heads")),
        ("context_length", size("max_position_embeddings")),
        ("rope.dimension_count", size("head_dim")),
        ("attention.layer_norm_rms_epsilon", float(&config["rms_norm_eps"])),
        ("rope.freq_base", float(&rope["rope_theta"])),
    ];
    let kind = rope["rope_type"].as_str().unwrap();
    if ["linear", "yarn"].contains(&kind) {
        keys.push(("rope.scaling.type", Value::Str(kind.to_owned())));
        keys.push(("rope.scaling.factor", float(&rope["factor"])));
    }
    if let Some(context) = rope["original_max_position_embeddings"].as_u64().filter(|_| kind == "yarn") {
        keys.push(("rope.scaling.original_context_length", Value::U32(context as u32)));
    }
    let architecture = ("general.architecture".to_owned(), Value::Str("llama".into()));
    let keys = keys.into_iter().map(|(key, value)| (format!("llama.{key}"), value));
    [architecture].into_iter().chain(keys).collect()
}

/// What llama.cpp's converter stores instead of the parameters of Llama 3's scaling: a divisor per frequency.
fn stored_factors(rope: &Json) -> Tensor {
    let number = |field: &str| rope[field].as_f64().expect(field);
    let (low, high) = (number("low_freq_factor"), number("high_freq_factor"));
    let context = number("original_max_position_embeddings");
    let factor = |pair: usize| {
        let frequency = number("rope_theta").powf(-((2 * pair) as f64) / HEAD_DIM as f64);
        let wavelength = std::f64::consts::TAU / frequency;
        if wavelength < context / high {
            1.0
        } else if wavelength > context / low {
            number("factor")
        } else {
            let smooth = (context / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / number("factor") + smooth)
        }
    };
    let factors: Vec<f32> = (0..HEAD_DIM / 2).map(|pair| factor(pair) as f32).collect();
    Tensor::encode(Format::F32, 1, factors.len(), &factors).unwrap()
}

/// The tensors of the GGUF file of a model in Hugging Face layout, values unchanged.
fn model_tensors(path: &str, config: &Json) -> Vec<(String, Tensor)> {
    let convert = |(name, tensor): (String, Tensor)| {
        let (name, part) = name.rsplit_once('.').unwrap();
        let (name, tensor) = match name {
            "model.embed_tokens" => ("token_embd".to_owned(), tensor),
            "model.norm" => ("output_norm".to_owned(), tensor),
            "lm_head" => ("output".to_owned(), tensor),
            _ => converted(name, tensor, true),
        };
        (format!("{name}.{part}"), tensor)
    };
    let mut all: Vec<_> = tensors(&format!("{path}/model.safetensors")).into_iter().map(convert).collect();
    if config["rope_parameters"]["rope_type"] == "llama3" {
        all.push(("rope_freqs.weight".to_owned(), stored_factors(&config["rope_parameters"])));
    }
    all
}

/// A model in Hugging Face layout as a GGUF file.
fn model_as_gguf(path: &str) -> Bytes {
    let config = json(golden(path).join("config.json"));
    let mut file = GgufWriter::new();
    for (key, value) in keys(&config) {
        file.key(key, value);
    }
    for (name, tensor) in model_tensors(path, &config) {
        file.tensor(name, tensor);
    }
    bytes(&file)
}

/// An empty GGUF LoRA.
fn lora_file(alpha: f32) -> GgufWriter {
    let mut file = GgufWriter::new();
    file.key("general.type", Value::Str("adapter".into()));
    file.key("general.architecture", Value::Str("llama".into()));
    file.key("adapter.type", Value::Str("lora".into()));
    file.key("adapter.lora.alpha", Value::F32(alpha));
    file
}

/// A PEFT LoRA as llama.cpp's converter writes it.
fn lora_as_gguf(name: &str, alpha: f32) -> Source {
    let mut file = lora_file(alpha);
    for (name, tensor) in tensors(&format!("adapters/{name}/adapter_model.safetensors")) {
        let name = name.strip_prefix("base_model.model.").unwrap();
        let (name, is_b) = match name.strip_suffix(".lora_A.weight") {
            Some(name) => (name, false),
            None => (name.strip_suffix(".lora_B.weight").expect("A or B"), true),
        };
        let (name, tensor) = converted(name, tensor, is_b);
        file.tensor(format!("{name}.weight.lora_{}", if is_b { "b" } else { "a" }), tensor);
    }
    bytes(&file).into()
}

fn open(source: impl Into<Source>) -> Engine {
    Engine::open(source, EngineOptions { threads: 2, ..EngineOptions::default() }).unwrap()
}

/// All four pairs of {PEFT, GGUF} adapter and {Hugging Face, GGUF} base give peft's logits; and the two bases
/// each other's, to the 1e-4 that rounding in rotations of reordered rows may cost.
#[test]
fn four_pairs_of_containers_agree() {
    let (hugging_face, gguf) = (open(golden("adapters/base")), open(model_as_gguf("adapters/base")));
    for name in ["lora", "lora_all", "lora_bias"] {
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

/// The weights of the tiny base in two files, and their index.
fn safetensors_shards() -> Vec<(String, Bytes)> {
    let all = tensors("adapters/base/model.safetensors");
    let (mut files, mut map) = (Vec::new(), serde_json::Map::new());
    for number in 0..2 {
        let file = format!("model-{:05}-of-00002.safetensors", number + 1);
        let mine: Vec<_> = all.iter().skip(number).step_by(2).collect();
        // The norms are the only vectors.
        let shape = |t: &Tensor| [t.rows() as u64, t.cols() as u64][usize::from(t.rows() == 1)..].to_vec();
        let shapes: Vec<_> = mine.iter().map(|(_, tensor)| shape(tensor)).collect();
        let views: Vec<_> = (mine.iter().zip(&shapes))
            .map(|((name, tensor), shape)| TensorView {
                name,
                dtype: Dtype::F32,
                shape,
                bytes: tensor.bytes(),
            })
            .collect();
        let mut out = Vec::new();
        write_safetensors(&mut out, &views, &[]).unwrap();
        map.extend(mine.iter().map(|(name, _)| (name.clone(), Json::from(file.clone()))));
        files.push((file, Bytes::new(out)));
    }
    let index = serde_json::json!({"metadata": {"total_size": 0}, "weight_map": map}).to_string();
    files.push(("model.safetensors.index.json".to_owned(), Bytes::new(index.into_bytes())));
    files
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
            let rounded = Tensor::encode(Format::Q8_0, rows, cols, &values).unwrap().decode();
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
