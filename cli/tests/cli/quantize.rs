//! `quantize`: what is written and reported, what is refused.

use std::fs;
use std::path::Path;

use graftwork_adapters::file::Gguf;

use crate::{Folder, assert_fails, graftwork, json_lines, results, text};

/// A random model in `folder`; its path.
fn model(folder: &Folder, format: &str, sizes: &str) -> String {
    let path = folder.path(&format!("{format}.gguf"));
    results(&graftwork(&format!("random-model {path} --format {format} --vocab 300 {sizes}")));
    path
}

const WHOLE: &str = "--hidden 256 --layers 8 --ffn 512 --heads 4 --kv-heads 2";
/// Rows of 80 values are whole in no format of blocks.
const RAGGED: &str = "--hidden 80 --layers 2 --ffn 96 --heads 2 --kv-heads 2";

#[test]
fn a_model_is_quantized_and_reported() {
    let folder = Folder::new("quantize");
    let (base, out) = (model(&folder, "F16", WHOLE), folder.path("out.gguf"));
    let report =
        json_lines(results(&graftwork(&format!("quantize {base} {out} --to q4_k --json")))).remove(0);
    assert_eq!(report["file_type"], "Q4_K_M");
    assert_eq!(report["bytes"], fs::metadata(&out).unwrap().len());
    assert_eq!(report["formats"]["F32"], 17);
    let bits = report["bits_per_weight"].as_f64().unwrap();
    assert!((4.5..6.0).contains(&bits), "{bits}");
    for tensor in report["tensors"].as_array().unwrap() {
        let error = tensor["relative_error"].as_f64().unwrap();
        let most = if tensor["to"] == "F32" { 0.0..=0.0 } else { 0.005..=0.1 };
        assert!(most.contains(&error), "{tensor}");
    }
    let file = Gguf::open(&out).unwrap();
    assert_eq!(file.metadata().get::<u32>("general.file_type").unwrap(), Some(15));
    let before = Gguf::open(&base).unwrap();
    for (key, value) in before.metadata().iter().filter(|(key, _)| *key != "general.file_type") {
        assert_eq!(file.metadata().value(key), Some(value), "{key}");
    }
    let norm = |file: &Gguf| file.tensors().get("blk.3.attn_norm.weight").unwrap().bytes().unwrap().to_vec();
    assert_eq!(norm(&file), norm(&before));

    // As text, from what is quantized already, with a note that says so; the same bytes on any number of threads.
    let (again, more) = (folder.path("again.gguf"), folder.path("more.gguf"));
    let output = graftwork(&format!("quantize {out} {again} --to Q3_K_S --threads 1"));
    assert!(results(&output).contains("Q3_K") && results(&output).contains("bits/weight"), "{output:?}");
    assert!(text(&output.stderr).contains("57 tensors were quantized before"), "{output:?}");
    results(&graftwork(&format!("quantize {out} {more} --to Q3_K_S --threads 3")));
    assert!(fs::read(&again).unwrap() == fs::read(&more).unwrap());
    let logits = folder.path("logits");
    results(&graftwork(&format!("logits -m {again} --tokens 1,2,3 --out {logits}")));
}

#[test]
fn rows_that_are_no_blocks_fall_back() {
    let folder = Folder::new("ragged");
    let (base, out) = (model(&folder, "F16", RAGGED), folder.path("out.gguf"));
    let report =
        json_lines(results(&graftwork(&format!("quantize {base} {out} --to Q4_K_M --json")))).remove(0);
    // `ffn_down` has rows of 96 values; nothing else has whole blocks.
    assert_eq!(report["formats"], serde_json::json!({"F16": 14, "F32": 5, "Q5_0": 1, "Q8_0": 1}));
    results(&graftwork(&format!("logits -m {out} --tokens 1,2,3 --out {}", folder.path("logits"))));
}

#[test]
fn texts_say_what_matters() {
    let folder = Folder::new("calibrated");
    let (base, out) = (model(&folder, "F16", WHOLE), folder.path("out.gguf"));
    let tokens = |t: u32| (0..40).map(|i| (i * 31 + t * 97) % 300).collect::<Vec<u32>>();
    let lines = [1, 2].map(|t| format!("{{\"tokens\": {:?}}}\n", tokens(t))).concat();
    let calibration = folder.file("calib.jsonl", &lines);
    let run = |rest: &str| {
        json_lines(results(&graftwork(&format!("quantize {base} {out} --json --to {rest}")))).remove(0)
    };
    // A type that asks for texts, and one that keeps some matrices in another format with them.
    let report = run(&format!("Q2_K_S --calib {calibration}"));
    assert_eq!(report["formats"], serde_json::json!({"F32": 17, "Q2_K": 56, "Q4_K": 1, "Q6_K": 1}));
    let (plain, calibrated) = (run("Q4_0"), run(&format!("Q4_0 --calib {calibration}")));
    assert!(plain["formats"].get("Q4_1").is_none());
    assert_eq!(calibrated["formats"]["Q4_1"], 1);
    // What they are read in does not matter.
    let once = fs::read(&out).unwrap();
    run(&format!("Q4_0 --calib {calibration} --threads 1"));
    assert!(fs::read(&out).unwrap() == once);
    let wrong = folder.file("wrong.jsonl", "{\"tokens\": [300]}\n");
    assert_fails(&graftwork(&format!("quantize {base} {out} --to Q4_0 --calib {wrong}")), "300");
    assert!(fs::read(&out).unwrap() == once);
}

#[test]
fn what_cannot_be_quantized_is_named() {
    let folder = Folder::new("not-quantized");
    let (base, out) = (model(&folder, "F16", RAGGED), folder.path("out.gguf"));
    for line in ["quantize", "quantize in.gguf", "quantize in.gguf out.gguf", "quantize in out --to Q4_2"] {
        let output = graftwork(line);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""), "{line}");
    }
    let wrong = graftwork("quantize in out --to Q4_2");
    assert!(text(&wrong.stderr).contains("expected one of F32, F16, BF16, Q4_0"), "{wrong:?}");
    let run = |rest: &str| graftwork(&format!("quantize {rest}"));
    assert_fails(&run(&format!("nope {out} --to Q8_0")), "nope: no such file");
    assert_fails(
        &run(&format!("{base} {base} --to Q8_0")),
        "expected another place than what is read, found what is read",
    );
    assert_fails(&run(&format!("{base} {} --to Q8_0", folder.0.display())), "expected a file to write");
    assert_fails(&run(&format!("{base} {} --to Q8_0", folder.path("no/folder"))), "no/folder: ");
    assert_fails(&run(&format!("{base} {out} --to Q2_K_S")), "Q2_K_S: expected a calibration text");

    let file = fs::read(&base).unwrap();
    let with = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut changed = file.clone();
        change(&mut changed);
        let path = folder.path(name);
        fs::write(&path, changed).unwrap();
        path
    };
    let at = |part: &[u8]| file.windows(part.len()).position(|window| window == part).unwrap();
    let other = with("other.gguf", &|file| file[at(b"llama")..][..5].copy_from_slice(b"mamba"));
    assert_fails(&run(&format!("{other} {out} --to Q8_0")), "`general.architecture`: expected llama");
    // The last value of the last tensor, before the padding that it has none of.
    let nan = with("nan.gguf", &|file| file.iter_mut().rev().take(2).for_each(|byte| *byte = 0x7f));
    assert_fails(&run(&format!("{nan} {out} --to F32")), "output.weight: row 299: expected values that");
    assert!(!Path::new(&out).exists() && !Path::new(&format!("{out}.partial")).exists());
}
