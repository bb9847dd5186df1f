//! How many singular vectors take how many bits.

use graftwork_kernels::Format;

use super::decompose::Vectors;
use super::feedback;
use super::levels::{Levels, Scales};
use super::matrix::product;
use super::{Calibration, Difference, Error};

/// Singular vectors of a stage in 2 and 3 bits come in multiples of this many: groups of `U` run along them.
const STEP: usize = 32;

/// Vectors of the same precision, after those of the stages before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// 8, 3 or 2.
    pub bits: u32,
    /// How many vectors; a multiple of 32 but for 8 bits.
    pub count: usize,
}

/// How many singular vectors take how many bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Split {
    /// As published: 2 in 8 bits, 32 in 3 bits, then in 2 bits as many as make the codes no more than one bit for each entry of the
    /// matrix, a sixteenth of halves: `(outputs + inputs) (2 * 8 + 32 * 3 + 2 n) <= outputs * inputs`, `n` a multiple of 32.
    Published,
    /// These, by falling singular value. Stages beyond the rank of the matrix are cut or left out.
    Stages(Vec<Stage>),
    /// What fits in this many bytes, scales and singular values included, with the least error expected: of all splits with 0, 1, 2, 4, 8
    /// or 16 vectors in 8 bits and multiples of 32 in 3 and 2 bits. A vector of `b` bits is expected to lose `e_V(b) + e_U(b)` of its
    /// share `s^2 v H v^T` of the squared error, at most all of it, where `e` are the relative squared errors of rounding just this vector
    /// without feedback; one of no bits loses all.
    Bytes(usize),
}

impl Stage {
    /// The formats of `V [count, inputs]` and `U [outputs, count]`.
    ///
    /// # Errors
    /// [`Error::Ragged`] where there are none; the stage is one that [`Split::check`] lets pass.
    pub(super) fn formats(self, inputs: usize) -> Result<(Format, Format), Error> {
        if self.bits == 8 {
            return Ok((Format::I8, Format::I8));
        }
        let ragged = |cols| Error::Ragged { cols, block: STEP, method: "vectors of 2 or 3 bits" };
        let coded = |cols| Format::coded(self.bits, cols).ok_or(ragged(cols));
        Ok((coded(inputs)?, coded(self.count)?))
    }

    /// Bytes of `V`, `s` and `U`.
    fn bytes(self, delta: &Difference) -> Result<usize, Error> {
        let (v, u) = self.formats(delta.inputs())?;
        let row = |format: Format, cols| cols / format.block_len() * format.block_bytes();
        Ok(self.count * (row(v, delta.inputs()) + size_of::<f32>()) + delta.outputs() * row(u, self.count))
    }
}

impl Split {
    /// Refuses stages without a format.
    fn check(stages: &[Stage]) -> Result<(), Error> {
        for (stage, &Stage { bits, count }) in stages.iter().enumerate() {
            if !matches!(bits, 2 | 3 | 8) {
                return Err(Error::Stage { stage, expected: "2, 3 or 8 bits", found: bits.to_string() });
            }
            if bits != 8 && !count.is_multiple_of(STEP) {
                let expected = "a multiple of 32 vectors of 2 or 3 bits";
                return Err(Error::Stage { stage, expected, found: count.to_string() });
            }
        }
        Ok(())
    }

    /// How many singular vectors may be of use.
    pub(super) fn most(&self, delta: &Difference) -> usize {
        let (outputs, inputs) = (delta.outputs(), delta.inputs());
        match self {
            Self::Published => published(outputs, inputs).iter().map(|stage| stage.count).sum(),
            Self::Stages(stages) => stages.iter().fold(0, |sum, stage| sum.saturating_add(stage.count)),
            // At least 2 bits for each entry of a vector.
            Self::Bytes(bytes) => bytes.saturating_mul(4) / (outputs + inputs) + STEP,
        }
    }

    /// The stages for these vectors, each with at least one of them; 2 and 3 bits are rounded up to 32 vectors.
    pub(super) fn stages(
        &self,
        delta: &Difference,
        vectors: &Vectors,
        inputs: Option<&Calibration>,
        scales: Scales,
    ) -> Result<Vec<Stage>, Error> {
        let asked = match self {
            Self::Published => published(delta.outputs(), delta.inputs()),
            Self::Stages(stages) => stages.clone(),
            &Self::Bytes(bytes) => return search(delta, vectors, inputs, scales, bytes),
        };
        Self::check(&asked)?;
        let mut rest = vectors.s.len();
        let mut stages = Vec::new();
        for Stage { bits, count } in asked {
            let step = if bits == 8 { 1 } else { STEP };
            let count = count.min(rest.next_multiple_of(step));
            if count > 0 {
                stages.push(Stage { bits, count });
                rest = rest.saturating_sub(count);
            }
        }
        Ok(stages)
    }
}

