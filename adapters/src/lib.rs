//! Files of named tensors, and adapters: what they hold and what they change in a model.
//!
//! This crate must not know what a batch, a KV cache, a forward pass or a device is. It reads files that
//! may be hostile ([`mod@file`]) and turns adapter files of every kind into one thing: an [`Adapter`], a set of
//! [`Edit`]s, each naming a [`Site`] of the model in architecture-neutral terms and the [`Change`] made there.
//!
//! ```no_run
//! use graftwork_adapters::{Adapter, Change};
//!
//! // A PEFT directory, a safetensors file with its adapter_config.json beside it, or a GGUF LoRA.
//! let adapter = Adapter::open("examples/adapters/tools-lora")?;
//! for edit in &adapter.edits {
//!     if let Change::LowRank { a, b, scale, .. } = &edit.change {
//!         println!("{}: y += {scale} * B A x, rank {}, {} outputs", edit.site, a.rows(), b.rows());
//!     }
//! }
//! # Ok::<(), graftwork_adapters::Error>(())
//! ```

// The mmap wrapper is the one exception.
#![deny(unsafe_code)]

mod ablation;
mod adalora;
mod adapterhub;
mod bottleneck;
pub mod check;
pub mod combine;
pub mod compress;
mod content;
mod control_vector;
pub mod delta;
mod error;
pub mod expand;
pub mod file;
pub mod finite;
mod ia3;
mod ln_tuning;
mod loha;
mod lokr;
mod lora;
pub mod lora_gguf;
pub mod merge;
mod names;
mod oft;
mod open;
mod p_tuning;
mod parts;
mod pattern;
mod peft;
mod peft_write;
mod prefix;
pub mod prompt;
pub mod rows;
pub mod seed;
mod shira;
mod site;
mod vera;

pub use content::Content;
pub use delta::Coded;
pub use error::Error;
pub use file::{Source, TensorFile};
pub use peft_write::write_peft;
pub use rows::RowOrder;
pub use site::{Module, Site};

use std::sync::Arc;

pub use graftwork_kernels::backend::Activation;
use graftwork_kernels::{Bytes, Tensor};

/// Reads the tensors of a PEFT file.
type ReadPeft = fn(&peft::Config, &parts::Reader) -> Result<Vec<Edit>, Error>;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal $(, $peft:literal, $module:ident)?;)*) => {
        /// What kind of adapter a file holds.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Kind { $($(#[doc = $doc])* $variant,)* }

        impl Kind {
            /// Every kind, in the order of the table.
            pub const ALL: &[Kind] = &[$(Kind::$variant,)*];

            /// The name shown to people, such as `lora`.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$variant => $name,)* }
            }

            /// The `peft_type` that says this kind in `adapter_config.json`; none of kinds that PEFT's files do not hold.
            pub fn peft_type(self) -> Option<&'static str> {
                match self { $($(Kind::$variant => Some($peft),)?)* _ => None }
            }

            /// The kind of a `peft_type`, and what reads the tensors of its files.
            fn of_peft_type(name: &str) -> Option<(Self, ReadPeft)> {
                match name { $($($peft => Some((Kind::$variant, $module::read)),)?)* _ => None }
            }
        }
    };
}

