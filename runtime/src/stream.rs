//! Tokens to text while they are being generated: whole characters only, and never a part of a stop string.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::tokenize::{Lead, Tokenizer};

/// Joins bytes to text as they come.
///
/// A character is held back until its last byte is there. The pieces of text, put together, are what
/// [`String::from_utf8_lossy`] makes of all bytes: what can no longer become a character is U+FFFD.
#[derive(Debug, Clone, Default)]
pub struct Characters {
    /// The beginning of a character.
    held: Vec<u8>,
}

impl Characters {
    /// The text that these bytes complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        let mut done = 0;
        loop {
            match std::str::from_utf8(&self.held[done..]) {
                Ok(rest) => {
                    text.push_str(rest);
                    done = self.held.len();
                    break;
                }
                Err(error) => {
                    let valid = done + error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.held[done..valid]));
                    done = valid;
                    let Some(length) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    done += length;
                }
            }
        }
        self.held.drain(..done);
        text
    }

    /// What is left at the end: U+FFFD if a character was begun, else nothing.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

/// Turns tokens into the characters that they complete.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    characters: Characters,
    /// Whether nothing came yet that the vocabulary's rule for the first space applies to.
    at_start: bool,
    specials: bool,
}

impl Default for Detokenizer {
    fn default() -> Self {
        Self::new()
    }
}

impl Detokenizer {
    /// For a text of its own: a space that the vocabulary puts before the first word is removed.
    pub fn new() -> Self {
        Self { characters: Characters::default(), at_start: true, specials: true }
    }

    /// For tokens that continue a text, whose first space is kept.
    pub fn continuing() -> Self {
        Self { at_start: false, ..Self::new() }
    }

    /// Leaves out special tokens, such as the one that ends a turn.
    pub fn without_specials(self) -> Self {
        Self { specials: false, ..self }
    }

    /// The text that a token completes, often none; ids without a token add nothing.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        if !self.specials && tokenizer.is_special(id) {
            return String::new();
        }
        let mut bytes = tokenizer.token_bytes(id).unwrap_or_default();
        if self.at_start && !bytes.is_empty() {
            self.at_start = false;
            bytes = match tokenizer.lead() {
                Lead::Keep => bytes,
                Lead::Space => bytes.strip_prefix(b" ").unwrap_or(bytes),
                Lead::Spaces => &bytes[bytes.iter().take_while(|&&b| b == b' ').count()..],
            };
        }
        self.characters.push(bytes)
    }

    /// What is left at the end.
    pub fn finish(&mut self) -> String {
        self.characters.finish()
    }
}

/// A list of stop strings that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A stop string without characters, which every text contains.
    #[error("stop[{index}]: expected at least one character, found none")]
    Empty {
        /// Its place in the list.
        index: usize,
    },
}

/// What a push lets through.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pushed {
    /// Text that is certainly before any stop string.
    pub text: String,
    /// Whether a stop string was found. Nothing after it passes.
    pub stopped: bool,
}

/// The text of one answer: whole characters, special tokens left out, up to the first stop string.
#[derive(Debug, Clone)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    detokenizer: Detokenizer,
    stops: StopStrings,
}

/// A [`TextStream`] between two tokens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    stops: Vec<String>,
    at_start: bool,
    /// The beginning of a character.
    bytes: Vec<u8>,
    /// What may become a stop text.
    text: String,
}

impl Saved {
    /// Whether a stream can hold so much back.
    pub(crate) fn is_possible(&self) -> bool {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        self.bytes.len() < 4 && self.text.len() <= longest
    }
}

impl TextStream {
    /// The text of tokens that answer a prompt. Its first space is kept where it continues a text, and removed where
    /// `new_text` says that it starts one, as the answer in a chat does.
    ///
    /// # Errors
    /// [`Error::Empty`] for an empty stop string.
    pub fn new(tokenizer: Arc<Tokenizer>, stops: Vec<String>, new_text: bool) -> Result<Self, Error> {
        let detokenizer = if new_text { Detokenizer::new() } else { Detokenizer::continuing() };
        Ok(Self { tokenizer, detokenizer: detokenizer.without_specials(), stops: StopStrings::new(stops)? })
    }

    /// The stream that was saved so.
    ///
    /// # Errors
    /// As [`TextStream::new`].
    pub(crate) fn resumed(tokenizer: Arc<Tokenizer>, saved: Saved) -> Result<Self, Error> {
        let mut stream = Self::new(tokenizer, saved.stops, saved.at_start)?;
        stream.detokenizer.characters.held = saved.bytes;
        stream.stops.held = saved.text;
        Ok(stream)
    }

    /// What it is between two tokens.
    pub(crate) fn save(&self) -> Saved {
        let Self { detokenizer, stops, tokenizer: _ } = self;
        Saved {
            stops: stops.stops.clone(),
            at_start: detokenizer.at_start,
            bytes: detokenizer.characters.held.clone(),
            text: stops.held.clone(),
        }
    }

    /// Takes a token and gives what can be shown.
    pub fn push(&mut self, token: u32) -> Pushed {
        let text = self.detokenizer.push(&self.tokenizer, token);
        self.stops.push(&text)
    }

    /// What was held back at the end; less than that if it holds a stop string.
    pub fn finish(&mut self) -> String {
        let rest = self.detokenizer.finish();
        let mut text = self.stops.push(&rest).text;
        text.push_str(&self.stops.finish());
        text
    }
}

/// Cuts a stream of text at the first stop string.
///
/// The first is the one that is complete first; of several that end at the same character, the longest. So the
/// result does not depend on how the text was cut into pieces. Text that may be the beginning of a stop string is held
/// back until it is clear.
///
/// ```
/// use graftwork::stream::StopStrings;
///
/// let mut stops = StopStrings::new(["\n\n", "END"].map(String::from).into())?;
/// assert_eq!(stops.push("one\n").text, "one");
/// assert_eq!(stops.push("two E").text, "\ntwo ");
/// let last = stops.push("ND three");
/// assert_eq!((last.text.as_str(), last.stopped), ("", true));
/// # Ok::<(), graftwork::stream::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopStrings {
    /// A cut at any of these strings.
    pub fn new(stops: Vec<String>) -> Result<Self, Error> {
        match stops.iter().position(String::is_empty) {
            Some(index) => Err(Error::Empty { index }),
            None => Ok(Self { stops, held: String::new(), stopped: false }),
        }
    }

    /// Takes text and gives what can be shown.
    pub fn push(&mut self, text: &str) -> Pushed {
        if self.stopped {
            return Pushed { text: String::new(), stopped: true };
        }
        self.held.push_str(text);
        let first = (self.stops.iter())
            .filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start)))
            .min();
        if let Some((_, start)) = first {
            self.held.truncate(start);
            self.stopped = true;
            return Pushed { text: std::mem::take(&mut self.held), stopped: true };
        }
        let kept = self.held.split_off(self.open_from());
        Pushed { text: std::mem::replace(&mut self.held, kept), stopped: false }
    }

    /// Where the longest end of the held text starts that is the beginning of a stop string.
    fn open_from(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest.saturating_sub(1));
        (from..self.held.len())
            .filter(|&at| self.held.is_char_boundary(at))
            .find(|&at| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..])))
            .unwrap_or(self.held.len())
    }

    /// What was held back at the end of the text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}
