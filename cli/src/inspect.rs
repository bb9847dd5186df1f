//! `inspect`: what is in a model or adapter file, and whether an adapter fits a model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use graftwork::model::container::Container;
use graftwork::{EngineOptions, Error, Kind};
use graftwork_adapters::file::gguf::{self, Gguf};
use graftwork_adapters::file::hf::HfModel;
use graftwork_adapters::file::{Named, Safetensors, TensorInfo, Torch, open_bytes};
use graftwork_adapters::{Adapter, Change, Factor, Place, Site, Source, delta, finite, prompt, seed};
use serde_json::{Value, json};

use crate::arguments::Inspect;
use crate::{Failure, chart, open, output};

/// Runs the command.
pub fn inspect(arguments: &Inspect) -> Result<(), Failure> {
    let path = open::model_path(&arguments.path)?;
    let mut report = vec![Item::new("file", json!(arguments.path))];
    let is_adapter = is_adapter(&path)?;
    let mut kind = None;
    report.extend(if is_adapter {
        let adapter = Adapter::open(path.as_path())?;
        kind = Some(adapter.kind);
        adapter_report(&adapter)
    } else if arguments.base.is_some() {
        return Err(Failure::Other(format!("{}: --base is for adapters, this is a model", arguments.path)));
    } else {
        model_report(&path)?
    });
    if arguments.verify {
        let values = if is_adapter { verify_adapter(&path) } else { verify_model(&path) };
        let values =
            values.map_err(|error| Failure::Other(format!("{}: {}", arguments.path, error.line())))?;
        report.push(Item::new("verified", json!(values)));
    }
    let mut misfit = None;
    if let Some(base) = &arguments.base {
        // The real thing: everything that loading checks, and nothing else. Of a seed patch that is all checked before the first
        // of its updates, whose computing may take minutes.
        let engine = open::engine(base, EngineOptions::default())?;
        let is_checked = kind == Some(Kind::SeedPatch);
        let loaded = engine.load_adapter_with("inspected", path.as_path(), &|_, _| !is_checked);
        misfit = loaded.err().filter(|error| !(is_checked && matches!(error, Error::Cancelled)));
        report.push(Item::new("base", json!(base)));
        let text = if misfit.is_some() { "no" } else { "yes" };
        report.push(Item { text: Text::Line(text.to_owned()), ..Item::new("fits", json!(misfit.is_none())) });
    }
    if arguments.json {
        let object = report.into_iter().map(|item| (item.key, item.value)).collect();
        output::result(&format!("{}\n", Value::Object(object)))?;
    } else {
        let width = report.iter().map(|item| item.key.chars().count()).max().unwrap_or(0);
        output::result(&report.iter().map(|item| item.show(width)).collect::<String>())?;
    }
    match misfit {
        Some(why) => Err(Failure::Other(format!("{}: {why}", arguments.path))),
        None => Ok(()),
    }
}

/// One thing to say, for people and for programs.
struct Item {
    key: String,
    text: Text,
    value: Value,
}

enum Text {
    Line(String),
    Lines(Vec<String>),
}

impl Item {
    /// A value that says itself.
    fn new(key: &str, value: Value) -> Self {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Self { key: key.to_owned(), text: Text::Line(text), value }
    }

    /// A number of bytes.
    fn bytes(key: &str, bytes: usize) -> Self {
        let text = Text::Line(format!("{bytes} ({})", chart::bytes(bytes)));
        Self { text, ..Self::new(key, json!(bytes)) }
    }

    /// A list: a line for people and a value for programs, each.
    fn list(key: &str, items: impl Iterator<Item = (String, Value)>) -> Self {
        let (lines, values) = items.unzip();
        Self { key: key.to_owned(), text: Text::Lines(lines), value: Value::Array(values) }
    }

    fn show(&self, width: usize) -> String {
        let key = output::one_line(&self.key);
        match &self.text {
            Text::Line(line) => format!("{key:width$}  {}\n", output::one_line(line)),
            Text::Lines(lines) => {
                let lines = lines.iter().map(|line| format!("  {}\n", output::one_line(line)));
                format!("{key}:\n{}", lines.collect::<String>())
            }
        }
    }
}

