//! Adapters of the AdapterHub library `adapters`: bottlenecks, and its forms of LoRA and IA3.
//!
//! A directory holds `adapter_config.json`, whose field `config` says the method, and the tensors ([`WEIGHTS`]). With `r` the residual
//! stream before attention or feed-forward part and `h` what that gives, a bottleneck makes of `r + h`
//!
//! * `r + h + z(r + h)` (`original_ln_before`, `seq_bn`), `r + h + z(h)` (`double_seq_bn`), or `r + h + z(r)` (`is_parallel`, `par_bn`),
//!   with `z(u) = s (U f(D u + d) + e)`: at `layers.<l>.output_adapters` behind the feed-forward part, at `.attention_adapters` behind
//!   attention.
//!
//! LoRA is `y += (alpha / r) B A x`, IA3 `y *= alpha B`. (Poth et al., arXiv 2311.11077; `methods/modeling.py`, `methods/bottleneck.py`,
//! `methods/lora.py`, `models/llama`, `loading.py` of adapter-hub/adapters.)

use serde_json::{Value, json};

use crate::bottleneck::{self, Part, Scaling};
use crate::parts::{self, Keys, Reader, Suffixes};
use crate::peft::{Config, field, short};
use crate::{Adapter, Change, Edit, Error, Kind, Module, Place, Site, expand, names};
use graftwork_kernels::Tensor;

/// What the file of tensors may be called, the first there is.
pub(crate) const WEIGHTS: [&str; 2] = ["adapter.safetensors", "pytorch_adapter.bin"];

/// Fields beside `config`.
const AROUND: &[&str] = &[
    "config",
    "config_id",
    "hidden_size",
    "model_class",
    "model_name",
    "model_type",
    "name",
    "type",
    "version",
];

/// Fields of every method that do not change what a saved adapter computes.
const NO_EFFECT: &[&str] =
    &["architecture", "dropout", "dtype", "init_weights", "init_weights_seed", "leave_out"];

const BOTTLENECK: &[&str] = &[
    "is_parallel",
    "non_linearity",
    "original_ln_after",
    "original_ln_before",
    "residual_before_ln",
    "scaling",
    // The tensors say it.
    "mh_adapter",
    "output_adapter",
    "reduction_factor",
    // Of norms that Llama does not have there, and of options that must be on.
    "adapter_residual_before_ln",
    "factorized_phm_W",
    "factorized_phm_rule",
    "hypercomplex_nonlinearity",
    "inv_adapter_reduction_factor",
    "learn_phm",
    "phm_bias",
    "phm_c_init",
    "phm_dim",
    "phm_init_range",
    "phm_rank",
    "shared_W_phm",
    "shared_phm_rule",
    // Training.
    "stochastic_depth",
];

const LORA: &[&str] = &[
    "alpha",
    "composition_mode",
    "r",
    // The tensors say it.
    "attn_matrices",
    "intermediate_lora",
    "output_lora",
    "selfattn_lora",
];

/// Options of methods that are refused with a reason.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("inv_adapter", "invertible adapters of the embedding are not applied"),
    ("ln_after", "norms inside of bottlenecks are not applied"),
    ("ln_before", "norms inside of bottlenecks are not applied"),
    ("phm_layer", "compacters are not applied"),
    ("use_gating", "gates are means over the whole sequence"),
];

const BOTTLENECK_SUFFIXES: &Suffixes<Part> = &Suffixes {
    rows: &[
        (".adapter_down.0.weight", Part::Down, "the projection down"),
        (".adapter_down.0.bias", Part::DownBias, "its bias"),
        (".adapter_up.weight", Part::Up, "the projection up"),
        (".adapter_up.bias", Part::UpBias, "its bias"),
        (".scaling", Part::Scaling, "the scaling"),
    ],
    expected: "AdapterHub's bottleneck tensors are model.layers.<layer>.output_adapters.adapters.<name> or \
               .attention_adapters.adapters.<name>, with .adapter_down.0.weight, .adapter_down.0.bias, .adapter_up.weight, \
               .adapter_up.bias and .scaling",
};

