//! How much the values of a matrix matter: by the mean squares of the inputs that they are multiplied by, over texts.
//!
//! The error of an output is `sum_i (y[i] - x[i]) a[i]`. Over inputs `a` that go up and down by themselves its mean square is
//! `sum_i E[a[i]^2] (y[i] - x[i])^2`.

use super::{Calibration, Error, Progress, Stage};
use crate::compress::{GROUPS, width_of};
use crate::model::Config;

/// The least that an input matters, as a part of the mean of all: one that the texts leave out may still come.
const LEAST: f32 = 1e-4;

/// For each input of linear layers `E[a[i]^2]`, of mean 1.
pub struct Importance(Vec<Vec<f32>>);

impl Importance {
    /// That over the texts of a calibration.
    pub fn of(
        calibration: &Calibration<'_>,
        config: &Config,
        progress: &Progress<'_>,
    ) -> Result<Self, Error> {
        let inputs = |_: usize| (0..GROUPS.len()).map(|group| vec![0.0f64; width_of(config, group)]);
        let mut sums: Vec<Vec<f64>> = (0..config.layers).flat_map(inputs).collect();
        let all = calibration.tokens();
        calibration.inputs(
            &mut |layer, group, x| {
                let sums = &mut sums[layer * GROUPS.len() + group];
                for row in x.chunks_exact(sums.len()) {
                    sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x).powi(2));
                }
            },
            &mut |done| match progress(Stage::Calibrating, done, all) {
                true => Ok(()),
                false => Err(crate::Error::Cancelled),
            },
        )?;
        Ok(Self(sums.into_iter().map(normal).collect()))
    }

    /// That of the inputs of a layer's group.
    pub fn of_input(&self, (layer, group): (usize, usize)) -> &[f32] {
        &self.0[layer * GROUPS.len() + group]
    }
}

/// Sums as parts of their mean.
fn normal(sums: Vec<f64>) -> Vec<f32> {
    let mean = sums.iter().sum::<f64>() / sums.len() as f64;
    let part = |sum: f64| if mean > 0.0 { (sum / mean) as f32 } else { 1.0 };
    sums.into_iter().map(|sum| part(sum).max(LEAST)).collect()
}
