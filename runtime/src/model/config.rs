//! What differs between the models of one family, as data.

use graftwork_adapters::Module;
use graftwork_kernels::backend::Activation;

use super::rope::{Rope, Scaling};

/// Why a model's own description of itself cannot be used.
#[derive(Debug, thiserror::Error, Clone, PartialEq)]
pub enum Error {
    /// A key that every model of the architecture has is not there.
    #[error("`{key}`: expected {expected}, found nothing")]
    Missing {
        /// Key of the metadata or field of config.json.
        key: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// A key holds what we cannot compute with.
    #[error("`{key}`: expected {expected}, found {found}")]
    Unsupported {
        /// Key of the metadata or field of config.json.
        key: String,
        /// What it may hold.
        expected: String,
        /// What it holds.
        found: String,
    },
}

/// A decoder of the Llama family: every way in which one differs from another.
///
/// `x += o(attention(rope(q n), rope(k n), v n))` and `x += down(act(gate n') * up n')` per layer, with
/// `n = rms_norm(x)`, then `head(rms_norm(x))`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Name of the architecture in the table of [`super::arch`].
    pub architecture: &'static str,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Blocks of attention and feed-forward.
    pub layers: usize,
    /// Query heads of a layer.
    pub heads: usize,
    /// Key and value heads of a layer; `heads` is a multiple.
    pub kv_heads: usize,
    /// Width of a head. `heads * head_dim` need not be `hidden`.
    pub head_dim: usize,
    /// Inner width of the feed-forward block.
    pub ffn: usize,
    /// Entries of the embedding and outputs of the head.
    pub vocab: usize,
    /// Positions the model was made for; no sequence grows longer.
    pub context: usize,
    /// Added to the mean square under the root of every norm.
    pub norm_eps: f32,
    /// How queries and keys are rotated.
    pub rope: Rope,
    /// The head is the embedding's matrix.
    pub tied_head: bool,
    /// The query, key and value projections have a bias.
    pub attention_bias: bool,
    /// The attention's output projection has a bias.
    pub output_bias: bool,
    /// The three feed-forward projections have a bias.
    pub mlp_bias: bool,
    /// Function of the gate.
    pub activation: Activation,
}

impl Config {
    /// The shape `(outputs, inputs)` of a linear layer.
    pub fn shape_of(&self, module: Module) -> (usize, usize) {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match module {
            Module::Q => (q, self.hidden),
            Module::K | Module::V => (kv, self.hidden),
            Module::O => (self.hidden, q),
            Module::Gate | Module::Up => (self.ffn, self.hidden),
            Module::Down => (self.hidden, self.ffn),
        }
    }

    /// Whether a linear layer has a bias.
    pub fn has_bias(&self, module: Module) -> bool {
        match module {
            Module::Q | Module::K | Module::V => self.attention_bias,
            Module::O => self.output_bias,
            Module::Gate | Module::Up | Module::Down => self.mlp_bias,
        }
    }

    /// Checks that the numbers fit together, so that nothing after this divides by zero, overflows or
    /// meets a head that is not whole. `origin` names the file in the errors.
    pub fn check(self) -> Result<Self, Error> {
        const MOST: usize = 1 << 24;
        let sizes = [
            ("hidden size", self.hidden),
            ("number of layers", self.layers),
            ("number of attention heads", self.heads),
            ("number of key-value heads", self.kv_heads),
            ("head dimension", self.head_dim),
            ("feed-forward size", self.ffn),
            ("vocabulary size", self.vocab),
            ("context length", self.context),
        ];
        for (key, value) in sizes {
            if value == 0 || value > MOST {
                return Err(unsupported(key, format!("1 to {MOST}"), value));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a multiple of the {} key-value heads", self.kv_heads);
            return Err(unsupported("number of attention heads", expected, self.heads));
        }
        let rotary = self.rope.rotary;
        if rotary == 0 || !rotary.is_multiple_of(2) || rotary > self.head_dim {
            let expected = format!("an even number of at most {} rotated dimensions", self.head_dim);
            return Err(unsupported("rotated dimensions of a head", expected, rotary));
        }
        if self.heads.checked_mul(self.head_dim).is_none_or(|width| width > MOST) {
            return Err(unsupported("head dimension", format!("heads x width up to {MOST}"), self.head_dim));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Err(unsupported("epsilon of the norms", "a finite number".into(), self.norm_eps));
        }
        self.rope.check()?;
        Ok(self)
    }
}

pub(super) fn unsupported(key: impl Into<String>, expected: String, found: impl ToString) -> Error {
    Error::Unsupported { key: key.into(), expected, found: found.to_string() }
}

/// One value of a model's description, whatever container it came in.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number without a fraction.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A string.
    Text(String),
    /// An array or an object; never looked into.
    Other,
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Int(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Bool(value) => value.fmt(f),
            Self::Text(value) => write!(f, "\"{value}\""),
            Self::Other => f.write_str("an array or object"),
        }
    }
}

