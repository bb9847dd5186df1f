//! One base model, many adapters: an embeddable LLM runtime.
//!
//! An [`Engine`] opens one model (a GGUF file or a Hugging Face directory), keeps it quantized, and puts adapters on
//! it while it runs. Every [`Request`] names the adapters that answer it, and requests with different adapters run
//! together in one batch.
//!
//! ```
//! use graftwork::{Engine, EngineOptions, Event, Request};
//!
//! let engine = Engine::open("../tests/golden/adapters/base", EngineOptions::default())?;
//! engine.load_adapter("polite", "../tests/golden/adapters/lora")?;
//! engine.load_adapter("terse", "../tests/golden/adapters/lora_all")?;
//!
//! // Two requests, each through its own adapters: one batch. This tiny model has no tokenizer; with one, a
//! // prompt may be text or a conversation, and every event carries the text that became certain.
//! let polite = engine.submit(Request::new(vec![1, 17, 42]).adapter("polite").max_tokens(8))?;
//! let both = engine.submit(Request {
//!     adapters: vec![("polite".into(), 0.5), ("terse".into(), 0.5)],
//!     max_tokens: Some(8),
//!     ..Request::new(vec![1, 17, 42])
//! })?;
//!
//! // Replacing or unloading an adapter never touches a request that was submitted before.
//! engine.unload_adapter("polite")?;
//!
//! while !engine.is_idle() {
//!     for event in engine.step()? {
//!         match event {
//!             Event::Token { id, token, .. } if id == polite => println!("polite: {token}"),
//!             Event::Token { token, .. } => println!("both: {token}"),
//!             Event::Finished { id, reason, .. } => println!("{id} ended: {reason:?}"),
//!             Event::Failed { id, error } => println!("{id} failed: {error}"),
//!         }
//!     }
//! }
//!
//! // Or one request at a time; whatever else was submitted goes on meanwhile.
//! for event in engine.generate(Request::new(vec![5, 6, 7]).adapter("terse").max_tokens(4))? {
//!     print!("{}", event?.text());
//! }
//! # let _ = both;
//! # Ok::<(), graftwork::Error>(())
//! ```
//!
//! # What holds
//! * **An answer never depends on who shares its batch**, on threads or on how a prompt was cut into steps: it is equal
//!   to the bit.
//! * **A request keeps the adapters that its names meant when it was submitted.** Each loaded adapter has a
//!   [`Generation`] that is never used again, and cached keys and values are reused only under equal generations and weights.
//! * **Nothing prints, aborts or reads the environment.** What is malformed or not understood is an [`Error`] that
//!   names it.
//!
//! This crate must not know SIMD, shaders, the layout of files, or C.

#![forbid(unsafe_code)]

mod answer;
mod batch;
mod budget;
pub mod chat;
pub mod compress;
mod core;
mod engine;
mod error;
mod kind;
mod kv;
mod log;
mod mail;
pub mod merge;
pub mod model;
mod options;
mod parallel;
pub mod place;
pub mod port;
mod prefix;
pub mod quantize;
mod registry;
mod request;
pub mod restore;
pub mod sample;
mod schedule;
mod sequence;
mod session;
mod stack;
mod state;
pub mod stream;
mod text;
pub mod tokenize;
mod trace;
pub mod verify;

pub use answer::Answer;
pub use engine::Engine;
pub use error::Error;
pub use kind::ErrorKind;
pub use log::{Level, Log};
pub use options::{EngineOptions, Memory};
pub use registry::{AdapterInfo, Generation};
pub use request::{Context, Event, FinishReason, Logprob, Part, Prompt, Request, RequestId};
pub use text::Text;
pub use trace::Counters;

pub use graftwork_adapters::file::{map_range, open_bytes};
pub use graftwork_adapters::{Kind, Source};
pub use graftwork_kernels::cpu::executor::{Executor, Task};
pub use graftwork_kernels::{Bytes, Format};
