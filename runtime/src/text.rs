//! The text side of a model: its tokenizer and chat template, as its files give them.

use std::sync::Arc;

use graftwork_adapters::TextFiles;

use crate::Error;
use crate::chat::{self, ChatInput, ChatTemplate};
use crate::model::container::Container;
use crate::request::{Part, Prompt};
use crate::sequence::Place;
use crate::stream::{Saved, TextStream};
use crate::tokenize::{Specials, Tokenizer};

/// A model's tokenizer and chat template.
#[derive(Debug)]
pub struct Text {
    tokenizer: Arc<Tokenizer>,
    /// One that cannot be used is an error only for those who use it.
    template: Option<Result<ChatTemplate, chat::Error>>,
}

/// The `tokenizer.ggml.model` of a file without a tokenizer.
pub(crate) const NO_TOKENIZER: &str = "none";

/// A prompt in tokens.
pub(crate) struct Tokens {
    /// The tokens, without virtual ones.
    pub tokens: Vec<u32>,
    /// Where virtual ones stand among them, in order.
    pub places: Vec<Place>,
    /// Whether the answer starts a text of its own, as in a chat, or goes on with the prompt's.
    pub new_text: bool,
}

impl Text {
    /// What the model's files hold; `None` if they have no tokenizer.
    pub(crate) fn of(container: &Container) -> Result<Option<Self>, Error> {
        let (tokenizer, template) = match container {
            Container::Gguf(file) => {
                let none = [None, Some(NO_TOKENIZER)];
                if none.contains(&file.metadata().get("tokenizer.ggml.model")?) {
                    return Ok(None);
                }
                (Tokenizer::from_gguf(file.metadata())?, None)
            }
            Container::HuggingFace(model) => {
                let Some(json) = &model.tokenizer else { return Ok(None) };
                let config = model.tokenizer_config.as_ref().map(|config| config.to_string());
                let tokenizer = Tokenizer::from_json(json, config.as_ref().map(String::as_bytes))?;
                (tokenizer, model.chat_template.as_deref())
            }
        };
        Ok(Some(Self::new(tokenizer, template)))
    }

    fn new(tokenizer: Tokenizer, template: Option<&str>) -> Self {
        let token = |id: Option<u32>| id.map(|id| tokenizer.decode(&[id]));
        let (bos, eos) = (token(tokenizer.bos()), token(tokenizer.eos()));
        let template = template
            .or(tokenizer.chat_template())
            .map(|source| ChatTemplate::new(source, bos.as_deref(), eos.as_deref()));
        Self { tokenizer: Arc::new(tokenizer), template }
    }

    /// What an adapter brings, if its tokenizer has tokens that `base` does not have; the embedding has `rows` rows.
    ///
    /// # Errors
    /// The tokenizer is malformed, has more tokens than there are rows, or other ones where the base has some.
    pub(crate) fn of_adapter(
        base: Option<&Self>,
        files: &TextFiles,
        rows: usize,
    ) -> Result<Option<Self>, Error> {
        let config = files.config.as_ref().map(|config| config.to_string());
        let tokenizer = Tokenizer::from_json(&files.tokenizer, config.as_ref().map(String::as_bytes))?;
        let wrong = |expected, found| Err(Error::AdapterTokenizer { expected, found });
        let known = base.map_or(0, |base| base.tokenizer.vocab_size());
        let found = tokenizer.vocab_size();
        if found <= known {
            return Ok(None);
        }
        if found > rows {
            return wrong(format!("at most the {rows} tokens of the embedding"), found.to_string());
        }
        for id in 0..known as u32 {
            let [expected, found] = [base.map(|base| &*base.tokenizer), Some(&tokenizer)]
                .map(|text| text.and_then(|text| text.token_bytes(id)));
            if expected.is_some() && expected != found {
                let [expected, found] = [expected, found]
                    .map(|bytes| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned());
                return wrong(format!("the base's token {id}, {expected:?}"), format!("{found:?}"));
            }
        }
        Ok(Some(Self::new(tokenizer, files.chat_template.as_deref())))
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template.
    ///
    /// # Errors
    /// The model came without one, or with one that is not valid.
    pub fn template(&self) -> Result<&ChatTemplate, Error> {
        match &self.template {
            Some(Ok(template)) => Ok(template),
            Some(Err(error)) => Err(error.clone().into()),
            None => Err(Error::NoTemplate),
        }
    }

    /// Why the chat template that the model came with cannot be used, if so.
    pub(crate) fn unusable_template(&self) -> Option<&chat::Error> {
        self.template.as_ref()?.as_ref().err()
    }

    /// The tokens of a text in which special tokens are recognised, after what the model expects before every
    /// prompt (unless the text starts with that itself).
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut tokens = self.tokenizer.encode(text, Specials::Recognise)?;
        let prefix = self.tokenizer.prefix();
        if !tokens.starts_with(prefix) {
            tokens.splice(0..0, prefix.iter().copied());
        }
        Ok(tokens)
    }

