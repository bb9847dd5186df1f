//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand};
use graftwork::compress::Method;
use graftwork::quantize::FileType;
use graftwork_adapters::combine;
use graftwork_kernels::Format;

/// One base model, many adapters.
#[derive(Parser)]
#[command(name = "graftwork", version, about, max_term_width = 110)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// Answer several prompts in one batch, each through its own adapter, beside the base model's answers
    #[command(after_help = "Examples:\n  graftwork demo\n  graftwork demo --threads 4")]
    Demo(Demo),
    /// Put a known model in the cache folder and print its path
    #[command(after_help = "Examples:\n  graftwork pull smollm2")]
    Pull {
        /// The model's name: smollm2
        name: String,
    },
    /// Answer prompts
    #[command(after_help = "Examples:
  graftwork run -m smollm2 --chat -p 'Why is the sky blue?'
  graftwork run -m smollm2 -a tools=examples/adapters/tools-lora --use tools --chat -i
  graftwork run -m base.gguf -a fr=french.gguf -a law=law-lora -f requests.jsonl --batch 16 --json

A line of requests.jsonl:
  {\"id\": 7, \"prompt\": \"Hello\", \"adapters\": [[\"fr\", 0.5], [\"law\", 1]], \"max_tokens\": 64}
with `prompt`, `messages` ([{\"role\": \"user\", \"content\": \"...\"}], also `tools`), `tokens` or `parts`
([{\"text\": \"...\"}, {\"tokens\": [1]}, {\"virtual\": \"fr\", \"first\": 5}], virtual tokens of an adapter); the rest is optional:
id, adapters, max_tokens, temperature, top_k, top_p, min_p, seed and stop ([\"...\"]).")]
    Run(Run),
    /// Write the logits of given token ids: the self-check against a reference
    #[command(after_help = "Examples:
  graftwork logits -m base-directory -a lora-directory --tokens 1,2,3 --out logits.safetensors
  graftwork logits -m base.gguf -a lora.gguf:0.5 --tokens-file tokens.safetensors --out logits.safetensors")]
    Logits(Logits),
    /// Compare logits and hidden states with a reference made by transformers, and say where they first diverge
    #[command(after_help = "Examples:
  python3 scripts/reference.py base-directory reference.safetensors --text 'Once upon a time' --adapter lora-directory
  graftwork verify -m base-directory -a lora-directory --reference reference.safetensors
  graftwork verify -m base.gguf -a lora.gguf --reference reference.safetensors --tolerance 0.05 --json

Exits 1 where they diverge. docs/verify.md says what is in the reference and what counts as divergence.")]
    Verify(Verify),
    /// Measure prefill and decode speed beside this machine's measured limits
    #[command(after_help = "Examples:
  graftwork bench -m smollm2
  graftwork bench -m smollm2 -a examples/adapters/tools-lora --threads 2 --repeat 5 --json
  graftwork bench -m smollm2 --batch 8 --random-adapters 8:16
  graftwork bench -m smollm2 --batch 8 --random-deltas 8:1.5
  graftwork bench -m smollm2 --pp 4096 --tg 2048 --cache-type q8_0")]
    Bench(Bench),
    /// Make a compressed delta of a full fine-tune
    #[command(after_help = "Examples:
  graftwork compress --base base.gguf --tuned tuned-directory -o tuned.delta
  graftwork compress --base smollm2 --tuned tuned.gguf --bits 0.5 --calib texts.jsonl --held-out prompts.jsonl -o t.delta
  graftwork compress --base base-directory --for base-q4.gguf --tuned tuned-directory --method sparse -o tuned.delta

TEXTS is a text, or with the ending .jsonl one JSON object a line: {\"text\": \"...\"} (special tokens in it count, so that
it may be a rendered chat), {\"messages\": [{\"role\": \"user\", \"content\": \"...\"}]} or {\"tokens\": [1, 2, 3]}.
A run that was interrupted goes on where it ended.")]
    Compress(Compress),
    /// Make a patch that gives chosen weights of a tuned model back the values of an aligned one, or one that takes that back
    #[command(after_help = "Examples:
  graftwork restore --aligned aligned-directory -m tuned-directory --rate 0.002 -o restore.delta
  graftwork restore --aligned base.gguf -m base.gguf -a lora-directory --mask mask.safetensors -o restore.delta
  graftwork restore --rollback restore.delta -o rollback.delta

The patch is an adapter: requests that name it, behind the adapters it was made for, use the restored weights; `graftwork merge`
writes them. MASK holds, by the names of weights in Hugging Face files, U8 or BOOL of their shapes; what is not 0 is restored.")]
    Restore(Restore),
    /// Make an adapter for an old base one for a base that came of it
    #[command(after_help = "Examples:
  graftwork port --from base-v1.gguf --to base-v2.gguf lora-directory -o lora-v2
  graftwork port --from old-directory --to new-directory tuned.delta -o tuned-v2.delta --json

The report says how far each tensor of the new base is from the old one's, |W' - W| / |W|. A base of other names, shapes or tokens, or
of weights that have nothing in common with the old one's, is refused.")]
    Port(Port),
    /// Take what a tuned model changed out of it, as an adapter that is no larger than it must be
    #[command(after_help = "Examples:
  graftwork diff base-directory tuned-directory -o tuned.delta
  graftwork diff base.gguf tuned.gguf -o tuned.delta --error 0.001

Each matrix becomes a low-rank product, its changed entries or all entries, whichever is smallest; those that did not change
take nothing. Changed norms, embedding and head are carried whole.")]
    Diff(Diff),
    /// Write a model as a GGUF file of a smaller format
    #[command(after_help = "Examples:
  graftwork quantize base-directory base.gguf --to Q4_K_M
  graftwork quantize base-f16.gguf base.gguf --to Q3_K_M --calib texts.jsonl
  graftwork quantize smollm2 small.gguf --to Q2_K --json

Formats: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q2_K_S, Q3_K_S, Q3_K_M, Q3_K_L, Q4_K_S, Q4_K_M, Q5_K_S,
Q5_K_M and Q6_K, mixed as llama.cpp does. TEXTS is as in `graftwork compress --help`.")]
    Quantize(Quantize),
    /// Make adapters part of a model, or several adapters one
    #[command(after_help = "Examples:
  graftwork merge -m base-directory -a lora-directory -o merged-directory
  graftwork merge -m base.gguf -a lora.gguf:0.5 -a dora-directory -o merged.gguf
  graftwork merge -m base-directory -a tuned.delta -o merged.gguf --to Q4_K_M
  graftwork merge -a french-lora:0.7 -a law-lora:0.3 -o both-lora
  graftwork merge -a french-lora -a law-lora --method dare_ties --density 0.5 --seed 7 -o both-lora

With a model, OUT is a GGUF file where its name ends in .gguf, and else a new directory in Hugging Face layout. What is no change
of weights is refused: virtual tokens, prefixes, bottlenecks, steering, aLoRA. Without one, OUT is a PEFT directory, of LoRAs by any
method of PEFT's add_weighted_adapter, of IA3, prompts and prefixes by their weighted sum.")]
    Merge(Merge),
    /// Show what is in a model or adapter file
    #[command(after_help = "Examples:
  graftwork inspect smollm2
  graftwork inspect examples/adapters/tools-lora --base smollm2
  graftwork inspect tuned.delta --verify")]
    Inspect(Inspect),
    /// Write a model of random weights, for measurements of speed
    #[command(after_help = "Examples:
  graftwork random-model random-1.1b.gguf --format Q4_K_M
  graftwork random-model small.gguf --format Q8_0 --hidden 576 --layers 30 --ffn 1536 --heads 9 --kv-heads 3")]
    RandomModel(RandomModel),
}

/// `demo`.
#[derive(Args)]
pub struct Demo {
    /// Threads; 0 for one per core
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
}

/// `run`.
#[derive(Args)]
pub struct Run {
    /// GGUF file, Hugging Face directory, or a known model's name
    #[arg(short, long)]
    pub model: String,
    /// Load an adapter under a name: PEFT directory, safetensors file or GGUF LoRA
    #[arg(short, long = "adapter", value_name = "NAME=PATH")]
    pub adapters: Vec<NamedPath>,
    /// Answer this prompt
    #[arg(short, long, group = "input")]
    pub prompt: Option<String>,
    /// Answer the requests in this file, one JSON object a line (`-` for stdin), in one batch
    #[arg(short, long, group = "input", value_name = "REQUESTS.JSONL")]
    pub file: Option<PathBuf>,
    /// Answer what is typed, line by line; so it is without -p and -f
    #[arg(short, long, group = "input")]
    pub interactive: bool,
    /// Take prompts as messages of a chat, rendered with the model's template
    #[arg(long)]
    pub chat: bool,
    /// The system message; implies --chat
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Adapters that answer, in order, each with an optional weight; a request of -f may name others
    #[arg(long = "use", value_delimiter = ',', value_name = "NAME[:WEIGHT]")]
    pub stack: Vec<Weighted>,
    /// Most tokens of an answer
    #[arg(short = 'n', long, default_value_t = 256, value_parser = at_least_one)]
    pub tokens: usize,
    /// How tokens are chosen
    #[command(flatten)]
    pub sampling: Sampling,
    /// End an answer before this text; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub stop: Vec<String>,
    /// Threads; 0 for one per core
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
    /// What keys and values are cached as: f16, f32 or q8_0
    #[arg(long, default_value = "f16", value_name = "TYPE", value_parser = cache_type)]
    pub cache_type: Format,
    /// Sequences that run at once
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one)]
    pub batch: usize,
    /// One JSON object per answer
    #[arg(long)]
    pub json: bool,
}

/// Options of sampling.
#[derive(Args, Clone, Copy)]
pub struct Sampling {
    /// 0 takes the likeliest token
    #[arg(long, default_value_t = 0.0, value_name = "T", value_parser = temperature, allow_negative_numbers = true)]
    pub temp: f32,
    /// Choose among the K likeliest tokens; 0 for all
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub top_k: usize,
    /// Choose among the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0, value_name = "P", value_parser = top_p, allow_negative_numbers = true)]
    pub top_p: f32,
    /// Choose among tokens at least this likely relative to the likeliest
    #[arg(long, default_value_t = 0.0, value_name = "P", value_parser = min_p, allow_negative_numbers = true)]
    pub min_p: f32,
    /// Seed of the choices
    #[arg(long, default_value_t = 0, value_name = "S")]
    pub seed: u64,
}

/// `logits`.
#[derive(Args)]
pub struct Logits {
    /// GGUF file, Hugging Face directory, or a known model's name
    #[arg(short, long)]
    pub model: String,
    /// Apply an adapter, with an optional weight; may be given several times, applied in order
    #[arg(short, long = "adapter", value_name = "PATH[:WEIGHT]")]
    pub adapters: Vec<Weighted>,
    /// Token ids of one sequence
    #[arg(long, value_delimiter = ',', value_name = "1,2,3", required_unless_present = "tokens_file")]
    pub tokens: Vec<u32>,
    /// A safetensors file with `tokens`, integers [sequences, positions]
    #[arg(long, value_name = "FILE", conflicts_with = "tokens")]
    pub tokens_file: Option<PathBuf>,
    /// Where to write `logits`, F32 [sequences, positions, vocabulary]
    #[arg(long, value_name = "OUT.SAFETENSORS")]
    pub out: PathBuf,
    /// Threads; 0 for one per core
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
}

/// `verify`.
#[derive(Args)]
pub struct Verify {
    /// GGUF file, Hugging Face directory, or a known model's name
    #[arg(short, long)]
    pub model: String,
    /// Apply an adapter, with an optional weight; may be given several times, applied in order
    #[arg(short, long = "adapter", value_name = "PATH[:WEIGHT]")]
    pub adapters: Vec<Weighted>,
    /// What scripts/reference.py wrote
    #[arg(long, value_name = "REF.SAFETENSORS")]
    pub reference: PathBuf,
    /// What may be off by, relative: what adapters add (0.001; 0.02 on a quantized model) where the reference has the base, else values
    /// (0.001; 0.05)
    #[arg(long, value_name = "T", value_parser = tolerance, allow_negative_numbers = true)]
    pub tolerance: Option<f64>,
    /// Threads; 0 for one per core
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// `bench`.
#[derive(Args)]
pub struct Bench {
    /// GGUF file, Hugging Face directory, or a known model's name
    #[arg(short, long)]
    pub model: String,
    /// Apply an adapter to every sequence; may be given several times
    #[arg(short, long = "adapter", value_name = "PATH")]
    pub adapters: Vec<PathBuf>,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 512, value_parser = at_least_one)]
    pub pp: usize,
    /// Tokens of each answer
    #[arg(long, default_value_t = 128, value_parser = at_least_one)]
    pub tg: usize,
    /// Sequences at once
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    pub batch: usize,
    /// Threads; 0 for one per core
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
    /// What keys and values are cached as: f16, f32 or q8_0
    #[arg(long, default_value = "f16", value_name = "TYPE", value_parser = cache_type)]
    pub cache_type: Format,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 3, value_parser = at_least_one)]
    pub repeat: usize,
    /// Give each sequence one of COUNT synthetic LoRAs of rank RANK on every linear layer
    #[arg(long, value_name = "COUNT:RANK")]
    pub random_adapters: Option<CountRank>,
    /// Give each sequence one of COUNT synthetic compressed deltas of every linear layer, Delta-CoMe's stages in BITS bits for each
    /// weight, 1 where left out
    #[arg(long, value_name = "COUNT[:BITS]", conflicts_with = "random_adapters")]
    pub random_deltas: Option<CountBits>,
    /// Measure too what COUNT synthetic LoRAs of rank RANK cost that are loaded, but used by no sequence
    #[arg(long, value_name = "COUNT:RANK")]
    pub unused_adapters: Option<CountRank>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// `compress`.
#[derive(Args)]
pub struct Compress {
    /// What the tuned model was tuned from: GGUF file, Hugging Face directory, or a known model's name
    #[arg(long, value_name = "MODEL")]
    pub base: String,
    /// The full fine-tune: GGUF file or Hugging Face directory
    #[arg(long, value_name = "MODEL")]
    pub tuned: PathBuf,
    /// The delta to write; what is done is kept in OUT.parts until all is
    #[arg(short, long)]
    pub out: PathBuf,
    /// What is done to the linear layers: delta-come, delta-come-published, bitdelta, low-rank, ternary, sparse, dense or least
    #[arg(long, default_value = "delta-come")]
    pub method: Method,
    /// Bits for each weight, all counted, of delta-come, low-rank (1 if not given) and sparse (all that changed, exact)
    #[arg(long, value_name = "B", value_parser = bits)]
    pub bits: Option<f64>,
    /// The greatest |E| / |D| of a matrix, of least
    #[arg(long, default_value_t = 0.01, value_name = "E")]
    pub error: f64,
    /// Make the error of outputs small on these texts, which the base reads, not that of weights
    #[arg(long, value_name = "TEXTS")]
    pub calib: Option<PathBuf>,
    /// Say at the end how far base and delta are from the tuned model on these texts
    #[arg(long, value_name = "TEXTS")]
    pub held_out: Option<PathBuf>,
    /// Another file of the same base, such as a quantized one, that the delta is for too; may be given several times
    #[arg(long = "for", value_name = "MODEL")]
    pub others: Vec<String>,
    /// MiB that sums of inputs of layers may take; if they take more, texts are read several times
    #[arg(long, default_value_t = 1024, value_name = "MIB", value_parser = at_least_one)]
    pub memory: usize,
    /// Threads, each for a matrix of its own; 0 for one per core
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
    /// One JSON object, with every matrix
    #[arg(long)]
    pub json: bool,
}

/// `quantize`.
#[derive(Args)]
pub struct Quantize {
    /// GGUF file, Hugging Face directory, or a known model's name
    #[arg(value_name = "IN")]
    pub model: String,
    /// The GGUF file to write
    pub out: PathBuf,
    /// The formats of the matrices
    #[arg(long, value_name = "FORMAT")]
    pub to: FileType,
    /// Make the error small where these texts, which the model reads, have large inputs
    #[arg(long, value_name = "TEXTS")]
    pub calib: Option<PathBuf>,
    /// Threads; 0 for one per core
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
    /// One JSON object, with every tensor
    #[arg(long)]
    pub json: bool,
}

/// `restore`.
#[derive(Args)]
pub struct Restore {
    /// The model whose values come back: GGUF file, Hugging Face directory, or a known model's name
    #[arg(long, value_name = "MODEL", required_unless_present = "rollback", requires = "model")]
    pub aligned: Option<String>,
    /// The model that is restored
    #[arg(short, long, requires = "aligned")]
    pub model: Option<String>,
    /// An adapter on it, with an optional weight; may be given several times, applied in order
    #[arg(short, long = "adapter", value_name = "PATH[:WEIGHT]", requires = "aligned")]
    pub adapters: Vec<Weighted>,
    /// Restore this share of each matrix, where the two models differ most
    #[arg(long, value_name = "R", requires = "aligned", required_unless_present_any = ["mask", "rollback"])]
    pub rate: Option<f64>,
    /// Restore what this file chooses
    #[arg(long, value_name = "FILE", requires = "aligned", conflicts_with = "rate")]
    pub mask: Option<PathBuf>,
    /// Restore the first N blocks only
    #[arg(long, value_name = "N", requires = "aligned")]
    pub layers: Option<usize>,
    /// Make the patch that takes this one back
    #[arg(long, value_name = "PATCH", conflicts_with_all = ["aligned", "mask", "rate", "layers", "model", "adapters"])]
    pub rollback: Option<PathBuf>,
    /// The patch to write
    #[arg(short, long)]
    pub out: PathBuf,
    /// Threads, each for a matrix of its own; 0 for one per core
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
    /// One JSON object, with every matrix
    #[arg(long)]
    pub json: bool,
}

/// `port`.
#[derive(Args)]
pub struct Port {
    /// The adapter: a file or directory
    pub adapter: PathBuf,
    /// The base that it was trained on: GGUF file, Hugging Face directory, or a known model's name
    #[arg(long, value_name = "OLD_BASE")]
    pub from: String,
    /// The base that it is to be for
    #[arg(long, value_name = "NEW_BASE")]
    pub to: String,
    /// The adapter to write: a file if ADAPTER is one, else a new directory
    #[arg(short, long)]
    pub out: PathBuf,
    /// Warn where a tensor that the adapter changes is farther from what it was
    #[arg(long, value_name = "DRIFT", default_value_t = graftwork::port::FAR)]
    pub warn: f64,
    /// Threads; 0 for one per core
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
    /// One JSON object, with every tensor
    #[arg(long)]
    pub json: bool,
}

/// `diff`.
#[derive(Args)]
pub struct Diff {
    /// What the tuned model was tuned from: GGUF file, Hugging Face directory, or a known model's name
    pub base: String,
    /// The tuned model: GGUF file or Hugging Face directory
    pub tuned: PathBuf,
    /// The delta to write; what is done is kept in OUT.parts until all is
    #[arg(short, long)]
    pub out: PathBuf,
    /// The greatest |E| / |D| of a matrix, whose change is D; 0 for exact entries
    #[arg(long, default_value_t = 0.01, value_name = "E")]
    pub error: f64,
    /// Threads, each for a matrix of its own; 0 for one per core
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
    /// One JSON object, with every matrix
    #[arg(long)]
    pub json: bool,
}

/// `merge`.
#[derive(Args)]
pub struct Merge {
    /// The model: GGUF file, Hugging Face directory, or a known model's name; without it the adapters become one
    #[arg(short, long)]
    pub model: Option<String>,
    /// Merge an adapter, with an optional weight; may be given several times, applied in order
    #[arg(short, long = "adapter", value_name = "PATH[:WEIGHT]", required = true)]
    pub adapters: Vec<Weighted>,
    /// The GGUF file, NAME.gguf, or the directory to write
    #[arg(short, long)]
    pub out: PathBuf,
    /// The formats of the matrices, as of `quantize`; without it those that they have. A directory holds F32, F16 or BF16
    #[arg(long, value_name = "FORMAT", requires = "model")]
    pub to: Option<FileType>,
    /// How adapters become one: linear, cat, svd, ties, ties_svd, dare_linear, dare_ties, dare_linear_svd, dare_ties_svd,
    /// magnitude_prune or magnitude_prune_svd
    #[arg(long, default_value = "linear", conflicts_with = "model")]
    pub method: combine::Method,
    /// The rank of the result of methods with svd; without it the greatest of the adapters
    #[arg(long, value_name = "R", conflicts_with = "model")]
    pub rank: Option<usize>,
    /// The share of values that methods that prune keep
    #[arg(long, value_name = "SHARE", conflicts_with = "model")]
    pub density: Option<f64>,
    /// By what methods that elect signs do so: total or frequency
    #[arg(long, default_value = "total", conflicts_with = "model")]
    pub sign: combine::MajoritySign,
    /// The seed of methods that prune at random, that of torch
    #[arg(long, default_value_t = 0, conflicts_with = "model")]
    pub seed: u64,
    /// Threads; 0 for one per core
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
    /// One JSON object, with every tensor
    #[arg(long)]
    pub json: bool,
}

/// `inspect`.
#[derive(Args)]
pub struct Inspect {
    /// A GGUF file, a Hugging Face or PEFT directory, or a known model's name
    pub path: String,
    /// Say whether the adapter fits this model
    #[arg(long, value_name = "MODEL")]
    pub base: Option<String>,
    /// Read all values: are they finite, and, of a compressed delta, those that were written?
    #[arg(long)]
    pub verify: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// `random-model`. The shape is that of TinyLlama-1.1B by default.
#[derive(Args)]
pub struct RandomModel {
    /// The GGUF file to write
    pub out: PathBuf,
    /// Format of the matrices: any of Q4_0 and the like, or Q4_K_M, mixed as llama.cpp does
    #[arg(long, default_value = "Q4_0")]
    pub format: Mix,
    /// Width of the residual stream
    #[arg(long, default_value_t = 2048, value_parser = at_least_one)]
    pub hidden: usize,
    /// Layers
    #[arg(long, default_value_t = 22, value_parser = at_least_one)]
    pub layers: usize,
    /// Width of the feed-forward blocks
    #[arg(long, default_value_t = 5632, value_parser = at_least_one)]
    pub ffn: usize,
    /// Heads of queries
    #[arg(long, default_value_t = 32, value_parser = at_least_one)]
    pub heads: usize,
    /// Heads of keys and values
    #[arg(long, default_value_t = 4, value_parser = at_least_one)]
    pub kv_heads: usize,
    /// Tokens of the vocabulary
    #[arg(long, default_value_t = 32_000, value_parser = at_least_one)]
    pub vocab: usize,
    /// Positions of the context
    #[arg(long, default_value_t = 4096, value_parser = at_least_one)]
    pub context: usize,
    /// What the weights depend on
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// The formats of a model's matrices.
#[derive(Clone, Copy)]
pub enum Mix {
    /// The same for all, but a better head.
    One(Format),
    /// `Q4_K`, with `Q6_K` where llama.cpp takes it.
    Q4KM,
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("Q4_K_M") {
            return Ok(Self::Q4KM);
        }
        let in_gguf = |format: &Format| format.ggml_id().is_some();
        Format::from_name(text).filter(in_gguf).map(Self::One).ok_or_else(|| {
            let known: Vec<&str> = Format::ALL.iter().copied().filter(in_gguf).map(Format::name).collect();
            format!("expected Q4_K_M or one of {}", known.join(", "))
        })
    }
}

/// More threads than any machine that this is for has cores.
const MAX_THREADS: usize = 1024;

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a whole number above 0".to_owned())
}

fn threads(text: &str) -> Result<usize, String> {
    let expected = || format!("expected a whole number from 0 to {MAX_THREADS}");
    text.parse().ok().filter(|&n| n <= MAX_THREADS).ok_or_else(expected)
}

fn bits(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|&bits: &f64| bits > 0.0 && bits <= 32.0);
    number.ok_or_else(|| "expected a number above 0 and at most 32".to_owned())
}

fn cache_type(text: &str) -> Result<Format, String> {
    let known = |format: &Format| matches!(format, Format::F16 | Format::F32 | Format::Q8_0);
    Format::from_name(text).filter(known).ok_or_else(|| "expected f16, f32 or q8_0".to_owned())
}

fn temperature(text: &str) -> Result<f32, String> {
    number(text, |t| t >= 0.0 && t.is_finite(), "a number of at least 0")
}

fn top_p(text: &str) -> Result<f32, String> {
    number(text, |p| p > 0.0 && p <= 1.0, "a number above 0 and at most 1")
}

fn tolerance(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|&x: &f64| x > 0.0 && x.is_finite());
    value.ok_or_else(|| "expected a number above 0".to_owned())
}

fn min_p(text: &str) -> Result<f32, String> {
    number(text, |p| (0.0..=1.0).contains(&p), "a number from 0 to 1")
}

fn number(text: &str, allowed: impl Fn(f32) -> bool, expected: &str) -> Result<f32, String> {
    text.parse().ok().filter(|&x| allowed(x)).ok_or_else(|| format!("expected {expected}"))
}

/// `NAME=PATH`.
#[derive(Clone)]
pub struct NamedPath {
    /// The name.
    pub name: String,
    /// The path.
    pub path: PathBuf,
}

impl FromStr for NamedPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(Self { name: name.to_owned(), path: path.into() })
            }
            _ => Err("expected NAME=PATH".to_owned()),
        }
    }
}

