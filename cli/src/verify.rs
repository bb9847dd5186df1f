//! `verify`: is this the model that transformers ran, and if not, from where on?

use graftwork::compress::Divergence;
use graftwork::verify::{Contribution, Reason, Reference, Report, Stage, verify as run};
use serde_json::{Value, json};

use crate::arguments::Verify;
use crate::{Failure, chart, open, output};

/// Runs the command.
pub fn verify(arguments: &Verify) -> Result<(), Failure> {
    // The cheaper to refuse.
    let reference = Reference::open(&arguments.reference)?;
    let (engine, stack) = open::stack(&arguments.model, &arguments.adapters, arguments.threads)?;
    let bar = open::progress_bar("comparing {wide_bar} {pos}/{len}");
    let progress = |done, all| open::show(&bar, done, all);
    let report = run(&engine, &stack, &reference, arguments.tolerance, &progress)?;
    bar.finish_and_clear();
    if report.is_quantized && report.stages.iter().all(|stage| stage.contribution.is_none()) {
        output::note(
            "the reference has no base.hidden_states or base.logits: what rounding hides of an adapter is not seen",
        );
    }
    match arguments.json {
        true => output::result(&format!("{}\n", as_json(&report)))?,
        false => output::result(&as_text(&report))?,
    }
    match report.first() {
        Some((place, reason)) => {
            let reference = arguments.reference.display();
            Err(Failure::Other(format!("{reference}: diverges first at {place}: {reason}")))
        }
        None => Ok(()),
    }
}

fn as_text(report: &Report) -> String {
    let mut table = vec![
        ["stage", "|h-r|/|r|", "worst", "base alone", "adapter adds", "floor", "error", "scale", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    table.extend(report.stages.iter().map(row));
    let next = |name: &str, d: &Divergence| {
        format!(
            "{name}: KL {:.2e} per position, the same likeliest token at {:.1} % of {}",
            d.kl,
            d.top1 * 100.0,
            d.positions
        )
    };
    let mut text = chart::table(&table);
    text += &format!(
        "{}, largest difference of a logit {:.2e}\n",
        next("next tokens", &report.logits),
        report.largest_logit
    );
    if let Some(base) = &report.base_logits {
        text += &format!("{}\n", next("of the base", base));
    }
    let verdict = match report.first() {
        Some((place, _)) => format!("diverges first at {place}"),
        None => "agrees".to_owned(),
    };
    text + &format!("{verdict} (tolerance {}, {} positions)\n", report.tolerance, report.positions)
}

fn row(stage: &Stage) -> Vec<String> {
    let mut row =
        vec![stage.place.to_string(), format!("{:.1e}", stage.relative), format!("{:.1e}", stage.largest)];
    row.extend(match &stage.contribution {
        None => vec!["-".to_owned(); 5],
        Some(Contribution { base, positions: 0, .. }) => {
            [format!("{base:.1e}"), "0".to_owned()].into_iter().chain(vec!["-".to_owned(); 3]).collect()
        }
        Some(c) => vec![
            format!("{:.1e}", c.base),
            format!("{:.3}", c.size),
            format!("{:.1e}", c.floor),
            format!("{:.1e}", c.error),
            format!("{:.4} ± {:.4}", c.scale, c.scale_error),
        ],
    });
    row.push(if stage.reason.is_some() { "diverges".to_owned() } else { String::new() });
    row
}

fn as_json(report: &Report) -> Value {
    let next = |d: &Divergence| json!({"kl": d.kl, "top1": d.top1, "positions": d.positions});
    let contribution = |c: &Contribution| {
        json!({"base": c.base, "positions": c.positions, "size": c.size, "floor": c.floor, "error": c.error,
            "scale": c.scale, "scale_error": c.scale_error})
    };
    let stage = |s: &Stage| {
        json!({"stage": s.place.to_string(), "relative": s.relative, "largest": s.largest,
            "contribution": s.contribution.as_ref().map(contribution),
            "reason": s.reason.as_ref().map(Reason::to_string)})
    };
    let first = report.first();
    json!({
        "agrees": first.is_none(),
        "first": first.map(|(place, _)| place.to_string()),
        "reason": first.map(|(_, reason)| reason.to_string()),
        "tolerance": report.tolerance,
        "quantized": report.is_quantized,
        "sequences": report.sequences,
        "positions": report.positions,
        "stages": report.stages.iter().map(stage).collect::<Vec<_>>(),
        "largest_logit": report.largest_logit,
        "logits": next(&report.logits),
        "base_logits": report.base_logits.as_ref().map(next),
    })
}
