//! Where the type of the backend ends: a model that runs batches, seen without it.

use std::borrow::Cow;
use std::sync::Arc;

use graftwork_adapters::Adapter;
use graftwork_kernels::Format;
use graftwork_kernels::backend::{Backend, CacheShape};
use graftwork_kernels::tensor;

use super::base::Base;
use super::config::Config;
use super::forward::{Scratch, forward};
use super::graft;
use super::weights::Model;
use crate::Error;
use crate::batch::{Batch, Outputs, Piece};
use crate::kv;
use crate::registry::{Prepared, Stack};
use crate::sequence::Entry;

/// Prepares adapters for a model, on any thread, also while steps run.
pub trait Prepare: Send + Sync {
    /// Checks that `adapter` fits and prepares it.
    fn prepare(&self, adapter: &Adapter) -> Result<Prepared, Error>;

    /// What the model is.
    fn config(&self) -> &Config;

    /// Bytes that its weights keep in memory, without the embedding.
    fn bytes(&self) -> usize;

    /// Bytes of the embedding in its file.
    fn embedding_bytes(&self) -> usize;
}

/// Runs batches through a model.
pub trait Run: Send {
    /// Gives the KV cache pages `0..pages`.
    fn grow(&mut self, pages: usize) -> Result<(), Error>;

    /// Bytes of a page of the KV cache.
    fn page_bytes(&self) -> usize;

    /// Bytes of the activations of a step, and of what kernels need beside them, as they have grown.
    fn scratch_bytes(&self) -> usize;

    /// Computes a batch; `false` if `go_on` ended it early, and then nothing counts as computed.
    fn run(&mut self, batch: &Batch<'_>, go_on: &dyn Fn() -> bool) -> Result<bool, Error>;

    /// The logits `[outputs, vocab]` of the last batch.
    fn logits(&mut self) -> Cow<'_, [f32]>;

    /// The logits `[tokens, vocab]` at the tokens of one sequence ([`Entry`]), at most `chunk` rows at a time, in a cache of its
    /// own whose values have the format `kv`.
    fn score(&mut self, sequence: &[u32], stack: &Stack, kv: Format, chunk: usize)
    -> Result<Vec<f32>, Error>;
}

struct Preparer<B: Backend> {
    model: Arc<Model<B::Device>>,
    base: Base,
    device: Arc<B::Device>,
}

struct Runner<B: Backend> {
    model: Arc<Model<B::Device>>,
    backend: B,
    cache: B::Cache,
    shape: CacheShape,
    scratch: Scratch<B>,
}

/// The KV cache of a model, with values in the format `kv`.
pub fn cache_shape(config: &Config, kv: Format) -> CacheShape {
    let &Config { layers, kv_heads, head_dim, .. } = config;
    CacheShape { layers, kv_heads, head_dim, format: kv }
}

/// Rows of a step of [`Run::score`]: all of them give logits.
const SCORED: usize = 64;

/// What [`Run::scratch_bytes`] comes to at most, without adapters, when steps take up to `chunk` rows of prompts and a row of each of
/// `batch` sequences.
pub fn most_scratch<B: Backend>(backend: &B, config: &Config, chunk: usize, batch: usize) -> usize {
    let rows = chunk.saturating_add(batch);
    Scratch::<B>::most_bytes(backend, config, rows, batch.max(SCORED.min(chunk)))
}

/// The two sides of `model`, loaded from `base`, on `backend`, with keys and values cached in the format `kv`.
pub fn erase<B: Backend>(
    mut backend: B,
    model: Model<B::Device>,
    base: Base,
    kv: Format,
) -> (Arc<dyn Prepare>, Box<dyn Run>) {
    let shape = cache_shape(&model.config, kv);
    let model = Arc::new(model);
    let preparer = Preparer::<B> { model: model.clone(), base, device: backend.device().clone() };
    let cache = backend.cache(shape);
    let scratch = Scratch::new(&mut backend, &model);
    (Arc::new(preparer), Box::new(Runner { model, backend, cache, shape, scratch }))
}

impl<B: Backend> Prepare for Preparer<B> {
    fn prepare(&self, adapter: &Adapter) -> Result<Prepared, Error> {
        graft::prepare(&self.model, &self.base, &*self.device, adapter)
    }

    fn config(&self) -> &Config {
        &self.model.config
    }

    fn bytes(&self) -> usize {
        self.model.bytes
    }

    fn embedding_bytes(&self) -> usize {
        self.model.embedding_bytes
    }
}

impl<B: Backend> Run for Runner<B> {
    fn grow(&mut self, pages: usize) -> Result<(), Error> {
        self.backend.grow(&mut self.cache, pages).map_err(Error::Memory)
    }

    fn page_bytes(&self) -> usize {
        self.shape.page_bytes()
    }

    fn scratch_bytes(&self) -> usize {
        self.scratch.bytes(&self.backend)
    }

    fn run(&mut self, batch: &Batch<'_>, go_on: &dyn Fn() -> bool) -> Result<bool, Error> {
        forward(&mut self.backend, &self.model, &mut self.cache, &mut self.scratch, batch, go_on)
            .map_err(Error::Memory)
    }

    fn logits(&mut self) -> Cow<'_, [f32]> {
        self.backend.read(&self.scratch.logits)
    }

    fn score(
        &mut self,
        sequence: &[u32],
        stack: &Stack,
        kv: Format,
        chunk: usize,
    ) -> Result<Vec<f32>, Error> {
        let mut cache = self.backend.cache(CacheShape { format: kv, ..self.shape });
        let pages: Vec<u32> = (0..kv::pages_for(sequence.len()) as u32).collect();
        self.backend.grow(&mut cache, pages.len()).map_err(Error::Memory)?;
        let tokens = sequence.iter().filter(|&&number| Entry::is_token(number)).count();
        let values = tokens.saturating_mul(self.model.config.vocab);
        let mut logits = tensor::reserved(values).map_err(Error::Memory)?;
        let mut position = 0;
        while position < sequence.len() {
            let pending = &sequence[position..];
            let given = Entry::given(pending);
            let rows = given + chunk.min(SCORED).min(pending.len() - given);
            let (tokens, outputs) = (&pending[..rows], Outputs::All);
            let piece = Piece { stack, tokens, position, pages: &pages, prompt: rows, outputs };
            let batch = Batch::new(&[piece]).map_err(Error::Memory)?;
            forward(&mut self.backend, &self.model, &mut cache, &mut self.scratch, &batch, &|| true)
                .map_err(Error::Memory)?;
            logits.extend_from_slice(&self.logits());
            position += rows;
        }
        Ok(logits)
    }
}
