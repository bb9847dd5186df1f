//! What an error means for a program, and what it is about.

use std::io;

use graftwork_adapters::{Error as AdapterError, file};
use graftwork_kernels::Error as TensorError;

use crate::model::config;
use crate::{Error, chat, sample, tokenize};

/// What an error means for a program: [`Error::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument or option has no meaning.
    InvalidArgument,
    /// No such file, adapter or request.
    NotFound,
    /// A file is malformed.
    Format,
    /// Nothing that this version can compute.
    Unsupported,
    /// The adapter does not fit the model.
    IncompatibleAdapter,
    /// The system refused memory.
    OutOfMemory,
    /// A limit of the engine's options would be exceeded.
    Budget,
    /// Not now.
    Busy,
    /// The caller asked for the end.
    Cancelled,
    /// Reading failed.
    Io,
    /// A bug in this library.
    Internal,
    /// An adapter's name is taken, or belongs to another generation.
    Conflict,
}

/// What it means, and the name of what it is about; empty if that has none.
type Meaning<'a> = (ErrorKind, &'a str);

impl Error {
    /// What this error means for a program.
    pub fn kind(&self) -> ErrorKind {
        self.meaning().0
    }

    /// The name of the tensor, key, field, option, file or adapter that this is about, empty if it is about none.
    pub fn detail(&self) -> &str {
        self.meaning().1
    }

    fn meaning(&self) -> Meaning<'_> {
        use ErrorKind as K;
        match self {
            Self::File(e) => of_file(e),
            Self::Config(config::Error::Missing { key, .. }) => (K::Format, key),
            Self::Config(config::Error::Unsupported { key, .. }) => (K::Unsupported, key),
            Self::Adapter(e) => of_adapter(e),
            Self::Shape { tensor, .. } => (K::Format, tensor),
            Self::UnknownTensor { tensor, .. } => (K::Unsupported, tensor),
            Self::State { what, .. } => (K::Format, what),
            Self::Weight { tensor, source } => (of_tensor(source), tensor),
            Self::AdapterWeight { source, .. } => (of_tensor(source), ""),
            Self::UnsupportedSite { .. } | Self::NoBase { .. } => (K::Unsupported, ""),
            Self::Threads(e) => (of_io(e), "threads"),
            Self::Memory(e) => (of_tensor(e), ""),
            Self::NoAdapter { name } => (K::NotFound, name),
            Self::NameTaken { name } | Self::Changed { name, .. } => (K::Conflict, name),
            Self::Weighting { name, .. }
            | Self::WholeWeight { name, .. }
            | Self::PromptWeight { name, .. }
            | Self::NoVirtualTokens { name }
            | Self::VirtualTokens { name, .. } => (K::InvalidArgument, name),
            Self::Together { own, .. } => (K::InvalidArgument, own),
            Self::AdapterTokenizer { .. } => (K::IncompatibleAdapter, "tokenizer.json"),
            Self::NotTokens => (K::InvalidArgument, "prompt"),
            Self::Option { option, .. } => (K::InvalidArgument, option),
            Self::EmptyPrompt | Self::TooLong { .. } => (K::InvalidArgument, "prompt"),
            Self::Token { place, .. } => (K::InvalidArgument, place),
            Self::Budget { .. } => (K::Budget, "kv_bytes"),
            Self::Limit { option, .. } => (K::Budget, option),
            Self::Busy { name, .. } => (K::Busy, name),
            Self::SourceChanged { name, .. } => (K::Conflict, name),
            Self::NoTokenizer => (K::Unsupported, "tokenizer"),
            Self::NoTemplate => (K::Unsupported, "chat_template"),
            Self::Tokenize(e) => of_tokenizer(e),
            Self::Chat(e) => of_chat(e),
            Self::Sample(sample::Error::Option { option, .. }) => (K::InvalidArgument, option),
            Self::Sample(sample::Error::Memory(e)) => (of_tensor(e), ""),
            Self::Sample(sample::Error::Logit { .. }) => (K::Format, ""),
            Self::Sample(sample::Error::NoToken { .. }) => (K::InvalidArgument, "logit_bias"),
            Self::Stop(_) => (K::InvalidArgument, "stop"),
            Self::NoRequest { .. } => (K::NotFound, ""),
            Self::Failed(error) => error.meaning(),
            Self::Cancelled | Self::Closed => (K::Cancelled, ""),
            Self::Poisoned | Self::Internal { .. } => (K::Internal, ""),
        }
    }
}

fn of_io(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::OutOfMemory => ErrorKind::OutOfMemory,
        _ => ErrorKind::Io,
    }
}

