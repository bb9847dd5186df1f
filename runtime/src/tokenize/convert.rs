//! From the tokenizer of a Hugging Face directory to the vocabulary of a GGUF file, as llama.cpp's converter writes it.
//!
//! GGUF knows two kinds of vocabulary and a list of pre-tokenizers by name. A tokenizer that is none of these is refused, and so is one
//! that cuts a text full of corner cases in another way than its vocabulary does.

use std::collections::HashMap;

use serde_json::Value;

use super::added::AddedToken;
use super::sentence_piece::pieces;
use super::{Error, Specials, TokenType, Tokenizer, Vocabulary, json, pre};

/// The files of a tokenizer.
pub(crate) struct Files<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer.model`.
    pub sentence_piece: Option<&'a [u8]>,
    /// `tokenizer_config.json`.
    pub config: Option<&'a Value>,
    /// `config.json`.
    pub model: &'a Value,
    /// `chat_template.jinja`.
    pub chat_template: Option<&'a str>,
}

/// Texts that pre-tokenizers and vocabularies cut in different ways.
const CORNERS: [&str; 4] = [
    "\n \n\n \t\t \t\n  x   \r\n\r\n    y\u{a0}z  ",
    "3 33 333 3333 33333333 3.14 1,000,000 x2y 2x \u{664}\u{665} \u{4e03}7",
    "I've it'LL we'Re 'tis DON'T camelCase SHOUTING iPhone _under_score a/b\\c ------=== ''''''```\"\"\"...!!!??? (x) #[y] 1+1=2;",
    "\u{d1}and\u{fa} \u{43d}\u{435}\u{449}\u{43e} \u{5728}apple\u{5de5}\u{4f5c} \u{1f680}\u{1f636}\u{200d}\u{1f32b}\u{fe0f} \
     \u{1780}\u{17b6}\u{1793}\u{17cb} \u{e44}\u{e17}\u{e22} a\u{301}e\u{308} \u{1d400} \u{feff}q",
];

impl Vocabulary {
    /// The vocabulary of a model with so many rows in its embedding.
    ///
    /// # Errors
    /// What has no form in GGUF files, by its file and key.
    pub(crate) fn from_files(files: &Files<'_>, rows: usize) -> Result<Self, Error> {
        let tokenizer = json::parse(json::TOKENIZER, files.tokenizer)?;
        let kind = kind(&tokenizer)?;
        let text = files.config.map(Value::to_string);
        let reference = Tokenizer::from_json(files.tokenizer, text.as_deref().map(str::as_bytes))?;
        let mut added = added(&tokenizer)?;
        let mut vocabulary = match kind {
            Kind::ByteLevel { pre } => byte_level(&tokenizer, pre, rows)?,
            Kind::SentencePiece => {
                let bytes = files.sentence_piece.ok_or_else(|| {
                    wrong("tokenizer.model", "the scores of a SentencePiece vocabulary", "no such file")
                })?;
                scored(bytes)?
            }
        };
        for token in &mut added {
            vocabulary.add(token, rows)?;
        }
        vocabulary.fill(rows)?;
        vocabulary.roles(files, &reference, &added)?;
        vocabulary.check(&reference)?;
        Ok(vocabulary)
    }

    /// Gives a row to an added token.
    fn add(&mut self, token: &AddedToken, rows: usize) -> Result<(), Error> {
        let key = "tokenizer.json: added_tokens";
        if token.lstrip || token.rstrip || token.single_word {
            let expected = "tokens without lstrip, rstrip and single_word";
            return Err(wrong(key, expected, &token.content));
        }
        let id = token.id as usize;
        if id >= rows {
            return Err(wrong(key, &format!("ids below {rows}"), &id.to_string()));
        }
        if id >= self.tokens.len() {
            self.fill(id + 1)?;
        }
        let is_control = token.special || looks_special(&token.content);
        let kind = if is_control { TokenType::Control } else { TokenType::UserDefined };
        self.token_type[id] = kind.number().into();
        // Spaces of tokens that are looked for in text are those of the text.
        self.tokens[id] =
            if is_control { token.content.clone() } else { token.content.replace('\u{2581}', " ") };
        if let Some(score) = self.scores.get_mut(id) {
            *score = -1000.0;
        }
        Ok(())
    }

