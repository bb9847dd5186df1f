//! A matrix in some block format, over bytes that somebody keeps alive.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

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
    /// Memory for a copy of the weights was refused.
    #[error("no memory for {bytes} bytes of weights")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
}

/// A slice of bytes that keeps its owner (a mapping, a vector) alive. Cloning copies no bytes.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// All bytes of `owner`.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        let range = 0..owner.as_ref().len();
        Self { owner: Arc::new(owner), range }
    }

    /// The bytes `range` of this slice, or `None` if they do not all lie in it.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Self { owner: self.owner.clone(), range: start..start + range.len() })
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
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
        let mut bytes = vec![0; values.len() / format.block_len() * format.block_bytes()];
        format.encode(values, &mut bytes);
        Self::new(format, rows, cols, Bytes::new(bytes))
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
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        self.format.decode(&self.bytes, &mut out);
        out
    }
}
