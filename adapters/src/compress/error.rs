//! Why a matrix could not be compressed.

use graftwork_kernels::tensor;

/// Why a matrix could not be compressed. The caller knows its name.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two things that belong together differ in shape.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// Which of them is wrong.
        what: &'static str,
        /// Shape or length that the other asks for.
        expected: String,
        /// Its own.
        found: String,
    },
    /// A value is infinite or not a number.
    #[error("{what}: expected finite values, found {found} in row {row}, column {col}")]
    NotFinite {
        /// In which matrix.
        what: &'static str,
        /// Row of the first such value.
        row: usize,
        /// Its column.
        col: usize,
        /// The value.
        found: f32,
    },
    /// A row is no whole number of blocks of the format that the method needs.
    #[error("a row of {cols} inputs: expected a multiple of {block} for {method}")]
    Ragged {
        /// Inputs of the layer.
        cols: usize,
        /// Values in the smallest block.
        block: usize,
        /// The method.
        method: &'static str,
    },
    /// A stage of singular vectors that there is no format for.
    #[error("stage {stage}: expected {expected}, found {found}")]
    Stage {
        /// Its index.
        stage: usize,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// The least that the method writes takes more than the bytes allowed.
    #[error("{bytes} bytes for a [{rows}, {cols}] matrix: {method} takes {least} at least")]
    Budget {
        /// Bytes allowed.
        bytes: usize,
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
        /// The method.
        method: &'static str,
        /// Bytes of the smallest result.
        least: usize,
    },
    /// A sum of products of inputs that is none: its Cholesky factor does not exist.
    #[error("{what}: expected a positive semi-definite matrix, found column {column} to contradict that")]
    Indefinite {
        /// Which matrix.
        what: &'static str,
        /// The first column without a factor.
        column: usize,
    },
    /// Eigenvalues did not converge.
    #[error("no singular values of a [{rows}, {cols}] matrix: the iteration did not converge")]
    NoConvergence {
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
    },
    /// A matrix of bytes could not be made.
    #[error(transparent)]
    Tensor(#[from] tensor::Error),
}
