//! From a full fine-tune to a compressed delta: of every linear layer of the blocks the difference to the base, compressed
//! ([`graftwork_adapters::compress`]), and everything else that changed, exact.
//!
//! Matrices are compressed in parallel, one on each thread. What is done is kept in a folder beside the result until that is whole, so a
//! process that was killed goes on where it ended, to the same bytes. In memory are the two models' files, mapped; the matrices on
//! which threads work; and, calibrated, a running model and sums of its inputs, as many as [`Options::memory`] allows.

mod calibrate;
mod divergence;
mod error;
mod method;
mod pair;
mod work;

pub use calibrate::Calibration;
pub use divergence::{Divergence, divergence};
pub use error::Error;
pub use method::Method;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use graftwork_adapters::compress::{Compressed, Hessian, compress as compress_matrix};
use graftwork_adapters::delta::{Delta, Fingerprint, Layer, Part};
use graftwork_adapters::{Module, Site, Source, check::Shape};
use graftwork_kernels::cpu::isa::Isa;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::parallel::in_parallel;
use crate::place;
use calibrate::bytes_of;
pub(crate) use calibrate::{GROUPS, width_of};
pub(crate) use pair::Pair;
use pair::name_of;
use work::{Plan, Work};

/// How a fine-tune is compressed.
#[derive(Clone)]
pub struct Options<'a> {
    /// What is done to every linear layer.
    pub method: Method,
    /// Bits for each weight, scales and singular values included, of methods that take any number ([`Method::takes_bits`]); none for
    /// the method's own.
    pub bits: Option<f64>,
    /// The greatest `|E|_F / |D|_F` of each matrix, of [`Method::Least`]; 0 for exact entries.
    pub error: f64,
    /// What layers are calibrated on; none for the least error of weights instead of outputs.
    pub calibration: Option<Calibration<'a>>,
    /// Fingerprints of other files of the same base, such as a quantized one, that the delta is for too.
    pub bases: Vec<Fingerprint>,
    /// What the base is called, for messages.
    pub base_model: Option<String>,
    /// Threads; each works on a matrix of its own.
    pub threads: usize,
    /// Bytes that the sums of inputs may take, though never less than those of a layer. If they take more, the texts are read
    /// as often as it needs.
    pub memory: usize,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            method: Method::DeltaCome,
            bits: None,
            error: 0.01,
            calibration: None,
            bases: Vec::new(),
            base_model: None,
            threads: std::thread::available_parallelism().map_or(1, |threads| threads.get()),
            memory: 1 << 30,
        }
    }
}

/// Most tokens of a text that are read at once; longer ones are read in pieces, each from the first position on.
const WINDOW: usize = 2048;

/// What is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A model reads the texts; parts are tokens.
    Calibrating,
    /// Parts are matrices.
    Compressing,
    /// Models are compared; parts are tokens.
    Comparing,
}

/// Called with the parts that are done and all there are, from any thread; `false` ends it.
pub type Progress<'a> = dyn Fn(Stage, usize, usize) -> bool + Sync + 'a;

/// What became of a matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Matrix {
    /// The path of its layer, as Hugging Face has it.
    pub name: String,
    /// Outputs and inputs.
    pub shape: [usize; 2],
    /// What it is the sum of, for people: `rank 8, F16`.
    pub form: String,
    /// Bytes of its parts.
    pub bytes: usize,
    /// `|D|_F`.
    pub norm: f64,
    /// `|E|_F / |D|_F`.
    pub relative_error: f64,
    /// `sqrt(tr(E H E^T) / tr(D H D^T))`, if calibrated.
    pub output_error: Option<f64>,
}

impl Matrix {
    /// Whether the fine-tune left it alone.
    pub fn is_unchanged(&self) -> bool {
        self.norm == 0.0
    }

    /// Its entries.
    pub fn weights(&self) -> usize {
        self.shape.iter().product()
    }
}

/// What became of a fine-tune.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The linear layers, in order.
    pub matrices: Vec<Matrix>,
    /// What is carried exact: names in Hugging Face files, and bytes.
    pub carried: Vec<(String, usize)>,
    /// Bytes of the file.
    pub bytes: u64,
    /// Weights of the whole model, a tied head once.
    pub weights: usize,
}

impl Report {
    /// Bits for each weight of the linear layers.
    pub fn linear_bits(&self) -> f64 {
        let sum = |of: fn(&Matrix) -> usize| self.matrices.iter().map(of).sum::<usize>() as f64;
        8.0 * sum(|m| m.bytes) / sum(Matrix::weights)
    }

    /// Bits of the file for each weight of the model.
    pub fn bits(&self) -> f64 {
        8.0 * self.bytes as f64 / self.weights as f64
    }

