//! Singular vectors.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::solvers::SelfAdjointEigen;
use faer::{Accum, Mat, MatRef, Par, Side};

use super::feedback::{cholesky, damping};
use super::matrix::product;
use super::{Difference, Error};

/// Squares of singular values below this share of the greatest are rounding errors of singles.
const RANK: f64 = 1e-10;

/// `D = U diag(s) V` in part: the first vectors, by falling `s`.
pub struct Vectors {
    /// `[outputs, rank]`, orthonormal columns.
    pub u: Mat<f32>,
    /// Length `rank`.
    pub s: Vec<f32>,
    /// `[rank, inputs]`, rows of norm 1.
    pub v: Mat<f32>,
}

/// The singular vectors of the `most` greatest singular values of `D` that are not 0: `U diag(s) V` has the least `|E|_F` of its rank.
/// With `H` those of `D R`, `H + damping = R R^T`, where `V` is the rest of the product, `U^T D`: the least `tr(E H E^T)` of its rank.
///
/// `U` are the eigenvectors of the smaller Gram matrix, `D H D^T` or `R^T D^T D R`, computed in doubles: a third faster than the
/// decomposition of `D` in singles, and as exact where singular values are above `1e-5` of the greatest.
///
/// # Errors
/// [`Error::NoConvergence`]; [`Error::Indefinite`].
pub fn decompose(delta: &Difference, h: Option<MatRef<'_, f32>>, most: usize) -> Result<Vectors, Error> {
    let (outputs, inputs) = (delta.outputs(), delta.inputs());
    let doubles: Vec<f64> = delta.values().iter().map(|&value| value.into()).collect();
    let d = MatRef::from_row_major_slice(&doubles, outputs, inputs);
    let mut u = match h {
        None if outputs <= inputs => eigenvectors(delta, gram(d, d.transpose()), most)?,
        Some(h) if outputs <= inputs => {
            let mut dh = doubles_of(product(delta.matrix(), h).as_ref());
            dh += faer::Scale(damping(h)) * d;
            eigenvectors(delta, gram(dh.as_ref(), d.transpose()), most)?
        }
        None => {
            let v = eigenvectors(delta, gram(d.transpose(), d), most)?;
            product(delta.matrix(), v.as_ref())
        }
        Some(h) => {
            let mut damped = doubles_of(h);
            let damping = damping(h);
            (0..inputs).for_each(|i| damped[(i, i)] += damping);
            let r = cholesky(damped.as_ref(), "sums of products of inputs")?;
            let mut dr = Mat::zeros(outputs, inputs);
            matmul(dr.as_mut(), Accum::Replace, d, &r, 1.0, Par::Seq);
            let v = eigenvectors(delta, gram(dr.transpose(), dr.as_ref()), most)?;
            let dr = Mat::from_fn(outputs, inputs, |i, j| dr[(i, j)] as f32);
            product(dr.as_ref(), v.as_ref())
        }
    };
    for j in 0..u.ncols() {
        normalize(u.col_as_slice_mut(j));
    }
    // As columns, which lie in one piece.
    let mut v = product(delta.matrix().transpose(), u.as_ref());
    let s = (0..v.ncols()).map(|k| normalize(v.col_as_slice_mut(k))).collect();
    Ok(Vectors { u, s, v: v.transpose().to_owned() })
}

/// The lower half of `a b`, which is symmetric.
fn gram(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
    let mut gram = Mat::zeros(a.nrows(), a.nrows());
    let (lower, whole) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
    triangular::matmul(gram.as_mut(), lower, Accum::Replace, a, whole, b, whole, 1.0, Par::Seq);
    gram
}

/// The eigenvectors of the `most` greatest eigenvalues of a Gram matrix, by falling value, as columns.
fn eigenvectors(delta: &Difference, gram: Mat<f64>, most: usize) -> Result<Mat<f32>, Error> {
    let failed = |_| Error::NoConvergence { rows: delta.outputs(), cols: delta.inputs() };
    let eigen = SelfAdjointEigen::new(gram.as_ref(), Side::Lower).map_err(failed)?;
    let (values, vectors) = (eigen.S().column_vector(), eigen.U());
    let n = gram.nrows();
    let greatest = values[n - 1];
    let rank = (0..n.min(most)).take_while(|&k| values[n - 1 - k] > RANK * greatest).count();
    Ok(Mat::from_fn(n, rank, |i, k| vectors[(i, n - 1 - k)] as f32))
}

fn doubles_of(m: MatRef<'_, f32>) -> Mat<f64> {
    Mat::from_fn(m.nrows(), m.ncols(), |i, j| m[(i, j)].into())
}

/// Divides a vector by its norm, and returns that.
fn normalize(x: &mut [f32]) -> f32 {
    let norm = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if norm > 0.0 {
        x.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
    norm as f32
}
