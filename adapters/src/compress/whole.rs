//! Whole matrices in few bits.

use faer::{Mat, MatRef};
use graftwork_kernels::{Format, Tensor};

use super::feedback::{self, Rounded};
use super::levels::Levels;
use super::matrix::{inner, product};
use super::{Calibration, Difference, Error};
use crate::delta::Part;

/// `D' = a S` with signs `S`; see [`super::Method::BitDelta`].
pub(super) fn signs(delta: &Difference, inputs: Option<&Calibration>, feedback: bool) -> Result<Part, Error> {
    let (outputs, cols) = (delta.outputs(), delta.inputs());
    ragged(cols, "signs")?;
    let d = delta.matrix();
    let mut scale =
        delta.values().iter().map(|x| f64::from(x.abs())).sum::<f64>() / delta.values().len() as f64;
    let mut signs = Mat::from_fn(outputs, cols, |o, i| if d[(o, i)] >= 0.0 { 1.0 } else { -1.0 });
    if let Some(inputs) = inputs {
        scale = best_scale(d, signs.as_ref(), inputs);
        if feedback {
            let levels = Levels::signs(outputs, cols, scale as f32);
            let rounded = feedback::round(d, &levels, Some(&inputs.feedback));
            signs = Mat::from_fn(outputs, cols, |o, i| 2.0 * f32::from(rounded.codes[i * outputs + o]) - 1.0);
            scale = best_scale(d, signs.as_ref(), inputs);
        }
    }
    let matrix = Tensor::encode(Format::Sign, outputs, cols, &by_row(signs.as_ref()))?;
    Ok(Part::Whole { matrix: matrix.into(), scale: scale as f32 })
}

/// Ternary codes in groups, with feedback where calibrated. Groups' scales are halves of the matrix divided by its greatest magnitude.
pub(super) fn ternary(delta: &Difference, inputs: Option<&Calibration>) -> Result<Part, Error> {
    let cols = delta.inputs();
    ragged(cols, "ternary codes")?;
    let format = Format::coded(2, cols).ok_or(Error::Ragged { cols, block: 32, method: "ternary codes" })?;
    let greatest = delta.greatest();
    let unit = faer::Scale(1.0 / greatest) * delta.matrix();
    let levels = Levels::ternary(unit.as_ref(), format.block_len());
    let Rounded { codes, values } =
        feedback::round(unit.as_ref(), &levels, inputs.map(|inputs| &inputs.feedback));
    let scale = match inputs {
        Some(inputs) => f64::from(greatest) * best_scale(unit.as_ref(), values.as_ref(), inputs),
        None => greatest.into(),
    };
    Ok(Part::Whole { matrix: levels.tensor(format, &codes, 0..cols)?.into(), scale: scale as f32 })
}

/// All entries, divided by a power of two that leaves none above 1.
pub(super) fn dense(delta: &Difference, format: Format) -> Result<Part, Error> {
    let scale = 2f32.powi(delta.greatest().log2().ceil().clamp(-126.0, 127.0) as i32);
    let values: Vec<f32> = delta.values().iter().map(|value| value / scale).collect();
    let matrix = Tensor::encode(format, delta.outputs(), delta.inputs(), &values)?;
    Ok(Part::Whole { matrix: matrix.into(), scale })
}

/// The `a` with the least `tr(E H E^T)`, `E = D - a Q`: `tr(Q H D^T) / tr(Q H Q^T)`; 0 where that is 0 / 0.
fn best_scale(d: MatRef<'_, f32>, q: MatRef<'_, f32>, inputs: &Calibration) -> f64 {
    let qh = product(q, inputs.hessian.as_ref());
    let (qd, qq) = (inner(qh.as_ref(), d), inner(qh.as_ref(), q));
    if qq > 0.0 { qd / qq } else { 0.0 }
}

fn ragged(cols: usize, method: &'static str) -> Result<(), Error> {
    if cols.is_multiple_of(32) { Ok(()) } else { Err(Error::Ragged { cols, block: 32, method }) }
}

fn by_row(m: MatRef<'_, f32>) -> Vec<f32> {
    m.row_iter().flat_map(|row| row.iter().copied()).collect()
}
