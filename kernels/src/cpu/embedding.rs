//! Changes of the embedding.

use crate::backend::EmbeddingChange;
use crate::tensor::{Error, Tensor};

/// A change of the embedding, ready to be applied.
pub enum Embedding {
    /// Other rows for all tokens.
    Table(Tensor),
    /// Other rows for these tokens, which ascend.
    Rows {
        /// The tokens.
        tokens: Vec<u32>,
        /// Their rows.
        rows: Tensor,
    },
    /// An update of low rank.
    LowRank {
        /// `A [r, vocabulary]`.
        a: Vec<f32>,
        /// `B`, transposed: `[r, width]`.
        b: Vec<f32>,
        /// Tokens.
        vocabulary: usize,
    },
}

impl Embedding {
    /// Prepares a change.
    pub fn new(change: &EmbeddingChange) -> Result<Self, Error> {
        Ok(match change {
            EmbeddingChange::Table(table) => Self::Table(table.clone()),
            EmbeddingChange::Rows { tokens, rows } => {
                assert!(tokens.is_sorted() && tokens.len() == rows.rows(), "tokens in order, a row for each");
                Self::Rows { tokens: tokens.clone(), rows: rows.clone() }
            }
            EmbeddingChange::LowRank { a, b } => {
                let (rank, width) = (b.cols(), b.rows());
                assert_eq!(a.rows(), rank, "the rank of a low-rank change");
                let (values, mut transposed) = (b.decode()?, b.decode()?);
                for (i, row) in values.chunks_exact(rank).enumerate() {
                    row.iter().enumerate().for_each(|(r, &value)| transposed[r * width + i] = value);
                }
                Self::LowRank { a: a.decode()?, b: transposed, vocabulary: a.cols() }
            }
        })
    }

    /// Changes `y`, the embedding of `token`. The rank is summed in order.
    pub(super) fn apply(&self, y: &mut [f32], token: u32, scale: f32) {
        match self {
            Self::Table(table) => table.decode_row(token as usize, y),
            Self::Rows { tokens, rows } => {
                if let Ok(row) = tokens.binary_search(&token) {
                    rows.decode_row(row, y);
                }
            }
            Self::LowRank { a, b, vocabulary } => {
                for (a, b) in a.chunks_exact(*vocabulary).zip(b.chunks_exact(y.len())) {
                    let low = scale * a[token as usize];
                    y.iter_mut().zip(b).for_each(|(y, b)| *y += low * b);
                }
            }
        }
    }
}
