//! Is this model with these adapters the one that another implementation ran, and if not, from where on?
//!
//! Logits and hidden states are compared with a [`Reference`], stage by stage of the model, and the first stage that is too far from it is
//! named. Where the reference holds the base without adapters too, what adapters *add* is compared: rounding, which hides an adapter in
//! the values of a quantized model, is then measured at the base, and how long the addition is compared to the reference's hardly depends on it.

mod reference;
mod stage;

pub use reference::Reference;
pub use stage::{Contribution, Place, Reason, Stage};

use graftwork_kernels::tensor::reserved;

use crate::compress::Divergence;
use crate::parallel::Progress;
use crate::{Engine, Error};
use reference::Values;
use stage::{Limits, Sample};

/// What an engine and a reference have in common, and what not.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Sequences compared.
    pub sequences: usize,
    /// Positions compared.
    pub positions: usize,
    /// The tolerance that stages were judged by: of what adapters add where the reference has the base, else of values.
    pub tolerance: f64,
    /// Whether the model rounds the inputs of its linear layers: then the median over positions counts, not the worst.
    pub is_quantized: bool,
    /// In the order of the model; the logits are last.
    pub stages: Vec<Stage>,
    /// The largest difference of a logit.
    pub largest_logit: f64,
    /// How far the next tokens are from the reference's.
    pub logits: Divergence,
    /// The same of the base, where the reference has it.
    pub base_logits: Option<Divergence>,
}

impl Report {
    /// The first stage that is too far from the reference, and why.
    pub fn first(&self) -> Option<(Place, Reason)> {
        self.stages.iter().find_map(|stage| stage.reason.map(|reason| (stage.place, reason)))
    }
}

/// What values of a model that rounds nothing may be off by, relative to the reference's: thirty times what the worst position of SmolLM2
/// in F32 is off by.
const VALUES: f64 = 1e-3;
/// Those of one that rounds weights' inputs to 8 bits: twice what SmolLM2 in Q4_1 is off by at the median position of its worst layer.
const ROUNDED_VALUES: f64 = 5e-2;
/// What the base may be off by where it is quantized and the reference's may not be: another model is off by about 1.
const OTHER_BASE: f64 = 0.5;
/// What is added may be off by.
const CONTRIBUTION: f64 = 1e-3;
/// The same with rounding: half as much again as the scale of an adapter on SmolLM2 in Q4_1 is off by in its worst layer.
const ROUNDED_CONTRIBUTION: f64 = 2e-2;

/// Compares `engine` under a stack of adapters with `reference`. `tolerance` replaces the default of what is compared: 1e-3, and for quantized
/// models 2e-2 of what adapters add, 5e-2 of values. `progress` hears of sequences done and in all, and ends it with `false`.
///
/// # Errors
/// The reference is of another shape than the model, or holds values that are not finite or tokens that the model does not have; or as
/// [`Engine::logits`]; or `progress` ended it.
pub fn verify(
    engine: &Engine,
    adapters: &[(String, f32)],
    reference: &Reference,
    tolerance: Option<f64>,
    progress: &Progress<'_>,
) -> Result<Report, Error> {
    reference.check(engine.config())?;
    let mut comparison = Comparison {
        engine,
        reference,
        states: vec![Vec::new(); reference.states.as_ref().map_or(0, |_| engine.config().layers + 1)],
        logits: Vec::new(),
        largest_logit: 0.0,
        divergence: Divergence::default(),
        base_divergence: Divergence::default(),
    };
    let sequences = reference.sequences();
    for sequence in 0..sequences {
        comparison.add(sequence, adapters)?;
        if !progress(sequence + 1, sequences) {
            return Err(Error::Cancelled);
        }
    }
    Ok(comparison.report(tolerance))
}

/// What is measured so far.
struct Comparison<'a> {
    engine: &'a Engine,
    reference: &'a Reference,
    /// Of each stage but the logits, those of all positions.
    states: Vec<Vec<Sample>>,
    logits: Vec<Sample>,
    largest_logit: f64,
    divergence: Divergence,
    base_divergence: Divergence,
}

/// How far the base is from the reference's in one sequence.
#[derive(Default)]
struct BaseErrors {
    /// `[positions, width]` of each stage; empty where the reference has none.
    states: Vec<Vec<f32>>,
    /// `[last, vocab]`.
    logits: Vec<f32>,
}

