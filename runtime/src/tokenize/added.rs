//! Added tokens: text that becomes one token before the vocabulary's model sees it.

use super::Error;
use aho_corasick::{AhoCorasick, MatchKind};
use serde::Deserialize;
use std::ops::Range;

/// One added token, with the flags that `tokenizer.json` gives it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct AddedToken {
    /// Its id.
    pub(crate) id: u32,
    /// Its text.
    pub(crate) content: String,
    /// Whether text from users must never become it.
    pub(crate) special: bool,
    /// Whether white space before it belongs to it.
    pub(crate) lstrip: bool,
    /// Whether white space after it belongs to it.
    pub(crate) rstrip: bool,
    /// Whether it only matches between characters that are not part of a word.
    pub(crate) single_word: bool,
    /// Whether it is looked for in the normalized text.
    pub(crate) normalized: bool,
}

/// A set of added tokens, searched together: leftmost match first, the longest of those.
#[derive(Debug)]
pub(crate) struct AddedTokens {
    tokens: Vec<AddedToken>,
    search: AhoCorasick,
}

impl AddedTokens {
    /// A set of tokens, each looked for as its `pattern` (its content, or its normalized content).
    pub(crate) fn new(tokens: Vec<AddedToken>, patterns: &[String]) -> Result<Self, Error> {
        let search = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(patterns)
            .map_err(|error| Error::Encode { found: error.to_string() })?;
        Ok(Self { tokens, search })
    }

    /// Whether there is nothing to look for.
    pub(crate) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The first special token whose text is in `text`.
    pub(crate) fn special_in(&self, text: &str) -> Option<&AddedToken> {
        self.tokens.iter().find(|token| token.special && text.contains(&token.content))
    }

    /// Where the tokens are in `text`, in order, without overlap.
    ///
    /// `user` holds the spans of `text` that come from users, in order: a special token that shares a byte with one
    /// of them stays text, and cannot hide one that the text around it contains.
    pub(crate) fn find(&self, text: &str, user: &[Range<usize>]) -> Vec<(Range<usize>, u32)> {
        let mut found = Vec::new();
        let mut from = 0;
        let mut limit = text.len();
        while from <= text.len() {
            let Some(hit) = self.search.find(&text[from..limit]) else {
                if limit == text.len() {
                    break;
                }
                (from, limit) = (limit, text.len());
                continue;
            };
            let token = &self.tokens[hit.pattern().as_usize()];
            let (mut start, mut end) = (from + hit.start(), from + hit.end());
            if token.special
                && let Some(span) = user.iter().find(|span| span.start < end && start < span.end)
            {
                if start < span.start && limit != span.start {
                    // A shorter token may still lie wholly before the span.
                    limit = span.start;
                } else {
                    (from, limit) = (end.min(span.end).max(from + 1), text.len());
                    from = text.ceil_char_boundary(from);
                }
                continue;
            }
            limit = text.len();
            if token.single_word && (ends_with_word(&text[..start]) || starts_with_word(&text[end..])) {
                from = end;
                continue;
            }
            if token.lstrip {
                start = text[..start].trim_end().len().max(from);
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            found.push((start..end, token.id));
            from = end;
        }
        found
    }
}

/// Whether the text ends inside of a word.
fn ends_with_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(is_word)
}

/// Whether the text starts inside of a word.
fn starts_with_word(text: &str) -> bool {
    text.chars().next().is_some_and(is_word)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}
