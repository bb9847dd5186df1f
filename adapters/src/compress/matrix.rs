//! Matrices as they go in and come out.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use graftwork_kernels::{Tensor, tensor};

use super::Error;
use crate::delta::{Coded, Part};

/// What a fine-tune changed in the weight of one linear layer: finite values, at least one.
#[derive(Clone, Debug)]
pub struct Difference {
    outputs: usize,
    inputs: usize,
    values: Vec<f32>,
}

impl Difference {
    /// The delta with these values, `[outputs, inputs]`, row after row.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::NotFinite`].
    pub fn new(outputs: usize, inputs: usize, values: Vec<f32>) -> Result<Self, Error> {
        if values.is_empty() || outputs.checked_mul(inputs) != Some(values.len()) {
            let expected = format!("[{outputs}, {inputs}], not empty");
            return Err(Error::Shape { what: "delta", expected, found: format!("{} values", values.len()) });
        }
        finite("delta", inputs, &values)?;
        Ok(Self { outputs, inputs, values })
    }

    /// `tuned - base`.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::NotFinite`]; no memory for the values.
    pub fn between(tuned: &Tensor, base: &Tensor) -> Result<Self, Error> {
        if (tuned.rows(), tuned.cols()) != (base.rows(), base.cols()) {
            return Err(Error::Shape {
                what: "tuned weight",
                expected: format!("[{}, {}] as the base's", base.rows(), base.cols()),
                found: format!("[{}, {}]", tuned.rows(), tuned.cols()),
            });
        }
        let mut values = tuned.decode()?;
        finite("tuned weight", tuned.cols(), &values)?;
        let base_values = base.decode()?;
        finite("base weight", base.cols(), &base_values)?;
        values.iter_mut().zip(&base_values).for_each(|(value, base)| *value -= base);
        Self::new(tuned.rows(), tuned.cols(), values)
    }

    /// Rows.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Row after row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Whether the layer is unchanged.
    pub fn is_zero(&self) -> bool {
        self.values.iter().all(|&value| value == 0.0)
    }

    /// The greatest magnitude.
    pub(super) fn greatest(&self) -> f32 {
        self.values.iter().fold(0.0, |most, value| most.max(value.abs()))
    }

    /// The matrix.
    pub(super) fn matrix(&self) -> MatRef<'_, f32> {
        MatRef::from_row_major_slice(&self.values, self.outputs, self.inputs)
    }
}

/// Refuses values, rows of `cols`, that are infinite or not numbers.
pub(super) fn finite(what: &'static str, cols: usize, values: &[f32]) -> Result<(), Error> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::NotFinite { what, row: at / cols, col: at % cols, found: values[at] }),
    }
}

/// `a b`.
pub(super) fn product(a: MatRef<'_, f32>, b: MatRef<'_, f32>) -> Mat<f32> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    matmul(out.as_mut(), Accum::Replace, a, b, 1.0, Par::Seq);
    out
}

/// `tr(a b^T)`.
pub(super) fn inner(a: MatRef<'_, f32>, b: MatRef<'_, f32>) -> f64 {
    let pairs = a.col_iter().zip(b.col_iter());
    let sum = |(a, b): (faer::ColRef<'_, f32>, faer::ColRef<'_, f32>)| {
        a.iter().zip(b.iter()).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
    };
    pairs.map(sum).sum()
}

/// The matrix that the parts decode to.
///
/// # Errors
/// No memory.
pub(super) fn sum(parts: &[Part], outputs: usize, inputs: usize) -> Result<Mat<f32>, Error> {
    let mut sum = Mat::<f32>::zeros(outputs, inputs);
    for part in parts {
        match part {
            Part::Factors { v, s, u } => {
                let (v, mut u) = (decode(v)?, decode(u)?);
                for (column, &s) in u.col_iter_mut().zip(s) {
                    column.iter_mut().for_each(|u| *u *= s);
                }
                matmul(sum.as_mut(), Accum::Add, &u, &v, 1.0, Par::Seq);
            }
            Part::Whole { matrix, scale } => sum += faer::Scale(*scale) * decode(matrix)?,
            Part::Sparse { starts, columns, values } | Part::Overwrite { starts, columns, values, .. } => {
                let mut values = values.decode()?;
                if let Part::Overwrite { before, .. } = part {
                    values.iter_mut().zip(before.decode()?).for_each(|(value, before)| *value -= before);
                }
                for (row, range) in starts.windows(2).enumerate() {
                    for e in range[0] as usize..range[1] as usize {
                        sum[(row, columns[e] as usize)] += values[e];
                    }
                }
            }
        }
    }
    Ok(sum)
}

/// The values of a matrix.
fn decode(coded: &Coded) -> Result<Mat<f32>, Error> {
    let rows = coded.as_rows().ok_or(tensor::Error::Unsupported { what: "strips" })?;
    let values = rows.decode()?;
    Ok(MatRef::from_row_major_slice(&values, coded.rows(), coded.cols()).to_owned())
}

/// Bytes of a part.
pub(super) fn bytes(part: &Part) -> usize {
    match part {
        Part::Factors { v, s, u } => v.bytes().len() + size_of_val(s.as_slice()) + u.bytes().len(),
        Part::Whole { matrix, .. } => matrix.bytes().len() + size_of::<f32>(),
        Part::Sparse { starts, columns, values } => 4 * (starts.len() + columns.len()) + values.bytes().len(),
        Part::Overwrite { starts, columns, values, before } => {
            4 * (starts.len() + columns.len()) + values.bytes().len() + before.bytes().len()
        }
    }
}
