//! What is written as a PEFT directory is read back as it was.

use std::fs;
use std::path::{Path, PathBuf};

use graftwork_adapters::combine::{Method, Options, combine};
use graftwork_adapters::{Adapter, Change, Kind, Site, write_peft};
use graftwork_kernels::{Format, Tensor};

fn golden(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "golden", name].iter().collect()
}

/// A place for one test, empty.
fn place(name: &str) -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("peft_write_{name}"));
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(&place).unwrap();
    place
}

/// Equal edits, of tensors in the formats that files have.
fn same(what: &str, found: &Adapter, expected: &Adapter) {
    assert_eq!(found.edits.len(), expected.edits.len(), "{what}");
    for (found, expected) in found.edits.iter().zip(&expected.edits) {
        assert_eq!(found.site, expected.site, "{what}");
        let text = |change: &Change| format!("{change:?}");
        // Of bytes the text says all, of small adapters as of these.
        assert_eq!(text(&found.change), text(&expected.change), "{what}, {}", found.site);
        let tensors = found.change.tensors().into_iter().zip(expected.change.tensors());
        for (found, expected) in tensors {
            assert_eq!((found.format(), found.rows()), (expected.format(), expected.rows()), "{what}");
            assert_eq!(**found.bytes(), **expected.bytes(), "{what}");
        }
    }
    assert_eq!(
        (&found.base_model, &found.invocation),
        (&expected.base_model, &expected.invocation),
        "{what}"
    );
}

#[test]
fn every_kind_that_is_written_is_read_back() {
    let place = place("kinds");
    let names = [
        "lora",
        "lora_all",
        "lora_rslora",
        "lora_patterns",
        "lora_bias",
        "lora_embed_head",
        "lora_modules_to_save",
        "lora_trainable_tokens",
        "dora",
        "alora",
        "adalora",
        "ln_tuning",
        "ia3",
        "prompt_tuning",
        "p_tuning",
        "prefix_tuning",
        "resized",
        "hub_lora",
    ];
    for name in names {
        let adapter = Adapter::open(golden("adapters").join(name)).unwrap();
        let dir = place.join(name);
        write_peft(&adapter, &dir).unwrap_or_else(|error| panic!("{name}: {error}"));
        let found = Adapter::open(&dir).unwrap_or_else(|error| panic!("{name}: {error}"));
        same(name, &found, &adapter);
        let expected = if adapter.kind == Kind::AdaLora { Kind::Lora } else { adapter.kind };
        assert_eq!(found.kind, expected);
        assert_eq!(found.text.is_some(), adapter.text.is_some());
    }
}

#[test]
fn combined_adapters_are_read_back() {
    let place = place("combined");
    let adapters =
        ["first", "second", "third"].map(|name| Adapter::open(golden("combine").join(name)).unwrap());
    let weighted: Vec<(&Adapter, f32)> = adapters.iter().zip([0.7, -0.4, 1.1]).collect();
    for &(method, name) in Method::ALL {
        let density = method.prunes().then_some(0.3);
        let sum = combine(&weighted, &Options { density, ..Options::new(method) }).unwrap();
        write_peft(&sum, &place.join(name)).unwrap();
        same(name, &Adapter::open(place.join(name)).unwrap(), &sum);
    }
}

#[test]
fn factors_that_differ_by_layer_are_named_apart() {
    let place = place("apart");
    let mut adapter = Adapter::open(golden("adapters").join("ia3")).unwrap();
    // down_proj of the last layer as a factor of outputs.
    let last =
        adapter.edits.iter_mut().rfind(|edit| matches!(edit.change, Change::InputScale { .. })).unwrap();
    let values: Vec<f32> = (0..128).map(|i| 1.0 + 0.01 * i as f32).collect();
    last.change = Change::OutputScale { values: Tensor::encode(Format::F32, 1, 128, &values).unwrap() };
    write_peft(&adapter, &place.join("ia3")).unwrap();
    same("ia3", &Adapter::open(place.join("ia3")).unwrap(), &adapter);
    let config = fs::read_to_string(place.join("ia3/adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let names = |field: &str| config[field].as_array().unwrap().clone();
    let down = |layer: usize| serde_json::Value::from(format!("model.layers.{layer}.mlp.down_proj"));
    assert_eq!(names("feedforward_modules"), [down(0), down(1)]);
    assert!(names("target_modules").contains(&down(2)));
}

#[test]
fn what_files_do_not_say_is_refused_by_name() {
    let place = place("refused");
    let open = |name: &str| Adapter::open(golden("adapters").join(name)).unwrap();
    let mut order = open("lora");
    order.row_order = graftwork_adapters::RowOrder::Gguf;
    let mut some = open("dora");
    if let Change::LowRank { magnitude, .. } = &mut some.edits[3].change {
        *magnitude = None;
    }
    let mut replaced = open("lora_modules_to_save");
    replaced.edits.retain(|edit| !matches!(edit.change, Change::LowRank { .. }));
    let mut empty = open("lora");
    empty.edits.clear();
    let mut nan = open("lora");
    if let Change::LowRank { a, .. } = &mut nan.edits[0].change {
        *a = Tensor::encode(Format::F32, a.rows(), a.cols(), &vec![f32::NAN; a.rows() * a.cols()]).unwrap();
    }
    let cases = [
        (open("loha"), "writing adapters of kind loha"),
        (open("shira"), "writing adapters of kind shira"),
        (order, "rows in the order of GGUF"),
        (some, "the update without a magnitude"),
        (replaced, "LoRAs of peft have A and B"),
        (empty, "holds no tensors"),
        (nan, "found NaN"),
    ];
    for (adapter, expected) in cases {
        let error = write_peft(&adapter, &place.join("out")).unwrap_err().to_string();
        assert!(error.contains(expected), "expected {expected} in: {error}");
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0, "{expected}: nothing is left");
    }
}

#[test]
fn an_earlier_adapter_is_replaced_and_nothing_else() {
    let place = place("places");
    let open = |name: &str| Adapter::open(golden("adapters").join(name)).unwrap();
    let dir = place.join("out");
    fs::create_dir(&dir).unwrap();
    write_peft(&open("lora"), &dir).unwrap();
    // A slash at the end, and what an interrupted write has left.
    fs::create_dir(place.join("out.partial")).unwrap();
    fs::write(place.join("out.partial/adapter_config.json"), "{").unwrap();
    write_peft(&open("ia3"), &place.join("out/")).unwrap();
    same("ia3", &Adapter::open(&dir).unwrap(), &open("ia3"));
    assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
    fs::write(dir.join("optimizer.pt"), "theirs").unwrap();
    let error = write_peft(&open("lora"), &dir).unwrap_err().to_string();
    assert!(error.ends_with("found optimizer.pt in it"), "{error}");
    same("ia3", &Adapter::open(&dir).unwrap(), &open("ia3"));
    let file = place.join("file");
    fs::write(&file, "theirs").unwrap();
    assert!(write_peft(&open("lora"), &file).is_err());
    assert_eq!(fs::read(&file).unwrap(), b"theirs");
    assert!(write_peft(&open("lora"), Path::new("/")).is_err());
    assert!(write_peft(&open("lora"), &place.join("none/out")).is_err());
    assert!(open("lora").edits.iter().all(|edit| edit.site != Site::Head));
}
