//! The files that a model comes in.

use graftwork_adapters::TensorFile;
use graftwork_adapters::file::gguf::{self, MAGIC};
use graftwork_adapters::file::{Gguf, HfModel, Source};

use super::arch::{self, Names, Tensors};
use super::config::{self, Config, Reader, Value};
use crate::Error;

/// The files of one model.
pub enum Container {
    /// A GGUF file, or its shards.
    Gguf(Gguf),
    /// A directory in Hugging Face layout.
    HuggingFace(Box<HfModel>),
}

impl Container {
    /// Opens whichever of the two `source` is.
    ///
    /// # Errors
    /// The source is neither, unreadable or malformed.
    pub fn open(source: &Source) -> Result<Self, Error> {
        let directory = match source {
            Source::Path { path, .. } => path.is_dir(),
            Source::Bytes(_) => false,
            Source::Files(files) => !files.iter().all(|(_, bytes)| bytes.starts_with(MAGIC)),
        };
        match directory {
            true => Ok(Self::HuggingFace(Box::new(HfModel::load(source)?))),
            false => Ok(Self::Gguf(Gguf::load(source)?)),
        }
    }

    /// The weights.
    pub fn weights(&self) -> &dyn TensorFile {
        match self {
            Self::Gguf(file) => file,
            Self::HuggingFace(model) => &model.weights,
        }
    }

    /// What the model is, and what its tensors are called.
    ///
    /// # Errors
    /// A key that is missing or has a value that we cannot compute with.
    pub fn config(&self) -> Result<(Config, &'static Names), Error> {
        match self {
            Self::Gguf(file) => {
                let key = "general.architecture";
                let arch = arch::find(key, file.metadata().require(key)?, |arch| arch.name)?;
                let factors = file.tensor("rope_freqs.weight")?.map(|factors| factors.decode()).transpose();
                let factors =
                    factors.map_err(|source| Error::Weight { tensor: "rope_freqs.weight".into(), source })?;
                let tensors = Tensors { shape: &|name| file.shape(name), rope_factors: factors };
                let lookup = |key: &str| file.metadata().value(key).map(from_gguf);
                let reader = Reader::new(format!("{}.", arch.name), &lookup);
                Ok(((arch.from_gguf)(&reader, &tensors)?, &arch.gguf))
            }
            Self::HuggingFace(model) => config_of(model),
        }
    }

    /// The tokens that end an answer, as the files say.
    ///
    /// # Errors
    /// A key that does not hold token ids.
    pub fn end_tokens(&self) -> Result<Vec<u32>, Error> {
        let mut tokens = Vec::new();
        match self {
            Self::Gguf(file) => {
                for key in ["eos", "eot", "eom"] {
                    tokens.extend(file.metadata().get::<u32>(&format!("tokenizer.ggml.{key}_token_id"))?);
                }
            }
            Self::HuggingFace(model) => {
                let key = "eos_token_id";
                let holders = [model.generation_config.as_ref(), Some(&model.config)];
                let found = holders.into_iter().flatten().filter_map(|holder| holder.get(key));
                let Some(value) = found.into_iter().find(|value| !value.is_null()) else {
                    return Ok(tokens);
                };
                let ids = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                for id in ids {
                    let token = id.as_u64().and_then(|id| u32::try_from(id).ok());
                    tokens
                        .push(token.ok_or_else(|| {
                            config::unsupported(key, "token ids".into(), value.to_string())
                        })?);
                }
            }
        }
        tokens.sort_unstable();
        tokens.dedup();
        Ok(tokens)
    }
}

/// What the model of a directory is, and what its tensors are called.
pub(crate) fn config_of(model: &HfModel) -> Result<(Config, &'static Names), Error> {
    let lookup = |key: &str| {
        let mut value = &model.config;
        for part in key.split('.') {
            value = value.get(part)?;
        }
        from_json(value)
    };
    let reader = Reader::new("", &lookup);
    let name = reader.text("model_type")?;
    let name = name.ok_or_else(|| config::Error::Missing {
        key: "model_type".into(),
        expected: "the name of an architecture",
    })?;
    let arch = arch::find("model_type", &name, |arch| arch.model_type)?;
    Ok(((arch.from_json)(&reader)?, &arch.hugging_face))
}

pub(crate) fn from_gguf(value: &gguf::Value) -> Value {
    match value {
        gguf::Value::U8(x) => Value::Int((*x).into()),
        gguf::Value::I8(x) => Value::Int((*x).into()),
        gguf::Value::U16(x) => Value::Int((*x).into()),
        gguf::Value::I16(x) => Value::Int((*x).into()),
        gguf::Value::U32(x) => Value::Int((*x).into()),
        gguf::Value::I32(x) => Value::Int((*x).into()),
        gguf::Value::U64(x) => i64::try_from(*x).map_or(Value::Float(*x as f64), Value::Int),
        gguf::Value::I64(x) => Value::Int(*x),
        gguf::Value::F32(x) => Value::Float((*x).into()),
        gguf::Value::F64(x) => Value::Float(*x),
        gguf::Value::Bool(x) => Value::Bool(*x),
        gguf::Value::Str(x) => Value::Text(x.clone()),
        gguf::Value::Array(_) => Value::Other,
    }
}

/// `None` for null, which means absent.
fn from_json(value: &serde_json::Value) -> Option<Value> {
    Some(match value {
        serde_json::Value::Null => return None,
        serde_json::Value::Bool(x) => Value::Bool(*x),
        serde_json::Value::Number(x) => match x.as_i64() {
            Some(int) => Value::Int(int),
            None => Value::Float(x.as_f64()?),
        },
        serde_json::Value::String(x) => Value::Text(x.clone()),
        serde_json::Value::Array(_) | serde_json::Value::Object(_) => Value::Other,
    })
}