impl Comparison<'_> {
    /// Compares a sequence.
    fn add(&mut self, sequence: usize, adapters: &[(String, f32)]) -> Result<(), Error> {
        let base = self.base(sequence)?;
        let Self { reference, states: samples, .. } = self;
        let width = self.engine.config().hidden;
        let logits = run(self.engine, reference, sequence, adapters, &mut |stage, first, rows| {
            let Some(states) = &reference.states else { return Ok(()) };
            let (at, count) = ([stage, sequence, first], rows.len() / width);
            let expected = reference.rows(states, &at, count)?;
            let expected_base = match &reference.base_states {
                Some(states) => reference.rows(states, &at, count)?,
                None => Vec::new(),
            };
            for (i, (h, r)) in rows.chunks_exact(width).zip(expected.chunks_exact(width)).enumerate() {
                let base = reference.base_states.as_ref().map(|_| {
                    (
                        &base.states[stage][(first + i) * width..][..width],
                        &expected_base[i * width..][..width],
                    )
                });
                samples[stage].push(Sample::of(h, r, base));
            }
            Ok(())
        })?;
        self.add_logits(sequence, &logits, &base.logits)
    }

    /// What the base is off by, if the reference has it.
    fn base(&mut self, sequence: usize) -> Result<BaseErrors, Error> {
        let reference = self.reference;
        let mut errors = BaseErrors::default();
        if reference.base_states.is_none() && reference.base_logits.is_none() {
            return Ok(errors);
        }
        let width = self.engine.config().hidden;
        let mut all = Vec::new();
        if reference.base_states.is_some() {
            for _ in 0..=self.engine.config().layers {
                all.push(reserved(reference.positions * width).map_err(Error::Memory)?);
            }
        }
        let logits = run(self.engine, reference, sequence, &[], &mut |stage, first, rows| {
            let Some(states) = &reference.base_states else { return Ok(()) };
            let expected = reference.rows(states, &[stage, sequence, first], rows.len() / width)?;
            all[stage].extend(rows.iter().zip(expected).map(|(h, r)| h - r));
            Ok(())
        })?;
        errors.states = all;
        if let Some(values) = &reference.base_logits {
            let (mut found, mut expected) = self.last(values, sequence, &logits)?;
            let vocab = values.shape[2];
            for (q, p) in found.chunks_exact_mut(vocab).zip(expected.chunks_exact_mut(vocab)) {
                self.base_divergence.add(p, q);
                centre(p);
                centre(q);
            }
            errors.logits = found.iter().zip(expected).map(|(h, r)| h - r).collect();
        }
        Ok(errors)
    }

    /// Those of a sequence's logits that the reference has, and these.
    fn last(&self, values: &Values, sequence: usize, logits: &[f32]) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let last = values.shape[1];
        let found = logits.len() / self.reference.positions;
        self.reference.check_vocabulary(values, found)?;
        let expected = self.reference.rows(values, &[sequence, 0], last)?;
        Ok((logits[logits.len() - last * found..].to_vec(), expected))
    }

    fn add_logits(&mut self, sequence: usize, logits: &[f32], base_error: &[f32]) -> Result<(), Error> {
        let reference = self.reference;
        let (mut found, mut expected) = self.last(&reference.logits, sequence, logits)?;
        let vocab = reference.logits.shape[2];
        let mut base = match self.base_of_logits() {
            Some(values) => reference.rows(values, &[sequence, 0], values.shape[1])?,
            None => Vec::new(),
        };
        base.chunks_exact_mut(vocab).for_each(centre);
        for (i, (q, p)) in found.chunks_exact_mut(vocab).zip(expected.chunks_exact_mut(vocab)).enumerate() {
            for (q, p) in q.iter().zip(p.iter()) {
                let difference = f64::from((q - p).abs());
                if difference > self.largest_logit || difference.is_nan() {
                    self.largest_logit = difference;
                }
            }
            self.divergence.add(p, q);
            centre(p);
            centre(q);
            let row = i * vocab..(i + 1) * vocab;
            let base = base.get(row.clone()).map(|base| (&base_error[row], base));
            self.logits.push(Sample::of(q, p, base));
        }
        Ok(())
    }

    /// The base's logits, if they are of the same vocabulary.
    fn base_of_logits(&self) -> Option<&Values> {
        let Reference { base_logits, logits, .. } = self.reference;
        base_logits.as_ref().filter(|base| base.shape[2] == logits.shape[2])
    }

    fn report(&self, tolerance: Option<f64>) -> Report {
        let Self { engine, reference, .. } = self;
        let is_quantized = engine.is_quantized();
        let limits = |values: &Values, has_base: bool| {
            let base = if is_quantized { OTHER_BASE } else { VALUES.max(tolerance.unwrap_or_default()) };
            let alone = tolerance.unwrap_or(if is_quantized { ROUNDED_VALUES } else { VALUES });
            let added = if is_quantized { ROUNDED_CONTRIBUTION } else { CONTRIBUTION };
            Limits {
                values: values.rounding() + if has_base { base } else { alone },
                contribution: tolerance.unwrap_or(added),
                is_rounded: is_quantized,
            }
        };
        let mut stages = Vec::new();
        let has_base = reference.base_states.is_some();
        if let Some(values) = &reference.states {
            let limits = limits(values, has_base);
            let layers = engine.config().layers;
            for (n, samples) in self.states.iter().enumerate() {
                let place = match n {
                    0 => Place::Embedding,
                    n if n == layers => Place::Norm(n - 1),
                    n => Place::Layer(n - 1),
                };
                stages.push(Stage::of(place, samples, has_base, &limits));
            }
        }
        let has_base_logits = self.base_of_logits().is_some();
        let logits = limits(&reference.logits, has_base_logits);
        stages.push(Stage::of(Place::Logits, &self.logits, has_base_logits, &logits));
        let is_added = has_base || has_base_logits;
        Report {
            sequences: reference.sequences(),
            positions: reference.sequences() * reference.positions,
            tolerance: if is_added { logits.contribution } else { logits.values },
            is_quantized,
            stages,
            largest_logit: self.largest_logit,
            logits: self.divergence,
            base_logits: reference.base_logits.as_ref().map(|_| self.base_divergence),
        }
    }
}

