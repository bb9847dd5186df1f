//! The engine: one base model, its adapters, and everybody's requests.

mod adapters;
mod open;
mod requests;
mod score;
mod states;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use graftwork_adapters::delta::Fingerprint;
use graftwork_kernels::cpu::isa::Isa;

use self::requests::check_tokens;
use crate::core::{Core, Report, Turn};
use crate::log::{Level, say};
use crate::mail::{Mail, lock};
use crate::model::config::Config;
use crate::model::runner::Prepare;
use crate::registry::Registry;
use crate::request::{Event, Prompt, RequestId};
use crate::text::{Text, Tokens};
use crate::trace::Counters;
use crate::{EngineOptions, Error, Memory};

/// One base model with its adapters, answering any number of requests at once.
///
/// Every method takes `&self` and may be called from any thread: adapters are loaded and requests
/// submitted and cancelled while another thread steps. Nothing happens by itself: [`Engine::step`] and
/// [`Engine::poll`] (or an [`Answer`](crate::Answer) that is iterated) do the work. An answer never depends on what else runs.
pub struct Engine {
    registry: Registry,
    model: Arc<dyn Prepare>,
    text: Option<Text>,
    end_tokens: Vec<u32>,
    options: EngineOptions,
    kv_pages: usize,
    page_bytes: usize,
    /// Values of scratch that the adapters of a row may take.
    most_low: usize,
    next_id: AtomicU64,
    mail: Mail,
    core: Mutex<Core>,
    report: Mutex<Report>,
    isa: Isa,
}

impl Engine {
    /// What the model is.
    pub fn config(&self) -> &Config {
        self.model.config()
    }

    /// Tells its files from those of other models: what compressed deltas name their base by.
    pub fn fingerprint(&self) -> Fingerprint {
        self.model.fingerprint()
    }

    /// Whether weights of linear layers are in blocks, whose inputs are rounded to 8 bits.
    pub fn is_quantized(&self) -> bool {
        self.model.is_quantized()
    }

