//! Tokenizers from the metadata of GGUF files.

use super::added::{AddedToken, AddedTokens};
use super::pieces::{Entry, Lead, Pieces, Spelling};
use super::spm::ScoreBpe;
use super::{Error, Frame, Model, TokenType, Tokenizer, Vocabulary, bytes, ends_of_generation, pre};
use std::collections::HashMap;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{ModelWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

const TOKENS: &str = "tokenizer.ggml.tokens";

/// What the kind of vocabulary decides.
struct Kind {
    model: Model,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    spelling: Spelling,
    lead: Lead,
    /// Whether prompts start with BOS when the file does not say.
    add_bos: bool,
}

impl Tokenizer {
    /// A tokenizer from the vocabulary of a GGUF file.
    ///
    /// # Errors
    /// A kind or pre-tokenizer that is not known, lists of different lengths, a token twice, a merge of tokens that
    /// do not exist, an id out of range; the error names the key.
    pub fn from_vocabulary(vocabulary: Vocabulary) -> Result<Self, Error> {
        let Checked { ids, types } = Checked::check(&vocabulary)?;
        let id = |text: &str| ids.get(text).copied();
        let sentence_piece = vocabulary.model == "llama";
        // The ids that SentencePiece itself gives when a file is silent.
        let bos = vocabulary.bos_token_id.or((sentence_piece && vocabulary.tokens.len() > 1).then_some(1));
        let eos = vocabulary.eos_token_id.or((sentence_piece && vocabulary.tokens.len() > 2).then_some(2));
        let ends = ends_of_generation([eos, vocabulary.eot_token_id, vocabulary.eom_token_id], id);
        let special = |id: u32| types[id as usize].is_special() || ends.binary_search(&id).is_ok();

        let kind = match vocabulary.model.as_str() {
            "gpt2" => byte_level(&vocabulary, &ids, special)?,
            "llama" => sentence_piece_bpe(&vocabulary, &types, special)?,
            found => {
                let known = "gpt2, llama".to_owned();
                return Err(Error::Unsupported { key: "tokenizer.ggml.model", found: found.into(), known });
            }
        };

        let all = || (0u32..).zip(&vocabulary.tokens);
        let is_added = |id: u32| special(id) || types[id as usize] == TokenType::UserDefined;
        let entries: Vec<Entry<'_>> = all()
            .map(|(id, text)| Entry { id, text, verbatim: is_added(id), special: special(id) })
            .collect();
        let pieces = Pieces::new(&entries, &kind.spelling, kind.lead)?;
        let (added, texts): (Vec<_>, Vec<_>) = all()
            .filter(|&(id, text)| is_added(id) && !text.is_empty())
            .map(|(id, text)| {
                let token =
                    AddedToken { id, content: text.clone(), special: special(id), ..AddedToken::default() };
                (token, text.clone())
            })
            .unzip();

        let with = |wanted: bool, id: Option<u32>| id.filter(|_| wanted).into_iter().collect();
        let frame = Frame {
            prefix: with(vocabulary.add_bos_token.unwrap_or(kind.add_bos), bos),
            suffix: with(vocabulary.add_eos_token.unwrap_or(false), eos),
            bos,
            eos,
            ends,
        };
        Ok(Self {
            model: kind.model,
            normalizer: None,
            pre_tokenizer: kind.pre_tokenizer,
            added: AddedTokens::new(added, &texts)?,
            added_normalized: AddedTokens::new(Vec::new(), &[])?,
            pieces,
            frame,
            chat_template: vocabulary.chat_template,
        })
    }
}

/// The lists of a vocabulary, checked against each other.
struct Checked<'v> {
    ids: HashMap<&'v str, u32>,
    types: Vec<TokenType>,
}

impl<'v> Checked<'v> {
    fn check(vocabulary: &'v Vocabulary) -> Result<Self, Error> {
        let count = vocabulary.tokens.len();
        let wrong = |key, expected: String, found: String| Err(Error::Key { key, expected, found });
        if count == 0 {
            return wrong(TOKENS, "at least one token".into(), "none".into());
        }
        let mut ids = HashMap::with_capacity(count);
        for (id, text) in (0u32..).zip(&vocabulary.tokens) {
            // Empty entries are rows without a meaning, of which there may be many.
            if let Some(other) = ids.insert(text.as_str(), id).filter(|_| !text.is_empty()) {
                return wrong(TOKENS, "every token once".into(), format!("`{text}` as {other} and {id}"));
            }
        }
        let types: Vec<_> = match vocabulary.token_type.len() {
            0 => vec![TokenType::Normal; count],
            found if found != count => {
                return wrong("tokenizer.ggml.token_type", format!("{count} entries"), found.to_string());
            }
            _ => vocabulary.token_type.iter().map(|&number| TokenType::from_number(number)).collect(),
        };
        for (key, id) in [
            ("tokenizer.ggml.bos_token_id", vocabulary.bos_token_id),
            ("tokenizer.ggml.eos_token_id", vocabulary.eos_token_id),
            ("tokenizer.ggml.eot_token_id", vocabulary.eot_token_id),
            ("tokenizer.ggml.eom_token_id", vocabulary.eom_token_id),
            ("tokenizer.ggml.unknown_token_id", vocabulary.unknown_token_id),
        ] {
            if let Some(id) = id.filter(|&id| id as usize >= count) {
                return wrong(key, format!("an id below {count}"), id.to_string());
            }
        }
        Ok(Self { ids, types })
    }
}

