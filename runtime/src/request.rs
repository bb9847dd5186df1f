//! What is asked of an engine, and what it answers.

use std::fmt;
use std::sync::Arc;

use crate::chat::{ChatInput, Message};
use crate::{Error, sample};

/// Identifies a request of one engine; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(crate) u64);

impl RequestId {
    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl From<u64> for RequestId {
    /// The id with this number, as [`RequestId::get`] gave it.
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a request starts from.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Text in which special tokens are recognised, as completion APIs do.
    Text(String),
    /// Tokens, as they are.
    Tokens(Vec<u32>),
    /// A conversation, rendered by the model's chat template; what users say never becomes special tokens.
    Chat(Box<ChatInput>),
    /// One after the other, with virtual tokens of adapters between them. If there is text, what the model expects before every
    /// prompt comes first, as for [`Prompt::Text`].
    Parts(Vec<Part>),
}

/// A part of a prompt.
#[derive(Clone, Debug)]
pub enum Part {
    /// Text in which special tokens are recognised, tokenized as if special tokens stood between it and other text.
    Text(String),
    /// Tokens, as they are.
    Tokens(Vec<u32>),
    /// Virtual tokens of a loaded adapter, at this place; whether [`Request::adapters`] names it too, which puts all of them
    /// before the prompt, does not matter.
    Virtual {
        /// The adapter's name.
        adapter: String,
        /// How many of them, from the first; `None` for all.
        first: Option<usize>,
    },
}

impl Prompt {
    /// The adapters whose virtual tokens it places.
    pub(crate) fn placed(&self) -> impl Iterator<Item = &str> {
        let parts = match self {
            Self::Parts(parts) => &parts[..],
            Self::Text(_) | Self::Tokens(_) | Self::Chat(_) => &[],
        };
        parts.iter().filter_map(|part| match part {
            Part::Virtual { adapter, .. } => Some(&adapter[..]),
            Part::Text(_) | Part::Tokens(_) => None,
        })
    }
}

impl Part {
    /// Its text, if it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Tokens(_) | Self::Virtual { .. } => None,
        }
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// A conversation to be answered, without tools.
impl From<Vec<Message>> for Prompt {
    fn from(messages: Vec<Message>) -> Self {
        Self::Chat(Box::new(ChatInput::new(messages)))
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(tokens: Vec<u32>) -> Self {
        Self::Tokens(tokens)
    }
}

impl From<Vec<Part>> for Prompt {
    fn from(parts: Vec<Part>) -> Self {
        Self::Parts(parts)
    }
}

impl From<ChatInput> for Prompt {
    fn from(chat: ChatInput) -> Self {
        Self::Chat(Box::new(chat))
    }
}

/// One request. Start from [`Request::new`] and change what should differ.
#[derive(Clone, Debug)]
pub struct Request {
    /// What it starts from.
    pub prompt: Prompt,
    /// Names and weights of the adapters that answer it, in order; none means the base model.
    pub adapters: Vec<(String, f32)>,
    /// Most tokens of the answer; `None` for as many as the context and the KV cache hold. A request starts
    /// once the cache has room for this many, so a limit lets more requests run at once.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: sample::Options,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the answer, besides the model's own.
    pub stop_tokens: Vec<u32>,
    /// Go on after the model's own end-of-answer tokens.
    pub ignore_eos: bool,
    /// Report each token's log-probability, with this many of the likeliest alternatives.
    pub logprobs: Option<usize>,
    /// Report the logits that each token was chosen from.
    pub logits: bool,
    /// What happens when the context is full.
    pub context: Context,
}

/// What happens to a request whose sequence fills the model's context, or as much of the KV cache as there can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Context {
    /// It ends, with [`FinishReason::Length`].
    #[default]
    Stop,
    /// Its oldest tokens go, and it goes on: of those behind the first `keep` (and behind what adapters put before the prompt) the
    /// older half. Positions are counted anew, without gaps, and keys and values of all that is left are computed again: the answer goes on
    /// as that to a request whose prompt is what is left, equal to the bit; draws go on where they were, and adapters act on what they
    /// acted on. It starts again behind requests that wait. Reading that again costs a prompt of half a context for
    /// half a context of answer.
    Shift {
        /// How many of the prompt's tokens always stay.
        keep: usize,
    },
}

impl Request {
    /// A request that answers `prompt` greedily, without adapters.
    pub fn new(prompt: impl Into<Prompt>) -> Self {
        Self {
            prompt: prompt.into(),
            adapters: Vec::new(),
            max_tokens: None,
            sampling: sample::Options::default(),
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            logits: false,
            context: Context::Stop,
        }
    }

    /// Adds an adapter at full weight.
    #[must_use]
    pub fn adapter(mut self, name: impl Into<String>) -> Self {
        self.adapters.push((name.into(), 1.0));
        self
    }

    /// Limits the answer.
    #[must_use]
    pub fn max_tokens(mut self, tokens: usize) -> Self {
        self.max_tokens = Some(tokens);
        self
    }
}

/// How likely a token was, under the model's own distribution (before temperature and penalties).
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// Natural logarithm of the probability of the token chosen.
    pub chosen: f32,
    /// The likeliest tokens and theirs, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model, or one of the request's stop tokens, ended the answer.
    Stop,
    /// A stop text occurred.
    StopText,
    /// As long as was allowed.
    Length,
    /// Somebody asked for it.
    Cancelled,
}

impl FinishReason {
    /// The name in JSON answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop | Self::StopText => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What happened to a request in a step.
#[derive(Clone, Debug)]
pub enum Event {
    /// A token of the answer.
    Token {
        /// The request.
        id: RequestId,
        /// The token.
        token: u32,
        /// What became certain of the text: whole characters, and nothing that may yet become a stop text.
        text: String,
        /// How likely it was, if asked for.
        logprob: Option<Logprob>,
        /// What it was chosen from, `[vocab]`, if asked for.
        logits: Option<Vec<f32>>,
    },
    /// The request ended; nothing follows.
    Finished {
        /// The request.
        id: RequestId,
        /// Why.
        reason: FinishReason,
        /// The rest of the text, held back until now.
        text: String,
    },
    /// No token could be chosen, and the request ended; nothing follows.
    Failed {
        /// The request.
        id: RequestId,
        /// Why.
        error: Arc<Error>,
    },
}

impl Event {
    /// The request that this is about.
    pub fn id(&self) -> RequestId {
        match self {
            Self::Token { id, .. } | Self::Finished { id, .. } | Self::Failed { id, .. } => *id,
        }
    }

    /// The text that this adds to the answer.
    pub fn text(&self) -> &str {
        match self {
            Self::Token { text, .. } | Self::Finished { text, .. } => text,
            Self::Failed { .. } => "",
        }
    }

    /// Whether nothing follows for this request.
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Token { .. })
    }
}
