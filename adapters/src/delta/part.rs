//! What a compressed delta holds of one linear layer.

use std::sync::Arc;

use graftwork_kernels::{Bytes, Format, Strips, Tensor, tensor};

use crate::Change;

/// One term of a linear layer's delta: `y += D x`, with `D [outputs, inputs]` in one of these forms.
#[derive(Clone, Debug)]
pub enum Part {
    /// `D = U diag(s) V`: `y += U (s * (V x))`. What of the singular vectors is kept in one precision.
    Factors {
        /// `V [rank, inputs]`.
        v: Coded,
        /// Length `rank`: singular values, with the scales of `V` and `U` where their format has none.
        s: Vec<f32>,
        /// `U [outputs, rank]`.
        u: Coded,
    },
    /// `D = scale * M`.
    Whole {
        /// `M [outputs, inputs]`.
        matrix: Coded,
        /// A number.
        scale: f32,
    },
    /// The entries of `D` that are not zero, by output: `y[o] += sum values[e] x[columns[e]]` over the entries `e` from `starts[o]` to
    /// `starts[o + 1]`.
    Sparse {
        /// Length `outputs + 1`, ascending, from 0 to the number of entries.
        starts: Arc<[u32]>,
        /// The input of each entry, ascending within an output.
        columns: Arc<[u32]>,
        /// Shape `[1, entries]`.
        values: Tensor,
    },
    /// Entries of the weight that become others: `W[o, columns[e]] = values[e]` where it was `before[e]`, so that `D` is what lies
    /// between the two.
    Overwrite {
        /// As of sparse entries.
        starts: Arc<[u32]>,
        /// Likewise.
        columns: Arc<[u32]>,
        /// Shape `[1, entries]`.
        values: Tensor,
        /// Shape `[1, entries]`, in the same format.
        before: Tensor,
    },
}

/// A matrix, row after row or with sixteen rows side by side as kernels read it.
#[derive(Clone, Debug)]
pub enum Coded {
    /// Row after row.
    Rows(Tensor),
    /// Sixteen rows side by side.
    Strips(Strips),
}

impl Coded {
    /// The block format of every row.
    pub fn format(&self) -> Format {
        match self {
            Self::Rows(tensor) => tensor.format(),
            Self::Strips(strips) => strips.format(),
        }
    }

    /// Its rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::Rows(tensor) => tensor.rows(),
            Self::Strips(strips) => strips.rows(),
        }
    }

    /// Its columns.
    pub fn cols(&self) -> usize {
        match self {
            Self::Rows(tensor) => tensor.cols(),
            Self::Strips(strips) => strips.cols(),
        }
    }

    /// Its bytes, in the one order or the other.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Self::Rows(tensor) => tensor.bytes(),
            Self::Strips(strips) => strips.bytes(),
        }
    }

    /// The matrix, row after row.
    ///
    /// # Errors
    /// No memory.
    pub fn to_rows(&self) -> Result<Tensor, tensor::Error> {
        match self {
            Self::Rows(tensor) => Ok(tensor.clone()),
            Self::Strips(strips) => strips.unpack(),
        }
    }

    /// The matrix, if it lies row after row.
    pub(crate) fn as_rows(&self) -> Option<&Tensor> {
        match self {
            Self::Rows(tensor) => Some(tensor),
            Self::Strips(_) => None,
        }
    }
}

impl From<Tensor> for Coded {
    fn from(tensor: Tensor) -> Self {
        Self::Rows(tensor)
    }
}

impl From<Part> for Change {
    fn from(part: Part) -> Self {
        match part {
            Part::Factors { v, s, u } => Self::Factors { v, s, u },
            Part::Whole { matrix, scale } => Self::Whole { matrix, scale },
            Part::Sparse { starts, columns, values } => {
                Self::Sparse { rows: rows_of(&starts), columns, values }
            }
            Part::Overwrite { starts, columns, values, before } => {
                Self::Overwrite { rows: rows_of(&starts), columns, values, before }
            }
        }
    }
}

/// The output of each entry.
fn rows_of(starts: &[u32]) -> Arc<[u32]> {
    let entries = |row: usize| starts[row] as usize..starts[row + 1] as usize;
    let outputs = starts.len().saturating_sub(1);
    (0..outputs).flat_map(|row| entries(row).map(move |_| row as u32)).collect()
}
