//! The engine: one base model, its adapters, and everybody's requests.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use graftwork_adapters::delta::Fingerprint;
use graftwork_adapters::{Adapter, Content, Module, Source};
use graftwork_kernels::Format;
use graftwork_kernels::backend::{Backend, PAGE};
use graftwork_kernels::cpu::{Cpu, isa::Isa};

use crate::core::{Core, Report, Turn};
use crate::kv::pages_for;
use crate::log::{Level, say};
use crate::mail::{Mail, Route, Wake, lock};
use crate::model::arch::Names;
use crate::model::base::Base;
use crate::model::config::Config;
use crate::model::container::Container;
use crate::model::plan::Counting;
use crate::model::runner::{Prepare, cache_shape, erase, most_scratch};
use crate::model::weights::Model;
use crate::parallel::{Progress, STACK, THREAD};
use crate::registry::{AdapterInfo, Bound, Expect, Generation, Known, Loaded, Reach, Registry};
use crate::request::{Context, Event, Prompt, Request, RequestId};
use crate::sample::Sampler;
use crate::schedule::{Limits, Schedule};
use crate::sequence::{Entry, Place};
use crate::session::Session;
use crate::stack::{Stack, Stacks};
use crate::state::{self, State};
use crate::text::{Text, Tokens};
use crate::trace::Counters;
use crate::{Answer, EngineOptions, Error, Memory};

