//! LoRA as PEFT saves it: `y = W x + s (B A x)`, with `s = alpha / r`, or `alpha / sqrt(r)` for rsLoRA.
//!
//! Tensors are `base_model.model.<module path>.lora_A.weight` `[r, in]` and `.lora_B.weight` `[out, r]`, with
//! `lora_bias` also `.lora_B.bias` `[out]`, and with `bias` of `lora_only` or `all` the trained bias of the layer itself.
//! Rank and alpha of a module come from the first matching pattern of `rank_pattern` and `alpha_pattern`.
//! `fan_in_fan_out` says how the base stores `W`; A and B are the same either way. (Hu et al., arXiv 2106.09685;
//! Kalajdzievski, arXiv 2312.03732.)

use std::collections::BTreeMap;

use graftwork_kernels::{Bytes, Tensor};
use serde_json::Value;

use crate::file::{SMALL, Safetensors};
use crate::peft::{self, Config};
use crate::{Adapter, Change, Edit, Error, Kind, RowOrder, Site, TensorFile, finite, names, pattern};

/// The fields of the configuration that [`Settings`] reads.
const UNDERSTOOD: &[&str] = &[
    "alpha_pattern",
    "bias",
    "fan_in_fan_out",
    "init_lora_weights",
    "lora_alpha",
    "lora_bias",
    "peft_type",
    "r",
    "rank_pattern",
    "use_rslora",
];

/// Fields that say plainly what the adapter needs, and that it cannot be had yet.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("alora_invocation_tokens", "adapters that start at an invocation sequence are not applied yet"),
    ("layer_replication", "the base would need its layers replicated"),
    ("modules_to_save", "replaced modules are not applied yet"),
    ("target_parameters", "LoRA on parameters of expert layers is not applied yet"),
    ("trainable_token_indices", "trained tokens are not applied yet"),
    ("use_dora", "DoRA is not applied yet"),
];

/// Suffixes of tensor names, and what the tensor is.
const SUFFIXES: &[(&str, Part)] = &[
    (".lora_A.weight", Part::A),
    (".lora_B.weight", Part::B),
    (".lora_B.bias", Part::BBias),
    // The wrapped layer's own bias, as PEFT names it today and as it once did.
    (".base_layer.bias", Part::Bias),
    (".bias", Part::Bias),
];

const PREFIX: &str = "base_model.model.";
const EXPECTED: &str = "LoRA tensors are base_model.model.<linear layer of a block>.lora_A.weight, .lora_B.weight, \
                        with lora_bias .lora_B.bias, with a trained bias .base_layer.bias";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    A,
    B,
    BBias,
    Bias,
}

/// Reads a LoRA from the bytes of `adapter_config.json` and `adapter_model.safetensors`.
///
/// # Errors
/// What is malformed, inconsistent, not finite (up to [`SMALL`] bytes) or not understood, by name.
pub fn from_peft(config: &[u8], weights: Bytes) -> Result<Adapter, Error> {
    let config = Config::parse(config)?;
    from_config(&config, weights)
}

pub(crate) fn from_config(config: &Config, weights: Bytes) -> Result<Adapter, Error> {
    let settings = Settings::new(config)?;
    let check_values = weights.len() as u64 <= SMALL;
    let file = Safetensors::parse(weights)?;
    if file.tensors().is_empty() {
        return Err(Error::Empty);
    }
    let modules = modules(&file, &settings)?;
    let paths: Vec<&str> = modules.values().map(|module| module.path).collect();
    let ranks = pattern::first_matches("rank_pattern", &settings.rank_pattern, &paths)?;
    let alphas = pattern::first_matches("alpha_pattern", &settings.alpha_pattern, &paths)?;

    let reader = Reader { file: &file, check_values };
    let mut edits = Vec::new();
    for ((&site, module), (rank, alpha)) in modules.iter().zip(ranks.into_iter().zip(alphas)) {
        let rank = rank.unwrap_or(settings.rank);
        let alpha = alpha.unwrap_or(settings.alpha);
        if let Some(change) = low_rank(&reader, module, &settings, rank, alpha)? {
            edits.push(Edit { site, change });
        }
        if let Some(name) = module.bias {
            edits.push(Edit { site, change: Change::Bias { values: reader.vector(name, None)? } });
        }
    }
    let base_model = config.str("base_model_name_or_path")?.map(str::to_owned);
    Ok(Adapter { kind: Kind::Lora, edits, row_order: RowOrder::HuggingFace, architecture: None, base_model })
}

