//! Why something was refused.

use std::sync::Arc;

use graftwork_adapters::{Site, file};

use crate::model::config;
use crate::registry::Generation;
use crate::request::RequestId;

/// Why something was refused. Messages say what was expected, what was found, and where.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model's file could not be read or is malformed.
    #[error(transparent)]
    File(#[from] file::Error),
    /// A model's description of itself is incomplete or asks for what is not there.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// An adapter's file is malformed, not understood, or does not fit the model.
    #[error(transparent)]
    Adapter(#[from] graftwork_adapters::Error),
    /// A tensor of the model has another shape than its configuration says.
    #[error("tensor {tensor}: expected shape {expected}, found {found}")]
    Shape {
        /// Its name.
        tensor: String,
        /// The shape that the configuration says.
        expected: String,
        /// The shape in the file.
        found: String,
    },
    /// A saved request cannot go on here.
    #[error("saved request: {what}: expected {expected}, found {found}")]
    State {
        /// What about it.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The model's file has a tensor that its architecture has no use for.
    #[error("tensor {tensor}: expected only tensors of architecture {architecture}")]
    UnknownTensor {
        /// Its name.
        tensor: String,
        /// The architecture.
        architecture: &'static str,
    },
    /// A tensor of the model could not be prepared.
    #[error("tensor {tensor}: {source}")]
    Weight {
        /// Its name.
        tensor: String,
        /// Why.
        source: graftwork_kernels::Error,
    },
    /// A matrix of an adapter could not be prepared.
    #[error("adapter at {site}: {source}")]
    AdapterWeight {
        /// Where in the model.
        site: Site,
        /// Why.
        source: graftwork_kernels::Error,
    },
    /// An adapter changes a place that this version cannot change.
    #[error("adapter at {site}: changing the {site} is not supported")]
    UnsupportedSite {
        /// Where in the model.
        site: Site,
    },
    /// An adapter depends on the base's own weights, whose files are no longer there.
    #[error(
        "adapter at {site}: it depends on the base's weights, but these were copied when the base was opened; \
         open it mapped or from memory that stays"
    )]
    NoBase {
        /// Where in the model.
        site: Site,
    },
    /// The threads that compute could not be started.
    #[error("the threads could not be started: {0}")]
    Threads(std::io::Error),
    /// Memory for activations or the KV cache was refused; nothing was computed.
    #[error("a step could not start: {0}")]
    Memory(graftwork_kernels::Error),
    /// No adapter of that name is loaded.
    #[error("no adapter named \"{name}\" is loaded")]
    NoAdapter {
        /// The name.
        name: String,
    },
    /// An adapter of that name is loaded already.
    #[error("an adapter named \"{name}\" is loaded already")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The name belongs to another generation than the caller expected to replace.
    #[error("adapter \"{name}\": expected generation {expected}, found {found}")]
    Changed {
        /// The name.
        name: String,
        /// What the caller expected.
        expected: Generation,
        /// What is loaded.
        found: Generation,
    },
    /// The weight of an adapter is not a finite number.
    #[error("adapter \"{name}\": expected a finite weight, found {found}")]
    Weighting {
        /// The adapter.
        name: String,
        /// The weight.
        found: f32,
    },
    /// An adapter that cannot be there in part was asked for in part.
    #[error("adapter \"{name}\": it changes the {site} as a whole, so its weight is 0 or 1, found {found}")]
    WholeWeight {
        /// The adapter.
        name: String,
        /// What it replaces.
        site: Site,
        /// The weight.
        found: f32,
    },
    /// An adapter has tokens of its own, and another changes embedding or head, which may not have these.
    #[error(
        "adapters \"{own}\" and \"{other}\": the one has tokens of its own, so no other may change embedding or head"
    )]
    Together {
        /// The adapter that has tokens of its own.
        own: String,
        /// The other.
        other: String,
    },
    /// The tokenizer that came with an adapter does not extend the base's.
    #[error("the adapter's tokenizer: expected {expected}, found {found}")]
    AdapterTokenizer {
        /// What it should have.
        expected: String,
        /// What it has.
        found: String,
    },
    /// Virtual tokens, or keys and values before the prompt, were asked for in part.
    #[error(
        "adapter \"{name}\": what it puts before the prompt is there or not, so its weight is 0 or 1, found {found}"
    )]
    PromptWeight {
        /// The adapter.
        name: String,
        /// The weight.
        found: f32,
    },
    /// A prompt places the virtual tokens of an adapter that has none.
    #[error("adapter \"{name}\": it has no virtual tokens that a prompt could place")]
    NoVirtualTokens {
        /// The adapter.
        name: String,
    },
    /// A prompt places more virtual tokens than the adapter has.
    #[error("adapter \"{name}\": expected at most the first {have} of its virtual tokens, found {found}")]
    VirtualTokens {
        /// The adapter.
        name: String,
        /// How many it has.
        have: usize,
        /// How many were asked for.
        found: usize,
    },
    /// Tokens alone were asked for, but virtual ones have no numbers.
    #[error("the prompt places virtual tokens, which have no token ids")]
    NotTokens,
    /// An option has a value that has no meaning.
    #[error("option {option}: expected {expected}, found {found}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// The prompt has no tokens.
    #[error("expected a prompt of at least one token, found none")]
    EmptyPrompt,
    /// A token that the model does not have.
    #[error("{place} token {index}: expected an id below {vocab}, found {found}")]
    Token {
        /// The prompt, or the option that names it.
        place: &'static str,
        /// Its place there.
        index: usize,
        /// Entries of the vocabulary.
        vocab: usize,
        /// The id.
        found: u32,
    },
    /// The prompt leaves no room for an answer in the model's context.
    #[error("expected a prompt of fewer than {context} tokens, the model's context; found {found}")]
    TooLong {
        /// Positions of the context.
        context: usize,
        /// Tokens of the prompt, with what adapters put before it and into it.
        found: usize,
    },
    /// The request could never fit the KV cache's budget.
    #[error("the request needs {needed} pages of KV cache, the budget is {limit}")]
    Budget {
        /// Pages for the prompt and the longest answer.
        needed: usize,
        /// Pages of the budget.
        limit: usize,
    },
    /// More memory is needed than an option allows.
    #[error("option {option}: {needed} bytes are needed, the limit is {limit}")]
    Limit {
        /// The option.
        option: &'static str,
        /// Bytes that are needed.
        needed: usize,
        /// What the option says.
        limit: usize,
    },
    /// There is no room for an adapter now, but there would be if fewer requests ran.
    #[error(
        "adapter \"{name}\": no room within adapter_bytes, {limit}, beside the adapters of running requests"
    )]
    Busy {
        /// The adapter.
        name: String,
        /// The limit.
        limit: usize,
    },
    /// An adapter that had to make room cannot come back.
    #[error("adapter \"{name}\": its source no longer holds what generation {generation} was")]
    SourceChanged {
        /// The adapter.
        name: String,
        /// What it was.
        generation: Generation,
    },
    /// Text was given or asked for, but the model came without a tokenizer.
    #[error("the model came without a tokenizer: only tokens can go in and come out")]
    NoTokenizer,
    /// Messages were given, but the model came without a chat template.
    #[error("the model came without a chat template")]
    NoTemplate,
    /// Text could not be turned into tokens or back, or the model's tokenizer cannot be used.
    #[error(transparent)]
    Tokenize(#[from] crate::tokenize::Error),
    /// The chat template failed.
    #[error(transparent)]
    Chat(#[from] crate::chat::Error),
    /// The sampling options have no meaning.
    #[error(transparent)]
    Sample(#[from] crate::sample::Error),
    /// A stop text has no meaning.
    #[error(transparent)]
    Stop(#[from] crate::stream::Error),
    /// No running or waiting request has this id.
    #[error("no request {id} is waiting or running")]
    NoRequest {
        /// The id.
        id: RequestId,
    },
    /// A request failed: [`Event::Failed`](crate::Event::Failed).
    #[error(transparent)]
    Failed(#[from] Arc<Error>),
    /// The caller asked for the end, before it was done.
    #[error("cancelled by the caller")]
    Cancelled,
    /// The engine was closed.
    #[error("the engine was closed")]
    Closed,
    /// A step panicked, which is a bug in this library. The engine computes nothing any more.
    #[error("the engine is unusable since a step panicked")]
    Poisoned,
    /// A bug in this library.
    #[error("internal error: {what}")]
    Internal {
        /// What went wrong.
        what: &'static str,
    },
}
