//! `merge`, `diff`, `port` and `restore`: what is written, what is reported, what is refused.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::{BASE, Folder, LORA, LORA_ALL, PROMPT, assert_fails, graftwork, json_lines, results, text};

/// The logits of a model with adapters.
fn logits(folder: &Folder, model: &str, adapters: &str) -> Vec<f32> {
    let out = folder.path("logits");
    results(&graftwork(&format!("logits -m {model} {adapters} --tokens 1,5,17,300 --out {out}")));
    let file = graftwork_adapters::file::Safetensors::open(&out).unwrap();
    let bytes = &file.tensors().get("logits").unwrap().bytes;
    bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |worst, (a, b)| worst.max((a - b).abs()))
}

#[test]
fn adapters_become_part_of_models() {
    let folder = Folder::new("merge");
    let (directory, file) = (folder.path("merged"), folder.path("merged.GGUF"));
    let expected = logits(&folder, BASE, &format!("-a {LORA}:0.5 -a {LORA_ALL}"));
    for out in [&directory, &file] {
        let line = format!("merge -m {BASE} -a {LORA}:0.5 -a {LORA_ALL} -o {out}");
        let report = json_lines(results(&graftwork(&format!("{line} --json")))).remove(0);
        let changed = report["tensors"].as_array().unwrap().iter().filter(|t| !t["change"].is_null());
        assert_eq!(changed.count(), 21);
        assert!(worst(&logits(&folder, out, ""), &expected) < 2e-4);
    }
    let small = folder.path("small.gguf");
    let output = graftwork(&format!("merge -m {BASE} -a {LORA}:0.01 --to Q4_0 -o {small}"));
    assert!(results(&output).contains("6 of 30 tensors changed"), "{output:?}");
    assert!(text(&output.stderr).contains("Q4_0 loses more than the adapters change"), "{output:?}");

    assert_fails(
        &graftwork(&format!("merge -m {BASE} -a {LORA} -o {directory}")),
        "expected a new directory",
    );
    let refused = graftwork(&format!("merge -m {BASE} -a {PROMPT} -o {}", folder.path("no.gguf")));
    assert_fails(&refused, "prompt_tuning: merging prompt_tuning at prompt is not supported");
    for line in [
        format!("merge -m {BASE} -o x.gguf"),
        format!("merge -a {LORA} --to Q4_0 -o x.gguf"),
        format!("merge -m {BASE} -a {LORA} --method ties -o x.gguf"),
        format!("merge -a {LORA} --method nonsense -o x"),
    ] {
        let output = graftwork(&line);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""), "{line}");
    }
}

#[test]
fn adapters_become_one() {
    let folder = Folder::new("combine");
    let out = folder.path("both");
    let line = format!("merge -a {LORA}:0.5 -a {LORA_ALL}:2 --method cat -o {out}");
    let report = json_lines(results(&graftwork(&format!("{line} --json")))).remove(0);
    assert_eq!(
        (&report["kind"], &report["method"], &report["edits"]),
        (&json!("lora"), &json!("cat"), &json!(21))
    );
    let [one, both] = [format!("-a {out}"), format!("-a {LORA}:0.5 -a {LORA_ALL}:2")];
    assert!(worst(&logits(&folder, BASE, &one), &logits(&folder, BASE, &both)) < 2e-4);
    // Again, over what it wrote before.
    assert!(results(&graftwork(&line)).contains("lora, 21 changes"));
    let error = graftwork(&format!("merge -a {LORA} -a {LORA_ALL} --method ties -o {}", folder.path("no")));
    assert_fails(&error, "density");
    assert_fails(&graftwork(&format!("merge -a {LORA} -a {PROMPT} -o {}", folder.path("no"))), "kind");
}