/// What the configuration says about the arithmetic.
struct Settings {
    rank: usize,
    alpha: f64,
    rank_pattern: Vec<(String, usize)>,
    alpha_pattern: Vec<(String, f64)>,
    rank_stabilized: bool,
    /// Every `lora_B` has a bias.
    lora_bias: bool,
    /// The layers' own biases were trained.
    trained_bias: bool,
}

impl Settings {
    fn new(config: &Config) -> Result<Self, Error> {
        if config.str("peft_type")? != Some(Kind::Lora.peft_type()) {
            return Err(peft::field(
                "peft_type",
                "\"LORA\"",
                config.get("peft_type").unwrap_or(&Value::Null),
            ));
        }
        config.check(UNDERSTOOD, UNSUPPORTED)?;
        check_initialisation(config)?;
        config.bool("fan_in_fan_out")?;
        let trained_bias = match config.str("bias")? {
            None | Some("none") => false,
            Some("lora_only" | "all") => true,
            Some(other) => {
                return Err(peft::field("bias", "\"none\", \"lora_only\" or \"all\"", &other.into()));
            }
        };
        Ok(Self {
            // PEFT's defaults where a file leaves them out.
            rank: config.rank("r")?.unwrap_or(8),
            alpha: config.number("lora_alpha")?.unwrap_or(8.0),
            rank_pattern: config.patterns("rank_pattern", peft::rank)?,
            alpha_pattern: config.patterns("alpha_pattern", peft::number)?,
            rank_stabilized: config.bool("use_rslora")?,
            lora_bias: config.bool("lora_bias")?,
            trained_bias,
        })
    }

    fn scale(&self, rank: usize, alpha: f64) -> f32 {
        let rank = rank as f64;
        (alpha / if self.rank_stabilized { rank.sqrt() } else { rank }) as f32
    }
}

/// Refuses an initialisation that took the update out of the base: the adapter fits only that changed base.
fn check_initialisation(config: &Config) -> Result<(), Error> {
    match config.get("init_lora_weights") {
        None | Some(Value::Bool(_)) => Ok(()),
        Some(Value::String(name)) if ["gaussian", "eva", "orthogonal"].contains(&name.as_str()) => Ok(()),
        Some(other) => Err(Error::Unsupported {
            what: format!("adapter field init_lora_weights = {}", peft::short(other)),
            reason: "it may have changed the base; save with peft's path_initial_model_for_weight_conversion",
        }),
    }
}

/// The names of the tensors of one module.
#[derive(Default)]
struct Tensors<'a> {
    path: &'a str,
    a: Option<&'a str>,
    b: Option<&'a str>,
    b_bias: Option<&'a str>,
    bias: Option<&'a str>,
}

