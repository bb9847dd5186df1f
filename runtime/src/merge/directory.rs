//! A model as a directory in Hugging Face layout: `config.json`, the weights in one safetensors file, and the other files of the base.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use graftwork_adapters::Source;
use graftwork_adapters::file::{Dtype, HfModel, safetensors};
use graftwork_kernels::Format;

use super::{Error, FileType, Quantized, Report, Stack};
use crate::place;
use crate::quantize::Failure;
use crate::quantize::encode::Encoder;
use crate::quantize::source::Model;

/// Endings of files that hold weights, in this form or another.
const WEIGHTS: [&str; 10] =
    [".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json", ".partial"];

/// Writes the model of a directory with `stack` made part of it to the new directory `out`, in floats `to`.
pub fn write(
    (source, mut files): (&Source, HfModel),
    stack: &Stack<'_>,
    out: &Path,
    to: Option<FileType>,
    encoder: Encoder<'_>,
) -> Result<Report, Error> {
    let format = to.map(floats).transpose()?;
    let model = Model::of_directory(&mut files, stack)?;
    if let Some(format) = format {
        // transformers renamed the one to the other.
        let fields = ["torch_dtype", "dtype"].map(|field| files.config.get(field).is_some());
        let field = if fields[1] && !fields[0] { "dtype" } else { "torch_dtype" };
        let name = [(Format::F32, "float32"), (Format::F16, "float16"), (Format::BF16, "bfloat16")];
        let name = name.iter().find(|(of, _)| *of == format).map_or("float32", |(_, name)| name);
        files.config[field] = name.into();
    }
    let io = |path: &Path, error| Error::io(path)(error);
    place::beside(out, io, |partial| {
        fs::create_dir_all(partial).map_err(Error::io(partial))?;
        copy_others(source, &files, stack, partial)?;
        weights(&model, &partial.join("model.safetensors"), format, encoder)
    })
}

/// The floats that a file type is.
fn floats(to: FileType) -> Result<Format, Error> {
    let known = [Format::F32, Format::F16, Format::BF16];
    known.into_iter().find(|format| format.name() == to.name()).ok_or_else(|| Error::Unwritable {
        what: "a Hugging Face directory".to_owned(),
        expected: "F32, F16 or BF16".to_owned(),
        found: to.name().to_owned(),
    })
}

/// Writes what is not weights.
fn copy_others(source: &Source, files: &HfModel, stack: &Stack<'_>, out: &Path) -> Result<(), Error> {
    // An adapter that lies beside the base is not the model's.
    let is_other =
        |name: &str| name != "adapter_config.json" && !WEIGHTS.iter().any(|ending| name.ends_with(ending));
    let put = |name: &str, bytes: &[u8]| fs::write(out.join(name), bytes).map_err(Error::io(out.join(name)));
    match source {
        Source::Path { path, .. } => {
            for entry in fs::read_dir(path).map_err(Error::io(path))? {
                let entry = entry.map_err(Error::io(path))?;
                let name = entry.file_name();
                // Through links, as caches have them.
                if entry.path().is_file() && is_other(&name.to_string_lossy()) {
                    place::copy(&entry.path(), &out.join(&name)).map_err(Error::io(entry.path()))?;
                }
            }
        }
        Source::Files(named) => {
            for (name, bytes) in named.iter().filter(|(name, _)| is_other(name)) {
                put(name, bytes)?;
            }
        }
        Source::Bytes(_) => {}
    }
    let json = |value: &serde_json::Value| format!("{value:#}\n").into_bytes();
    put("config.json", &json(&files.config))?;
    if stack.changes_tokenizer() {
        if let Some(tokenizer) = &files.tokenizer {
            put("tokenizer.json", tokenizer)?;
        }
        if let Some(config) = &files.tokenizer_config {
            put("tokenizer_config.json", &json(config))?;
        }
        if let Some(template) = &files.chat_template {
            put("chat_template.jinja", template.as_bytes())?;
        }
    }
    Ok(())
}

/// Writes the weights, in the floats `format` or those that they have.
fn weights(
    model: &Model<'_>,
    out: &Path,
    format: Option<Format>,
    mut encoder: Encoder<'_>,
) -> Result<Report, Error> {
    let mut tensors = Vec::new();
    let mut rows = Vec::new();
    for weight in &model.weights {
        let tensor = Quantized::of(weight, format.unwrap_or(weight.kept));
        let [outputs, inputs] = tensor.shape.map(|n| n as u64);
        let is_vector = weight.rows == 1;
        let shape = if is_vector { vec![inputs] } else { vec![outputs, inputs] };
        let dtype = Dtype::of_format(tensor.to).ok_or_else(|| Error::Unwritable {
            what: tensor.name.clone(),
            expected: "floats".to_owned(),
            found: tensor.to.name().to_owned(),
        })?;
        rows.push((dtype, shape));
        tensors.push(tensor);
    }
    encoder.all = tensors.iter().map(Quantized::weights).sum();
    let head = tensors.iter().zip(&rows).map(|(tensor, (dtype, shape))| (&*tensor.name, *dtype, &shape[..]));
    let head = safetensors::header(head, &[("format", "pt")], 8)?;
    let mut written = || -> Result<u64, Failure> {
        let mut file = BufWriter::new(File::create(out)?);
        file.write_all(&head)?;
        for (weight, tensor) in model.weights.iter().zip(&mut tensors) {
            encoder.encode(weight, tensor, &mut file)?;
        }
        file.flush()?;
        file.get_ref().sync_all()?;
        Ok(file.get_ref().metadata()?.len())
    };
    match written() {
        Ok(bytes) => Ok(Report { tensors, bytes }),
        Err(Failure::Out(source)) => Err(Error::io(out)(source)),
        Err(Failure::Other(error)) => Err(error),
    }
}
