//! The engine: one base model, its adapters, and everybody's requests.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use graftwork_adapters::{Adapter, Source};
use graftwork_kernels::Format;
use graftwork_kernels::cpu::{Cpu, isa::Isa};

use crate::Error;
use crate::kv::pages_for;
use crate::model::config::Config;
use crate::model::container::Container;
use crate::model::runner::{Prepare, Run, erase};
use crate::model::weights::{Model, Progress};
use crate::registry::{AdapterInfo, Expect, Generation, Registry};
use crate::request::{Event, FinishReason, Request, RequestId};
use crate::schedule::{Limits, Schedule};
use crate::session::{Mailbox, Session};
use crate::text::Text;
use crate::trace::Counters;

/// How an engine runs. [`EngineOptions::default`] suits most.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Threads that compute, the caller's of [`Engine::step`] among them; 0 for one per core.
    pub threads: usize,
    /// What keys and values are cached as: [`Format::F16`] or [`Format::F32`].
    pub kv_format: Format,
    /// Most bytes of the KV cache. It grows to that as requests need it, never beyond.
    pub kv_bytes: usize,
    /// Most requests that run at once; others wait.
    pub max_batch: usize,
    /// Most rows of prompts in a step: larger reads prompts faster, smaller makes steps shorter.
    pub prefill_chunk: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { threads: 0, kv_format: Format::F16, kv_bytes: 1 << 30, max_batch: 32, prefill_chunk: 512 }
    }
}

impl EngineOptions {
    fn check(&self) -> Result<(), Error> {
        let refused = |option, expected, found: &dyn ToString| {
            Err(Error::Option { option, expected, found: found.to_string() })
        };
        if !matches!(self.kv_format, Format::F16 | Format::F32) {
            return refused("kv_format", "F16 or F32", &self.kv_format);
        }
        if self.max_batch == 0 {
            return refused("max_batch", "1 or more", &0);
        }
        if self.prefill_chunk == 0 {
            return refused("prefill_chunk", "1 or more", &0);
        }
        Ok(())
    }
}

/// Bytes in memory, by class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The model's weights, as packed for the backend; the embedding as in its file.
    pub weights: usize,
    /// Adapters that are loaded under a name.
    pub adapters: usize,
    /// Pages of the KV cache that there are.
    pub kv: usize,
    /// Those of them that requests hold now.
    pub kv_used: usize,
}

/// One base model with its adapters, answering any number of requests at once.
///
/// Every method takes `&self` and may be called from any thread: adapters are loaded and requests
/// submitted and cancelled while another thread steps. Nothing happens by itself: [`Engine::step`] (or an
/// [`Answer`] that is iterated) does the work. An answer never depends on what else runs.
pub struct Engine {
    registry: Registry,
    model: Arc<dyn Prepare>,
    text: Option<Text>,
    end_tokens: Vec<u32>,
    options: EngineOptions,
    kv_pages: usize,
    next_id: AtomicU64,
    /// Requests that wait for the next step to take them in.
    inbox: Mutex<Vec<Session>>,
    /// The flag that cancels each request that has not ended.
    live: Mutex<HashMap<RequestId, Arc<AtomicBool>>>,
    core: Mutex<Core>,
}

/// What only one thread at a time may touch.
struct Core {
    runner: Box<dyn Run>,
    schedule: Schedule,
    /// Events for the next caller of `step`.
    outbox: Vec<Event>,
    counters: Counters,
}

impl Engine {
    /// Opens a model: a GGUF file, a directory in Hugging Face layout, or either from memory.
    ///
    /// # Errors
    /// What is malformed, missing, unknown or does not fit, by name; or options without a meaning.
    pub fn open(source: impl Into<Source>, options: EngineOptions) -> Result<Self, Error> {
        Self::open_with(source, options, &|_, _| ())
    }

