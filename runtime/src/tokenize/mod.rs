//! Text to token ids and back.
//!
//! A [`Tokenizer`] comes from a Hugging Face directory ([`Tokenizer::from_json`]) or from the metadata of a GGUF file
//! ([`Tokenizer::from_gguf`]). For the first the `tokenizers` crate is the definition; for the second llama.cpp
//! is, whose expressions and rules [`Vocabulary`] names. The two differ for one model where a converter drops
//! something: GGUF files carry no normalizer, so Qwen's NFC step does not happen, as in llama.cpp.
//!
//! # Special tokens
//! Text that comes from users must not be able to end a turn or start one as another role. So every encoding says
//! what the text is: [`Specials::Recognise`] for prompts that a developer wrote, [`Specials::AsText`] for all else.
//! Rendered chats know which of their spans are which, see [`crate::chat`].
//!
//! ```
//! use graftwork::tokenize::{Specials, Tokenizer, Vocabulary};
//!
//! // Two bytes, their union, and a control token: the smallest vocabulary of the GPT-2 kind.
//! let tokenizer = Tokenizer::from_vocabulary(Vocabulary {
//!     model: "gpt2".into(),
//!     pre: Some("gpt-2".into()),
//!     tokens: ["h", "i", "hi", "<|end|>", "<", "|", ">", "e", "n", "d"].map(String::from).into(),
//!     merges: vec!["h i".into()],
//!     token_type: vec![1, 1, 1, 3, 1, 1, 1, 1, 1, 1],
//!     eos_token_id: Some(3),
//!     ..Vocabulary::default()
//! })?;
//! assert_eq!(tokenizer.encode("hi<|end|>", Specials::Recognise)?, [2, 3]);
//! assert_eq!(tokenizer.encode("hi<|end|>", Specials::AsText)?, [2, 4, 5, 7, 8, 9, 5, 6]);
//! assert_eq!(tokenizer.decode(&[2, 3]), "hi<|end|>");
//! assert!(tokenizer.is_end_of_generation(3));
//! # Ok::<(), graftwork::tokenize::Error>(())
//! ```

mod added;
mod bytes;
mod convert;
mod error;
mod gguf;
mod json;
mod metadata;
mod pieces;
mod pre;
mod sentence_piece;
mod spm;
mod vocabulary;

pub(crate) use convert::Files;
pub use error::Error;
pub use vocabulary::{TokenType, Vocabulary};

use crate::chat::Rendered;
use added::AddedTokens;
pub(crate) use pieces::Lead;
use pieces::Pieces;
use std::ops::Range;
use tokenizers::normalizer::Range as Span;
use tokenizers::{
    Model as _, ModelWrapper, NormalizedString, Normalizer as _, NormalizerWrapper, OffsetReferential,
    OffsetType, PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper, Token,
};

/// Whether the text of a special token becomes the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// It does: the text was written by who is allowed to use them.
    Recognise,
    /// It stays text. Added tokens that are not special are still recognised, as in transformers and llama.cpp.
    AsText,
}

/// What turns a run of text into ids.
#[derive(Debug)]
enum Model {
    /// A model of the `tokenizers` crate.
    Library(Box<ModelWrapper>),
    /// SentencePiece BPE from the scores of a GGUF vocabulary.
    Scores(spm::ScoreBpe),
}

/// Turns text into token ids and ids into text. Immutable and shareable between threads.
#[derive(Debug)]
pub struct Tokenizer {
    model: Model,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    /// Looked for in the text as it is.
    added: AddedTokens,
    /// Looked for in the normalized text.
    added_normalized: AddedTokens,
    pieces: Pieces,
    frame: Frame,
    chat_template: Option<String>,
}

/// The special tokens with a role.
#[derive(Debug, Clone, Default)]
struct Frame {
    bos: Option<u32>,
    eos: Option<u32>,
    /// Ids that end a generation, in order.
    ends: Vec<u32>,
    /// Put before and after a prompt.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
}

/// Texts of tokens that end a turn, a message or a file, whatever the metadata says; as llama.cpp lists them.
const ENDS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
];

