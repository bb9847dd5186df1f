//! `verify`: what agrees with transformers, what does not, and where.

use std::fs;

use graftwork::{Engine, EngineOptions};
use graftwork_adapters::file::safetensors::{Dtype, Safetensors, TensorView, write_safetensors};
use serde_json::Value;

use crate::{BASE, Folder, LORA_ALL, assert_fails, command, graftwork, json_lines, results, text};

const GOLDEN: &str = "tests/golden/verify";
/// A LoRA of all layers but the first.
const LATE: &str = "tests/golden/verify/late";
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A tensor to write.
struct Owned {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

/// The tensors of a golden reference.
fn tensors(name: &str) -> Vec<Owned> {
    let file = Safetensors::open(format!("{ROOT}/{GOLDEN}/{name}.safetensors")).unwrap();
    let owned = |(name, info): (&str, &graftwork_adapters::file::safetensors::TensorInfo)| Owned {
        name: name.to_owned(),
        dtype: info.dtype,
        shape: info.shape.clone(),
        bytes: info.bytes.to_vec(),
    };
    file.tensors().iter().map(owned).collect()
}

fn write(path: &str, tensors: &[Owned]) {
    let view = tensors.iter().map(|t| TensorView {
        name: &t.name,
        dtype: t.dtype,
        shape: &t.shape,
        bytes: &t.bytes,
    });
    let views: Vec<TensorView<'_>> = view.collect();
    write_safetensors(&mut fs::File::create(path).unwrap(), &views, &[]).unwrap();
}

fn values(name: &str, shape: &[usize], values: &[f32]) -> Owned {
    let shape = shape.iter().map(|&dim| dim as u64).collect();
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    Owned { name: name.to_owned(), dtype: Dtype::F32, shape, bytes }
}

/// The adapter in a folder of its own, with its alpha a tenth larger.
fn louder(folder: &Folder, adapter: &str) -> String {
    let path = folder.path(&format!("{}-louder", adapter.rsplit('/').next().unwrap()));
    fs::create_dir_all(&path).unwrap();
    let read = |name: &str| fs::read(format!("{ROOT}/{adapter}/{name}")).unwrap();
    let mut config: Value = serde_json::from_slice(&read("adapter_config.json")).unwrap();
    config["lora_alpha"] = (config["lora_alpha"].as_f64().unwrap() * 1.1).into();
    fs::write(format!("{path}/adapter_config.json"), config.to_string()).unwrap();
    fs::write(format!("{path}/adapter_model.safetensors"), read("adapter_model.safetensors")).unwrap();
    path
}

/// What `--json` says, and the exit status.
fn verify(model: &str, adapter: &str, reference: &str) -> (Value, Option<i32>) {
    let mut command = command(["verify", "--json", "--threads", "1", "-m", model, "--reference", reference]);
    if !adapter.is_empty() {
        command.args(["-a", adapter]);
    }
    let output = command.output().unwrap();
    let lines = json_lines(text(&output.stdout));
    assert_eq!(lines.len(), 1, "{output:?}");
    (lines[0].clone(), output.status.code())
}

fn golden(name: &str) -> String {
    format!("{GOLDEN}/{name}.safetensors")
}

#[test]
fn adapters_that_agree_with_transformers() {
    for (adapter, name) in [(LORA_ALL, "lora_all"), (LATE, "late"), ("tests/golden/adapters/dora", "dora")] {
        let line = format!("verify -m {BASE} -a {adapter} --reference {}", golden(name));
        let output = graftwork(&line);
        let text = results(&output);
        assert!(text.ends_with("agrees (tolerance 0.001, 20 positions)\n"), "{text}");
        assert_eq!(text.lines().count(), 1 + 5 + 3, "{text}");
        let (report, status) = verify(BASE, adapter, &golden(name));
        assert_eq!((status, &report["agrees"], &report["first"]), (Some(0), &true.into(), &Value::Null));
        // References in F16 are off by what that rounds.
        let most = if name == "dora" { 4e-4 } else { 2e-6 };
        for stage in report["stages"].as_array().unwrap() {
            assert!(stage["largest"].as_f64().unwrap() < most, "{stage}");
        }
    }
}

/// One that a tenth too large an alpha makes louder is found, and the first layer that it changes is named.
#[test]
fn wrong_scales_are_found_where_they_start() {
    let folder = Folder::new("verify-scale");
    for (adapter, name, layer) in [(LORA_ALL, "lora_all", "layer 0"), (LATE, "late", "layer 1")] {
        let louder = louder(&folder, adapter);
        let (report, status) = verify(BASE, &louder, &golden(name));
        assert_eq!((status, report["first"].as_str()), (Some(1), Some(layer)), "{report}");
        let stages = report["stages"].as_array().unwrap();
        let first = stages.iter().find(|stage| stage["stage"] == layer).unwrap();
        let scale = first["contribution"]["scale"].as_f64().unwrap();
        assert!((scale - 1.1).abs() < 0.02, "{first}");

        let output = graftwork(&format!("verify -m {BASE} -a {louder} --reference {}", golden(name)));
        let stderr = text(&output.stderr);
        let expected = format!("diverges first at {layer}: the adapter adds 1.");
        assert!(output.status.code() == Some(1) && stderr.contains(&expected), "{stderr}");
        assert_eq!(stderr.lines().count(), 1);
        assert!(text(&output.stdout).contains("diverges first at"), "{output:?}");

        // Without hidden states only the logits are left; without the base, the values.
        let path = folder.path("part.safetensors");
        let part = |keep: fn(&str) -> bool| {
            write(&path, &tensors(name).into_iter().filter(|t| keep(&t.name)).collect::<Vec<_>>());
            let agrees = verify(BASE, adapter, &path).0["agrees"].as_bool();
            (agrees, verify(BASE, &louder, &path).0)
        };
        let (agrees, report) = part(|name| !name.contains("hidden"));
        let found = (agrees, report["first"].as_str(), report["stages"].as_array().unwrap().len());
        assert_eq!(found, (Some(true), Some("logits"), 1), "{report}");
        let (agrees, report) = part(|name| !name.contains("base"));
        assert_eq!((agrees, report["first"].as_str()), (Some(true), Some(layer)), "{report}");
        assert!(report["reason"].as_str().unwrap().starts_with("off by "), "{report}");
    }
    // No adapter, another, too much of it, and a tolerance that allows that.
    let turned = format!("{LATE}:-1");
    for (adapter, reason) in [
        ("", "no effect"),
        ("tests/golden/adapters/lora", "changes 20 positions"),
        (turned.as_str(), "off by 2"),
    ] {
        let (report, status) = verify(BASE, adapter, &golden("late"));
        assert_eq!(status, Some(1));
        assert!(report["reason"].as_str().unwrap().contains(reason), "{report}");
    }
    let line = format!("verify -m {BASE} -a {LATE}:1.1 --tolerance 0.2 --reference {}", golden("late"));
    assert!(results(&graftwork(&line)).contains("agrees (tolerance 0.2,"));
}

/// On quantized bases, whose rounding is larger than the difference: against the reference of the float base, and in Q4_1, whose weights
/// are others, against one of the same weights.
#[test]
fn rounding_is_told_from_wrong_scales() {
    let folder = Folder::new("verify-rounding");
    let [q8, q4, float] = ["q8.gguf", "q4.gguf", "float.gguf"].map(|name| folder.path(name));
    for (from, to, format) in [(BASE, &q8, "Q8_0"), (BASE, &q4, "Q4_1"), (&q4, &float, "F32")] {
        results(&graftwork(&format!("quantize {from} {to} --to {format}")));
    }
    let of_float = |adapter: &str, path: &str| {
        let options = EngineOptions { threads: 1, ..EngineOptions::default() };
        let engine = Engine::open(std::path::Path::new(&float), options).unwrap();
        engine.load_adapter("adapter", std::path::PathBuf::from(format!("{ROOT}/{adapter}"))).unwrap();
        let tokens: Vec<u32> = (0..60).map(|i| i * 97 % 509).collect();
        let ids = tokens.iter().flat_map(|&token| (token as i32).to_le_bytes()).collect();
        let mut all =
            vec![Owned { name: "tokens".to_owned(), dtype: Dtype::I32, shape: vec![1, 60], bytes: ids }];
        for (prefix, stack) in [("", vec![("adapter".to_owned(), 1.0)]), ("base.", Vec::new())] {
            let mut states = vec![Vec::new(); 4];
            let logits =
                engine.hidden_states(&tokens, &stack, &mut |n, x| states[n].extend_from_slice(x)).unwrap();
            all.push(values(&format!("{prefix}hidden_states"), &[4, 1, 60, 128], &states.concat()));
            all.push(values(&format!("{prefix}logits"), &[1, 60, 512], &logits));
        }
        write(path, &all);
    };
    for (adapter, name, layer) in [(LORA_ALL, "lora_all", "layer 0"), (LATE, "late", "layer 1")] {
        let louder = louder(&folder, adapter);
        let same = folder.path("same.safetensors");
        of_float(adapter, &same);
        assert_eq!(verify(&float, adapter, &same).1, Some(0));
        for (model, reference) in [(&q8, &golden(name)), (&q4, &same)] {
            let (report, status) = verify(model, adapter, reference);
            assert_eq!(status, Some(0), "{report}");
            assert!(report["quantized"] == true && report["tolerance"] == 0.02, "{report}");
            let (report, status) = verify(model, &louder, reference);
            assert_eq!((status, report["first"].as_str()), (Some(1), Some(layer)), "{report}");
            // A value off by that much is nothing unusual.
            assert_eq!(verify(model, "", reference).1, Some(1));
        }
    }
}

#[test]
fn references_of_other_models_and_broken_ones() {
    let folder = Folder::new("verify-broken");
    let path = folder.path("reference.safetensors");
    let refused = |name: &str, change: &dyn Fn(&mut Owned), message: &str| {
        let mut all = tensors("late");
        change(all.iter_mut().find(|t| t.name == name).unwrap());
        all.retain(|t| !t.name.is_empty());
        write(&path, &all);
        let output = graftwork(&format!("verify -m {BASE} -a {LATE} --reference {path}"));
        assert_fails(&output, &format!("{path}: {message}"));
    };
    let set = |at: usize, bytes: [u8; 4]| move |t: &mut Owned| t.bytes[at * 4..][..4].copy_from_slice(&bytes);
    let shape = |shape: &'static [u64]| {
        move |t: &mut Owned| {
            t.shape = shape.to_vec();
            t.bytes.resize(shape.iter().product::<u64>() as usize * 4, 0);
        }
    };
    let gone = |t: &mut Owned| t.name.clear();
    let floats = |t: &mut Owned| t.dtype = Dtype::F32;
    let integers = |t: &mut Owned| t.dtype = Dtype::I32;
    refused("tokens", &gone, "expected tensor tokens, found none");
    refused("logits", &gone, "expected tensor logits, found none");
    refused("tokens", &floats, "tensor tokens: expected integers, found F32");
    refused(
        "tokens",
        &shape(&[20]),
        "tensor tokens: expected shape [sequences, positions], none of them 0, found [20]",
    );
    refused("tokens", &shape(&[2, 0]), "tensor tokens: expected shape");
    refused("tokens", &set(3, (-1i32).to_le_bytes()), "tensor tokens: expected ids of tokens, found -1");
    let message = "tensor tokens: expected ids below the model's 512, found 512 at [1, 3]";
    refused("tokens", &set(13, 512i32.to_le_bytes()), message);
    refused("logits", &integers, "tensor logits: expected F32, F16 or BF16, found I32");
    let message = "tensor logits: expected shape [2, 1 to 10, vocab], found [2, 11, 512]";
    refused("logits", &shape(&[2, 11, 512]), message);
    let message = "tensor logits: expected a vocabulary of 512 as the model's, found 511";
    refused("logits", &shape(&[2, 10, 511]), message);
    refused("base.logits", &shape(&[2, 10, 511]), &format!("tensor base.{}", &message["tensor ".len()..]));
    refused(
        "base.logits",
        &shape(&[2, 9, 512]),
        "tensor base.logits: expected 10 positions as logits has, found 9",
    );
    let message = "tensor hidden_states: expected shape [layers + 1, 2, 10, width], found [4, 2, 9, 128]";
    refused("hidden_states", &shape(&[4, 2, 9, 128]), message);
    let message = "tensor hidden_states: expected [4, sequences, positions, 128] as the model has, found [3, 2, 10, 128]";
    refused("hidden_states", &shape(&[3, 2, 10, 128]), message);
    refused("base.hidden_states", &shape(&[4, 2, 10, 64]), "tensor base.hidden_states: expected [4, ");
    let nan = f32::NAN.to_le_bytes();
    let at = ((2 * 2 + 1) * 10 + 7) * 128 + 5;
    let message = "tensor hidden_states: expected finite values, found NaN at [2, 1, 7, 5]";
    refused("hidden_states", &set(at, nan), message);
    refused(
        "base.hidden_states",
        &set(0, nan),
        "tensor base.hidden_states: expected finite values, found NaN at [0, 0, 0, 0]",
    );
    let message = "tensor logits: expected finite values, found -inf at [1, 9, 511]";
    refused("logits", &set(20 * 512 - 1, f32::NEG_INFINITY.to_le_bytes()), message);

    fs::write(&path, "{").unwrap();
    assert_fails(&graftwork(&format!("verify -m {BASE} --reference {path}")), "safetensors header");
    let output = graftwork(&format!("verify -m {BASE} --reference {path} --tolerance 0"));
    assert_eq!(output.status.code(), Some(2));
}