#[test]
fn changes_are_taken_out_moved_and_undone() {
    let folder = Folder::new("algebra");
    let path = |name: &str| folder.path(name);
    let [tuned, delta, ported, patch, restored, back, undone] =
        ["tuned", "delta", "ported", "patch", "restored", "back", "undone"].map(path);
    results(&graftwork(&format!("merge -m {BASE} -a {LORA_ALL} -o {tuned}")));
    // diff: the LoRA again, in its rank.
    let report = json_lines(results(&graftwork(&format!("diff {BASE} {tuned} -o {delta} --json")))).remove(0);
    let matrices = report["matrices"].as_array().unwrap();
    assert_eq!((matrices.len(), &report["unchanged"], &report["carried"]), (21, &json!(0), &json!({})));
    assert!(matrices.iter().all(|m| m["form"] == "rank 5, F16"), "{report}");
    assert!(worst(&logits(&folder, BASE, &format!("-a {delta}")), &logits(&folder, &tuned, "")) < 2e-2);
    assert!(
        results(&graftwork(&format!("diff {BASE} {tuned} -o {delta}"))).contains("21 of 21 matrices changed")
    );
    assert_fails(
        &graftwork(&format!("diff {BASE} {BASE} -o {delta}")),
        "expected weights other than the base's",
    );

    // port: over the drift that the LoRA is.
    let output = graftwork(&format!("port --from {BASE} --to {tuned} {LORA} -o {ported}"));
    assert!(results(&output).contains("the farthest of 30 tensors"), "{output:?}");
    assert!(text(&output.stderr).starts_with("warning: "), "{output:?}");
    let output =
        graftwork(&format!("port --from {BASE} --to {tuned} {LORA} -o {} --warn 9 --json", path("ported-2")));
    let report = json_lines(results(&output)).remove(0);
    assert_eq!((&report["far"], &report["rebased"], text(&output.stderr)), (&json!([]), &json!(0), ""));
    assert_eq!(report["tensors"].as_array().unwrap().len(), 30);
    assert_fails(
        &graftwork(&format!("port --from {BASE} --to {tuned} {LORA} -o {ported}")),
        "expected nothing of that name",
    );
    let other = "tests/golden/architectures/llama_yarn";
    assert_fails(
        &graftwork(&format!("port --from {BASE} --to {other} {LORA} -o {}", path("no"))),
        "new base: ",
    );

    // restore, and back.
    let line = format!("restore --aligned {BASE} -m {tuned} --rate 0.05 -o {patch}");
    assert!(results(&graftwork(&line)).contains("weights restored, |A - W| from"));
    results(&graftwork(&format!("merge -m {tuned} -a {patch} -o {restored}")));
    results(&graftwork(&format!("restore --rollback {patch} -o {back}")));
    results(&graftwork(&format!("merge -m {restored} -a {back} -o {undone}")));
    let weights = |folder: &str| fs::read(Path::new(folder).join("model.safetensors")).unwrap();
    assert!(weights(&tuned) == weights(&undone) && weights(&tuned) != weights(&restored));
    let adapted = logits(&folder, &tuned, &format!("-a {patch}"));
    assert!(worst(&adapted, &logits(&folder, &restored, "")) < 2e-4);
    let text_of = graftwork(&format!("inspect {patch} --base {tuned}"));
    assert!(results(&text_of).contains("entries overwritten"), "{text_of:?}");
    for line in [
        format!("restore --aligned {BASE} --rate 0.1 -o x"),
        format!("restore --aligned {BASE} -m {tuned} -o x"),
        format!("restore --rollback {patch} --rate 0.1 -o x"),
        "restore -o x".to_owned(),
    ] {
        assert_eq!(graftwork(&line).status.code(), Some(2), "{line}");
    }
    assert_fails(
        &graftwork(&format!("restore --rollback {delta} -o {}", path("no"))),
        "holds no values to go back to",
    );
}

/// Nothing that is read is written over.
#[test]
fn inputs_stay() {
    let folder = Folder::new("inputs");
    let [tuned, delta, file] = ["tuned", "tuned.delta", "base.gguf"].map(|name| folder.path(name));
    results(&graftwork(&format!("merge -m {BASE} -a {LORA_ALL} -o {tuned}")));
    results(&graftwork(&format!("merge -m {BASE} -a {LORA_ALL}:0 -o {file}")));
    results(&graftwork(&format!("diff {BASE} {tuned} -o {delta}")));
    let lora = folder.path("lora");
    results(&graftwork(&format!("merge -a {LORA} -o {lora}")));
    let weights = format!("{tuned}/model.safetensors");
    let digest = || {
        [&weights, &delta, &file, &format!("{lora}/adapter_model.safetensors")]
            .map(|path| fs::read(path).unwrap())
    };
    let before = digest();
    for line in [
        format!("diff {file} {tuned} -o {file}"),
        format!("diff {BASE} {tuned} -o {weights}"),
        format!("diff {BASE} {tuned} -o {tuned}"),
        format!("compress --base {file} --tuned {tuned} -o {file}"),
        format!("restore --aligned {BASE} -m {file} --rate 0.1 -o {file}"),
        format!("restore --aligned {tuned} -m {BASE} --rate 0.1 -o {weights}"),
        format!(
            "restore --aligned {BASE} -m {tuned} -a {lora} --rate 0.1 -o {lora}/adapter_model.safetensors"
        ),
        format!("restore --rollback {delta} -o {delta}"),
        format!("merge -m {BASE} -a {delta} -o {tuned}"),
        format!("merge -m {file} -a {lora} -o {file}"),
        format!("merge -a {lora} -a {LORA_ALL} --method cat -o {lora}"),
        format!("port --from {BASE} --to {tuned} {lora} -o {lora}"),
        format!("quantize {file} {file} --to Q8_0"),
        format!("quantize {tuned} {weights} --to Q8_0"),
    ] {
        let output = graftwork(&line);
        assert_eq!(output.status.code(), Some(1), "{line}: {output:?}");
        assert!(text(&output.stderr).contains("expected "), "{line}: {output:?}");
        assert!(digest() == before, "{line}");
    }
}