/// One base model with its adapters, answering any number of requests at once.
///
/// Every method takes `&self` and may be called from any thread: adapters are loaded and requests
/// submitted and cancelled while another thread steps. Nothing happens by itself: [`Engine::step`] and
/// [`Engine::poll`] (or an [`Answer`] that is iterated) do the work. An answer never depends on what else runs.
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
    /// Opens a model: a GGUF file, a directory in Hugging Face layout, or either from memory.
    ///
    /// # Errors
    /// What is malformed, missing, unknown or does not fit, by name; or options without a meaning.
    pub fn open(source: impl Into<Source>, options: EngineOptions) -> Result<Self, Error> {
        Self::open_with(source, options, &|_, _| true)
    }

    /// [`Engine::open`], reporting its progress as `(parts done, parts in all)`; `false` ends it.
    ///
    /// # Errors
    /// As [`Engine::open`]; or `progress` ended it.
    pub fn open_with(
        source: impl Into<Source>,
        mut options: EngineOptions,
        progress: &Progress<'_>,
    ) -> Result<Self, Error> {
        let Opening { container, config, names, backend } = Opening::new(&source.into(), &mut options)?;
        let most_low = fits(&container, (&config, names), &backend, &options)?;
        let (device, isa) = (backend.device().clone(), backend.isa());
        // A large vocabulary takes as long as the weights, on one thread.
        let (text, model) = std::thread::scope(|scope| {
            let text = std::thread::Builder::new()
                .name(THREAD.to_owned())
                .stack_size(STACK)
                .spawn_scoped(scope, || Text::of(&container))
                .map_err(Error::Threads)?;
            let loading = (options.threads, progress);
            let model = Model::load(config, names, container.weights(), &*device, loading);
            let text = text.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, Error>((text?, model?))
        })?;
        let mut end_tokens = container.end_tokens()?;
        let base = Base::new(container, model.config.architecture, names, model.config.tied_head);
        let (model, runner) = erase((backend, options.threads), model, base, options.kv_format);
        end_tokens.extend(text.iter().flat_map(|text| text.tokenizer().ends_of_generation()));
        end_tokens.sort_unstable();
        end_tokens.dedup();
        let page_bytes = runner.page_bytes();
        let kv_pages = options.kv_bytes / page_bytes;
        let limits = Limits {
            batch: options.max_batch,
            chunk: options.prefill_chunk,
            keep_prefixes: options.keep_prefixes,
        };
        let core = Core::new(runner, Schedule::new(limits, kv_pages), model.config().vocab);
        let engine = Self {
            registry: Registry::new(options.adapter_bytes),
            model,
            text,
            end_tokens,
            options,
            kv_pages,
            page_bytes,
            most_low,
            next_id: AtomicU64::new(1),
            mail: Mail::default(),
            report: Mutex::new(core.report()),
            core: Mutex::new(core),
            isa,
        };
        engine.say(Level::Info, || {
            let Config { architecture, layers, hidden, .. } = engine.config();
            let (bytes, threads) = (engine.model.bytes(), engine.options.threads);
            format!("opened {architecture}: {layers} layers, {hidden} wide, {bytes} bytes of weights, {threads} threads")
        });
        if let Some(error) = engine.text.as_ref().and_then(Text::unusable_template) {
            engine.say(Level::Warn, || error.to_string());
        }
        Ok(engine)
    }

    /// What [`Engine::open`] would take, without doing it: weights and embedding as they will be, no adapters, an empty KV
    /// cache with its limit, and the scratch of the largest step (adapters add to that `4 r` bytes per row and rank).
    /// Where files are mapped, reads little more than headers.
    ///
    /// # Errors
    /// As [`Engine::open`], as far as it shows without reading the weights.
    pub fn plan(source: impl Into<Source>, mut options: EngineOptions) -> Result<Memory, Error> {
        let Opening { container, config, names, backend } = Opening::new(&source.into(), &mut options)?;
        let page = cache_shape(&config, options.kv_format).page_bytes();
        let scratch = most_scratch(&backend, &config, options.prefill_chunk, options.max_batch, 0);
        let (weights, embedding) = weight_bytes(&container, (&config, names), &backend)?;
        Ok(Memory {
            weights,
            embedding,
            adapters: 0,
            adapters_limit: options.adapter_bytes,
            kv: 0,
            kv_used: 0,
            kv_limit: options.kv_bytes / page * page,
            scratch,
        })
    }

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

    /// Loads an adapter under a name that is free. Runs on the caller's thread, beside any step.
    ///
    /// Adapters take no more memory than [`EngineOptions::adapter_bytes`], however many are loaded. When one needs room, those whose last
    /// use is the longest ago leave memory, but for those that are pinned or that running requests use. They keep name and generation, and
    /// come back from their source when a request needs them: in [`Engine::submit`] while there is room beside adapters that other
    /// requests wait for, else in the step that starts the request, which waits until there is. So their sources must hold what they
    /// held; if one does not, the request fails with [`Error::SourceChanged`].
    ///
    /// # Errors
    /// What is malformed, not understood or does not fit the model; or the name is taken.
    pub fn load_adapter(&self, name: &str, source: impl Into<Source>) -> Result<Generation, Error> {
        self.load_adapter_with(name, source, &|_, _| true)
    }

    /// [`Engine::load_adapter`], reporting its progress as `(parts done, parts in all)`; `false` ends it, and nothing is left of it.
    /// Parts are sites that are prepared, or, of a seed patch, elements of its updates that are computed, on
    /// [`EngineOptions::threads`] threads beside those of any step.
    ///
    /// # Errors
    /// As [`Engine::load_adapter`]; or `progress` ended it.
    pub fn load_adapter_with(
        &self,
        name: &str,
        source: impl Into<Source>,
        progress: &Progress<'_>,
    ) -> Result<Generation, Error> {
        self.put_adapter(name, source.into(), Expect::Free, progress)
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
        self.replace_adapter_with(name, source, expected, &|_, _| true)
    }

    /// [`Engine::replace_adapter`] with progress, as [`Engine::load_adapter_with`]: until it is done, the name means what it meant.
    ///
    /// # Errors
    /// As [`Engine::replace_adapter`]; or `progress` ended it.
    pub fn replace_adapter_with(
        &self,
        name: &str,
        source: impl Into<Source>,
        expected: Option<Generation>,
        progress: &Progress<'_>,
    ) -> Result<Generation, Error> {
        let expect = expected.map_or(Expect::Any, Expect::Exactly);
        self.put_adapter(name, source.into(), expect, progress)
    }

    fn put_adapter(
        &self,
        name: &str,
        source: Source,
        expect: Expect,
        progress: &Progress<'_>,
    ) -> Result<Generation, Error> {
        self.registry.check(name, expect)?;
        let _wake = Wake(&self.mail);
        let kept = self.registry.is_limited().then(|| source.clone());
        let adapter = Adapter::open(source)?;
        let mut charge = self.registry.charge();
        let mut room = |bytes| self.registry.take(name, &mut charge, bytes);
        let (bound, mut prepared) = self.model.prepare(&adapter, progress, &mut room)?;
        if let Some(files) = &adapter.text {
            let rows = prepared.vocabulary.map_or(self.config().vocab, |vocabulary| vocabulary.embedding);
            prepared.text = Text::of_adapter(self.text.as_ref(), files, rows)?;
        }
        let (edits, bytes) = (prepared.edits, prepared.bytes);
        let known = Known { kind: adapter.kind, content: Content::of(&adapter), source: kept };
        let generation = self.registry.put(name, expect, known, (bound, prepared), charge)?;
        self.say(Level::Info, || format!("adapter {name}#{generation}: {edits} sites, {bytes} bytes"));
        Ok(generation)
    }

    /// What an adapter has in memory, from its source.
    fn reload(&self, loaded: &Loaded) -> Result<Bound, Error> {
        let (name, generation, Known { content, source, .. }) =
            (loaded.name(), loaded.generation(), loaded.known());
        let source =
            source.clone().ok_or(Error::Internal { what: "an adapter without a source left memory" })?;
        let adapter = Adapter::open(source)?;
        let changed = || Error::SourceChanged { name: name.to_owned(), generation };
        if Content::of(&adapter) != *content {
            return Err(changed());
        }
        let had = loaded.prepared().bytes;
        let mut room = |bytes| if bytes <= had { Ok(()) } else { Err(changed()) };
        let (bound, _) = self.model.prepare(&adapter, &|_, _| true, &mut room)?;
        self.say(Level::Debug, || format!("adapter {name}#{generation}: back in memory, {had} bytes"));
        Ok(bound)
    }

    /// Holds the adapters of a request in memory, as [`Hold`](crate::schedule::Hold) asks.
    fn hold(&self, stacks: &Stacks, reach: Reach) -> Result<bool, Error> {
        let held = self.registry.hold(stacks, reach, &|loaded| self.reload(loaded))?;
        if !held && reach == Reach::Nameless {
            // Another thread is loading, and will let go; or adapters were pinned since the request was accepted.
            self.must_fit(stacks)?;
        }
        Ok(held)
    }

    fn must_fit(&self, stacks: &Stacks) -> Result<(), Error> {
        let adapters: Vec<_> = stacks.all().iter().map(|stacked| stacked.adapter()).collect();
        self.registry.must_fit(0, &adapters)
    }

    /// Refuses adapters that could never be in memory together or whose rows take too much scratch, and brings them back if there is room.
    fn admit(&self, stacks: &Stacks) -> Result<(), Error> {
        self.must_fit(stacks)?;
        let low = stacks.all().iter().map(|stacked| stacked.adapter().prepared().scratch);
        let needed = low.fold(0, usize::saturating_add);
        if needed > self.most_low {
            let rows = self.options.prefill_chunk.saturating_add(self.options.max_batch);
            let more = (needed - self.most_low).saturating_mul(size_of::<f32>()).saturating_mul(rows);
            let limit = self.options.scratch_bytes;
            return Err(Error::Limit { option: "scratch_bytes", needed: limit.saturating_add(more), limit });
        }
        let _wake = Wake(&self.mail);
        self.registry.prefetch(stacks, &|loaded| self.reload(loaded))
    }

    /// The adapters of a sequence that is computed now, held in memory.
    fn held(&self, stack: &Stack, sequence: &[u32]) -> Result<Stacks, Error> {
        let stacks = stack.over(sequence).0;
        self.admit(&stacks)?;
        match self.hold(&stacks, Reach::Awaited)? {
            true => Ok(stacks),
            false => {
                let name =
                    stacks.all().first().map_or_else(String::new, |first| first.adapter().name().to_owned());
                Err(Error::Busy { name, limit: self.options.adapter_bytes })
            }
        }
    }

    /// Frees a name. Requests that use its adapter keep it; its memory goes when the last of them ends.
    ///
    /// # Errors
    /// The name is not in use.
    pub fn unload_adapter(&self, name: &str) -> Result<Generation, Error> {
        let _wake = Wake(&self.mail);
        let generation = self.registry.remove(name)?;
        self.say(Level::Info, || format!("adapter {name}#{generation}: unloaded"));
        Ok(generation)
    }

    /// Keeps an adapter in memory, whatever [`EngineOptions::adapter_bytes`] asks for, until its name is freed, given to another adapter or
    /// unpinned; brings it there if it is not.
    ///
    /// # Errors
    /// The name is not in use; or the adapter cannot come back, or finds no room.
    pub fn pin_adapter(&self, name: &str, pinned: bool) -> Result<(), Error> {
        let _wake = Wake(&self.mail);
        self.registry.pin(name, pinned, &|loaded| self.reload(loaded))
    }

    /// The adapters that are loaded, by name.
    pub fn adapters(&self) -> Vec<AdapterInfo> {
        self.registry.list()
    }

    /// The adapter of this name.
    ///
    /// # Errors
    /// The name is not in use.
    pub fn adapter(&self, name: &str) -> Result<AdapterInfo, Error> {
        self.registry.find(name)
    }

    /// Accepts a request; its events come from [`Engine::step`] or [`Engine::poll`]. It keeps the adapters that its names mean
    /// now, whatever happens to the names.
    ///
    /// # Errors
    /// An adapter is not loaded, the prompt is empty, too long or not the model's, the KV cache could never
    /// hold it, or an option has no meaning.
    pub fn submit(&self, request: Request) -> Result<RequestId, Error> {
        self.accept(request, Route::Shared)
    }

    /// Accepts a request whose events go to `sink`: in order, one at a time, on whichever thread is inside of
    /// [`Engine::step`] or [`Engine::poll`], with no lock held. `Break` cancels the request; its last event follows.
    /// The sink is dropped after the last event.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn submit_to(
        &self,
        sink: impl FnMut(Event) -> ControlFlow<()> + Send + 'static,
        request: Request,
    ) -> Result<RequestId, Error> {
        self.accept(request, Route::Sink(Box::new(sink)))
    }

    /// Accepts a request and gives an iterator of its events. Iterating steps the engine, so other
    /// requests go on too; dropping the iterator cancels the request.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn generate(&self, request: Request) -> Result<Answer<'_>, Error> {
        Ok(Answer::new(self, self.accept(request, Route::Apart)?))
    }

    fn accept(&self, request: Request, route: Route) -> Result<RequestId, Error> {
        self.mail.check_open()?;
        let stack = self.registry.stack(&request.adapters, request.prompt.placed())?;
        let text = stack.text().or(self.text.as_ref());
        let Tokens { tokens, places, new_text } = Text::tokens_of(text, request.prompt)?;
        let tokens = self.sequence(&stack, &tokens, &places, self.config().context)?;
        let most_tokens = self.most_tokens(tokens.len(), request.max_tokens, request.context)?;
        let context = match request.context {
            Context::Stop => Context::Stop,
            Context::Shift { keep } => {
                let own = tokens.iter().take_while(|&&number| !Entry::is_token(number)).count();
                let keep = own.saturating_add(keep).min(tokens.len());
                if keep + 2 > most_tokens {
                    let expected = "at least two fewer than the context and the KV cache hold";
                    return Err(Error::Option { option: "keep", expected, found: keep.to_string() });
                }
                Context::Shift { keep }
            }
        };
        let vocabulary = stack.vocabulary(self.config().vocab);
        let mut end_tokens = request.stop_tokens;
        if !request.ignore_eos {
            end_tokens.extend_from_slice(&self.end_tokens);
            end_tokens.extend(stack.text().iter().flat_map(|text| text.tokenizer().ends_of_generation()));
        }
        let text = match text {
            Some(text) => Some(text.stream(request.stop, new_text)?),
            None if request.stop.is_empty() => None,
            None => return Err(Error::NoTokenizer),
        };
        let biased = request.sampling.logit_bias.iter().map(|&(token, _)| token);
        check_tokens("logit_bias", biased, vocabulary.head)?;
        let (stacks, absent) = stack.over(&tokens);
        self.admit(&stacks)?;
        if !absent.is_empty() {
            self.say(Level::Warn, || {
                format!("the prompt holds no invocation sequence of {absent:?}: they do nothing")
            });
        }
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let session = Session {
            id,
            stacks,
            prompt: tokens.len(),
            filled: 0,
            chain: None,
            most_tokens,
            left: request.max_tokens.unwrap_or(usize::MAX),
            context,
            end_tokens,
            sampler: Sampler::new(request.sampling)?,
            text,
            saved: None,
            logprobs: request.logprobs,
            logits: request.logits,
            cancelled: Arc::default(),
            tokens,
        };
        self.say(Level::Debug, || {
            format!("request {id}: {} tokens of prompt, adapters {:?}", session.prompt, session.stacks)
        });
        self.mail.submit(session, route);
        Ok(id)
    }

    /// What a request is now, in bytes with which [`Engine::resume`] goes on, here or in another process; it goes on here, too. With the
    /// keys and values of its tokens, so that these need not be computed again. Waits for a step in progress.
    ///
    /// # Errors
    /// No such request waits or runs; no memory.
    pub fn save(&self, id: RequestId) -> Result<Vec<u8>, Error> {
        self.turn()?.save(&self.mail, id, self.state_base())
    }

    /// Accepts a request that was saved: its next event is the one that followed, equal to the bit. Its adapters must be loaded, under any
    /// names: what they hold counts.
    ///
    /// # Errors
    /// The bytes were changed, cut, or made by another version; another base, other keys and values; an adapter is not loaded; the KV
    /// cache could never hold it. Nothing of it runs then.
    pub fn resume(&self, state: &[u8]) -> Result<RequestId, Error> {
        self.accept_saved(state, Route::Shared)
    }

    /// [`Engine::resume`] as [`Engine::submit_to`].
    ///
    /// # Errors
    /// As [`Engine::resume`].
    pub fn resume_to(
        &self,
        sink: impl FnMut(Event) -> ControlFlow<()> + Send + 'static,
        state: &[u8],
    ) -> Result<RequestId, Error> {
        self.accept_saved(state, Route::Sink(Box::new(sink)))
    }

    /// [`Engine::resume`] as [`Engine::generate`].
    ///
    /// # Errors
    /// As [`Engine::resume`].
    pub fn resume_apart(&self, state: &[u8]) -> Result<Answer<'_>, Error> {
        Ok(Answer::new(self, self.accept_saved(state, Route::Apart)?))
    }

    fn state_base(&self) -> state::Base<'_> {
        state::Base {
            fingerprint: self.model.fingerprint(),
            architecture: self.config().architecture,
            kv: self.options.kv_format,
            page_bytes: self.page_bytes,
        }
    }

    fn accept_saved(&self, bytes: &[u8], route: Route) -> Result<RequestId, Error> {
        self.mail.check_open()?;
        let State { header, tokens, pages } = state::read(bytes, self.state_base())?;
        let wrong = |what, expected: String, found: String| Err(Error::State { what, expected, found });
        let (mut adapters, mut placed) = (Vec::new(), Vec::new());
        for state::Adapter { name, content, weight, .. } in &header.adapters {
            let Some(own) = self.registry.of_content(name, content) else {
                return wrong("adapter", format!("{name} of content {content}, loaded"), "none".to_owned());
            };
            match f32::from_bits(*weight) {
                0.0 => placed.push(own),
                weight => adapters.push((own, weight)),
            }
        }
        let stack = self.registry.stack(&adapters, placed.iter().map(String::as_str))?;
        let vocabulary = stack.vocabulary(self.config().vocab);
        stack.check(&tokens, vocabulary.embedding, header.prompt)?;
        if header.most_tokens > self.config().context {
            return wrong(
                "tokens",
                format!("at most {}", self.config().context),
                header.most_tokens.to_string(),
            );
        }
        let needed = pages_for(header.most_tokens - 1);
        if needed > self.kv_pages {
            return Err(Error::Budget { needed, limit: self.kv_pages });
        }
        let sampler = header.sampler()?;
        let biased = sampler.options().logit_bias.iter().map(|&(token, _)| token);
        check_tokens("logit_bias", biased, vocabulary.head)?;
        let context = header.context();
        let text = match (stack.text().or(self.text.as_ref()), header.text) {
            (Some(text), Some(saved)) => Some(text.resume(saved)?),
            (None, Some(_)) => return Err(Error::NoTokenizer),
            (_, None) => None,
        };
        let from: Vec<usize> = header.adapters.iter().map(|adapter| adapter.from).collect();
        let stacks = stack.from_positions(&from);
        self.admit(&stacks)?;
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let session = Session {
            id,
            stacks,
            prompt: header.prompt,
            filled: 0,
            chain: None,
            most_tokens: header.most_tokens,
            left: usize::try_from(header.left).unwrap_or(usize::MAX),
            context,
            end_tokens: header.end_tokens,
            sampler,
            text,
            saved: pages,
            logprobs: header.logprobs,
            logits: header.logits,
            cancelled: Arc::default(),
            tokens,
        };
        self.say(Level::Debug, || format!("request {id}: resumed at {} tokens", session.tokens.len()));
        self.mail.submit(session, route);
        Ok(id)
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

    /// What stands at the positions of a prompt under a stack, fewer than `limit`.
    fn sequence(
        &self,
        stack: &Stack,
        prompt: &[u32],
        places: &[Place],
        limit: usize,
    ) -> Result<Vec<u32>, Error> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let vocabulary = stack.vocabulary(self.config().vocab);
        check_tokens("prompt", prompt.iter().copied(), vocabulary.embedding)?;
        stack.sequence(prompt, places, limit)
    }

    /// Positions at which a sequence that starts with `found`, fewer than the context's, is full; an error if it cannot start.
    fn most_tokens(&self, found: usize, answer: Option<usize>, policy: Context) -> Result<usize, Error> {
        let config = self.model.config();
        if answer == Some(0) {
            let found = "0".to_owned();
            return Err(Error::Option { option: "max_tokens", expected: "1 or more", found });
        }
        let room = self.kv_pages.saturating_mul(PAGE);
        let most = match answer {
            Some(answer) if policy == Context::Stop => found.saturating_add(answer).min(config.context),
            Some(answer) => found.saturating_add(answer).min(config.context).min(room + 1).max(found + 1),
            None => config.context.min(room.saturating_add(1)).max(found + 1),
        };
        let needed = pages_for(most - 1);
        match needed <= self.kv_pages {
            true => Ok(most),
            false => Err(Error::Budget { needed, limit: self.kv_pages }),
        }
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
        let advanced = turn.advance(&self.mail, &|stacks, reach| self.hold(stacks, reach));
        turn.idle_since = matches!(advanced, Ok(false)).then_some(before);
        drop(turn);
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

    /// The logits `[tokens, vocab]` at every position of one sequence under a stack of adapters, but for those that adapters put
    /// before it, with keys and values cached in f32; `vocab` is the adapter's where one has tokens of its own. Waits for a step
    /// in progress.
    ///
    /// # Errors
    /// An adapter is not loaded, the tokens are none, too many or not the model's, or memory was refused.
    pub fn logits(&self, tokens: &[u32], adapters: &[(String, f32)]) -> Result<Vec<f32>, Error> {
        self.logits_with(tokens, adapters, Format::F32)
    }

    /// [`Engine::logits`] with keys and values cached as `kv`, F16, F32 or Q8_0.
    ///
    /// # Errors
    /// As [`Engine::logits`], or another format.
    pub fn logits_with(
        &self,
        tokens: &[u32],
        adapters: &[(String, f32)],
        kv: Format,
    ) -> Result<Vec<f32>, Error> {
        let stack = self.registry.stack(adapters, std::iter::empty())?;
        EngineOptions { kv_format: kv, ..self.options.clone() }.check()?;
        let sequence = self.sequence(&stack, tokens, &[], self.config().context + 1)?;
        let mut turn = self.turn()?;
        let stacks = self.held(&stack, &sequence)?;
        turn.runner.score(&sequence, &stacks, kv, self.options.prefill_chunk, None)
    }

    /// [`Engine::logits`], and on the way shows `seen` the residual stream `[rows, hidden]` at the same positions: `seen(0, rows)` what
    /// goes into the first block, `seen(n, rows)` what comes out of the first `n`, but after all of them that behind the final norm.
    /// Positions come in order, some rows at a time, through all blocks before the next. A GPU would be read after every block.
    ///
    /// # Errors
    /// As [`Engine::logits`].
    pub fn hidden_states(
        &self,
        tokens: &[u32],
        adapters: &[(String, f32)],
        seen: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Vec<f32>, Error> {
        let stack = self.registry.stack(adapters, std::iter::empty())?;
        let sequence = self.sequence(&stack, tokens, &[], self.config().context + 1)?;
        let mut turn = self.turn()?;
        let stacks = self.held(&stack, &sequence)?;
        turn.runner.score(&sequence, &stacks, Format::F32, self.options.prefill_chunk, Some(seen))
    }

    /// Shows `seen` the inputs `[rows, inputs]` of the linear layers of the blocks up to `last`, over one sequence without adapters, some
    /// rows at a time: once of those that share their input, as that of the first. Waits for a step in progress.
    ///
    /// # Errors
    /// As [`Engine::logits`].
    pub(crate) fn linear_inputs(
        &self,
        tokens: &[u32],
        last: usize,
        seen: &mut dyn FnMut(usize, Module, &[f32]),
    ) -> Result<(), Error> {
        let stack = self.registry.stack(&[], std::iter::empty())?;
        let sequence = self.sequence(&stack, tokens, &[], self.config().context + 1)?;
        let mut turn = self.turn()?;
        let stacks = self.held(&stack, &sequence)?;
        turn.runner.inputs(&sequence, &stacks, last, self.options.prefill_chunk, seen)
    }
}

/// Refuses tokens that a vocabulary of `vocab` does not have.
fn check_tokens(place: &'static str, tokens: impl Iterator<Item = u32>, vocab: usize) -> Result<(), Error> {
    match tokens.enumerate().find(|&(_, token)| token as usize >= vocab) {
        Some((index, found)) => Err(Error::Token { place, index, vocab, found }),
        None => Ok(()),
    }
}

/// Bytes that a model's weights will keep in memory, and its embedding.
fn weight_bytes(
    container: &Container,
    (config, names): (&Config, &'static Names),
    backend: &Cpu,
) -> Result<(usize, usize), Error> {
    let counting = Counting::new(backend.device().clone());
    let model = Model::load(config.clone(), names, container.weights(), &counting, (1, &|_, _| true))?;
    Ok((model.bytes, model.embedding_bytes))
}

/// Refuses a model that exceeds the limits of its weights or of scratch. Gives how many values of scratch the adapters of a row may
/// take within them.
fn fits(
    container: &Container,
    model: (&Config, &'static Names),
    backend: &Cpu,
    options: &EngineOptions,
) -> Result<usize, Error> {
    if options.weight_bytes != usize::MAX {
        let (weights, embedding) = weight_bytes(container, model, backend)?;
        let (needed, limit) = (weights.saturating_add(embedding), options.weight_bytes);
        if needed > limit {
            return Err(Error::Limit { option: "weight_bytes", needed, limit });
        }
    }
    let limit = options.scratch_bytes;
    if limit == usize::MAX {
        return Ok(usize::MAX);
    }
    let needed = |low| most_scratch(backend, model.0, options.prefill_chunk, options.max_batch, low);
    if needed(0) > limit {
        return Err(Error::Limit { option: "scratch_bytes", needed: needed(0), limit });
    }
    let (mut most, mut over) = (0, limit);
    while over - most > 1 {
        let middle = most + (over - most) / 2;
        *(if needed(middle) <= limit { &mut most } else { &mut over }) = middle;
    }
    Ok(most)
}

/// What opening a model and planning to have in common.
struct Opening {
    container: Container,
    config: Config,
    names: &'static Names,
    backend: Cpu,
}

impl Opening {
    fn new(source: &Source, options: &mut EngineOptions) -> Result<Self, Error> {
        options.check()?;
        if options.threads == 0 {
            options.threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
        }
        let container = Container::open(source)?;
        let (config, names) = container.config()?;
        let isa = match &options.isa {
            None => Isa::best(),
            Some(name) => Isa::named(name).ok_or_else(|| Error::Option {
                option: "isa",
                expected: "an instruction set that this CPU has",
                found: name.clone(),
            })?,
        };
        let backend = match &options.executor {
            Some(executor) => Cpu::lent(options.threads, executor.clone(), isa),
            None => Cpu::new(options.threads, isa).map_err(Error::Threads)?,
        };
        Ok(Self { container, config, names, backend })
    }
}