    /// `|E|_F / |D|_F` over all linear layers together.
    pub fn relative_error(&self) -> f64 {
        let sum = |of: fn(&Matrix) -> f64| self.matrices.iter().map(|m| of(m).powi(2)).sum::<f64>();
        let whole = sum(|m| m.norm);
        if whole > 0.0 { (sum(|m| m.norm * m.relative_error) / whole).sqrt() } else { 0.0 }
    }
}

/// Compresses what `tuned` changes in `base` into the delta `out`. Until that is whole, what is done is kept in the folder
/// `<out>.parts`; the same call after a kill goes on from there.
///
/// # Errors
/// Whatever [`Error`] says. The folder then stays, if anything is done.
pub fn compress(
    (base, tuned): (&Source, &Source),
    out: &Path,
    options: &Options<'_>,
    progress: &Progress<'_>,
) -> Result<Report, Error> {
    options.method.check(options.bits, options.error)?;
    place::check([base, tuned].into_iter().filter_map(place::path_of), out, place::Form::File)?;
    let pair = Pair::open(base, tuned)?;
    let [base, tuned] = pair.fingerprints();
    let mut folder = out.as_os_str().to_owned();
    folder.push(".parts");
    let work = Work::open(folder.into(), &options.plan(base, tuned))?;
    let run = Run { pair, work, options, base, progress, done: AtomicUsize::new(0) };
    match run.compress() {
        Ok(()) => run.finish(out),
        Err(error) => {
            // The first error is the one to tell.
            let _ = run.work.give_up();
            Err(error)
        }
    }
}

impl Options<'_> {
    /// All that the bytes of the delta depend on.
    fn plan(&self, base: Fingerprint, tuned: Fingerprint) -> Plan {
        let bases: Vec<String> = self.bases.iter().map(ToString::to_string).collect();
        let mut plan = BTreeMap::from([
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("method", self.method.to_string()),
            ("base", base.to_string()),
            ("tuned model", tuned.to_string()),
            ("other bases", bases.join(" ")),
            ("name of the base", self.base_model.clone().unwrap_or_default()),
            ("instruction set", Isa::best().name().to_owned()),
        ]);
        plan.extend(self.bits.map(|bits| ("bits", bits.to_string())));
        plan.extend((self.method == Method::Least).then(|| ("error", self.error.to_string())));
        if let Some(Calibration { engine, texts }) = self.calibration {
            let mut hash = Sha256::new();
            for text in texts {
                hash.update((text.len() as u64).to_le_bytes());
                text.iter().for_each(|token| hash.update(token.to_le_bytes()));
            }
            let digest = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            plan.insert("calibration text", digest);
            plan.insert("calibration model", format!("{} {}", engine.isa(), engine.fingerprint()));
        }
        Plan(plan.into_iter().map(|(field, value)| (field.to_owned(), value)).collect())
    }
}

/// A compression.
struct Run<'a> {
    pair: Pair,
    work: Work,
    options: &'a Options<'a>,
    base: Fingerprint,
    progress: &'a Progress<'a>,
    done: AtomicUsize,
}

