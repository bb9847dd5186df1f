//! What the inputs of a linear layer say about which errors matter.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par};

use super::Error;
use super::feedback::{Feedback, damping};
use super::matrix::finite;

/// `H[i,j] = sum_t x_t[i] x_t[j]` over the inputs `x_t` that a layer sees, shape `[inputs, inputs]`: an error `E` of its weight is
/// an error of its outputs with the sum of squares `tr(E H E^T)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Hessian {
    /// What is above the diagonal is 0.
    sum: Mat<f32>,
}

impl Hessian {
    /// Of a layer that has seen no inputs.
    pub fn new(inputs: usize) -> Self {
        Self { sum: Mat::zeros(inputs, inputs) }
    }

    /// Adds the inputs of some tokens, `x [tokens, inputs]`, row after row.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::NotFinite`].
    pub fn add(&mut self, x: &[f32]) -> Result<(), Error> {
        let inputs = self.sum.nrows();
        if inputs == 0 || !x.len().is_multiple_of(inputs) {
            let expected = format!("rows of {inputs} values");
            return Err(Error::Shape {
                what: "inputs of the layer",
                expected,
                found: format!("{} values", x.len()),
            });
        }
        finite("inputs of the layer", inputs, x)?;
        let x = MatRef::from_column_major_slice(x, inputs, x.len() / inputs);
        triangular::matmul(
            self.sum.as_mut(),
            BlockStructure::TriangularLower,
            Accum::Add,
            x,
            BlockStructure::Rectangular,
            x.transpose(),
            BlockStructure::Rectangular,
            1.0,
            Par::Seq,
        );
        Ok(())
    }

    /// `H[i,j]`.
    pub fn at(&self, i: usize, j: usize) -> f32 {
        self.sum[(i.max(j), i.min(j))]
    }

    /// Factors it, once for all layers with these inputs.
    ///
    /// # Errors
    /// [`Error::NotFinite`] where sums are too large for singles.
    pub fn calibrate(mut self) -> Result<Calibration, Error> {
        let inputs = self.sum.nrows();
        for j in 0..inputs {
            finite("sums of products of inputs", inputs, &self.sum.col_as_slice(j)[j..])?;
            for i in j + 1..inputs {
                self.sum[(j, i)] = self.sum[(i, j)];
            }
        }
        let damping = vec![damping(self.sum.as_ref()); inputs];
        let feedback = Feedback::new(self.sum.as_ref(), &damping, "sums of products of inputs")?;
        Ok(Calibration { hessian: self.sum, feedback })
    }
}

/// A [`Hessian`] with what rounding needs of it.
#[derive(Clone, Debug)]
pub struct Calibration {
    pub(super) hessian: Mat<f32>,
    pub(super) feedback: Feedback,
}

impl Calibration {
    /// Whether the layer saw inputs other than 0.
    pub(super) fn is_any(&self) -> bool {
        (0..self.hessian.nrows()).any(|i| self.hessian[(i, i)] > 0.0)
    }
}
