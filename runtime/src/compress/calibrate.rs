//! The inputs of linear layers, over a text that a model reads, as [`Hessian`]s.

use std::sync::Mutex;

use graftwork_adapters::compress::Hessian;
use graftwork_adapters::{Module, Site};

use super::{Error, Progress, Stage, WINDOW, name_of};
use crate::Engine;
use crate::model::Config;
use crate::parallel::in_parallel;

/// Linear layers of a block that share their input.
pub const GROUPS: [&[Module]; 4] =
    [&[Module::Q, Module::K, Module::V], &[Module::O], &[Module::Gate, Module::Up], &[Module::Down]];

/// Rows that are kept until they are added up: enough to make that one product of large matrices.
const ROWS: usize = 256;

/// Texts that a model reads, in tokens.
#[derive(Clone, Copy)]
pub struct Calibration<'a> {
    /// The model: the base as a rule.
    pub engine: &'a Engine,
    /// The texts, each read from its start.
    pub texts: &'a [Vec<u32>],
}

/// Inputs of linear layers and the sums of their products so far.
struct Collected {
    site: Site,
    width: usize,
    rows: Mutex<Vec<f32>>,
    sum: Mutex<Hessian>,
}

/// The width of the input that a group shares.
pub fn width_of(config: &Config, group: usize) -> usize {
    config.shape_of(GROUPS[group][0]).1
}

/// Bytes of the sums of a layer, and of the rows that are not added up yet.
pub fn bytes_of(config: &Config) -> usize {
    // A few more rows than asked for come at once.
    let values = |width: usize| width * (width + 2 * ROWS);
    (0..GROUPS.len()).map(|group| values(width_of(config, group)) * size_of::<f32>()).sum()
}

impl Calibration<'_> {
    /// Tokens of all texts.
    pub fn tokens(&self) -> usize {
        self.texts.iter().map(Vec::len).sum()
    }

    /// Shows `seen` the inputs `[rows, width]` of every group of linear layers over all texts, some rows at a time, and says after each
    /// piece of text how many tokens are read.
    pub(crate) fn inputs(
        &self,
        seen: &mut dyn FnMut(usize, usize, &[f32]),
        read: &mut dyn FnMut(usize) -> Result<(), crate::Error>,
    ) -> Result<(), crate::Error> {
        let config = self.engine.config();
        let mut done = 0;
        for text in self.texts.iter().flat_map(|text| text.chunks(WINDOW.min(config.context))) {
            self.engine.linear_inputs(text, config.layers - 1, &mut |layer, module, x| {
                let group = GROUPS.iter().position(|group| group[0] == module).unwrap_or_default();
                seen(layer, group, x);
            })?;
            done += text.len();
            read(done)?;
        }
        Ok(())
    }

    /// The sums of these layers, ascending, over all texts: four of each layer, in the order of `GROUPS`. Their bits depend on
    /// neither `threads` nor which layers are asked for together.
    pub(super) fn hessians(
        &self,
        layers: &[usize],
        threads: usize,
        progress: &Progress<'_>,
    ) -> Result<Vec<Hessian>, Error> {
        let config = self.engine.config();
        let places = layers.iter().flat_map(|&layer| (0..GROUPS.len()).map(move |group| (layer, group)));
        let collected: Vec<Collected> = places
            .map(|(layer, group)| {
                let width = width_of(config, group);
                Collected {
                    site: Site::Linear { layer, module: GROUPS[group][0] },
                    width,
                    rows: Mutex::default(),
                    sum: Mutex::new(Hessian::new(width)),
                }
            })
            .collect();
        let Some(&last) = layers.last() else { return Ok(Vec::new()) };
        let window = WINDOW.min(config.context);
        let (all, mut done, mut kept, mut added) = (self.tokens(), 0, 0, Ok(()));
        for text in self.texts.iter().flat_map(|text| text.chunks(window)) {
            self.engine.linear_inputs(text, last, &mut |layer, module, x| {
                let Ok(at) = layers.binary_search(&layer) else { return };
                let group = GROUPS.iter().position(|group| group[0] == module).unwrap_or_default();
                let Collected { width, rows, .. } = &collected[at * GROUPS.len() + group];
                rows.lock().unwrap_or_else(|e| e.into_inner()).extend(x);
                if (layer, group) == (last, GROUPS.len() - 1) {
                    kept += x.len() / width;
                    if kept >= ROWS && added.is_ok() {
                        added = add(&collected, threads);
                        kept = 0;
                    }
                }
            })?;
            std::mem::replace(&mut added, Ok(()))?;
            done += text.len();
            if !progress(Stage::Calibrating, done, all) {
                return Err(crate::Error::Cancelled.into());
            }
        }
        add(&collected, threads)?;
        Ok(collected.into_iter().map(|c| c.sum.into_inner().unwrap_or_else(|e| e.into_inner())).collect())
    }
}