/// Takes the rows of a stage from a position on.
type Rows<'a> = dyn FnMut(usize, usize, &[f32]) -> Result<(), Error> + 'a;

/// Runs a sequence of the reference and gives its logits; the first error of `seen` comes after it.
fn run(
    engine: &Engine,
    reference: &Reference,
    sequence: usize,
    adapters: &[(String, f32)],
    seen: &mut Rows<'_>,
) -> Result<Vec<f32>, Error> {
    let config = engine.config();
    let (mut at, mut done) = (vec![0; config.layers + 1], Ok(()));
    let logits = engine.hidden_states(reference.tokens(sequence), adapters, &mut |stage, rows| {
        if done.is_ok() {
            done = seen(stage, at[stage], rows);
        }
        at[stage] += rows.len() / config.hidden;
    });
    done?;
    logits.map_err(|error| match error {
        Error::Token { index, vocab, .. } => reference.wrong_token((sequence, index), vocab).into(),
        error => error,
    })
}

/// Takes their mean from logits.
fn centre(logits: &mut [f32]) {
    let mean = logits.iter().map(|&x| f64::from(x)).sum::<f64>() / logits.len() as f64;
    logits.iter_mut().for_each(|x| *x = (f64::from(*x) - mean) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EngineOptions;

    /// The same logits as without looking, and the same states in whatever pieces, at tokens alone.
    #[test]
    fn states_are_those_of_tokens_in_any_pieces() {
        let golden = |name: &str| std::path::PathBuf::from("../tests/golden/adapters").join(name);
        let tokens: Vec<u32> = (0..150).map(|i| i * 31 % 509).collect();
        let open = |prefill_chunk| {
            let options = EngineOptions { threads: 1, prefill_chunk, ..EngineOptions::default() };
            Engine::open(golden("base"), options).unwrap()
        };
        let engines = [open(512), open(7)];
        for name in ["base", "lora_all", "prompt_tuning", "prefix_tuning", "control_vector"] {
            let mut stack = Vec::new();
            if name != "base" {
                stack.push((name.to_owned(), 1.0));
                for engine in &engines {
                    engine.load_adapter(name, golden(name)).unwrap();
                }
            }
            let [whole, pieces] = engines.each_ref().map(|engine| {
                let mut states = vec![Vec::new(); engine.config().layers + 1];
                let logits =
                    engine.hidden_states(&tokens, &stack, &mut |n, x| states[n].extend_from_slice(x));
                assert_eq!(logits.unwrap(), engine.logits(&tokens, &stack).unwrap(), "{name}");
                states
            });
            assert!(whole == pieces, "{name}");
            let width = engines[0].config().hidden;
            assert!(whole.iter().all(|states| states.len() == tokens.len() * width), "{name}");
            assert!((1..whole.len()).all(|n| whole[n] != whole[n - 1]), "{name}");
        }
    }
}
