//! Why a file was refused.

use std::path::PathBuf;

use graftwork_kernels::tensor;

/// Why a file was refused. Every message says where (file, tensor, key), what was expected and what was found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be opened, read or mapped.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something is wrong inside a file of this name.
    #[error("{file}: {source}")]
    In {
        /// The file.
        file: String,
        /// What is wrong.
        source: Box<Error>,
    },
    /// The file does not start as its format does.
    #[error("expected {expected}, found {found}")]
    Magic {
        /// How the format starts.
        expected: &'static str,
        /// How the file starts.
        found: String,
    },
    /// The bytes end inside of something.
    #[error("{what} at byte {at}: expected {expected} bytes, found {found}")]
    Truncated {
        /// What the bytes should have held.
        what: String,
        /// Where it starts.
        at: usize,
        /// How many bytes it takes.
        expected: u64,
        /// How many bytes are left.
        found: u64,
    },
    /// A count or length that is not possible in the bytes there are, or beyond the limit of the format.
    #[error("{what}: expected at most {limit}, found {found}")]
    TooMany {
        /// What is counted.
        what: String,
        /// The most there can be.
        limit: u64,
        /// What the file says.
        found: u64,
    },
    /// Bytes that should be text are not UTF-8.
    #[error("{what} at byte {at}: expected UTF-8 text")]
    NotUtf8 {
        /// What the bytes should have held.
        what: String,
        /// Where it starts.
        at: usize,
    },
    /// Two things have one name.
    #[error("expected unique names, found two of {what} {name}")]
    Duplicate {
        /// What: `tensor`, `key`, `file`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Something needed is not there.
    #[error("expected {what} {name}, found none")]
    Missing {
        /// What: `tensor`, `key`, `file`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A value that its key does not allow.
    #[error("key {key}: expected {expected}, found {found}")]
    Value {
        /// The key.
        key: String,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A name of a file that reaches out of its directory.
    #[error("key {key}: expected the plain name of a file, found `{found}`")]
    FileName {
        /// Where the name stands.
        key: String,
        /// The name.
        found: String,
    },
    /// JSON text that is none, or not the JSON expected.
    #[error("expected valid JSON, found: {reason}")]
    Json {
        /// What the parser said, with line and column.
        reason: String,
    },
    /// A tensor whose shape or place in the file is impossible.
    #[error("tensor {tensor}: expected {expected}, found {found}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Two tensors share bytes.
    #[error("tensors {first} and {second}: expected separate bytes, found an overlap at byte {at}")]
    Overlap {
        /// The one that starts first.
        first: String,
        /// The other.
        second: String,
        /// Where the second starts, counted from the start of the data.
        at: u64,
    },
    /// A tensor type that this library has no arithmetic for.
    #[error("tensor {tensor}: type {found} is not supported")]
    Unsupported {
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// A tensor could not be made of its bytes.
    #[error("tensor {tensor}: {source}")]
    Matrix {
        /// The tensor.
        tensor: String,
        /// Why.
        source: tensor::Error,
    },
    /// An entry of a zip archive is not as torch writes them.
    #[error("zip entry {entry}: expected {expected}, found {found}")]
    Entry {
        /// Its name, or that of a part of the archive.
        entry: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A pickle is malformed, or holds something else than tensors.
    #[error("pickle at byte {at}: expected {expected}, found {found}")]
    Pickle {
        /// Where in the pickle.
        at: usize,
        /// What there should be.
        expected: &'static str,
        /// What there is.
        found: String,
    },
    /// A pickle that would run code. It is refused; nothing of it was run.
    #[error("pickle with code at byte {at}: {what}; only dictionaries of tensors are read, nothing is run")]
    Code {
        /// Where in the pickle.
        at: usize,
        /// The function, or the instruction.
        what: String,
    },
    /// A writer was given something that its format cannot hold.
    #[error("cannot write {what}: {reason}")]
    Write {
        /// The tensor or key.
        what: String,
        /// Why.
        reason: String,
    },
}

impl Error {
    /// This error, in a file of that name.
    pub(crate) fn in_file(self, file: impl Into<String>) -> Self {
        Self::In { file: file.into(), source: Box::new(self) }
    }
}
