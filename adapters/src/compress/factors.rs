//! Singular vectors, rounded.

use std::ops::Range;

use faer::linalg::solvers::Solve;
use faer::{Mat, MatRef, Side};
use graftwork_kernels::{Format, Tensor};

use super::decompose::{Vectors, decompose};
use super::feedback::{self, DAMPING, Feedback, Rounded, damping};
use super::levels::{Levels, Scales};
use super::matrix::product;
use super::split::{Split, Stage};
use super::{Calibration, Difference, Error};
use crate::delta::Part;

/// Share of the diagonal that is added to it where the best factors are sought.
const RIDGE: f64 = 1e-5;

/// What of Delta-CoMe is done as published and what is done better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choices {
    /// Where calibrated, singular vectors of `D R`, `H = R R^T`, not of `D`.
    pub weighted: bool,
    /// Scales of 2- and 3-bit codes.
    pub scales: Scales,
    /// Once `V` is rounded, `U` becomes `D H V^T (V H V^T)^{-1}`, the best for this `V`; all of its stages are rounded together; then `s`
    /// becomes the best for both.
    pub refit: bool,
}

impl Choices {
    /// Everything as published.
    pub const PUBLISHED: Self = Self { weighted: false, scales: Scales::Range, refit: false };
    /// With the least error.
    pub const BEST: Self = Self { weighted: true, scales: Scales::Fitted, refit: true };
}

/// `D' = sum over stages of U diag(s) V`. As published: `V` is rounded with feedback by `H`, then `U` of each stage with feedback by
/// `diag(s) V H V^T diag(s)`, without calibration both to the nearest level; `s` are the singular values. See [`Choices`] for what else.
pub(super) fn delta_come(
    delta: &Difference,
    inputs: Option<&Calibration>,
    split: &Split,
    choices: Choices,
) -> Result<Vec<Part>, Error> {
    let h = inputs.map(|inputs| inputs.hessian.as_ref());
    let vectors = decompose(delta, h.filter(|_| choices.weighted), split.most(delta))?;
    let stages = split.stages(delta, &vectors, inputs, choices.scales)?;
    let stages: Vec<(Stage, Range<usize>)> = stages
        .iter()
        .scan(0, |start, &stage| {
            let range = *start..*start + stage.count;
            *start = range.end;
            Some((stage, range))
        })
        .collect();
    // The last stage may have room for more vectors than there are.
    let rank = stages.last().map_or(0, |(_, range)| range.end);
    let found = vectors.s.len();
    let v = Mat::from_fn(rank, delta.inputs(), |k, i| if k < found { vectors.v[(k, i)] } else { 0.0 });

    let mut v_values = Mat::zeros(rank, delta.inputs());
    let mut v_stages = Vec::new();
    for (stage, range) in &stages {
        let rows = v.get(range.clone(), ..);
        let levels = match stage.bits {
            8 => Levels::bytes_by_row(rows),
            bits => Levels::grouped(rows, bits, stage.formats(delta.inputs())?.0.block_len(), choices.scales),
        };
        let rounded = feedback::round(rows, &levels, inputs.map(|inputs| &inputs.feedback));
        v_values.get_mut(range.clone(), ..).copy_from(&rounded.values);
        v_stages.push((levels, rounded.codes));
    }
    drop(v);

    let products = Products::new(delta, h, v_values.as_ref());
    let (u, mut s) = if choices.refit {
        products.best_u()?
    } else {
        let u = Mat::from_fn(delta.outputs(), rank, |o, k| if k < found { vectors.u[(o, k)] } else { 0.0 });
        (u, (0..rank).map(|k| if k < found { vectors.s[k] } else { 0.0 }).collect())
    };
    let u_levels = stages.iter().map(|(stage, range)| {
        let columns = u.get(.., range.clone());
        Ok(match stage.bits {
            8 => Levels::bytes_by_column(columns),
            bits => {
                Levels::grouped(columns, bits, stage.formats(delta.inputs())?.1.block_len(), choices.scales)
            }
        })
    });
    let u_levels = Levels::beside(u_levels.collect::<Result<Vec<_>, Error>>()?, delta.outputs());
    let feedback = match (choices.refit, inputs) {
        (true, _) => Some(products.feedback(&s)?),
        (false, Some(_)) => Some(products.feedback_by_stage(&s, &stages)?),
        (false, None) => None,
    };
    let Rounded { codes, values } = feedback::round(u.as_ref(), &u_levels, feedback.as_ref());
    if choices.refit {
        s = products.best_s(values.as_ref())?;
    }

    let mut parts = Vec::new();
    for ((stage, range), (v_levels, v_codes)) in stages.iter().zip(&v_stages) {
        let (v_format, u_format) = stage.formats(delta.inputs())?;
        let mut s = s[range.clone()].to_vec();
        if stage.bits == 8 {
            for ((k, column), s) in range.clone().enumerate().zip(&mut s) {
                *s *= v_levels.scale(k, 0) * u_levels.scale(0, column);
            }
        }
        let v = v_levels.tensor(v_format, v_codes, 0..delta.inputs())?.into();
        let u = u_levels.tensor(u_format, &codes, range.clone())?.into();
        parts.push(Part::Factors { v, s, u });
    }
    Ok(parts)
}

