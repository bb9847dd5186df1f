//! GPTQ: rounding with feedback from the columns already rounded to those that are not.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par, Side};

use super::Error;
use super::levels::Levels;

/// Share of the diagonal that is added to it before it is factored.
pub(super) const DAMPING: f64 = 0.01;

/// Columns between two products with the error so far.
const BLOCK: usize = 64;

/// The order in which columns are rounded and the weights of the feedback: with the rows and columns of `H` in that order,
/// `H + damping = (I + F) diag(d) (I + F)^T`, `F` strictly upper triangular.
#[derive(Clone, Debug)]
pub struct Feedback {
    /// Columns in the order in which they are rounded: by the diagonal of `H`, the greatest first.
    order: Vec<usize>,
    /// `I + F`.
    upper: Mat<f32>,
}

impl Feedback {
    /// Factors `h [n, n]`, symmetric, with `damping[j]` added to the diagonal.
    ///
    /// # Errors
    /// [`Error::Indefinite`].
    pub fn new(h: MatRef<'_, f32>, damping: &[f64], what: &'static str) -> Result<Self, Error> {
        let n = h.nrows();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| h[(b, b)].total_cmp(&h[(a, a)]));
        // From the last column to the first, a lower factor is an upper one.
        let reversed = Mat::from_fn(n, n, |i, j| {
            let (i, j) = (order[n - 1 - i], order[n - 1 - j]);
            f64::from(h[(i, j)]) + if i == j { damping[i] } else { 0.0 }
        });
        let factor = cholesky(reversed.as_ref(), what)?;
        let upper = Mat::from_fn(n, n, |k, j| {
            let (k, j) = (n - 1 - k, n - 1 - j);
            if k >= j { (factor[(k, j)] / factor[(j, j)]) as f32 } else { 0.0 }
        });
        Ok(Self { order, upper })
    }
}

/// GPTQ's damping: 0.01 of the mean of the diagonal of `h`. 1 where that is 0, which leaves plain rounding.
pub(super) fn damping(h: MatRef<'_, f32>) -> f64 {
    let n = h.nrows();
    let mean = (0..n).map(|i| f64::from(h[(i, i)])).sum::<f64>() / n.max(1) as f64;
    if mean > 0.0 { DAMPING * mean } else { 1.0 }
}

/// `L` of `h = L L^T`.
///
/// # Errors
/// [`Error::Indefinite`].
pub(super) fn cholesky(h: MatRef<'_, f64>, what: &'static str) -> Result<Mat<f64>, Error> {
    match h.llt(Side::Lower) {
        Ok(factor) => Ok(factor.L().to_owned()),
        Err(faer::linalg::solvers::LltError::NonPositivePivot { index }) => {
            Err(Error::Indefinite { what, column: index })
        }
    }
}

/// A matrix that was rounded.
pub struct Rounded {
    /// The code of each value, column after column.
    pub codes: Vec<u8>,
    /// What the codes stand for.
    pub values: Mat<f32>,
}

