//! The parsers, each with a small valid input, and what is done with what they read.

use graftwork_adapters::check::Shape;
use graftwork_adapters::file::gguf::{Array, Value};
use graftwork_adapters::file::{
    Dtype, Gguf, GgufWriter, HfModel, Safetensors, Source, TensorFile, TensorView, write_safetensors,
};
use graftwork_adapters::seed::{self, SeedPatch, Settings};
use graftwork_adapters::{Adapter, Change, Module, Site};
use graftwork_kernels::{Bytes, Format, Tensor};

use crate::allocation::peak;
use crate::mutation::Random;
use crate::{CONSTANT, FACTOR, PATTERN};
use crate::{deltas, kinds, pickles};

/// The files of one model or adapter, by name.
pub type Files = Vec<(&'static str, Vec<u8>)>;

/// A parser with a valid input. `parse` also uses what it read, as far as that is valid.
pub struct Parser {
    pub name: &'static str,
    pub files: Files,
    /// Where the structure of each file ends and the data begins.
    pub headers: Vec<usize>,
    pub parse: fn(Files) -> Result<(), String>,
}

pub fn owned(files: Files) -> Vec<(String, Bytes)> {
    files.into_iter().map(|(name, bytes)| (name.to_owned(), Bytes::new(bytes))).collect()
}

/// Reads everything that a file lists.
pub fn read_all(file: &dyn TensorFile) {
    for name in file.names() {
        let shape = file.shape(name).expect("a listed tensor has a shape");
        if let Ok(tensor) = file.tensor(name) {
            let tensor = tensor.expect("a listed tensor exists");
            assert_eq!(tensor.decode().unwrap().len() as u64, shape.iter().product::<u64>());
        }
    }
}

pub fn read_adapter(adapter: &Adapter) {
    for edit in &adapter.edits {
        for tensor in edit.change.tensors() {
            assert!(tensor.decode().unwrap().iter().all(|x| x.is_finite()));
        }
        match &edit.change {
            Change::LowRank { a, b, scale, bias, magnitude } => {
                assert!(scale.is_finite() && a.rows() == b.cols() && a.rows() > 0);
                assert!(bias.iter().chain(magnitude).all(|vector| vector.cols() == b.rows()));
            }
            Change::Bias { values }
            | Change::OutputScale { values }
            | Change::InputScale { values }
            | Change::Add { values } => {
                assert_eq!(values.rows(), 1);
            }
            Change::Rotation { skew, cayley } => {
                assert_eq!(skew.cols(), cayley.size * (cayley.size - 1) / 2);
            }
            Change::Bottleneck { down, up, scale, .. } => {
                assert!(scale.is_finite() && up.cols() == down.rows() && down.rows() > 0);
            }
            Change::Project { directions } => assert!(directions.rows() > 0),
            Change::Shared { a, b, inner, .. } => {
                assert!(a.rows() == b.cols() && inner.cols() == a.rows());
            }
            Change::Hadamard { first, second, scale } => {
                assert!(scale.is_finite() && first.0.cols() == first.1.rows());
                assert!(second.0.rows() == first.0.rows() && second.1.cols() == first.1.cols());
            }
            Change::Kronecker { left, right, scale } => {
                assert!(scale.is_finite() && left.rows() * right.rows() > 0);
            }
            Change::Replace { weight } => assert!(weight.rows() > 0),
            Change::VirtualTokens { rows } => assert!(rows.rows() > 0),
            Change::Prefix { rows, layers } => assert!(rows.rows() > 0 && *layers > 0),
            Change::Rows { tokens, rows } => {
                assert!(tokens.len() == rows.rows() && tokens.is_sorted());
            }
            Change::Factors { v, s, u } => {
                assert!(v.rows() == s.len() && u.cols() == s.len() && s.iter().all(|x| x.is_finite()));
            }
            Change::Whole { matrix, scale } => assert!(scale.is_finite() && matrix.rows() > 0),
            Change::Seeded { patch } => {
                for &module in &patch.settings().modules {
                    let (site, shape) = (Site::Linear { layer: 1, module }, Shape { outputs: 2, inputs: 5 });
                    let mut out = [0.0; 10];
                    patch.update(site, shape).unwrap().rows(0, &mut out).unwrap();
                    assert!(out.iter().all(|x| x.is_finite()));
                }
            }
            Change::Sparse { rows, columns, values } => {
                assert!(rows.len() == values.cols() && columns.len() == values.cols());
            }
            Change::Overwrite { rows, columns, values, before } => {
                assert!(rows.len() == values.cols() && columns.len() == values.cols());
                assert_eq!((values.format(), values.cols()), (before.format(), before.cols()));
            }
        }
    }
}

/// What a parser that succeeded within the bound goes on to do; not counted.
pub fn parsed<T, E: ToString>(
    files: Files,
    constant: usize,
    parse: impl FnOnce(Vec<(String, Bytes)>) -> Result<T, E>,
    read: impl FnOnce(T),
) -> Result<(), String> {
    let size: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    let files = owned(files);
    let (answer, held) = peak(|| parse(files));
    assert!(held <= FACTOR * size + constant, "{held} bytes allocated for files of {size} bytes");
    answer.map(read).map_err(|error| {
        let message = error.to_string();
        assert!(message.len() > 8, "a message that says nothing: {message}");
        message
    })
}

pub fn write_gguf(keys: &[(&str, Value)], tensors: &[(&str, Tensor)]) -> Vec<u8> {
    let mut writer = GgufWriter::new();
    keys.iter().for_each(|(key, value)| _ = writer.key(*key, value.clone()));
    tensors.iter().for_each(|(name, tensor)| _ = writer.tensor(*name, tensor.clone()));
    let mut out = Vec::new();
    writer.write(&mut out).unwrap();
    out
}

fn write_f32(tensors: &[(&str, &[u64])], metadata: &[(&str, &str)]) -> Vec<u8> {
    let data: Vec<u8> = Random(5).values(1 << 12).iter().flat_map(|x| x.to_le_bytes()).collect();
    let views: Vec<_> = tensors
        .iter()
        .map(|&(name, shape)| {
            let bytes = &data[..4 * shape.iter().product::<u64>() as usize];
            TensorView { name, dtype: Dtype::F32, shape, bytes }
        })
        .collect();
    let mut out = Vec::new();
    write_safetensors(&mut out, &views, metadata).unwrap();
    out
}

pub fn safetensors_header(bytes: &[u8]) -> usize {
    8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize
}

pub fn tensor(format: Format, rows: usize, cols: usize) -> Tensor {
    Tensor::encode(format, rows, cols, &Random(rows as u64).values(rows * cols)).unwrap()
}

fn gguf() -> Parser {
    let text = |text: &str| text.to_owned();
    let keys = [
        ("general.architecture", Value::Str(text("llama"))),
        ("general.alignment", Value::U32(32)),
        ("a.u8", Value::U8(3)),
        ("a.i64", Value::I64(-3)),
        ("a.bool", Value::Bool(true)),
        ("a.f64", Value::F64(0.1)),
        ("tokens", Value::Array(Array::Str(vec![text("<s>"), text("é")]))),
        ("scores", Value::Array(Array::F32(vec![0.5, -1.0]))),
        (
            "deep",
            Value::Array(Array::Array(vec![
                Array::U16(vec![1, 2]),
                Array::Array(vec![Array::Bool(vec![true])]),
            ])),
        ),
    ];
    let tensors = [
        ("q4", tensor(Format::Q4_0, 2, 32)),
        ("norm", tensor(Format::F32, 1, 8)),
        ("f16", tensor(Format::F16, 3, 5)),
        ("q8", tensor(Format::Q8_0, 1, 64)),
    ];
    let file = write_gguf(&keys, &tensors);
    let header = file.len() - 64 - 32 - 32 - 96;
    Parser {
        name: "gguf",
        files: vec![("model.gguf", file)],
        headers: vec![header],
        parse: |files| {
            parsed(
                files,
                CONSTANT,
                |mut files| Gguf::parse(files.remove(0).1),
                |file| {
                    for (key, _) in file.metadata().iter() {
                        let _ = (file.metadata().get::<u32>(key), file.metadata().get::<&[String]>(key));
                        let _ = (file.metadata().get::<f32>(key), file.metadata().get::<Vec<i32>>(key));
                    }
                    read_all(&file);
                },
            )
        },
    }
}

fn gguf_shards() -> Parser {
    let shard = |number| {
        let keys = [
            ("split.no", Value::U16(number)),
            ("split.count", Value::U16(2)),
            ("split.tensors.count", Value::I32(3)),
        ];
        let names = [&["x"][..], &["y", "z"]][usize::from(number)];
        let tensors: Vec<_> = names.iter().map(|name| (*name, tensor(Format::F32, 2, 4))).collect();
        write_gguf(&keys, &tensors)
    };
    Parser {
        name: "gguf shards",
        files: vec![("0.gguf", shard(0)), ("1.gguf", shard(1))],
        headers: vec![192, 224],
        parse: |files| {
            parsed(files, CONSTANT, |files| Gguf::load(&Source::files(files)?), |file| read_all(&file))
        },
    }
}

fn safetensors() -> Parser {
    let shapes: [(&str, &[u64]); 4] = [("a", &[2, 3]), ("b.weight", &[5]), ("c", &[]), ("d", &[2, 2, 2])];
    let file = write_f32(&shapes, &[("format", "pt"), ("x", "y")]);
    Parser {
        name: "safetensors",
        headers: vec![safetensors_header(&file)],
        files: vec![("model.safetensors", file)],
        parse: |files| {
            parsed(
                files,
                CONSTANT,
                |mut files| Safetensors::parse(files.remove(0).1),
                |file| {
                    file.tensors().iter().for_each(|(_, info)| _ = info.integers());
                    read_all(&file);
                },
            )
        },
    }
}

fn hugging_face() -> Parser {
    let one = write_f32(&[("model.norm.weight", &[8]), ("lm_head.weight", &[4, 8])], &[("format", "pt")]);
    let two = write_f32(&[("model.embed_tokens.weight", &[4, 8])], &[]);
    let index = r#"{"metadata": {"total_size": 288}, "weight_map": {"model.norm.weight": "model-1.safetensors",
        "lm_head.weight": "model-1.safetensors", "model.embed_tokens.weight": "model-2.safetensors"}}"#;
    let headers = [safetensors_header(&one), safetensors_header(&two)];
    let text = |text: &str| text.as_bytes().to_vec();
    let files = vec![
        ("model-1.safetensors", one),
        ("model-2.safetensors", two),
        ("model.safetensors.index.json", text(index)),
        (
            "config.json",
            text(r#"{"model_type": "llama", "hidden_size": 8, "rope_scaling": {"factor": [1.0, 2e3]}}"#),
        ),
        ("generation_config.json", text(r#"{"eos_token_id": [1, 2]}"#)),
        (
            "tokenizer_config.json",
            text(r#"{"added_tokens_decoder": {"0": {"content": "<s>", "special": true}}}"#),
        ),
    ];
    let headers =
        files.iter().enumerate().map(|(i, (_, file))| headers.get(i).copied().unwrap_or(file.len()));
    Parser {
        name: "hugging face directory",
        headers: headers.collect(),
        files,
        parse: |files| {
            parsed(
                files,
                CONSTANT,
                |files| HfModel::load(&Source::files(files)?),
                |model| read_all(&model.weights),
            )
        },
    }
}

pub fn peft() -> Parser {
    let path = "base_model.model.model.layers.0.self_attn";
    let names =
        ["q_proj.lora_A.weight", "q_proj.lora_B.weight", "v_proj.lora_A.weight", "v_proj.lora_B.weight"]
            .map(|name| format!("{path}.{name}"));
    let shapes: [&[u64]; 4] = [&[2, 8], &[8, 2], &[3, 8], &[4, 3]];
    let tensors: Vec<(&str, &[u64])> = names.iter().map(String::as_str).zip(shapes).collect();
    let weights = write_f32(&tensors, &[("format", "pt")]);
    let config = r#"{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 3, "use_rslora": true,
        "rank_pattern": {"layers.*.v_proj": 3}, "alpha_pattern": {"q_proj|k_proj": 0.5, "model\\.layers\\.\\d+\\..*": 7},
        "target_modules": ["q_proj", "v_proj"], "bias": "none", "use_dora": false, "init_lora_weights": true}"#;
    Parser {
        headers: vec![config.len(), safetensors_header(&weights)],
        files: vec![
            ("adapter_config.json", config.as_bytes().to_vec()),
            ("adapter_model.safetensors", weights),
        ],
        ..peft_as("peft lora")
    }
}

/// The reader of PEFT directories, without files.
pub fn peft_as(name: &'static str) -> Parser {
    Parser {
        name,
        headers: Vec::new(),
        files: Vec::new(),
        parse: |files| {
            parsed(
                files,
                PATTERN,
                |files| Adapter::open(Source::files(files)?),
                |adapter| read_adapter(&adapter),
            )
        },
    }
}

fn gguf_lora() -> Parser {
    let text = |text: &str| Value::Str(text.to_owned());
    let keys = [
        ("general.architecture", text("llama")),
        ("general.type", text("adapter")),
        ("adapter.type", text("lora")),
        ("adapter.lora.alpha", Value::F32(5.0)),
    ];
    let tensors = [
        ("blk.0.attn_q.weight.lora_a", tensor(Format::F32, 2, 8)),
        ("blk.0.attn_q.weight.lora_b", tensor(Format::F16, 6, 2)),
        ("blk.1.ffn_up.weight.lora_a", tensor(Format::Q8_0, 3, 32)),
        ("blk.1.ffn_up.weight.lora_b", tensor(Format::BF16, 5, 3)),
    ];
    let file = write_gguf(&keys, &tensors);
    Parser {
        name: "gguf lora",
        headers: vec![file.len() - 64 - 32 - 128 - 32],
        files: vec![("lora.gguf", file)],
        parse: |files| {
            let open = |mut files: Vec<(String, Bytes)>| Adapter::open(files.remove(0).1);
            parsed(files, CONSTANT, open, |adapter| read_adapter(&adapter))
        },
    }
}

fn control_vector() -> Parser {
    let text = |text: &str| Value::Str(text.to_owned());
    let keys = [
        ("general.architecture", text("controlvector")),
        ("controlvector.model_hint", text("llama")),
        ("controlvector.layer_count", Value::I32(2)),
    ];
    let tensors = [("direction.1", tensor(Format::F32, 1, 16)), ("direction.2", tensor(Format::F32, 1, 16))];
    let file = write_gguf(&keys, &tensors);
    Parser {
        name: "control vector",
        headers: vec![file.len() - 128],
        files: vec![("vector.gguf", file)],
        parse: |files| {
            let open = |mut files: Vec<(String, Bytes)>| Adapter::open(files.remove(0).1);
            parsed(files, CONSTANT, open, |adapter| read_adapter(&adapter))
        },
    }
}

fn ablation() -> Parser {
    // Two columns of the identity, as NumPy writes them.
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 2), }";
    let values = [1.0f32, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0].map(f32::to_le_bytes).concat();
    let file = [b"\x93NUMPY\x01\x00\x40\x00", format!("{header:<63}\n").as_bytes(), &values].concat();
    let config = r#"{"peft_type": "ABLATION", "dict": {"3": [0, 1]}, "path": "components"}"#;
    Parser {
        name: "ablation",
        headers: vec![config.len(), 74],
        files: vec![("adapter_config.json", config.as_bytes().to_vec()), ("components_layer_3.npy", file)],
        parse: |files| {
            let open = |files| Adapter::open(Source::files(files)?);
            parsed(files, CONSTANT, open, |adapter| read_adapter(&adapter))
        },
    }
}