/// The greatest singular values whose factors fit in `bytes`; `V` and `U` as halves.
pub(super) fn low_rank(
    delta: &Difference,
    inputs: Option<&Calibration>,
    bytes: usize,
    weighted: bool,
) -> Result<Part, Error> {
    let (rows, cols) = (delta.outputs(), delta.inputs());
    let one = 2 * (rows + cols) + size_of::<f32>();
    if bytes < one {
        return Err(Error::Budget { bytes, rows, cols, method: "one pair of singular vectors", least: one });
    }
    let h = inputs.filter(|_| weighted).map(|inputs| inputs.hessian.as_ref());
    let vectors = decompose(delta, h, bytes / one)?;
    of_rank(&vectors, vectors.s.len(), Format::F16)
}

/// The first `rank` singular values, and their vectors in a float format.
pub(super) fn of_rank(vectors: &Vectors, rank: usize, format: Format) -> Result<Part, Error> {
    let encoded = |m: MatRef<'_, f32>| {
        let values: Vec<f32> = m.row_iter().flat_map(|row| row.iter().copied().collect::<Vec<_>>()).collect();
        Tensor::encode(format, m.nrows(), m.ncols(), &values)
    };
    let (v, u) = (encoded(vectors.v.get(..rank, ..))?, encoded(vectors.u.get(.., ..rank))?);
    Ok(Part::Factors { v: v.into(), s: vectors.s[..rank].to_vec(), u: u.into() })
}

/// What the best factors beside a `V [rank, inputs]` follow from, `H` damped as where it is factored: what is the best for the inputs
/// seen alone is worse for others. `H` is 1 where there is none.
struct Products {
    /// `D H V^T`, `[outputs, rank]`.
    dhv: Mat<f32>,
    /// `V H V^T`.
    vhv: Mat<f32>,
}

impl Products {
    fn new(delta: &Difference, h: Option<MatRef<'_, f32>>, v: MatRef<'_, f32>) -> Self {
        let hv = h.map(|h| product(h, v.transpose()) + faer::Scale(damping(h) as f32) * v.transpose());
        let hv = hv.as_ref().map_or(v.transpose(), Mat::as_ref);
        Self { dhv: product(delta.matrix(), hv), vhv: product(v, hv) }
    }

    /// `D H V^T (V H V^T)^{-1}` as `U diag(s)`. A column of norm `n` is one of norm `sqrt(n / n_0)` in `U`, `n_0` the greatest: values of
    /// a group are rounded to the same levels, and where columns that matter `n` times as much are `sqrt(n)` times as large, the sum of
    /// `(n error)^2` is least.
    fn best_u(&self) -> Result<(Mat<f32>, Vec<f32>), Error> {
        let rank = self.vhv.nrows();
        let a = Mat::from_fn(rank, rank, |i, j| self.vhv[(i, j)].into());
        let b = Mat::from_fn(rank, self.dhv.nrows(), |k, o| self.dhv[(o, k)].into());
        let x = solve(a, &b)?;
        let norm = |k: usize| x.row(k).iter().map(|x| x * x).sum::<f64>().sqrt();
        let norms: Vec<f64> = (0..rank).map(norm).collect();
        let greatest = norms.iter().copied().fold(0.0, f64::max);
        let s: Vec<f64> = norms.iter().map(|norm| (norm * greatest).sqrt()).collect();
        let u = |o, k: usize| if s[k] > 0.0 { (x[(k, o)] / s[k]) as f32 } else { 0.0 };
        let u = Mat::from_fn(self.dhv.nrows(), rank, u);
        Ok((u, s.into_iter().map(|s| s as f32).collect()))
    }

