//! Why an adapter could not be ported.

use std::io;
use std::path::PathBuf;

use crate::compress;

/// Why an adapter could not be ported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The new base did not come of the old one.
    #[error("new base: {what}: expected {expected}, found {found}")]
    Lineage {
        /// In what they differ.
        what: &'static str,
        /// What it would be if it had.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A base could not be read.
    #[error(transparent)]
    Base(#[from] compress::Error),
    /// The adapter could not be read or written, or does not fit.
    #[error(transparent)]
    Adapter(#[from] graftwork_adapters::Error),
    /// The place to write to is taken.
    #[error(transparent)]
    Out(#[from] crate::place::Taken),
    /// What the system says about a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl From<crate::Error> for Error {
    fn from(error: crate::Error) -> Self {
        Self::Base(error.into())
    }
}

impl Error {
    /// What opening two bases together says.
    pub(super) fn of_pair(error: compress::Error) -> Self {
        match error {
            compress::Error::Config { field, expected, found } => {
                Self::Lineage { what: field, expected: format!("{expected}, as the old base has"), found }
            }
            error => Self::Base(error),
        }
    }

    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::Io { path, source }
    }
}
