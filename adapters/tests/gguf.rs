//! GGUF: what the writer writes is what the reader reads, and every malformation is refused by name.

use graftwork_adapters::file::gguf::{Array, Value};
use graftwork_adapters::file::{Error, Gguf, GgufWriter, Source, TensorFile};
use graftwork_kernels::{Bytes, Format, Tensor};

/// Values in [-1, 1) from a linear congruential generator.
fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn keys() -> Vec<(&'static str, Value)> {
    let text = |text: &str| text.to_owned();
    vec![
        ("u8", Value::U8(200)),
        ("i8", Value::I8(-5)),
        ("u16", Value::U16(65_000)),
        ("i16", Value::I16(-30_000)),
        ("u32", Value::U32(4_000_000_000)),
        ("i32", Value::I32(-2_000_000_000)),
        ("f32", Value::F32(1.5e-30)),
        ("bool", Value::Bool(true)),
        ("str", Value::Str(text("größe \u{1f600}"))),
        ("u64", Value::U64(u64::MAX)),
        ("i64", Value::I64(i64::MIN)),
        ("f64", Value::F64(-1e300)),
        ("empty", Value::Array(Array::U8(vec![]))),
        ("bools", Value::Array(Array::Bool(vec![true, false, true]))),
        ("i8s", Value::Array(Array::I8(vec![-1, 2, -3]))),
        ("f64s", Value::Array(Array::F64(vec![0.1, -0.2]))),
        ("scores", Value::Array(Array::F32(vec![0.5, -1.5]))),
        ("tokens", Value::Array(Array::Str(vec![text("<s>"), text(""), text("▁the")]))),
        ("nested", Value::Array(Array::Array(vec![Array::U32(vec![1, 2]), Array::Str(vec![text("x")])]))),
    ]
}

fn write(keys: &[(&str, Value)], tensors: &[(&str, Tensor)]) -> Vec<u8> {
    let mut writer = GgufWriter::new();
    for (key, value) in keys {
        writer.key(*key, value.clone());
    }
    for (name, tensor) in tensors {
        writer.tensor(*name, tensor.clone());
    }
    let mut out = Vec::new();
    writer.write(&mut out).unwrap();
    out
}

fn error(bytes: Vec<u8>) -> String {
    Gguf::parse(Bytes::new(bytes)).expect_err("the file is malformed").to_string()
}

#[test]
fn writes_what_it_reads() {
    for alignment in [1, 8, 32, 64] {
        let mut keys = keys();
        keys.push(("general.alignment", Value::U32(alignment)));
        let formats = || Format::ALL.iter().copied().filter(|format| format.ggml_id().is_some());
        let names: Vec<String> = formats().map(|format| format!("{format}.weight")).collect();
        let tensors: Vec<_> = (formats().zip(&names).enumerate())
            .flat_map(|(i, (format, name))| {
                let (rows, cols) = ([1, 3][i % 2], format.block_len() * 3);
                let values = random(i as u64, rows * cols);
                [(name.as_str(), Tensor::encode(format, rows, cols, &values).unwrap())]
            })
            .collect();
        let file = Gguf::parse(Bytes::new(write(&keys, &tensors))).unwrap();
        assert!(file.metadata().iter().eq(keys.iter().map(|(key, value)| (*key, value))));
        assert_eq!(file.names(), names);
        for (name, tensor) in &tensors {
            let read = file.require(name).unwrap();
            assert_eq!(
                (read.format(), read.rows(), read.cols()),
                (tensor.format(), tensor.rows(), tensor.cols())
            );
            assert_eq!(**read.bytes(), **tensor.bytes());
        }
    }
}

