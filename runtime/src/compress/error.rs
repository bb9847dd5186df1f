//! Why a fine-tune could not be compressed.

use std::io;
use std::path::PathBuf;

use graftwork_adapters::{compress, file};
use graftwork_kernels::tensor;

/// Why a fine-tune could not be compressed, or two models not compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model could not be read or run.
    #[error(transparent)]
    Engine(#[from] crate::Error),
    /// A file of the delta could not be written or read.
    #[error(transparent)]
    Delta(#[from] graftwork_adapters::Error),
    /// An adapter cannot be made part of the model.
    #[error(transparent)]
    Merge(#[from] crate::merge::Error),
    /// The place to write to may not be written to.
    #[error(transparent)]
    Out(#[from] crate::place::Taken),
    /// The tuned model is none of this base.
    #[error("tuned model: {field}: expected {expected} as the base has, found {found}")]
    Config {
        /// What they differ in.
        field: &'static str,
        /// The base's.
        expected: String,
        /// The tuned model's.
        found: String,
    },
    /// A matrix could not be compressed.
    #[error("{tensor}: {source}")]
    Matrix {
        /// Its name in Hugging Face files.
        tensor: String,
        /// Why.
        source: compress::Error,
    },
    /// A tensor could not be read.
    #[error("{tensor}: {source}")]
    Tensor {
        /// Its name in Hugging Face files.
        tensor: String,
        /// Why.
        source: tensor::Error,
    },
    /// The tuned model is the base.
    #[error("tuned model: expected weights other than the base's, found the same")]
    Unchanged,
    /// An option without a meaning.
    #[error("{option}: expected {expected}, found {found}")]
    Option {
        /// Which.
        option: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// The folder holds the unfinished work of another compression.
    #[error(
        "{}: unfinished work with another {field}: expected {expected}, found {found} (remove the folder to start anew)",
        path.display()
    )]
    OtherWork {
        /// The folder.
        path: PathBuf,
        /// What differs.
        field: String,
        /// What this compression has.
        expected: String,
        /// What the unfinished one has.
        found: String,
    },
    /// The folder holds something else.
    #[error("{}: expected the unfinished work of a compression or no such folder, found other files", path.display())]
    NotWork {
        /// The folder.
        path: PathBuf,
    },
    /// Another process is at it.
    #[error("{}: another process is at this compression", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// What the system says about a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl From<file::Error> for Error {
    fn from(error: file::Error) -> Self {
        Self::Engine(error.into())
    }
}

impl Error {
    /// The error for what the system says about a file.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::Io { path, source }
    }
}