    /// Gives rows without a meaning to ids up to `rows`.
    fn fill(&mut self, rows: usize) -> Result<(), Error> {
        let found = self.tokens.len();
        if found > rows {
            return Err(wrong(
                "tokenizer.json",
                &format!("at most the {rows} tokens of the embedding"),
                &found.to_string(),
            ));
        }
        self.tokens.extend((found..rows).map(|id| format!("[PAD{id}]")));
        self.token_type.resize(rows, TokenType::Unused.number().into());
        if self.model == "llama" {
            self.scores.resize(rows, -10_000.0);
        }
        Ok(())
    }

    /// The tokens with a role, and what is put around a text.
    fn roles(&mut self, files: &Files<'_>, reference: &Tokenizer, added: &[AddedToken]) -> Result<(), Error> {
        let config = files.config.unwrap_or(&Value::Null);
        let role = |name: &str| {
            let text = json::token_text(&config[format!("{name}_token")]);
            let named = text.and_then(|text| added.iter().find(|token| token.content == text));
            let id = || u32::try_from(files.model[format!("{name}_token_id")].as_u64()?).ok();
            named.map(|token| token.id).or_else(id).filter(|&id| (id as usize) < self.tokens.len())
        };
        (self.bos_token_id, self.eos_token_id) = (role("bos"), role("eos"));
        (self.unknown_token_id, self.padding_token_id) = (role("unk"), role("pad"));
        let around = |ids: &[u32], role: Option<u32>| match ids {
            [] => Ok(false),
            [id] if Some(*id) == role => Ok(true),
            ids => Err(wrong(
                "tokenizer.json: post_processor",
                "nothing but BOS before and EOS after a text",
                &format!("{ids:?}"),
            )),
        };
        self.add_bos_token = Some(around(reference.prefix(), self.bos_token_id)?);
        self.add_eos_token = Some(around(reference.suffix(), self.eos_token_id)?);
        self.add_space_prefix = config["add_prefix_space"].as_bool();
        self.chat_template = files.chat_template.or(reference.chat_template()).map(str::to_owned);
        Ok(())
    }

    /// Refuses a vocabulary that cuts texts in another way than `reference`.
    fn check(&self, reference: &Tokenizer) -> Result<(), Error> {
        let written = Tokenizer::from_vocabulary(self.clone())?;
        for text in CORNERS {
            let [expected, found] =
                [reference, &written].map(|tokenizer| tokenizer.encode(text, Specials::AsText));
            let (expected, found) = (expected?, found?);
            if expected != found {
                let at = expected.iter().zip(&found).take_while(|(a, b)| a == b).count();
                let rest = |ids: &[u32], tokenizer: &Tokenizer| {
                    let ids = &ids[at..(at + 4).min(ids.len())];
                    format!("{:?} ({ids:?})", tokenizer.decode(ids))
                };
                return Err(wrong(
                    "tokenizer.json",
                    &format!("what a GGUF vocabulary makes of a text, {}", rest(&found, &written)),
                    &rest(&expected, reference),
                ));
            }
        }
        Ok(())
    }
}

fn wrong(key: &'static str, expected: &str, found: &str) -> Error {
    Error::Key { key, expected: expected.to_owned(), found: found.to_owned() }
}

/// The added tokens, by id.
fn added(tokenizer: &Value) -> Result<Vec<AddedToken>, Error> {
    let mut tokens = json::take_added_tokens(&mut tokenizer.clone())?;
    tokens.sort_by_key(|token| token.id);
    Ok(tokens)
}

/// Whether llama.cpp's converter takes an added token for a control token by its looks.
fn looks_special(text: &str) -> bool {
    let within = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || within("<|", "|>")
        || within("<\u{ff5c}", "\u{ff5c}>")
        || within("<unused", ">")
}