/// Byte-level BPE with merges.
fn byte_level(
    vocabulary: &Vocabulary,
    ids: &HashMap<&str, u32>,
    special: impl Fn(u32) -> bool,
) -> Result<Kind, Error> {
    const PRE: &str = "tokenizer.ggml.pre";
    const MERGES: &str = "tokenizer.ggml.merges";
    let name = vocabulary.pre.as_deref().unwrap_or("default");
    let cuts = pre::find(name).ok_or_else(|| Error::Unsupported {
        key: PRE,
        found: name.to_owned(),
        known: pre::names(),
    })?;
    let wrong = |merge: &str| Error::Key {
        key: MERGES,
        expected: "two tokens whose union is a token".into(),
        found: format!("`{merge}`"),
    };
    let mut merges = Vec::with_capacity(vocabulary.merges.len());
    for merge in &vocabulary.merges {
        // The left part may itself start with a space, in vocabularies that are not byte-level inside.
        let space = merge.char_indices().skip(1).find(|&(_, c)| c == ' ').ok_or_else(|| wrong(merge))?.0;
        let (left, right) = (&merge[..space], &merge[space + 1..]);
        let parts = [left, right, &format!("{left}{right}")].map(|part| ids.get(part).copied());
        match parts {
            [Some(a), Some(b), Some(c)] if [a, b, c].into_iter().any(&special) => {}
            [Some(_), Some(_), Some(_)] => merges.push((left.to_owned(), right.to_owned())),
            _ => return Err(wrong(merge)),
        }
    }
    // Special tokens are left out, so that no text can spell one.
    let texts: Vocab = ids
        .iter()
        .filter(|&(text, &id)| !text.is_empty() && !special(id))
        .map(|(&text, &id)| (text.to_owned(), id))
        .collect();
    let library = |key, error: tokenizers::Error| Error::Key {
        key,
        expected: "what the tokenizer library accepts".into(),
        found: error.to_string(),
    };
    let model = BPE::builder()
        .vocab_and_merges(texts, merges)
        .ignore_merges(cuts.ignore_merges)
        .build()
        .map_err(|error| library(MERGES, error))?;
    let mut steps = Vec::with_capacity(cuts.expressions.len() + 1);
    for &expression in cuts.expressions {
        let pattern = SplitPattern::Regex(expression.to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            .map_err(|error| library(PRE, error))?;
        steps.push(PreTokenizerWrapper::Split(split));
    }
    steps.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false)));
    Ok(Kind {
        model: Model::Library(Box::new(ModelWrapper::BPE(model))),
        pre_tokenizer: Some(PreTokenizerWrapper::Sequence(Sequence::new(steps))),
        spelling: Spelling::ByteLevel,
        lead: Lead::Keep,
        add_bos: cuts.add_bos,
    })
}

/// SentencePiece BPE with scores.
fn sentence_piece_bpe(
    vocabulary: &Vocabulary,
    types: &[TokenType],
    special: impl Fn(u32) -> bool,
) -> Result<Kind, Error> {
    let (count, found) = (vocabulary.tokens.len(), vocabulary.scores.len());
    let wrong = |expected, found| Err(Error::Key { key: "tokenizer.ggml.scores", expected, found });
    if found != count {
        return wrong(format!("{count} entries"), found.to_string());
    }
    if let Some(nan) = vocabulary.scores.iter().position(|score| score.is_nan()) {
        return wrong("numbers".into(), format!("NaN for token {nan}"));
    }
    let mut tokens = HashMap::with_capacity(count);
    let mut by_byte = Box::new([None; 256]);
    for (id, text) in (0u32..).zip(&vocabulary.tokens) {
        let at = id as usize;
        match types[at] {
            TokenType::Byte => {
                let Some(byte) = bytes::fallback(text) else {
                    let (expected, found) = ("byte tokens like `<0x0A>`".into(), format!("`{text}`"));
                    return Err(Error::Key { key: TOKENS, expected, found });
                };
                by_byte[usize::from(byte)] = Some(id);
            }
            // Text never spells a special token, whatever pieces it is made of.
            _ if special(id) || text.is_empty() => {}
            _ => {
                tokens.insert(text.clone(), (id, vocabulary.scores[at]));
            }
        }
    }
    let space_prefix = vocabulary.add_space_prefix.unwrap_or(true);
    let unknown = vocabulary
        .unknown_token_id
        .or_else(|| types.iter().position(|&t| t == TokenType::Unknown)?.try_into().ok());
    Ok(Kind {
        model: Model::Scores(ScoreBpe { tokens, bytes: by_byte, unknown, space_prefix }),
        pre_tokenizer: None,
        spelling: Spelling::sentence_piece(),
        lead: if space_prefix { Lead::Space } else { Lead::Keep },
        add_bos: true,
    })
}
