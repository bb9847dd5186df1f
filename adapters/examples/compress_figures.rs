//! What methods of compression lose and take, on a synthetic delta with correlated inputs:
//! `cargo run --release -p graftwork-adapters --example compress_figures -- OUTPUTS INPUTS EXPONENT TAIL TOKENS`.
//! Seconds are those that the thread computed, where the system says (Linux).

use graftwork_adapters::compress::synthetic::{self, Spectrum};
use graftwork_adapters::compress::{
    Calibration, Choices, Difference, Error, Hessian, Method, Scales, Split, compress,
};

fn main() -> Result<(), Error> {
    let arguments: Vec<f32> = std::env::args().skip(1).filter_map(|x| x.parse().ok()).collect();
    let [outputs, inputs, exponent, tail, tokens] = arguments[..] else { return Ok(()) };
    let (outputs, inputs, tokens) = (outputs as usize, inputs as usize, tokens as usize);
    let spectrum = Spectrum { norm: 1.0, rank: 512, exponent, tail };
    let delta = Difference::new(outputs, inputs, synthetic::delta(outputs, inputs, &spectrum, 1))?;
    let (seen, held_out) = calibrations(tokens, inputs)?;

    let weights = outputs * inputs;
    let one_bit = weights / 8;
    println!("{:44} {:>8} {:>9} {:>9} {:>9} {:>6}", "", "bits", "|E|/|D|", "outputs", "held out", "s");
    let show = |name: &str, inputs: Option<&Calibration>, method: Method| {
        let start = seconds();
        let compressed = compress(&delta, inputs, &method)?;
        let seconds = seconds() - start;
        let report = compressed.report;
        let outside = compressed.output_error(&delta, &held_out)?;
        let error = report.output_error.unwrap_or(f64::NAN);
        println!(
            "{name:44} {:8.3} {:9.4} {error:9.4} {outside:9.4} {seconds:6.2}",
            report.bits_per_weight, report.relative_error
        );
        Ok::<(), Error>(())
    };
    let come = |split: Split, weighted, scales, refit| Method::DeltaCome {
        split,
        choices: Choices { weighted, scales, refit },
    };
    let (range, fitted) = (Scales::Range, Scales::Fitted);
    for (name, calibration) in [("", None), ("calibrated, ", Some(&seen))] {
        let name = |rest: &str| format!("{name}{rest}");
        for split in [Split::Published, Split::Bytes(one_bit)] {
            let of = match split {
                Split::Published => "published split",
                _ => "one bit",
            };
            for (choice, weighted, scales, refit) in [
                ("published", false, range, false),
                ("fitted scales", false, fitted, false),
                ("refit", false, range, true),
                ("fitted, refit", false, fitted, true),
                ("weighted, fitted", true, fitted, false),
                ("weighted, fitted, refit", true, fitted, true),
            ] {
                let method = come(split.clone(), weighted, scales, refit);
                show(&name(&format!("{of}: {choice}")), calibration, method)?;
            }
        }
        for feedback in [false, true] {
            let with = if feedback { "signs, feedback" } else { "signs" };
            show(&name(with), calibration, Method::BitDelta { feedback })?;
        }
        for weighted in [false, true] {
            let with = if weighted { "low rank, weighted" } else { "low rank" };
            show(&name(with), calibration, Method::LowRank { bytes: one_bit, weighted })?;
        }
        show(&name("ternary"), calibration, Method::Ternary)?;
    }
    Ok(())
}

/// Inputs with long-tailed correlations, and one channel of 64 ten times as large: half of the tokens seen, half of them not.
fn calibrations(tokens: usize, inputs: usize) -> Result<(Calibration, Calibration), Error> {
    let spectrum = Spectrum { norm: (tokens as f32).sqrt(), rank: 512, exponent: 0.5, tail: 0.2 };
    let mut x = synthetic::delta(tokens, inputs, &spectrum, 2);
    for row in x.chunks_exact_mut(inputs) {
        row.iter_mut().step_by(64).for_each(|x| *x *= 10.0);
    }
    let of = |x: &[f32]| {
        let mut hessian = Hessian::new(inputs);
        hessian.add(x)?;
        hessian.calibrate()
    };
    let (seen, held_out) = x.split_at(tokens / 2 * inputs);
    Ok((of(seen)?, of(held_out)?))
}

/// That this thread has computed for.
fn seconds() -> f64 {
    let of_thread = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = of_thread.as_deref().and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    nanoseconds.unwrap_or(f64::NAN) * 1e-9
}
