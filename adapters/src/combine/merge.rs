//! Tensors of one shape become one, element by element, in singles.

use graftwork_kernels::{Format, tensor};

use super::method::Pruning;
use super::mt19937::Mt19937;
use super::{MajoritySign, Options};

/// How tensors `T_i` with weights `w_i` become one.
pub(super) struct Rule {
    pruning: Option<Pruning>,
    density: f64,
    elects: Option<MajoritySign>,
}

/// A tensor `[rows, cols]`, row after row.
pub(super) struct Task {
    pub values: Vec<f32>,
    /// In torch it is the transpose, so that numbers are drawn for its columns.
    pub cols_if_transposed: Option<usize>,
}

impl Rule {
    pub fn new(options: &Options) -> Self {
        // A share of 1 is everything, and torch is asked for no numbers.
        let density = options.density.unwrap_or(1.0);
        let pruning = options.method.pruning().filter(|_| density < 1.0);
        Self { pruning, density, elects: options.method.elects().then_some(options.sign) }
    }

    /// Whether numbers are drawn.
    pub fn is_random(&self) -> bool {
        self.pruning == Some(Pruning::Random)
    }

    /// Prunes the tensors, one after the other, and sums them or what is elected of them.
    pub fn merge(
        &self,
        mut tasks: Vec<Task>,
        weights: &[f32],
        draws: &mut Mt19937,
    ) -> Result<Vec<f32>, tensor::Error> {
        for task in &mut tasks {
            match self.pruning {
                None => {}
                Some(Pruning::Magnitude) => keep_greatest(&mut task.values, self.density)?,
                Some(Pruning::Random) => keep_random(task, self.density as f32, draws),
            }
        }
        let tasks: Vec<Vec<f32>> = tasks.into_iter().map(|task| task.values).collect();
        match self.elects {
            None => sum(&tasks, weights),
            Some(sign) => elect(&tasks, weights, sign),
        }
    }
}

/// `floor(density n)` of `n` values stay, those of the greatest magnitude, of equal ones the first; the others become 0.
fn keep_greatest(values: &mut [f32], density: f64) -> Result<(), tensor::Error> {
    let kept = (density * values.len() as f64) as usize;
    if kept == 0 {
        values.fill(0.0);
        return Ok(());
    }
    let mut magnitudes = tensor::reserved(values.len())?;
    magnitudes.extend(values.iter().map(|value| value.abs()));
    let (greater, &mut least, _) = magnitudes.select_nth_unstable_by(kept - 1, |x, y| y.total_cmp(x));
    let mut equal = kept - greater.iter().filter(|&&magnitude| magnitude > least).count();
    for value in values {
        let magnitude = value.abs();
        let stays = magnitude > least || (magnitude == least && equal > 0);
        equal -= usize::from(stays && magnitude == least);
        if !stays {
            *value = 0.0;
        }
    }
    Ok(())
}

/// `T[j] = T[j] b[j] / density`, with `b[j]` 1 with the probability `density`, else 0.
fn keep_random(task: &mut Task, density: f32, draws: &mut Mt19937) {
    let n = task.values.len();
    for i in 0..n {
        let at = match task.cols_if_transposed {
            None => i,
            Some(cols) => i % (n / cols) * cols + i / (n / cols),
        };
        let value = &mut task.values[at];
        *value = if draws.keeps(density) { *value / density } else { 0.0 };
    }
}

/// `sum_i w_i T_i`.
pub(super) fn sum(tasks: &[Vec<f32>], weights: &[f32]) -> Result<Vec<f32>, tensor::Error> {
    let mut out = tensor::zeros(tasks.first().map_or(0, Vec::len))?;
    for (task, weight) in tasks.iter().zip(weights) {
        out.iter_mut().zip(task).for_each(|(out, value)| *out += weight * value);
    }
    Ok(out)
}

/// The format of a result: that of all, if it is F16 or BF16, else F32.
pub(super) fn format(formats: impl IntoIterator<Item = Format>) -> Format {
    let mut formats = formats.into_iter();
    match formats.next() {
        Some(first @ (Format::F16 | Format::BF16)) if formats.all(|format| format == first) => first,
        _ => Format::F32,
    }
}

/// `sum_i m_i w_i T_i / max(1, sum_i m_i)`, with `m_i` 1 where the sign of `T_i` is the elected one, else 0: that of `sum_i T_i`, or of
/// `sum_i sgn T_i`, and + where these are 0.
fn elect(tasks: &[Vec<f32>], weights: &[f32], by: MajoritySign) -> Result<Vec<f32>, tensor::Error> {
    let mut out = tensor::zeros(tasks.first().map_or(0, Vec::len))?;
    for (j, out) in out.iter_mut().enumerate() {
        let votes = tasks.iter().map(|task| match by {
            MajoritySign::Total => task[j],
            MajoritySign::Frequency if task[j] == 0.0 => 0.0,
            MajoritySign::Frequency => task[j].signum(),
        });
        let is_positive = votes.sum::<f32>() >= 0.0;
        let agrees = |value: f32| if is_positive { value > 0.0 } else { value < 0.0 };
        let (mut sum, mut count) = (0.0, 0.0f32);
        for (task, weight) in tasks.iter().zip(weights).filter(|(task, _)| agrees(task[j])) {
            sum += weight * task[j];
            count += 1.0;
        }
        *out = sum / count.max(1.0);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_stay_and_of_equal_ones_the_first() {
        let mut values = [1.0, -3.0, 0.5, 1.0, -1.0, 2.0, 0.0];
        keep_greatest(&mut values, 0.6).unwrap();
        assert_eq!(values, [1.0, -3.0, 0.0, 1.0, 0.0, 2.0, 0.0]);
        keep_greatest(&mut values, 0.1).unwrap();
        assert_eq!(values, [0.0; 7], "a tenth of seven is none");
    }

    #[test]
    fn the_elected_sign_is_averaged() {
        let tasks = [vec![3.0, -1.0, 0.0, 1.0], vec![-1.0, -1.0, 2.0, -1.0], vec![-1.0, 3.0, 0.0, 0.0]];
        let weights = [1.0, 2.0, 3.0];
        let total = elect(&tasks, &weights, MajoritySign::Total).unwrap();
        // Sums 1, 1, 2, 0.
        assert_eq!(total, [3.0, 9.0, 4.0, 1.0]);
        let frequency = elect(&tasks, &weights, MajoritySign::Frequency).unwrap();
        // Counts -1, -1, 1, 0.
        assert_eq!(frequency, [-2.5, -1.5, 4.0, 1.0]);
    }
}
