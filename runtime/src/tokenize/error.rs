//! What can go wrong between the bytes of a tokenizer file and token ids.

use std::panic::AssertUnwindSafe;

/// Why a tokenizer could not be built, or a text not encoded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key of the metadata is not there, or not of its type.
    #[error(transparent)]
    Metadata(#[from] graftwork_adapters::file::Error),
    /// A file is not JSON, or not the JSON it should be.
    #[error("{file}: expected a valid {expected}, found: {found}")]
    Json {
        /// The file, by its usual name.
        file: &'static str,
        /// What the text should have been.
        expected: &'static str,
        /// What the parser says.
        found: String,
    },
    /// A key has a value that is outside of what it may be.
    #[error("{key}: expected {expected}, found {found}")]
    Key {
        /// The metadata or JSON key.
        key: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A vocabulary kind, pre-tokenizer or decoder that this crate does not know.
    #[error("{key}: `{found}` is not supported (known: {known})")]
    Unsupported {
        /// The metadata or JSON key.
        key: &'static str,
        /// The name found there.
        found: String,
        /// The names that are understood.
        known: String,
    },
    /// Text that must be ordinary contains a special token where it cannot be kept apart.
    #[error("special token `{token}` found in `{text}`, which the chat template mixes with its own text")]
    SpecialInText {
        /// The token's text.
        token: String,
        /// The start of the offending string.
        text: String,
    },
    /// The tokenizer's model refused a text.
    #[error("cannot encode the text: {found}")]
    Encode {
        /// What the model says.
        found: String,
    },
    /// The `tokenizers` crate panicked: it does not check all that a file says.
    #[error("the tokenizer library failed on what the model's files say: {found}")]
    Panicked {
        /// What it said.
        found: String,
    },
}

/// Does what calls the `tokenizers` crate, which panics on some of what a file may say. It keeps no state that a panic
/// could leave half changed.
pub(super) fn without_panics<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = (panic.downcast_ref::<String>().map(String::as_str)).or(panic.downcast_ref().copied());
        Err(Error::Panicked { found: text.unwrap_or("a panic").to_owned() })
    })
}