kinds! {
    /// Low-rank updates of linear layers: `y += s B A x`.
    Lora = "lora", "LORA", lora;
    /// Low-rank updates with singular values: `y += s B E A x`.
    AdaLora = "adalora", "ADALORA", adalora;
    /// Low-rank updates that share their matrices: `y += b (B (d (A x)))`.
    Vera = "vera", "VERA", vera;
    /// Products of low-rank matrices element by element: `y += s (W1 * W2) x`.
    LoHa = "loha", "LOHA", loha;
    /// Kronecker products: `y += s (W1 (x) W2) x`.
    LoKr = "lokr", "LOKR", lokr;
    /// Sparse updates: `y += S x`.
    Shira = "shira", "SHIRA", shira;
    /// Factors of outputs and inputs: `y = l * (W x)`, `y = W (l * x)`.
    Ia3 = "ia3", "IA3", ia3;
    /// The weights of norms, replaced.
    LnTuning = "ln_tuning", "LN_TUNING", ln_tuning;
    /// Virtual tokens before the prompt.
    PromptTuning = "prompt_tuning", "PROMPT_TUNING", prompt;
    /// Virtual tokens that a small network made.
    PTuning = "p_tuning", "P_TUNING", p_tuning;
    /// Keys and values before the prompt.
    PrefixTuning = "prefix_tuning", "PREFIX_TUNING", prefix;
    /// Rotations of inputs: `y = W (x R)`.
    Oft = "oft", "OFT", oft;
    /// Small networks in series or in parallel with layers: `y += s U f(D x)`.
    Bottleneck = "bottleneck", "BOTTLENECK", bottleneck;
    /// Directions that are added to the residual stream.
    ControlVector = "control_vector", "CONTROL_VECTOR", control_vector;
    /// Directions that are taken out of the residual stream: `h -= (h Q) Q^T`.
    Ablation = "ablation", "ABLATION", ablation;
    /// Compressed differences of full fine-tunes: `y += sum_g U_g (s_g * (V_g x))`, signs, codes or entries.
    Delta = "delta";
    /// Coefficients of random directions: `y += s (sum_k c_k Z_k) x`.
    SeedPatch = "seed_patch";
}

/// A loaded adapter: changes at named sites of a model, checked for everything that can be checked
/// without the base. [`check::fits`] checks the rest against a base.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// What kind of adapter the file said it is.
    pub kind: Kind,
    /// The changes, ordered by site.
    pub edits: Vec<Edit>,
    /// The order of q and k rows in every edit.
    pub row_order: RowOrder,
    /// The architecture of the base that the file names, in GGUF's terms (`llama`); PEFT files name none.
    pub architecture: Option<String>,
    /// The base model that the file says it was trained on, for messages only.
    pub base_model: Option<String>,
    /// The bases that it is for, of which the file says more than a name; none: any that it fits.
    pub bases: Vec<delta::Fingerprint>,
    /// The adapter acts on the tokens from the last of these sequences in the prompt on, itself included; on none where the
    /// prompt holds none (aLoRA). Empty: on all tokens.
    pub invocation: Vec<u32>,
    /// The tensors of the file, for messages only.
    pub keys: Vec<Key>,
    /// The tokenizer that lies in the directory of an adapter that replaces the embedding or rows of it: it may have tokens of its own.
    pub text: Option<TextFiles>,
}

/// A tokenizer as a Hugging Face directory has it.
#[derive(Clone, Debug)]
pub struct TextFiles {
    /// `tokenizer.json`, as it is in the file.
    pub tokenizer: Bytes,
    /// `tokenizer_config.json`, if there is one.
    pub config: Option<serde_json::Value>,
    /// `chat_template.jinja`, if there is one.
    pub chat_template: Option<String>,
}

/// A tensor of an adapter's file.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its name.
    pub tensor: String,
    /// The site that it belongs to; none if it belongs to all.
    pub site: Option<Site>,
    /// Its shape.
    pub shape: Vec<u64>,
}

/// One change at one site.
#[derive(Clone, Debug)]
pub struct Edit {
    /// Where.
    pub site: Site,
    /// What.
    pub change: Change,
}

