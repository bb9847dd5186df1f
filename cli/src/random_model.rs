//! `random-model`: a model of random weights, for measurements where no trained one of its size is at hand.

use std::fs::File;
use std::io::{BufWriter, Write};

use graftwork_adapters::file::GgufWriter;
use graftwork_adapters::file::gguf::{Array, Value};
use graftwork_kernels::{Bytes, Format, Tensor};

use crate::arguments::{Mix, RandomModel};
use crate::{Failure, output};

/// Different blocks of a tensor's format that its rows are put together from: encoding each would take minutes.
const POOL: usize = 4096;

/// Runs the command.
pub fn random_model(arguments: &RandomModel) -> Result<(), Failure> {
    let a = arguments;
    check(a)?;
    let mut model = GgufWriter::new();
    describe(&mut model, a);
    let mut random = Random(a.seed);
    let (q, kv) = (a.hidden, a.hidden / a.heads * a.kv_heads);
    let mut matrix = |model: &mut GgufWriter, name: &str, (rows, cols), format| {
        model.tensor(format!("{name}.weight"), random_matrix(&mut random, rows, cols, format)?);
        Ok::<_, Failure>(())
    };
    matrix(&mut model, "token_embd", (a.vocab, a.hidden), a.format.plain(a.hidden))?;
    let norm = Tensor::encode(Format::F32, 1, a.hidden, &vec![1.0; a.hidden]).map_err(tensor)?;
    for i in 0..a.layers {
        let name = |part: &str| format!("blk.{i}.{part}");
        model.tensor(name("attn_norm.weight"), norm.clone());
        model.tensor(name("ffn_norm.weight"), norm.clone());
        let (plain, better) = (|cols| a.format.plain(cols), |cols| a.format.better(i, a.layers, cols));
        matrix(&mut model, &name("attn_q"), (q, a.hidden), plain(a.hidden))?;
        matrix(&mut model, &name("attn_k"), (kv, a.hidden), plain(a.hidden))?;
        matrix(&mut model, &name("attn_v"), (kv, a.hidden), better(a.hidden))?;
        matrix(&mut model, &name("attn_output"), (a.hidden, q), plain(q))?;
        matrix(&mut model, &name("ffn_gate"), (a.ffn, a.hidden), plain(a.hidden))?;
        matrix(&mut model, &name("ffn_up"), (a.ffn, a.hidden), plain(a.hidden))?;
        matrix(&mut model, &name("ffn_down"), (a.hidden, a.ffn), better(a.ffn))?;
    }
    model.tensor("output_norm.weight", norm);
    matrix(&mut model, "output", (a.vocab, a.hidden), a.format.head(a.hidden))?;

    let file = || Failure::io(a.out.display().to_string());
    let mut out = BufWriter::new(File::create(&a.out).map_err(file())?);
    model.write(&mut out).and_then(|()| out.flush()).map_err(file())?;
    let bytes = std::fs::metadata(&a.out).map_err(file())?.len();
    output::note(&format!("{} MB in {}", bytes / 1_000_000, a.format.name()));
    output::result(&format!("{}\n", a.out.display()))
}

fn tensor(error: graftwork_kernels::Error) -> Failure {
    Failure::Other(error.to_string())
}

fn check(a: &RandomModel) -> Result<(), Failure> {
    let wrong = |what: String| Err(Failure::Other(what));
    if !a.hidden.is_multiple_of(a.heads) || !(a.hidden / a.heads).is_multiple_of(2) {
        return wrong(format!("--heads: expected a divisor of half of {}, found {}", a.hidden, a.heads));
    }
    if !a.heads.is_multiple_of(a.kv_heads) {
        return wrong(format!("--kv-heads: expected a divisor of {}, found {}", a.heads, a.kv_heads));
    }
    for (option, found) in [("hidden", a.hidden), ("ffn", a.ffn)] {
        let block = a.format.plain(found).block_len();
        if !found.is_multiple_of(block) {
            return wrong(format!("--{option}: expected a multiple of {block}, found {found}"));
        }
    }
    if a.vocab < 3 + 256 {
        return wrong(format!("--vocab: expected at least 259, found {}", a.vocab));
    }
    Ok(())
}

