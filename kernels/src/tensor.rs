//! A matrix in some block format, over bytes that somebody keeps alive.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use bytemuck::Zeroable;

use crate::format::Format;

/// Why a matrix could not be made from the given parts.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// The row length is not a whole number of blocks.
    #[error("a row of {cols} values is not a whole number of {format} blocks of {block}")]
    RaggedRow {
        /// The format asked for.
        format: Format,
        /// Values in a row.
        cols: usize,
        /// Values in a block of that format.
        block: usize,
    },
    /// The bytes do not have the length that format and shape say.
    #[error("{format} [{rows}, {cols}] takes {expected} bytes, found {found}")]
    Length {
        /// The format asked for.
        format: Format,
        /// Rows of the matrix.
        rows: usize,
        /// Values in a row.
        cols: usize,
        /// Bytes that format and shape take.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// Format and shape say more bytes than an address can count.
    #[error("{format} [{rows}, {cols}] takes more bytes than this machine can address")]
    TooLarge {
        /// The format asked for.
        format: Format,
        /// Rows of the matrix.
        rows: usize,
        /// Values in a row.
        cols: usize,
    },
    /// The format has no layout of strips that files could hold.
    #[error("{format} has no strips outside of memory")]
    NoStrips {
        /// The format asked for.
        format: Format,
    },
    /// Memory was refused: for weights, activations or the KV cache.
    #[error("no memory for {bytes} bytes")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The device has no such operation.
    #[error("{what} are not supported on this device")]
    Unsupported {
        /// What it does not have.
        what: &'static str,
    },
}

/// Who keeps bytes alive: a vector, a mapping.
pub trait Owner: Send + Sync + 'static {
    /// All of them, always the same.
    fn bytes(&self) -> &[u8];

    /// Takes these out of memory if they come back by themselves when they are read, as those of a mapped file do.
    fn unload(&self, _range: Range<usize>) {}
}

/// An owner of bytes that stay in memory.
struct Plain<T>(T);

impl<T: AsRef<[u8]> + Send + Sync + 'static> Owner for Plain<T> {
    fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }
}

/// A slice of bytes that keeps its owner (a mapping, a vector) alive. Cloning copies no bytes.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn Owner>,
    range: Range<usize>,
    /// The owner is a vector that nothing but slices of it keep in memory.
    owned: bool,
}

impl Bytes {
    /// All bytes of `owner`.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self::of(Plain(owner))
    }

    /// The same, of an owner that may be able to unload them.
    pub fn of(owner: impl Owner) -> Self {
        let range = 0..owner.bytes().len();
        Self { owner: Arc::new(owner), range, owned: false }
    }

    /// Says that these are not read again soon: where they are mapped from a file, they take no memory until then.
    pub fn unload(&self) {
        self.owner.unload(self.range.clone());
    }

    /// The bytes `range` of this slice, or `None` if they do not all lie in it.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Self { owner: self.owner.clone(), range: start..start + range.len(), owned: self.owned })
    }

    /// Whether these lie in a vector of our own, not in a mapping or in memory that is lent.
    pub fn is_owned(&self) -> bool {
        self.owned
    }

    /// Whether these are a part of a vector that they keep in memory as a whole. Known of those made [from] a vector.
    ///
    /// [from]: Self::from
    fn keeps_more(&self) -> bool {
        self.owned && self.len() < self.owner.bytes().len()
    }
}

/// Memory of our own: see [`Tensor::compact`].
impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { owned: true, ..Self::new(bytes) }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.range.len())
    }
}

/// A matrix `[rows, cols]`, row-major, each row a whole number of blocks of `format`.
///
/// A vector is a matrix of one row. Little-endian, as every file format that we read.
#[derive(Clone, Debug)]
pub struct Tensor {
    format: Format,
    rows: usize,
    cols: usize,
    bytes: Bytes,
}

impl Tensor {
    /// The matrix whose blocks are exactly `bytes`.
    pub fn new(format: Format, rows: usize, cols: usize, bytes: Bytes) -> Result<Self, Error> {
        if !cols.is_multiple_of(format.block_len()) {
            return Err(Error::RaggedRow { format, cols, block: format.block_len() });
        }
        let expected = (cols / format.block_len())
            .checked_mul(format.block_bytes())
            .and_then(|row| row.checked_mul(rows))
            .ok_or(Error::TooLarge { format, rows, cols })?;
        if bytes.len() != expected {
            return Err(Error::Length { format, rows, cols, expected, found: bytes.len() });
        }
        Ok(Self { format, rows, cols, bytes })
    }

    /// The matrix with these values, encoded as `format`. `values.len()` must be `rows * cols`.
    pub fn encode(format: Format, rows: usize, cols: usize, values: &[f32]) -> Result<Self, Error> {
        if rows.checked_mul(cols) != Some(values.len()) {
            return Err(Error::Length {
                format: Format::F32,
                rows,
                cols,
                expected: rows.saturating_mul(cols).saturating_mul(4),
                found: values.len() * 4,
            });
        }
        if !cols.is_multiple_of(format.block_len()) {
            return Err(Error::RaggedRow { format, cols, block: format.block_len() });
        }
        let mut bytes = zeros(values.len() / format.block_len() * format.block_bytes())?;
        format.encode(values, &mut bytes);
        Self::new(format, rows, cols, bytes.into())
    }

    /// The block format of every row.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows: outputs of a linear layer, entries of an embedding.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row: inputs of a linear layer, width of an embedding.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The blocks, row after row.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.cols / self.format.block_len() * self.format.block_bytes()
    }

    /// Decodes one row into `out` (`cols` values). Panics if `row` or the length is out of range.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of a matrix with {} rows", self.rows);
        let size = self.row_bytes();
        self.format.decode(&self.bytes[row * size..][..size], out);
    }

    /// All values, row after row.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn decode(&self) -> Result<Vec<f32>, Error> {
        let mut out = zeros(self.rows.saturating_mul(self.cols))?;
        self.format.decode(&self.bytes, &mut out);
        Ok(out)
    }

    /// This matrix, in bytes of its own if it lies in a larger vector that was copied from a file: what is kept for long
    /// should not keep the rest of the file. Mapped and borrowed bytes stay where they are.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn compact(self) -> Result<Self, Error> {
        if !self.bytes.keeps_more() {
            return Ok(self);
        }
        let mut bytes = reserved(self.bytes.len())?;
        bytes.extend_from_slice(&self.bytes);
        Ok(Self { bytes: bytes.into(), ..self })
    }
}

/// An empty vector with room for `n` values: what grows with a model or a batch is made of these, not of vectors that end
/// the process where memory is refused.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn reserved<T>(n: usize) -> Result<Vec<T>, Error> {
    let mut vector = Vec::new();
    let bytes = n.saturating_mul(size_of::<T>());
    vector.try_reserve_exact(n).map_err(|_| Error::OutOfMemory { bytes })?;
    Ok(vector)
}

/// `n` zeros.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn zeros<T: Zeroable + Clone>(n: usize) -> Result<Vec<T>, Error> {
    let mut zeros = reserved(n)?;
    zeros.resize(n, T::zeroed());
    Ok(zeros)
}