/// The kinds of vocabulary that GGUF knows.
enum Kind {
    ByteLevel { pre: &'static str },
    SentencePiece,
}

fn kind(tokenizer: &Value) -> Result<Kind, Error> {
    let model = &tokenizer["model"];
    let name = model["type"].as_str().unwrap_or_default();
    if name != "BPE" {
        return Err(wrong("tokenizer.json: model.type", "BPE", name));
    }
    if model["byte_fallback"] == true {
        // Its normalizer is told by how it cuts texts.
        return Ok(Kind::SentencePiece);
    }
    if !tokenizer["normalizer"].is_null() {
        let found = tokenizer["normalizer"].to_string();
        return Err(wrong("tokenizer.json: normalizer", "none, as GGUF files have none", &found));
    }
    let found = &tokenizer["pre_tokenizer"];
    let ignore_merges = model["ignore_merges"] == true;
    let pre = expressions(found).and_then(|cuts| pre::name_of(&cuts, ignore_merges));
    let pre = pre.ok_or_else(|| {
        wrong("tokenizer.json: pre_tokenizer", &format!("one of {}", pre::names()), &found.to_string())
    })?;
    Ok(Kind::ByteLevel { pre })
}

/// The expressions that a pre-tokenizer cuts by, one after the other.
fn expressions(pre_tokenizer: &Value) -> Option<Vec<&str>> {
    let steps = match pre_tokenizer["pretokenizers"].as_array() {
        Some(steps) if pre_tokenizer["type"] == "Sequence" => steps.as_slice(),
        _ => std::slice::from_ref(pre_tokenizer),
    };
    let (last, before) = steps.split_last()?;
    let mut expressions = Vec::new();
    for step in before {
        match step["type"].as_str()? {
            "Digits" if step["individual_digits"] == true => expressions.push(pre::DIGIT),
            "Split" if step["behavior"] == "Isolated" && step["invert"] != true => {
                expressions.push(step["pattern"]["Regex"].as_str()?);
            }
            _ => return None,
        }
    }
    if last["type"] != "ByteLevel" || last["add_prefix_space"] == true {
        return None;
    }
    if last["use_regex"] != false {
        expressions.push(pre::GPT2);
    }
    Some(expressions)
}

/// A vocabulary with merges, without added tokens.
fn byte_level(tokenizer: &Value, pre: &str, rows: usize) -> Result<Vocabulary, Error> {
    let model = &tokenizer["model"];
    let key = "tokenizer.json: model.vocab";
    let ids: HashMap<String, usize> = serde_json::from_value(model["vocab"].clone())
        .map_err(|error| wrong(key, "tokens and their ids", &error.to_string()))?;
    let mut vocabulary =
        Vocabulary { model: "gpt2".to_owned(), pre: Some(pre.to_owned()), ..Vocabulary::default() };
    vocabulary.fill(rows)?;
    for (text, id) in ids {
        match vocabulary.token_type.get_mut(id) {
            Some(kind) if *kind == i64::from(TokenType::Unused.number()) => {
                *kind = TokenType::Normal.number().into();
                vocabulary.tokens[id] = text;
            }
            Some(_) => return Err(wrong(key, "one token for each id", &id.to_string())),
            None => return Err(wrong(key, &format!("ids below {rows}"), &id.to_string())),
        }
    }
    let key = "tokenizer.json: model.merges";
    let merge = |merge: &Value| match merge {
        Value::String(text) => Some(text.clone()),
        Value::Array(pair) => match [pair.first()?.as_str()?, pair.get(1)?.as_str()?] {
            [left, right] if !left.contains(' ') && !right.contains(' ') => Some(format!("{left} {right}")),
            _ => None,
        },
        _ => None,
    };
    let merges = model["merges"].as_array().into_iter().flatten();
    vocabulary.merges = merges
        .map(|found| {
            merge(found).ok_or_else(|| wrong(key, "pairs of tokens without spaces", &found.to_string()))
        })
        .collect::<Result<_, _>>()?;
    Ok(vocabulary)
}

/// A vocabulary with scores, without added tokens.
fn scored(bytes: &[u8]) -> Result<Vocabulary, Error> {
    let mut vocabulary =
        Vocabulary { model: "llama".to_owned(), pre: Some("default".to_owned()), ..Vocabulary::default() };
    for piece in pieces(bytes)? {
        // As the converter has it; those that are looked for in text come as added tokens.
        let kind = if piece.kind == TokenType::UserDefined { TokenType::Normal } else { piece.kind };
        vocabulary.tokens.push(piece.text);
        vocabulary.scores.push(piece.score);
        vocabulary.token_type.push(kind.number().into());
    }
    Ok(vocabulary)
}
