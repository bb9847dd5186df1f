//! The metadata of a GGUF file for a model that comes as a Hugging Face directory, as llama.cpp's converter writes it.

use graftwork_adapters::file::HfModel;
use graftwork_adapters::file::gguf::Value;

use super::Error;
use crate::model::Config;
use crate::model::rope::Scaling;
use crate::text::NO_TOKENIZER;
use crate::tokenize::{Files, Vocabulary};

/// Architectures whose keys this file knows.
const KNOWN: &[&str] = &["llama"];

/// All keys, but what the file type decides.
pub fn describe(model: &HfModel, config: &Config, name: &str) -> Result<Vec<(String, Value)>, Error> {
    let text = |text: &str| Value::Str(text.to_owned());
    let mut keys = vec![
        ("general.architecture".to_owned(), text(config.architecture)),
        ("general.type".to_owned(), text("model")),
        ("general.name".to_owned(), text(name)),
    ];
    let own = of_config(config)?;
    keys.extend(own.into_iter().map(|(key, value)| (format!("{}.{key}", config.architecture), value)));
    match &model.tokenizer {
        None => keys.push(("tokenizer.ggml.model".to_owned(), text(NO_TOKENIZER))),
        Some(tokenizer) => {
            let files = Files {
                tokenizer,
                sentence_piece: model.sentence_piece.as_deref(),
                config: model.tokenizer_config.as_ref(),
                model: &model.config,
                chat_template: model.chat_template.as_deref(),
            };
            let vocabulary = Vocabulary::from_files(&files, config.vocab).map_err(crate::Error::from)?;
            keys.extend(vocabulary.into_metadata());
        }
    }
    Ok(keys)
}

/// The keys of an architecture, without its name.
fn of_config(config: &Config) -> Result<Vec<(&'static str, Value)>, Error> {
    let unwritable = |what: &str, expected: String, found: String| {
        Err(Error::Unwritable { what: format!("config.json: {what}"), expected, found })
    };
    if !KNOWN.contains(&config.architecture) {
        return unwritable("model_type", KNOWN.join(" or "), config.architecture.to_owned());
    }
    let number = |n: usize| Value::U32(n as u32);
    let float = |x: f64| Value::F32(x as f32);
    let rope = &config.rope;
    if rope.rotary != config.head_dim {
        let what = "partial_rotary_factor";
        return unwritable(what, "1".into(), format!("{} of {}", rope.rotary, config.head_dim));
    }
    let mut keys = vec![
        ("block_count", number(config.layers)),
        ("context_length", number(config.context)),
        ("embedding_length", number(config.hidden)),
        ("feed_forward_length", number(config.ffn)),
        ("attention.head_count", number(config.heads)),
        ("attention.head_count_kv", number(config.kv_heads)),
        ("rope.freq_base", float(rope.theta)),
        ("attention.layer_norm_rms_epsilon", Value::F32(config.norm_eps)),
        ("vocab_size", number(config.vocab)),
        ("rope.dimension_count", number(rope.rotary)),
    ];
    if config.heads * config.head_dim != config.hidden {
        keys.push(("attention.key_length", number(config.head_dim)));
        keys.push(("attention.value_length", number(config.head_dim)));
    }
    match rope.scaling {
        // As divisors, in a tensor.
        Scaling::None | Scaling::Llama3 { .. } | Scaling::Factors(_) => {}
        Scaling::Linear { factor } => {
            keys.push(("rope.scaling.type", Value::Str("linear".into())));
            keys.push(("rope.scaling.factor", float(factor)));
        }
        Scaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, attention } => {
            let usual = Scaling::yarn_attention(factor, None);
            if !truncate || attention != usual {
                let expected = format!("attention_factor {usual} and truncate");
                return unwritable("rope_parameters", expected, format!("{attention} and {truncate}"));
            }
            keys.push(("rope.scaling.type", Value::Str("yarn".into())));
            keys.push(("rope.scaling.factor", float(factor)));
            keys.push(("rope.scaling.original_context_length", number(original_context)));
            for (key, beta, default) in [
                ("rope.scaling.yarn_beta_fast", beta_fast, 32.0),
                ("rope.scaling.yarn_beta_slow", beta_slow, 1.0),
            ] {
                keys.extend((beta != default).then_some((key, float(beta))));
            }
        }
    }
    Ok(keys)
}
