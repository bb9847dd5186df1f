//! Tokenizers from the `tokenizer.json` and `tokenizer_config.json` of a Hugging Face directory.

use super::added::{AddedToken, AddedTokens};
use super::error::without_panics;
use super::pieces::{Entry, Lead, Pieces, Spelling};
use super::{Error, Frame, Model, Tokenizer, ends_of_generation};
use serde_json::Value;
use std::collections::HashMap;
use tokenizers::{Model as _, NormalizedString, Normalizer as _, NormalizerWrapper};

pub(super) const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";

impl Tokenizer {
    /// A tokenizer from the bytes of `tokenizer.json` and, where there is one, of `tokenizer_config.json`.
    ///
    /// Truncation, padding and dropout settings are left out of account: they change what a text says.
    ///
    /// # Errors
    /// A file that is not what it should be, or uses a decoder or an option that is not known; the error names it.
    pub fn from_json(tokenizer: &[u8], config: Option<&[u8]>) -> Result<Self, Error> {
        without_panics(|| Self::read_json(tokenizer, config))
    }

    fn read_json(tokenizer: &[u8], config: Option<&[u8]>) -> Result<Self, Error> {
        let mut json = parse(TOKENIZER, tokenizer)?;
        let config = config.map(|bytes| parse(CONFIG, bytes)).transpose()?.unwrap_or(Value::Null);
        let added = take_added_tokens(&mut json)?;
        let (spelling, lead) = spelling(&json["decoder"])?;
        let (prefix, suffix) = frame(&json["post_processor"])?;
        neutralise(&mut json)?;
        let library: tokenizers::Tokenizer = serde_json::from_value(json).map_err(|error| Error::Json {
            file: TOKENIZER,
            expected: "tokenizer",
            found: error.to_string(),
        })?;

        let vocabulary = library.get_model().get_vocab();
        let ids: HashMap<&str, u32> = (vocabulary.iter().map(|(text, &id)| (text.as_str(), id)))
            .chain(added.iter().map(|token| (token.content.as_str(), token.id)))
            .collect();
        let id = |text: &str| ids.get(text).copied();
        let named = |key: &str| token_text(&config[key]).and_then(id);
        let (bos, eos) = (named("bos_token"), named("eos_token"));
        // By text only among the added tokens: elsewhere `</s>` may be three letters of a word.
        let added_id = |text: &str| added.iter().find(|token| token.content == text).map(|token| token.id);
        let ends = ends_of_generation([eos, named("eot_token")], added_id);

        let entries: Vec<Entry<'_>> = (vocabulary.iter())
            .map(|(text, &id)| Entry { id, text, verbatim: false, special: false })
            .chain(added.iter().map(|token| Entry {
                id: token.id,
                text: &token.content,
                verbatim: true,
                special: token.special || ends.binary_search(&token.id).is_ok(),
            }))
            .collect();
        let pieces = Pieces::new(&entries, &spelling, lead)?;

        let mut frame = Frame { bos, eos, ends, prefix, suffix };
        frame.obey(&config);
        let (added, added_normalized) = searches(added, library.get_normalizer(), &frame)?;
        Ok(Self {
            normalizer: library.get_normalizer().cloned(),
            pre_tokenizer: library.get_pre_tokenizer().cloned(),
            model: Model::Library(Box::new(library.get_model().clone())),
            added,
            added_normalized,
            pieces,
            frame,
            chat_template: chat_template(&config["chat_template"]),
        })
    }
}

impl Frame {
    /// `add_bos_token` and `add_eos_token`, where they are given, overrule the post-processor.
    fn obey(&mut self, config: &Value) {
        if let (Some(wanted), Some(bos)) = (config["add_bos_token"].as_bool(), self.bos) {
            self.prefix.retain(|&id| id != bos);
            if wanted {
                self.prefix.insert(0, bos);
            }
        }
        if let (Some(wanted), Some(eos)) = (config["add_eos_token"].as_bool(), self.eos) {
            self.suffix.retain(|&id| id != eos);
            if wanted {
                self.suffix.push(eos);
            }
        }
    }
}