/// See [`Split::Published`].
fn published(outputs: usize, inputs: usize) -> Vec<Stage> {
    let bits = outputs as u128 * inputs as u128 / (outputs + inputs) as u128;
    let count = (bits as usize).saturating_sub(2 * 8 + 32 * 3) / 2 / STEP * STEP;
    vec![Stage { bits: 8, count: 2 }, Stage { bits: 3, count: 32 }, Stage { bits: 2, count }]
}

/// See [`Split::Bytes`].
fn search(
    delta: &Difference,
    vectors: &Vectors,
    inputs: Option<&Calibration>,
    scales: Scales,
    bytes: usize,
) -> Result<Vec<Stage>, Error> {
    let rank = vectors.s.len();
    let energies = energies(vectors, inputs);
    let lost = |bits| lost_until(vectors, &energies, bits, scales);
    let (eight, three, two) = (lost(8), lost(3), lost(2));
    let mut kept = vec![0.0; rank + 1];
    (0..rank).for_each(|k| kept[k + 1] = kept[k] + energies[k]);
    let whole = rank.div_ceil(STEP);
    let coded = |bits, n: usize| Stage { bits, count: n * STEP };
    let cost = |bits| (0..=whole).map(|n| coded(bits, n).bytes(delta)).collect::<Result<Vec<_>, _>>();
    let (three_bytes, two_bytes) = (cost(3)?, cost(2)?);
    let until = |count: usize| count.min(rank);
    let mut best = (0.0, Vec::new());
    for first in [0, 1, 2, 4, 8, 16].into_iter().filter(|&first| first <= rank) {
        let stage = Stage { bits: 8, count: first };
        let first_bytes = stage.bytes(delta)?;
        for (n3, &n3_bytes) in three_bytes.iter().enumerate() {
            for (n2, &n2_bytes) in two_bytes.iter().enumerate() {
                let (a, b) = (until(first + n3 * STEP), until(first + (n3 + n2) * STEP));
                if first_bytes + n3_bytes + n2_bytes > bytes {
                    continue;
                }
                let gain = kept[b] - eight[first] - (three[a] - three[first]) - (two[b] - two[a]);
                if gain > best.0 {
                    best = (gain, vec![stage, coded(3, n3), coded(2, n2)]);
                }
            }
        }
    }
    let mut stages = best.1;
    stages.retain(|stage| stage.count > 0);
    if stages.is_empty() {
        let least = Stage { bits: 8, count: 1 }.bytes(delta)?;
        let (rows, cols) = (delta.outputs(), delta.inputs());
        return Err(Error::Budget { bytes, rows, cols, method: "one singular vector", least });
    }
    Ok(stages)
}

/// `s^2 v H v^T` of each vector.
fn energies(vectors: &Vectors, inputs: Option<&Calibration>) -> Vec<f64> {
    let vh = inputs.map(|inputs| product(vectors.v.as_ref(), inputs.hessian.as_ref()));
    let vh = vh.as_ref().unwrap_or(&vectors.v);
    let square = |k: usize| {
        let products = vh.row(k).iter().zip(vectors.v.row(k).iter());
        let sum: f64 = products.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        f64::from(vectors.s[k]).powi(2) * sum
    };
    (0..vectors.s.len()).map(square).collect()
}

/// What the first `n` vectors are expected to lose in `bits` bits, for each `n` from 0 on.
fn lost_until(vectors: &Vectors, energies: &[f64], bits: u32, scales: Scales) -> Vec<f64> {
    let levels = |m, by_row: bool| match (bits, by_row) {
        (8, true) => Levels::bytes_by_row(m),
        (8, false) => Levels::bytes_by_column(m),
        _ => Levels::grouped(m, bits, 128, scales),
    };
    let v = feedback::round(vectors.v.as_ref(), &levels(vectors.v.as_ref(), true), None).values;
    let u = feedback::round(vectors.u.as_ref(), &levels(vectors.u.as_ref(), false), None).values;
    let mut shares = vec![0.0; energies.len()];
    let square = |x: f32, y: f32| f64::from(x - y).powi(2);
    for (q, x) in v.col_iter().zip(vectors.v.col_iter()) {
        for ((share, &q), &x) in shares.iter_mut().zip(q.iter()).zip(x.iter()) {
            *share += square(q, x);
        }
    }
    for ((share, q), x) in shares.iter_mut().zip(u.col_iter()).zip(vectors.u.col_iter()) {
        *share += q.iter().zip(x.iter()).map(|(&q, &x)| square(q, x)).sum::<f64>();
    }
    let mut sums = vec![0.0];
    for (share, energy) in shares.iter().zip(energies) {
        sums.push(sums[sums.len() - 1] + share.min(1.0) * energy);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published counts of 7B models are 968 and 1428, a multiple of 32 at most as large.
    #[test]
    fn published_counts() {
        let two = |outputs, inputs| published(outputs, inputs)[2].count;
        assert_eq!((two(4096, 4096), two(11008, 4096)), (960, 1408));
        assert_eq!((two(576, 576), two(192, 576), two(8, 8)), (64, 0, 0));
    }
}