/// What an edit does at its site. `x` is the input of the site's linear layer, `y` its output.
#[derive(Clone, Debug)]
pub enum Change {
    /// `y += scale * (B (A x) + bias)`; with a magnitude `y += (c - 1) * (W x) + c * scale * (B (A x))`, where
    /// `c[o] = magnitude[o] / |W[o,:] + scale (B A)[o,:]|` and `W x` is what the layer gives so far, without its bias. Of the
    /// embedding, where `x` says which token it is, `A` is `[rank, vocabulary]` and `B` `[width, rank]`.
    LowRank {
        /// `A`, shape `[rank, inputs]`.
        a: Tensor,
        /// `B`, shape `[outputs, rank]`; rows of q and k in the adapter's [`RowOrder`].
        b: Tensor,
        /// `alpha / rank` or `alpha / sqrt(rank)`, with alpha and rank of this very site.
        scale: f32,
        /// PEFT's `lora_B.bias`, shape `[1, outputs]`: scaled with the update; same row order as `b`.
        bias: Option<Tensor>,
        /// DoRA's magnitude of each output, shape `[1, outputs]`; same row order as `b`.
        magnitude: Option<Tensor>,
    },
    /// The bias of the layer *becomes* `values`, shape `[1, outputs]` (PEFT's `bias: lora_only` and `all`);
    /// row order as in [`Adapter::row_order`]. Where the base has no bias, its bias counts as zero.
    Bias {
        /// The new bias.
        values: Tensor,
    },
    /// `y += outer * (B[:outputs] (inner * (A[:, :inputs] x)))`, products with the vectors element by element.
    Shared {
        /// `A`, shape `[rank, inputs or more]`, the same in many edits.
        a: Tensor,
        /// `B`, shape `[outputs or more, rank]`, likewise.
        b: Tensor,
        /// Shape `[1, rank]`.
        inner: Tensor,
        /// Shape `[1, outputs]`.
        outer: Tensor,
    },
    /// `y += scale * ((W1a W1b) * (W2a W2b)) x`, the two products multiplied element by element.
    Hadamard {
        /// `W1a [outputs, r1]` and `W1b [r1, inputs]`.
        first: (Tensor, Tensor),
        /// `W2a [outputs, r2]` and `W2b [r2, inputs]`.
        second: (Tensor, Tensor),
        /// `alpha / rank`.
        scale: f32,
    },
    /// `y += scale * (L (x) R) x`, the Kronecker product: `y[i b + j] += scale * sum_kl L[i,k] R[j,l] x[k d + l]`.
    Kronecker {
        /// `L [a, c]`.
        left: Factor,
        /// `R [b, d]`; `a b` outputs and `c d` inputs.
        right: Factor,
        /// `alpha / rank`.
        scale: f32,
    },
    /// `y += U (s * (V x))`, of a compressed delta.
    Factors {
        /// `V [rank, inputs]`.
        v: Coded,
        /// Length `rank`.
        s: Vec<f32>,
        /// `U [outputs, rank]`, rows of q and k in the adapter's [`RowOrder`].
        u: Coded,
    },
    /// `y += scale * (D x)`, of a compressed delta.
    Whole {
        /// `D [outputs, inputs]`, rows of q and k in the adapter's [`RowOrder`].
        matrix: Coded,
        /// A number.
        scale: f32,
    },
    /// `y += D x`, with `D [outputs, inputs]` as the patch makes it for this layer: [`SeedPatch::update`](seed::SeedPatch::update).
    Seeded {
        /// The same in all edits of an adapter.
        patch: Arc<seed::SeedPatch>,
    },
    /// `y[rows[e]] += values[e] x[columns[e]]` for every entry `e`.
    Sparse {
        /// The output of each entry.
        rows: Arc<[u32]>,
        /// Its input.
        columns: Arc<[u32]>,
        /// Shape `[1, entries]`.
        values: Tensor,
    },
    /// Entries of the weight that become others: `y[rows[e]] += (values[e] - before[e]) x[columns[e]]`.
    Overwrite {
        /// The output of each entry.
        rows: Arc<[u32]>,
        /// Its input.
        columns: Arc<[u32]>,
        /// What they become, shape `[1, entries]`.
        values: Tensor,
        /// What they were, shape `[1, entries]`.
        before: Tensor,
    },
    /// `y = values * y`, bias included.
    OutputScale {
        /// Shape `[1, outputs]`, row order as in [`Adapter::row_order`].
        values: Tensor,
    },
    /// `y = W (values * x)`.
    InputScale {
        /// Shape `[1, inputs]`.
        values: Tensor,
    },
    /// The weight of a norm, the embedding or the head *becomes* this one.
    Replace {
        /// The new weight, in the shape of the old one.
        weight: Tensor,
    },
    /// `x = x R`, with the blocks of `R` on the diagonal as [`expand::rotations`] makes them. The bias stays as it is.
    Rotation {
        /// What is above the diagonal of each block's `Q`, row after row: `[blocks, size (size - 1) / 2]`. One alone
        /// stands for all.
        skew: Tensor,
        /// How `R` comes of `Q`.
        cayley: expand::Cayley,
    },
    /// `v += z` with `z = scale * channels * (U f(D u + d) + e)`: what `u` and `v` are, `place` says.
    Bottleneck {
        /// Where it stands.
        place: Place,
        /// `D [size, inputs]`.
        down: Tensor,
        /// `d`, shape `[1, size]`.
        down_bias: Option<Tensor>,
        /// `f`.
        activation: Activation,
        /// `U [outputs, size]`; in parallel with q or k in the adapter's [`RowOrder`], as all over outputs.
        up: Tensor,
        /// `e`, shape `[1, outputs]`.
        up_bias: Option<Tensor>,
        /// A number.
        scale: f32,
        /// A factor of each output, shape `[1, outputs]`.
        channels: Option<Tensor>,
    },
    /// `h += values`, of the residual stream.
    Add {
        /// Shape `[1, width]`.
        values: Tensor,
    },
    /// `h -= (h Q) Q^T`, of the residual stream.
    Project {
        /// The orthonormal columns of `Q` as rows: `[directions, width]`.
        directions: Tensor,
    },
    /// Rows of the embedding or the head *become* these.
    Rows {
        /// Which, each once, in ascending order.
        tokens: Arc<[u32]>,
        /// The new rows, `[tokens, width]`.
        rows: Tensor,
    },
    /// Virtual tokens with these embeddings come before the prompt, or stand where a request places them.
    VirtualTokens {
        /// `[tokens, width]`.
        rows: Tensor,
    },
    /// Positions with these keys and values come before all others: in row `p`, `K_l[p]` is piece `2 l` and `V_l[p]` piece
    /// `2 l + 1` of equal pieces `[key-value heads * head dimension]`. Keys are not rotated; their order within a head is
    /// the adapter's [`RowOrder`].
    Prefix {
        /// `[positions, 2 * layers * key-value heads * head dimension]`.
        rows: Tensor,
        /// How many layers they are for.
        layers: usize,
    },
}