/// Rounds `w [rows, cols]` to `levels`: each value to the nearest, or with feedback so that the sum over rows of `e H e^T`,
/// `e = w - values`, becomes small: column `j` is rounded from `w_j + sum_{k<j} e_k F_kj`.
///
/// That is GPTQ (arXiv 2210.17323) with static groups: the Cholesky factor of the inverse that it takes is `(I + F)^{-1}` with its rows
/// scaled, and each of its steps leaves in the columns to come what is added here (arXiv 2307.13304, theorem 6). `H` needs no inverse
/// this way.
pub fn round(w: MatRef<'_, f32>, levels: &Levels, feedback: Option<&Feedback>) -> Rounded {
    let (rows, cols) = w.shape();
    let mut codes = vec![0; rows * cols];
    let mut values = Mat::zeros(rows, cols);
    let Some(Feedback { order, upper }) = feedback else {
        for (j, codes) in codes.chunks_exact_mut(rows.max(1)).enumerate() {
            let w: Vec<f32> = w.col(j).iter().copied().collect();
            levels.round(j, &w, codes, values.col_as_slice_mut(j));
        }
        return Rounded { codes, values };
    };
    // In the order of rounding.
    let mut errors = Mat::<f32>::zeros(rows, cols);
    let mut target = vec![0.0; rows];
    for start in (0..cols).step_by(BLOCK) {
        let end = (start + BLOCK).min(cols);
        let mut fed = Mat::<f32>::zeros(rows, end - start);
        let weights = upper.get(..start, start..end);
        matmul(fed.as_mut(), Accum::Replace, errors.get(.., ..start), weights, 1.0, Par::Seq);
        for p in start..end {
            let j = order[p];
            for ((target, &w), &fed) in
                target.iter_mut().zip(w.col(j).iter()).zip(fed.col_as_slice(p - start))
            {
                *target = w + fed;
            }
            let out = values.col_as_slice_mut(j);
            levels.round(j, &target, &mut codes[j * rows..][..rows], out);
            let error = errors.col_as_slice_mut(p);
            for ((error, &w), &value) in error.iter_mut().zip(w.col(j).iter()).zip(&*out) {
                *error = w - value;
            }
            for later in p + 1..end {
                let weight = upper[(p, later)];
                let fed = fed.col_as_slice_mut(later - start);
                fed.iter_mut().zip(&*error).for_each(|(fed, error)| *fed += weight * error);
            }
        }
    }
    Rounded { codes, values }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::levels::Scales;
    use crate::compress::matrix::{inner, product};
    use crate::compress::synthetic::{Spectrum, delta};

    /// Weights, and inputs with a long-tailed spectrum of correlations.
    fn problem(rows: usize, n: usize) -> (Mat<f32>, Mat<f32>) {
        let w = delta(rows, n, &Spectrum { tail: 1.0, ..Spectrum::default() }, 1);
        let x = delta(2 * n, n, &Spectrum { norm: 30.0, exponent: 0.7, ..Spectrum::default() }, 2);
        let x = MatRef::from_row_major_slice(&x, 2 * n, n);
        let w = MatRef::from_row_major_slice(&w, rows, n).to_owned();
        (w, product(x.transpose(), x))
    }

    /// As published: the upper Cholesky factor of the inverse, the error of each column spread over those to come.
    fn published(w: &Mat<f32>, h: &Mat<f32>, levels: &Levels) -> Vec<u8> {
        let (rows, n) = w.shape();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| h[(b, b)].total_cmp(&h[(a, a)]));
        let damping = damping(h.as_ref());
        let damped = Mat::<f64>::from_fn(n, n, |i, j| {
            f64::from(h[(order[i], order[j])]) + if i == j { damping } else { 0.0 }
        });
        let lower = damped.llt(Side::Lower).unwrap().L().to_owned();
        let mut inverse = Mat::<f64>::identity(n, n);
        faer::linalg::triangular_solve::solve_lower_triangular_in_place(
            lower.as_ref(),
            inverse.as_mut(),
            Par::Seq,
        );
        let inverse = inverse.transpose() * &inverse;
        let upper = inverse.llt(Side::Lower).unwrap().L().transpose().to_owned();
        let mut w = Mat::<f64>::from_fn(rows, n, |r, j| w[(r, order[j])].into());
        let mut codes = vec![0; rows * n];
        for p in 0..n {
            let x: Vec<f32> = (0..rows).map(|r| w[(r, p)] as f32).collect();
            let mut values = vec![0.0; rows];
            levels.round(order[p], &x, &mut codes[order[p] * rows..][..rows], &mut values);
            for r in 0..rows {
                let error = (w[(r, p)] - f64::from(values[r])) / upper[(p, p)];
                (p + 1..n).for_each(|later| w[(r, later)] -= error * upper[(p, later)]);
            }
        }
        codes
    }

    #[test]
    fn feedback_is_gptq_of_the_inverse() {
        let (w, h) = problem(7, 160);
        let levels = Levels::grouped(w.as_ref(), 3, 32, Scales::Range);
        let feedback = Feedback::new(h.as_ref(), &[damping(h.as_ref()); 160], "h").unwrap();
        let codes = round(w.as_ref(), &levels, Some(&feedback)).codes;
        let expected = published(&w, &h, &levels);
        // A value between two levels may fall to either; what comes after it in its row then differs too.
        let rows = (0..7).filter(|r| (0..160).all(|j| codes[j * 7 + r] == expected[j * 7 + r])).count();
        assert!(rows >= 6, "{rows} rows of 7 are equal");
    }

    #[test]
    fn feedback_loses_less_of_the_outputs() {
        let (w, h) = problem(40, 192);
        let feedback = Feedback::new(h.as_ref(), &[damping(h.as_ref()); 192], "h").unwrap();
        for levels in [
            Levels::grouped(w.as_ref(), 2, 64, Scales::Range),
            Levels::grouped(w.as_ref(), 3, 64, Scales::Fitted),
            Levels::bytes_by_row(w.as_ref()),
            Levels::bytes_by_column(w.as_ref()),
            Levels::ternary(w.as_ref(), 64),
        ] {
            let [plain, fed] = [None, Some(&feedback)].map(|feedback| {
                let error = &w - round(w.as_ref(), &levels, feedback).values;
                inner(product(error.as_ref(), h.as_ref()).as_ref(), error.as_ref())
            });
            assert!(fed < 0.7 * plain, "{fed} with feedback, {plain} without");
        }
    }

    #[test]
    fn what_is_no_sum_of_products_is_refused() {
        let h = Mat::from_fn(3, 3, |i, j| if i == j { 1.0 } else { -2.0 });
        let error = Feedback::new(h.as_ref(), &[0.01; 3], "h").unwrap_err().to_string();
        assert!(error.starts_with("h: expected a positive semi-definite matrix"), "{error}");
    }
}
