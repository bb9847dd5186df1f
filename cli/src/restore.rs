//! `restore`: chosen weights get the values of an aligned model, and those that they had.

use std::path::Path;

use graftwork::Source;
use graftwork::place::{self, Form};
use graftwork::restore::{Choice, Mask, Options, Report, Restored, restore as run, rollback};
use serde_json::{Value, json};

use crate::arguments::Restore;
use crate::{Failure, chart, open, output};

/// Runs the command.
pub fn restore(arguments: &Restore) -> Result<(), Failure> {
    if let Some(patch) = &arguments.rollback {
        rollback(patch, &arguments.out)?;
        return match arguments.json {
            true => output::result(&format!("{}\n", json!({"out": arguments.out}))),
            false => output::result(&format!("{}\n", arguments.out.display())),
        };
    }
    let (Some(aligned), Some(model)) = (&arguments.aligned, &arguments.model) else {
        return Err(Failure::Other("expected --aligned and --model, or --rollback".to_owned()));
    };
    let sources = [open::model_path(aligned)?, open::model_path(model)?];
    let adapters = open::adapters(&arguments.adapters)?;
    let grafted = open::grafted(&arguments.adapters, &adapters);
    let inputs = arguments.adapters.iter().map(|adapter| Path::new(&adapter.name));
    place::check(inputs.chain(arguments.mask.as_deref()), &arguments.out, Form::File)?;
    let mask = arguments.mask.as_ref().map(Mask::open).transpose()?;
    let choice = match &mask {
        Some(mask) => Choice::Mask(mask),
        None => Choice::Magnitude(arguments.rate.unwrap_or_default()),
    };
    let options = Options {
        adapters: &grafted,
        choice,
        layers: arguments.layers,
        base_model: Some(model),
        threads: open::threads(arguments.threads),
    };
    let bar = open::progress_bar("comparing {wide_bar} {pos}/{len} {eta}");
    let progress = |done, all| open::show(&bar, done, all);
    let [aligned, model] = sources.each_ref().map(|path| Source::from(path.as_path()));
    let report = run((&aligned, &model), &arguments.out, &options, &progress)?;
    bar.finish_and_clear();
    match arguments.json {
        true => output::result(&format!("{}\n", as_json(arguments, &report))),
        false => output::result(&as_text(arguments, &report)),
    }
}

/// Of all matrices, or some.
fn distance(matrices: &[Restored], which: usize) -> f64 {
    matrices.iter().map(|matrix| matrix.distance[which].powi(2)).sum::<f64>().sqrt()
}

fn as_text(arguments: &Restore, report: &Report) -> String {
    let mut table = vec![["matrix", "restored", "|A - W|", "after"].map(str::to_owned).to_vec()];
    table.extend(report.matrices.iter().filter(|matrix| matrix.entries > 0).map(|m| {
        let [before, after] = m.distance.map(|distance| format!("{distance:.4}"));
        vec![m.name.clone(), m.entries.to_string(), before, after]
    }));
    let entries: usize = report.matrices.iter().map(|matrix| matrix.entries).sum();
    format!(
        "{}{entries} weights restored, |A - W| from {:.4} to {:.4}\n{}: {}\n",
        chart::table(&table),
        distance(&report.matrices, 0),
        distance(&report.matrices, 1),
        arguments.out.display(),
        chart::bytes(report.bytes as usize),
    )
}

fn as_json(arguments: &Restore, report: &Report) -> Value {
    let matrix = |m: &Restored| json!({"name": m.name, "shape": m.shape, "entries": m.entries, "distance": m.distance});
    json!({
        "out": arguments.out,
        "bytes": report.bytes,
        "distance": [distance(&report.matrices, 0), distance(&report.matrices, 1)],
        "matrices": report.matrices.iter().map(matrix).collect::<Vec<_>>(),
    })
}
