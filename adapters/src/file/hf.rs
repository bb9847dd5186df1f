//! A model as a directory of Hugging Face: configuration, tokenizer and weights in safetensors.

use std::collections::BTreeMap;
use std::fmt;

use graftwork_kernels::{Bytes, Tensor};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::safetensors::{Texts, matrix};
use super::{Error, Named, Safetensors, Source, TensorFile, TensorInfo};

/// Bytes of `config.json` and its like: real ones have a few thousand.
const MAX_CONFIG: usize = 1 << 20;
/// Bytes of `tokenizer_config.json`, which may list thousands of added tokens.
pub(crate) const MAX_TOKENIZER_CONFIG: usize = 8 << 20;

/// A model directory.
#[derive(Clone, Debug)]
pub struct HfModel {
    /// `config.json`, an object.
    pub config: Value,
    /// `generation_config.json`, if there is one.
    pub generation_config: Option<Value>,
    /// `tokenizer.json`, if there is one, as it is in the file.
    pub tokenizer: Option<Bytes>,
    /// `tokenizer.model`, the vocabulary of SentencePiece, if there is one.
    pub sentence_piece: Option<Bytes>,
    /// `tokenizer_config.json`, if there is one.
    pub tokenizer_config: Option<Value>,
    /// `chat_template.jinja`, if there is one. Older directories keep the template in `tokenizer_config.json`.
    pub chat_template: Option<String>,
    /// The weights.
    pub weights: Shards,
}

impl HfModel {
    /// Loads a directory from a path or from memory.
    ///
    /// # Errors
    /// [`Error::In`] with the file that is missing or malformed.
    pub fn load(source: &Source) -> Result<Self, Error> {
        Self::read(source).map_err(|error| error.in_file(source.name()))
    }

    fn read(source: &Source) -> Result<Self, Error> {
        let missing = |name: &str| Error::Missing { what: "file", name: name.to_owned() };
        let config = source.json("config.json", MAX_CONFIG)?.ok_or_else(|| missing("config.json"))?;
        if !config.is_object() {
            let reason = "no object".to_owned();
            return Err(Error::Json { reason }.in_file("config.json"));
        }
        Ok(Self {
            config,
            generation_config: source.json("generation_config.json", MAX_CONFIG)?,
            tokenizer: source.small_file("tokenizer.json")?,
            sentence_piece: source.small_file("tokenizer.model")?,
            tokenizer_config: source.json("tokenizer_config.json", MAX_TOKENIZER_CONFIG)?,
            chat_template: chat_template(source)?,
            weights: Shards::load(source)?,
        })
    }
}

/// The chat template beside a tokenizer, if there is one.
pub(crate) fn chat_template(source: &Source) -> Result<Option<String>, Error> {
    let Some(bytes) = source.small_file("chat_template.jinja")? else { return Ok(None) };
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let what = "the chat template".to_owned();
        Error::NotUtf8 { what, at: error.valid_up_to() }.in_file("chat_template.jinja")
    })?;
    Ok(Some(text.to_owned()))
}

/// Weights of a Hugging Face directory: `model.safetensors`, or the shards that `model.safetensors.index.json` names.
#[derive(Clone, Debug)]
pub struct Shards(Named<TensorInfo>);

impl Shards {
    /// Type, shape and bytes of every tensor.
    pub fn tensors(&self) -> &Named<TensorInfo> {
        &self.0
    }

    fn load(source: &Source) -> Result<Self, Error> {
        let single = "model.safetensors";
        if let Some(bytes) = source.file(single)? {
            let file = Safetensors::parse(bytes).map_err(|error| error.in_file(single))?;
            return Self::new(file.into_tensors());
        }
        let index_name = "model.safetensors.index.json";
        let index = source
            .small_file(index_name)?
            .ok_or_else(|| Error::Missing { what: "file", name: format!("{single} or {index_name}") })?;
        let Index(weight_map) =
            serde_json::from_slice(&index).map_err(|error| Error::json(error).in_file(index_name))?;
        let mut by_file: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (tensor, file) in weight_map {
            by_file.entry(file).or_default().push(tensor);
        }
        let mut tensors = Vec::new();
        for (file, expected) in by_file {
            let key = format!("weight_map of {}", expected[0]);
            check_plain(&key, &file).map_err(|error| error.in_file(index_name))?;
            let bytes = source.file(&file)?;
            let bytes = bytes.ok_or_else(|| Error::Missing { what: "file", name: file.clone() })?;
            let shard = Safetensors::parse(bytes).map_err(|error| error.in_file(&file))?;
            if let Some(name) = expected.iter().find(|name| shard.tensors().get(name).is_none()) {
                return Err(Error::Missing { what: "tensor", name: name.clone() }.in_file(file));
            }
            tensors.extend(shard.into_tensors());
        }
        Self::new(tensors)
    }

    fn new(tensors: Vec<(String, TensorInfo)>) -> Result<Self, Error> {
        Named::new(tensors).map(Self).map_err(|name| Error::Duplicate { what: "tensor", name })
    }
}

impl TensorFile for Shards {
    fn names(&self) -> Vec<&str> {
        self.0.names().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<u64>> {
        self.0.get(name).map(|info| info.shape.clone())
    }

    fn tensor(&self, name: &str) -> Result<Option<Tensor>, Error> {
        self.0.get(name).map(|info| matrix(name, info)).transpose()
    }
}

/// Refuses names that could reach a file outside of the directory, on any system.
fn check_plain(key: &str, name: &str) -> Result<(), Error> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', ':', '\0']);
    if plain { Ok(()) } else { Err(Error::FileName { key: key.to_owned(), found: name.to_owned() }) }
}

/// `weight_map` of the index: tensor and file names, every entry.
struct Index(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IndexVisitor;

        impl<'de> Visitor<'de> for IndexVisitor {
            type Value = Index;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a weight_map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Index, A::Error> {
                let mut weights = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key != "weight_map" {
                        map.next_value::<IgnoredAny>()?;
                    } else if weights.replace(map.next_value_seed(Texts)?).is_some() {
                        return Err(A::Error::custom("weight_map occurs twice"));
                    }
                }
                let weights = Named::new(weights.ok_or_else(|| A::Error::missing_field("weight_map"))?);
                let weights = weights
                    .map_err(|name| A::Error::custom(format_args!("weight_map names tensor {name} twice")))?;
                Ok(Index(weights.into_items()))
            }
        }

        deserializer.deserialize_map(IndexVisitor)
    }
}
