//! Where the type of the backend ends: a model that runs batches, seen without it.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;

use graftwork_adapters::delta::Fingerprint;
use graftwork_adapters::{Adapter, Module};
use graftwork_kernels::Format;
use graftwork_kernels::backend::{Backend, CacheShape};
use graftwork_kernels::tensor;

use super::base::Base;
use super::bind::{self, Room};
use super::config::Config;
use super::forward::{Scratch, Watch, forward};
use super::weights::Model;
use crate::Error;
use crate::batch::{Batch, Outputs, Piece};
use crate::kv;
use crate::parallel::Progress;
use crate::registry::{Bound, Prepared};
use crate::sequence::Entry;
use crate::stack::Stacks;

/// Prepares adapters for a model, on any thread, also while steps run.
pub trait Prepare: Send + Sync {
    /// Checks that `adapter` fits and prepares it; `room` hears how many bytes are kept so far.
    fn prepare(
        &self,
        adapter: &Adapter,
        progress: &Progress<'_>,
        room: &mut Room<'_>,
    ) -> Result<(Bound, Prepared), Error>;

    /// What the model is.
    fn config(&self) -> &Config;

    /// Whether weights of linear layers are in blocks.
    fn is_quantized(&self) -> bool;

    /// Bytes that its weights keep in memory, without the embedding.
    fn bytes(&self) -> usize;

    /// Bytes of the embedding in its file.
    fn embedding_bytes(&self) -> usize;

    /// That of its files.
    fn fingerprint(&self) -> Fingerprint;
}

/// Takes the residual stream `[rows, hidden]` after so many blocks.
pub type Seen<'a> = dyn FnMut(usize, &[f32]) + 'a;

/// Runs batches through a model.
pub trait Run: Send {
    /// Gives the KV cache pages `0..pages`.
    fn grow(&mut self, pages: usize) -> Result<(), Error>;

    /// Bytes of a page of the KV cache.
    fn page_bytes(&self) -> usize;

    /// What a page of the KV cache holds; none where the backend cannot say.
    fn page(&self, page: u32) -> Option<&[u8]>;

    /// Fills a page of the KV cache.
    fn set_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), Error>;

    /// Bytes of the activations of a step, and of what kernels need beside them, as they have grown.
    fn scratch_bytes(&self) -> usize;

    /// Computes a batch; `false` if `go_on` ended it early, and then nothing counts as computed.
    fn run(&mut self, batch: &Batch<'_>, go_on: &dyn Fn() -> bool) -> Result<bool, Error>;

    /// The logits `[outputs, vocab]` of the last batch.
    fn logits(&mut self) -> Cow<'_, [f32]>;

    /// The logits of those outputs of the last batch that have more than the base's vocabulary, each with its place.
    fn wide_logits(&mut self) -> Result<Vec<(usize, Vec<f32>)>, Error>;

    /// The logits `[tokens, vocab]` at the tokens of one sequence ([`Entry`]), at most `chunk` rows at a time, in a cache of its
    /// own whose values have the format `kv`. Shows `seen` the residual stream ([`Watch::state`]) at these tokens.
    fn score(
        &mut self,
        sequence: &[u32],
        stacks: &Stacks,
        kv: Format,
        chunk: usize,
        seen: Option<&mut Seen<'_>>,
    ) -> Result<Vec<f32>, Error>;

    /// Shows `seen` the inputs of linear layers ([`Watch::input`]) in the blocks up to `last`, over the tokens of one sequence, some rows
    /// at a time, with keys and values in F32.
    fn inputs(
        &mut self,
        sequence: &[u32],
        stacks: &Stacks,
        last: usize,
        chunk: usize,
        seen: &mut dyn FnMut(usize, Module, &[f32]),
    ) -> Result<(), Error>;
}

