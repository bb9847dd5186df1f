//! Whole models compressed: from the files of a base and a fine-tune to a delta that makes the one the other.

use std::fs;
use std::path::PathBuf;

use graftwork::compress::{Calibration, Error, Method, Options, Report, Stage, compress};
use graftwork::{Engine, Format};
use graftwork_adapters::Source;
use graftwork_adapters::compress::synthetic;
use graftwork_adapters::delta::Delta;
use graftwork_kernels::Tensor;
use graftwork_tests::deltas::with_weights;
use graftwork_tests::reference::{Expected, golden, tensors};

use super::convert::{model_in, model_of};
use super::deltas::furthest;
use super::open;

/// Where a test writes; removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("graftwork-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The small base with deltas of a long-tailed spectrum on those linear layers whose names contain `which`.
fn fine_tune(which: &str) -> Vec<(String, Tensor)> {
    let mut weights = tensors("adapters/base/model.safetensors");
    for (seed, (name, weight)) in (0..).zip(&mut weights) {
        if name.contains("_proj") && name.contains(which) {
            let mut values = weight.decode().unwrap();
            let norm = 0.3 * values.iter().map(|w| w * w).sum::<f32>().sqrt();
            let spectrum = synthetic::Spectrum { norm, ..Default::default() };
            let change = synthetic::delta(weight.rows(), weight.cols(), &spectrum, seed);
            values.iter_mut().zip(change).for_each(|(w, d)| *w += d);
            *weight = Tensor::encode(Format::F32, weight.rows(), weight.cols(), &values).unwrap();
        }
    }
    weights
}

/// Changes a weight that is not compressed.
fn nudge(weights: &mut [(String, Tensor)], name: &str) {
    let (_, weight) = weights.iter_mut().find(|(other, _)| other == name).unwrap();
    let values: Vec<f32> = weight.decode().unwrap().iter().map(|w| 1.1 * w + 0.01).collect();
    *weight = Tensor::encode(Format::F32, weight.rows(), weight.cols(), &values).unwrap();
}

fn texts() -> Vec<Vec<u32>> {
    Expected::read("adapters/base/expected.safetensors", "logits").tokens
}

/// The largest difference of logits from the fine-tune's: of the base, and of the base with the delta.
fn distances(base: &Engine, delta: &str, tuned: &Engine) -> (f32, f32) {
    let stack = [(delta.to_owned(), 1.0)];
    let most = |stack: &[(String, f32)]| {
        let one = |tokens: &Vec<u32>| {
            furthest(&tuned.logits(tokens, &[]).unwrap(), &base.logits(tokens, stack).unwrap())
        };
        texts().iter().map(one).fold(0.0, f32::max)
    };
    (most(&[]), most(&stack))
}

/// Every method, with rows of q and k in either order on either side: exact where the method is, closer than the base where not; with
/// all else that changed carried exactly.
#[test]
fn deltas_make_the_base_the_fine_tune() {
    let folder = Folder::new("compressed");
    let mut weights = fine_tune("");
    for name in ["model.norm", "model.layers.1.post_attention_layernorm", "model.embed_tokens", "lm_head"] {
        nudge(&mut weights, &format!("{name}.weight"));
    }
    let hugging_face = (Source::from(golden("adapters/base")), with_weights(&weights));
    let gguf = (
        Source::from(model_in(Format::F32, "adapters/base")),
        Source::from(model_of(Format::F32, "adapters/base", weights.clone())),
    );
    let tuned = open(with_weights(&weights));
    for (bases, (base, fine_tune)) in [
        ("hugging face", (&hugging_face.0, &hugging_face.1)),
        ("gguf", (&gguf.0, &gguf.1)),
        ("gguf base", (&gguf.0, &hugging_face.1)),
        ("gguf tuned", (&hugging_face.0, &gguf.1)),
    ] {
        let engine = open(base.clone());
        for &(method, name) in Method::ALL {
            let out = folder.0.join(format!("{bases}-{name}"));
            let bits = (method == Method::LowRank).then_some(4.0);
            let bits = bits.or((method == Method::DeltaCome).then_some(3.0));
            let options = Options { method, bits, threads: 2, ..Options::default() };
            let report = compress((base, fine_tune), &out, &options, &|_, _, _| true).unwrap();
            engine.load_adapter(name, out.as_path()).unwrap();
            let (before, after) = distances(&engine, name, &tuned);
            println!("{bases}, {name}: {after} after {before}, {:.3} bits", report.linear_bits());
            let most = match method {
                Method::Sparse => 1e-3,
                Method::Dense => 0.02 * before,
                _ => 0.9 * before,
            };
            assert!(before > 0.3 && after <= most, "{bases}, {name}: {after} after {before}");
            let carried: Vec<&str> = report.carried.iter().map(|(name, _)| &name[..]).collect();
            assert_eq!(
                carried,
                [
                    "model.embed_tokens.weight",
                    "lm_head.weight",
                    "model.norm.weight",
                    "model.layers.1.post_attention_layernorm.weight"
                ]
            );
            assert!(report.relative_error() < 0.9);
            assert_eq!(report.matrices.len(), 21);
            assert_eq!(report.bytes, out.metadata().unwrap().len());
            assert!(!folder.0.join(format!("{bases}-{name}.parts")).exists());
        }
    }
}

