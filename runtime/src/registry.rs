//! The adapters that are loaded, by name, and the stacks of them that requests use.
//!
//! A loaded adapter is immutable and has a *generation*, a number that no other adapter of the process
//! ever has. A request holds the adapters that it started with; replacing or unloading one takes its name
//! away and nothing else, and its memory goes when the last request lets go of it.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use graftwork_adapters::{Kind, Site};

use crate::Error;

/// Identifies one loaded adapter: unique in the process, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(u64);

impl Generation {
    /// A generation that nothing else has.
    fn next() -> Self {
        static COUNTER: AtomicU64 = AtomicU64::new(1);
        Self(COUNTER.fetch_add(1, Ordering::Relaxed))
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl From<u64> for Generation {
    /// The generation with this number, as [`Generation::get`] gave it.
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is known of a loaded adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterInfo {
    /// The name that requests use.
    pub name: String,
    /// Which of all adapters that ever had the name.
    pub generation: Generation,
    /// What kind the file held.
    pub kind: Kind,
    /// Sites of the model that it changes.
    pub edits: usize,
    /// Bytes that it keeps in memory.
    pub bytes: usize,
    /// Virtual tokens, or positions with keys and values, that it puts before the prompt.
    pub positions: usize,
    /// Requests that hold it now.
    pub requests: usize,
}

/// A loaded adapter, prepared for the model.
pub struct Loaded {
    name: String,
    generation: Generation,
    kind: Kind,
    prepared: Prepared,
    held: Arc<AtomicUsize>,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.held.fetch_sub(self.prepared.bytes, Ordering::Relaxed);
    }
}

/// An adapter as the backend wants it; only the model that made it knows the type behind.
pub struct Prepared {
    /// `model::graft::Bound` of the backend's device.
    pub bound: Box<dyn Any + Send + Sync>,
    /// Sites that it changes.
    pub edits: usize,
    /// Bytes that it keeps in memory.
    pub bytes: usize,
    /// A site that it replaces: then its weight is 0 or 1.
    pub whole: Option<Site>,
    /// Virtual tokens that it has.
    pub virtual_tokens: usize,
    /// Positions before all others whose keys and values it has.
    pub given: usize,
}

impl Loaded {
    /// The name that it was loaded under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is known of the prepared adapter.
    pub fn prepared(&self) -> &Prepared {
        &self.prepared
    }

    /// The prepared adapter.
    pub fn bound(&self) -> &dyn Any {
        &*self.prepared.bound
    }
}

/// The adapters of one request, in order, each with its weight; then those, with weight 0, whose virtual tokens its prompt places.
#[derive(Clone, Default)]
pub struct Stack(Vec<(Arc<Loaded>, f32)>);

impl Stack {
    /// No adapter: the base model alone.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The adapters and their weights.
    pub fn iter(&self) -> impl Iterator<Item = (&Loaded, f32)> {
        self.0.iter().map(|(adapter, weight)| (&**adapter, *weight))
    }

    /// What distinguishes this stack from others: rows, and cached keys and values, of equal stacks can
    /// stand in for each other. The base alone comes first.
    pub fn key(&self) -> impl Iterator<Item = (Generation, u32)> {
        self.0.iter().map(|(adapter, weight)| (adapter.generation, weight.to_bits()))
    }
}

impl PartialEq for Stack {
    fn eq(&self, other: &Self) -> bool {
        self.key().eq(other.key())
    }
}

impl Eq for Stack {}

impl PartialOrd for Stack {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Stack {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(other.key())
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entry =
            |(adapter, weight): (&Loaded, f32)| format!("{}#{}:{weight}", adapter.name, adapter.generation);
        f.debug_list().entries(self.iter().map(entry)).finish()
    }
}

/// When a name may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It must be free.
    Free,
    /// It must be in use, by any generation.
    Any,
    /// It must be in use by this generation.
    Exactly(Generation),
}

/// The adapters that are loaded, by name.
#[derive(Default)]
pub struct Registry {
    adapters: Mutex<BTreeMap<String, Arc<Loaded>>>,
    /// Bytes of all that are in memory, with a name or without.
    held: Arc<AtomicUsize>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Loaded>>> {
        self.adapters.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Refuses a name that is not in the state expected. Asked before an adapter is prepared, to fail soon;
    /// [`Registry::put`] asks again.
    pub fn check(&self, name: &str, expect: Expect) -> Result<(), Error> {
        check(&self.lock(), name, expect)
    }

    /// Gives `name` to a prepared adapter. Requests that hold the one before keep it.
    pub fn put(
        &self,
        name: &str,
        expect: Expect,
        kind: Kind,
        prepared: Prepared,
    ) -> Result<Generation, Error> {
        let mut adapters = self.lock();
        check(&adapters, name, expect)?;
        let generation = Generation::next();
        self.held.fetch_add(prepared.bytes, Ordering::Relaxed);
        let held = self.held.clone();
        let loaded = Arc::new(Loaded { name: name.to_owned(), generation, kind, prepared, held });
        let before = adapters.insert(name.to_owned(), loaded);
        // Its memory may be large: freed without the lock.
        drop(adapters);
        drop(before);
        Ok(generation)
    }

    /// Takes the name away; its adapter goes when the last request that holds it ends.
    pub fn remove(&self, name: &str) -> Result<Generation, Error> {
        let removed = self.lock().remove(name);
        removed.map(|adapter| adapter.generation).ok_or_else(|| no_adapter(name))
    }

    /// Bytes of all adapters that are in memory.
    pub fn held_bytes(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// What is loaded, by name.
    pub fn list(&self) -> Vec<AdapterInfo> {
        self.lock().values().map(info).collect()
    }

    /// What is loaded under one name.
    pub fn find(&self, name: &str) -> Result<AdapterInfo, Error> {
        self.lock().get(name).map(info).ok_or_else(|| no_adapter(name))
    }

    /// The stack of these adapters as they are now, and of those that a prompt places. One with weight 0 changes nothing and is
    /// left out.
    pub fn stack<'a>(
        &self,
        adapters: &[(String, f32)],
        placed: impl Iterator<Item = &'a str>,
    ) -> Result<Stack, Error> {
        let loaded = self.lock();
        let mut stack = Vec::with_capacity(adapters.len());
        for (name, weight) in adapters {
            if !weight.is_finite() {
                return Err(Error::Weighting { name: name.clone(), found: *weight });
            }
            let adapter = loaded.get(name).ok_or_else(|| no_adapter(name))?;
            if let Some(site) = adapter.prepared.whole
                && ![0.0, 1.0].contains(weight)
            {
                let (name, found) = (name.clone(), *weight);
                return Err(match site {
                    Site::Prompt | Site::Prefix => Error::PromptWeight { name, found },
                    _ => Error::WholeWeight { name, site, found },
                });
            }
            if *weight != 0.0 {
                stack.push((adapter.clone(), *weight));
            }
        }
        for name in placed {
            let adapter = loaded.get(name).ok_or_else(|| no_adapter(name))?;
            if !stack.iter().any(|(other, _)| Arc::ptr_eq(other, adapter)) {
                stack.push((adapter.clone(), 0.0));
            }
        }
        Ok(Stack(stack))
    }
}

fn info(adapter: &Arc<Loaded>) -> AdapterInfo {
    AdapterInfo {
        name: adapter.name.clone(),
        generation: adapter.generation,
        kind: adapter.kind,
        edits: adapter.prepared.edits,
        bytes: adapter.prepared.bytes,
        positions: adapter.prepared.virtual_tokens + adapter.prepared.given,
        requests: Arc::strong_count(adapter) - 1,
    }
}

fn no_adapter(name: &str) -> Error {
    Error::NoAdapter { name: name.to_owned() }
}

fn check(adapters: &BTreeMap<String, Arc<Loaded>>, name: &str, expect: Expect) -> Result<(), Error> {
    let name = || name.to_owned();
    match (expect, adapters.get(&name()).map(|adapter| adapter.generation)) {
        (Expect::Free, None) | (Expect::Any, Some(_)) => Ok(()),
        (Expect::Free, Some(_)) => Err(Error::NameTaken { name: name() }),
        (Expect::Any | Expect::Exactly(_), None) => Err(Error::NoAdapter { name: name() }),
        (Expect::Exactly(expected), Some(found)) if expected == found => Ok(()),
        (Expect::Exactly(expected), Some(found)) => Err(Error::Changed { name: name(), expected, found }),
    }
}