/// Where a bottleneck stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At a linear layer, before its weight: it changes `x` and reads `x`.
    Input,
    /// Behind that with which it is in series: it changes and reads the output of a linear layer before that is added to the
    /// residual stream, or the residual stream.
    Series,
    /// Beside that with which it is in parallel: it changes the output of a linear layer and reads its input, or changes the
    /// residual stream and reads what that was before attention or feed-forward part were added.
    Parallel,
}

/// A matrix, whole or as a product.
#[derive(Clone, Debug)]
pub enum Factor {
    /// The matrix.
    Whole(Tensor),
    /// The left factor and the right one.
    Product(Tensor, Tensor),
}

impl Factor {
    /// Its rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::Whole(tensor) | Self::Product(tensor, _) => tensor.rows(),
        }
    }

    /// Its columns.
    pub fn cols(&self) -> usize {
        match self {
            Self::Whole(tensor) | Self::Product(_, tensor) => tensor.cols(),
        }
    }

    /// The matrix.
    ///
    /// # Errors
    /// No memory for a product.
    pub fn whole(&self) -> Result<Tensor, graftwork_kernels::Error> {
        match self {
            Self::Whole(tensor) => Ok(tensor.clone()),
            Self::Product(left, right) => expand::product(left, right),
        }
    }
}

impl Change {
    /// Whether it can only be there or not: then the weight of a request is 0 or 1.
    pub fn is_whole(&self) -> bool {
        matches!(
            self,
            Self::Replace { .. }
                | Self::Rows { .. }
                | Self::Rotation { .. }
                | Self::VirtualTokens { .. }
                | Self::Prefix { .. }
        )
    }

