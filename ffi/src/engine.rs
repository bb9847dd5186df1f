//! Engines: opening, planning, closing, and what is known of them.

use std::ffi::{CString, c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use graftwork::{Engine, EngineOptions, Executor, Format, Level, Log, Memory, Task};

use crate::error::{Failure, GW_ERR_INTERNAL, GW_ERR_UNSUPPORTED, gw_error, gw_status};
use crate::guard::{caught, free, guard, quietly, report};
use crate::gw_drop_fn;
use crate::input::{Claim, Out, User, reference};
use crate::sized::{self, OutStruct, SizedStruct};
use crate::source::gw_source;

/// One model, its adapters, and everybody's requests. What is inside lives until the last call that uses it returns, so a callback
/// may close it.
pub struct gw_engine(Arc<Inner>);

struct Inner {
    engine: Engine,
    /// What [`gw_engine_info`] points to.
    architecture: CString,
    isa: CString,
    /// Whether a call panicked.
    poisoned: AtomicBool,
}

impl Inner {
    fn usable(&self) -> Result<&Engine, Failure> {
        match self.poisoned.load(Ordering::Relaxed) {
            false => Ok(&self.engine),
            true => {
                let message = "the engine is unusable since a call panicked";
                Err(Failure::new(GW_ERR_INTERNAL, "engine", message))
            }
        }
    }
}

/// Runs the body of a function on an engine that is not poisoned.
///
/// # Safety
/// As [`on_inner`].
pub(crate) unsafe fn on_engine(
    name: &'static str,
    engine: *const gw_engine,
    error: *mut *mut gw_error,
    body: impl FnOnce(&Engine) -> Result<(), Failure>,
) -> gw_status {
    // SAFETY: the caller's promise.
    unsafe {
        on_inner(name, engine, error, |inner| {
            // Whatever it failed for may come of a panic in another thread meanwhile.
            body(inner.usable()?).map_err(|failure| inner.usable().err().unwrap_or(failure))
        })
    }
}

/// Runs the body of a function on an engine; a panic poisons it.
///
/// # Safety
/// `engine` is NULL or a live engine; `error` is NULL or may be written.
unsafe fn on_inner(
    name: &'static str,
    engine: *const gw_engine,
    error: *mut *mut gw_error,
    body: impl FnOnce(&Inner) -> Result<(), Failure>,
) -> gw_status {
    let run = || {
        // SAFETY: the caller's promise.
        let inner = unsafe { reference(engine, "engine") }?.0.clone();
        let outcome = caught(name, || body(&inner)).unwrap_or_else(|panic| {
            inner.poisoned.store(true, Ordering::Relaxed);
            // Nobody must go on waiting for what will not come.
            let _ = caught(name, || inner.engine.close());
            Err(panic)
        });
        // If a callback closed the engine, it ends here: whatever that runs into is caught too.
        caught(name, || drop(inner))?;
        outcome
    };
    // SAFETY: the caller's promise.
    unsafe { report(error, run()) }
}

/// Hears what the engine does.
pub type gw_log_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, level: i32, message: *const c_char, message_size: usize)>;

/// Hears how far loading is.
pub type gw_progress_fn = Option<unsafe extern "C" fn(user: *mut c_void, done: u64, all: u64) -> i32>;

/// Takes part in a step, or returns.
pub type gw_task_fn = Option<unsafe extern "C" fn(task: *mut c_void)>;

/// Passes a task on to another thread.
pub type gw_execute_fn = Option<unsafe extern "C" fn(user: *mut c_void, run: gw_task_fn, task: *mut c_void)>;

/// # Safety
/// `task` was made for this, and is given once.
unsafe extern "C" fn run_task(task: *mut c_void) {
    // SAFETY: the caller's promise; tasks are made by `Box::into_raw`.
    quietly(|| unsafe { Box::from_raw(task.cast::<Task>())() });
}

/// How an engine runs.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "see the header")]
pub struct gw_engine_options {
    pub struct_size: u32,
    pub flags: u32,
    pub device: u32,
    pub threads: u32,
    pub kv_format: u32,
    pub max_batch: u32,
    pub prefill_chunk: u32,
    pub log_level: i32,
    pub kv_bytes: u64,
    pub log: gw_log_fn,
    pub log_user: *mut c_void,
    pub log_drop: gw_drop_fn,
    pub progress: gw_progress_fn,
    pub progress_user: *mut c_void,
    pub execute: gw_execute_fn,
    pub execute_user: *mut c_void,
    pub execute_drop: gw_drop_fn,
    pub weight_bytes: u64,
    pub adapter_bytes: u64,
    pub scratch_bytes: u64,
}