/// Adds up the rows that are kept, each sum on one thread.
fn add(collected: &[Collected], threads: usize) -> Result<(), Error> {
    let work = |part: usize| {
        let Collected { site, rows, sum, .. } = &collected[part];
        let mut rows = rows.lock().unwrap_or_else(|e| e.into_inner());
        let mut sum = sum.lock().unwrap_or_else(|e| e.into_inner());
        let added = sum.add(&rows);
        rows.clear();
        added.map_err(|source| Error::Matrix { tensor: name_of(*site, "weight"), source })
    };
    in_parallel(threads, collected.len(), &|_, _| true, work).map(drop)
}

#[cfg(test)]
mod tests {
    use graftwork_adapters::TensorFile;
    use graftwork_adapters::file::Safetensors;

    use super::*;
    use crate::EngineOptions;

    /// The sums of the first layer by hand, and the same bits whatever else is summed, on any number of threads.
    #[test]
    fn sums_are_those_of_the_inputs() {
        let path = "../tests/golden/adapters/base";
        let texts: Vec<Vec<u32>> = [300, 5, 77].map(|len| (0..len).map(|i| i * 31 % 509).collect()).to_vec();
        let sums = |threads, layers: &[usize]| {
            let engine = Engine::open(path, EngineOptions { threads, ..EngineOptions::default() }).unwrap();
            let calibration = Calibration { engine: &engine, texts: &texts };
            let sums = calibration.hessians(layers, threads, &|_, _, _| true).unwrap();
            (sums, width_of(engine.config(), 0), engine.config().norm_eps)
        };
        let (all, width, eps) = sums(1, &[0, 1, 2]);
        assert_eq!(all.len(), 12);
        assert!(all[4..8] == sums(3, &[1]).0[..]);

        let weights = Safetensors::open(format!("{path}/model.safetensors")).unwrap();
        let values = |name: &str| weights.require(name).unwrap().decode().unwrap();
        let (table, norm) =
            (values("model.embed_tokens.weight"), values("model.layers.0.input_layernorm.weight"));
        let mut expected = vec![0.0; width * width];
        for &token in texts.iter().flatten() {
            let row = &table[token as usize * width..][..width];
            let mean = row.iter().map(|x| f64::from(x * x)).sum::<f64>() / width as f64;
            let x: Vec<f64> = row
                .iter()
                .zip(&norm)
                .map(|(x, w)| f64::from(x * w) / (mean + f64::from(eps)).sqrt())
                .collect();
            for i in 0..width {
                for j in 0..width {
                    expected[i * width + j] += x[i] * x[j];
                }
            }
        }
        let scale = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        for i in 0..width {
            for j in 0..width {
                let (found, expected) = (f64::from(all[0].at(i, j)), expected[i * width + j]);
                assert!((found - expected).abs() < 1e-5 * scale, "[{i}, {j}]: {found}, not {expected}");
            }
        }
        // Of the other layers and inputs at least each is another.
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a != b) && a.at(1, 1) > 0.0, "{i}");
        }
    }
}