/// Reads typed values by key; what is missing or of another type is an error with the key's full name.
pub struct Reader<'a> {
    /// Put before every key: `llama.` in GGUF metadata, nothing or `rope_parameters.` in config.json.
    prefix: String,
    lookup: &'a dyn Fn(&str) -> Option<Value>,
}

impl<'a> Reader<'a> {
    /// Reads `prefix` + key through `lookup`, which gives `None` for what is absent or null.
    pub fn new(prefix: impl Into<String>, lookup: &'a dyn Fn(&str) -> Option<Value>) -> Self {
        Self { prefix: prefix.into(), lookup }
    }

    /// A reader of the keys that start with `prefix` too.
    pub fn under(&self, prefix: &str) -> Self {
        Self { prefix: format!("{}{prefix}", self.prefix), lookup: self.lookup }
    }

    /// The full name of a key.
    pub fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// What the key holds, if it is there.
    pub fn get(&self, key: &str) -> Option<Value> {
        (self.lookup)(&self.name(key))
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &'static str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match convert(&value) {
            Some(typed) => Ok(Some(typed)),
            None => Err(unsupported(self.name(key), expected.into(), value)),
        }
    }

    fn required<T>(&self, key: &str, expected: &'static str, value: Option<T>) -> Result<T, Error> {
        value.ok_or_else(|| Error::Missing { key: self.name(key), expected })
    }

    /// A size, if it is there.
    pub fn size_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        let size = |value: &Value| match value {
            Value::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        };
        Ok(self.typed(key, "a size", size)?.unwrap_or(default))
    }

    /// A size.
    pub fn size(&self, key: &str) -> Result<usize, Error> {
        let value = self.get(key).is_some().then(|| self.size_or(key, 0)).transpose()?;
        self.required(key, "a size", value)
    }

    /// A finite number, if it is there.
    pub fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        let number = |value: &Value| match value {
            Value::Int(value) => Some(*value as f64),
            Value::Float(value) if value.is_finite() => Some(*value),
            _ => None,
        };
        self.typed(key, "a finite number", number)
    }

    /// A finite number that must be there.
    pub fn needed(&self, key: &str) -> Result<f64, Error> {
        let value = self.number(key)?;
        self.required(key, "a finite number", value)
    }

    /// A truth value, if it is there.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, Error> {
        let flag = |value: &Value| match value {
            Value::Bool(value) => Some(*value),
            _ => None,
        };
        Ok(self.typed(key, "true or false", flag)?.unwrap_or(default))
    }

    /// A string, if it is there.
    pub fn text(&self, key: &str) -> Result<Option<String>, Error> {
        let text = |value: &Value| match value {
            Value::Text(value) => Some(value.clone()),
            _ => None,
        };
        self.typed(key, "a string", text)
    }

    /// Refuses anything but `expected` (or nothing) under `key`.
    pub fn only(&self, key: &str, expected: Value) -> Result<(), Error> {
        match self.get(key) {
            Some(value) if value != expected => Err(unsupported(self.name(key), expected.to_string(), value)),
            _ => Ok(()),
        }
    }
}

/// The scaling that a reader of rope parameters describes, by its type's name. `context` stands in for
/// the original context length where none is given.
pub fn scaling(reader: &Reader<'_>, kind: &str, context: usize) -> Result<Scaling, Error> {
    let original = || reader.size_or("original_max_position_embeddings", context);
    match kind {
        "default" | "none" => Ok(Scaling::None),
        "linear" => Ok(Scaling::Linear { factor: reader.needed("factor")? }),
        "llama3" => Ok(Scaling::Llama3 {
            factor: reader.needed("factor")?,
            low_freq: reader.needed("low_freq_factor")?,
            high_freq: reader.needed("high_freq_factor")?,
            original_context: reader.size("original_max_position_embeddings")?,
        }),
        "yarn" => {
            let factor = reader.needed("factor")?;
            let attention = match reader.number("attention_factor")? {
                Some(attention) => attention,
                None => {
                    let mscale = reader.number("mscale")?.filter(|&m| m != 0.0);
                    let all = reader.number("mscale_all_dim")?.filter(|&m| m != 0.0);
                    Scaling::yarn_attention(factor, mscale.zip(all))
                }
            };
            Ok(Scaling::Yarn {
                factor,
                original_context: original()?,
                beta_fast: reader.number("beta_fast")?.filter(|&b| b != 0.0).unwrap_or(32.0),
                beta_slow: reader.number("beta_slow")?.filter(|&b| b != 0.0).unwrap_or(1.0),
                truncate: reader.flag("truncate", true)?,
                attention,
            })
        }
        other => Err(unsupported(
            reader.name("rope_type"),
            "default, linear, yarn or llama3".into(),
            format!("\"{other}\""),
        )),
    }
}