// SAFETY: `repr(C)`, the size first, and every field may be zero.
unsafe impl SizedStruct for gw_engine_options {
    const NAME: &'static str = "options";
}

const GW_ENGINE_NO_PREFIXES: u32 = 1;

impl gw_engine_options {
    /// The same for the engine, and the claims on the data of its callbacks.
    fn to_options(self) -> Result<(EngineOptions, [Claim; 2]), Failure> {
        let mut options = EngineOptions::default();
        if self.flags & !GW_ENGINE_NO_PREFIXES != 0 {
            let found = format!("{:#x}", self.flags);
            return Err(Failure::argument("flags", "0 or GW_ENGINE_NO_PREFIXES", found));
        }
        options.keep_prefixes = self.flags & GW_ENGINE_NO_PREFIXES == 0;
        match self.device {
            0 => {}
            1 => {
                let message = "device: this version computes on the CPU only";
                return Err(Failure::new(GW_ERR_UNSUPPORTED, "device", message));
            }
            found => return Err(Failure::argument("device", "one of GW_DEVICE_...", found)),
        }
        options.kv_format = match self.kv_format {
            0 => Format::F16,
            1 => Format::F32,
            2 => Format::Q8_0,
            found => return Err(Failure::argument("kv_format", "one of GW_KV_...", found)),
        };
        options.threads = self.threads as usize;
        for (option, value) in
            [(&mut options.max_batch, self.max_batch), (&mut options.prefill_chunk, self.prefill_chunk)]
        {
            if value != 0 {
                *option = value as usize;
            }
        }
        for (option, bytes) in [
            (&mut options.kv_bytes, self.kv_bytes),
            (&mut options.weight_bytes, self.weight_bytes),
            (&mut options.adapter_bytes, self.adapter_bytes),
            (&mut options.scratch_bytes, self.scratch_bytes),
        ] {
            if bytes != 0 {
                *option = usize::try_from(bytes).unwrap_or(usize::MAX);
            }
        }
        let level = match self.log_level {
            0 | 2 => Level::Info,
            1 => Level::Warn,
            3 => Level::Debug,
            found => return Err(Failure::argument("log_level", "one of GW_LOG_...", found)),
        };
        let (user, claim) = User::new(self.log_user, self.log_drop).claim();
        if let Some(log) = self.log {
            options.log = Some(Log::new(level, move |level, message| {
                let level = match level {
                    Level::Warn => 1,
                    Level::Info => 2,
                    Level::Debug => 3,
                };
                let mut text = Vec::with_capacity(message.len() + 1);
                text.extend_from_slice(message.as_bytes());
                text.push(0);
                // SAFETY: the caller gave both for this; the text lives until it returns.
                unsafe { log(user.data(), level, text.as_ptr().cast(), message.len()) };
            }));
        }
        let (user, execute_claim) = User::new(self.execute_user, self.execute_drop).claim();
        if let Some(execute) = self.execute {
            options.executor = Some(Executor::new(move |task| {
                let task = Box::into_raw(Box::new(task)).cast();
                // SAFETY: the caller gave both for this, and calls `run_task` once with the task.
                unsafe { execute(user.data(), Some(run_task), task) };
            }));
        }
        Ok((options, [claim, execute_claim]))
    }
}