/// What the model is, and a vocabulary that text can be written in, byte by byte.
fn describe(model: &mut GgufWriter, a: &RandomModel) {
    let text = |text: &str| Value::Str(text.to_owned());
    let number = |n: usize| Value::U32(n as u32);
    model.key("general.architecture", text("llama"));
    model.key("general.name", text("random"));
    for (key, value) in [
        ("context_length", a.context),
        ("embedding_length", a.hidden),
        ("block_count", a.layers),
        ("feed_forward_length", a.ffn),
        ("attention.head_count", a.heads),
        ("attention.head_count_kv", a.kv_heads),
        ("rope.dimension_count", a.hidden / a.heads),
        ("vocab_size", a.vocab),
    ] {
        model.key(format!("llama.{key}"), number(value));
    }
    model.key("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    model.key("llama.rope.freq_base", Value::F32(10_000.0));
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend((tokens.len()..a.vocab).map(|id| format!("\u{2581}w{id}")));
    // 2: unknown, 3: control, 6: byte, 1: any other.
    let types = (0..a.vocab).map(|id| match id {
        0 => 2,
        1 | 2 => 3,
        3..259 => 6,
        _ => 1,
    });
    model.key("tokenizer.ggml.model", text("llama"));
    model.key("tokenizer.ggml.tokens", Value::Array(Array::Str(tokens)));
    let scores = (0..a.vocab).map(|id| -(id as f32)).collect();
    model.key("tokenizer.ggml.scores", Value::Array(Array::F32(scores)));
    model.key("tokenizer.ggml.token_type", Value::Array(Array::I32(types.collect())));
    model.key("tokenizer.ggml.bos_token_id", number(1));
    model.key("tokenizer.ggml.eos_token_id", number(2));
}

/// Normal values, of a size that keeps activations of about one.
fn random_matrix(random: &mut Random, rows: usize, cols: usize, format: Format) -> Result<Tensor, Failure> {
    Pool::new(random, format, (1.0 / cols as f32).sqrt())?.matrix(random, rows, cols)
}

/// Random blocks of a format.
pub struct Pool(Tensor);

impl Pool {
    /// Of normal values times `size`.
    pub fn new(random: &mut Random, format: Format, size: f32) -> Result<Self, Failure> {
        let len = format.block_len().max(32);
        let values: Vec<f32> = (0..POOL * len).map(|_| random.normal() * size).collect();
        Tensor::encode(format, POOL, len, &values).map(Self).map_err(tensor)
    }

    /// A matrix put together from them.
    pub fn matrix(&self, random: &mut Random, rows: usize, cols: usize) -> Result<Tensor, Failure> {
        let Self(pool) = self;
        let size = rows * (cols / pool.format().block_len()) * pool.format().block_bytes();
        let mut bytes = Vec::with_capacity(size + pool.row_bytes());
        while bytes.len() < size {
            let block = random.bits() as usize % POOL;
            bytes.extend_from_slice(&pool.bytes()[block * pool.row_bytes()..][..pool.row_bytes()]);
        }
        bytes.truncate(size);
        Tensor::new(pool.format(), rows, cols, Bytes::new(bytes)).map_err(tensor)
    }
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Box and Muller, 1958.
    fn normal(&mut self) -> f32 {
        let mut uniform = || ((self.bits() >> 40) as f32 + 0.5) / (1u64 << 24) as f32;
        let (a, b) = (uniform(), uniform());
        (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos()
    }
}

impl Mix {
    /// Its name.
    fn name(self) -> String {
        match self {
            Self::One(format) => format.to_string(),
            Self::Q4KM => "Q4_K_M".to_owned(),
        }
    }

    /// The format of most matrices; of rows that are not whole blocks, the one that llama.cpp falls back to.
    fn plain(self, cols: usize) -> Format {
        let format = match self {
            Self::One(format) => format,
            Self::Q4KM => Format::Q4K,
        };
        if cols.is_multiple_of(format.block_len()) {
            return format;
        }
        match format {
            Format::Q2K | Format::Q3K | Format::Q4K => Format::Q5_0,
            Format::Q5K => Format::Q5_1,
            Format::Q6K => Format::Q8_0,
            other => other,
        }
    }

    /// The format of those matrices of layer `i` that llama.cpp keeps in a better one in some layers.
    fn better(self, i: usize, layers: usize, cols: usize) -> Format {
        let more = i < layers / 8 || i >= 7 * layers / 8 || (i - layers / 8) % 3 == 2;
        match self {
            Self::Q4KM if more && cols.is_multiple_of(256) => Format::Q6K,
            _ => self.plain(cols),
        }
    }

    fn head(self, cols: usize) -> Format {
        match self {
            Self::One(Format::F32 | Format::F16 | Format::BF16 | Format::Q8_0) => self.plain(cols),
            _ if cols.is_multiple_of(256) => Format::Q6K,
            _ => Format::Q8_0,
        }
    }
}
