//! The C interface: opaque handles, status codes, self-sized structs. `include/graftwork.h` is its manual and its
//! definition; this crate implements it on [`graftwork::Engine`], one file per noun of the header.
//!
//! Every function checks its pointers, catches what panics, and writes results on success only. A build that
//! aborts on panic could not keep that promise and is refused.
//!
//! This crate must know nothing but the ABI: no model, no kernel, no file.

#![allow(non_camel_case_types, reason = "the names of the header")]

#[cfg(panic = "abort")]
compile_error!("the C interface turns panics into statuses: build it with panic = \"unwind\"");

mod adapter;
mod engine;
mod error;
mod event;
mod guard;
mod input;
mod request;
mod sized;
mod source;
mod state;
mod tokens;
mod version;

pub use adapter::*;
pub use engine::*;
pub use error::*;
pub use event::*;
#[cfg(feature = "inject-panics")]
pub use guard::gw_inject_panic;
pub use request::*;
pub use source::*;
pub use state::*;
pub use tokens::*;
pub use version::*;

/// Lets go of a caller's data.
pub type gw_drop_fn = Option<unsafe extern "C" fn(user: *mut std::ffi::c_void)>;
