//! The tokenizer section of GGUF metadata.

use super::{Error, Tokenizer, Vocabulary};
use graftwork_adapters::file;
use graftwork_adapters::file::gguf::{Array, Metadata, Value};

impl Vocabulary {
    /// Reads the keys below `tokenizer.`.
    ///
    /// # Errors
    /// A key that is not there or not of its type, by name.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, file::Error> {
        let id = |name: &str| metadata.get::<u32>(&format!("tokenizer.ggml.{name}_token_id"));
        let flag = |name: &str| metadata.get::<bool>(&format!("tokenizer.ggml.{name}"));
        let text = |key: &str| metadata.get::<&str>(key).map(|text| text.map(str::to_owned));
        let merges: Option<&[String]> = metadata.get("tokenizer.ggml.merges")?;
        let scores: Option<&[f32]> = metadata.get("tokenizer.ggml.scores")?;
        Ok(Self {
            model: metadata.require::<&str>("tokenizer.ggml.model")?.to_owned(),
            pre: text("tokenizer.ggml.pre")?,
            tokens: metadata.require::<&[String]>("tokenizer.ggml.tokens")?.to_vec(),
            scores: scores.unwrap_or_default().to_vec(),
            merges: merges.unwrap_or_default().to_vec(),
            token_type: metadata.get("tokenizer.ggml.token_type")?.unwrap_or_default(),
            bos_token_id: id("bos")?,
            eos_token_id: id("eos")?,
            eot_token_id: id("eot")?,
            eom_token_id: id("eom")?,
            unknown_token_id: id("unknown")?,
            padding_token_id: id("padding")?,
            add_bos_token: flag("add_bos_token")?,
            add_eos_token: flag("add_eos_token")?,
            add_space_prefix: flag("add_space_prefix")?,
            chat_template: text("tokenizer.chat_template")?,
        })
    }

    /// The keys that [`Self::from_metadata`] reads.
    pub fn into_metadata(self) -> Vec<(String, Value)> {
        let texts = |texts: Vec<String>| (!texts.is_empty()).then_some(Value::Array(Array::Str(texts)));
        let types: Vec<i32> = self.token_type.iter().map(|&number| number as i32).collect();
        let own = [
            ("add_space_prefix", self.add_space_prefix.map(Value::Bool)),
            ("model", Some(Value::Str(self.model))),
            ("pre", self.pre.map(Value::Str)),
            ("tokens", texts(self.tokens)),
            ("scores", (!self.scores.is_empty()).then_some(Value::Array(Array::F32(self.scores)))),
            ("token_type", (!types.is_empty()).then_some(Value::Array(Array::I32(types)))),
            ("merges", texts(self.merges)),
            ("bos_token_id", self.bos_token_id.map(Value::U32)),
            ("eos_token_id", self.eos_token_id.map(Value::U32)),
            ("eot_token_id", self.eot_token_id.map(Value::U32)),
            ("eom_token_id", self.eom_token_id.map(Value::U32)),
            ("unknown_token_id", self.unknown_token_id.map(Value::U32)),
            ("padding_token_id", self.padding_token_id.map(Value::U32)),
            ("add_bos_token", self.add_bos_token.map(Value::Bool)),
            ("add_eos_token", self.add_eos_token.map(Value::Bool)),
        ];
        let named = |(name, value): (&str, Option<Value>)| Some((format!("tokenizer.ggml.{name}"), value?));
        let template =
            self.chat_template.map(|text| ("tokenizer.chat_template".to_owned(), Value::Str(text)));
        own.into_iter().filter_map(named).chain(template).collect()
    }
}

impl Tokenizer {
    /// A tokenizer from the metadata of a GGUF file.
    ///
    /// # Errors
    /// As [`Vocabulary::from_metadata`] and [`Tokenizer::from_vocabulary`].
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, Error> {
        Self::from_vocabulary(Vocabulary::from_metadata(metadata)?)
    }
}