    /// The instruction set that kernels use, by name.
    pub fn isa(&self) -> &'static str {
        self.isa.name()
    }

    /// The options in effect.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// The model's tokenizer and chat template, if it came with them.
    pub fn text(&self) -> Option<&Text> {
        self.text.as_ref()
    }

    /// The tokens that end an answer.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// Bytes in memory, as the last step left it.
    pub fn memory(&self) -> Memory {
        let Report { pages, held, scratch, .. } = *lock(&self.report);
        Memory {
            weights: self.model.bytes(),
            embedding: self.model.embedding_bytes(),
            adapters: self.registry.held_bytes(),
            adapters_limit: self.options.adapter_bytes,
            kv: pages * self.page_bytes,
            kv_used: held * self.page_bytes,
            kv_limit: self.kv_pages * self.page_bytes,
            scratch,
        }
    }

    /// What the engine has done up to the end of the last step.
    pub fn counters(&self) -> Counters {
        lock(&self.report).counters
    }

    /// The tokens that a prompt becomes with the model's own tokenizer.
    ///
    /// # Errors
    /// The model has no tokenizer or template for it, or they refuse it; or it places virtual tokens.
    pub fn prompt_tokens(&self, prompt: Prompt) -> Result<Vec<u32>, Error> {
        let Tokens { tokens, places, .. } = Text::tokens_of(self.text.as_ref(), prompt)?;
        if places.is_empty() { Ok(tokens) } else { Err(Error::NotTokens) }
    }

    /// The text of some tokens, special ones included.
    ///
    /// # Errors
    /// The model has no tokenizer, or a token is not the model's.
    pub fn detokenize(&self, tokens: &[u32]) -> Result<String, Error> {
        let text = self.text.as_ref().ok_or(Error::NoTokenizer)?;
        check_tokens("tokens", tokens.iter().copied(), self.config().vocab)?;
        Ok(text.tokenizer().decode(tokens))
    }

    /// Ends a request before its time; its last event comes from the next step. A step in progress that is
    /// mostly its work is given up between layers, and between parts of a long attention.
    ///
    /// # Errors
    /// No such request waits or runs.
    pub fn cancel(&self, id: RequestId) -> Result<(), Error> {
        self.mail.cancel(id)
    }

    /// [`Engine::cancel`], and nobody wants its events.
    pub(crate) fn abandon(&self, id: RequestId) {
        self.mail.abandon(id);
    }

    /// Whether no request waits or runs and no event waits for [`Engine::step`].
    pub fn is_idle(&self) -> bool {
        self.mail.is_empty()
    }

    /// Whether any request waits or runs, or has a sink that has not heard its last event. (To a sink itself, those do not
    /// count: it cannot wait for itself.)
    pub fn is_live(&self) -> bool {
        !self.mail.is_quiet()
    }

    /// Runs one forward pass over everything that is ready, and gives what happened since the last call, in
    /// order. Empty once there is nothing to do; also when a step only read prompts. If another thread steps,
    /// waits for its turn first; if there is nothing to compute but another thread is calling sinks, waits for that.
    ///
    /// # Errors
    /// Memory was refused. No request lost anything: the next call tries again.
    pub fn step(&self) -> Result<Vec<Event>, Error> {
        self.step_only()?;
        Ok(self.mail.take_all())
    }

    /// [`Engine::step`], leaving the events for [`Engine::poll`].
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn step_only(&self) -> Result<(), Error> {
        let seen = self.mail.changes();
        if !self.advance(self.turn()?)? {
            self.mail.wait_for_deliveries(seen);
        }
        Ok(())
    }

    /// The next event of one request, or of any that was given to [`Engine::submit`]. If none is there, steps until
    /// one is; while another thread steps, or there is nothing to do, waits. `None` after `timeout`, at the latest when
    /// a step that it started ends; a timeout of zero takes what is there and computes nothing.
    ///
    /// # Errors
    /// As [`Engine::step`]; or no event of the request is there or to come; or the engine was closed.
    pub fn poll(&self, id: Option<RequestId>, timeout: Duration) -> Result<Option<Event>, Error> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let seen = self.mail.changes();
            if let Some(event) = self.mail.take(id)? {
                return Ok(Some(event));
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(None);
            }
            let advanced = match self.core.try_lock() {
                Ok(core) => self.advance(Turn::new(core, &self.report, &self.mail))?,
                Err(TryLockError::WouldBlock) => false,
                Err(TryLockError::Poisoned(_)) => return Err(Error::Poisoned),
            };
            if !advanced {
                self.mail.wait(seen, deadline);
            }
        }
    }

    /// Waits until no other thread holds the core.
    fn turn(&self) -> Result<Turn<'_>, Error> {
        let core = self.core.lock().map_err(|_| Error::Poisoned)?;
        Ok(Turn::new(core, &self.report, &self.mail))
    }

    /// Steps and calls the sinks; `false` if there was nothing to do.
    fn advance(&self, mut turn: Turn<'_>) -> Result<bool, Error> {
        if self.mail.check_open().is_err() {
            return Ok(false);
        }
        let before = self.mail.changes();
        let advanced = turn.advance(&self.mail, &|session, reach| self.hold_for(session, reach));
        turn.idle_since = matches!(advanced, Ok(false)).then_some(before);
        let ended = turn.take_ended();
        drop(turn);
        drop(ended);
        self.mail.deliver();
        advanced
    }

    /// Ends everything: no request gets another event, nothing is computed any more, and threads that sleep in
    /// [`Engine::poll`] return. For sinks, which cannot drop the engine that calls them, and before dropping one that other threads
    /// hold too.
    pub fn close(&self) {
        self.mail.close();
    }

    fn say(&self, level: Level, message: impl FnOnce() -> String) {
        say(self.options.log.as_ref(), level, message);
    }
}