    /// The bytes that it holds, as in the file.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Factors { v, s, u } => v.bytes().len() + size_of_val(&s[..]) + u.bytes().len(),
            Self::Whole { matrix, .. } => matrix.bytes().len(),
            Self::Seeded { patch } => size_of_val(patch.coefficients()),
            change => change.tensors().iter().map(|tensor| tensor.bytes().len()).sum(),
        }
    }

    /// The tensors that it holds, as in the file; matrices of a compressed delta only where they lie row after row.
    pub fn tensors<'a>(&'a self) -> Vec<&'a Tensor> {
        let factor = |factor: &'a Factor| match factor {
            Factor::Whole(tensor) => vec![tensor],
            Factor::Product(left, right) => vec![left, right],
        };
        match self {
            Self::LowRank { a, b, bias, magnitude, .. } => {
                [a, b].into_iter().chain(bias).chain(magnitude).collect()
            }
            Self::Bias { values }
            | Self::Sparse { values, .. }
            | Self::OutputScale { values }
            | Self::InputScale { values }
            | Self::Replace { weight: values }
            | Self::Rotation { skew: values, .. }
            | Self::Add { values }
            | Self::Project { directions: values }
            | Self::VirtualTokens { rows: values }
            | Self::Prefix { rows: values, .. }
            | Self::Rows { rows: values, .. } => vec![values],
            Self::Bottleneck { down, down_bias, up, up_bias, channels, .. } => {
                [down, up].into_iter().chain(down_bias).chain(up_bias).chain(channels).collect()
            }
            Self::Overwrite { values, before, .. } => vec![values, before],
            Self::Factors { v, u, .. } => v.as_rows().into_iter().chain(u.as_rows()).collect(),
            Self::Whole { matrix, .. } => matrix.as_rows().into_iter().collect(),
            Self::Seeded { .. } => Vec::new(),
            Self::Shared { a, b, inner, outer } => vec![a, b, inner, outer],
            Self::Hadamard { first, second, .. } => vec![&first.0, &first.1, &second.0, &second.1],
            Self::Kronecker { left, right, .. } => [factor(left), factor(right)].concat(),
        }
    }
}

impl Adapter {
    /// Changes that act on all tokens, with rows in Hugging Face order, and nothing beside them.
    fn new(kind: Kind, edits: Vec<Edit>, keys: Vec<Key>) -> Self {
        Self {
            kind,
            edits,
            row_order: RowOrder::HuggingFace,
            architecture: None,
            base_model: None,
            bases: Vec::new(),
            invocation: Vec::new(),
            keys,
            text: None,
        }
    }

    /// Opens an adapter from a path or from memory and checks it.
    ///
    /// The container decides: a directory is PEFT's (`adapter_config.json`, `adapter_model.safetensors` or else
    /// `adapter_model.bin`) or AdapterHub's (`adapter.safetensors` or else `pytorch_adapter.bin`), a file that starts with `GGUF`
    /// is a GGUF LoRA or a control vector, a safetensors file says whether it is a delta or a seed patch, any other file is safetensors or torch's with its `adapter_config.json` in the same
    /// directory, or safetensors with nothing but virtual tokens ([`prompt::BARE`]). Files up to [`file::SMALL`] bytes are read
    /// into memory and checked whole (every value finite); larger ones are mapped and checked for names and shapes.
    ///
    /// # Errors
    /// Whatever is malformed or not understood, naming the file, tensor or field: an adapter is never applied in part.
    pub fn open(source: impl Into<Source>) -> Result<Self, Error> {
        open::open(source.into())
    }

    /// Reads a PEFT adapter from the bytes of `adapter_config.json` and of `adapter_model.safetensors` or `.bin`.
    ///
    /// # Errors
    /// As [`Adapter::open`].
    pub fn from_peft(config: &[u8], weights: Bytes) -> Result<Self, Error> {
        open::by_kind(&peft::Config::parse(config)?, weights)
    }
}
