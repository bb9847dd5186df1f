//! A matrix as kernels keep it: placeholder until the one of the kernels is there.

use graftwork_kernels::{Bytes, Format};

/// A matrix with sixteen rows side by side, as kernels read it.
#[derive(Clone, Debug)]
pub struct Strips {
    format: Format,
    rows: usize,
    cols: usize,
    bytes: Bytes,
}

impl Strips {
    /// The matrix in these bytes.
    pub fn new(format: Format, rows: usize, cols: usize, bytes: Bytes) -> Self {
        Self { format, rows, cols, bytes }
    }

    /// The block format of every row.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The strips, one after the other.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}
