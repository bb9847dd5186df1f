//! The mathematics of compressing a full fine-tune: of each linear layer, the difference to the base as [`Part`]s. No files, no models.
//!
//! With `D = tuned - base`, shape `[outputs, inputs]`, and `D'` the sum of the parts, `E = D - D'` is the error. Without
//! [calibration](Calibration) methods make the sum of its squares small, with it `tr(E H E^T)`, the squared error of the layer's outputs
//! on the inputs seen.
//!
//! A matrix is compressed on one thread, always to the same bytes on the same kind of CPU; many are compressed in parallel. Large
//! intermediate results are not allocated fallibly: this is for tools, not for a server.
//!
//! ```
//! use graftwork_adapters::compress::{Difference, Method, Split, compress, synthetic};
//!
//! let spectrum = synthetic::Spectrum { rank: 64, ..synthetic::Spectrum::default() };
//! let delta = Difference::new(128, 256, synthetic::delta(128, 256, &spectrum, 1))?;
//! let compressed = compress(&delta, None, &Method::delta_come(Split::Bytes(128 * 256 / 4)))?;
//! assert!(compressed.report.relative_error < 0.5);
//! # Ok::<(), graftwork_adapters::compress::Error>(())
//! ```

pub(crate) mod decompose;
mod error;
mod factors;
mod feedback;
mod inputs;
mod least;
mod levels;
mod matrix;
mod sparse;
mod split;
pub mod synthetic;
mod whole;

pub use error::Error;
pub use factors::Choices;
pub use inputs::{Calibration, Hessian};
pub use levels::Scales;
pub use matrix::Difference;
pub use split::{Split, Stage};

use faer::{Mat, MatRef};
use graftwork_kernels::Format;

use crate::delta::Part;
use matrix::{inner, product};

/// How a delta is compressed.
#[derive(Clone, Debug)]
pub enum Method {
    /// Delta-CoMe (arXiv 2406.08903): singular vectors in 8, 3 and 2 bits, the more bits the greater the singular value.
    DeltaCome {
        /// How many vectors take how many bits.
        split: Split,
        /// What is done as published and what is done better.
        choices: Choices,
    },
    /// BitDelta (arXiv 2402.10193): `D' = a sign(D)`, with `a = tr(S H D^T) / tr(S H S^T)`, `S = sign(D)`, which is `mean |D|` without
    /// calibration: the least squared error for these signs. Distilling `a` on the logits, as published, is not done.
    BitDelta {
        /// With calibration, signs are rounded with feedback, as GPTQ's codes are, rather than taken from `D`.
        feedback: bool,
    },
    /// The greatest singular values and their vectors, as halves, as many as fit.
    LowRank {
        /// Bytes that factors and singular values may take.
        bytes: usize,
        /// Where calibrated, vectors that make the error of the outputs least, as in [`Choices::weighted`].
        weighted: bool,
    },
    /// `-d`, 0 or `d`, with a `d` for each group of 128, 64 or 32 inputs, in 2 bits.
    Ternary,
    /// The entries with the greatest magnitudes, as BF16, as many as fit; or all that are not 0, unrounded.
    Sparse {
        /// Bytes that the entries may take; none for all entries.
        bytes: Option<usize>,
    },
    /// All entries in a float format.
    Dense(Format),
    /// Whichever of sparse entries, singular vectors and all entries, in BF16, F16 or F32, takes the fewest bytes for an error that is
    /// small enough: few entries that changed, a low rank, or neither.
    Least {
        /// The greatest `|E|_F / |D|_F`; 0 for none.
        error: f64,
    },
}

impl Method {
    /// Delta-CoMe as it compresses best.
    pub fn delta_come(split: Split) -> Self {
        Self::DeltaCome { split, choices: Choices::BEST }
    }
}

/// A compressed matrix.
#[derive(Clone, Debug)]
pub struct Compressed {
    /// What it is the sum of; nothing where the delta is 0.
    pub parts: Vec<Part>,
    /// How well.
    pub report: Report,
}

