//! Sums of updates as one of a rank: `B = U diag(s)`, `A = V`, with the greatest singular values of `U diag(s) V`.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use graftwork_kernels::{Format, Tensor, tensor};

use super::Error;
use super::lora::{Update, format};
use crate::compress::decompose::{Vectors, decompose};
use crate::compress::{self, Difference};
use crate::{Site, expand};

/// `sum_i w_i s_i B_i A_i`, from the triangles of `[B_i]` and `[w_i s_i A_i]^T`, in doubles: `Q_B (R_B R_A^T) Q_A^T`. The whole is never made.
pub(super) fn of_products(
    site: Site,
    updates: &[Update<'_>],
    most: usize,
) -> Result<(Tensor, Tensor), Error> {
    let no_memory = |source| expand::failed(&format!("of {site}"), source);
    let (inputs, outputs) = (updates[0].a.cols(), updates[0].b.rows());
    let rank = updates.iter().map(|update| update.a.rows()).sum();
    let (mut a, mut b) = (Mat::<f64>::zeros(inputs, rank), Mat::<f64>::zeros(outputs, rank));
    let mut at = 0;
    for update in updates {
        let weight = f64::from(update.weight) * f64::from(update.scale);
        let r = update.a.rows();
        let (from_a, from_b) = (update.a.decode().map_err(no_memory)?, update.b.decode().map_err(no_memory)?);
        for k in 0..r {
            for i in 0..inputs {
                a[(i, at + k)] = weight * f64::from(from_a[k * inputs + i]);
            }
            for o in 0..outputs {
                b[(o, at + k)] = f64::from(from_b[o * r + k]);
            }
        }
        at += r;
    }
    let (a, b) = (a.qr(), b.qr());
    let core = product(b.thin_R(), a.thin_R().transpose());
    let source = compress::Error::NoConvergence { rows: outputs, cols: inputs };
    let core = core.thin_svd().map_err(|_| Error::Decompose { site, source })?;
    let s: Vec<f64> = core.S().column_vector().iter().copied().collect();
    // What is less than the rounding of the greatest in singles is no part of the rank.
    let least = s.first().map_or(0.0, |greatest| greatest * f64::from(f32::EPSILON));
    let kept = s.iter().take(most).take_while(|&&value| value > least).count();
    let u = product(b.compute_thin_Q().as_ref(), core.U().get(.., ..kept));
    let v = product(a.compute_thin_Q().as_ref(), core.V().get(.., ..kept));
    let shape = [outputs, kept, inputs];
    let factors = factors(format(updates), shape, |o, k| (u[(o, k)] * s[k]) as f32, |k, i| v[(i, k)] as f32);
    Ok(factors.map_err(no_memory)?)
}

/// `D [outputs, inputs]`, row after row.
pub(super) fn of_whole(
    site: Site,
    updates: &[Update<'_>],
    values: Vec<f32>,
    most: usize,
) -> Result<(Tensor, Tensor), Error> {
    let failed = |source| Error::Decompose { site, source };
    let delta = Difference::new(updates[0].b.rows(), updates[0].a.cols(), values).map_err(failed)?;
    let Vectors { u, s, v } = decompose(&delta, None, most).map_err(failed)?;
    let shape = [delta.outputs(), s.len(), delta.inputs()];
    let factors = factors(format(updates), shape, |o, k| u[(o, k)] * s[k], |k, i| v[(k, i)]);
    factors.map_err(|source| expand::failed(&format!("of {site}"), source).into())
}

/// `A [rank, inputs]` and `B [outputs, rank]`. Of an update of rank 0 they are zeros of rank 1.
fn factors(
    format: Format,
    [outputs, rank, inputs]: [usize; 3],
    b: impl Fn(usize, usize) -> f32,
    a: impl Fn(usize, usize) -> f32,
) -> Result<(Tensor, Tensor), tensor::Error> {
    let rows = rank.max(1);
    let (mut a_values, mut b_values) = (tensor::zeros(rows * inputs)?, tensor::zeros(outputs * rows)?);
    for k in 0..rank {
        (0..inputs).for_each(|i| a_values[k * inputs + i] = a(k, i));
        (0..outputs).for_each(|o| b_values[o * rank + k] = b(o, k));
    }
    Ok((Tensor::encode(format, rows, inputs, &a_values)?, Tensor::encode(format, outputs, rows, &b_values)?))
}

fn product(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    matmul(out.as_mut(), Accum::Replace, a, b, 1.0, Par::Seq);
    out
}