/// # Safety
/// `options` is NULL or points to as many bytes as its `struct_size` says.
unsafe fn read_options(options: *const gw_engine_options) -> Result<gw_engine_options, Failure> {
    if options.is_null() {
        let mut defaults = std::mem::MaybeUninit::<gw_engine_options>::zeroed();
        // SAFETY: zeros are a value of every field; `init` writes the size.
        return Ok(unsafe {
            sized::init(defaults.as_mut_ptr(), size_of::<gw_engine_options>());
            defaults.assume_init()
        });
    }
    // SAFETY: the caller's promise.
    unsafe { sized::read(options) }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_engine_options_init(options: *mut gw_engine_options, size: usize) -> gw_status {
    // SAFETY: the caller's promise.
    unsafe { sized::init(options, size) }
}

/// Bytes, by class.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "see the header")]
pub struct gw_memory {
    pub struct_size: u32,
    pub reserved: u32,
    pub weights: u64,
    pub embedding: u64,
    pub adapters: u64,
    pub kv: u64,
    pub kv_used: u64,
    pub kv_limit: u64,
    pub scratch: u64,
    pub adapters_limit: u64,
}

// SAFETY: `repr(C)`, the size first, and every field may be zero.
unsafe impl SizedStruct for gw_memory {
    const NAME: &'static str = "memory";
}

impl From<Memory> for gw_memory {
    fn from(memory: Memory) -> Self {
        let Memory { weights, embedding, adapters, adapters_limit, kv, kv_used, kv_limit, scratch } = memory;
        Self {
            struct_size: size_of::<Self>() as u32,
            reserved: 0,
            weights: weights as u64,
            embedding: embedding as u64,
            adapters: adapters as u64,
            kv: kv as u64,
            kv_used: kv_used as u64,
            kv_limit: kv_limit as u64,
            scratch: scratch as u64,
            adapters_limit: if adapters_limit == usize::MAX { 0 } else { adapters_limit as u64 },
        }
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_engine_plan(
    source: *const gw_source,
    options: *const gw_engine_options,
    memory: *mut gw_memory,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        guard("gw_engine_plan", error, || {
            let source = reference(source, "source")?.to_source()?;
            let out = OutStruct::new(memory)?;
            let silent = gw_engine_options { log: None, execute: None, ..read_options(options)? };
            out.set(Engine::plan(source, silent.to_options()?.0)?.into());
            Ok(())
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_engine_open(
    source: *const gw_source,
    options: *const gw_engine_options,
    engine: *mut *mut gw_engine,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        guard("gw_engine_open", error, || {
            let source = reference(source, "source")?.to_source()?;
            let out = Out::new(engine, "engine")?;
            let given = read_options(options)?;
            let (options, claims) = given.to_options()?;
            let progress_user = User::new(given.progress_user, None);
            let progress = |done: usize, all: usize| match given.progress {
                // The caller gave both for this.
                Some(progress) => progress(progress_user.data(), done as u64, all as u64) == 0,
                None => true,
            };
            let engine = Engine::open_with(source, options, &progress)?;
            let text = |name: &str| {
                let nul = |_| Failure::new(GW_ERR_INTERNAL, name, format!("{name:?}: expected no NUL"));
                CString::new(name).map_err(nul)
            };
            let (architecture, isa) = (text(engine.config().architecture)?, text(engine.isa())?);
            claims.into_iter().for_each(Claim::keep);
            let inner = Inner { engine, architecture, isa, poisoned: AtomicBool::new(false) };
            out.set(Box::into_raw(Box::new(gw_engine(Arc::new(inner)))));
            Ok(())
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_engine_close(engine: *mut *mut gw_engine) {
    // SAFETY: the caller's promises; engines are made by `Box::into_raw`.
    quietly(|| unsafe {
        free(engine, |engine| {
            let engine = Box::from_raw(engine);
            // For the case that this is a callback of it.
            engine.0.engine.close();
        });
    });
}

/// What a model is.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "see the header")]
pub struct gw_engine_info {
    pub struct_size: u32,
    pub threads: u32,
    pub vocab: u32,
    pub context: u32,
    pub layers: u32,
    pub hidden: u32,
    pub has_tokenizer: u8,
    pub has_chat: u8,
    pub reserved: [u8; 6],
    pub architecture: *const c_char,
    pub architecture_size: usize,
    pub isa: *const c_char,
    pub isa_size: usize,
}

// SAFETY: `repr(C)`, the size first, and every field may be zero.
unsafe impl SizedStruct for gw_engine_info {
    const NAME: &'static str = "info";
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_engine_describe(
    engine: *const gw_engine,
    info: *mut gw_engine_info,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        on_inner("gw_engine_describe", engine, error, |inner| {
            let out = OutStruct::new(info)?;
            let Inner { architecture, isa, .. } = inner;
            let engine = inner.usable()?;
            let config = engine.config();
            out.set(gw_engine_info {
                struct_size: size_of::<gw_engine_info>() as u32,
                threads: engine.options().threads as u32,
                vocab: config.vocab as u32,
                context: config.context as u32,
                layers: config.layers as u32,
                hidden: config.hidden as u32,
                has_tokenizer: engine.text().is_some().into(),
                has_chat: engine.text().is_some_and(|text| text.template().is_ok()).into(),
                reserved: [0; 6],
                architecture: architecture.as_ptr(),
                architecture_size: architecture.count_bytes(),
                isa: isa.as_ptr(),
                isa_size: isa.count_bytes(),
            });
            Ok(())
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_engine_memory(
    engine: *const gw_engine,
    memory: *mut gw_memory,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        // Also of an engine that is poisoned.
        on_inner("gw_engine_memory", engine, error, |inner| {
            OutStruct::new(memory)?.set(inner.engine.memory().into());
            Ok(())
        })
    }
}