/// What a fine-tune leaves alone costs nothing, and a fine-tune that changes nothing is none.
#[test]
fn unchanged_matrices_cost_nothing() {
    let folder = Folder::new("unchanged");
    let base = Source::from(golden("adapters/base"));
    let out = folder.0.join("delta");
    let options = Options { method: Method::Sparse, threads: 2, ..Options::default() };
    let run = |tuned: &Source| compress((&base, tuned), &out, &options, &|_, _, _| true);
    let report = run(&with_weights(&fine_tune("layers.1.mlp"))).unwrap();
    let changed: Vec<&str> =
        report.matrices.iter().filter(|m| !m.is_unchanged()).map(|m| &m.name[..]).collect();
    assert_eq!(changed, ["gate", "up", "down"].map(|name| format!("model.layers.1.mlp.{name}_proj")));
    assert!(report.matrices.iter().all(|m| (m.bytes == 0) == m.is_unchanged()));
    assert_eq!(Delta::open(&out).unwrap().layers.len(), 3);
    fs::remove_file(&out).unwrap();
    assert!(matches!(run(&base), Err(Error::Unchanged)));
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
    let other = Source::from(golden("architectures/llama_yarn"));
    let error = run(&other).unwrap_err().to_string();
    assert!(error.starts_with("tuned model: ") && error.contains("as the base has, found"), "{error}");
}

/// Calibrated, the error of outputs falls; the bytes depend on neither threads nor how many layers are calibrated at once.
#[test]
fn calibration_lowers_the_error_of_outputs() {
    let folder = Folder::new("calibrated");
    let base = Source::from(golden("adapters/base"));
    let tuned = with_weights(&fine_tune(""));
    let engine = open(base.clone());
    let texts: Vec<Vec<u32>> = (0..8).map(|t| (0..100).map(|i| (i * 31 + t * 97) % 509).collect()).collect();
    let run = |name: &str, threads, memory, calibration| -> (Report, Vec<u8>) {
        let out = folder.0.join(name);
        let options = Options { bits: Some(2.0), calibration, threads, memory, ..Options::default() };
        let report = compress((&base, &tuned), &out, &options, &|_, _, _| true).unwrap();
        (report, fs::read(out).unwrap())
    };
    let calibration = || Some(Calibration { engine: &engine, texts: &texts });
    let (report, file) = run("two", 2, 1 << 30, calibration());
    assert!(file == run("one", 1, 0, calibration()).1, "threads or memory matter");
    let (plain, _) = run("plain", 2, 0, None);
    let mean = |report: &Report| {
        report.matrices.iter().map(|m| m.output_error.unwrap()).sum::<f64>() / report.matrices.len() as f64
    };
    println!(
        "outputs {:.3}, weights {:.3} and {:.3}",
        mean(&report),
        report.relative_error(),
        plain.relative_error()
    );
    assert!(plain.matrices.iter().all(|m| m.output_error.is_none()));
    assert!(mean(&report) < plain.relative_error());
    assert!(plain.relative_error() < report.relative_error());
}

/// A run that ends in the middle is gone on with where the options are the same, to the same bytes, and refused where not; pieces that
/// were damaged are made again.
#[test]
fn half_finished_work_goes_on() {
    let folder = Folder::new("half");
    let base = Source::from(golden("adapters/base"));
    let tuned = with_weights(&fine_tune(""));
    let run = |name: &str, method, most: usize| {
        let options = Options { method, threads: 2, ..Options::default() };
        let first = std::sync::Mutex::new(None);
        let progress = |stage, done, _| {
            assert_eq!(stage, Stage::Compressing);
            let mut first = first.lock().unwrap();
            *first = Some(first.map_or(done, |first: usize| first.min(done)));
            done < most
        };
        let result = compress((&base, &tuned), &folder.0.join(name), &options, &progress);
        (result, first.into_inner().unwrap())
    };
    let (whole, first) = run("whole", Method::BitDelta, 100);
    assert_eq!((whole.unwrap().matrices.len(), first), (21, Some(1)));
    let parts = folder.0.join("half.parts");
    let (stopped, _) = run("half", Method::BitDelta, 9);
    assert!(stopped.is_err() && parts.exists() && !folder.0.join("half").exists());
    let (other, _) = run("half", Method::Ternary, 100);
    let error = other.unwrap_err().to_string();
    assert!(
        error.contains("unfinished work with another method: expected ternary, found bitdelta"),
        "{error}"
    );

    let piece = parts.join("model.layers.0.self_attn.k_proj.delta");
    let mut damaged = fs::read(&piece).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&piece, damaged).unwrap();
    fs::write(parts.join("model.layers.2.mlp.up_proj.json.partial"), "{").unwrap();
    let (finished, first) = run("half", Method::BitDelta, 100);
    assert!(finished.is_ok() && first >= Some(9), "{first:?}");
    assert!(fs::read(folder.0.join("half")).unwrap() == fs::read(folder.0.join("whole")).unwrap());
    assert!(!parts.exists());

    fs::create_dir(&parts).unwrap();
    fs::write(parts.join("letter"), "mine").unwrap();
    let error = run("half", Method::BitDelta, 100).0.unwrap_err().to_string();
    assert!(error.contains("found other files"), "{error}");
    assert_eq!(fs::read_to_string(parts.join("letter")).unwrap(), "mine");
}