struct Preparer<B: Backend> {
    model: Arc<Model<B::Device>>,
    base: Base,
    device: Arc<B::Device>,
    threads: usize,
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

/// What [`Run::scratch_bytes`] comes to at most when steps take up to `chunk` rows of prompts and a row of each of `batch` sequences,
/// and adapters `low` values of a row.
pub fn most_scratch<B: Backend>(
    backend: &B,
    config: &Config,
    chunk: usize,
    batch: usize,
    low: usize,
) -> usize {
    let rows = chunk.saturating_add(batch);
    Scratch::<B>::most_bytes(backend, config, (rows, batch.max(SCORED.min(chunk))), low)
}

/// The two sides of `model`, loaded from `base`, on `backend` and `threads` threads, with keys and values cached in the format `kv`.
pub fn erase<B: Backend>(
    (mut backend, threads): (B, usize),
    model: Model<B::Device>,
    base: Base,
    kv: Format,
) -> (Arc<dyn Prepare>, Box<dyn Run>) {
    let shape = cache_shape(&model.config, kv);
    let model = Arc::new(model);
    let preparer = Preparer::<B> { model: model.clone(), base, device: backend.device().clone(), threads };
    let cache = backend.cache(shape);
    let scratch = Scratch::new(&mut backend, &model);
    (Arc::new(preparer), Box::new(Runner { model, backend, cache, shape, scratch }))
}

impl<B: Backend> Prepare for Preparer<B> {
    fn prepare(
        &self,
        adapter: &Adapter,
        progress: &Progress<'_>,
        room: &mut Room<'_>,
    ) -> Result<(Bound, Prepared), Error> {
        bind::prepare(&self.model, &self.base, (&*self.device, self.threads), adapter, progress, room)
    }

    fn config(&self) -> &Config {
        &self.model.config
    }

    fn is_quantized(&self) -> bool {
        self.model.is_quantized()
    }

    fn bytes(&self) -> usize {
        self.model.bytes
    }

    fn embedding_bytes(&self) -> usize {
        self.model.embedding_bytes
    }

    fn fingerprint(&self) -> Fingerprint {
        self.base.fingerprint(self.model.config.architecture)
    }
}

impl<B: Backend> Runner<B> {
    /// Runs one sequence in a cache of its own, whose values have the format `kv`, at most `chunk` rows at a time; all of them are
    /// outputs. `step` computes a batch.
    fn alone(
        &mut self,
        sequence: &[u32],
        stacks: &Stacks,
        (kv, chunk): (Format, usize),
        mut step: impl FnMut(&mut Self, &mut B::Cache, &Batch<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut cache = self.backend.cache(CacheShape { format: kv, ..self.shape });
        let pages: Vec<u32> = (0..kv::pages_for(sequence.len()) as u32).collect();
        self.backend.grow(&mut cache, pages.len()).map_err(Error::Memory)?;
        let chunk = chunk.min(SCORED);
        let mut position = 0;
        while position < sequence.len() {
            let pending = &sequence[position..];
            let given = Entry::given(pending);
            let first = position + given;
            let stack = stacks.at(first);
            let rows = given + stacks.alike(first, chunk.min(pending.len() - given));
            let (tokens, outputs) = (&pending[..rows], Outputs::All);
            let piece = Piece { stack, tokens, position, pages: &pages, prompt: rows, outputs };
            position += rows;
            step(self, &mut cache, &Batch::new(&[piece]).map_err(Error::Memory)?)?;
        }
        Ok(())
    }
}

impl<B: Backend> Run for Runner<B> {
    fn grow(&mut self, pages: usize) -> Result<(), Error> {
        self.backend.grow(&mut self.cache, pages).map_err(Error::Memory)
    }

    fn page_bytes(&self) -> usize {
        self.shape.page_bytes()
    }

    fn page(&self, page: u32) -> Option<&[u8]> {
        self.backend.page(&self.cache, page).ok()
    }

    fn set_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), Error> {
        self.backend.set_page(&mut self.cache, page, bytes).map_err(Error::Memory)
    }

