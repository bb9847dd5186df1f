//! Deltas of other programs: the values that their formulas give, and whatever is wrong refused by name. The files come from
//! `tests/golden/deltas/make.py`.

use std::fs;
use std::path::PathBuf;

use graftwork_adapters::delta::{Coded, Delta, Part};
use graftwork_adapters::file::{Dtype, Safetensors, TensorView, Torch, write_safetensors};
use graftwork_adapters::{Adapter, Change, Kind, Site, Source};
use graftwork_kernels::{Bytes, Format};
use serde_json::{Value as Json, json};

fn golden(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "golden", "deltas", name].iter().collect()
}

/// What the script computed of each layer of a file.
fn expected(file: &str) -> serde_json::Map<String, Json> {
    let json: Json = serde_json::from_slice(&fs::read(golden("expected.json")).unwrap()).unwrap();
    json[file].as_object().unwrap().clone()
}

fn site(name: &str) -> Site {
    let modules = [("k_proj", "K"), ("down_proj", "Down"), ("q_proj", "Q"), ("v_proj", "V")];
    let layer = name.split('.').nth(2).unwrap().parse().unwrap();
    let module = modules.iter().find(|(hf, _)| name.ends_with(hf)).unwrap().1;
    let module = graftwork_adapters::Module::ALL.iter().find(|m| format!("{m:?}") == module).unwrap();
    Site::Linear { layer, module: *module }
}

/// Compares an adapter with what the script computed; gives the formats by layer.
fn check(adapter: &Adapter, file: &str) -> Vec<Format> {
    assert_eq!(adapter.kind, Kind::Delta);
    let layers = expected(file);
    assert_eq!(adapter.edits.len(), layers.len() + 1);
    let mut formats = Vec::new();
    for (name, values) in layers {
        let edit = adapter.edits.iter().find(|edit| edit.site == site(&name)).unwrap();
        let Change::Whole { matrix, scale } = &edit.change else { panic!("{name}: {:?}", edit.change) };
        formats.push(matrix.format());
        let shape = [matrix.rows(), matrix.cols()];
        assert_eq!(json!(shape), values["shape"], "{name}");
        let d: Vec<f64> = matrix
            .to_rows()
            .unwrap()
            .decode()
            .unwrap()
            .iter()
            .map(|x| f64::from(*scale) * f64::from(*x))
            .collect();
        let at = |o: usize, i: usize| d[o * shape[1] + i];
        let chosen = [at(0, 0), at(1, 2), at(shape[0] - 1, shape[1] - 1)];
        for (found, expected) in chosen.iter().zip(values["values"].as_array().unwrap()) {
            let expected = expected.as_f64().unwrap();
            // Products of a half and a small integer fit a single.
            assert_eq!(*found, expected, "{name}");
        }
        let sum: f64 = (0..d.len()).map(|j| d[j] * ((j / shape[1] + 2 * (j % shape[1])) as f64).sin()).sum();
        let expected = values["sum"].as_f64().unwrap();
        // The same values, added up in another order.
        assert!((sum - expected).abs() < 1e-9, "{name}: {sum} for {expected}");
    }
    assert!(
        adapter
            .edits
            .iter()
            .any(|edit| edit.site == Site::Norm && matches!(edit.change, Change::Replace { .. }))
    );
    formats
}

#[test]
fn bitdelta_is_read() {
    let path = golden("diff.pt");
    let folder = Source::files(vec![("diff.pt".to_owned(), Bytes::new(fs::read(&path).unwrap()))]).unwrap();
    for source in [Source::from(&path), Bytes::new(fs::read(&path).unwrap()).into(), folder] {
        let adapter = Adapter::open(source).unwrap();
        assert_eq!(check(&adapter, "diff.pt"), [Format::Sign; 2]);
        assert!(adapter.keys.iter().any(|key| key.tensor == "model.layers.2.mlp.down_proj.mask"));
    }
}