/// Whether this is an adapter: a PEFT directory or file, bare virtual tokens, a compressed delta, a seed patch, or a GGUF file that says so.
fn is_adapter(path: &Path) -> Result<bool, Failure> {
    if path.is_dir() {
        let names = delta::FILES.iter().chain(&[seed::NAME, "adapter_config.json"]);
        return Ok(names.into_iter().any(|name| path.join(name).exists()));
    }
    let bytes = open_bytes(path, 0)?;
    if delta::is_one(&bytes) || seed::is_one(&bytes) {
        return Ok(true);
    }
    if is_safetensors(path) || is_torch(path) {
        let is_named = delta::FILES.iter().any(|name| path.ends_with(name));
        let has_config = path.with_file_name("adapter_config.json").exists();
        let is_bare = match is_torch(path) {
            true => prompt::is_bare(Torch::open(path)?.tensors().names()),
            false => prompt::is_bare(Safetensors::open(path)?.tensors().names()),
        };
        return Ok(is_named || has_config || is_bare);
    }
    let file = Gguf::open(path)?;
    let says = |key, what| Ok::<_, Failure>(file.metadata().get::<&str>(key)? == Some(what));
    Ok(says("general.type", "adapter")? || says("general.architecture", "controlvector")?)
}

/// Reads all values of an adapter; says what was found of them.
fn verify_adapter(path: &Path) -> Result<&'static str, Failure> {
    let inside = path.join(delta::FILES[0]);
    let file = if inside.exists() { &inside } else { path };
    if file.is_file() {
        let bytes = open_bytes(file, 0)?;
        if delta::is_one(&bytes) {
            delta::verify(bytes)?;
            return Ok("the bytes that were written, all values finite");
        }
    }
    for edit in &Adapter::open(path)?.edits {
        for tensor in edit.change.tensors() {
            finite::check(&edit.site.to_string(), tensor)?;
        }
    }
    Ok("all values finite")
}

/// The same of a model.
fn verify_model(path: &Path) -> Result<&'static str, Failure> {
    let container = Container::open(&Source::from(path))?;
    let weights = container.weights();
    for name in weights.names() {
        if let Some(tensor) = weights.tensor(name)? {
            finite::check(name, &tensor)?;
            // A large model need not stay in memory.
            tensor.bytes().unload();
        }
    }
    Ok("all values finite")
}

fn is_safetensors(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "safetensors")
}

/// Whether this is what `torch.save` wrote.
fn is_torch(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "bin" || e == "pt" || e == "pth")
}

/// How many tensors there are, and of each format.
fn tensors(tensors: impl ExactSizeIterator<Item = (String, usize)>) -> [Item; 2] {
    let count = Item::new("tensors", json!(tensors.len()));
    let mut formats: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (format, bytes) in tensors {
        let entry = formats.entry(format).or_default();
        *entry = (entry.0 + 1, entry.1 + bytes);
    }
    let formats = formats.into_iter().map(|(format, (count, bytes))| {
        let line = format!("{count} x {format} ({})", chart::bytes(bytes));
        (line, json!({"format": format, "tensors": count, "bytes": bytes}))
    });
    [count, Item::list("formats", formats)]
}

fn safetensors_report(file: &Named<TensorInfo>) -> [Item; 2] {
    tensors(file.iter().map(|(_, tensor)| (tensor.dtype.name().to_owned(), tensor.bytes.len())))
}

fn model_report(path: &Path) -> Result<Vec<Item>, Failure> {
    let container = |name| Item::new("container", json!(name));
    if path.is_dir() {
        let model = HfModel::load(&Source::from(path))?;
        let mut report = vec![container("Hugging Face directory")];
        for key in ["model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"] {
            report.extend(model.config.get(key).map(|value| Item::new(key, value.clone())));
        }
        report.extend(safetensors_report(model.weights.tensors()));
        return Ok(report);
    }
    if is_safetensors(path) {
        let mut report = vec![container("safetensors")];
        report.extend(safetensors_report(Safetensors::open(path)?.tensors()));
        return Ok(report);
    }
    if is_torch(path) {
        let mut report = vec![container("torch")];
        report.extend(safetensors_report(Torch::open(path)?.tensors()));
        return Ok(report);
    }
    let file = Gguf::open(path)?;
    let mut report = vec![container("GGUF")];
    report.extend(file.metadata().iter().map(|(key, value)| Item::new(key, show(value))));
    report.extend(tensors(file.tensors().iter().map(|(_, tensor)| {
        let format = tensor.format().map_or(format!("type {}", tensor.type_id()), |f| f.name().to_owned());
        (format, tensor.bytes().map_or(0, |b| b.len()))
    })));
    Ok(report)
}

