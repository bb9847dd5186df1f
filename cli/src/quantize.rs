//! `quantize`: a model becomes a GGUF file of a smaller format.

use std::collections::BTreeMap;

use graftwork::quantize::{Calibration, Options, Quantized, Report, Stage, quantize as run};
use graftwork::{EngineOptions, Source};
use serde_json::{Value, json};

use crate::arguments::Quantize;
use crate::{Failure, chart, open, output, texts};

/// Runs the command.
pub fn quantize(arguments: &Quantize) -> Result<(), Failure> {
    let model = open::model_path(&arguments.model)?;
    let threads = open::threads(arguments.threads);
    let engine = match &arguments.calib {
        Some(_) => {
            let options = EngineOptions { threads, ..EngineOptions::default() };
            Some(open::engine(&arguments.model, options)?)
        }
        None => None,
    };
    let texts = match (&arguments.calib, &engine) {
        (Some(path), Some(engine)) => texts::read(path, engine)?,
        _ => Vec::new(),
    };
    let calibration = engine.as_ref().map(|engine| Calibration { engine, texts: &texts });
    let options = Options { file_type: arguments.to, calibration, threads };
    let bar = open::progress_bar("{msg} {wide_bar} {percent} % {eta}");
    let progress = |stage, done: usize, all: usize| {
        bar.set_message(match stage {
            Stage::Calibrating => "reading texts",
            Stage::Quantizing => "quantizing",
        });
        open::show(&bar, done, all)
    };
    let report = run(&Source::from(model.as_path()), &arguments.out, &options, &progress)?;
    bar.finish_and_clear();
    let requantized: Vec<&Quantized> = report.tensors.iter().filter(|t| t.is_requantized()).collect();
    if let Some(first) = requantized.first() {
        output::note(&format!(
            "{} tensors were quantized before ({} in {}): what that lost stays lost",
            requantized.len(),
            first.name,
            first.from
        ));
    }
    match arguments.json {
        true => output::result(&format!("{}\n", as_json(arguments, &report))),
        false => output::result(&as_text(arguments, &report)),
    }
}

/// The tensors of each format: how many, their bytes, and the error of those that changed.
fn formats(report: &Report) -> BTreeMap<String, (usize, usize, f64)> {
    let mut formats = BTreeMap::new();
    for tensor in &report.tensors {
        let (count, bytes, worst) = formats.entry(tensor.to.to_string()).or_insert((0, 0, 0.0f64));
        *count += 1;
        *bytes += tensor.bytes;
        *worst = worst.max(tensor.relative_error);
    }
    formats
}

fn as_text(arguments: &Quantize, report: &Report) -> String {
    let mut table = vec![["format", "tensors", "bytes", "worst |E| / |W|"].map(str::to_owned).to_vec()];
    for (format, (count, bytes, worst)) in formats(report) {
        table.push(vec![format, count.to_string(), chart::bytes(bytes), format!("{worst:.5}")]);
    }
    format!(
        "{}{}: {}, {:.3} bits/weight, from {}\n",
        chart::table(&table),
        arguments.out.display(),
        chart::bytes(report.bytes as usize),
        report.bits(),
        chart::bytes(report.bytes_before()),
    )
}

fn as_json(arguments: &Quantize, report: &Report) -> Value {
    let tensor = |t: &Quantized| {
        json!({"name": t.name, "shape": t.shape, "from": t.from.name(), "to": t.to.name(),
            "bytes": t.bytes, "relative_error": t.relative_error})
    };
    let formats = formats(report);
    let counts: BTreeMap<&String, usize> = formats.iter().map(|(name, (count, ..))| (name, *count)).collect();
    json!({
        "out": arguments.out,
        "file_type": arguments.to.name(),
        "bytes_before": report.bytes_before(),
        "bytes": report.bytes,
        "bits_per_weight": report.bits(),
        "formats": counts,
        "tensors": report.tensors.iter().map(tensor).collect::<Vec<_>>(),
    })
}
