//! `compress`: a full fine-tune becomes a delta, with a report of what that lost.

use std::collections::BTreeMap;
use std::path::Path;

use graftwork::compress::{
    Calibration, Divergence, Matrix, Options, Report, Stage, compress as run, divergence,
};
use graftwork::{EngineOptions, Source};
use graftwork_adapters::delta::Fingerprint;
use serde_json::{Value, json};

use crate::arguments::Compress;
use crate::{Failure, chart, open, output, texts};

/// Runs the command.
pub fn compress(arguments: &Compress) -> Result<(), Failure> {
    let base_path = open::model_path(&arguments.base)?;
    let engine_options = EngineOptions { threads: arguments.threads, ..EngineOptions::default() };
    let texts = [&arguments.calib, &arguments.held_out].map(|path| path.as_deref());
    let base = match texts {
        [None, None] => None,
        _ => Some(open::engine(&arguments.base, engine_options.clone())?),
    };
    let read = |path: Option<&Path>| match (path, &base) {
        (Some(path), Some(engine)) => texts::read(path, engine).map(Some),
        _ => Ok(None),
    };
    let [calibration, held_out] = texts.map(read);
    let (calibration, held_out) = (calibration?, held_out?);
    let calibration = match (&base, &calibration) {
        (Some(engine), Some(texts)) => Some(Calibration { engine, texts }),
        _ => None,
    };
    let options = Options {
        method: arguments.method,
        bits: arguments.bits,
        error: arguments.error,
        calibration,
        bases: arguments.others.iter().map(|model| fingerprint(model)).collect::<Result<_, _>>()?,
        base_model: Some(arguments.base.clone()),
        threads: open::threads(arguments.threads),
        memory: arguments.memory.saturating_mul(1 << 20),
    };
    let bar = open::progress_bar("{msg} {wide_bar} {pos}/{len} {eta}");
    let progress = |stage, done: usize, all: usize| {
        bar.set_message(match stage {
            Stage::Calibrating => "reading texts",
            Stage::Compressing => "compressing",
            Stage::Comparing => "comparing",
        });
        open::show(&bar, done, all)
    };
    let sources = [Source::from(base_path.as_path()), Source::from(arguments.tuned.as_path())];
    let report = run((&sources[0], &sources[1]), &arguments.out, &options, &progress)?;
    let compared = match (&base, &held_out) {
        (Some(base), Some(texts)) => {
            let tuned = open::engine(&arguments.tuned.to_string_lossy(), engine_options)?;
            base.load_adapter("delta", arguments.out.as_path())?;
            let stacks = [vec![], vec![("delta".to_owned(), 1.0)]];
            divergence(&tuned, (base, &stacks), texts, &progress)?
        }
        _ => Vec::new(),
    };
    bar.finish_and_clear();
    let is_calibrated = options.calibration.is_some();
    match arguments.json {
        true => output::result(&format!("{}\n", as_json(arguments, &report, &compared))),
        false => output::result(&as_text(&report, is_calibrated, &compared)),
    }
}

/// The fingerprint of a model.
fn fingerprint(model: &str) -> Result<Fingerprint, Failure> {
    let container = graftwork::model::container::Container::open(&open::model_path(model)?.as_path().into())?;
    let (config, _) = container.config()?;
    Ok(Fingerprint::of(config.architecture, container.weights()))
}

/// The errors of all matrices, a row for each layer; below them what those of a kind come to in all layers.
fn as_text(report: &Report, is_calibrated: bool, compared: &[Divergence]) -> String {
    let kind = |m: &Matrix| m.name.rsplit('.').next().unwrap_or_default().to_owned();
    let mut kinds: Vec<String> = Vec::new();
    for matrix in &report.matrices {
        if !kinds.contains(&kind(matrix)) {
            kinds.push(kind(matrix));
        }
    }
    let mut table = vec![["layer".to_owned()].into_iter().chain(kinds.iter().cloned()).collect::<Vec<_>>()];
    for (layer, matrices) in report.matrices.chunks(kinds.len().max(1)).enumerate() {
        let error = |m: &Matrix| match m.is_unchanged() {
            true => "-".to_owned(),
            false => format!("{:.3}", m.relative_error),
        };
        table.push([layer.to_string()].into_iter().chain(matrices.iter().map(error)).collect());
    }
    let mut row = |name: &str, of: &dyn Fn(&[&Matrix]) -> f64| {
        let cell = |one: &String| {
            let changed = |m: &&Matrix| kind(m) == *one && !m.is_unchanged();
            let matrices: Vec<&Matrix> = report.matrices.iter().filter(changed).collect();
            if matrices.is_empty() { "-".to_owned() } else { format!("{:.3}", of(&matrices)) }
        };
        table.push([name.to_owned()].into_iter().chain(kinds.iter().map(cell)).collect());
    };
    let sum = |matrices: &[&Matrix], of: fn(&Matrix) -> f64| matrices.iter().map(|m| of(m)).sum::<f64>();
    row("all", &|m| (sum(m, |m| (m.norm * m.relative_error).powi(2)) / sum(m, |m| m.norm.powi(2))).sqrt());
    if is_calibrated {
        row("of outputs", &|m| sum(m, |m| m.output_error.unwrap_or_default()) / m.len() as f64);
    }
    row("bits/weight", &|m| 8.0 * sum(m, |m| m.bytes as f64) / sum(m, |m| m.weights() as f64));
    let mut text = format!("|E| / |D|:\n{}", chart::table(&table));
    let carried: usize = report.carried.iter().map(|(_, bytes)| bytes).sum();
    text += &format!(
        "linear layers: {:.3} bits/weight, error {:.3}\ncarried whole: {} tensors, {}\nfile: {}, {:.3} bits for each weight of the model\n",
        report.linear_bits(),
        report.relative_error(),
        report.carried.len(),
        chart::bytes(carried),
        chart::bytes(report.bytes as usize),
        report.bits(),
    );
    for (what, found) in ["base", "delta"].iter().zip(compared) {
        text += &format!(
            "{what} to tuned model: KL {:.5}, same likeliest token {:.1} %, {} positions\n",
            found.kl,
            100.0 * found.top1,
            found.positions
        );
    }
    text
}

fn as_json(arguments: &Compress, report: &Report, compared: &[Divergence]) -> Value {
    let matrix = |m: &Matrix| {
        json!({"name": m.name, "shape": m.shape, "bytes": m.bytes,
            "bits_per_weight": 8.0 * m.bytes as f64 / m.weights() as f64,
            "norm": m.norm, "relative_error": m.relative_error, "output_error": m.output_error})
    };
    let mut object = json!({
        "out": arguments.out,
        "method": arguments.method.name(),
        "bytes": report.bytes,
        "linear_bits_per_weight": report.linear_bits(),
        "bits_per_weight": report.bits(),
        "relative_error": report.relative_error(),
        "matrices": report.matrices.iter().map(matrix).collect::<Vec<_>>(),
        "carried": report.carried.iter().cloned().collect::<BTreeMap<_, _>>(),
    });
    for (what, found) in ["base", "delta"].iter().zip(compared) {
        object[format!("{what}_to_tuned")] =
            json!({"kl": found.kl, "top1": found.top1, "positions": found.positions});
    }
    object
}