    fn scratch_bytes(&self) -> usize {
        self.scratch.bytes(&self.backend)
    }

    fn run(&mut self, batch: &Batch<'_>, go_on: &dyn Fn() -> bool) -> Result<bool, Error> {
        let Self { backend, model, cache, scratch, .. } = self;
        let watch = Watch { go_on, input: &mut |_, _, _, _| {}, state: &mut |_, _, _| {} };
        forward(backend, model, cache, scratch, batch, watch).map_err(Error::Memory)
    }

    fn logits(&mut self) -> Cow<'_, [f32]> {
        self.backend.read(&self.scratch.logits)
    }

    fn wide_logits(&mut self) -> Result<Vec<(usize, Vec<f32>)>, Error> {
        let mut wide = Vec::new();
        for more in &self.scratch.more {
            let added = self.backend.read(&more.logits).into_owned();
            let all = self.backend.read(&self.scratch.logits);
            let vocab = self.model.config.vocab;
            let added = added.chunks_exact(added.len() / more.outputs.len());
            for (output, added) in more.outputs.clone().zip(added) {
                let mut row = tensor::reserved(vocab + added.len()).map_err(Error::Memory)?;
                row.extend_from_slice(&all[output * vocab..][..vocab]);
                row.extend_from_slice(added);
                wide.push((output, row));
            }
        }
        Ok(wide)
    }

    fn score(
        &mut self,
        sequence: &[u32],
        stacks: &Stacks,
        kv: Format,
        chunk: usize,
        mut seen: Option<&mut Seen<'_>>,
    ) -> Result<Vec<f32>, Error> {
        let (hidden, layers) = (self.model.config.hidden, self.model.config.layers);
        let vocab = stacks.at(sequence.len()).vocabulary(self.model.config.vocab).head;
        let tokens = sequence.iter().filter(|&&number| Entry::is_token(number)).count();
        let mut logits = tensor::reserved(tokens.saturating_mul(vocab)).map_err(Error::Memory)?;
        self.alone(sequence, stacks, (kv, chunk), |this, cache, batch| {
            let state = &mut |backend: &mut B, blocks, x: &B::Rows| {
                let Some(seen) = &mut seen else { return };
                let x = backend.read(x);
                match blocks == layers || batch.outputs.len() == batch.tokens.len() {
                    true => seen(blocks, &x),
                    false => batch.outputs.iter().for_each(|row| seen(blocks, &x[row * hidden..][..hidden])),
                }
            };
            let watch = Watch { go_on: &|| true, input: &mut |_, _, _, _| {}, state };
            forward(&mut this.backend, &this.model, cache, &mut this.scratch, batch, watch)
                .map_err(Error::Memory)?;
            let wide = this.wide_logits()?;
            match wide.is_empty() {
                true => logits.extend_from_slice(&this.logits()),
                // What extends the vocabulary acts on all rows.
                false => wide.iter().for_each(|(_, row)| logits.extend_from_slice(row)),
            }
            Ok(())
        })?;
        Ok(logits)
    }

    fn inputs(
        &mut self,
        sequence: &[u32],
        stacks: &Stacks,
        last: usize,
        chunk: usize,
        seen: &mut dyn FnMut(usize, Module, &[f32]),
    ) -> Result<(), Error> {
        self.alone(sequence, stacks, (Format::F32, chunk), |this, cache, batch| {
            // Nothing after the last input is needed.
            let is_over = Cell::new(false);
            let watch = Watch {
                go_on: &|| !is_over.get(),
                input: &mut |backend: &mut B, layer, module, x| {
                    seen(layer, module, &backend.read(x));
                    is_over.set((layer, module) == (last, Module::Down));
                },
                state: &mut |_, _, _| {},
            };
            forward(&mut this.backend, &this.model, cache, &mut this.scratch, batch, watch)
                .map_err(Error::Memory)
                .map(drop)
        })
    }
}