/// `NAME[:WEIGHT]`; without a weight, 1.
#[derive(Clone)]
pub struct Weighted {
    /// The name, or a path.
    pub name: String,
    /// The weight.
    pub weight: f32,
}

impl FromStr for Weighted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A path may hold colons: what follows the last one is a weight only if it is a number.
        let weighted =
            text.rsplit_once(':').and_then(|(name, weight)| Some((name, weight.parse::<f32>().ok()?)));
        let (name, weight) = weighted.unwrap_or((text, 1.0));
        if name.is_empty() {
            return Err("expected NAME or NAME:WEIGHT".to_owned());
        }
        if !weight.is_finite() {
            return Err(format!("expected a finite weight, found {weight}"));
        }
        Ok(Self { name: name.to_owned(), weight })
    }
}

/// `COUNT:RANK`.
#[derive(Clone, Copy)]
pub struct CountRank {
    /// Adapters.
    pub count: usize,
    /// Rank of each.
    pub rank: usize,
}

impl FromStr for CountRank {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(c, r)| Some((c.parse().ok()?, r.parse().ok()?)));
        match parts {
            Some((count, rank)) if count > 0 && rank > 0 => Ok(Self { count, rank }),
            _ => Err("expected COUNT:RANK, both at least 1".to_owned()),
        }
    }
}