impl Tokenizer {
    /// The number of ids, from 0 to the highest one with a token.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The token that begins a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.frame.bos
    }

    /// The token that ends a sequence.
    pub fn eos(&self) -> Option<u32> {
        self.frame.eos
    }

    /// All tokens that end a generation, by id: end of sequence, of turn, of message, of file.
    pub fn ends_of_generation(&self) -> &[u32] {
        &self.frame.ends
    }

    /// Whether a generation ends with this token.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.frame.ends.binary_search(&id).is_ok()
    }

    /// What the model expects before every prompt that is not a rendered chat: BOS or nothing, mostly.
    pub fn prefix(&self) -> &[u32] {
        &self.frame.prefix
    }

    /// What the model expects after every text that it encodes, which generation leaves out.
    pub fn suffix(&self) -> &[u32] {
        &self.frame.suffix
    }

    /// The Jinja source of the chat template that came with the vocabulary.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The id of the token with this text, as the vocabulary writes it.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.pieces.id(text)
    }

    /// The bytes that a token adds to a text; none for an id without a token.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.pieces.bytes(id)
    }

    /// Whether the token is one that text from users cannot become.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// The ids of a text, without [`prefix`](Self::prefix) and [`suffix`](Self::suffix).
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>, Error> {
        match specials {
            Specials::Recognise => self.encode_spans(text, &[]),
            Specials::AsText => self.encode_spans(text, std::slice::from_ref(&(0..text.len()))),
        }
    }

    /// The ids of a rendered chat: special tokens are recognised in the template's own text only.
    ///
    /// Text is cut at the recognised tokens alone, so words that a template and a user write together are encoded as
    /// one, and without special text from users the ids are those of [`Specials::Recognise`].
    ///
    /// # Errors
    /// [`Error::SpecialInText`] if a string that the template has taken apart, or a name, holds the text of
    /// a special token.
    pub fn encode_rendered(&self, rendered: &Rendered) -> Result<Vec<u32>, Error> {
        for text in rendered.unmarked() {
            if let Some(token) =
                self.added.special_in(text).or_else(|| self.added_normalized.special_in(text))
            {
                let text = text.chars().take(80).collect();
                return Err(Error::SpecialInText { token: token.content.clone(), text });
            }
        }
        self.encode_spans(rendered.text(), rendered.user_spans())
    }

    /// The ids of a text whose spans `user`, in order and without overlap, come from users.
    pub fn encode_spans(&self, text: &str, user: &[Range<usize>]) -> Result<Vec<u32>, Error> {
        let mut ids = self.encode_cut(text, user, &[])?;
        Ok(ids.pop().unwrap_or_default())
    }

    /// The ids of each part of a prompt in which something that is no text stands between them: as if that were special tokens.
    /// Special tokens are recognised within the parts.
    pub fn encode_parts(&self, parts: &[&str]) -> Result<Vec<Vec<u32>>, Error> {
        let mut ends = Vec::with_capacity(parts.len());
        for part in parts {
            ends.push(ends.last().unwrap_or(&0) + part.len());
        }
        ends.pop();
        let mut ids = self.encode_cut(&parts.concat(), &[], &ends)?;
        ids.truncate(parts.len());
        Ok(ids)
    }

    /// The ids of each part of a text that is cut at the offsets `cuts`, in order.
    fn encode_cut(&self, text: &str, user: &[Range<usize>], cuts: &[usize]) -> Result<Vec<Vec<u32>>, Error> {
        error::without_panics(|| {
            let ids = self.cut_and_encode(text, user, cuts);
            ids.map_err(|error| Error::Encode { found: error.to_string() })
        })
    }

    /// The pipeline of the `tokenizers` crate, with added tokens looked for by [`AddedTokens::find`].
    fn cut_and_encode(
        &self,
        text: &str,
        user: &[Range<usize>],
        cuts: &[usize],
    ) -> tokenizers::Result<Vec<Vec<u32>>> {
        let mut pieces = PreTokenizedString::from(text);
        if !cuts.is_empty() {
            pieces.split(|_, piece| {
                let starts = [0].into_iter().chain(cuts.iter().copied());
                let ranges = starts.zip(cuts.iter().copied().chain([text.len()]));
                let parts = ranges.filter(|(start, end)| start < end).map(|(start, end)| {
                    let part =
                        piece.slice(Span::Normalized(start..end)).ok_or("a part outside of the text")?;
                    Ok((part, None))
                });
                parts.collect::<tokenizers::Result<Vec<(_, Option<Vec<Token>>)>>>()
            })?;
        }
        pieces.split(|_, piece| cut(&piece, self.added.find(piece.get(), user)))?;
        pieces.split(|_, mut piece| {
            if let Some(normalizer) = &self.normalizer {
                normalizer.normalize(&mut piece)?;
            }
            if self.added_normalized.is_empty() {
                return Ok(vec![(piece, None)]);
            }
            let found = self.added_normalized.find(piece.get(), &spans_within(&piece, user));
            cut(&piece, found)
        })?;
        if let Some(pre_tokenizer) = &self.pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| match &self.model {
            Model::Library(model) => model.tokenize(piece.get()),
            Model::Scores(model) => Ok(model.encode(piece.get()).into_iter().map(token).collect()),
        })?;
        let mut ids = vec![Vec::new(); cuts.len() + 1];
        for (_, (start, _), tokens) in pieces.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            let part = &mut ids[cuts.partition_point(|&cut| cut <= start)];
            part.extend(tokens.iter().flatten().map(|token| token.id));
        }
        Ok(ids)
    }

    /// The text of the ids, special tokens included; bytes that are not UTF-8 become U+FFFD.
    ///
    /// Vocabularies that put a space before the first word lose it again here. For ids that continue a text see
    /// [`crate::stream::Detokenizer::continuing`].
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = crate::stream::Detokenizer::new();
        let mut text: String = ids.iter().map(|&id| stream.push(self, id)).collect();
        text.push_str(&stream.finish());
        text
    }

    /// What decoding removes from the start of a text.
    pub(crate) fn lead(&self) -> Lead {
        self.pieces.lead
    }
}

