//! Patches that give chosen weights of a tuned model back the values of an aligned one, and take that back.
//!
//! `W[o,i] = A[o,i]` for chosen entries of the linear layers, of a model `W` that may have adapters on it, `A` being the aligned
//! model's (arXiv 2504.09757, where gradients choose: [`Choice::Mask`]). The patch is a delta of [`Part::Overwrite`]s and holds both
//! values, so it can be undone: as an adapter by leaving it out of a request, in files by [`rollback`].

mod mask;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use graftwork_adapters::check::Shape;
use graftwork_adapters::delta::{Delta, Fingerprint, Layer, Part};
use graftwork_adapters::merge::Merge;
use graftwork_adapters::{Module, Site, Source};
use graftwork_kernels::{Format, Tensor, tensor};

use crate::compress::{Error, Pair};
use crate::merge::{Grafted, Part as Of, Stack};
use crate::parallel::{Progress, in_parallel};
use crate::place;
pub use mask::Mask;

/// What [`Delta::method`] says of a patch.
pub const METHOD: &str = "restore";

/// Which entries are restored.
#[derive(Clone, Copy, Debug)]
pub enum Choice<'a> {
    /// Of each matrix this share, where the two models differ most; of equal ones the first. Above 0, at most 1.
    Magnitude(f64),
    /// Those that a file chooses.
    Mask(&'a Mask),
}

/// How a model is restored.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// What is on the model, in order.
    pub adapters: &'a [Grafted<'a>],
    /// Which entries.
    pub choice: Choice<'a>,
    /// Only in so many first blocks; none for all.
    pub layers: Option<usize>,
    /// What the model is called, for messages.
    pub base_model: Option<&'a str>,
    /// Threads; each works on a matrix of its own.
    pub threads: usize,
}

/// What is restored of a matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Restored {
    /// The path of its layer, as Hugging Face has it.
    pub name: String,
    /// Outputs and inputs.
    pub shape: [usize; 2],
    /// Entries that get other values.
    pub entries: usize,
    /// `|A - W|_F`, and what is left of it.
    pub distance: [f64; 2],
}

/// What is restored of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The linear layers that were looked at, in order.
    pub matrices: Vec<Restored>,
    /// Bytes of the patch.
    pub bytes: u64,
}

/// Writes to `out` the patch that gives `model` chosen values of `aligned`. Where the model is in floats they are rounded to its
/// format, so that they are in its files what they are here.
///
/// # Errors
/// The models differ in more than weights, an adapter cannot be merged, a choice without a meaning or without an effect; whatever
/// else [`Error`] says.
pub fn restore(
    (aligned, model): (&Source, &Source),
    out: &Path,
    options: &Options<'_>,
    progress: &Progress<'_>,
) -> Result<Report, Error> {
    if let Choice::Magnitude(rate) = options.choice
        && !(rate > 0.0 && rate <= 1.0)
    {
        let expected = "a number above 0 and at most 1";
        return Err(Error::Option { option: "rate", expected, found: rate.to_string() });
    }
    place::check([aligned, model].into_iter().filter_map(place::path_of), out, place::Form::File)?;
    let pair = Pair::open_layers(model, aligned)?;
    let stack = Stack::new(options.adapters, pair.base())?;
    let layers = options.layers.unwrap_or(usize::MAX).min(pair.config().layers);
    let sites = (0..layers)
        .flat_map(|layer| Module::ALL.iter().map(move |&module| Site::Linear { layer, module }))
        .collect::<Vec<_>>();
    if let Choice::Mask(mask) = options.choice {
        mask.check(&sites, pair.config())?;
    }
    let done = AtomicUsize::new(0);
    let work = |at: usize| {
        let restored = matrix(&pair, &stack, sites[at], options)?;
        match progress(done.fetch_add(1, Ordering::Relaxed) + 1, sites.len()) {
            true => Ok(restored),
            false => Err(Error::from(crate::Error::Cancelled)),
        }
    };
    let restored = in_parallel(options.threads, sites.len(), &|_, _| true, work)?;
    let (matrices, layers): (Vec<_>, Vec<_>) = restored.into_iter().unzip();
    let config = pair.config();
    let mut base_model = options.base_model.map(str::to_owned);
    for Grafted { name, weight, .. } in options.adapters {
        base_model = Some(format!("{} + {name}:{weight}", base_model.unwrap_or_default()));
    }
    let delta = Delta {
        method: METHOD.to_owned(),
        architecture: Some(config.architecture.to_owned()),
        base_model,
        bases: vec![Fingerprint::of(config.architecture, pair.base().weights())],
        row_order: pair.row_order(),
        layers: layers.into_iter().flatten().collect(),
        carried: Vec::new(),
    };
    if delta.layers.is_empty() {
        return Err(Error::Unchanged);
    }
    delta.write(out)?;
    let bytes = out.metadata().map_err(Error::io(out))?.len();
    Ok(Report { matrices, bytes })
}