impl Run<'_> {
    /// Compresses what is not done yet.
    fn compress(&self) -> Result<(), Error> {
        let layers = self.pair.config().layers;
        let mut missing = Vec::new();
        for layer in 0..layers {
            for (group, modules) in GROUPS.iter().enumerate() {
                let mut rest = Vec::new();
                for &module in *modules {
                    if self.work.done(&path_of(Site::Linear { layer, module }))?.is_none() {
                        rest.push(module);
                    }
                }
                self.done.fetch_add(modules.len() - rest.len(), Ordering::Relaxed);
                if !rest.is_empty() {
                    missing.push(Job { layer, group, modules: rest });
                }
            }
        }
        let at_once = match self.options.calibration {
            None => layers,
            Some(_) => (self.options.memory / bytes_of(self.pair.config())).max(1),
        };
        let mut layers: Vec<usize> = missing.iter().map(|job| job.layer).collect();
        layers.dedup();
        for layers in layers.chunks(at_once) {
            let jobs: Vec<&Job> = missing.iter().filter(|job| layers.contains(&job.layer)).collect();
            self.pass(layers, &jobs)?;
        }
        Ok(())
    }

    /// Compresses the matrices of some layers.
    fn pass(&self, layers: &[usize], jobs: &[&Job]) -> Result<(), Error> {
        let Options { calibration, threads, .. } = *self.options;
        // Taken by the job that needs it, and gone with that.
        let mut hessians: Vec<Mutex<Option<Hessian>>> = Vec::new();
        if let Some(calibration) = calibration {
            let sums = calibration.hessians(layers, threads, self.progress)?;
            hessians.extend(sums.into_iter().map(|sum| Mutex::new(Some(sum))));
        }
        let work = |job: usize| {
            let job = jobs[job];
            let at = layers.binary_search(&job.layer).unwrap_or_default() * GROUPS.len() + job.group;
            let sum = hessians.get(at).and_then(|sum| sum.lock().unwrap_or_else(|e| e.into_inner()).take());
            self.job(job, sum)
        };
        in_parallel(threads, jobs.len(), &|_, _| true, work).map(drop)
    }

    /// Compresses matrices that share their input.
    fn job(&self, job: &Job, sum: Option<Hessian>) -> Result<(), Error> {
        let site = |module| Site::Linear { layer: job.layer, module };
        let refused = |site| move |source| Error::Matrix { tensor: name_of(site, "weight"), source };
        let calibration = sum.map(Hessian::calibrate).transpose().map_err(refused(site(job.modules[0])))?;
        for &module in &job.modules {
            let site = site(module);
            let difference = self.pair.difference(site)?;
            let shape = [difference.outputs(), difference.inputs()];
            let Options { method, bits, error, .. } = *self.options;
            let method = method.of(shape, (bits, error), calibration.is_some());
            let Compressed { parts, report } =
                compress_matrix(&difference, calibration.as_ref(), &method).map_err(refused(site))?;
            let squares = difference.values().iter().map(|&value| f64::from(value).powi(2));
            let matrix = Matrix {
                name: path_of(site),
                shape,
                form: parts.iter().map(form_of).collect::<Vec<_>>().join(" + "),
                bytes: report.bytes,
                norm: squares.sum::<f64>().sqrt(),
                relative_error: report.relative_error,
                output_error: report.output_error,
            };
            let [outputs, inputs] = shape;
            let layers = vec![Layer { site, shape: Shape { outputs, inputs }, parts }];
            let delta = Delta { layers, ..self.delta() };
            self.work.keep(&matrix, (!matrix.is_unchanged()).then_some(&delta))?;
            let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
            let all = self.pair.config().layers * Module::ALL.len();
            if !(self.progress)(Stage::Compressing, done, all) {
                return Err(crate::Error::Cancelled.into());
            }
        }
        Ok(())
    }

    /// Writes the delta of what is done, which is all.
    fn finish(self, out: &Path) -> Result<Report, Error> {
        let mut delta = Delta { carried: self.pair.carried()?, ..self.delta() };
        let mut matrices = Vec::new();
        for layer in 0..self.pair.config().layers {
            for &module in Module::ALL {
                let name = path_of(Site::Linear { layer, module });
                let lost = crate::Error::Internal { what: "a compressed matrix was lost" };
                let (matrix, layer) = self.work.done(&name)?.ok_or(lost)?;
                matrices.push(matrix);
                delta.layers.extend(layer);
            }
        }
        if delta.layers.is_empty() && delta.carried.is_empty() {
            self.work.remove()?;
            return Err(Error::Unchanged);
        }
        let carried = delta.carried.iter().map(|edit| {
            let part = if edit.site.is_linear() { "bias" } else { "weight" };
            (name_of(edit.site, part), edit.change.bytes())
        });
        let carried = carried.collect();
        delta.write(out)?;
        let bytes = out.metadata().map_err(Error::io(out))?.len();
        drop(delta);
        let weights = self.pair.weights(&matrices);
        self.work.remove()?;
        Ok(Report { matrices, carried, bytes, weights })
    }

    /// A delta of nothing yet.
    fn delta(&self) -> Delta {
        let mut bases = vec![self.base];
        bases.extend(self.options.bases.iter().filter(|&&other| other != self.base));
        Delta {
            method: self.options.method.to_string(),
            architecture: Some(self.pair.config().architecture.to_owned()),
            base_model: self.options.base_model.clone(),
            bases,
            row_order: self.pair.row_order(),
            layers: Vec::new(),
            carried: Vec::new(),
        }
    }
}

/// What a part is, for people.
fn form_of(part: &Part) -> String {
    match part {
        Part::Factors { v, s, .. } => format!("rank {}, {}", s.len(), v.format()),
        Part::Whole { matrix, .. } => format!("dense, {}", matrix.format()),
        Part::Sparse { values, .. } | Part::Overwrite { values, .. } => {
            format!("{} entries, {}", values.cols(), values.format())
        }
    }
}

/// Matrices of a layer that share their input.
struct Job {
    layer: usize,
    group: usize,
    modules: Vec<Module>,
}

/// The path of a linear layer in Hugging Face files.
fn path_of(site: Site) -> String {
    site.hf_path().unwrap_or_default()
}
