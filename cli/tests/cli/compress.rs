//! `compress`: what is reported, what survives, what is refused.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use graftwork_adapters::TensorFile;
use graftwork_adapters::compress::synthetic;
use graftwork_adapters::delta::{Delta, verify};
use graftwork_adapters::file::open_bytes;
use graftwork_adapters::file::safetensors::{Dtype, Safetensors, TensorView, write_safetensors};

use crate::{BASE, Folder, assert_fails, command, graftwork, json_lines, results};

/// A fine-tune of the base in `folder`.
fn fine_tune(folder: &Folder) -> String {
    let path = folder.path("tuned");
    fs::create_dir_all(&path).unwrap();
    let base = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(BASE);
    fs::copy(base.join("config.json"), Path::new(&path).join("config.json")).unwrap();
    let weights = Safetensors::open(base.join("model.safetensors")).unwrap();
    let tensors: Vec<_> = (0..)
        .zip(weights.tensors().iter())
        .map(|(seed, (name, info))| {
            let mut values = weights.require(name).unwrap().decode().unwrap();
            if let (true, &[rows, cols]) = (name.contains("_proj"), &info.shape[..]) {
                let norm = 0.3 * values.iter().map(|w| w * w).sum::<f32>().sqrt();
                let spectrum = synthetic::Spectrum { norm, ..Default::default() };
                let change = synthetic::delta(rows as usize, cols as usize, &spectrum, seed);
                values.iter_mut().zip(change).for_each(|(w, d)| *w += d);
            }
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (name.to_owned(), info.shape.clone(), bytes)
        })
        .collect();
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, shape, bytes)| TensorView { name, dtype: Dtype::F32, shape, bytes })
        .collect();
    let mut file = Vec::new();
    write_safetensors(&mut file, &views, &[]).unwrap();
    fs::write(Path::new(&path).join("model.safetensors"), file).unwrap();
    path
}

/// Lines of token ids: the base has no tokenizer.
fn texts(folder: &Folder, name: &str, lines: u32) -> String {
    let line = |t: u32| {
        let tokens: Vec<u32> = (0..60).map(|i| (i * 31 + t * 97) % 509).collect();
        format!("{{\"tokens\": {tokens:?}}}\n")
    };
    folder.file(name, &(0..lines).map(line).collect::<String>())
}

#[test]
fn a_fine_tune_is_compressed_and_measured() {
    let folder = Folder::new("compress");
    let (tuned, out) = (fine_tune(&folder), folder.path("delta"));
    let (calibration, held_out) = (texts(&folder, "calib.jsonl", 8), texts(&folder, "held-out.jsonl", 2));
    let line = format!(
        "compress --base {BASE} --tuned {tuned} --bits 2 --calib {calibration} --held-out {held_out} -o {out}"
    );
    let report = json_lines(results(&graftwork(&format!("{line} --json")))).remove(0);
    let number = |path: &str| report.pointer(path).and_then(serde_json::Value::as_f64).expect(path);
    assert_eq!(number("/bytes"), fs::metadata(&out).unwrap().len() as f64);
    assert!((1.0..=2.0).contains(&number("/linear_bits_per_weight")), "{report}");
    assert_eq!(report["matrices"].as_array().unwrap().len(), 21);
    for i in 0..21 {
        let error = number(&format!("/matrices/{i}/output_error"));
        assert!((0.01..0.9).contains(&error), "{error}");
    }
    let (base, delta) = (number("/base_to_tuned/kl"), number("/delta_to_tuned/kl"));
    assert!(base > 0.01 && delta > 0.0 && delta < base / 2.0, "{base}, {delta}");
    assert_eq!(number("/delta_to_tuned/positions"), 120.0);

    let text = graftwork(&line);
    let text = results(&text);
    for part in ["layer        q_proj", "\n2  ", "of outputs", "bits/weight", "delta to tuned model: KL"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    let inspected = graftwork(&format!("inspect {out} --base {BASE} --verify"));
    assert!(results(&inspected).contains("the bytes that were written, all values finite"));
    let mut damaged = fs::read(&out).unwrap();
    let last = damaged.len() - 200;
    damaged[last] ^= 16;
    fs::write(&out, damaged).unwrap();
    assert_fails(&graftwork(&format!("inspect {out} --verify")), "the SHA-256 of the data");
    let model = graftwork(&format!("inspect {BASE} --verify"));
    assert!(results(&model).contains("all values finite"));
}

/// Killed at any moment, a compression goes on to the same bytes, and what is called by the name of the delta is a whole one.
#[test]
fn a_killed_compression_goes_on() {
    let folder = Folder::new("kill");
    let (tuned, whole, out) = (fine_tune(&folder), folder.path("whole"), folder.path("killed"));
    let calibration = texts(&folder, "calib.jsonl", 4);
    let line = |out: &str| {
        format!(
            "compress --base {BASE} --tuned {tuned} --bits 2 --calib {calibration} --memory 1 --threads 2 -o {out}"
        )
    };
    results(&graftwork(&line(&whole)));
    let (mut kills, mut millis) = (0, 1);
    loop {
        let line = line(&out);
        let mut child = command(line.split_whitespace()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(millis));
        // Nothing that has run to its end is killed.
        let _ = child.kill();
        let status = child.wait().unwrap();
        if status.success() {
            break;
        }
        assert_eq!(status.code(), None, "it failed after {kills} kills");
        kills += 1;
        millis += 2;
        if Path::new(&out).exists() {
            verify(open_bytes(Path::new(&out), 0).unwrap()).unwrap();
        }
        assert!(kills < 1000, "{millis} ms are not enough");
    }
    assert!(kills > 3, "killed {kills} times only");
    assert!(fs::read(&out).unwrap() == fs::read(&whole).unwrap(), "other bytes after {kills} kills");
    assert!(!Path::new(&format!("{out}.parts")).exists());
    assert_eq!(Delta::open(&out).unwrap().layers.len(), 21);
}

#[test]
fn what_cannot_be_compressed_is_named() {
    let folder = Folder::new("refused");
    let (tuned, out) = (fine_tune(&folder), folder.path("delta"));
    let run = |rest: &str| graftwork(&format!("compress --base {BASE} --tuned {tuned} -o {out} {rest}"));
    let wrong = folder.file("wrong.jsonl", "{\"tokens\": [1]}\n{\"words\": 3}\n");
    assert_fails(&run(&format!("--calib {wrong}")), "wrong.jsonl: line 2: expected an object with `text`");
    let far = folder.file("far.jsonl", "{\"tokens\": [1, 512]}\n");
    assert_fails(&run(&format!("--calib {far}")), "512");
    let none = folder.file("none.jsonl", "\n");
    assert_fails(&run(&format!("--calib {none}")), "none.jsonl: expected a text, found none");
    let text = folder.file("plain.txt", "some words");
    assert_fails(&run(&format!("--held-out {text}")), "tokenizer");
    assert_fails(&run("--method bitdelta --bits 2"), "bits: expected none: the method has its own, found 2");
    assert_fails(&run("--bits 0.001"), "model.layers.0.self_attn.");
    let same = graftwork(&format!("compress --base {BASE} --tuned {BASE} -o {out}"));
    assert_fails(&same, "tuned model: expected weights other than the base's, found the same");
    assert!(!Path::new(&out).exists());
}
