//! safetensors and Hugging Face directories: equal to the `safetensors` crate on valid files, stricter on others.

use std::collections::HashMap;

use graftwork_adapters::file::{
    Dtype, HfModel, Safetensors, Source, TensorFile, TensorView, write_safetensors,
};
use graftwork_kernels::{Bytes, Format};
use safetensors::tensor::{Dtype as TheirDtype, TensorView as TheirView};

fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..count).map(|_| next()).collect()
}

/// A header and as many bytes of data.
fn file(header: &str, data: usize) -> Bytes {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(bytes(1, data));
    Bytes::new(out)
}

fn error(header: &str, data: usize) -> String {
    Safetensors::parse(file(header, data)).expect_err(header).to_string()
}

#[test]
fn agrees_with_the_safetensors_crate() {
    let data = bytes(3, 96);
    let ours = [
        ("z.weight", Dtype::F16, vec![4, 6], 0..48),
        ("a.weight", Dtype::F32, vec![5], 48..68),
        ("half", Dtype::BF16, vec![1, 2], 68..72),
        ("ids", Dtype::I32, vec![1, 2], 72..80),
        ("long", Dtype::I64, vec![2], 80..96),
        ("none", Dtype::F32, vec![0, 7], 0..0),
        ("scalar", Dtype::F32, vec![], 0..4),
    ];
    let views: Vec<_> = ours
        .iter()
        .map(|(name, dtype, shape, range)| TensorView {
            name,
            dtype: *dtype,
            shape,
            bytes: &data[range.clone()],
        })
        .collect();
    let mut written = Vec::new();
    write_safetensors(&mut written, &views, &[("format", "pt")]).unwrap();

    // Ours written, theirs read.
    let theirs = safetensors::SafeTensors::deserialize(&written).unwrap();
    assert_eq!(theirs.len(), ours.len());
    for (name, dtype, shape, range) in &ours {
        let view = theirs.tensor(name).unwrap();
        assert_eq!(format!("{:?}", view.dtype()), format!("{dtype:?}"));
        assert!(view.shape().iter().map(|&dim| dim as u64).eq(shape.iter().copied()));
        assert_eq!(view.data(), &data[range.clone()]);
    }

    // Theirs written, ours read.
    let theirs: Vec<(&str, TheirView<'_>)> = theirs.iter().collect();
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let written = safetensors::serialize(theirs, Some(metadata)).unwrap();
    let read = Safetensors::parse(Bytes::new(written)).unwrap();
    assert_eq!(read.metadata().get("format").map(String::as_str), Some("pt"));
    assert_eq!(read.tensors().len(), ours.len());
    for (name, dtype, shape, range) in &ours {
        let info = read.tensors().get(name).unwrap();
        assert_eq!((info.dtype, &info.shape), (*dtype, shape));
        assert_eq!(*info.bytes, data[range.clone()]);
    }
    let matrix = read.require("z.weight").unwrap();
    assert_eq!((matrix.format(), matrix.rows(), matrix.cols()), (Format::F16, 4, 6));
    let row = read.require("a.weight").unwrap();
    assert_eq!((row.format(), row.rows(), row.cols()), (Format::F32, 1, 5));
    assert_eq!(read.require("scalar").unwrap().cols(), 1);
    assert_eq!(read.tensor("ids").unwrap_err().to_string(), "tensor ids: type I32 is not supported");
    let ids: Vec<i64> =
        data[72..80].chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()).into()).collect();
    assert_eq!(read.tensors().get("ids").unwrap().integers(), Some(ids));
}

#[test]
fn knows_every_type_of_the_crate() {
    for dtype in Dtype::ALL {
        let theirs: TheirDtype = serde_json::from_str(&format!("\"{dtype}\"")).unwrap();
        assert_eq!(theirs.bitsize() as u64, dtype.bits(), "{dtype}");
    }
}

