//! From a model to a GGUF file of a smaller format.
//!
//! Tensors are read where they lie, mapped as a rule, encoded some rows at a time on all threads, and written in order: in memory are
//! one part of one tensor, in both forms, and what is calibrated. The file is written beside its place and renamed when it is whole.

mod describe;
pub(crate) mod encode;
mod error;
mod importance;
mod mix;
pub(crate) mod source;

pub use crate::compress::Calibration;
pub use error::Error;
pub use mix::FileType;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use graftwork_adapters::Source;
use graftwork_adapters::file::GgufWriter;
use graftwork_adapters::file::gguf::Value;
use graftwork_kernels::Format;

use crate::place::{self, Form, Taken};
use encode::Encoder;
use importance::Importance;
pub(crate) use mix::Traits;
use source::{Model, Weight};

/// The version of the blocks' layouts, as `general.quantization_version`.
const QUANTIZATION_VERSION: u32 = 2;

/// How a model is quantized.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// The formats of its matrices.
    pub file_type: FileType,
    /// Texts that say which inputs of the layers matter; none for all alike. The model that reads them is the one that is quantized.
    pub calibration: Option<Calibration<'a>>,
    /// Threads.
    pub threads: usize,
}

/// What is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The model reads the texts; parts are tokens.
    Calibrating,
    /// Parts are values.
    Quantizing,
}

/// Called with the parts that are done and all there are, from any thread; `false` ends it.
pub type Progress<'a> = dyn Fn(Stage, usize, usize) -> bool + Sync + 'a;

/// What became of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Its name in the file.
    pub name: String,
    /// Rows and values in a row.
    pub shape: [usize; 2],
    /// The format that it had.
    pub from: Format,
    /// The format that it has.
    pub to: Format,
    /// Bytes that it took.
    pub bytes_before: usize,
    /// Bytes that it takes.
    pub bytes: usize,
    /// `|E|_F / |W|_F`, 0 of one that is as it was.
    pub relative_error: f64,
    /// `|W' - W|_F / |W|_F`, where adapters made `W'` of `W`, infinite where that was nothing: see [`crate::merge`].
    pub change: Option<f64>,
}

impl Quantized {
    /// A tensor that is not written yet.
    pub(crate) fn of(weight: &Weight<'_>, to: Format) -> Self {
        let (rows, cols) = (weight.rows, weight.tensor.cols());
        Self {
            name: weight.name.clone(),
            shape: [rows, cols],
            from: weight.tensor.format(),
            to,
            bytes_before: weight.tensor.bytes().len(),
            bytes: rows * (cols / to.block_len()) * to.block_bytes(),
            relative_error: 0.0,
            change: None,
        }
    }

    /// Its entries.
    pub fn weights(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether something was lost before, too: it comes from blocks, and not those that it has.
    pub fn is_requantized(&self) -> bool {
        self.from.block_len() > 1 && self.from != self.to
    }
}

/// What became of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The tensors, in the order of the file.
    pub tensors: Vec<Quantized>,
    /// Bytes of the file.
    pub bytes: u64,
}

impl Report {
    /// Bytes that the tensors took.
    pub fn bytes_before(&self) -> usize {
        self.tensors.iter().map(|tensor| tensor.bytes_before).sum()
    }

    /// Bits for each weight.
    pub fn bits(&self) -> f64 {
        let sum = |of: fn(&Quantized) -> usize| self.tensors.iter().map(of).sum::<usize>() as f64;
        8.0 * sum(|tensor| tensor.bytes) / sum(Quantized::weights)
    }
}

/// Writes `model` to `out` with its matrices in the formats of a file type, everything else as it is.
///
/// # Errors
/// Whatever [`Error`] says. `out` is then as it was.
pub fn quantize(
    model: &Source,
    out: &Path,
    options: &Options<'_>,
    progress: &Progress<'_>,
) -> Result<Report, Error> {
    check_out(model, out)?;
    let Options { file_type, calibration, threads } = *options;
    if file_type.needs_calibration() && calibration.is_none() {
        return Err(Error::NoCalibration { file_type: file_type.name() });
    }
    let model = Model::open(model)?;
    let importance = match calibration {
        Some(calibration) if file_type.is_quantized() => {
            Some(Importance::of(&calibration, &model.config, progress)?)
        }
        _ => None,
    };
    let traits = Traits::of(&model.config, calibration.is_some());
    let show = |done: usize, all: usize| progress(Stage::Quantizing, done, all);
    let encoder = Encoder { threads, importance, done: 0, all: 0, progress: &show };
    write_gguf(model, out, (Some(file_type), &traits), encoder)
}

/// Writes a model with its matrices in the formats of a file type, or in those that they have.
pub(crate) fn write_gguf(
    model: Model<'_>,
    out: &Path,
    (file_type, traits): (Option<FileType>, &Traits),
    mut encoder: Encoder<'_>,
) -> Result<Report, Error> {
    let mut file = GgufWriter::new();
    for (key, value) in model.keys {
        file.key(key, value);
    }
    file.key("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
    let number = file_type.map(|file_type| Value::U32(file_type.number())).or(model.file_type);
    if let Some(number) = number {
        file.key("general.file_type", number);
    }
    let mut tensors = Vec::with_capacity(model.weights.len());
    for weight in &model.weights {
        let cols = weight.tensor.cols();
        // Vectors are few and felt.
        let wanted = file_type.filter(|_| weight.rows > 1);
        let wanted = wanted.and_then(|file_type| file_type.format_of(&weight.name, cols, traits));
        let to = wanted.unwrap_or(weight.kept);
        file.promise(&weight.name, to, weight.rows, cols);
        tensors.push(Quantized::of(weight, to));
    }
    encoder.all = tensors.iter().map(Quantized::weights).sum();
    let bytes = write(out, |file_out| {
        file.write_with(file_out, |at, out| encoder.encode(&model.weights[at], &mut tensors[at], out))
    })?;
    Ok(Report { tensors, bytes })
}

/// What happened while a file was written.
pub(crate) enum Failure {
    Out(io::Error),
    Other(Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Out(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// A file written beside its place and renamed when it is whole; its bytes.
pub(crate) fn write(
    out: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> Result<(), Failure>,
) -> Result<u64, Error> {
    let mut partial = out.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let written = || {
        let mut file = BufWriter::new(File::create(partial)?);
        content(&mut file)?;
        file.flush()?;
        let file = file.get_ref();
        file.sync_all()?;
        let bytes = file.metadata()?.len();
        fs::rename(partial, out)?;
        Ok(bytes)
    };
    written().map_err(|failure| {
        // It may not be there; the first error is the one to tell.
        let _ = fs::remove_file(partial);
        match failure {
            Failure::Out(source) => Error::io(out)(source),
            Failure::Other(error) => error,
        }
    })
}

/// Refuses to write over the model, or over what is no file.
pub(crate) fn check_out(model: &Source, out: &Path) -> Result<(), Taken> {
    let path = place::path_of(model);
    place::check(path, out, Form::File)?;
    // Perhaps a shard beside the one that was named.
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    match (path.and_then(Path::parent), out.parent()) {
        (Some(folder), Some(parent)) if out.exists() && name.contains("-of-") && folder == parent => {
            let (expected, found) = ("another file than the model's", "a file of that name beside the model");
            Err(Taken { path: out.to_owned(), expected, found })
        }
        _ => Ok(()),
    }
}