    /// [`Engine::open`], reporting its progress as `(parts done, parts in all)`.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_with(
        source: impl Into<Source>,
        mut options: EngineOptions,
        progress: &Progress<'_>,
    ) -> Result<Self, Error> {
        options.check()?;
        if options.threads == 0 {
            options.threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
        }
        let container = Container::open(&source.into())?;
        let (config, names) = container.config()?;
        let text = Text::of(&container)?;
        let end_tokens = container.end_tokens()?;
        let backend = Cpu::new(options.threads, Isa::best()).map_err(Error::Threads)?;
        let device = graftwork_kernels::backend::Backend::device(&backend).clone();
        let loading = (options.threads, progress);
        let model = Model::load(config, names, container.weights(), &*device, loading)?;
        let (model, runner) = erase(backend, model, options.kv_format);
        let kv_pages = options.kv_bytes / runner.page_bytes();
        let limits = Limits { batch: options.max_batch, chunk: options.prefill_chunk };
        let schedule = Schedule::new(limits, kv_pages);
        let core = Core { runner, schedule, outbox: Vec::new(), counters: Counters::default() };
        Ok(Self {
            registry: Registry::default(),
            model,
            text,
            end_tokens,
            options,
            kv_pages,
            next_id: AtomicU64::new(1),
            inbox: Mutex::default(),
            live: Mutex::default(),
            core: Mutex::new(core),
        })
    }

    /// What the model is.
    pub fn config(&self) -> &Config {
        self.model.config()
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

    /// Bytes in memory now. Waits for a step in progress.
    pub fn memory(&self) -> Memory {
        let core = lock(&self.core);
        let page = core.runner.page_bytes();
        Memory {
            weights: self.model.bytes(),
            adapters: self.registry.list().iter().map(|adapter| adapter.bytes).sum(),
            kv: core.schedule.pool().extent() * page,
            kv_used: core.schedule.pool().used() * page,
        }
    }

    /// What the engine has done so far. Waits for a step in progress.
    pub fn counters(&self) -> Counters {
        let core = lock(&self.core);
        Counters { reused_rows: core.schedule.reused(), ..core.counters }
    }

    /// Loads an adapter under a name that is free. Runs on the caller's thread, beside any step.
    ///
    /// # Errors
    /// What is malformed, not understood or does not fit the model; or the name is taken.
    pub fn load_adapter(&self, name: &str, source: impl Into<Source>) -> Result<Generation, Error> {
        self.put_adapter(name, source.into(), Expect::Free)
    }

    /// Gives a name that is in use to another adapter: requests submitted from now on use it, those before
    /// keep theirs. With `expected`, only if the name still belongs to that generation.
    ///
    /// # Errors
    /// As [`Engine::load_adapter`]; or the name is not in use, or by another generation than expected.
    pub fn replace_adapter(
        &self,
        name: &str,
        source: impl Into<Source>,
        expected: Option<Generation>,
    ) -> Result<Generation, Error> {
        self.put_adapter(name, source.into(), expected.map_or(Expect::Any, Expect::Exactly))
    }

    fn put_adapter(&self, name: &str, source: Source, expect: Expect) -> Result<Generation, Error> {
        self.registry.check(name, expect)?;
        let adapter = Adapter::open(source)?;
        let prepared = self.model.prepare(&adapter)?;
        self.registry.put(name, expect, adapter.kind, prepared)
    }

    /// Frees a name. Requests that use its adapter keep it; its memory goes when the last of them ends.
    ///
    /// # Errors
    /// The name is not in use.
    pub fn unload_adapter(&self, name: &str) -> Result<Generation, Error> {
        self.registry.remove(name)
    }

    /// The adapters that are loaded, by name.
    pub fn adapters(&self) -> Vec<AdapterInfo> {
        self.registry.list()
    }

    /// Accepts a request; its events come from [`Engine::step`]. It keeps the adapters that its names mean
    /// now, whatever happens to the names.
    ///
    /// # Errors
    /// An adapter is not loaded, the prompt is empty, too long or not the model's, the KV cache could never
    /// hold it, or an option has no meaning.
    pub fn submit(&self, request: Request) -> Result<RequestId, Error> {
        self.accept(request, None)
    }

    /// Accepts a request and gives an iterator of its events. Iterating steps the engine, so other
    /// requests go on too; dropping the iterator cancels the request.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn generate(&self, request: Request) -> Result<Answer<'_>, Error> {
        let mailbox = Mailbox::default();
        let id = self.accept(request, Some(mailbox.clone()))?;
        Ok(Answer { engine: self, id, mailbox, finished: false })
    }

    fn accept(&self, request: Request, mailbox: Option<Mailbox>) -> Result<RequestId, Error> {
        let stack = self.registry.stack(&request.adapters)?;
        let tokens = Text::tokens_of(self.text.as_ref(), request.prompt)?;
        let most_tokens = self.most_tokens(&tokens, request.max_tokens)?;
        let mut end_tokens = request.stop_tokens;
        if !request.ignore_eos {
            end_tokens.extend_from_slice(&self.end_tokens);
        }
        let text = self.text.as_ref();
        if text.is_none() && !request.stop.is_empty() {
            return Err(Error::NoTokenizer);
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let session = Session {
            id,
            stack,
            prompt: tokens.len(),
            filled: 0,
            chain: None,
            most_tokens,
            end_tokens,
            sampler: crate::sample::Sampler::new(request.sampling)?,
            text: text.map(|text| text.stream(request.stop)).transpose()?,
            logprobs: request.logprobs,
            logits: request.logits,
            cancelled: cancelled.clone(),
            mailbox,
            tokens,
        };
        lock(&self.live).insert(id, cancelled);
        lock(&self.inbox).push(session);
        Ok(id)
    }

    /// Tokens at which a sequence that starts with `prompt` ends; an error if it cannot start.
    fn most_tokens(&self, prompt: &[u32], answer: Option<usize>) -> Result<usize, Error> {
        let config = self.model.config();
        let found = prompt.len();
        if found == 0 {
            return Err(Error::EmptyPrompt);
        }
        if answer == Some(0) {
            let found = "0".to_owned();
            return Err(Error::Option { option: "max_tokens", expected: "1 or more", found });
        }
        if let Some((index, &token)) = prompt.iter().enumerate().find(|(_, t)| **t as usize >= config.vocab) {
            return Err(Error::Token { index, vocab: config.vocab, found: token });
        }
        if found >= config.context {
            return Err(Error::TooLong { context: config.context, found });
        }
        let room = self.kv_pages.saturating_mul(graftwork_kernels::backend::PAGE);
        let most = match answer {
            Some(answer) => found.saturating_add(answer).min(config.context),
            None => config.context.min(room.saturating_add(1)).max(found + 1),
        };
        let needed = pages_for(most - 1);
        match needed <= self.kv_pages {
            true => Ok(most),
            false => Err(Error::Budget { needed, limit: self.kv_pages }),
        }
    }

    /// Ends a request before its time; its last event comes from the next step. A step in progress that is
    /// mostly its work is given up within a layer.
    ///
    /// # Errors
    /// No such request waits or runs.
    pub fn cancel(&self, id: RequestId) -> Result<(), Error> {
        let live = lock(&self.live);
        live.get(&id).ok_or(Error::NoRequest { id })?.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether any request waits or runs.
    pub fn is_idle(&self) -> bool {
        lock(&self.live).is_empty()
    }

    /// Runs one forward pass over everything that is ready, and gives what happened since the last call, in
    /// order. Empty once there is nothing to do; also when a step only read prompts.
    ///
    /// # Errors
    /// Memory was refused. No request lost anything: the next call tries again.
    pub fn step(&self) -> Result<Vec<Event>, Error> {
        let mut core = lock(&self.core);
        self.advance(&mut core)?;
        Ok(std::mem::take(&mut core.outbox))
    }

    fn advance(&self, core: &mut Core) -> Result<(), Error> {
        let Core { runner, schedule, outbox, counters } = core;
        for session in lock(&self.inbox).drain(..) {
            schedule.push(session);
        }
        loop {
            for mut session in schedule.take_cancelled() {
                let event = session.finish(FinishReason::Cancelled);
                self.post(&session, event, outbox);
            }
            let plan = schedule.plan();
            if plan.parts.is_empty() {
                return Ok(());
            }
            runner.grow(schedule.pool().extent())?;
            for (from, to) in schedule.take_copies() {
                runner.copy_page(from, to);
            }
            let batch = crate::batch::Batch::new(&schedule.pieces(&plan));
            let start = Instant::now();
            let done = runner.run(&batch, &|| schedule.is_worth(&plan))?;
            counters.count(&batch, done, start.elapsed());
            if !done {
                continue;
            }
            let logits = runner.logits();
            let mut ended = Vec::new();
            let rows = logits.chunks_exact(self.model.config().vocab);
            for (session, logits) in schedule.filled(&plan).into_iter().zip(rows) {
                for event in session.advance(logits) {
                    if matches!(event, Event::Finished { .. }) {
                        ended.push(session.id);
                    }
                    self.post(session, event, outbox);
                }
            }
            for id in ended {
                schedule.take(id);
            }
            return Ok(());
        }
    }

    /// Delivers an event.
    fn post(&self, session: &Session, event: Event, outbox: &mut Vec<Event>) {
        if matches!(event, Event::Finished { .. }) {
            lock(&self.live).remove(&session.id);
        }
        match &session.mailbox {
            Some(mailbox) => lock(mailbox).push_back(event),
            None => outbox.push(event),
        }
    }

    /// The logits `[tokens, vocab]` at every position of one sequence under a stack of adapters, with keys
    /// and values cached in f32. Waits for a step in progress.
    ///
    /// # Errors
    /// An adapter is not loaded, the tokens are none, too many or not the model's, or memory was refused.
    pub fn logits(&self, tokens: &[u32], adapters: &[(String, f32)]) -> Result<Vec<f32>, Error> {
        self.logits_with(tokens, adapters, Format::F32)
    }

    /// [`Engine::logits`] with keys and values cached as `kv`, F16 or F32.
    ///
    /// # Errors
    /// As [`Engine::logits`], or another format.
    pub fn logits_with(
        &self,
        tokens: &[u32],
        adapters: &[(String, f32)],
        kv: Format,
    ) -> Result<Vec<f32>, Error> {
        let stack = self.registry.stack(adapters)?;
        EngineOptions { kv_format: kv, ..self.options.clone() }.check()?;
        let config = self.model.config();
        if tokens.len() > config.context {
            return Err(Error::TooLong { context: config.context + 1, found: tokens.len() });
        }
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if let Some((index, &token)) = tokens.iter().enumerate().find(|(_, t)| **t as usize >= config.vocab) {
            return Err(Error::Token { index, vocab: config.vocab, found: token });
        }
        lock(&self.core).runner.score(tokens, &stack, kv, self.options.prefill_chunk)
    }
}

/// The events of one request, made by stepping the engine. Dropping it cancels the request.
pub struct Answer<'a> {
    engine: &'a Engine,
    id: RequestId,
    mailbox: Mailbox,
    finished: bool,
}

impl Answer<'_> {
    /// The request.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// The whole text of the answer.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn text(self) -> Result<String, Error> {
        self.map(|event| event.map(|event| event.text().to_owned())).collect()
    }
}

impl Iterator for Answer<'_> {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.finished {
            if let Some(event) = lock(&self.mailbox).pop_front() {
                self.finished = matches!(event, Event::Finished { .. });
                return Some(Ok(event));
            }
            let mut core = lock(&self.engine.core);
            // Another thread may have stepped while this one waited for the lock.
            if lock(&self.mailbox).is_empty()
                && let Err(error) = self.engine.advance(&mut core)
            {
                return Some(Err(error));
            }
        }
        None
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        if !self.finished {
            // It may have ended in the meantime; then there is nothing to cancel.
            let _ = self.engine.cancel(self.id);
        }
    }
}

/// Locks, also after a panic elsewhere: what the locks guard is consistent between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
