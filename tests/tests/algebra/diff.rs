//! What a tuned model changed, taken out of it and put back.

use std::collections::BTreeMap;

use graftwork::compress::{Error, Method, Options, Report, compress};
use graftwork::merge::{Form, Grafted, merge};
use graftwork::{Format, Source};
use graftwork_adapters::delta::Delta;
use graftwork_adapters::file::Safetensors;
use graftwork_adapters::{Adapter, TensorFile};
use graftwork_kernels::Tensor;
use graftwork_tests::deltas::with_weights;
use graftwork_tests::reference::{Closeness, Expected, golden, tensors};

use crate::{Random, fresh, open};

/// What each matrix of a layer gets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    LowRank,
    Sparse,
    Dense,
}

/// Half of the matrices, and one norm.
const CHANGED: [(&str, Change); 4] = [
    ("self_attn.q_proj", Change::LowRank),
    ("self_attn.o_proj", Change::Sparse),
    ("mlp.up_proj", Change::Dense),
    ("mlp.down_proj", Change::LowRank),
];

/// The tuned model: its tensors, and what was changed by name.
fn half_tuned() -> (Vec<(String, Tensor)>, BTreeMap<String, Change>) {
    let mut random = Random(7);
    let mut changed = BTreeMap::new();
    let mut weights = tensors("adapters/base/model.safetensors");
    for (name, weight) in &mut weights {
        let (rows, cols, mut values) = (weight.rows(), weight.cols(), weight.decode().unwrap());
        if name == "model.layers.1.input_layernorm.weight" {
            values.iter_mut().for_each(|w| *w *= 1.25);
        } else if let Some((part, change)) = CHANGED.iter().find(|(part, _)| name.contains(part)) {
            match change {
                Change::LowRank => {
                    let [a, b] =
                        [4 * cols, rows * 4].map(|n| (0..n).map(|_| random.next()).collect::<Vec<_>>());
                    for (at, w) in values.iter_mut().enumerate() {
                        let (row, col) = (at / cols, at % cols);
                        *w += 0.05 * (0..4).map(|k| b[row * 4 + k] * a[k * cols + col]).sum::<f32>();
                    }
                }
                Change::Sparse => values.iter_mut().step_by(97).for_each(|w| *w += random.next()),
                Change::Dense => values.iter_mut().for_each(|w| *w += 0.05 * random.next()),
            }
            changed.insert(name.trim_end_matches(".weight").to_owned(), *change);
            assert!(name.contains(part));
        }
        *weight = Tensor::encode(Format::F32, rows, cols, &values).unwrap();
    }
    (weights, changed)
}

fn diff(tuned: &Source, out: &str, error: f64) -> Result<(std::path::PathBuf, Report), Error> {
    let out = fresh(out);
    let options = Options { method: Method::Least, error, threads: 2, ..Options::default() };
    let base = Source::from(golden("adapters/base"));
    let report = compress((&base, tuned), &out, &options, &|_, _, _| true)?;
    Ok((out, report))
}

/// `sqrt(sum (a - b)^2)`.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

