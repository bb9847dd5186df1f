//! `logits`: what is read and written.

use std::fs::{self, File};
use std::path::Path;

use graftwork_adapters::file::safetensors::{Dtype, Safetensors, TensorView, write_safetensors};

use crate::{BASE, Folder, LORA, assert_fails, command, graftwork, results};

fn logits_of(path: &str) -> (Vec<u64>, Vec<f32>) {
    let file = Safetensors::open(path).unwrap();
    let info = file.tensors().get("logits").unwrap();
    assert_eq!(info.dtype, Dtype::F32);
    (info.shape.clone(), info.bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect())
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_are_those_of_the_reference() {
    let folder = Folder::new("logits");
    let out = folder.path("logits.safetensors");
    let run = |model_and_tokens: &str, adapters: &[&str]| {
        let mut run = command(["logits", "-m", BASE, "--out", &out]);
        run.args(adapters.iter().flat_map(|adapter| ["-a", adapter]));
        let output = run.args(model_and_tokens.split_whitespace()).output().unwrap();
        assert_eq!(results(&output), "");
        logits_of(&out)
    };
    let expected = format!("{LORA}/expected.safetensors");
    let file = format!("--tokens-file {expected}");
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../");
    let (shape, reference) = logits_of(&format!("{root}{expected}"));
    let (found_shape, adapted) = run(&file, &[LORA]);
    assert_eq!(found_shape, shape);
    // The conformance threshold of these adapters.
    let adapted_error = difference(&adapted, &reference);
    assert!(adapted_error <= 2e-3, "{adapted_error}");

    let (_, base) = run(&file, &[]);
    assert!(difference(&base, &reference) > 0.1, "the adapter changes nothing");
    assert_eq!(run(&file, &[&format!("{LORA}:0")]).1, base);
    let (_, half) = run(&file, &[&format!("{LORA}:0.5")]);
    // Two halves are the whole, up to the order of sums.
    let (_, halves) = run(&file, &[&format!("{LORA}:0.5"), &format!("{LORA}:0.5")]);
    assert!(difference(&halves, &adapted) < 1e-3 && difference(&half, &adapted) > 1e-2);

    let tokens = Safetensors::open(format!("{root}{expected}")).unwrap();
    let tokens = tokens.tensors().get("tokens").unwrap().integers().unwrap();
    let first: Vec<String> = tokens[..shape[1] as usize].iter().map(ToString::to_string).collect();
    let (first_shape, first) = run(&format!("--tokens {}", first.join(",")), &[LORA]);
    assert_eq!(first_shape, [1, shape[1], shape[2]]);
    assert_eq!(first, adapted[..first.len()]);
    assert!(!Path::new(&folder.path("logits.safetensors.partial")).exists());

    // Into a pipe.
    if cfg!(unix) {
        let line = format!("logits -m {BASE} -a {LORA} {file} --out /dev/stdout");
        let output = graftwork(&line);
        assert!(output.status.success());
        fs::write(&out, &output.stdout).unwrap();
        assert_eq!(logits_of(&out).1, adapted);
    }
}

#[test]
fn files_of_tokens_are_checked() {
    let folder = Folder::new("tokens");
    let path = folder.path("tokens.safetensors");
    let floats = 1.5f32.to_le_bytes();
    let ids = (-1i32).to_le_bytes();
    let tensor = |name, dtype, shape, bytes| TensorView { name, dtype, shape, bytes };
    for (view, message) in [
        (
            tensor("ids", Dtype::I32, &[1, 1], &ids[..]),
            "expected integers [sequences, positions], found none",
        ),
        (tensor("tokens", Dtype::I32, &[1], &ids[..]), "found shape [1]"),
        (tensor("tokens", Dtype::F32, &[1, 1], &floats[..]), "found F32"),
        (tensor("tokens", Dtype::I32, &[1, 1], &ids[..]), "found a negative or too large id"),
        (tensor("tokens", Dtype::I32, &[0, 4], &[]), "found none"),
        (tensor("tokens", Dtype::I32, &[4, 0], &[]), "found none"),
    ] {
        write_safetensors(&mut File::create(&path).unwrap(), &[view], &[]).unwrap();
        let out = folder.path("out");
        let run = command(["logits", "-m", BASE, "--tokens-file", &path, "--out", &out]).output().unwrap();
        assert_fails(&run, message);
        assert!(!Path::new(&out).exists());
    }
}
