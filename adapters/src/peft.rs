//! `adapter_config.json`: which fields are understood, which do not matter, and that all others are refused.
//!
//! A field that is null, false, 0 or empty asks for nothing and passes, whatever its name. Of the others, those in
//! [`NO_EFFECT`] pass, those that a kind of adapter reads are its own business, and the rest is refused by name: an
//! option that we do not know may change the arithmetic.

use serde_json::{Map, Value};

use crate::{Error, file, pattern};

/// Bytes of `adapter_config.json`: real ones have one or two thousand.
pub(crate) const MAX_CONFIG: usize = 1 << 20;

/// Fields that do not change what a saved adapter computes.
const NO_EFFECT: &[&str] = &[
    // Where the file comes from.
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "task_type",
    // Which modules were given weights: the names of the tensors say it too.
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "target_modules",
    // Training: dropout, and how the weights were initialised (`init_lora_weights` says whether that changed the base).
    "corda_config",
    "eva_config",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "runtime_config",
    // Where to find a library for parallel training, and the options of one that `use_qalora` must turn on.
    "megatron_core",
    "qalora_group_size",
    // Says which kind this is.
    "peft_type",
];

/// Fields that say plainly what an adapter needs, and that it cannot be had with its kind.
pub(crate) const UNSUPPORTED: &[(&str, &str)] = &[
    ("layer_replication", "the base would need its layers replicated"),
    ("modules_to_save", "replaced modules are not applied with this kind of adapter"),
    ("trainable_token_indices", "trained tokens are not applied with this kind of adapter"),
];

/// What the configurations of LoHa and LoKr share.
pub(crate) struct Lycoris {
    rank: usize,
    alpha: f64,
    rank_pattern: Vec<(String, usize)>,
    alpha_pattern: Vec<(String, f64)>,
}

impl Lycoris {
    /// Fields of both.
    const UNDERSTOOD: &[&str] = &[
        "alpha",
        "alpha_pattern",
        "init_weights",
        "r",
        "rank_pattern",
        // Training.
        "module_dropout",
        "rank_dropout",
        "rank_dropout_scale",
        // Of convolutions.
        "use_effective_conv2d",
    ];

    /// Refuses every field that is neither one of both nor one of `own`.
    pub fn new(config: &Config, own: &[&str], unsupported: &[(&str, &'static str)]) -> Result<Self, Error> {
        config.check(&[Self::UNDERSTOOD, own].concat(), unsupported)?;
        Ok(Self {
            // PEFT's defaults where a file leaves them out.
            rank: config.rank("r")?.unwrap_or(8),
            alpha: config.number("alpha")?.unwrap_or(8.0),
            rank_pattern: config.patterns("rank_pattern", rank)?,
            alpha_pattern: config.patterns("alpha_pattern", number)?,
        })
    }

    /// Rank and `alpha / rank` of each module.
    pub fn ranks_and_scales(&self, paths: &[&str]) -> Result<Vec<(usize, f32)>, Error> {
        let ranks = pattern::first_matches("rank_pattern", &self.rank_pattern, paths)?;
        let alphas = pattern::first_matches("alpha_pattern", &self.alpha_pattern, paths)?;
        let of = |(rank, alpha): (Option<usize>, Option<f64>)| {
            let rank = rank.unwrap_or(self.rank);
            (rank, (alpha.unwrap_or(self.alpha) / rank as f64) as f32)
        };
        Ok(ranks.into_iter().zip(alphas).map(of).collect())
    }
}

/// The fields of `adapter_config.json`.
pub(crate) struct Config(Map<String, Value>);

impl Config {
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        Self::new(file::parse_json(bytes, MAX_CONFIG)?)
    }

    pub fn new(value: Value) -> Result<Self, Error> {
        match value {
            Value::Object(fields) => Ok(Self(fields)),
            other => Err(field("adapter_config.json", "an object", &other)),
        }
    }

    /// Refuses every field that is neither empty, without effect, nor one of `understood`.
    pub fn check(&self, understood: &[&str], unsupported: &[(&str, &'static str)]) -> Result<(), Error> {
        for (name, value) in &self.0 {
            let passes = |names: &[&str]| names.contains(&name.as_str());
            if is_empty(value) || passes(NO_EFFECT) || passes(understood) {
                continue;
            }
            if let Some((_, reason)) = unsupported.iter().find(|(known, _)| known == name) {
                return Err(Error::Unsupported {
                    what: format!("adapter field {name} = {}", short(value)),
                    reason,
                });
            }
            return Err(Error::UnknownField { field: name.clone(), value: short(value) });
        }
        Ok(())
    }

    /// Refuses a value other than `expected` of a field that would change the arithmetic.
    pub fn only(&self, name: &str, expected: &[Value], reason: &'static str) -> Result<(), Error> {
        match self.get(name) {
            Some(value) if !is_empty(value) && !expected.contains(value) => {
                Err(Error::Unsupported { what: format!("adapter field {name} = {}", short(value)), reason })
            }
            _ => Ok(()),
        }
    }

    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Whether the field is there, whatever it says.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub fn bool(&self, name: &str) -> Result<bool, Error> {
        match self.get(name) {
            None => Ok(false),
            Some(&Value::Bool(value)) => Ok(value),
            Some(other) => Err(field(name, "true or false", other)),
        }
    }

    pub fn str(&self, name: &str) -> Result<Option<&str>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(field(name, "text", other)),
        }
    }

    pub fn rank(&self, name: &str) -> Result<Option<usize>, Error> {
        self.get(name).map(|value| rank(name, value)).transpose()
    }

    pub fn number(&self, name: &str) -> Result<Option<f64>, Error> {
        self.get(name).map(|value| number(name, value)).transpose()
    }

    /// A field that is true unless the file says otherwise.
    pub fn true_unless(&self, name: &str) -> Result<bool, Error> {
        Ok(self.get(name).is_none() || self.bool(name)?)
    }

    /// An object of patterns, each value read by `read`.
    pub fn patterns<T>(
        &self,
        name: &str,
        read: impl Fn(&str, &Value) -> Result<T, Error>,
    ) -> Result<Vec<(String, T)>, Error> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Object(patterns)) => {
                let read = |(pattern, value): (&String, &Value)| {
                    Ok((pattern.clone(), read(&format!("{name}.{}", shorten(pattern)), value)?))
                };
                patterns.iter().map(read).collect()
            }
            Some(other) => Err(field(name, "an object of patterns", other)),
        }
    }
}

/// A rank: a whole number above 0.
pub(crate) fn rank(name: &str, value: &Value) -> Result<usize, Error> {
    let rank = value.as_u64().and_then(|rank| usize::try_from(rank).ok()).filter(|&rank| rank > 0);
    rank.ok_or_else(|| field(name, "a whole number above 0", value))
}

/// A number.
pub(crate) fn number(name: &str, value: &Value) -> Result<f64, Error> {
    let number = value.as_f64().filter(|number| number.abs() <= f32::MAX.into());
    number.ok_or_else(|| field(name, "a number that fits f32", value))
}

pub(crate) fn field(name: &str, expected: &str, found: &Value) -> Error {
    Error::Field { field: name.to_owned(), expected: expected.to_owned(), found: short(found) }
}

/// Whether a value asks for nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// A value for a message.
pub(crate) fn short(value: &Value) -> String {
    match value {
        // Not rendered: it may be large, and the field's name says enough.
        Value::Array(values) => format!("an array of {}", values.len()),
        Value::Object(fields) => format!("an object of {}", fields.len()),
        Value::String(text) => format!("\"{}\"", shorten(text)),
        scalar => scalar.to_string(),
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}
