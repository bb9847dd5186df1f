//! `inspect`: what is in a model or adapter file, and whether an adapter fits a model.

use std::collections::BTreeMap;
use std::path::Path;

use graftwork::EngineOptions;
use graftwork_adapters::file::gguf::{self, Gguf};
use graftwork_adapters::file::hf::HfModel;
use graftwork_adapters::{Adapter, Change, Site, Source};
use serde_json::{Value, json};

use crate::arguments::Inspect;
use crate::{Failure, chart, open};

/// Runs the command.
pub fn inspect(arguments: &Inspect) -> Result<(), Failure> {
    let path = open::model_path(&arguments.path)?;
    let mut report = if is_adapter(&path)? {
        let adapter = Adapter::open(path.as_path())?;
        adapter_report(&adapter)
    } else if arguments.base.is_some() {
        return Err(Failure::Other(format!("{}: --base is for adapters, this is a model", arguments.path)));
    } else {
        model_report(&path)?
    };
    report.insert(0, ("file".to_owned(), json!(arguments.path)));
    if let Some(base) = &arguments.base {
        // The real thing: everything that loading checks, and nothing else.
        let engine = open::engine(base, EngineOptions::default())?;
        engine.load_adapter("inspected", path.as_path())?;
        report.push(("fits".to_owned(), json!(base)));
    }
    if arguments.json {
        println!("{}", Value::Object(report.into_iter().collect()));
        return Ok(());
    }
    let width = report.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    for (key, value) in report {
        match value {
            Value::Array(lines) => {
                println!("{key}:");
                lines.iter().for_each(|line| println!("  {}", plain(line)));
            }
            value => println!("{key:width$}  {}", plain(&value)),
        }
    }
    Ok(())
}

type Report = Vec<(String, Value)>;

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Whether this is an adapter: a PEFT directory or file, or a GGUF file that says so.
fn is_adapter(path: &Path) -> Result<bool, Failure> {
    if path.is_dir() {
        return Ok(path.join("adapter_config.json").exists());
    }
    if path.extension().is_some_and(|e| e == "safetensors") {
        return Ok(path.with_file_name("adapter_config.json").exists());
    }
    let file = Gguf::open(path)?;
    Ok(file.metadata().get::<&str>("general.type")? == Some("adapter"))
}

/// `12 x F32 (3.4 MB)` for each format.
fn formats(tensors: impl Iterator<Item = (String, u64)>) -> Value {
    let mut counts: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for (format, bytes) in tensors {
        let entry = counts.entry(format).or_default();
        *entry = (entry.0 + 1, entry.1 + bytes);
    }
    let line = |(format, (count, bytes)): (String, (usize, u64))| {
        json!(format!("{count} x {format} ({})", chart::bytes(bytes as usize)))
    };
    Value::Array(counts.into_iter().map(line).collect())
}

fn model_report(path: &Path) -> Result<Report, Failure> {
    let mut report = Report::new();
    let mut say = |key: &str, value: Value| report.push((key.to_owned(), value));
    if path.is_dir() {
        let model = HfModel::load(&Source::from(path))?;
        say("container", json!("Hugging Face directory"));
        for key in ["model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"] {
            if let Some(value) = model.config.get(key) {
                say(key, value.clone());
            }
        }
        let tensors = model.weights.tensors();
        say("tensors", json!(tensors.len()));
        say("formats", formats(tensors.iter().map(|(_, t)| (t.dtype.name().to_owned(), t.bytes.len() as u64))));
        return Ok(report);
    }
    let file = Gguf::open(path)?;
    say("container", json!("GGUF"));
    for (key, value) in file.metadata().iter() {
        if let Some(text) = show(value) {
            say(key, text);
        }
    }
    let tensors = file.tensors();
    say("tensors", json!(tensors.len()));
    let sizes = tensors.iter().map(|(_, tensor)| {
        let format = tensor.format().map_or(format!("type {}", tensor.type_id()), |f| f.name().to_owned());
        (format, tensor.bytes().map_or(0, |b| b.len() as u64))
    });
    say("formats", formats(sizes));
    Ok(report)
}

/// A metadata value in a few words; long ones by their size.
fn show(value: &gguf::Value) -> Option<Value> {
    use gguf::Value as V;
    Some(match value {
        V::U8(x) => json!(x),
        V::I8(x) => json!(x),
        V::U16(x) => json!(x),
        V::I16(x) => json!(x),
        V::U32(x) => json!(x),
        V::I32(x) => json!(x),
        V::U64(x) => json!(x),
        V::I64(x) => json!(x),
        V::F32(x) => json!(x),
        V::F64(x) => json!(x),
        V::Bool(x) => json!(x),
        V::Str(x) if x.chars().count() > 80 => json!(format!("text of {} characters", x.chars().count())),
        V::Str(x) => json!(x),
        V::Array(x) => json!(format!("array of {}", x.len())),
    })
}

fn adapter_report(adapter: &Adapter) -> Report {
    let mut report = Report::new();
    let mut say = |key: &str, value: Value| report.push((key.to_owned(), value));
    say("kind", json!(adapter.kind.name()));
    if let Some(base) = &adapter.base_model {
        say("trained on", json!(base));
    }
    say("rows of q and k", json!(format!("{:?}", adapter.row_order)));
    let layers = adapter.edits.iter().filter_map(|edit| match edit.site {
        Site::Linear { layer, .. } => Some(layer),
        Site::Embedding | Site::Head => None,
    });
    say("layers", json!(layers.collect::<std::collections::BTreeSet<_>>().len()));
    let mut bytes = 0;
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for edit in &adapter.edits {
        let place = match edit.site {
            Site::Linear { module, .. } => module.name().to_owned(),
            site => site.to_string(),
        };
        let what = match &edit.change {
            Change::LowRank { a, b, scale, bias } => {
                bytes += a.bytes().len() + b.bytes().len() + bias.as_ref().map_or(0, |b| b.bytes().len());
                let bias = if bias.is_some() { ", bias" } else { "" };
                format!("{place}: rank {}, scale {scale}, {}{bias}", a.rows(), a.format())
            }
            Change::Bias { values } => {
                bytes += values.bytes().len();
                format!("{place}: bias, {}", values.format())
            }
        };
        *kinds.entry(what).or_default() += 1;
    }
    say("size", json!(chart::bytes(bytes)));
    let lines = kinds.into_iter().map(|(what, count)| json!(format!("{count} x {what}")));
    say("edits", Value::Array(lines.collect()));
    report
}