/// Writes to `out` the patch that takes `patch` back in files.
///
/// # Errors
/// The file is no such patch; whatever else [`Error`] says.
pub fn rollback(patch: &Path, out: &Path) -> Result<(), Error> {
    place::check([patch], out, place::Form::File)?;
    let mut delta = Delta::open(patch)?;
    for layer in &mut delta.layers {
        for part in &mut layer.parts {
            let Part::Overwrite { values, before, .. } = part else {
                let what =
                    "a delta that changes weights in another way than by overwriting entries".to_owned();
                return Err(graftwork_adapters::Error::Unsupported {
                    what,
                    reason: "it holds no values to go back to",
                }
                .into());
            };
            std::mem::swap(values, before);
        }
    }
    if !delta.carried.is_empty() {
        let what = "a delta that replaces weights whole".to_owned();
        return Err(graftwork_adapters::Error::Unsupported {
            what,
            reason: "it holds no values to go back to",
        }
        .into());
    }
    // That it is for is the restored model, which is made later; the values that it overwrites tell.
    delta.bases.clear();
    Ok(delta.write(out)?)
}

/// What is restored of one matrix, and the layer of the patch unless that is nothing.
fn matrix(
    pair: &Pair,
    stack: &Stack<'_>,
    site: Site,
    options: &Options<'_>,
) -> Result<(Restored, Option<Layer>), Error> {
    let name = site.hf_path().unwrap_or_default();
    let failed = |source| Error::Tensor { tensor: name.clone(), source };
    let [base, aligned] = pair.weights_at(site)?;
    let (outputs, inputs) = (base.rows(), base.cols());
    if u32::try_from(outputs * inputs).is_err() {
        let (expected, found) = ("at most 2^32 entries".to_owned(), format!("[{outputs}, {inputs}]"));
        return Err(crate::Error::Shape { tensor: name, expected, found }.into());
    }
    let changes = stack.changes((site, Of::Weight), pair.config(), base.clone(), None);
    let merge = changes.map(|changes| changes.prepare(1)).transpose()?;
    // What entries can be in the model's files, if no adapter stands between.
    let format = if merge.is_none() && base.format().block_len() == 1 { base.format() } else { Format::F32 };
    let rows = Rows { base: &base, aligned: &aligned, merge: merge.as_ref(), format, name: &name };
    let mut kept = Vec::new();
    let mut squares = 0.0;
    match options.choice {
        Choice::Magnitude(rate) => {
            let most = ((outputs * inputs) as f64 * rate).ceil() as usize;
            let mut distances = tensor::reserved(outputs * inputs).map_err(failed)?;
            rows.differing(|entry| {
                squares += f64::from(entry.distance()).powi(2);
                distances.push(entry.distance());
            })?;
            // Those beyond the last that is restored, and of its equals the first.
            let last = (distances.len() > most).then(|| {
                let (above, last, _) = distances.select_nth_unstable_by(most - 1, |a, b| b.total_cmp(a));
                let last = *last;
                (last, most - above.iter().filter(|&&distance| distance > last).count())
            });
            drop(distances);
            let (least, mut equals) = last.unwrap_or((0.0, usize::MAX));
            rows.differing(|entry| {
                let distance = entry.distance();
                if distance > least || distance == least && equals > 0 {
                    equals -= usize::from(distance == least);
                    kept.push(entry);
                }
            })?;
        }
        Choice::Mask(mask) => {
            let (order, head_dim) = (pair.row_order(), pair.config().head_dim);
            rows.differing(|entry| {
                squares += f64::from(entry.distance()).powi(2);
                let (row, column) = (entry.at as usize / inputs, entry.at as usize % inputs);
                if mask.row(site, row, order, head_dim).is_some_and(|chosen| chosen[column] != 0) {
                    kept.push(entry);
                }
            })?;
        }
    }
    [&base, &aligned].iter().for_each(|tensor| tensor.bytes().unload());
    let restored = kept.iter().map(|entry| f64::from(entry.distance()).powi(2)).sum::<f64>();
    let distance = [squares.sqrt(), (squares - restored).max(0.0).sqrt()];
    let report = Restored { name: name.clone(), shape: [outputs, inputs], entries: kept.len(), distance };
    if kept.is_empty() {
        return Ok((report, None));
    }
    let mut starts = vec![0u32; outputs + 1];
    kept.iter().for_each(|entry| starts[entry.at as usize / inputs + 1] += 1);
    (0..outputs).for_each(|row| starts[row + 1] += starts[row]);
    let columns: Vec<u32> = kept.iter().map(|entry| entry.at % inputs as u32).collect();
    let tensor = |of: fn(&Entry) -> f32| {
        let values: Vec<f32> = kept.iter().map(of).collect();
        Tensor::encode(format, 1, values.len(), &values).map_err(failed)
    };
    let (values, before) = (tensor(|entry| entry.after)?, tensor(|entry| entry.before)?);
    let (starts, columns): (Arc<[u32]>, Arc<[u32]>) = (starts.into(), columns.into());
    let parts = vec![Part::Overwrite { starts, columns, values, before }];
    Ok((report, Some(Layer { site, shape: Shape { outputs, inputs }, parts })))
}