/// `COUNT[:BITS]`; without bits, 1.
#[derive(Clone, Copy)]
pub struct CountBits {
    /// Deltas.
    pub count: usize,
    /// Bits for each weight.
    pub bits: f64,
}

impl FromStr for CountBits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (count, bits) = text.split_once(':').unwrap_or((text, "1"));
        match (count.parse(), bits.parse()) {
            (Ok(count), Ok(bits)) if count > 0 && bits > 0.0 && bits <= 16.0 => Ok(Self { count, bits }),
            _ => Err("expected COUNT or COUNT:BITS, at least 1 and above 0 to 16".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn weights_follow_the_last_colon() {
        let parse = |text: &str| text.parse::<Weighted>().map(|w| (w.name, w.weight));
        assert_eq!(parse("a"), Ok(("a".to_owned(), 1.0)));
        assert_eq!(parse("a:0.25"), Ok(("a".to_owned(), 0.25)));
        assert_eq!(parse("C:/x:-2"), Ok(("C:/x".to_owned(), -2.0)));
        assert_eq!(parse("C:/x"), Ok(("C:/x".to_owned(), 1.0)));
        assert!(parse("a:inf").is_err());
        assert!(parse(":1").is_err());
    }

    #[test]
    fn deltas_have_one_bit_unless_told() {
        let parse = |text: &str| text.parse::<CountBits>().map(|c| (c.count, c.bits));
        assert_eq!((parse("8"), parse("2:0.5")), (Ok((8, 1.0)), Ok((2, 0.5))));
        for wrong in ["", "0", ":1", "1:", "1:0", "1:-1", "1:17", "1:nan", "1.5"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    /// Words of a line as a shell takes them; quotes are the only special characters.
    fn words(line: &str) -> Vec<String> {
        let quoted = line.split('\'').enumerate();
        quoted
            .flat_map(|(i, part)| match i % 2 {
                0 => part.split_whitespace().map(str::to_owned).collect(),
                _ => vec![part.to_owned()],
            })
            .collect()
    }

    #[test]
    fn the_examples_are_right() {
        let mut examples = 0;
        for command in Arguments::command().get_subcommands() {
            let help = command.get_after_help().expect("examples").to_string();
            for line in help.lines().map(str::trim).filter(|line| line.starts_with("graftwork ")) {
                let parsed = Arguments::try_parse_from(words(line));
                assert!(parsed.is_ok(), "{line}: {:?}", parsed.err());
                examples += 1;
            }
        }
        assert!(examples >= 12);
    }
}
