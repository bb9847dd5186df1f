//! Where files come from.

use std::io;
use std::path::{Path, PathBuf};

use graftwork_kernels::Bytes;

use super::{Error, Named, SMALL, json, open_bytes};

/// Where a model or an adapter comes from: a path, one file in memory, or the files of a directory in memory.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file or directory.
    Path {
        /// The path.
        path: PathBuf,
        /// Files up to this many bytes are copied into memory, larger ones mapped (see
        /// [`open_bytes`](super::open_bytes) for what a mapping asks of others): 0 maps all, `u64::MAX` copies all.
        copy_up_to: u64,
    },
    /// The bytes of one file.
    Bytes(Bytes),
    /// The files of a directory, by name.
    Files(Named<Bytes>),
}

impl Source {
    /// The same, wherever the process goes.
    #[must_use]
    pub fn into_absolute(self) -> Self {
        match self {
            Self::Path { path, copy_up_to } => {
                let absolute = std::path::absolute(&path);
                Self::Path { path: absolute.unwrap_or(path), copy_up_to }
            }
            other => other,
        }
    }

    /// The file or directory at `path`, copied instead of mapped.
    pub fn copied(path: impl Into<PathBuf>) -> Self {
        Self::Path { path: path.into(), copy_up_to: u64::MAX }
    }

    /// The files of a directory, in memory.
    ///
    /// # Errors
    /// [`Error::Duplicate`]: two files have one name.
    pub fn files(files: Vec<(String, Bytes)>) -> Result<Self, Error> {
        Named::new(files).map(Self::Files).map_err(|name| Error::Duplicate { what: "file", name })
    }

    /// The bytes of a file in this directory, `None` if it holds none of that name.
    pub(crate) fn file(&self, name: &str) -> Result<Option<Bytes>, Error> {
        match self {
            Self::Path { path, copy_up_to } => optional(open_bytes(&path.join(name), *copy_up_to)),
            Self::Files(files) => Ok(files.get(name).cloned()),
            Self::Bytes(_) => Ok(None),
        }
    }

    /// The bytes of a file in this directory that has no reason to be large. Never mapped.
    pub(crate) fn small_file(&self, name: &str) -> Result<Option<Bytes>, Error> {
        let bytes = match self {
            Self::Path { path, .. } => optional(open_bytes(&path.join(name), SMALL))?,
            _ => self.file(name)?,
        };
        match bytes {
            Some(bytes) if bytes.len() as u64 > SMALL => Err(Error::TooMany {
                what: format!("bytes of {name}"),
                limit: SMALL,
                found: bytes.len() as u64,
            }),
            bytes => Ok(bytes),
        }
    }

    /// A JSON file in this directory, of at most `limit` bytes.
    pub(crate) fn json(&self, name: &str, limit: usize) -> Result<Option<serde_json::Value>, Error> {
        let Some(bytes) = self.small_file(name)? else {
            return Ok(None);
        };
        json::parse(&bytes, limit).map(Some).map_err(|error| error.in_file(name))
    }

    /// What to call this source in a message.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Path { path, .. } => path.display().to_string(),
            Self::Bytes(_) => "bytes in memory".to_owned(),
            Self::Files(_) => "files in memory".to_owned(),
        }
    }
}

fn optional(bytes: Result<Bytes, Error>) -> Result<Option<Bytes>, Error> {
    match bytes {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        bytes => bytes.map(Some),
    }
}

/// Mapped.
impl From<&Path> for Source {
    fn from(path: &Path) -> Self {
        Self::Path { path: path.to_owned(), copy_up_to: 0 }
    }
}

/// Mapped.
impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Self::Path { path, copy_up_to: 0 }
    }
}

/// Mapped.
impl From<&PathBuf> for Source {
    fn from(path: &PathBuf) -> Self {
        path.as_path().into()
    }
}

/// A path, mapped.
impl From<&str> for Source {
    fn from(path: &str) -> Self {
        Path::new(path).into()
    }
}

impl From<Bytes> for Source {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}
