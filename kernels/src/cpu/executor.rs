//! Threads that a host lends.

use std::fmt;
use std::sync::Arc;

/// Work for one lent thread: it takes part in a step until that is over.
pub type Task = Box<dyn FnOnce() + Send>;

type Execute = dyn Fn(Task) + Send + Sync;

/// A host's own threads, such as those of its pool, lent to an engine for a step at a time.
#[derive(Clone)]
pub struct Executor(Arc<Execute>);

impl Executor {
    /// `execute` passes a task on to another thread, which runs it once and soon, and returns without waiting for that.
    /// It must not panic.
    ///
    /// A step of an engine with `threads` threads gives out `threads - 1` tasks, at its start, and they should run at
    /// the same time. That is a matter of speed alone: the thread that steps does whatever nobody else does, and
    /// results are equal to the bit. A task that runs late finds its step over and returns at once, also when its
    /// engine is gone; so does one that runs on the very thread that gave it out. A task may be dropped.
    pub fn new(execute: impl Fn(Task) + Send + Sync + 'static) -> Self {
        Self(Arc::new(execute))
    }

    /// Passes a task on.
    pub(super) fn execute(&self, task: Task) {
        (self.0)(task);
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Executor")
    }
}
