//! Adapters made part of a model: `W' = W + what they change`, written as a GGUF file or as a Hugging Face directory.
//!
//! [`graftwork_adapters::merge`] has the arithmetic. Tensors are read where they lie, changed and encoded some rows at a time on
//! all threads, and written in order: in memory are one part of one tensor and the adapters. What no adapter changes is copied.

mod changes;
mod directory;

pub(crate) use changes::{Changes, Part, Stack};

use std::path::Path;

use graftwork_adapters::{Adapter, Source};
use graftwork_kernels::Format;

use crate::model::container::Container;
use crate::parallel::Progress;
use crate::place;
use crate::quantize::encode::Encoder;
use crate::quantize::source::{Model, name_of};
pub use crate::quantize::{Error, FileType, Quantized, Report};
use crate::quantize::{Traits, check_out, write_gguf};

/// An adapter to merge.
#[derive(Clone, Copy, Debug)]
pub struct Grafted<'a> {
    /// What to call it in messages.
    pub name: &'a str,
    /// What it changes.
    pub adapter: &'a Adapter,
    /// How much of that: see [`crate::Request::adapters`].
    pub weight: f32,
}

/// How the model is written.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A file or a directory.
    pub form: Form,
    /// The formats of its matrices; none for those that they have. A directory can hold F32, F16 and BF16.
    pub to: Option<FileType>,
    /// Threads.
    pub threads: usize,
}

/// What a model is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A GGUF file.
    Gguf,
    /// A directory in Hugging Face layout, of a base that is one.
    HuggingFace,
}

/// Writes `model` with `adapters`, a stack in order, made part of it to `out`. `progress` hears of values.
///
/// # Errors
/// An adapter does not fit the model or is no change of weights ([`graftwork_adapters::merge::check`]); whatever else [`Error`]
/// says. `out` is then as it was.
pub fn merge(
    model: &Source,
    adapters: &[Grafted<'_>],
    out: &Path,
    options: &Options,
    progress: &Progress<'_>,
) -> Result<Report, Error> {
    let Options { form, to, threads } = *options;
    match form {
        Form::Gguf => check_out(model, out)?,
        Form::HuggingFace => place::check(place::path_of(model), out, place::Form::Directory)?,
    }
    let container = Container::open(model)?;
    let stack = Stack::new(adapters, &container)?;
    let encoder = Encoder { threads, importance: None, done: 0, all: 0, progress };
    match (form, container) {
        (Form::Gguf, container) => {
            let to = to.or_else(|| own_type(&container));
            let model = Model::of(container, &stack, &name_of(model))?;
            let traits = Traits::of(&model.config, false);
            write_gguf(model, out, (to, &traits), encoder)
        }
        (Form::HuggingFace, Container::HuggingFace(files)) => {
            directory::write((model, *files), &stack, out, to, encoder)
        }
        (Form::HuggingFace, Container::Gguf(_)) => Err(Error::Unwritable {
            what: "a Hugging Face directory".to_owned(),
            expected: "a base that is one: its configuration and tokenizer are taken over".to_owned(),
            found: "a GGUF file".to_owned(),
        }),
    }
}

/// The file type of a directory's weights; none of a GGUF file, whose tensors keep each its own.
fn own_type(container: &Container) -> Option<FileType> {
    let Container::HuggingFace(files) = container else { return None };
    let is = |format| files.weights.tensors().iter().any(|(_, info)| info.dtype.format() == Some(format));
    let own = [Format::BF16, Format::F16].into_iter().find(|&format| is(format)).unwrap_or(Format::F32);
    own.name().parse().ok()
}