/// A metadata value in a few words; long ones by their size.
fn show(value: &gguf::Value) -> Value {
    use gguf::Value as V;
    match value {
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
    }
}

fn adapter_report(adapter: &Adapter) -> Vec<Item> {
    let layers: BTreeSet<_> = adapter.edits.iter().filter_map(|edit| layer(edit.site)).collect();
    let mut bytes = 0;
    let mut edits: BTreeMap<String, (Value, usize)> = BTreeMap::new();
    for edit in &adapter.edits {
        let place = match edit.site {
            Site::Linear { module, .. } => module.name().to_owned(),
            Site::AttentionNorm { .. } => "attention norm".to_owned(),
            Site::FfnNorm { .. } => "feed-forward norm".to_owned(),
            Site::AfterAttention { .. } => "stream after attention".to_owned(),
            Site::AfterFfn { .. } => "stream after feed-forward".to_owned(),
            site => site.to_string(),
        };
        bytes += match edit.change {
            // The same in every edit.
            Change::Seeded { .. } if !edits.is_empty() => 0,
            ref change => change.bytes(),
        };
        let (line, mut value) = describe(&edit.change);
        let line = format!("{place}: {line}");
        value["site"] = json!(place);
        edits.entry(line).or_insert((value, 0)).1 += 1;
    }
    let edits = edits.into_iter().map(|(line, (mut value, count))| {
        value["count"] = json!(count);
        (format!("{count} x {line}"), value)
    });
    let mut report = vec![Item::new("kind", json!(adapter.kind.name()))];
    report.extend(adapter.base_model.iter().map(|base| Item::new("trained_on", json!(base))));
    report.push(Item::new("row_order", json!(format!("{:?}", adapter.row_order))));
    // Otherwise it has as many as the base.
    if adapter.kind != Kind::SeedPatch {
        report.push(Item::new("layers", json!(layers.len())));
    }
    let bases = adapter.bases.iter().map(|base| (base.to_string(), json!(base.to_string())));
    report.extend((bases.len() > 0).then(|| Item::list("bases", bases)));
    report.push(Item::bytes("bytes", bytes));
    report.push(Item::list("edits", edits));
    report
}

