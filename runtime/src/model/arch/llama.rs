//! Llama 1 to 3 and what is built alike: SmolLM, TinyLlama, Vicuna, Yi and many others.

use graftwork_kernels::backend::{Activation, RopeLayout};

use super::{Architecture, Names, Tensors};
use crate::model::config::{Config, Error, Reader, Value, scaling, unsupported};
use crate::model::rope::{Rope, Scaling};

/// The table row.
pub const LLAMA: Architecture = Architecture {
    name: "llama",
    model_type: "llama",
    gguf: Names {
        embedding: "token_embd",
        norm: "output_norm",
        head: "output",
        layer: "blk.{}.",
        attention_norm: "attn_norm",
        ffn_norm: "ffn_norm",
        linears: ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"],
        ignored: &["rope_freqs.weight", ".attn_rot_embd"],
    },
    hugging_face: Names {
        embedding: "model.embed_tokens",
        norm: "model.norm",
        head: "lm_head",
        layer: "model.layers.{}.",
        attention_norm: "input_layernorm",
        ffn_norm: "post_attention_layernorm",
        linears: [
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ],
        ignored: &[".rotary_emb.inv_freq"],
    },
    from_gguf,
    from_json,
};

fn from_gguf(keys: &Reader<'_>, tensors: &Tensors<'_>) -> Result<Config, Error> {
    keys.only("expert_count", Value::Int(0))?;
    let hidden = keys.size("embedding_length")?;
    let heads = keys.size("attention.head_count")?;
    let head_dim = keys.size_or("attention.key_length", hidden / heads.max(1))?;
    let value_dim = keys.size_or("attention.value_length", head_dim)?;
    if value_dim != head_dim {
        return Err(unsupported(keys.name("attention.value_length"), head_dim.to_string(), value_dim));
    }
    let context = keys.size("context_length")?;
    let scaling = match &tensors.rope_factors {
        Some(factors) => Scaling::Factors(factors.clone()),
        None => gguf_scaling(&keys.under("rope.scaling."), context)?,
    };
    let rows = (tensors.shape)("token_embd.weight").and_then(|shape| shape.first().copied());
    let vocab = match rows.map(usize::try_from) {
        Some(Ok(vocab)) => vocab,
        _ => return Err(Error::Missing { key: "token_embd.weight".into(), expected: "the embedding" }),
    };
    Config {
        architecture: "llama",
        hidden,
        layers: keys.size("block_count")?,
        heads,
        kv_heads: keys.size_or("attention.head_count_kv", heads)?,
        head_dim,
        ffn: keys.size("feed_forward_length")?,
        vocab,
        context,
        norm_eps: keys.needed("attention.layer_norm_rms_epsilon")? as f32,
        rope: Rope {
            theta: keys.number("rope.freq_base")?.unwrap_or(10_000.0),
            rotary: keys.size_or("rope.dimension_count", head_dim)?,
            layout: RopeLayout::Interleaved,
            scaling,
        },
        tied_head: !tensors.has("output.weight"),
        attention_bias: tensors.has("blk.0.attn_q.bias"),
        output_bias: tensors.has("blk.0.attn_output.bias"),
        mlp_bias: tensors.has("blk.0.ffn_up.bias"),
        activation: Activation::Silu,
    }
    .check()
}

/// `rope.scaling.*` as llama.cpp reads it: the same rules as in config.json, under other names.
fn gguf_scaling(keys: &Reader<'_>, context: usize) -> Result<Scaling, Error> {
    let kind = keys.text("type")?.unwrap_or_else(|| "none".into());
    match kind.as_str() {
        "none" => Ok(Scaling::None),
        "linear" => Ok(Scaling::Linear { factor: keys.needed("factor")? }),
        "yarn" => {
            let factor = keys.needed("factor")?;
            keys.only("yarn_ext_factor", Value::Float(1.0))?;
            Ok(Scaling::Yarn {
                factor,
                original_context: keys.size_or("original_context_length", context)?,
                beta_fast: keys.number("yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.number("yarn_beta_slow")?.unwrap_or(1.0),
                truncate: true,
                attention: Scaling::yarn_attention(factor, None)
                    * keys.number("attn_factor")?.unwrap_or(1.0)
                    * keys.number("yarn_attn_factor")?.unwrap_or(1.0),
            })
        }
        other => {
            Err(unsupported(keys.name("type"), "none, linear or yarn".into(), format!("\"{other}\"")))
        }
    }
}

fn from_json(fields: &Reader<'_>) -> Result<Config, Error> {
    fields.only("hidden_act", Value::Text("silu".into()))?;
    if let Some(found) = fields.get("quantization_config") {
        return Err(unsupported("quantization_config", "unquantized weights".into(), found));
    }
    let hidden = fields.size("hidden_size")?;
    let heads = fields.size("num_attention_heads")?;
    let head_dim = fields.size_or("head_dim", hidden / heads.max(1))?;
    let context = fields.size("max_position_embeddings")?;
    let bias = fields.flag("attention_bias", false)?;
    Config {
        architecture: "llama",
        hidden,
        layers: fields.size("num_hidden_layers")?,
        heads,
        kv_heads: fields.size_or("num_key_value_heads", heads)?,
        head_dim,
        ffn: fields.size("intermediate_size")?,
        vocab: fields.size("vocab_size")?,
        context,
        norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope: json_rope(fields, head_dim, context)?,
        tied_head: fields.flag("tie_word_embeddings", false)?,
        attention_bias: bias,
        output_bias: bias,
        mlp_bias: fields.flag("mlp_bias", false)?,
        activation: Activation::Silu,
    }
    .check()
}

/// `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` with its `type` of before.
fn json_rope(fields: &Reader<'_>, head_dim: usize, context: usize) -> Result<Rope, Error> {
    let group = ["rope_parameters", "rope_scaling"].into_iter().find(|group| fields.get(group).is_some());
    let rope = fields.under(&format!("{}.", group.unwrap_or("rope_parameters")));
    let kind = match (rope.text("rope_type")?, rope.text("type")?) {
        (Some(kind), _) | (None, Some(kind)) => kind,
        (None, None) => "default".into(),
    };
    let theta = match rope.number("rope_theta")? {
        Some(theta) => theta,
        None => fields.number("rope_theta")?.unwrap_or(10_000.0),
    };
    let partial = match rope.number("partial_rotary_factor")? {
        Some(partial) => partial,
        None => fields.number("partial_rotary_factor")?.unwrap_or(1.0),
    };
    Ok(Rope {
        theta,
        rotary: (head_dim as f64 * partial) as usize,
        layout: RopeLayout::Halves,
        scaling: scaling(&rope, &kind, fields.size_or("original_max_position_embeddings", context)?)?,
    })
}