/// The tensors of the file by site; refuses every name that is not understood.
fn modules<'a>(file: &'a Safetensors, settings: &Settings) -> Result<BTreeMap<Site, Tensors<'a>>, Error> {
    let mut modules: BTreeMap<Site, Tensors<'a>> = BTreeMap::new();
    for name in file.tensors().names() {
        let unknown = || Error::UnknownTensor { tensor: name.to_owned(), expected: EXPECTED };
        let path = name.strip_prefix(PREFIX).ok_or_else(unknown)?;
        let split = SUFFIXES.iter().find_map(|&(suffix, part)| path.strip_suffix(suffix).zip(Some(part)));
        let (path, part) = split.ok_or_else(unknown)?;
        let site = names::hf_site(path).ok_or_else(unknown)?;
        if !matches!(site, Site::Linear { .. }) {
            let reason = "LoRA on embedding and head is not applied yet";
            return Err(Error::Unsupported { what: format!("adapter tensor {name}"), reason });
        }
        let module = modules.entry(site).or_default();
        module.path = path;
        let (slot, what) = match part {
            Part::A => (&mut module.a, "A"),
            Part::B => (&mut module.b, "B"),
            Part::BBias if settings.lora_bias => (&mut module.b_bias, "the bias of B"),
            Part::Bias if settings.trained_bias => (&mut module.bias, "the bias"),
            Part::BBias | Part::Bias => return Err(unknown()),
        };
        if let Some(first) = slot.replace(name) {
            return Err(Error::Conflict { first: first.to_owned(), second: name.to_owned(), what, site });
        }
    }
    Ok(modules)
}

fn low_rank(
    reader: &Reader<'_>,
    module: &Tensors<'_>,
    settings: &Settings,
    rank: usize,
    alpha: f64,
) -> Result<Option<Change>, Error> {
    let unpaired = |name: &str, suffix: &str| {
        let missing = format!("{PREFIX}{}{suffix}", module.path);
        Error::Unpaired { tensor: name.to_owned(), missing }
    };
    let (a_name, b_name) = match (module.a, module.b, module.b_bias) {
        (Some(a), Some(b), _) => (a, b),
        (Some(a), None, _) => return Err(unpaired(a, ".lora_B.weight")),
        (None, Some(name), _) | (None, None, Some(name)) => return Err(unpaired(name, ".lora_A.weight")),
        (None, None, None) => return Ok(None),
    };
    let a = reader.matrix(a_name, [Some(rank), None])?;
    let b = reader.matrix(b_name, [None, Some(rank)])?;
    let bias = match module.b_bias {
        Some(name) => Some(reader.vector(name, Some(b.rows()))?),
        None if settings.lora_bias => return Err(unpaired(b_name, ".lora_B.bias")),
        None => None,
    };
    Ok(Some(Change::LowRank { a, b, scale: settings.scale(rank, alpha), bias }))
}

/// Tensors of the file, with their shape and values checked.
struct Reader<'a> {
    file: &'a Safetensors,
    check_values: bool,
}

impl Reader<'_> {
    /// A matrix with these dimensions where they are known, and at least one row and column.
    fn matrix(&self, name: &str, dims: [Option<usize>; 2]) -> Result<Tensor, Error> {
        self.check_shape(name, &dims)?;
        self.tensor(name)
    }

    /// A vector of this length, if it is known, as `[1, length]`.
    fn vector(&self, name: &str, len: Option<usize>) -> Result<Tensor, Error> {
        self.check_shape(name, &[len])?;
        self.tensor(name)
    }

    fn check_shape(&self, name: &str, dims: &[Option<usize>]) -> Result<(), Error> {
        let found = self.file.shape(name).unwrap_or_default();
        let fits =
            |(&found, dim): (&u64, &Option<usize>)| found > 0 && dim.is_none_or(|dim| found == dim as u64);
        if found.len() == dims.len() && found.iter().zip(dims).all(fits) {
            return Ok(());
        }
        let dims: Vec<_> = dims.iter().map(|dim| dim.map_or("_".to_owned(), |dim| dim.to_string())).collect();
        let expected = format!("[{}]", dims.join(", "));
        Err(Error::Shape { tensor: name.to_owned(), expected, found: format!("{found:?}") })
    }

    fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        let tensor = self.file.require(name)?;
        if self.check_values {
            finite::check(name, &tensor)?;
        }
        Ok(tensor)
    }
}