#[test]
fn getters_convert_what_fits_and_name_what_does_not() {
    let file = Gguf::parse(Bytes::new(write(&keys(), &[]))).unwrap();
    let metadata = file.metadata();
    assert_eq!(metadata.get::<u32>("u8").unwrap(), Some(200));
    assert_eq!(metadata.get::<i64>("i16").unwrap(), Some(-30_000));
    assert_eq!(metadata.get::<usize>("u32").unwrap(), Some(4_000_000_000));
    assert_eq!(metadata.get::<f32>("f32").unwrap(), Some(1.5e-30));
    assert_eq!(metadata.get::<f64>("i8").unwrap(), Some(-5.0));
    assert_eq!(metadata.get::<&str>("str").unwrap(), Some("größe \u{1f600}"));
    assert_eq!(metadata.get::<bool>("bool").unwrap(), Some(true));
    assert_eq!(metadata.get::<Vec<i32>>("i8s").unwrap(), Some(vec![-1, 2, -3]));
    assert_eq!(metadata.get::<&[f32]>("scores").unwrap(), Some(&[0.5, -1.5][..]));
    assert_eq!(metadata.get::<&[String]>("tokens").unwrap().map(<[String]>::len), Some(3));
    assert_eq!(metadata.get::<u32>("absent").unwrap(), None);

    let message = |result: Result<Option<u32>, Error>| result.unwrap_err().to_string();
    assert_eq!(
        message(metadata.get("u64")),
        "key u64: expected an integer that fits u32, found U64(18446744073709551615)"
    );
    assert_eq!(message(metadata.get("i8")), "key i8: expected an integer that fits u32, found I8(-5)");
    assert_eq!(
        message(metadata.get("tokens")),
        "key tokens: expected an integer that fits u32, found 3 str[]"
    );
    assert_eq!(
        message(metadata.get("f32")),
        "key f32: expected an integer that fits u32, found F32(1.5e-30)"
    );
    assert_eq!(
        metadata.require::<bool>("absent").unwrap_err().to_string(),
        "expected key absent, found none"
    );
}

/// A file built field by field, so that any of them can be wrong.
#[derive(Clone)]
struct Raw {
    magic: [u8; 4],
    version: u32,
    tensor_count: Option<u64>,
    key_count: Option<u64>,
    keys: Vec<Vec<u8>>,
    tensors: Vec<(Vec<u8>, Vec<u64>, u32, u64)>,
    data: usize,
}

