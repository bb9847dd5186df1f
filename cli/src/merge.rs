//! `merge`: adapters become part of a model.

use std::path::Path;

use graftwork::Source;
use graftwork::merge::{Form, Options, Quantized, Report, merge as run};
use graftwork::place;
use graftwork_adapters::combine::{self, combine};
use graftwork_adapters::{Adapter, write_peft};
use serde_json::{Value, json};

use crate::arguments::Merge;
use crate::{Failure, chart, open, output};

/// Runs the command.
pub fn merge(arguments: &Merge) -> Result<(), Failure> {
    let adapters = open::adapters(&arguments.adapters)?;
    let is_gguf = arguments.out.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    let form = if is_gguf && arguments.model.is_some() { place::Form::File } else { place::Form::Directory };
    let inputs: Vec<&Path> = arguments.adapters.iter().map(|adapter| Path::new(&adapter.name)).collect();
    let Some(model) = &arguments.model else {
        // What it wrote before may be written over.
        if inputs.iter().any(|input| open::is_same(input, &arguments.out)) {
            return Err(Failure::Other(format!(
                "{}: expected another place than an adapter's",
                arguments.out.display()
            )));
        }
        return combined(arguments, &adapters);
    };
    place::check(inputs, &arguments.out, form)?;
    let model = open::model_path(model)?;
    let grafted = open::grafted(&arguments.adapters, &adapters);
    let options = Options {
        form: if is_gguf { Form::Gguf } else { Form::HuggingFace },
        to: arguments.to,
        threads: open::threads(arguments.threads),
    };
    let bar = open::progress_bar("merging {wide_bar} {percent} % {eta}");
    let progress = |done: usize, all: usize| open::show(&bar, done, all);
    let report = run(&Source::from(model.as_path()), &grafted, &arguments.out, &options, &progress)?;
    bar.finish_and_clear();
    // Of a change that is smaller than its rounding little is left.
    let lost = |tensor: &&Quantized| tensor.change.is_some_and(|change| change < tensor.relative_error);
    let lost: Vec<&Quantized> = report.tensors.iter().filter(lost).collect();
    if let Some(first) = lost.first() {
        output::note(&format!(
            "warning: in {} tensors {} loses more than the adapters change ({}: {:.5} and {:.5}): choose a better format with --to",
            lost.len(),
            first.to,
            first.name,
            first.relative_error,
            first.change.unwrap_or_default(),
        ));
    }
    match arguments.json {
        true => output::result(&format!("{}\n", as_json(arguments, &report))),
        false => output::result(&as_text(arguments, &report)),
    }
}

/// The adapters as one.
fn combined(arguments: &Merge, adapters: &[Adapter]) -> Result<(), Failure> {
    let Merge { method, rank, density, sign, seed, .. } = *arguments;
    let weighted: Vec<_> =
        adapters.iter().zip(&arguments.adapters).map(|(adapter, given)| (adapter, given.weight)).collect();
    let adapter = combine(&weighted, &combine::Options { method, rank, density, sign, seed })?;
    write_peft(&adapter, &arguments.out)?;
    let bytes: usize = adapter.edits.iter().map(|edit| edit.change.bytes()).sum();
    let (kind, edits) = (adapter.kind.name(), adapter.edits.len());
    match arguments.json {
        true => output::result(&format!(
            "{}\n",
            json!({"out": arguments.out, "kind": kind, "edits": edits, "bytes": bytes, "method": method.name()})
        )),
        false => output::result(&format!(
            "{}: {kind}, {edits} changes, {}, from {} adapters by {}\n",
            arguments.out.display(),
            chart::bytes(bytes),
            adapters.len(),
            method.name()
        )),
    }
}

/// The layer's number is left out: a row for each kind of tensor.
fn kind(name: &str) -> String {
    let parts = name.split('.').filter(|part| part.parse::<usize>().is_err());
    parts.collect::<Vec<_>>().join(".")
}

fn as_text(arguments: &Merge, report: &Report) -> String {
    let changed: Vec<&Quantized> = report.tensors.iter().filter(|tensor| tensor.change.is_some()).collect();
    let mut kinds: Vec<String> = Vec::new();
    for tensor in &changed {
        if !kinds.contains(&kind(&tensor.name)) {
            kinds.push(kind(&tensor.name));
        }
    }
    let heads = ["tensor", "changed", "format", "|W' - W| / |W|", "worst |E| / |W'|"];
    let mut table = vec![heads.map(str::to_owned).to_vec()];
    for one in kinds {
        let of_kind: Vec<_> = changed.iter().filter(|tensor| kind(&tensor.name) == one).collect();
        let mut formats: Vec<_> = of_kind.iter().map(|tensor| tensor.to.name()).collect();
        formats.sort_unstable();
        formats.dedup();
        let changes = || of_kind.iter().filter_map(|tensor| tensor.change);
        let (least, most) = (changes().fold(f64::INFINITY, f64::min), changes().fold(0.0, f64::max));
        let worst = of_kind.iter().fold(0.0, |worst: f64, tensor| worst.max(tensor.relative_error));
        let range = format!("{least:.4} to {most:.4}");
        table.push(vec![one, of_kind.len().to_string(), formats.join(" "), range, format!("{worst:.5}")]);
    }
    format!(
        "{}{}: {}, {} of {} tensors changed\n",
        chart::table(&table),
        arguments.out.display(),
        chart::bytes(report.bytes as usize),
        changed.len(),
        report.tensors.len(),
    )
}

fn as_json(arguments: &Merge, report: &Report) -> Value {
    let tensor = |t: &Quantized| {
        json!({"name": t.name, "shape": t.shape, "from": t.from.name(), "to": t.to.name(), "bytes": t.bytes,
            "change": t.change, "relative_error": t.relative_error})
    };
    json!({
        "out": arguments.out,
        "bytes": report.bytes,
        "tensors": report.tensors.iter().map(tensor).collect::<Vec<_>>(),
    })
}
