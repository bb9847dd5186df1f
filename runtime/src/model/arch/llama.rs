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
    let scaling = gguf_scaling(&keys.under("rope."), tensors.rope_factors.as_deref(), context)?;
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

/// `rope.scaling.*` and `rope_freqs.weight` as llama.cpp applies them: a factor without a type, or under its old name
/// `rope.scale_linear`, is linear, and linear scaling comes on top of stored `factors`.
fn gguf_scaling(keys: &Reader<'_>, factors: Option<&[f32]>, context: usize) -> Result<Scaling, Error> {
    let scaling = keys.under("scaling.");
    let old = keys.number("scale_linear")?.filter(|&factor| factor != 0.0);
    let factor = scaling.number("factor")?.or(old);
    let needed = || factor.map_or_else(|| scaling.needed("factor"), Ok);
    let wrong = |expected: &str, found| Err(unsupported(scaling.name("type"), expected.to_owned(), found));
    let linear = match scaling.text("type")?.as_deref() {
        None => factor.filter(|&factor| factor != 0.0).unwrap_or(1.0),
        Some("none") => 1.0,
        Some("linear") => needed()?,
        Some("yarn") if factors.is_some() => return wrong("no rope_freqs.weight beside yarn", "both".into()),
        Some("yarn") => return gguf_yarn(&scaling, needed()?, context),
        Some(other) => return wrong("none, linear or yarn", format!("\"{other}\"")),
    };
    scaling.only("attn_factor", Value::Float(1.0))?;
    Ok(match factors {
        Some(factors) => Scaling::Factors(factors.iter().map(|factor| factor * linear as f32).collect()),
        None if linear == 1.0 => Scaling::None,
        None => Scaling::Linear { factor: linear },
    })
}

