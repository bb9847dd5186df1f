//! Adapters: loaded, replaced, in memory or not.

use graftwork_adapters::{Adapter, Content, Source};

use super::Engine;
use crate::Error;
use crate::log::Level;
use crate::mail::Wake;
use crate::parallel::Progress;
use crate::registry::{AdapterInfo, Bound, Expect, Generation, Known, Loaded, Reach};
use crate::session::Session;
use crate::stack::{Stack, Stacks};
use crate::text::Text;

impl Engine {
    /// Loads an adapter under a name that is free. Runs on the caller's thread, beside any step.
    ///
    /// Adapters take no more memory than [`EngineOptions::adapter_bytes`](crate::EngineOptions::adapter_bytes), however many are loaded.
    /// When one needs room, those whose last use is the longest ago leave memory, but for those that are pinned or that running requests
    /// use. They keep name and generation, and come back from their source when a request needs them: in [`Engine::submit`] while there is
    /// room beside adapters that other requests wait for, else in the step that starts the request, which waits until there is. So their
    /// sources must hold what they held: a new version gets a new path. If one does not, the request fails with
    /// [`Error::SourceChanged`]. Sources in memory take their bytes beside the limit.
    ///
    /// # Errors
    /// What is malformed, not understood or does not fit the model; or the name is taken.
    pub fn load_adapter(&self, name: &str, source: impl Into<Source>) -> Result<Generation, Error> {
        self.load_adapter_with(name, source, &|_, _| true)
    }

    /// [`Engine::load_adapter`], reporting its progress as `(parts done, parts in all)`; `false` ends it, and nothing is left of it.
    /// Parts are sites that are prepared, or, of a seed patch, elements of its updates that are computed, on
    /// [`EngineOptions::threads`](crate::EngineOptions::threads) threads beside those of any step.
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
        let kept = self.registry.is_limited().then(|| source.clone().into_absolute());
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
    fn reload(&self, loaded: &Loaded, go_on: &(dyn Fn() -> bool + Sync)) -> Result<Bound, Error> {
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
        let progress = |_, _| go_on() && self.mail.check_open().is_ok();
        // Says nothing: locks are held.
        Ok(self.model.prepare(&adapter, &progress, &mut room)?.0)
    }

    /// [`Engine::hold`], as [`Hold`](crate::schedule::Hold) asks.
    pub(super) fn hold_for(&self, session: &Session, reach: Reach) -> Result<bool, Error> {
        self.hold(&session.stacks, reach, &|| !session.is_cancelled())
    }

    /// Holds the adapters of a request in memory, unless `go_on` ends that; `false` if there is no room.
    fn hold(&self, stacks: &Stacks, reach: Reach, go_on: &(dyn Fn() -> bool + Sync)) -> Result<bool, Error> {
        let held = self.registry.hold(stacks, reach, &|loaded| self.reload(loaded, go_on))?;
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

    /// Refuses adapters that could never be in memory together, or whose rows take too much scratch.
    fn check(&self, stacks: &Stacks) -> Result<(), Error> {
        self.must_fit(stacks)?;
        let low = stacks.all().iter().map(|stacked| stacked.adapter().prepared().scratch);
        let needed = low.fold(0, usize::saturating_add);
        if needed > self.most_low {
            let rows = self.options.prefill_chunk.saturating_add(self.options.max_batch);
            let more = (needed - self.most_low).saturating_mul(size_of::<f32>()).saturating_mul(rows);
            let limit = self.options.scratch_bytes;
            return Err(Error::Limit { option: "scratch_bytes", needed: limit.saturating_add(more), limit });
        }
        Ok(())
    }

    /// [`Engine::check`]; then brings back what is not in memory, if there is room.
    pub(super) fn admit(&self, stacks: &Stacks) -> Result<(), Error> {
        self.check(stacks)?;
        if !self.registry.is_limited() {
            // Nothing ever left.
            return Ok(());
        }
        let _wake = Wake(&self.mail);
        self.registry.prefetch(stacks, &|loaded| self.reload(loaded, &|| true))
    }

    /// The adapters of a sequence that is computed now, held in memory.
    pub(super) fn held(&self, stack: &Stack, sequence: &[u32]) -> Result<Stacks, Error> {
        let stacks = stack.over(sequence).0;
        self.check(&stacks)?;
        match self.hold(&stacks, Reach::Awaited, &|| true)? {
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

    /// Keeps an adapter in memory, whatever [`EngineOptions::adapter_bytes`](crate::EngineOptions::adapter_bytes) asks for, until its name is
    /// freed, given to another adapter or unpinned; brings it there if it is not.
    ///
    /// # Errors
    /// The name is not in use; or the adapter cannot come back, or finds no room.
    pub fn pin_adapter(&self, name: &str, pinned: bool) -> Result<(), Error> {
        let _wake = Wake(&self.mail);
        self.registry.pin(name, pinned, &|loaded| self.reload(loaded, &|| true))
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
}
