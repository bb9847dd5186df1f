//! Models and adapters of one container in the form of another.

use std::fs;
use std::path::PathBuf;

use graftwork::{Bytes, Format};
use graftwork_adapters::file::gguf::{Array, Value};
use graftwork_adapters::file::{Dtype, GgufWriter, TensorView, write_safetensors};
use graftwork_adapters::{Module, Source};
use graftwork_kernels::Tensor;
use graftwork_tests::reference::{golden, tensors};
use serde_json::Value as Json;

/// Width of a head in every model here.
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
    let values = tensor.decode().unwrap();
    let mut out = vec![0.0; values.len()];
    for row in 0..rows {
        let (head, within) = (row / HEAD_DIM, row % HEAD_DIM);
        let (half, pair) = (within / (HEAD_DIM / 2), within % (HEAD_DIM / 2));
        let target = head * HEAD_DIM + 2 * pair + half;
        out[target * cols..][..cols].copy_from_slice(&values[row * cols..][..cols]);
    }
    Tensor::encode(tensor.format(), tensor.rows(), tensor.cols(), &out).unwrap()
}

/// The file.
pub fn bytes(writer: &GgufWriter) -> Bytes {
    let mut out = Vec::new();
    writer.write(&mut out).unwrap();
    Bytes::new(out)
}

/// The GGUF name of a part of a layer, and its rows as a GGUF file has them.
fn converted(name: &str, tensor: Tensor, rows_are_outputs: bool) -> (String, Tensor) {
    if name == "lm_head" {
        return ("output".to_owned(), tensor);
    }
    let rest = name.strip_prefix("model.layers.").expect("a layer");
    let (layer, part) = rest.split_once('.').expect("a part of a layer");
    let (_, gguf) = PARTS.iter().find(|(hf, _)| *hf == part).expect("a known part");
    let rotated = rows_are_outputs && matches!(*gguf, "attn_q" | "attn_k");
    (format!("blk.{layer}.{gguf}"), if rotated { interleaved(&tensor) } else { tensor })
}

/// A JSON file.
pub fn json(path: PathBuf) -> Json {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The keys of the GGUF file of a model in Hugging Face layout.
pub fn keys(config: &Json) -> Vec<(String, Value)> {
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
pub fn model_tensors(path: &str, config: &Json) -> Vec<(String, Tensor)> {
    gguf_tensors(tensors(&format!("{path}/model.safetensors")), config)
}

/// The tensors of a GGUF file with these weights, named as in Hugging Face files.
fn gguf_tensors(weights: Vec<(String, Tensor)>, config: &Json) -> Vec<(String, Tensor)> {
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
    let mut all: Vec<_> = weights.into_iter().map(convert).collect();
    if config["rope_parameters"]["rope_type"] == "llama3" {
        all.push(("rope_freqs.weight".to_owned(), stored_factors(&config["rope_parameters"])));
    }
    all
}

/// A model in Hugging Face layout as a GGUF file.
pub fn model_as_gguf(path: &str) -> Bytes {
    model_in(Format::F32, path)
}

/// The same with its linear layers in another format, where their rows are whole blocks.
pub fn model_in(format: Format, path: &str) -> Bytes {
    model_of(format, path, tensors(&format!("{path}/model.safetensors")))
}

/// The same with other weights.
pub fn model_of(format: Format, path: &str, weights: Vec<(String, Tensor)>) -> Bytes {
    let config = json(golden(path).join("config.json"));
    let mut file = GgufWriter::new();
    for (key, value) in keys(&config) {
        file.key(key, value);
    }
    for (name, tensor) in gguf_tensors(weights, &config) {
        let is_linear = tensor.rows() > 1 && name != "token_embd.weight";
        let tensor = match is_linear && tensor.cols().is_multiple_of(format.block_len()) {
            true => Tensor::encode(format, tensor.rows(), tensor.cols(), &tensor.decode().unwrap()).unwrap(),
            false => tensor,
        };
        file.tensor(name, tensor);
    }
    bytes(&file)
}

/// An empty GGUF LoRA.
pub fn lora_file(alpha: f32) -> GgufWriter {
    let mut file = GgufWriter::new();
    file.key("general.type", Value::Str("adapter".into()));
    file.key("general.architecture", Value::Str("llama".into()));
    file.key("adapter.type", Value::Str("lora".into()));
    file.key("adapter.lora.alpha", Value::F32(alpha));
    file
}

/// A PEFT LoRA as llama.cpp's converter writes it.
pub fn lora_as_gguf(name: &str, alpha: f32) -> Source {
    let mut file = lora_file(alpha);
    if let Some(tokens) =
        json(golden(&format!("adapters/{name}/adapter_config.json")))["alora_invocation_tokens"].as_array()
    {
        let tokens = tokens.iter().map(|token| token.as_u64().unwrap() as u32).collect();
        file.key("adapter.alora.invocation_tokens", Value::Array(Array::U32(tokens)));
    }
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

/// The weights of the tiny base in two files, and their index.
pub fn safetensors_shards() -> Vec<(String, Bytes)> {
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
