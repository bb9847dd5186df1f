//! `quantize` against llama.cpp: the same file types, to the byte.

mod directories;

use std::fs;
use std::path::{Path, PathBuf};

use graftwork::quantize::{FileType, Options, quantize};
use graftwork::{Format, Source};
use graftwork_adapters::file::{Gguf, GgufWriter, gguf::Value};
use graftwork_kernels::Tensor;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

/// A model of random weights.
struct Sizes {
    name: &'static str,
    hidden: usize,
    layers: usize,
    ffn: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    tied: bool,
    format: Format,
}

const MODELS: [Sizes; 3] = [
    // Rows of whole blocks, so many layers that every rule for some of them has a case, keys shared by four.
    Sizes {
        name: "whole",
        hidden: 256,
        layers: 17,
        ffn: 256,
        heads: 4,
        kv_heads: 1,
        head_dim: 64,
        tied: false,
        format: Format::F16,
    },
    // Rows of blocks of 32, and rows of no blocks.
    Sizes {
        name: "ragged",
        hidden: 96,
        layers: 9,
        ffn: 144,
        heads: 3,
        kv_heads: 3,
        head_dim: 32,
        tied: true,
        format: Format::F32,
    },
    // As many layers as the one model that has a rule of its own.
    Sizes {
        name: "deep",
        hidden: 256,
        layers: 80,
        ffn: 16,
        heads: 4,
        kv_heads: 2,
        head_dim: 2,
        tied: false,
        format: Format::BF16,
    },
];

/// Values near a normal distribution, the same bits on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let sum: u64 = (0..4).map(|i| z >> (16 * i) & 0xffff).sum();
        (sum as f32 - 131_070.0) / (1u32 << 20) as f32
    }

    fn matrix(&mut self, rows: usize, cols: usize, format: Format) -> Tensor {
        let values: Vec<f32> = (0..rows * cols).map(|_| self.next()).collect();
        Tensor::encode(format, rows, cols, &values).unwrap()
    }
}

/// Writes a model; its path.
fn write(folder: &Path, sizes: &Sizes) -> PathBuf {
    let &Sizes { name, hidden, layers, ffn, heads, kv_heads, head_dim, tied, format } = sizes;
    let (mut random, vocab) = (Random(layers as u64), 40);
    let mut file = GgufWriter::new();
    file.key("general.architecture", Value::Str("llama".into()));
    file.key("general.file_type", Value::U32(1));
    for (key, value) in [
        ("context_length", 64),
        ("embedding_length", hidden),
        ("block_count", layers),
        ("feed_forward_length", ffn),
        ("attention.head_count", heads),
        ("attention.head_count_kv", kv_heads),
        ("attention.key_length", head_dim),
        ("attention.value_length", head_dim),
        ("rope.dimension_count", head_dim),
        ("vocab_size", vocab),
    ] {
        file.key(format!("llama.{key}"), Value::U32(value as u32));
    }
    file.key("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    file.key("tokenizer.ggml.model", Value::Str("none".into()));
    let mut tensor = |name: String, rows: usize, cols: usize, format| {
        file.tensor(format!("{name}.weight"), random.matrix(rows, cols, format));
    };
    tensor("token_embd".into(), vocab, hidden, format);
    for i in 0..layers {
        let name = |part: &str| format!("blk.{i}.{part}");
        tensor(name("attn_norm"), 1, hidden, Format::F32);
        tensor(name("attn_q"), heads * head_dim, hidden, format);
        tensor(name("attn_k"), kv_heads * head_dim, hidden, format);
        tensor(name("attn_v"), kv_heads * head_dim, hidden, format);
        tensor(name("attn_output"), hidden, heads * head_dim, format);
        tensor(name("ffn_norm"), 1, hidden, Format::F32);
        tensor(name("ffn_gate"), ffn, hidden, format);
        tensor(name("ffn_up"), ffn, hidden, format);
        tensor(name("ffn_down"), hidden, ffn, format);
    }
    tensor("output_norm".into(), 1, hidden, Format::F32);
    if !tied {
        tensor("output".into(), vocab, hidden, format);
    }
    let path = folder.join(format!("{name}.gguf"));
    file.write(&mut fs::File::create(&path).unwrap()).unwrap();
    path
}

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&path).unwrap();
    path
}

fn golden() -> Json {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/quantize/llama.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn digest(path: &Path) -> String {
    Sha256::digest(fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The formats of the matrices that are not those of most, by name.
fn exceptions(path: &Path) -> Json {
    let file = Gguf::open(path).unwrap();
    let formats: Vec<_> = file
        .tensors()
        .iter()
        .filter(|(_, info)| info.dims().len() > 1)
        .map(|(name, info)| (name, info.format().unwrap().name()))
        .collect();
    let count = |format: &str| formats.iter().filter(|(_, other)| *other == format).count();
    let most =
        formats.iter().map(|(_, format)| *format).max_by_key(|format| (count(format), *format)).unwrap();
    let mut all = serde_json::Map::from_iter([("most".to_owned(), json!(most))]);
    let others = formats.iter().filter(|(_, format)| *format != most);
    all.extend(others.map(|(name, format)| ((*name).trim_end_matches(".weight").to_owned(), json!(format))));
    Json::Object(all)
}

#[test]
fn files_are_those_that_llama_cpp_writes() {
    let (golden, folder) = (golden(), folder("quantize"));
    let mut compared = 0;
    for sizes in &MODELS {
        let (name, source) = (sizes.name, write(&folder, sizes));
        assert_eq!(golden[name]["source"], digest(&source), "the model {name} itself is another");
        for file_type in FileType::all().filter(|file_type| !file_type.needs_calibration()) {
            let expected = &golden[name][file_type.name()];
            let out = folder.join(format!("{name}-{file_type}.gguf"));
            let options = Options { file_type, calibration: None, threads: 1 + compared % 3 };
            let report = quantize(&Source::from(&source), &out, &options, &|_, _, _| true).unwrap();
            assert_eq!(exceptions(&out), expected["formats"], "{name}, {file_type}");
            assert_eq!(report.bytes, fs::metadata(&out).unwrap().len());
            assert_eq!(digest(&out), expected["sha256"], "{name}, {file_type}");
            fs::remove_file(&out).unwrap();
            compared += 1;
        }
    }
    assert_eq!(compared, 3 * 17);
}

/// What golden/quantize/README.md asks for.
#[test]
#[ignore = "writes the models for golden/quantize/make.py"]
fn write_the_models() {
    let folder = folder("quantize");
    for sizes in &MODELS {
        println!("{}", write(&folder, sizes).display());
    }
}
