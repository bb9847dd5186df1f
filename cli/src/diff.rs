//! `diff`: what a tuned model changed, as an adapter.

use std::collections::BTreeMap;

use graftwork::Source;
use graftwork::compress::{Matrix, Method, Options, Report, compress as run};
use serde_json::{Value, json};

use crate::arguments::Diff;
use crate::{Failure, chart, open, output};

/// Runs the command.
pub fn diff(arguments: &Diff) -> Result<(), Failure> {
    let base = open::model_path(&arguments.base)?;
    let options = Options {
        method: Method::Least,
        error: arguments.error,
        base_model: Some(arguments.base.clone()),
        threads: open::threads(arguments.threads),
        ..Options::default()
    };
    let bar = open::progress_bar("comparing {wide_bar} {pos}/{len} {eta}");
    let sources = [Source::from(base.as_path()), Source::from(arguments.tuned.as_path())];
    let progress = |_, done, all| open::show(&bar, done, all);
    let report = run((&sources[0], &sources[1]), &arguments.out, &options, &progress)?;
    bar.finish_and_clear();
    match arguments.json {
        true => output::result(&format!("{}\n", as_json(arguments, &report))),
        false => output::result(&as_text(arguments, &report)),
    }
}

fn as_text(arguments: &Diff, report: &Report) -> String {
    let changed = || report.matrices.iter().filter(|matrix| !matrix.is_unchanged());
    let mut table = vec![["matrix", "form", "bytes", "|E| / |D|"].map(str::to_owned).to_vec()];
    table.extend(changed().map(|m| {
        vec![m.name.clone(), m.form.clone(), chart::bytes(m.bytes), format!("{:.5}", m.relative_error)]
    }));
    table.extend(report.carried.iter().map(|(name, bytes)| {
        vec![name.clone(), "carried whole".to_owned(), chart::bytes(*bytes), "0".to_owned()]
    }));
    format!(
        "{}{} of {} matrices changed, error {:.5}\n{}: {}\n",
        chart::table(&table),
        changed().count(),
        report.matrices.len(),
        report.relative_error(),
        arguments.out.display(),
        chart::bytes(report.bytes as usize),
    )
}

fn as_json(arguments: &Diff, report: &Report) -> Value {
    let matrix = |m: &Matrix| {
        json!({"name": m.name, "shape": m.shape, "form": m.form, "bytes": m.bytes, "norm": m.norm,
            "relative_error": m.relative_error})
    };
    let changed = report.matrices.iter().filter(|matrix| !matrix.is_unchanged());
    json!({
        "out": arguments.out,
        "bytes": report.bytes,
        "relative_error": report.relative_error(),
        "matrices": changed.map(matrix).collect::<Vec<_>>(),
        "unchanged": report.matrices.iter().filter(|matrix| matrix.is_unchanged()).count(),
        "carried": report.carried.iter().cloned().collect::<BTreeMap<_, _>>(),
    })
}
