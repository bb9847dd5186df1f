//! `port`: an adapter for an old base becomes one for a new base.

use graftwork::Source;
use graftwork::port::{Drift, Options, Report, port as run};
use serde_json::{Value, json};

use crate::arguments::Port;
use crate::{Failure, chart, open, output};

/// Tensors that the table shows.
const SHOWN: usize = 10;

/// Runs the command.
pub fn port(arguments: &Port) -> Result<(), Failure> {
    let [old, new] = [open::model_path(&arguments.from)?, open::model_path(&arguments.to)?];
    let options = Options { base_model: Some(&arguments.to), threads: open::threads(arguments.threads) };
    let bar = open::progress_bar("comparing {wide_bar} {pos}/{len} {eta}");
    let progress = |done, all| open::show(&bar, done, all);
    let sources = [Source::from(old.as_path()), Source::from(new.as_path())];
    let report = run((&sources[0], &sources[1]), &arguments.adapter, &arguments.out, &options, &progress)?;
    bar.finish_and_clear();
    let far = report.far(arguments.warn);
    if let Some(first) = far.first() {
        output::note(&format!(
            "warning: {} of the tensors that the adapter changes drifted by more than {}, {} by {:.3}: it was trained where the base \
             no longer is, so try its answers before you rely on them",
            far.len(),
            arguments.warn,
            first.name,
            first.drift
        ));
    }
    match arguments.json {
        true => output::result(&format!("{}\n", as_json(arguments, &report))),
        false => output::result(&as_text(arguments, &report)),
    }
}

fn as_text(arguments: &Port, report: &Report) -> String {
    let mut drifts: Vec<&Drift> = report.drifts.iter().collect();
    drifts.sort_by(|a, b| b.drift.total_cmp(&a.drift));
    let mut table = vec![["tensor", "|W' - W| / |W|", "adapter"].map(str::to_owned).to_vec()];
    table.extend(drifts.iter().take(SHOWN).map(|drift| {
        let changed = if drift.is_changed { "changes it" } else { "" };
        vec![drift.name.clone(), format!("{:.5}", drift.drift), changed.to_owned()]
    }));
    let kept = match report.rebased {
        0 => "the adapter as it was".to_owned(),
        1 => "1 change moved with what it replaces".to_owned(),
        n => format!("{n} changes moved with what they replace"),
    };
    format!(
        "{}the farthest of {} tensors; cosine of the linear layers {:.5}\n{}: {kept}\n",
        chart::table(&table),
        drifts.len(),
        report.cosine,
        arguments.out.display(),
    )
}

fn as_json(arguments: &Port, report: &Report) -> Value {
    let drift = |d: &Drift| json!({"name": d.name, "drift": d.drift, "changed": d.is_changed});
    let names = |far: Vec<&Drift>| far.iter().map(|drift| drift.name.clone()).collect::<Vec<_>>();
    json!({
        "out": arguments.out,
        "cosine": report.cosine,
        "rebased": report.rebased,
        "far": names(report.far(arguments.warn)),
        "tensors": report.drifts.iter().map(drift).collect::<Vec<_>>(),
    })
}