#[test]
fn refuses_malformed_files() {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    assert!(Safetensors::parse(file(&one("F32", "[2]", "[0,8]"), 8)).is_ok());
    assert_eq!(
        error(&one("F32", "[2]", "[0,8]"), 7),
        "tensor t: expected its data within the 7 bytes of data, found bytes 0 to 8"
    );
    assert_eq!(
        error(&one("F32", "[2]", "[0,8]"), 9),
        "bytes of data that belong to tensors: expected at most 8, found 9"
    );
    assert_eq!(
        error(&one("F32", "[2]", "[1,9]"), 9),
        "tensor t: expected data that starts at byte 0, found a gap up to byte 1"
    );
    assert!(error(&one("F32", "[2]", "[8,0]"), 8).contains("tensor t: "));
    assert_eq!(
        error(&one("F32", "[3]", "[0,8]"), 8),
        "tensor t: expected 12 bytes for F32 [3], found 8 bytes"
    );
    assert!(
        error(&one("F32", "[9223372036854775807,3]", "[0,8]"), 8)
            .contains("tensor t: expected a size of whole bytes below 2^64")
    );
    assert!(error(&one("F4", "[3]", "[0,1]"), 1).contains("tensor t: expected a size of whole bytes"));
    assert!(error(&one("F33", "[2]", "[0,8]"), 8).contains("tensor t: unknown dtype F33"));
    assert!(error(&one("F32", "[-2]", "[0,8]"), 8).contains("tensor t: invalid value"));
    assert!(error(&one("F32", "2", "[0,8]"), 8).contains("tensor t: invalid type"));
    assert!(
        error(r#"{"t":{"dtype":"F32","shape":[2]}}"#, 8).contains("tensor t: missing field `data_offsets`")
    );
    assert!(error("[1]", 0).contains("expected a map of tensors"));
    assert!(error(r#"{} x"#, 0).contains("trailing characters"));
    assert!(error(&format!(r#"{{"t":{}"#, "[".repeat(500)), 0).contains("expected valid JSON"));
    assert!(error(r#"{"__metadata__":{"a":1}}"#, 0).contains("expected a string"));
    assert_eq!(
        error(r#"{"__metadata__":{"a":"1","a":"2"}}"#, 0),
        "expected unique names, found two of key a"
    );
    let two = |a: &str, b: &str, second: &str| {
        let entry =
            |name: &str, at: &str| format!(r#""{name}":{{"dtype":"F32","shape":[2],"data_offsets":{at}}}"#);
        format!("{{{},{}}}", entry("t", a), entry(second, b))
    };
    assert_eq!(error(&two("[0,8]", "[8,16]", "t"), 16), "expected unique names, found two of tensor t");
    assert_eq!(
        error(&two("[0,8]", "[4,12]", "u"), 12),
        "tensors t and u: expected separate bytes, found an overlap at byte 4"
    );
    assert_eq!(
        error(&two("[8,16]", "[0,8]", "u"), 8),
        "tensor t: expected its data within the 8 bytes of data, found bytes 8 to 16"
    );

    let parse = |bytes: &[u8]| Safetensors::parse(Bytes::new(bytes.to_vec())).unwrap_err().to_string();
    assert_eq!(parse(b"abc"), "the length of the safetensors header at byte 0: expected 8 bytes, found 3");
    assert_eq!(parse(&100u64.to_le_bytes()), "the safetensors header at byte 8: expected 100 bytes, found 0");
    assert!(
        parse(&u64::MAX.to_le_bytes()).starts_with("bytes of safetensors header: expected at most 100000000")
    );
    assert!(parse(&[&2u64.to_le_bytes()[..], &[0xff, 0xff]].concat()).contains("expected valid JSON"));
}

#[test]
fn the_writer_refuses_wrong_sizes_and_names() {
    let view = |name, count| TensorView { name, dtype: Dtype::F32, shape: &[2], bytes: &[1; 16][..count] };
    let message =
        |views: &[TensorView<'_>]| write_safetensors(&mut Vec::new(), views, &[]).unwrap_err().to_string();
    assert_eq!(message(&[view("x", 7)]), "cannot write tensor x: 7 bytes are not F32 [2]");
    assert_eq!(message(&[view("x", 8), view("x", 8)]), "expected unique names, found two of tensor x");
}

fn weights(names: &[&str]) -> Bytes {
    let data = bytes(7, 8);
    let views: Vec<_> = names
        .iter()
        .map(|name| TensorView { name, dtype: Dtype::F16, shape: &[2, 2], bytes: &data })
        .collect();
    let mut out = Vec::new();
    write_safetensors(&mut out, &views, &[]).unwrap();
    Bytes::new(out)
}

fn model(files: &[(&str, Bytes)]) -> Result<HfModel, String> {
    let files = files.iter().map(|(name, bytes)| (name.to_string(), bytes.clone())).collect();
    HfModel::load(&Source::files(files).unwrap()).map_err(|error| error.to_string())
}

fn json(text: &str) -> Bytes {
    Bytes::new(text.as_bytes().to_vec())
}

#[test]
fn directories_hold_one_file_or_shards() {
    let config = ("config.json", json(r#"{"model_type": "llama", "rope": {"theta": 10000.0}}"#));
    let single = model(&[
        config.clone(),
        ("model.safetensors", weights(&["a", "b"])),
        ("chat_template.jinja", json("{{ x }}")),
        ("tokenizer_config.json", json(r#"{"bos_token": "<s>"}"#)),
    ])
    .unwrap();
    assert_eq!(single.config["model_type"], "llama");
    assert_eq!(single.chat_template.as_deref(), Some("{{ x }}"));
    assert!(single.tokenizer.is_none() && single.tokenizer_config.is_some());
    assert_eq!(single.weights.names(), ["a", "b"]);

    let index = |text: &str| ("model.safetensors.index.json", json(text));
    let shards = [("one.safetensors", weights(&["a", "b"])), ("two.safetensors", weights(&["c"]))];
    let with = |text: &str| model(&[&[config.clone(), index(text)], &shards[..]].concat());
    let sharded = with(
        r#"{"metadata": {"total_size": 24},
            "weight_map": {"c": "two.safetensors", "a": "one.safetensors", "b": "one.safetensors"}}"#,
    )
    .unwrap();
    assert_eq!(sharded.weights.names(), ["a", "b", "c"]);
    assert_eq!(sharded.weights.shape("c"), Some(vec![2, 2]));
    assert_eq!(sharded.weights.require("c").unwrap().rows(), 2);

    let refused = |text: &str| with(text).unwrap_err();
    for name in ["../one.safetensors", "/etc/passwd", "x/y", r"..\\x", "C:x", "", ".", ".."] {
        let message = refused(&format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#));
        assert!(message.contains("key weight_map of a: expected the plain name of a file"), "{message}");
    }
    assert!(
        refused(r#"{"weight_map": {"a": "three.safetensors"}}"#).contains("expected file three.safetensors")
    );
    assert!(
        refused(r#"{"weight_map": {"x": "one.safetensors"}}"#).contains("one.safetensors: expected tensor x")
    );
    assert!(refused(r#"{"weight_map": {"a": 1}}"#).contains("expected a string"));
    assert!(
        refused(r#"{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}"#)
            .contains("tensor a twice")
    );
    assert!(refused(r#"{"weight_map": {}, "weight_map": {}}"#).contains("weight_map occurs twice"));
    assert!(refused("{}").contains("missing field `weight_map`"));
    assert!(
        model(std::slice::from_ref(&config))
            .unwrap_err()
            .contains("expected file model.safetensors or model.safetensors.index.json")
    );
    assert!(
        model(&[("model.safetensors", weights(&["a"]))]).unwrap_err().contains("expected file config.json")
    );
    assert!(
        model(&[("config.json", json(r#"{"a":1,"a":2}"#))])
            .unwrap_err()
            .contains("config.json: expected valid JSON")
    );
    assert!(model(&[("config.json", json("[]"))]).unwrap_err().contains("no object"));
}

#[test]
fn directories_load_from_disk() {
    let base = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/adapters/base");
    for source in [Source::from(base), Source::copied(base)] {
        let model = HfModel::load(&source).unwrap();
        assert_eq!(model.config["hidden_size"], 128);
        assert_eq!(model.weights.names().len(), 30);
        let norm = model.weights.require("model.norm.weight").unwrap();
        assert_eq!((norm.rows(), norm.cols()), (1, 128));
        assert!(norm.decode().unwrap().iter().all(|x| x.is_finite() && *x != 0.0));
        assert_eq!(model.weights.shape("lm_head.weight"), Some(vec![512, 128]));
    }
    assert!(
        HfModel::load(&Source::from("no/such/directory")).unwrap_err().to_string().contains("config.json")
    );
}