    /// The tokens of a conversation, rendered by the chat template.
    ///
    /// # Errors
    /// There is no valid template, or it refuses the conversation.
    pub fn encode_chat(&self, chat: &ChatInput) -> Result<Vec<u32>, Error> {
        Ok(self.tokenizer.encode_rendered(&self.template()?.render(chat)?)?)
    }

    /// The tokens of a prompt for a model with or without a tokenizer.
    pub(crate) fn tokens_of(text: Option<&Self>, prompt: Prompt) -> Result<Tokens, Error> {
        let new_text = matches!(prompt, Prompt::Chat(_));
        let tokens = match (prompt, text) {
            (Prompt::Tokens(tokens), _) => tokens,
            (Prompt::Parts(parts), text) => return Self::tokens_of_parts(text, parts),
            (_, None) => return Err(Error::NoTokenizer),
            (Prompt::Text(prompt), Some(text)) => text.encode(&prompt)?,
            (Prompt::Chat(chat), Some(text)) => text.encode_chat(&chat)?,
        };
        Ok(Tokens { tokens, places: Vec::new(), new_text })
    }

    /// The tokens of parts. What the model expects before every prompt comes first if there is text, unless the tokens start
    /// with it themselves.
    fn tokens_of_parts(text: Option<&Self>, parts: Vec<Part>) -> Result<Tokens, Error> {
        let texts: Vec<&str> = parts.iter().filter_map(Part::text).collect();
        let (mut encoded, prefix) = match (text, texts.is_empty()) {
            (_, true) => (Vec::new(), None),
            (None, false) => return Err(Error::NoTokenizer),
            (Some(Self { tokenizer, .. }), false) => {
                (tokenizer.encode_parts(&texts)?, Some(tokenizer.prefix()))
            }
        };
        let mut encoded = encoded.drain(..);
        let (mut tokens, mut places) = (Vec::new(), Vec::new());
        for part in &parts {
            match part {
                Part::Text(_) => tokens.extend(encoded.next().unwrap_or_default()),
                Part::Tokens(part) => tokens.extend_from_slice(part),
                Part::Virtual { adapter, first } => {
                    places.push(Place { at: tokens.len(), adapter: adapter.clone(), first: *first });
                }
            }
        }
        if let Some(prefix) = prefix
            && !tokens.starts_with(prefix)
        {
            tokens.splice(0..0, prefix.iter().copied());
            places.iter_mut().for_each(|place| place.at += prefix.len());
        }
        Ok(Tokens { tokens, places, new_text: false })
    }

    /// Turns the tokens of an answer into text up to the first of `stops`.
    pub(crate) fn stream(&self, stops: Vec<String>, new_text: bool) -> Result<TextStream, Error> {
        Ok(TextStream::new(self.tokenizer.clone(), stops, new_text)?)
    }

    /// Goes on with a stream of text that was saved.
    pub(crate) fn resume(&self, saved: Saved) -> Result<TextStream, Error> {
        Ok(TextStream::resumed(self.tokenizer.clone(), saved)?)
    }
}