/// Of a half-fine-tuned model: only what changed, each in its smallest form, and what it says of its error is so.
#[test]
fn only_what_changed_is_kept() {
    let (weights, changed) = half_tuned();
    let base: BTreeMap<String, Tensor> = tensors("adapters/base/model.safetensors").into_iter().collect();
    let tuned = with_weights(&weights);
    for error in [0.0, 0.0001, 0.0005, 0.01, 0.3] {
        let (out, report) = diff(&tuned, &format!("half-{error}"), error).unwrap();
        let delta = Delta::open(&out).unwrap();
        let layers: Vec<String> = delta.layers.iter().map(|layer| layer.site.hf_path().unwrap()).collect();
        assert_eq!(layers.len(), changed.len());
        assert!(layers.iter().all(|name| changed.contains_key(name)), "{layers:?}");
        assert_eq!(report.carried, [("model.layers.1.input_layernorm.weight".to_owned(), 512)]);
        for matrix in report.matrices.iter().filter(|matrix| !matrix.is_unchanged()) {
            println!("{error} {}: {} {}", matrix.name, matrix.form, matrix.relative_error);
            assert!(matrix.relative_error <= error, "{matrix:?}");
            let (factors, dense) = match error {
                0.0 => ("dense, F32", "dense, F32"),
                0.0001 => ("rank 4, F32", "dense, F32"),
                0.0005 => ("rank 4, F16", "dense, F16"),
                _ => ("rank 4, F16", "dense, BF16"),
            };
            let expected = match changed[&matrix.name] {
                // Fewer ranks and entries than there are.
                _ if error > 0.1 => matrix.form.clone(),
                // Exact, sums in singles are of full rank, by their rounding.
                Change::LowRank => factors.to_owned(),
                Change::Dense => dense.to_owned(),
                Change::Sparse if error > 0.0 => matrix.form.clone(),
                Change::Sparse => format!("{} entries, F32", matrix.weights().div_ceil(97)),
            };
            assert_eq!(matrix.form, expected, "{error} {}", matrix.name);
            let most = match changed[&matrix.name] {
                Change::Sparse => 8 * matrix.weights().div_ceil(97) + 4 * (matrix.shape[0] + 1),
                _ => 4 * matrix.weights() + 4,
            };
            assert!(matrix.bytes <= most, "{matrix:?}");
        }
        // The file is what its parts take, and a header.
        let parts: usize = report.matrices.iter().map(|matrix| matrix.bytes).sum::<usize>() + 512;
        assert!((report.bytes as usize) < parts + 4096 + 64 * 4 * layers.len(), "{} {parts}", report.bytes);

        // Put back: in weights, the error that it says; in logits, the tuned model's.
        let adapter = Adapter::open(&*out).unwrap();
        let merged = fresh("half-merged");
        let grafted = [Grafted { name: "half", adapter: &adapter, weight: 1.0 }];
        let options = graftwork::merge::Options { form: Form::HuggingFace, to: None, threads: 2 };
        let base_source = Source::from(golden("adapters/base"));
        merge(&base_source, &grafted, &merged, &options, &|_, _| true).unwrap();
        let merged = Safetensors::open(merged.join("model.safetensors")).unwrap();
        for (name, tuned) in &weights {
            let found = merged.require(name).unwrap().decode().unwrap();
            let (tuned, base) = (tuned.decode().unwrap(), base[name].decode().unwrap());
            let whole = distance(&tuned, &base);
            let stem = name.trim_end_matches(".weight");
            let said = report.matrices.iter().find(|matrix| matrix.name == stem);
            let said = said.map_or(0.0, |matrix| matrix.relative_error) * whole;
            // Adding to a single rounds to 2^-24 of it.
            let rounding = 1e-7 * distance(&tuned, &vec![0.0; tuned.len()]);
            assert!((distance(&tuned, &found) - said).abs() <= rounding, "{name}");
        }
        let (engine, tuned) = (open(golden("adapters/base")), open(tuned.clone()));
        engine.load_adapter("half", &*out).unwrap();
        let tokens = &Expected::read("adapters/base/expected.safetensors", "logits").tokens[0];
        let stack = [("half".to_owned(), 1.0)];
        let [plain, found, tuned] =
            [engine.logits(tokens, &[]), engine.logits(tokens, &stack), tuned.logits(tokens, &[])]
                .map(Result::unwrap);
        let [before, after] = [plain, found].map(|logits| Closeness::of(&tuned, &logits).max_difference);
        println!("{error}: {before} {after}");
        assert!(after <= 1e-4 + before * 3.0 * error as f32, "{error}: {before} {after}");
    }
}

#[test]
fn errors_that_mean_nothing_are_refused() {
    let (weights, _) = half_tuned();
    for error in [f64::NAN, -1.0, 1.0, f64::INFINITY] {
        let found = diff(&with_weights(&weights), "never", error).unwrap_err().to_string();
        assert!(found.starts_with("error: expected a number from 0 on and below 1"), "{found}");
    }
    let same = with_weights(&tensors("adapters/base/model.safetensors"));
    let found = diff(&same, "never", 0.01).unwrap_err().to_string();
    assert!(found.contains("expected weights other than the base's"), "{found}");
}
