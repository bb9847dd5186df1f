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

pub mod check;
mod error;
pub mod file;
pub mod finite;
pub mod lora;
pub mod lora_gguf;
mod names;
mod open;
mod pattern;
mod peft;
pub mod rows;
mod site;

pub use error::Error;
pub use file::{Source, TensorFile};
pub use rows::RowOrder;
pub use site::{Module, Site};

use graftwork_kernels::Tensor;

/// What kind of adapter a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Low-rank updates of linear layers: `y += s * B A x`.
    Lora,
}

impl Kind {
    /// Every kind, in the order of the table.
    pub const ALL: &[Kind] = &[Kind::Lora];

    /// The name shown to people, such as `lora`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Lora => "lora",
        }
    }

    /// The `peft_type` that says this kind in `adapter_config.json`.
    pub fn peft_type(self) -> &'static str {
        match self {
            Kind::Lora => "LORA",
        }
    }
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
    /// `y += scale * (B (A x) + bias)`.
    LowRank {
        /// `A`, shape `[rank, inputs]`.
        a: Tensor,
        /// `B`, shape `[outputs, rank]`; rows of q and k in the adapter's [`RowOrder`].
        b: Tensor,
        /// `alpha / rank` or `alpha / sqrt(rank)`, with alpha and rank of this very site.
        scale: f32,
        /// PEFT's `lora_B.bias`, shape `[1, outputs]`: scaled with the update; same row order as `b`.
        bias: Option<Tensor>,
    },
    /// The bias of the layer *becomes* `values`, shape `[1, outputs]` (PEFT's `bias: lora_only` and `all`);
    /// row order as in [`Adapter::row_order`]. Where the base has no bias, its bias counts as zero.
    Bias {
        /// The new bias.
        values: Tensor,
    },
}

impl Adapter {
    /// Opens an adapter from a path or from memory and checks it.
    ///
    /// The container decides: a directory is PEFT's (`adapter_config.json`, `adapter_model.safetensors`), a file
    /// that starts with `GGUF` is a GGUF LoRA, any other file is safetensors with its `adapter_config.json` in
    /// the same directory. Files up to [`file::SMALL`] bytes are read into memory and checked
    /// whole (every value finite); larger ones are mapped and checked for names and shapes.
    ///
    /// # Errors
    /// Whatever is malformed or not understood, naming the file, tensor or field: an adapter is never applied in part.
    pub fn open(source: impl Into<Source>) -> Result<Self, Error> {
        open::open(source.into())
    }
}