/// YaRN, whose attention factor llama.cpp computes itself and only multiplies by `attn_factor`.
fn gguf_yarn(scaling: &Reader<'_>, factor: f64, context: usize) -> Result<Scaling, Error> {
    // Mixes less of the ramp in, overrules the attention factor, belongs to other architectures.
    for (key, without_effect) in [("ext_factor", 1.0), ("attn_factor", 1.0), ("log_multiplier", 0.0)] {
        scaling.only(&format!("yarn_{key}"), Value::Float(without_effect))?;
    }
    let attention = Scaling::yarn_attention(factor, None) * scaling.number("attn_factor")?.unwrap_or(1.0);
    Ok(Scaling::Yarn {
        factor,
        original_context: scaling.size_or("original_context_length", context)?,
        beta_fast: scaling.number("yarn_beta_fast")?.unwrap_or(32.0),
        beta_slow: scaling.number("yarn_beta_slow")?.unwrap_or(1.0),
        truncate: true,
        attention,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs<'a> = &'a [(&'a str, Value)];

    fn lookup(pairs: Pairs<'_>, changes: Pairs<'_>, key: &str) -> Option<Value> {
        let find = |pairs: Pairs<'_>| pairs.iter().find(|(name, _)| *name == key).map(|(_, v)| v.clone());
        find(changes).or_else(|| find(pairs)).filter(|value| *value != Value::Text("absent".into()))
    }

    /// The configuration of a small GGUF file with these keys changed.
    fn gguf(changes: Pairs<'_>, biases: bool, factors: Option<Vec<f32>>) -> Result<Config, String> {
        let keys = [
            ("llama.embedding_length", Value::Int(64)),
            ("llama.block_count", Value::Int(2)),
            ("llama.feed_forward_length", Value::Int(160)),
            ("llama.attention.head_count", Value::Int(4)),
            ("llama.attention.layer_norm_rms_epsilon", Value::Float(1e-6)),
            ("llama.context_length", Value::Int(4096)),
        ];
        let find = |key: &str| lookup(&keys, changes, key);
        let shape = |name: &str| match name {
            "token_embd.weight" => Some(vec![320, 64]),
            "blk.0.attn_q.bias" | "blk.0.ffn_up.bias" if biases => Some(vec![64]),
            _ => None,
        };
        let tensors = Tensors { shape: &shape, rope_factors: factors };
        from_gguf(&Reader::new("llama.", &find), &tensors).map_err(|error| error.to_string())
    }

    /// The configuration of a small config.json with these fields changed.
    fn json(changes: Pairs<'_>) -> Result<Config, String> {
        let fields = [
            ("hidden_size", Value::Int(64)),
            ("num_hidden_layers", Value::Int(2)),
            ("intermediate_size", Value::Int(160)),
            ("num_attention_heads", Value::Int(4)),
            ("vocab_size", Value::Int(320)),
            ("max_position_embeddings", Value::Int(4096)),
        ];
        let find = |key: &str| lookup(&fields, changes, key);
        from_json(&Reader::new("", &find)).map_err(|error| error.to_string())
    }

    fn text(text: &str) -> Value {
        Value::Text(text.into())
    }

    #[test]
    fn containers_differ_in_what_they_leave_out() {
        let (gguf, json) = (gguf(&[], false, None).unwrap(), json(&[]).unwrap());
        assert_eq!((gguf.head_dim, gguf.kv_heads, gguf.vocab, gguf.rope.rotary), (16, 4, 320, 16));
        assert!(gguf.tied_head && !json.tied_head);
        assert_eq!((gguf.rope.layout, json.rope.layout), (RopeLayout::Interleaved, RopeLayout::Halves));
        let as_gguf = Rope { layout: RopeLayout::Interleaved, ..json.rope };
        assert_eq!(gguf, Config { tied_head: true, rope: as_gguf, ..json });
    }

    #[test]
    fn old_and_new_rope_fields_agree() {
        let new = [
            ("rope_parameters", Value::Other),
            ("rope_parameters.rope_type", text("llama3")),
            ("rope_parameters.rope_theta", Value::Float(5e5)),
            ("rope_parameters.factor", Value::Int(8)),
            ("rope_parameters.low_freq_factor", Value::Int(1)),
            ("rope_parameters.high_freq_factor", Value::Int(4)),
            ("rope_parameters.original_max_position_embeddings", Value::Int(1024)),
        ];
        let old = [
            ("rope_theta", Value::Float(5e5)),
            ("rope_scaling", Value::Other),
            ("rope_scaling.type", text("llama3")),
            ("rope_scaling.factor", Value::Float(8.0)),
            ("rope_scaling.low_freq_factor", Value::Float(1.0)),
            ("rope_scaling.high_freq_factor", Value::Float(4.0)),
            ("rope_scaling.original_max_position_embeddings", Value::Int(1024)),
        ];
        assert_eq!(json(&new), json(&old));
        assert!(matches!(json(&new).unwrap().rope.scaling, Scaling::Llama3 { original_context: 1024, .. }));
    }

    #[test]
    fn yarn_is_the_same_in_both_containers() {
        let gguf_yarn = [
            ("llama.rope.scaling.type", text("yarn")),
            ("llama.rope.scaling.factor", Value::Float(4.0)),
            ("llama.rope.scaling.original_context_length", Value::Int(1024)),
        ];
        let json_yarn = [
            ("rope_scaling", Value::Other),
            ("rope_scaling.rope_type", text("yarn")),
            ("rope_scaling.factor", Value::Float(4.0)),
            ("rope_scaling.original_max_position_embeddings", Value::Int(1024)),
        ];
        let (gguf, json) = (gguf(&gguf_yarn, false, None).unwrap(), json(&json_yarn).unwrap());
        assert_eq!(gguf.rope.scaling, json.rope.scaling);
        assert!(matches!(gguf.rope.scaling, Scaling::Yarn { beta_fast: 32.0, truncate: true, .. }));
    }

    #[test]
    fn gguf_files_leave_out_the_type_of_linear_scaling() {
        let factor = |key: &'static str| gguf(&[(key, Value::Float(4.0))], false, None).unwrap().rope.scaling;
        assert_eq!(factor("llama.rope.scaling.factor"), Scaling::Linear { factor: 4.0 });
        assert_eq!(factor("llama.rope.scale_linear"), Scaling::Linear { factor: 4.0 });
        let none =
            [("llama.rope.scaling.type", text("none")), ("llama.rope.scaling.factor", Value::Float(4.0))];
        assert_eq!(gguf(&none, false, None).unwrap().rope.scaling, Scaling::None);
        assert_eq!(
            gguf(&[("llama.rope.scaling.factor", Value::Float(0.0))], false, None),
            gguf(&[], false, None)
        );
        let both = gguf(&[("llama.rope.scaling.factor", Value::Float(2.0))], false, Some(vec![3.0; 8]));
        assert_eq!(both.unwrap().rope.scaling, Scaling::Factors(vec![6.0; 8]));
    }

    #[test]
    fn tensors_of_a_gguf_file_say_the_rest() {
        let config = gguf(&[], true, Some(vec![1.0; 8])).unwrap();
        assert!(config.attention_bias && config.mlp_bias && !config.output_bias);
        assert_eq!(config.rope.scaling, Scaling::Factors(vec![1.0; 8]));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let table = [
            (
                gguf(&[("llama.rope.scaling.type", text("longrope"))], false, None),
                "`llama.rope.scaling.type`",
            ),
            (
                gguf(&[("llama.rope.scaling.type", text("linear"))], false, None),
                "`llama.rope.scaling.factor`",
            ),
            (
                gguf(&[("llama.rope.scaling.type", text("yarn"))], false, Some(vec![1.0; 8])),
                "expected no rope_freqs.weight beside yarn",
            ),
            (
                gguf(&[("llama.rope.scaling.attn_factor", Value::Float(2.0))], false, None),
                "`llama.rope.scaling.attn_factor`",
            ),
            (gguf(&[("llama.expert_count", Value::Int(8))], false, None), "`llama.expert_count`: expected 0"),
            (gguf(&[("llama.attention.value_length", Value::Int(8))], false, None), "value_length"),
            (gguf(&[("llama.block_count", text("absent"))], false, None), "`llama.block_count`"),
            (gguf(&[("llama.attention.head_count", Value::Other)], false, None), "an array or object"),
            (gguf(&[("llama.rope.dimension_count", Value::Int(64))], false, None), "at most 16"),
            (gguf(&[], false, Some(vec![1.0; 3])), "rope_freqs.weight"),
            (json(&[("quantization_config", Value::Other)]), "`quantization_config`"),
            (json(&[("rope_scaling", Value::Other), ("rope_scaling.type", text("ntk"))]), "\"ntk\""),
            (json(&[("num_attention_heads", Value::Int(-4))]), "`num_attention_heads`: expected a size"),
            (json(&[("rms_norm_eps", Value::Float(-1.0))]), "epsilon"),
        ];
        for (found, part) in table {
            let message = found.expect_err(part);
            assert!(message.contains(part), "expected {part:?} in {message:?}");
        }
    }
}