/// A token of the `tokenizers` crate of which only the id matters.
fn token(id: u32) -> Token {
    Token { id, value: String::new(), offsets: (0, 0) }
}

/// A piece cut at the added tokens that were found in it.
fn cut(
    piece: &NormalizedString,
    found: Vec<(Range<usize>, u32)>,
) -> tokenizers::Result<Vec<(NormalizedString, Option<Vec<Token>>)>> {
    let slice =
        |range: Range<usize>| piece.slice(Span::Normalized(range)).ok_or("added token outside of the text");
    let mut parts = Vec::with_capacity(2 * found.len() + 1);
    let mut from = 0;
    for (range, id) in found {
        if from < range.start {
            parts.push((slice(from..range.start)?, None));
        }
        from = range.end;
        parts.push((slice(range)?, Some(vec![token(id)])));
    }
    if from == 0 {
        return Ok(vec![(piece.clone(), None)]);
    }
    if from < piece.get().len() {
        parts.push((slice(from..piece.get().len())?, None));
    }
    Ok(parts)
}

/// The parts of a normalized piece that come from users; all of it where that cannot be told.
fn spans_within(piece: &NormalizedString, user: &[Range<usize>]) -> Vec<Range<usize>> {
    let (start, end) = piece.offsets_original();
    user.iter()
        .filter(|span| span.start < end && start < span.end)
        .map(|span| {
            let original = span.start.max(start) - start..span.end.min(end) - start;
            piece.convert_offsets(Span::Original(original)).unwrap_or(0..piece.get().len())
        })
        .collect()
}

/// The set of ids that end a generation: those the file names and those whose text says so.
fn ends_of_generation(
    named: impl IntoIterator<Item = Option<u32>>,
    id: impl Fn(&str) -> Option<u32>,
) -> Vec<u32> {
    let mut ends: Vec<u32> =
        named.into_iter().flatten().chain(ENDS.iter().filter_map(|text| id(text))).collect();
    // In the Harmony format `<|end|>` ends a message, not the answer.
    if id("<|return|>").is_some() && id("<|call|>").is_some() {
        ends.retain(|&end| Some(end) != id("<|end|>"));
    }
    ends.sort_unstable();
    ends.dedup();
    ends
}