/// An entry that differs.
struct Entry {
    /// Row after row.
    at: u32,
    before: f32,
    after: f32,
}

impl Entry {
    fn distance(&self) -> f32 {
        (self.after - self.before).abs()
    }
}

/// A matrix of both models.
struct Rows<'a> {
    base: &'a Tensor,
    aligned: &'a Tensor,
    /// What adapters make of the base.
    merge: Option<&'a Merge>,
    /// What aligned values are rounded to.
    format: Format,
    name: &'a str,
}

impl Rows<'_> {
    /// Shows the entries that differ, row after row.
    fn differing(&self, mut seen: impl FnMut(Entry)) -> Result<(), Error> {
        let (cols, format) = (self.base.cols(), self.format);
        let (mut before, mut after, mut bytes) =
            (vec![0.0; cols], vec![0.0; cols], vec![0; cols * format.block_bytes()]);
        for row in 0..self.base.rows() {
            self.base.decode_row(row, &mut before);
            if let Some(merge) = self.merge {
                merge.row(row, &mut before);
            }
            self.aligned.decode_row(row, &mut after);
            format.encode(&after, &mut bytes);
            format.decode(&bytes, &mut after);
            for (column, (&before, &after)) in before.iter().zip(&after).enumerate() {
                let difference = after - before;
                if !difference.is_finite() {
                    let tensor = format!("{}.weight", self.name);
                    let error =
                        graftwork_adapters::Error::NotFinite { tensor, row, col: column, found: difference };
                    return Err(error.into());
                }
                // By bits: a zero may have another sign.
                if before.to_bits() != after.to_bits() {
                    seen(Entry { at: (row * cols + column) as u32, before, after });
                }
            }
        }
        Ok(())
    }
}
