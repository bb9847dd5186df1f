//! Files of named tensors. Everything is checked at the door; afterwards shapes and lengths cannot be wrong.
//!
//! The parsers are pure functions of bytes: [`Gguf::parse`], [`Safetensors::parse`], [`Torch::parse`], [`HfModel::load`] on files in
//! memory. None panics on any input, none allocates more than a small multiple of what it was given.

mod error;
pub mod gguf;
pub mod hf;
mod json;
#[allow(unsafe_code)]
mod map;
mod named;
pub mod npy;
pub mod safetensors;
mod source;
pub mod torch;

pub use error::Error;
pub use gguf::{Gguf, GgufWriter};
pub use hf::{HfModel, Shards};
pub use map::{map_range, open_bytes};
pub use named::Named;
pub use safetensors::{Dtype, Safetensors, TensorInfo, TensorView, write_safetensors};
pub use source::Source;
pub use torch::Torch;

pub(crate) use json::parse as parse_json;
pub(crate) use safetensors::matrix;

use graftwork_kernels::Tensor;

/// Files up to this many bytes are small: adapters of this size are read into memory and checked value by value.
pub const SMALL: u64 = 64 << 20;

/// A file, or several that belong together, of tensors with unique names.
///
/// Implemented by [`Gguf`], [`Safetensors`], [`Shards`] and [`Torch`], so that a model is loaded the same way from each.
pub trait TensorFile: Send + Sync {
    /// All names, in the order of the file.
    fn names(&self) -> Vec<&str>;

    /// The shape of a tensor, slowest dimension first, or `None` if there is no tensor of that name.
    fn shape(&self, name: &str) -> Option<Vec<u64>>;

    /// A tensor as a matrix: a vector of n values is `[1, n]`, a matrix `[rows, cols]`. `None` if there is none of that name.
    ///
    /// # Errors
    /// The tensor has three dimensions or more, or a type that is not a [`Format`](graftwork_kernels::Format).
    fn tensor(&self, name: &str) -> Result<Option<Tensor>, Error>;

    /// [`Self::tensor`], where an absent tensor is an error.
    ///
    /// # Errors
    /// As [`Self::tensor`], and when there is no tensor of that name.
    fn require(&self, name: &str) -> Result<Tensor, Error> {
        self.tensor(name)?.ok_or_else(|| Error::Missing { what: "tensor", name: name.to_owned() })
    }
}
