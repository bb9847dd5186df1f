//! What the bytes of a weight mean, and the arithmetic on them.
//!
//! This crate must not know what a file is, what a tensor is called, what a layer is or what an
//! adapter is. It knows block formats ([`mod@format`]), matrices in them ([`tensor`], [`strips`]), the coarse
//! operations of a transformer on rows of activations ([`backend`]), how a CPU does them ([`cpu`]) and, with the feature
//! `gpu`, how a GPU does.

pub mod backend;
pub mod cpu;
pub mod format;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod strips;
pub mod tensor;

pub use format::Format;
pub use strips::Strips;
pub use tensor::{Bytes, Error, Tensor};
