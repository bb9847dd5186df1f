//! Opening a model, and what that takes.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use graftwork_adapters::Source;
use graftwork_kernels::backend::Backend;
use graftwork_kernels::cpu::Cpu;
use graftwork_kernels::cpu::isa::Isa;

use super::Engine;
use crate::core::Core;
use crate::log::Level;
use crate::mail::Mail;
use crate::model::arch::Names;
use crate::model::base::Base;
use crate::model::config::Config;
use crate::model::container::Container;
use crate::model::plan::Counting;
use crate::model::runner::{cache_shape, erase, most_scratch};
use crate::model::weights::Model;
use crate::parallel::{Progress, STACK, THREAD};
use crate::registry::Registry;
use crate::schedule::{Limits, Schedule};
use crate::text::Text;
use crate::{EngineOptions, Error, Memory};

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
