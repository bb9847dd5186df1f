//! Compressed deltas: the difference of a full fine-tune to its base, for each linear layer a sum of [`Part`]s.
//!
//! With `o` outputs and `i` inputs, `W' = W + sum of parts`; what is no linear layer (norms, embedding, head) is carried whole.

mod part;
mod strips;

pub use part::{Coded, Part};
pub use strips::Strips;
