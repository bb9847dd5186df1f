//! The tokenizer section of GGUF metadata.

use super::{Error, Tokenizer, Vocabulary};
use graftwork_adapters::file::{self, gguf::Metadata};

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
            add_bos_token: flag("add_bos_token")?,
            add_eos_token: flag("add_eos_token")?,
            add_space_prefix: flag("add_space_prefix")?,
            chat_template: text("tokenizer.chat_template")?,
        })
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