/// What compressing a matrix cost and lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// Bytes of the parts: rows of matrices, without what strips add to a number of rows that is no multiple of 16.
    pub bytes: usize,
    /// The same for each entry of `D`.
    pub bits_per_weight: f64,
    /// `|E|_F / |D|_F`, of what the parts decode to; 0 where the delta is 0.
    pub relative_error: f64,
    /// `sqrt(tr(E H E^T) / tr(D H D^T))`, if calibrated.
    pub output_error: Option<f64>,
}

/// Compresses the delta of one linear layer. Calibration with no inputs, or nothing but zeros, is as none.
///
/// # Errors
/// Whatever [`Error`] says: inputs that do not belong to the layer, a budget too small, a shape that a format does not take.
pub fn compress(
    delta: &Difference,
    inputs: Option<&Calibration>,
    method: &Method,
) -> Result<Compressed, Error> {
    inputs.map_or(Ok(()), |inputs| fits(delta, inputs))?;
    // Of a layer that saw no inputs nothing is known.
    let seen = inputs.filter(|inputs| inputs.is_any());
    let parts = match method {
        _ if delta.is_zero() => Vec::new(),
        Method::DeltaCome { split, choices } => factors::delta_come(delta, seen, split, *choices)?,
        Method::BitDelta { feedback } => vec![whole::signs(delta, seen, *feedback)?],
        Method::LowRank { bytes, weighted } => vec![factors::low_rank(delta, seen, *bytes, *weighted)?],
        Method::Ternary => vec![whole::ternary(delta, seen)?],
        Method::Sparse { bytes } => vec![sparse::greatest(delta, *bytes)?],
        Method::Dense(format) => vec![whole::dense(delta, *format)?],
        Method::Least { error } => vec![least::least(delta, *error)?],
    };
    let report = report(delta, inputs, &parts)?;
    Ok(Compressed { parts, report })
}

impl Compressed {
    /// `sqrt(tr(E H E^T) / tr(D H D^T))` on other inputs than those it was calibrated with.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn output_error(&self, delta: &Difference, inputs: &Calibration) -> Result<f64, Error> {
        fits(delta, inputs)?;
        Ok(output_error(delta, self.error(delta)?.as_ref(), inputs))
    }

    /// `|E|_F / |D|_F`.
    ///
    /// # Errors
    /// No memory.
    pub fn relative_error(&self, delta: &Difference) -> Result<f64, Error> {
        let (d, e) = (delta.matrix(), self.error(delta)?);
        Ok(ratio(inner(e.as_ref(), e.as_ref()), inner(d, d)))
    }

    /// `E`.
    fn error(&self, delta: &Difference) -> Result<Mat<f32>, Error> {
        Ok(delta.matrix() - matrix::sum(&self.parts, delta.outputs(), delta.inputs())?)
    }
}

/// The cost and the error of what the parts decode to.
fn report(delta: &Difference, inputs: Option<&Calibration>, parts: &[Part]) -> Result<Report, Error> {
    let d = delta.matrix();
    let error = d - matrix::sum(parts, delta.outputs(), delta.inputs())?;
    let bytes = parts.iter().map(matrix::bytes).sum();
    Ok(Report {
        bytes,
        bits_per_weight: 8.0 * bytes as f64 / (delta.outputs() * delta.inputs()) as f64,
        relative_error: ratio(inner(error.as_ref(), error.as_ref()), inner(d, d)),
        output_error: inputs.map(|inputs| output_error(delta, error.as_ref(), inputs)),
    })
}

/// `sqrt(tr(E H E^T) / tr(D H D^T))`.
fn output_error(delta: &Difference, error: MatRef<'_, f32>, inputs: &Calibration) -> f64 {
    let squares = |m| inner(product(m, inputs.hessian.as_ref()).as_ref(), m);
    ratio(squares(error), squares(delta.matrix()))
}

/// `sqrt(e / d)`, 0 where both are 0.
fn ratio(e: f64, d: f64) -> f64 {
    if d > 0.0 { (e.max(0.0) / d).sqrt() } else { 0.0 }
}

/// Refuses calibration of a layer with other inputs.
fn fits(delta: &Difference, inputs: &Calibration) -> Result<(), Error> {
    let found = inputs.hessian.nrows();
    if found == delta.inputs() {
        return Ok(());
    }
    let expected = format!("that of {} inputs", delta.inputs());
    Err(Error::Shape { what: "calibration", expected, found: found.to_string() })
}
