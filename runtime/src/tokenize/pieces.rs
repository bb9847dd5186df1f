//! What every token looks like in text.

use super::{Error, bytes, spm};
use std::collections::HashMap;

/// No vocabulary comes near this many ids; a file that names a higher one is not believed.
pub(crate) const MAX_IDS: u32 = 1 << 22;

/// How the text of a token becomes bytes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Spelling {
    /// In the alphabet of byte-level vocabularies.
    ByteLevel,
    /// Each pair is replaced in turn; then `<0xNN>` is a byte, if `bytes`.
    Replaced {
        /// What is replaced by what.
        pairs: Vec<(String, String)>,
        /// Whether there are byte tokens.
        bytes: bool,
    },
    /// WordPiece: a token continues the word before it if it has the prefix, else it starts with a space.
    WordPiece {
        /// The mark of a continuation.
        prefix: String,
    },
}

impl Spelling {
    /// SentencePiece's: a mark for the space, and byte tokens.
    pub(crate) fn sentence_piece() -> Self {
        Self::Replaced { pairs: vec![(spm::SPACE.into(), " ".into())], bytes: true }
    }

    /// The bytes of an ordinary token.
    fn spell(&self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => bytes::decode(token),
            Self::Replaced { pairs, bytes } => {
                if let Some(byte) = bytes::fallback(token).filter(|_| *bytes) {
                    return vec![byte];
                }
                let text =
                    pairs.iter().fold(token.to_owned(), |text, (from, to)| text.replace(from.as_str(), to));
                text.into_bytes()
            }
            Self::WordPiece { prefix } => match token.strip_prefix(prefix.as_str()) {
                Some(rest) => rest.as_bytes().to_vec(),
                None => format!(" {token}").into_bytes(),
            },
        }
    }
}

/// What decoding removes from the start of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lead {
    /// Nothing.
    Keep,
    /// One space.
    Space,
    /// All leading spaces of the first token, as the Metaspace decoder does.
    Spaces,
}

/// One entry of a vocabulary.
pub(crate) struct Entry<'v> {
    pub(crate) id: u32,
    pub(crate) text: &'v str,
    /// Spelled by its text as it is.
    pub(crate) verbatim: bool,
    pub(crate) special: bool,
}

/// The bytes of all tokens, in one allocation.
#[derive(Debug)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    /// Where the bytes of each token end; they start where those of the token before it end.
    ends: Vec<usize>,
    /// By id: none where there is no token, else whether it is special.
    kinds: Vec<Option<bool>>,
    ids: HashMap<String, u32>,
    /// What decoding removes from the start of a text.
    pub(crate) lead: Lead,
}

impl Pieces {
    /// Spells all tokens; where two entries share an id the later one counts.
    pub(crate) fn new(entries: &[Entry<'_>], spelling: &Spelling, lead: Lead) -> Result<Self, Error> {
        let highest = entries.iter().map(|entry| entry.id).max();
        if let Some(highest) = highest.filter(|&id| id >= MAX_IDS) {
            let found = highest.to_string();
            return Err(Error::Key { key: "vocab", expected: format!("ids below {MAX_IDS}"), found });
        }
        let mut by_id: Vec<Option<&Entry<'_>>> = vec![None; highest.map_or(0, |id| id as usize + 1)];
        for entry in entries {
            by_id[entry.id as usize] = Some(entry);
        }
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(by_id.len()));
        for entry in &by_id {
            match entry {
                Some(entry) if entry.verbatim => bytes.extend_from_slice(entry.text.as_bytes()),
                Some(entry) => bytes.extend_from_slice(&spelling.spell(entry.text)),
                None => {}
            }
            ends.push(bytes.len());
        }
        let kinds = by_id.iter().map(|entry| entry.map(|entry| entry.special)).collect();
        let ids = entries.iter().map(|entry| (entry.text.to_owned(), entry.id)).collect();
        Ok(Self { bytes, ends, kinds, ids, lead })
    }

    /// One more than the highest id.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token.
    pub(crate) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let id = usize::try_from(id).ok()?;
        (*self.kinds.get(id)?)?;
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.bytes[start..self.ends[id]])
    }

    /// The id of a token's text in the vocabulary.
    pub(crate) fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// Whether the token is special.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        usize::try_from(id).ok().and_then(|id| *self.kinds.get(id)?).unwrap_or(false)
    }
}
