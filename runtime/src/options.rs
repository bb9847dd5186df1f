//! How an engine runs, and what that takes.

use graftwork_kernels::Format;

use crate::{Error, Executor, Log};

/// More than any machine has cores; a number beyond it is a mistake that would end in thousands of threads.
const MOST_THREADS: usize = 1024;

/// How an engine runs. [`EngineOptions::default`] suits most.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Threads that compute, the caller's of [`Engine::step`](crate::Engine::step) among them; 0 for one per core.
    pub threads: usize,
    /// Lends all of those threads but the caller's; `None` for threads of the engine's own. Loading a model always takes
    /// threads of its own, which end with it.
    pub executor: Option<Executor>,
    /// The instruction set that kernels use, by name, such as `avx2`; `None` for the fastest that the CPU has. All give the same
    /// bits.
    pub isa: Option<String>,
    /// What keys and values are cached as: [`Format::F16`], [`Format::F32`] or [`Format::Q8_0`], 8-bit codes with a scale for each 32
    /// values of a head (begun blocks count as whole), which takes 0.53 of the memory of `F16` and is read faster. Then queries are
    /// rounded to 8 bits too, as the inputs of linear layers are.
    pub kv_format: Format,
    /// Most bytes of the KV cache. It grows to that as requests need it, never beyond.
    pub kv_bytes: usize,
    /// Most bytes of the model's weights and embedding ([`Memory::weights`], [`Memory::embedding`]): a model that would take more is
    /// not opened.
    pub weight_bytes: usize,
    /// Most bytes of adapters ([`Memory::adapters`]). When another adapter needs room, those that were used the longest ago go from
    /// memory, and come back from their sources when a request needs them: see [`Engine::load_adapter`](crate::Engine::load_adapter).
    pub adapter_bytes: usize,
    /// Most bytes of activations ([`Memory::scratch`]): engines whose largest step takes more are not opened, requests whose adapters
    /// would make one take more are refused.
    pub scratch_bytes: usize,
    /// Most requests that run at once; others wait.
    pub max_batch: usize,
    /// Most rows of prompts in a step: larger reads prompts faster, smaller makes steps shorter.
    pub prefill_chunk: usize,
    /// Keep the KV cache of requests that ended, as long as there is room, and start later requests that
    /// begin with the same tokens under the same adapters from there. Answers are equal to the bit.
    pub keep_prefixes: bool,
    /// Hears what the engine does; `None` for silence.
    pub log: Option<Log>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            threads: 0,
            executor: None,
            isa: None,
            kv_format: Format::F16,
            kv_bytes: 1 << 30,
            weight_bytes: usize::MAX,
            adapter_bytes: usize::MAX,
            scratch_bytes: usize::MAX,
            max_batch: 32,
            prefill_chunk: 512,
            keep_prefixes: true,
            log: None,
        }
    }
}

impl EngineOptions {
    /// Refuses values without a meaning.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let refused = |option, expected, found: &dyn ToString| {
            Err(Error::Option { option, expected, found: found.to_string() })
        };
        if !matches!(self.kv_format, Format::F16 | Format::F32 | Format::Q8_0) {
            return refused("kv_format", "F16, F32 or Q8_0", &self.kv_format);
        }
        if self.threads > MOST_THREADS {
            return refused("threads", "1024 at most", &self.threads);
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
    /// The model's matrices and norms as packed for the backend: what a decode step reads.
    pub weights: usize,
    /// The model's embedding as in its file, mapped or copied: of which a token reads one row.
    pub embedding: usize,
    /// Adapters that are in memory: loaded under a name, or still used by requests.
    pub adapters: usize,
    /// What [`EngineOptions::adapter_bytes`] allows them.
    pub adapters_limit: usize,
    /// Pages of the KV cache that there are.
    pub kv: usize,
    /// Those of them that requests hold now.
    pub kv_used: usize,
    /// Pages of the KV cache that there can be.
    pub kv_limit: usize,
    /// Activations of a step, and what kernels need beside them.
    pub scratch: usize,
}
