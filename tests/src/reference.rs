//! Reference data: where it lies, and how close to it is close enough.

use std::path::PathBuf;

use graftwork_adapters::TensorFile;
use graftwork_adapters::file::Safetensors;

/// A file or directory under `tests/golden`.
pub fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(path)
}

/// The adapters in `golden/adapters`, each with the logits that peft gives, or PyTorch from the formulas.
pub const ADAPTERS: &[&str] = &[
    "lora",
    "lora_all",
    "lora_rslora",
    "lora_patterns",
    "lora_bias",
    "adalora",
    "vera",
    "loha",
    "lokr",
    "shira",
    "ia3",
    "dora",
    "lora_embed_head",
    "lora_modules_to_save",
    "lora_trainable_tokens",
    "ln_tuning",
    "alora",
    "prompt_tuning",
    "p_tuning",
    "prefix_tuning",
    "prefix_tuning_projected",
    "oft",
    "oft_exact",
    "bottleneck",
    "bottleneck_adapterp",
    "bottleneck_parallel",
    "hub_seq_bn",
    "hub_double_seq_bn",
    "hub_par_bn",
    "hub_scaled_par_bn",
    "hub_lora",
    "hub_ia3",
    "control_vector",
    "ablation",
];

/// Stacks of adapters, each with the logits that peft gives in `golden/adapters/stacks`.
pub const STACKS: &[&[&str]] = &[
    &["lora", "lora_all"],
    &["lora_all", "lora_rslora"],
    &["lora", "loha"],
    &["loha", "lokr"],
    &["lokr", "lora"],
    &["lora", "oft"],
    &["adalora", "lora"],
    &["loha", "oft"],
    &["shira", "lora"],
    &["lora_all", "lokr", "loha"],
];

/// The tokens at which the adapter `alora` starts.
pub const INVOCATION: [u32; 3] = [7, 301, 7];

/// Sequences of tokens, and the logits of their last positions under a model.
pub struct Expected {
    /// One sequence of tokens per row.
    pub tokens: Vec<Vec<u32>>,
    /// The logits `[positions, vocab]` of each sequence's last positions.
    pub logits: Vec<Vec<f32>>,
    /// Width of a row of logits.
    pub vocab: usize,
}

impl Expected {
    /// Reads `tokens` I32 `[sequences, positions]` and `name` `[sequences, last positions, vocab]`.
    pub fn read(path: &str, name: &str) -> Self {
        let file = Safetensors::open(golden(path)).unwrap_or_else(|error| panic!("{error}"));
        let info = file.tensors().get("tokens").expect("tokens");
        let length = info.shape[1] as usize;
        let tokens = info.integers().expect("integers");
        let tokens = tokens.chunks(length).map(|row| row.iter().map(|&t| t as u32).collect()).collect();
        let info = file.tensors().get(name).expect("logits");
        let (positions, vocab) = (info.shape[1] as usize, info.shape[2] as usize);
        let format = info.dtype.format().expect("a float format");
        let mut logits = vec![0.0; info.shape.iter().product::<u64>() as usize];
        format.decode(&info.bytes, &mut logits);
        let logits = logits.chunks(positions * vocab).map(<[f32]>::to_vec).collect();
        Self { tokens, logits, vocab }
    }

    /// Compares `candidate`, which gives the logits of every position of a sequence.
    pub fn compare(&self, mut candidate: impl FnMut(&[u32]) -> Vec<f32>) -> Closeness {
        let mut closeness = Closeness::default();
        let mut rows = 0;
        for (tokens, expected) in self.tokens.iter().zip(&self.logits) {
            let found = candidate(tokens);
            assert_eq!(found.len(), tokens.len() * self.vocab);
            let last = &found[found.len() - expected.len()..];
            for (expected, found) in expected.chunks(self.vocab).zip(last.chunks(self.vocab)) {
                rows += 1;
                closeness.add(expected, found);
            }
        }
        closeness.mean_kl /= f64::from(rows);
        closeness.top1 /= f64::from(rows);
        closeness
    }
}

/// How close logits are to a reference.
#[derive(Clone, Copy, Debug, Default)]
pub struct Closeness {
    /// Largest difference of a logit.
    pub max_difference: f32,
    /// Mean over positions of `KL(reference || candidate)`.
    pub mean_kl: f64,
    /// Share of positions whose likeliest token is the same.
    pub top1: f64,
}

impl Closeness {
    /// Of one row of logits to another.
    pub fn of(expected: &[f32], found: &[f32]) -> Self {
        let mut closeness = Self::default();
        closeness.add(expected, found);
        closeness
    }

    fn add(&mut self, expected: &[f32], found: &[f32]) {
        let difference = expected.iter().zip(found).map(|(a, b)| (a - b).abs());
        // `max` would drop a NaN.
        self.max_difference =
            difference.fold(self.max_difference, |max, d| if d > max || d.is_nan() { d } else { max });
        let (log_p, log_q) = (log_softmax(expected), log_softmax(found));
        self.mean_kl += log_p.iter().zip(&log_q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        self.top1 += f64::from(u8::from(argmax(expected) == argmax(found)));
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    logits.iter().map(|&x| f64::from(x - max) - sum.ln()).collect()
}

/// The first largest of `values`.
pub fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}

/// Every tensor of a safetensors file in Hugging Face layout, by name.
pub fn tensors(path: &str) -> Vec<(String, graftwork_kernels::Tensor)> {
    let file = Safetensors::open(golden(path)).unwrap_or_else(|error| panic!("{error}"));
    let name = |name: &str| name.to_owned();
    file.names().into_iter().map(|n| (name(n), file.require(n).expect("a matrix"))).collect()
}

/// The GGUF file of SmolLM2 that the references in `golden/smollm2` were made with: the one that
/// `GRAFTWORK_SMOLLM2` names, else the one in the cache folder, fetched if it is not there yet.
pub fn smollm2() -> PathBuf {
    match std::env::var_os("GRAFTWORK_SMOLLM2") {
        Some(path) => path.into(),
        None => graftwork_cli::pull::pull("smollm2").unwrap_or_else(|error| panic!("{error}")),
    }
}

/// An adapter in `examples/adapters`.
pub fn example(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/adapters").join(name)
}