#[test]
fn deltazip_is_read() {
    for (bits, q, down) in [
        (2, Format::W2G128, Format::W2G32),
        (3, Format::W3G128, Format::W3G32),
        (4, Format::W8G128, Format::W8G32),
    ] {
        let name = format!("deltazip_{bits}bit");
        let (folder, file) = (golden(&name), golden(&name).join("deltazip-compressed.safetensors"));
        for source in [folder, file] {
            let adapter = Adapter::open(source).unwrap();
            assert_eq!(check(&adapter, &name), [q, down, Format::F16]);
            assert_eq!(adapter.base_model.as_deref(), Some("a/base"));
        }
    }
}

/// What was read can be kept in our file, and is the same there.
#[test]
fn imports_are_written_and_read() {
    let path = std::env::temp_dir().join(format!("graftwork-import-{}", std::process::id()));
    let file = fs::read(golden("deltazip_3bit/deltazip-compressed.safetensors")).unwrap();
    let deltas = [
        ("diff.pt", Delta::from_bitdelta(Bytes::new(fs::read(golden("diff.pt")).unwrap())).unwrap()),
        ("deltazip_3bit", Delta::from_deltazip(None, Bytes::new(file)).unwrap()),
    ];
    for (name, delta) in deltas {
        delta.write(&path).unwrap();
        let read = Delta::open(&path).unwrap();
        let Part::Whole { matrix, .. } = &read.layers[0].parts[0] else { panic!() };
        assert!(matches!(matrix, Coded::Strips(_)));
        check(&Adapter::open(&path).unwrap(), name);
        fs::remove_file(&path).unwrap();
    }
}

/// Tensors of a file, to be changed.
type Tensors = Vec<(String, Dtype, Vec<u64>, Vec<u8>)>;

fn bytes(tensors: &Tensors, metadata: &[(&str, &str)]) -> Bytes {
    let view = |(name, dtype, shape, bytes)| TensorView { name, dtype, shape, bytes };
    let views: Vec<_> = tensors.iter().map(|(n, d, s, b)| view((&n[..], *d, &s[..], &b[..]))).collect();
    let mut out = Vec::new();
    write_safetensors(&mut out, &views, metadata).unwrap();
    Bytes::new(out)
}

#[test]
fn what_is_wrong_in_bitdelta_is_named() {
    let file = Torch::open(golden("diff.pt")).unwrap();
    let whole: Tensors = file
        .tensors()
        .iter()
        .map(|(n, t)| (n.to_owned(), t.dtype, t.shape.clone(), t.bytes.to_vec()))
        .collect();
    // The same tensors as safetensors.
    check(&Adapter::open(bytes(&whole, &[])).unwrap(), "diff.pt");
    let (mask, coeff) = ("model.layers.0.self_attn.k_proj.mask", "model.layers.0.self_attn.k_proj.coeff");
    let refused = |change: &dyn Fn(&mut Tensors), expected: &[&str]| {
        let mut tensors = whole.clone();
        change(&mut tensors);
        let message = Adapter::open(bytes(&tensors, &[])).unwrap_err().to_string();
        assert!(expected.iter().all(|text| message.contains(text)), "{expected:?}: {message}");
    };
    let at = |tensors: &Tensors, name: &str| tensors.iter().position(|tensor| tensor.0 == name).unwrap();
    refused(&|t| drop(t.remove(at(t, coeff))), &[mask, coeff]);
    refused(&|t| drop(t.remove(at(t, mask))), &[mask, coeff]);
    refused(&|t| t[0].2 = vec![2, 2, 32], &["[_, _]", "[2, 2, 32]", "k_proj.mask"]);
    refused(&|t| t[0].1 = Dtype::F32, &[mask, "integers", "F32"]);
    refused(&|t| t[1].3 = f32::NAN.to_le_bytes().to_vec(), &[coeff, "finite"]);
    refused(&|t| t[1].1 = Dtype::I32, &[coeff, "I32"]);
    let of_norm = |t: &mut Tensors| {
        t[0].0 = "model.norm.mask".to_owned();
        t[1].0 = "model.norm.coeff".to_owned();
    };
    refused(&of_norm, &["model.norm.mask"]);
    refused(&|t| t[0].0 = "model.layers.0.self_attn.k_proj.A".to_owned(), &["k_proj.A"]);
    refused(&|t| t[4].0 = "model.layers.0.self_attn.k_proj.weight".to_owned(), &[mask, "k_proj.weight"]);
    refused(&|t| t[4].0 = "model.norm.bias".to_owned(), &["model.norm.bias"]);
}

