//! Models: what they are ([`config`], [`arch`]), how they are read from files, and the one forward pass.

pub mod arch;
pub(crate) mod base;
pub(crate) mod bind;
pub mod config;
pub mod container;
pub(crate) mod factors;
pub(crate) mod forward;
pub(crate) mod graft;
pub(crate) mod plan;
pub(crate) mod positions;
pub mod rope;
pub(crate) mod runner;
mod seeded;
pub(crate) mod weights;

pub use config::Config;
