//! The order of query and key rows: the same base and the same adapter, each in both containers.

use graftwork::{Engine, EngineOptions};
use graftwork_adapters::file::{GgufWriter, gguf::Value};
use graftwork_adapters::{Module, Source};
use graftwork_kernels::{Bytes, Tensor};
use graftwork_tests::reference::{Closeness, Expected, golden, tensors};

const HEAD_DIM: usize = 16;

/// Tensor names of a layer in Hugging Face and GGUF files, in the order of [`Module::ALL`].
const LINEARS: [(&str, &str); Module::ALL.len()] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Puts the two halves of each head's rows by turns, as llama.cpp's converter does with queries and keys.
fn interleaved(tensor: &Tensor) -> Tensor {
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let values = tensor.decode();
    let mut out = vec![0.0; values.len()];
    for row in 0..rows {
        let (head, within) = (row / HEAD_DIM, row % HEAD_DIM);
        let (half, pair) = (within / (HEAD_DIM / 2), within % (HEAD_DIM / 2));
        let target = head * HEAD_DIM + 2 * pair + half;
        out[target * cols..][..cols].copy_from_slice(&values[row * cols..][..cols]);
    }
    Tensor::encode(tensor.format(), rows, cols, &out).unwrap()
}

fn bytes(writer: &GgufWriter) -> Source {
    let mut out = Vec::new();
    writer.write(&mut out).unwrap();
    Bytes::new(out).into()
}

/// The GGUF name of a linear layer's tensor, and its rows as a GGUF file has them.
fn converted(name: &str, tensor: Tensor, rows_are_outputs: bool) -> (String, Tensor) {
    let rest = name.strip_prefix("model.layers.").expect("a layer");
    let (layer, part) = rest.split_once('.').expect("a part of a layer");
    let (_, gguf) = LINEARS.iter().find(|(hf, _)| *hf == part).expect("a linear layer");
    let rotated = rows_are_outputs && matches!(*gguf, "attn_q" | "attn_k");
    (format!("blk.{layer}.{gguf}"), if rotated { interleaved(&tensor) } else { tensor })
}

/// The tiny base as a GGUF file, values unchanged.
fn base_as_gguf() -> Source {
    let mut file = GgufWriter::new();
    file.key("general.architecture", Value::Str("llama".into()));
    let sizes = [
        ("embedding_length", 128),
        ("block_count", 3),
        ("feed_forward_length", 352),
        ("attention.head_count", 8),
        ("attention.head_count_kv", 2),
        ("context_length", 512),
        ("rope.dimension_count", HEAD_DIM as u32),
    ];
    for (key, value) in sizes {
        file.key(format!("llama.{key}"), Value::U32(value));
    }
    file.key("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    file.key("llama.rope.freq_base", Value::F32(10_000.0));
    for (name, tensor) in tensors("adapters/base/model.safetensors") {
        let name = name.strip_suffix(".weight").unwrap();
        let (name, tensor) = match name {
            "model.embed_tokens" => ("token_embd".to_owned(), tensor),
            "model.norm" => ("output_norm".to_owned(), tensor),
            "lm_head" => ("output".to_owned(), tensor),
            _ => match name.strip_suffix(".input_layernorm") {
                Some(layer) => (norm(layer, "attn_norm"), tensor),
                None => match name.strip_suffix(".post_attention_layernorm") {
                    Some(layer) => (norm(layer, "ffn_norm"), tensor),
                    None => converted(name, tensor, true),
                },
            },
        };
        file.tensor(format!("{name}.weight"), tensor);
    }
    bytes(&file)
}

fn norm(layer: &str, name: &str) -> String {
    format!("{}.{name}", layer.replace("model.layers", "blk"))
}

/// A PEFT LoRA as llama.cpp's converter writes it.
fn lora_as_gguf(name: &str, alpha: f32) -> Source {
    let mut file = GgufWriter::new();
    file.key("general.type", Value::Str("adapter".into()));
    file.key("general.architecture", Value::Str("llama".into()));
    file.key("adapter.type", Value::Str("lora".into()));
    file.key("adapter.lora.alpha", Value::F32(alpha));
    for (name, tensor) in tensors(&format!("adapters/{name}/adapter_model.safetensors")) {
        let name = name.strip_prefix("base_model.model.").unwrap();
        let (name, is_b) = match name.strip_suffix(".lora_A.weight") {
            Some(name) => (name, false),
            None => (name.strip_suffix(".lora_B.weight").expect("A or B"), true),
        };
        let (name, tensor) = converted(name, tensor, is_b);
        file.tensor(format!("{name}.weight.lora_{}", if is_b { "b" } else { "a" }), tensor);
    }
    bytes(&file)
}

/// All four pairs of {PEFT, GGUF} adapter and {Hugging Face, GGUF} base give peft's logits; and the two bases
/// each other's, to the 1e-4 that rounding in rotations of reordered rows may cost.
#[test]
fn four_pairs_of_containers_agree() {
    let options = || EngineOptions { threads: 2, ..EngineOptions::default() };
    let hugging_face = Engine::open(golden("adapters/base"), options()).unwrap();
    let gguf = Engine::open(base_as_gguf(), options()).unwrap();
    for name in ["lora", "lora_all", "lora_bias"] {
        let expected = Expected::read(&format!("adapters/{name}/expected.safetensors"), "logits");
        let path = golden(&format!("adapters/{name}"));
        let config = std::fs::read(path.join("adapter_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
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