fn of_tensor(error: &TensorError) -> ErrorKind {
    match error {
        TensorError::OutOfMemory { .. } => ErrorKind::OutOfMemory,
        TensorError::RaggedRow { .. }
        | TensorError::Length { .. }
        | TensorError::TooLarge { .. }
        | TensorError::NoStrips { .. } => ErrorKind::Format,
        TensorError::Unsupported { .. } => ErrorKind::Unsupported,
    }
}

fn of_file(error: &file::Error) -> Meaning<'_> {
    use file::Error as E;
    match error {
        E::Io { path, source } => (of_io(source), path.to_str().unwrap_or_default()),
        E::In { file, source } => match of_file(source) {
            (kind, "") => (kind, file),
            meaning => meaning,
        },
        E::Missing { what: "file", name } => (ErrorKind::NotFound, name),
        E::Duplicate { what: "file", name } => (ErrorKind::Conflict, name),
        E::Truncated { what, .. } | E::TooMany { what, .. } | E::NotUtf8 { what, .. } => {
            (ErrorKind::Format, what)
        }
        E::Duplicate { name, .. } | E::Missing { name, .. } => (ErrorKind::Format, name),
        E::Value { key, .. } | E::FileName { key, .. } => (ErrorKind::Format, key),
        E::Entry { entry, .. } => (ErrorKind::Format, entry),
        E::Code { what, .. } => (ErrorKind::Unsupported, what),
        E::Magic { .. } | E::Json { .. } | E::Pickle { .. } => (ErrorKind::Format, ""),
        E::Tensor { tensor, .. } | E::Overlap { second: tensor, .. } => (ErrorKind::Format, tensor),
        E::Unsupported { tensor, .. } => (ErrorKind::Unsupported, tensor),
        E::Matrix { tensor, source } => (of_tensor(source), tensor),
        E::Write { what, .. } => (ErrorKind::InvalidArgument, what),
    }
}

fn of_adapter(error: &AdapterError) -> Meaning<'_> {
    use AdapterError as E;
    match error {
        E::File(e) => of_file(e),
        E::In { file, source } => match of_adapter(source) {
            (kind, "") => (kind, file),
            meaning => meaning,
        },
        E::NoConfig { .. } => (ErrorKind::NotFound, "adapter_config.json"),
        E::Field { field, .. } => (ErrorKind::Format, field),
        E::Pattern { field, .. } => (ErrorKind::Format, field),
        E::UnknownField { field, .. } => (ErrorKind::Unsupported, field),
        E::Unsupported { what, .. } => (ErrorKind::Unsupported, what),
        E::UnknownTensor { tensor, .. } => (ErrorKind::Unsupported, tensor),
        E::Empty => (ErrorKind::Format, ""),
        E::Unpaired { tensor, .. }
        | E::Shape { tensor, .. }
        | E::Type { tensor, .. }
        | E::Index { tensor, .. }
        | E::NotFinite { tensor, .. } => (ErrorKind::Format, tensor),
        E::Conflict { second, .. } => (ErrorKind::Format, second),
        E::Tensors { tensors, .. } => (ErrorKind::IncompatibleAdapter, tensors),
        E::NoSite { .. }
        | E::Misfit { .. }
        | E::Norm { .. }
        | E::Architecture { .. }
        | E::Fingerprint { .. } => (ErrorKind::IncompatibleAdapter, ""),
        E::OtherBase { base_model, .. } => (ErrorKind::IncompatibleAdapter, base_model),
    }
}

fn of_tokenizer(error: &tokenize::Error) -> Meaning<'_> {
    use tokenize::Error as E;
    match error {
        E::Metadata(e) => of_file(e),
        E::Json { file, .. } => (ErrorKind::Format, file),
        E::Key { key, .. } => (ErrorKind::Format, key),
        E::Unsupported { key, .. } => (ErrorKind::Unsupported, key),
        E::SpecialInText { token, .. } => (ErrorKind::InvalidArgument, token),
        E::Encode { .. } => (ErrorKind::InvalidArgument, ""),
        E::Panicked { .. } => (ErrorKind::Format, ""),
    }
}

fn of_chat(error: &chat::Error) -> Meaning<'_> {
    use chat::Error as E;
    match error {
        E::Syntax { .. } | E::TooLarge { .. } | E::TooLong { .. } | E::Render { .. } => {
            (ErrorKind::Format, "chat_template")
        }
        E::Refused { .. } => (ErrorKind::InvalidArgument, "chat_template"),
        // The system says "try again" where there is no room for the stack.
        E::Thread { kind: io::ErrorKind::WouldBlock, .. } => (ErrorKind::OutOfMemory, ""),
        E::Thread { kind, .. } => (of_io(&(*kind).into()), ""),
        E::Json { .. } => (ErrorKind::InvalidArgument, "chat_json"),
    }
}