/// A change in a few words, and as JSON.
fn describe(change: &Change) -> (String, Value) {
    match change {
        Change::LowRank { a, b: _, scale, bias, magnitude } => {
            let (rank, format) = (a.rows(), a.format());
            let with = match (bias, magnitude) {
                (_, Some(_)) => ", magnitude (DoRA)",
                (Some(_), None) => ", bias",
                (None, None) => "",
            };
            let value = json!({"change": "low_rank", "rank": rank, "scale": scale,
                "format": format.name(), "bias": bias.is_some(), "magnitude": magnitude.is_some()});
            (format!("rank {rank}, scale {scale}, {format}{with}"), value)
        }
        Change::Bias { values } => {
            let format = values.format();
            (format!("bias, {format}"), json!({"change": "bias", "format": format.name()}))
        }
        Change::Replace { weight } => {
            let (shape, format) = ([weight.rows(), weight.cols()], weight.format());
            let value = json!({"change": "replace", "shape": shape, "format": format.name()});
            (format!("replaced, {shape:?}, {format}"), value)
        }
        Change::Rows { tokens, rows } => {
            let (count, format) = (tokens.len(), rows.format());
            let value = json!({"change": "rows", "tokens": count, "format": format.name()});
            (format!("rows of {count} tokens, {format}"), value)
        }
        Change::VirtualTokens { rows } => {
            let (count, format) = (rows.rows(), rows.format());
            let value = json!({"change": "virtual_tokens", "tokens": count, "format": format.name()});
            (format!("{count} virtual tokens, {format}"), value)
        }
        Change::Prefix { rows, layers } => {
            let (count, format) = (rows.rows(), rows.format());
            let value =
                json!({"change": "prefix", "positions": count, "layers": layers, "format": format.name()});
            (format!("keys and values of {count} positions, {layers} layers, {format}"), value)
        }
        Change::OutputScale { values } => {
            let format = values.format();
            (format!("output scale, {format}"), json!({"change": "output_scale", "format": format.name()}))
        }
        Change::InputScale { values } => {
            let format = values.format();
            (format!("input scale, {format}"), json!({"change": "input_scale", "format": format.name()}))
        }
        Change::Shared { a, .. } => {
            let (rank, format) = (a.rows(), a.format());
            let value = json!({"change": "shared_low_rank", "rank": rank, "format": format.name()});
            (format!("rank {rank} of shared matrices, {format}"), value)
        }
        Change::Hadamard { first, second, scale } => {
            let (ranks, format) = ([first.1.rows(), second.1.rows()], first.0.format());
            let value =
                json!({"change": "hadamard", "ranks": ranks, "scale": scale, "format": format.name()});
            (format!("product of ranks {} and {}, scale {scale}, {format}", ranks[0], ranks[1]), value)
        }
        Change::Kronecker { left, right, scale } => {
            let shape = |factor: &Factor| [factor.rows(), factor.cols()];
            let (left, right) = (shape(left), shape(right));
            let value = json!({"change": "kronecker", "left": left, "right": right, "scale": scale});
            (format!("Kronecker product of {left:?} and {right:?}, scale {scale}"), value)
        }
        Change::Rotation { skew, cayley } => {
            let (blocks, size) = (skew.rows(), cayley.size);
            let value = json!({"change": "rotation", "blocks": blocks, "size": size, "shared": cayley.share});
            let of = if cayley.share { "one block for all".to_owned() } else { format!("{blocks} blocks") };
            (format!("input rotated by {of}, size {size}"), value)
        }
        Change::Bottleneck { place, down, activation, scale, channels, .. } => {
            let (size, format) = (down.rows(), down.format());
            let place = match place {
                Place::Input => "input",
                Place::Series => "series",
                Place::Parallel => "parallel",
            };
            let value = json!({"change": "bottleneck", "place": place, "size": size, "scale": scale,
                "activation": format!("{activation:?}"), "channels": channels.is_some(), "format": format.name()});
            (format!("bottleneck of {size}, {place}, {activation:?}, scale {scale}, {format}"), value)
        }
        Change::Add { values } => {
            let format = values.format();
            (format!("direction added, {format}"), json!({"change": "add", "format": format.name()}))
        }
        Change::Project { directions } => {
            let count = directions.rows();
            (format!("{count} directions taken out"), json!({"change": "project", "directions": count}))
        }
        Change::Factors { v, s, u } => {
            let (rank, formats) = (s.len(), [v.format(), u.format()]);
            let value = json!({"change": "factors", "rank": rank, "formats": formats.map(|f| f.name())});
            (format!("singular vectors, rank {rank}, V in {}, U in {}", formats[0], formats[1]), value)
        }
        Change::Whole { matrix, .. } => {
            let format = matrix.format();
            (format!("whole delta, {format}"), json!({"change": "whole", "format": format.name()}))
        }
        Change::Seeded { patch } => {
            let (count, used, scale) =
                (patch.coefficients().len(), patch.directions(), patch.settings().scale);
            let value = json!({"change": "seeded", "directions": count, "used": used, "scale": scale});
            (format!("update of {count} random directions, {used} of them used, scale {scale}"), value)
        }
        Change::Sparse { values, .. } => {
            let (entries, format) = (values.cols(), values.format());
            let value = json!({"change": "sparse", "entries": entries, "format": format.name()});
            (format!("{entries} entries, {format}"), value)
        }
        Change::Overwrite { values, .. } => {
            let (entries, format) = (values.cols(), values.format());
            let value = json!({"change": "overwrite", "entries": entries, "format": format.name()});
            (format!("{entries} entries overwritten, {format}"), value)
        }
    }
}

fn layer(site: Site) -> Option<usize> {
    match site {
        Site::Linear { layer, .. }
        | Site::AttentionNorm { layer }
        | Site::FfnNorm { layer }
        | Site::AfterAttention { layer }
        | Site::AfterFfn { layer } => Some(layer),
        Site::EveryLinear { .. }
        | Site::Embedding
        | Site::Norm
        | Site::Head
        | Site::Prompt
        | Site::Prefix => None,
    }
}