const LORA_SUFFIXES: &Suffixes<Factor> = &Suffixes {
    rows: &[(".lora_A", Factor::A, "A"), (".lora_B", Factor::B, "B")],
    expected: "AdapterHub's LoRA tensors are model.layers.<layer>.<linear layer>.loras.<name>.lora_A and .lora_B",
};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Factor {
    A,
    B,
}

/// Whether a configuration is one of AdapterHub's: peft's have no field of this name.
pub(crate) fn is_one(config: &Config) -> bool {
    config.has("config") && !config.has("peft_type")
}

/// Reads an adapter.
pub(crate) fn read(around: &Config, reader: &Reader) -> Result<Adapter, Error> {
    around.check(AROUND, &[])?;
    let config = match around.get("config") {
        Some(value @ Value::Object(_)) => Config::new(value.clone())?,
        other => return Err(field("config", "an object", other.unwrap_or(&Value::Null))),
    };
    let model = around.str("model_type")?.unwrap_or_default();
    if model != "llama" {
        return Err(Error::Unsupported {
            what: format!("adapter field model_type = {}", short(&json!(model))),
            reason: "AdapterHub's files are read for llama only",
        });
    }
    let name = around.str("name")?.ok_or_else(|| field("name", "text", &Value::Null))?;
    let version = around.str("version")?;
    let before = is_before_1_1(version.unwrap_or_default())?;
    let (kind, edits) = match config.str("architecture").map_err(inside)? {
        None | Some("bottleneck") => {
            (Kind::Bottleneck, bottlenecks(&config, reader, name, version.is_none()))
        }
        Some("lora") => {
            let kind =
                if config.get("composition_mode") == Some(&json!("scale")) { Kind::Ia3 } else { Kind::Lora };
            (kind, lora(&config, reader, name, before))
        }
        Some(other) => {
            return Err(Error::Unsupported {
                what: format!("adapter field config.architecture = {}", short(&json!(other))),
                reason: "of AdapterHub's methods bottlenecks, LoRA and IA3 are applied",
            });
        }
    };
    let edits = edits.map_err(inside)?;
    let base_model = around.str("model_name")?.map(str::to_owned);
    Ok(Adapter { base_model, ..Adapter::new(kind, edits, reader.keys()) })
}

/// Says of a field that it is one of the fields in `config`.
fn inside(error: Error) -> Error {
    let inner = |field| format!("config.{field}");
    match error {
        Error::Field { field, expected, found } => Error::Field { field: inner(field), expected, found },
        Error::UnknownField { field, value } => Error::UnknownField { field: inner(field), value },
        other => other,
    }
}

/// The path without the `model.` that heads put before it, and its block.
fn block(path: &str) -> Option<(usize, &str)> {
    names::split_layer(path.strip_prefix("model.").unwrap_or(path).strip_prefix("layers.")?)
}

fn bottlenecks(config: &Config, reader: &Reader, name: &str, legacy: bool) -> Result<Vec<Edit>, Error> {
    config.check(&[NO_EFFECT, BOTTLENECK].concat(), UNSUPPORTED)?;
    let parallel = config.bool("is_parallel")?;
    let sum = config.bool("original_ln_before")?;
    let refuse = |name: &str, value: &Value| {
        let reason = "with this the residual stream would be added twice or not at all";
        Err(Error::Unsupported { what: format!("adapter field {name} = {}", short(value)), reason })
    };
    if !config.true_unless("original_ln_after")? {
        return refuse("original_ln_after", &json!(false));
    }
    if let Some(value) = config.get("residual_before_ln")
        && !parallel
        && value != &json!(true)
        && (sum || value != &json!(false))
    {
        return refuse("residual_before_ln", value);
    }
    let activation = activation(config, legacy)?;
    let texts = [("learned", Scaling::Learned), ("channel", Scaling::Channels)];
    let scaling = Scaling::read(config, &texts, 1.0)?;
    let place = if parallel { Place::Parallel } else { Place::Series };
    let site = |path: &str| {
        let (layer, position) = block(path)?;
        Some(match (position, parallel || sum) {
            ("attention_adapters", true) => Site::AfterAttention { layer },
            ("output_adapters", true) => Site::AfterFfn { layer },
            ("attention_adapters", false) => Site::Linear { layer, module: Module::O },
            ("output_adapters", false) => Site::Linear { layer, module: Module::Down },
            _ => return None,
        })
    };
    let between = format!(".adapters.{name}");
    let keys = Keys { before: "", between: &between, site: &site };
    let modules = reader.modules_by(keys, BOTTLENECK_SUFFIXES, &[], |_| true)?;
    let mut edits = parts::edits(modules.len())?;
    for (&site, module) in &modules {
        let change = bottleneck::change(reader, module, (place, activation, scaling), None, true)?;
        edits.push(Edit { site, change });
    }
    Ok(edits)
}