impl Raw {
    /// One key and two F32 tensors of 64 and 32 bytes.
    fn valid() -> Self {
        let tensors = vec![(b"a".to_vec(), vec![8, 2], 0, 0), (b"b".to_vec(), vec![8], 0, 64)];
        let keys = vec![key("k", 4, &7u32.to_le_bytes())];
        Self { magic: *b"GGUF", version: 3, tensor_count: None, key_count: None, keys, tensors, data: 96 }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.magic);
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        out.extend(self.keys.concat());
        for (name, dims, type_id, offset) in &self.tensors {
            out.extend(text(name));
            out.extend((dims.len() as u32).to_le_bytes());
            out.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend(type_id.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(random(1, self.data / 4).iter().flat_map(|x| x.to_le_bytes()));
        out
    }
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

fn key(name: &str, type_id: u32, value: &[u8]) -> Vec<u8> {
    [text(name.as_bytes()), type_id.to_le_bytes().to_vec(), value.to_vec()].concat()
}

/// The message of a valid file with one thing changed.
fn changed(change: impl FnOnce(&mut Raw)) -> String {
    let mut raw = Raw::valid();
    change(&mut raw);
    error(raw.bytes())
}

#[test]
fn the_valid_file_is_valid() {
    for version in [2, 3] {
        let file = Gguf::parse(Bytes::new(Raw { version, ..Raw::valid() }.bytes())).unwrap();
        assert_eq!(file.require("a").unwrap().decode().unwrap(), random(1, 24)[..16]);
        assert_eq!(file.require("b").unwrap().decode().unwrap(), random(1, 24)[16..]);
        assert_eq!(file.shape("a"), Some(vec![2, 8]));
    }
}

#[test]
fn refuses_headers() {
    assert_eq!(changed(|f| f.magic = *b"GGML"), "expected a GGUF file, found `GGML`");
    assert_eq!(changed(|f| f.version = 1), "expected GGUF version 2 or 3, found version 1");
    assert!(changed(|f| f.version = 3u32.swap_bytes()).contains("big-endian"));
    for count in [100, u64::MAX / 24, u64::MAX] {
        assert!(
            changed(|f| f.tensor_count = Some(count)).starts_with("the number of tensors: expected at most")
        );
        assert!(changed(|f| f.key_count = Some(count)).starts_with("the number of keys: expected at most"));
    }
    assert_eq!(error(vec![]), "the magic number at byte 0: expected 4 bytes, found 0");
}

#[test]
fn refuses_keys() {
    let with = |bytes: Vec<u8>| changed(|f| f.keys.push(bytes));
    assert_eq!(with(key("k", 0, &[1])), "expected unique names, found two of key k");
    assert!(with(key("odd", 13, &[1])).starts_with("key odd: expected a value type from 0 to 12, found 13"));
    assert_eq!(with(key("flag", 7, &[2])), "key flag: expected a bool of 0 or 1, found 2");
    assert!(with(key("s", 8, &text(&[0xff, 0xfe]))).starts_with("the value of key s at byte"));
    assert!(
        with(key("s", 8, &u64::MAX.to_le_bytes())).contains("expected 18446744073709551615 bytes, found")
    );
    let array = |type_id: u32, count: u64| [&type_id.to_le_bytes()[..], &count.to_le_bytes()].concat();
    for (type_id, count) in [(0, u64::MAX), (8, u64::MAX / 8), (9, 1 << 60), (12, u64::MAX / 4)] {
        assert!(
            with(key("list", 9, &array(type_id, count))).starts_with("the number of elements of key list: ")
        );
    }
    let deep: Vec<u8> = (0..1000).flat_map(|_| array(9, 1)).collect();
    assert_eq!(
        with(key("deep", 9, &deep)),
        "key deep: expected arrays nested at most 4 deep, found a deeper one"
    );
    assert!(changed(|f| f.keys[0] = text(&[0x80])).contains("expected UTF-8 text"));
    let alignment = |value: u32| with(key("general.alignment", 4, &value.to_le_bytes()));
    for value in [0, 3, 33] {
        assert_eq!(
            alignment(value),
            format!("key general.alignment: expected a power of two, found {value}")
        );
    }
    assert!(alignment(1 << 31).starts_with("the padding before the tensor data at byte"));
    assert!(
        with(key("general.alignment", 8, &text(b"32")))
            .contains("expected an integer that fits u32, found str")
    );
}

#[test]
fn refuses_tensors() {
    assert_eq!(changed(|f| f.tensors[1].0 = b"a".to_vec()), "expected unique names, found two of tensor a");
    assert!(changed(|f| f.tensors[1].0 = vec![0xc3, 0x28]).starts_with("the name of tensor 1 at byte"));
    assert!(changed(|f| f.tensors[1].0 = vec![b'x'; 300]).contains("expected at most 255, found 300"));
    assert_eq!(
        changed(|f| f.tensors[0].1 = vec![1; 5]),
        "dimensions of tensor a: expected at most 4, found 5"
    );
    assert!(changed(|f| f.tensors[0].1 = vec![8, 0]).contains("tensor a: expected dimensions above 0"));
    assert!(
        changed(|f| f.tensors[0].1 = vec![1 << 40, 1 << 40])
            .contains("tensor a: expected fewer than 2^64 values")
    );
    assert!(changed(|f| f.tensors[0].1 = vec![1 << 63]).contains("tensor a: expected fewer than 2^64 bytes"));
    assert!(
        changed(|f| f.tensors[0].1 = vec![1 << 60])
            .contains("tensor a: expected its data within the 96 bytes")
    );
    assert!(changed(|f| f.tensors[0].2 = 2).contains("tensor a: expected rows of whole Q4_0 blocks of 32"));
    assert_eq!(
        changed(|f| f.tensors[1].3 = 65),
        "tensor b: expected an offset that is a multiple of 32, found 65"
    );
    assert!(
        changed(|f| f.tensors[1].3 = 96).contains("tensor b: expected its data within the 96 bytes of data")
    );
    assert!(changed(|f| f.tensors[1].3 = u64::MAX - 31).contains("tensor b: expected its data within"));
    assert!(changed(|f| f.tensors[1].3 = 32).starts_with("tensors a and b: expected separate bytes"));
    assert!(
        changed(|f| (f.tensors[0].1, f.tensors[0].3) = (vec![8], 64))
            .starts_with("tensors a and b: expected sep")
    );
}

#[test]
fn lists_what_it_cannot_read() {
    let mut raw = Raw::valid();
    raw.tensors[1].2 = 4711;
    raw.tensors[0].1 = vec![4, 2, 2];
    let file = Gguf::parse(Bytes::new(raw.bytes())).unwrap();
    assert_eq!(file.names(), ["a", "b"]);
    assert_eq!(file.shape("a"), Some(vec![2, 2, 4]));
    assert_eq!(file.tensors().get("b").unwrap().type_id(), 4711);
    assert_eq!(file.tensor("b").unwrap_err().to_string(), "tensor b: type 4711 of ggml is not supported");
    assert!(file.tensor("a").unwrap_err().to_string().contains("found dimensions [4, 2, 2]"));
    assert!(file.tensor("c").unwrap().is_none());
}

fn shard(number: u16, count: u16, total: i32, tensor: &str) -> Vec<u8> {
    let keys = [
        ("split.no", Value::U16(number)),
        ("split.count", Value::U16(count)),
        ("split.tensors.count", Value::I32(total)),
        ("of", Value::U16(number)),
    ];
    write(&keys, &[(tensor, Tensor::encode(Format::F32, 2, 4, &random(number.into(), 8)).unwrap())])
}

#[test]
fn shards_are_one_model() {
    let shards: Vec<Vec<u8>> =
        ["x", "y", "z"].iter().enumerate().map(|(i, name)| shard(i as u16, 3, 3, name)).collect();
    let in_memory =
        |order: &[usize]| Gguf::parse_shards(order.iter().map(|&i| Bytes::new(shards[i].clone())).collect());
    for order in [[0, 1, 2], [2, 0, 1]] {
        let file = in_memory(&order).unwrap();
        assert_eq!(file.names(), ["x", "y", "z"]);
        assert_eq!(file.metadata().get::<u32>("of").unwrap(), Some(0), "metadata of the first shard");
        assert_eq!(file.require("z").unwrap().decode().unwrap(), random(2, 8));
    }
    let message = |order: &[usize]| in_memory(order).unwrap_err().to_string();
    assert!(message(&[0, 1]).contains("shard 0: key split.count: expected 2, as there are files, found 3"));
    assert!(
        message(&[0, 1, 1]).contains("shard 1: key split.no") || message(&[0, 1, 1]).contains("key split.no")
    );
    assert!(message(&[1]).contains("expected all shards of the model, found one of 3"));
    assert!(message(&[]).contains("expected file"));
    let wrong = |total, name| {
        let files = [shard(0, 2, total, "x"), shard(1, 2, total, name)];
        Gguf::parse_shards(files.map(Bytes::new).to_vec()).unwrap_err().to_string()
    };
    assert_eq!(wrong(3, "y"), "key split.tensors.count: expected 3 tensors, found 2 in the shards");
    assert_eq!(wrong(2, "x"), "expected unique names, found two of tensor x");
}

#[test]
fn shards_are_found_beside_each_other() {
    let dir = std::env::temp_dir().join(format!("graftwork-gguf-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = |number| dir.join(format!("m-{number:05}-of-00002.gguf"));
    for (i, name) in ["x", "y"].iter().enumerate() {
        std::fs::write(path(i + 1), shard(i as u16, 2, 2, name)).unwrap();
    }
    for number in [1, 2] {
        assert_eq!(Gguf::open(path(number)).unwrap().names(), ["x", "y"]);
    }
    assert_eq!(Gguf::load(&Source::copied(path(1))).unwrap().names(), ["x", "y"]);
    std::fs::copy(path(1), dir.join("other.gguf")).unwrap();
    assert!(Gguf::open(dir.join("other.gguf")).unwrap_err().to_string().contains("found `other.gguf`"));
    std::fs::remove_file(path(2)).unwrap();
    assert!(Gguf::open(path(1)).unwrap_err().to_string().contains("m-00002-of-00002.gguf: No such file"));
    assert!(Gguf::open(&dir).unwrap_err().to_string().contains("expected a regular file"));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn the_writer_refuses_what_others_could_not_read() {
    let row = Tensor::encode(Format::F32, 1, 4, &[1.0, 2.0, 3.0, 4.0]).unwrap();
    let message = |build: &dyn Fn(&mut GgufWriter)| {
        let mut writer = GgufWriter::new();
        build(&mut writer);
        writer.write(&mut Vec::new()).unwrap_err().to_string()
    };
    assert!(message(&|w| _ = w.tensor("x".repeat(64), row.clone())).contains("longer than 63 bytes"));
    assert!(
        message(&|w| _ = w.tensor("t", row.clone()).tensor("t", row.clone())).contains("two of tensor t")
    );
    assert!(message(&|w| _ = w.key("k", Value::U8(1)).key("k", Value::U8(2))).contains("two of key k"));
    assert!(message(&|w| _ = w.key("general.alignment", Value::U32(12))).contains("not a power of two"));
    let empty = Tensor::encode(Format::F32, 1, 0, &[]).unwrap();
    assert!(message(&|w| _ = w.tensor("e", empty.clone())).contains("it holds no values"));
    let ours = Tensor::encode(Format::W2G64, 1, 64, &[1.0; 64]).unwrap();
    assert!(message(&|w| _ = w.tensor("ours", ours.clone())).contains("ours: GGUF has no format W2G64"));
}
