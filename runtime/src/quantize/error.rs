//! Why a model could not be quantized.

use std::io;
use std::path::PathBuf;

use graftwork_adapters::file;
use graftwork_kernels::tensor;

/// Why a model could not be quantized.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not be read or run.
    #[error(transparent)]
    Engine(#[from] crate::Error),
    /// An adapter that is to be merged does not fit the model, or is no change of weights.
    #[error("{adapter}: {source}")]
    Grafted {
        /// What the adapter is called.
        adapter: String,
        /// Why.
        source: Box<crate::Error>,
    },
    /// A tensor could not be read, or not be written in the format that it gets.
    #[error("{tensor}: {source}")]
    Tensor {
        /// Its name in the file to write.
        tensor: String,
        /// Why.
        source: tensor::Error,
    },
    /// A value that no block can hold: it is no number, or too large.
    #[error("{tensor}: row {row}: expected values that {format} can hold, found {found}")]
    Value {
        /// The tensor's name in the file to write.
        tensor: String,
        /// Where.
        row: usize,
        /// The format that it gets.
        format: graftwork_kernels::Format,
        /// The value, or what became of it.
        found: f32,
    },
    /// A part of a Hugging Face directory that has no faithful form in a GGUF file, or none that is known.
    #[error("{what}: expected {expected}, found {found}")]
    Unwritable {
        /// What: a file and a place in it.
        what: String,
        /// What can be written.
        expected: String,
        /// What there is.
        found: String,
    },
    /// The place to write to may not be written to.
    #[error(transparent)]
    Out(#[from] crate::place::Taken),
    /// The file type loses too much without a calibration text.
    #[error("{file_type}: expected a calibration text, without which too much is lost, found none")]
    NoCalibration {
        /// The file type.
        file_type: &'static str,
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