pub(super) fn parse(file: &'static str, bytes: &[u8]) -> Result<Value, Error> {
    let error = |found| Error::Json { file, expected: "JSON object", found };
    let value: Value = serde_json::from_slice(bytes).map_err(|e| error(e.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(error("another JSON value".into())) }
}

/// The added tokens, taken out of the file: they are looked for by this crate.
pub(super) fn take_added_tokens(json: &mut Value) -> Result<Vec<AddedToken>, Error> {
    let list = match json["added_tokens"].take() {
        Value::Null => return Ok(Vec::new()),
        list => list,
    };
    let mut tokens: Vec<AddedToken> = serde_json::from_value(list).map_err(|error| Error::Json {
        file: TOKENIZER,
        expected: "list of added_tokens",
        found: error.to_string(),
    })?;
    tokens.retain(|token| !token.content.is_empty());
    json["added_tokens"] = Value::Array(Vec::new());
    Ok(tokens)
}

/// Takes out what would make encoding random or lossy, and refuses what the library does not check.
fn neutralise(json: &mut Value) -> Result<(), Error> {
    json["truncation"] = Value::Null;
    json["padding"] = Value::Null;
    json["post_processor"] = Value::Null;
    if let Some(model) = json["model"].as_object_mut() {
        let is_bpe = model.get("merges").is_some();
        let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or_default();
        if is_bpe && !prefix.is_empty() {
            return Err(Error::Unsupported {
                key: "tokenizer.json: model.continuing_subword_prefix",
                found: prefix.to_owned(),
                known: "none, for BPE".into(),
            });
        }
        if model.contains_key("dropout") {
            model.insert("dropout".into(), Value::Null);
        }
    }
    Ok(())
}

/// How the decoder of a file spells tokens.
fn spelling(decoder: &Value) -> Result<(Spelling, Lead), Error> {
    let mut pairs = Vec::new();
    let (mut bytes, mut lead) = (false, Lead::Keep);
    let steps: Vec<&Value> = match decoder["decoders"].as_array() {
        Some(steps) => steps.iter().collect(),
        None if decoder.is_null() => Vec::new(),
        None => vec![decoder],
    };
    for step in steps {
        let text = |key: &str| step[key].as_str().unwrap_or_default().to_owned();
        match step["type"].as_str().unwrap_or_default() {
            "ByteLevel" => return Ok((Spelling::ByteLevel, Lead::Keep)),
            "WordPiece" => return Ok((Spelling::WordPiece { prefix: text("prefix") }, Lead::Space)),
            "Replace" if step["pattern"]["String"].as_str().is_some_and(|pattern| !pattern.is_empty()) => {
                pairs.push((
                    step["pattern"]["String"].as_str().unwrap_or_default().to_owned(),
                    text("content"),
                ));
            }
            "BPEDecoder" => pairs.push((text("suffix"), " ".to_owned())),
            "ByteFallback" => bytes = true,
            "Fuse" => {}
            "Strip" if text("content") == " " && step["start"] == 1 && step["stop"] == 0 => {
                lead = Lead::Space
            }
            "Metaspace" => {
                pairs.push((text("replacement"), " ".to_owned()));
                let never = step["prepend_scheme"] == "never" || step["add_prefix_space"] == false;
                lead = if never { Lead::Keep } else { Lead::Spaces };
            }
            found => {
                return Err(Error::Unsupported {
                    key: "tokenizer.json: decoder",
                    found: found.to_owned(),
                    known:
                        "ByteLevel, ByteFallback, Fuse, Metaspace, Replace of a string, Strip of one space, \
                            BPEDecoder, WordPiece"
                            .into(),
                });
            }
        }
    }
    Ok((Spelling::Replaced { pairs, bytes }, lead))
}

/// What a post-processor puts before and after a text.
fn frame(processor: &Value) -> Result<(Vec<u32>, Vec<u32>), Error> {
    const KEY: &str = "tokenizer.json: post_processor";
    let wrong =
        |found: &Value| Error::Key { key: KEY, expected: "ids of tokens".into(), found: found.to_string() };
    let ids = |list: &Value| -> Result<Vec<u32>, Error> {
        serde_json::from_value(list.clone()).map_err(|_| wrong(list))
    };
    let (mut prefix, mut suffix) = (Vec::new(), Vec::new());
    match processor["type"].as_str() {
        None | Some("ByteLevel") => {}
        Some("BertProcessing" | "RobertaProcessing") => {
            // Each is a pair of text and id.
            prefix = ids(&Value::Array(vec![processor["cls"][1].clone()]))?;
            suffix = ids(&Value::Array(vec![processor["sep"][1].clone()]))?;
        }
        Some("TemplateProcessing") => {
            let mut part = &mut prefix;
            for step in processor["single"].as_array().into_iter().flatten() {
                match step["SpecialToken"]["id"].as_str() {
                    Some(name) => part.extend(ids(&processor["special_tokens"][name]["ids"])?),
                    None => part = &mut suffix,
                }
            }
        }
        Some("Sequence") => {
            for step in processor["processors"].as_array().into_iter().flatten() {
                let (before, after) = frame(step)?;
                prefix.splice(0..0, before);
                suffix.extend(after);
            }
        }
        Some(found) => {
            let known =
                "BertProcessing, ByteLevel, RobertaProcessing, Sequence, TemplateProcessing".to_owned();
            return Err(Error::Unsupported { key: KEY, found: found.to_owned(), known });
        }
    }
    Ok((prefix, suffix))
}

/// The added tokens as two searches: those looked for in the text, and those looked for once it is normalized.
fn searches(
    mut added: Vec<AddedToken>,
    normalizer: Option<&NormalizerWrapper>,
    frame: &Frame,
) -> Result<(AddedTokens, AddedTokens), Error> {
    for token in &mut added {
        token.special |= frame.ends.binary_search(&token.id).is_ok();
    }
    // Special tokens first, as the library orders them, decides between tokens whose normalized texts are equal.
    added.sort_by_key(|token| !token.special);
    let (normalized, plain): (Vec<_>, Vec<_>) = added.into_iter().partition(|token| token.normalized);
    let texts: Vec<String> = plain.iter().map(|token| token.content.clone()).collect();
    let mut patterns = Vec::with_capacity(normalized.len());
    for token in &normalized {
        let mut text = NormalizedString::from(token.content.as_str());
        if let Some(normalizer) = normalizer {
            normalizer.normalize(&mut text).map_err(|error| Error::Encode { found: error.to_string() })?;
        }
        patterns.push(text.get().to_owned());
    }
    let (normalized, patterns) =
        normalized.into_iter().zip(patterns).filter(|(_, text)| !text.is_empty()).unzip();
    let patterns: Vec<String> = patterns;
    Ok((AddedTokens::new(plain, &texts)?, AddedTokens::new(normalized, &patterns)?))
}

/// A special token of a configuration: its text, or an object with it.
pub(super) fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

/// The template, or the one named `default` of several.
fn chat_template(template: &Value) -> Option<String> {
    let named = |list: &Vec<Value>| {
        let default = list.iter().find(|entry| entry["name"] == "default")?;
        default["template"].as_str().map(str::to_owned)
    };
    template.as_str().map(str::to_owned).or_else(|| template.as_array().and_then(named))
}