    /// `s` with the least error beside this `U`: `sum_l (U^T U)_kl (V H V^T)_kl s_l = (U^T D H V^T)_kk`.
    fn best_s(&self, u: MatRef<'_, f32>) -> Result<Vec<f32>, Error> {
        let rank = u.ncols();
        let uu = product(u.transpose(), u);
        let a = Mat::from_fn(rank, rank, |i, j| f64::from(uu[(i, j)]) * f64::from(self.vhv[(i, j)]));
        let dot = |k: usize| {
            let pairs = u.col(k).iter().zip(self.dhv.col(k).iter());
            pairs.map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>()
        };
        let s = solve(a, &Mat::from_fn(rank, 1, |k, _| dot(k)))?;
        Ok(s.col(0).iter().map(|&s| s as f32).collect())
    }

    /// Of `diag(s) V H V^T diag(s)`, damped by a share of each entry of the diagonal, since `s` falls far.
    fn feedback(&self, s: &[f32]) -> Result<Feedback, Error> {
        let weights = Mat::from_fn(s.len(), s.len(), |i, j| s[i] * self.vhv[(i, j)] * s[j]);
        let damping: Vec<f64> =
            (0..s.len()).map(|k| positive(DAMPING * f64::from(weights[(k, k)]))).collect();
        Feedback::new(weights.as_ref(), &damping, "sums of products of singular vectors")
    }

    /// The same for each stage alone, damped as GPTQ does.
    fn feedback_by_stage(&self, s: &[f32], stages: &[(Stage, Range<usize>)]) -> Result<Feedback, Error> {
        let mut weights = Mat::zeros(s.len(), s.len());
        let mut dampings = Vec::new();
        for (_, range) in stages {
            let block =
                |i, j| s[range.start + i] * self.vhv[(range.start + i, range.start + j)] * s[range.start + j];
            let block = Mat::from_fn(range.len(), range.len(), block);
            weights.get_mut(range.clone(), range.clone()).copy_from(&block);
            dampings.resize(range.end, damping(block.as_ref()));
        }
        Feedback::new(weights.as_ref(), &dampings, "sums of products of singular vectors")
    }
}

/// Of what has a diagonal of 0 nothing else matters.
fn positive(x: f64) -> f64 {
    if x > 0.0 { x } else { 1.0 }
}

/// `x` of `a x = b`, `a` positive semi-definite, by its correlations, to which [`RIDGE`] is added.
fn solve(mut a: Mat<f64>, b: &Mat<f64>) -> Result<Mat<f64>, Error> {
    let n = a.nrows();
    let scales: Vec<f64> = (0..n).map(|k| positive(a[(k, k)]).sqrt()).collect();
    for j in 0..n {
        for i in 0..n {
            a[(i, j)] /= scales[i] * scales[j];
        }
        a[(j, j)] += if a[(j, j)] > 0.0 { RIDGE } else { 1.0 };
    }
    let scaled = Mat::from_fn(n, b.ncols(), |i, j| b[(i, j)] / scales[i]);
    let factor =
        a.llt(Side::Lower).map_err(|faer::linalg::solvers::LltError::NonPositivePivot { index }| {
            Error::Indefinite { what: "sums of products of singular vectors", column: index }
        })?;
    let mut x = factor.solve(&scaled);
    for j in 0..x.ncols() {
        x.col_as_slice_mut(j).iter_mut().zip(&scales).for_each(|(x, scale)| *x /= scale);
    }
    Ok(x)
}
