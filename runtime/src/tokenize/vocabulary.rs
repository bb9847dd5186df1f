//! A vocabulary as a GGUF file carries it, independent of the file.

use serde::Deserialize;

/// What a token is, as `tokenizer.ggml.token_type` numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TokenType {
    /// 1: an ordinary piece of text.
    #[default]
    Normal,
    /// 2: what stands for text outside of the vocabulary.
    Unknown,
    /// 3: a special token; text reaches it only where the caller recognises special tokens.
    Control,
    /// 4: an added token that is always recognised in text.
    UserDefined,
    /// 5: a row of the embedding without a meaning.
    Unused,
    /// 6: one byte, written `<0xNN>`.
    Byte,
}

impl TokenType {
    /// The type with this number in a file; numbers outside of the table mean an ordinary token, as in llama.cpp.
    pub fn from_number(number: i64) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }

    /// Its number in a file.
    pub fn number(self) -> i32 {
        match self {
            Self::Normal => 1,
            Self::Unknown => 2,
            Self::Control => 3,
            Self::UserDefined => 4,
            Self::Unused => 5,
            Self::Byte => 6,
        }
    }

    /// Whether text from users must never become this token.
    pub fn is_special(self) -> bool {
        matches!(self, Self::Control | Self::Unknown)
    }
}

/// The tokenizer section of a GGUF file. Every field is named after its key, without `tokenizer.ggml.`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vocabulary {
    /// The kind of vocabulary: `gpt2` (byte-level BPE with merges) or `llama` (SentencePiece BPE with scores).
    pub model: String,
    /// Which regular expressions cut the text before BPE; absent means `default`.
    pub pre: Option<String>,
    /// The text of every token, by id.
    pub tokens: Vec<String>,
    /// The score of every token, the higher merged first (`llama` only).
    pub scores: Vec<f32>,
    /// The merges in order, `left right` (`gpt2` only).
    pub merges: Vec<String>,
    /// The number of every token's [`TokenType`]; empty means all are ordinary.
    pub token_type: Vec<i64>,
    /// Beginning of sequence.
    pub bos_token_id: Option<u32>,
    /// End of sequence.
    pub eos_token_id: Option<u32>,
    /// End of turn.
    pub eot_token_id: Option<u32>,
    /// End of message.
    pub eom_token_id: Option<u32>,
    /// What stands for text outside of the vocabulary.
    pub unknown_token_id: Option<u32>,
    /// What fills rows of a batch.
    pub padding_token_id: Option<u32>,
    /// Whether a prompt starts with BOS.
    pub add_bos_token: Option<bool>,
    /// Whether a prompt ends with EOS.
    pub add_eos_token: Option<bool>,
    /// Whether text after a special token, or at the start, gets a space in front (`llama` only; absent means yes).
    pub add_space_prefix: Option<bool>,
    /// The Jinja source of `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}