/// A seed patch, whose checksum ends most damage; with `fitting` it is made right again before the file is read.
fn seed_patch(name: &'static str, fitting: bool) -> Parser {
    let settings = Settings {
        bases: vec!["5b1d".repeat(16).parse().unwrap()],
        base_seed: 9,
        scale: -3e-7,
        modules: vec![Module::Q, Module::Up],
    };
    let mut file = Vec::new();
    SeedPatch::new(settings, Random(3).values(600)).unwrap().write(&mut file).unwrap();
    // With nothing beside it, what is no seed patch any more is refused for that.
    let open: fn(Files) -> Result<(), String> = |files| {
        let open = |mut files: Vec<(String, Bytes)>| Adapter::open(files.remove(0).1);
        parsed(files, CONSTANT, open, |adapter| read_adapter(&adapter))
    };
    let open_fitting: fn(Files) -> Result<(), String> = |mut files| {
        fit_checksum(&mut files[0].1);
        let open = |mut files: Vec<(String, Bytes)>| Adapter::open(files.remove(0).1);
        parsed(files, CONSTANT, open, |adapter| read_adapter(&adapter))
    };
    Parser {
        name,
        headers: vec![safetensors_header(&file)],
        files: vec![("patch.safetensors", file)],
        parse: if fitting { open_fitting } else { open },
    }
}

