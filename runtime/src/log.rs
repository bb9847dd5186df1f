//! What an engine says about what it does, to whoever wants to hear it.

use std::fmt;
use std::sync::Arc;

/// How much a message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something will not work as the caller may expect.
    Warn,
    /// Something that happens a few times in an engine's life.
    Info,
    /// Something that happens for every request.
    Debug,
}

type Sink = dyn Fn(Level, &str) + Send + Sync;

/// Hears the messages of one engine, on whichever thread they come up; no lock is held meanwhile.
#[derive(Clone)]
pub struct Log {
    most: Level,
    sink: Arc<Sink>,
}

impl Log {
    /// Hears what matters at least as much as `most`.
    pub fn new(most: Level, sink: impl Fn(Level, &str) + Send + Sync + 'static) -> Self {
        Self { most, sink: Arc::new(sink) }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Log({:?})", self.most)
    }
}

/// Says something, if anybody wants to hear it; only then is the message written.
pub(crate) fn say(log: Option<&Log>, level: Level, message: impl FnOnce() -> String) {
    if let Some(log) = log.filter(|log| level <= log.most) {
        (log.sink)(level, &message());
    }
}