#[test]
fn what_is_wrong_in_deltazip_is_named() {
    let folder = golden("deltazip_3bit");
    let file = Safetensors::open(folder.join("deltazip-compressed.safetensors")).unwrap();
    let whole: Tensors = file
        .tensors()
        .iter()
        .map(|(n, t)| (n.to_owned(), t.dtype, t.shape.clone(), t.bytes.to_vec()))
        .collect();
    let config: Json = serde_json::from_slice(&fs::read(folder.join("delta_config.json")).unwrap()).unwrap();
    let read = |config: &Json, tensors: &Tensors, metadata: &[(&str, &str)]| {
        Delta::from_deltazip(Some(config.to_string().as_bytes()), bytes(tensors, metadata))
    };
    read(&config, &whole, &[("format", "pt"), ("dtype", "{}")]).unwrap();
    let refused = |answer: Result<Delta, graftwork_adapters::Error>, expected: &[&str]| {
        let message = answer.unwrap_err().to_string();
        assert!(expected.iter().all(|text| message.contains(text)), "{expected:?}: {message}");
    };
    for (pointer, value, expected) in [
        ("/surprise", json!(1), &["delta_config.json", "surprise"][..]),
        ("/base_model", json!(1), &["base_model", "a text"]),
        ("/compress_config", json!(1), &["compress_config", "an object"]),
        ("/compress_config/surprise", json!(1), &["compress_config.surprise"]),
        ("/compress_config/bits", json!(5), &["compress_config.bits", "2, 3, 4 or 8", "5"]),
        ("/compress_config/bits", json!(2), &["q_proj.qweight", "codes of 2 bits", "[12, 128]"]),
        ("/compress_config/lossless", json!("gdeflate"), &["compress_config.lossless", "lossless = none"]),
        ("/compress_config/group_size", json!(128), &["compress_config.group_size", "-1", "128"]),
    ] {
        let mut config = config.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[key] = value;
        refused(read(&config, &whole, &[]), expected);
    }
    refused(read(&config, &whole, &[("dtype", "{\"a\": \"float16\"}")]), &["metadata key dtype", "lossless"]);

    let q = |what: &str| format!("model.layers.0.self_attn.q_proj.{what}");
    let at = |what: &str| whole.iter().position(|tensor| tensor.0 == q(what)).unwrap();
    let change = |change: &dyn Fn(&mut Tensors), expected: &[&str]| {
        let mut tensors = whole.clone();
        change(&mut tensors);
        refused(read(&config, &tensors, &[]), expected);
    };
    for what in ["qweight", "qzeros", "scales", "g_idx"] {
        change(&|t| drop(t.remove(at(what))), &[&q(what)]);
    }
    change(&|t| t[at("qweight")].2 = vec![128, 12], &["q_proj.qweight", "[128, 12]"]);
    change(&|t| t[at("qzeros")].2 = vec![12, 1], &["q_proj.qzeros", "[1, 12]", "[12, 1]"]);
    change(&|t| t[at("scales")].2 = vec![128], &["q_proj.scales", "[1, 128]", "[128]"]);
    change(&|t| t[at("scales")].1 = Dtype::BF16, &["q_proj.scales", "F16", "BF16"]);
    change(&|t| t[at("scales")].3[..2].copy_from_slice(&[0, 0x7c]), &["q_proj.scales", "finite", "inf"]);
    change(&|t| t[at("g_idx")].3[12] = 1, &["q_proj.g_idx", "0 for every input", "1 for input 3"]);
    change(&|t| t[at("g_idx")].2 = vec![32, 4], &["q_proj.g_idx", "[32, 4]"]);
    change(&|t| t[at("qweight")].0 = q("surprise"), &["q_proj.surprise"]);
    change(&|t| t[8].0 = q("weight"), &["q_proj.qweight", "q_proj.weight"]);
    // What every model of some versions has beside its weights changes nothing.
    let mut tensors = whole.clone();
    tensors.push((
        "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(),
        Dtype::F32,
        vec![1],
        vec![0; 4],
    ));
    read(&config, &tensors, &[]).unwrap();
}