/// Puts the checksum that belongs to header and data of a seed patch where the file has one.
fn fit_checksum(file: &mut [u8]) {
    let Ok(parsed) = Safetensors::parse(Bytes::new(file.to_vec())) else { return };
    let (Some(json), Some(old)) = (parsed.metadata().get(seed::KEY), parsed.metadata().get(seed::CHECKSUM))
    else {
        return;
    };
    let data = &file[safetensors_header(file)..];
    let fnv1a = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let checksum = json.as_bytes().iter().chain(data).fold(0xcbf2_9ce4_8422_2325, fnv1a);
    let checksum = format!("{checksum:016x}");
    let at = file.windows(old.len().max(1)).rposition(|window| window == old.as_bytes());
    if let Some(at) = at.filter(|_| old.len() == checksum.len()) {
        file[at..at + checksum.len()].copy_from_slice(checksum.as_bytes());
    }
}

pub fn parsers() -> Vec<Parser> {
    let own = [
        gguf(),
        gguf_shards(),
        safetensors(),
        hugging_face(),
        peft(),
        gguf_lora(),
        control_vector(),
        ablation(),
        seed_patch("seed patch", false),
        seed_patch("seed patch, checksum made right", true),
        pickles::parser(),
    ];
    own.into_iter().chain(kinds::parsers()).chain(deltas::parsers()).collect()
}