/// The activation; files without a version call two of them otherwise.
fn activation(config: &Config, legacy: bool) -> Result<crate::Activation, Error> {
    let name = config.str("non_linearity")?.unwrap_or("relu").to_lowercase();
    let name = match (legacy, name.as_str()) {
        (true, "gelu") => "gelu_new".to_owned(),
        (true, "gelu_orig") => "gelu".to_owned(),
        _ => name,
    };
    let named = Config::new(json!({"non_linearity": name}))?;
    bottleneck::activation(&named, "non_linearity", "relu")
}

fn lora(config: &Config, reader: &Reader, name: &str, before: bool) -> Result<Vec<Edit>, Error> {
    config.check(&[NO_EFFECT, LORA].concat(), UNSUPPORTED)?;
    let scales = match config.str("composition_mode")?.unwrap_or("add") {
        "add" => false,
        "scale" => true,
        other => return Err(field("composition_mode", "\"add\" or \"scale\"", &json!(other))),
    };
    let rank = config.rank("r")?.unwrap_or(if scales { 1 } else { 8 });
    let alpha = match config.number("alpha")? {
        // Versions before 1.1.0 trained with a scale of 1 whatever alpha was.
        _ if before => rank as f64,
        alpha => alpha.unwrap_or(if scales { 1.0 } else { 8.0 }),
    };
    let site = |path: &str| {
        let (layer, module) = block(path)?;
        names::hf_site(&format!("model.layers.{layer}.{module}"))
    };
    let between = format!(".loras.{name}");
    let keys = Keys { before: "", between: &between, site: &site };
    let modules = reader.modules_by(keys, LORA_SUFFIXES, &[], Site::is_linear)?;
    let mut edits = parts::edits(modules.len())?;
    for (&site, module) in &modules {
        let change = if scales {
            if module.has(&[Factor::A]) {
                return Err(module.unknown(Factor::A));
            }
            let name = module.need(Factor::B)?;
            let column = reader.matrix(name, [None, Some(1)])?;
            let row = Tensor::new(column.format(), 1, column.rows(), column.bytes().clone());
            let row = row.and_then(|row| expand::scaled(&row, alpha as f32));
            Change::OutputScale { values: row.map_err(|source| expand::failed(name, source))? }
        } else {
            let a = reader.matrix(module.need(Factor::A)?, [Some(rank), None])?;
            let b = reader.matrix(module.need(Factor::B)?, [None, Some(rank)])?;
            Change::LowRank { a, b, scale: (alpha / rank as f64) as f32, bias: None, magnitude: None }
        };
        edits.push(Edit { site, change });
    }
    Ok(edits)
}

/// Whether a version such as `adapters.1.0.1` is before 1.1.
fn is_before_1_1(version: &str) -> Result<bool, Error> {
    let Some(numbers) = version.strip_prefix("adapters.") else { return Ok(false) };
    let mut numbers = numbers.split('.').map(|number| {
        let digits = number.find(|c: char| !c.is_ascii_digit()).map_or(number, |end| &number[..end]);
        digits.parse::<u32>().map_err(|_| field("version", "adapters.<number>.<number>", &json!(version)))
    });
    let mut next = || numbers.next().unwrap_or(Ok(0));
    Ok((next()?, next()?) < (1, 1))
}

#[cfg(test)]
mod tests {
    use super::is_before_1_1;

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        for (version, before) in [
            ("", false),
            ("0.1.0", false),
            ("adapters.0.2.2", true),
            ("adapters.1.0.1", true),
            ("adapters.1.0.dev0", true),
            ("adapters.1.1.0", false),
            ("adapters.1.10", false),
            ("adapters.2.0rc1", false),
        ] {
            assert_eq!(is_before_1_1(version).expect(version), before, "{version}");
        }
        assert!(is_before_1_1("adapters.x").is_err());
    }
}
