//! GGUF, the file format of llama.cpp: versions 2 and 3, little-endian.
//!
//! ```text
//! "GGUF"  u32 version  u64 tensors  u64 keys
//! keys    × { string name, u32 type, value }
//! tensors × { string name, u32 n, u64 dims[n] (fastest first), u32 type, u64 offset into the data }
//! padding to `general.alignment` (32 unless the file says otherwise), then the data
//! ```
//! A string is a u64 length and UTF-8 bytes. A model may be cut into shards `name-00001-of-00003.gguf`, each a
//! GGUF file of its own with `split.no`, `split.count` and `split.tensors.count`; the first holds the metadata.

mod metadata;
mod read;
mod shards;
mod value;
mod write;

pub use metadata::{FromValue, Metadata};
pub use value::{Array, Value};
pub use write::GgufWriter;

use std::path::Path;

use graftwork_kernels::{Bytes, Format, Tensor};

use super::{Error, Named, Source, TensorFile, open_bytes};

/// The first bytes of every GGUF file.
pub const MAGIC: &[u8; 4] = b"GGUF";

/// Alignment of tensor data where the file names none.
pub const ALIGNMENT: u64 = 32;

/// A GGUF model or adapter: metadata and tensors, of all shards.
#[derive(Clone, Debug)]
pub struct Gguf {
    metadata: Metadata,
    tensors: Named<TensorInfo>,
}

/// What a GGUF file says about one tensor, checked against the bytes there are.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    dims: [u64; read::MAX_DIMS],
    count: usize,
    type_id: u32,
    /// From the first byte of the tensor: to its end where the type is known, else to the end of the file.
    bytes: Bytes,
}

impl TensorInfo {
    /// The dimensions as ggml counts them, fastest first: a matrix is `[cols, rows]`.
    pub fn dims(&self) -> &[u64] {
        &self.dims[..self.count]
    }

    /// The ggml id of the tensor's type, known or not.
    pub fn type_id(&self) -> u32 {
        self.type_id
    }

    /// The block format, if the type is one that this library knows.
    pub fn format(&self) -> Option<Format> {
        Format::from_ggml_id(self.type_id)
    }

    /// The tensor's bytes, if its type is known.
    pub fn bytes(&self) -> Option<&Bytes> {
        self.format().map(|_| &self.bytes)
    }
}

impl Gguf {
    /// Opens a file, together with the other shards beside it if it is one of several. Files are mapped; see
    /// [`open_bytes`] for what that asks of others, [`Gguf::load`] with [`Source::copied`] for the alternative.
    ///
    /// # Errors
    /// [`Error::In`] with the file that is malformed, missing or unreadable.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::load(&path.as_ref().into())
    }

    /// Opens a file or shards from any source. Files in memory are taken as the shards of one model.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn load(source: &Source) -> Result<Self, Error> {
        match source {
            Source::Path { path, copy_up_to } => shards::open(path, |path| open_bytes(path, *copy_up_to)),
            Source::Bytes(bytes) => Self::parse(bytes.clone()),
            Source::Files(files) => {
                shards::parse(files.iter().map(|(name, bytes)| (name.to_owned(), bytes.clone())).collect())
            }
        }
    }

    /// Parses a file that is not sharded.
    ///
    /// # Errors
    /// What is malformed, naming the key or tensor.
    pub fn parse(bytes: Bytes) -> Result<Self, Error> {
        shards::single(read::parse(bytes)?)
    }

    /// Parses all shards of one model, in any order.
    ///
    /// # Errors
    /// What is malformed, in [`Error::In`] with `shard` and the position in the list.
    pub fn parse_shards(shards: Vec<Bytes>) -> Result<Self, Error> {
        shards::parse(
            shards.into_iter().enumerate().map(|(i, bytes)| (format!("shard {i}"), bytes)).collect(),
        )
    }

    /// The metadata: of the first shard, where there are several.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What the file says about its tensors, in the order of the file, also those of unknown type.
    pub fn tensors(&self) -> &Named<TensorInfo> {
        &self.tensors
    }
}

impl TensorFile for Gguf {
    fn names(&self) -> Vec<&str> {
        self.tensors.names().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<u64>> {
        self.tensors.get(name).map(|info| info.dims().iter().rev().copied().collect())
    }

    fn tensor(&self, name: &str) -> Result<Option<Tensor>, Error> {
        let Some(info) = self.tensors.get(name) else {
            return Ok(None);
        };
        let Some(format) = info.format() else {
            let found = format!("{} of ggml", info.type_id);
            return Err(Error::Unsupported { tensor: name.to_owned(), found });
        };
        let (cols, rows) = match *info.dims() {
            [] => (1, 1),
            [cols] => (cols, 1),
            [cols, rows] => (cols, rows),
            ref dims => {
                return Err(Error::Tensor {
                    tensor: name.to_owned(),
                    expected: "a vector or a matrix".to_owned(),
                    found: format!("dimensions {dims:?}"),
                });
            }
        };
        // Sizes of a known type were checked to lie within the file, so they fit an address.
        Tensor::new(format, rows as usize, cols as usize, info.bytes.clone())
            .map(Some)
            .map_err(|source| Error::Matrix { tensor: name.to_owned(), source })
    }
}
