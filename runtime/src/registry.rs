//! The adapters that are loaded, by name, and the stacks of them that requests use.
//!
//! A loaded adapter is immutable and has a *generation*, a number that no other adapter of the process
//! ever has. A request holds the adapters that it started with; replacing or unloading one takes its name
//! away and nothing else, and its memory goes when the last request lets go of it.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use graftwork_adapters::check::Vocabulary;
use graftwork_adapters::{Content, Kind, Site};

use crate::Error;
use crate::text::Text;

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
    /// Requests that use it or wait for it now.
    pub requests: usize,
    /// Whether it is in memory now; if not, it comes back when a request needs it.
    pub resident: bool,
    /// Whether it stays in memory, see [`Engine::pin_adapter`](crate::Engine::pin_adapter).
    pub pinned: bool,
    /// How many times it came into memory.
    pub loads: u64,
}

/// A loaded adapter, prepared for the model.
pub struct Loaded {
    name: String,
    generation: Generation,
    kind: Kind,
    content: Content,
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
    /// `model::graft::BoundAdapter` of the backend's device.
    pub bound: Box<dyn Any + Send + Sync>,
    /// Sites that it changes.
    pub edits: usize,
    /// Bytes that it keeps in memory.
    pub bytes: usize,
    /// A site that it replaces: then its weight is 0 or 1.
    pub whole: Option<Site>,
    /// The tokens that it starts at, see [`graftwork_adapters::Adapter::invocation`].
    pub invocation: Vec<u32>,
    /// How many tokens embedding and head have, where it gives them more than the base has.
    pub vocabulary: Option<Vocabulary>,
    /// Whether it changes the embedding or the head.
    pub changes_tokens: bool,
    /// Its own tokenizer, where that has more tokens than the base's.
    pub text: Option<Text>,
    /// Virtual tokens that it has.
    pub virtual_tokens: usize,
    /// Positions before all others whose keys and values it has.
    pub given: usize,
}

impl Prepared {
    /// Whether there are tokens that the base does not have.
    fn has_tokens(&self) -> bool {
        self.vocabulary.is_some() || self.text.is_some()
    }
}

impl Loaded {
    /// The name that it was loaded under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its files hold.
    pub fn content(&self) -> Content {
        self.content
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

/// The adapters that act at a position of one request, in order, each with its weight; then those, with weight 0, whose virtual
/// tokens its prompt places.
#[derive(Clone, Default)]
pub struct Stack {
    /// Those of the whole request.
    adapters: Arc<[Stacked]>,
    position: usize,
}

/// One adapter of a request.
#[derive(Clone)]
struct Stacked {
    adapter: Arc<Loaded>,
    weight: f32,
    /// The first position that it acts on.
    from: usize,
}

impl Stack {
    /// No adapter: the base model alone.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// The adapters and their weights.
    pub fn iter(&self) -> impl Iterator<Item = (&Loaded, f32)> {
        self.active().map(|stacked| (&*stacked.adapter, stacked.weight))
    }

    /// What distinguishes this stack from others: rows, and cached keys and values, of equal stacks can
    /// stand in for each other. The base alone comes first.
    pub fn key(&self) -> impl Iterator<Item = (Generation, u32)> {
        self.active().map(|stacked| (stacked.adapter.generation, stacked.weight.to_bits()))
    }

    /// The adapters of the whole request, whatever position they act from, and their weights.
    pub fn all(&self) -> impl Iterator<Item = (&Loaded, f32)> {
        self.adapters.iter().map(|stacked| (&*stacked.adapter, stacked.weight))
    }

    /// The tokens that a request with these adapters has, on a base of `base` tokens.
    pub fn vocabulary(&self, base: usize) -> Vocabulary {
        let own = self.active().find_map(|stacked| stacked.adapter.prepared.vocabulary);
        own.unwrap_or(Vocabulary { embedding: base, head: base })
    }

    /// The tokenizer that one of the adapters brings.
    pub fn text(&self) -> Option<&Text> {
        self.active().find_map(|stacked| stacked.adapter.prepared.text.as_ref())
    }

    fn active(&self) -> impl Iterator<Item = &Stacked> {
        self.adapters.iter().filter(|stacked| stacked.from <= self.position)
    }

    /// The stacks of a sequence that starts with `prompt`: adapters with an invocation sequence act from the last one on, or
    /// not at all. Gives the names of the latter, too.
    pub fn over(&self, prompt: &[u32]) -> (Stacks, Vec<&str>) {
        let (mut adapters, mut absent) = (Vec::with_capacity(self.adapters.len()), Vec::new());
        for stacked in &*self.adapters {
            let Loaded { name, prepared, .. } = &*stacked.adapter;
            match last(&prepared.invocation, prompt) {
                Some(from) => adapters.push(Stacked { from, ..stacked.clone() }),
                None => absent.push(name.as_str()),
            }
        }
        let mut starts: Vec<usize> = adapters.iter().map(|stacked| stacked.from).chain([0]).collect();
        starts.sort_unstable();
        starts.dedup();
        let adapters: Arc<[Stacked]> = adapters.into();
        let stack = |position| Stack { adapters: adapters.clone(), position };
        (Stacks(starts.into_iter().map(stack).collect()), absent)
    }
}

/// Where the last `sequence` in `tokens` starts; 0 for an empty one.
fn last(sequence: &[u32], tokens: &[u32]) -> Option<usize> {
    match sequence.len() {
        0 => Some(0),
        len => tokens.windows(len).rposition(|window| window == sequence),
    }
}

/// What a stack is to the cache of keys and values.
pub type StackKey = Vec<(Generation, u32)>;

/// The adapters of one sequence, position by position: one stack for each run of positions, each from its own on.
#[derive(Clone)]
pub struct Stacks(Vec<Stack>);

impl Stacks {
    /// The adapters of the whole sequence.
    pub fn all(&self) -> impl Iterator<Item = (&Loaded, f32)> {
        self.0[0].all()
    }

    /// The stack at a position.
    pub fn at(&self, position: usize) -> &Stack {
        // The first starts at 0.
        &self.0[self.0.partition_point(|stack| stack.position <= position) - 1]
    }

    /// Of `rows` rows from `position` on, how many have the stack of the first.
    pub fn alike(&self, position: usize, rows: usize) -> usize {
        let next = self.0.iter().find(|stack| stack.position > position);
        next.map_or(rows, |next| rows.min(next.position - position))
    }

    /// Where in `positions` another stack takes over, counted from their start, and its key, without those adapters that change
    /// nothing but where their virtual tokens stand. Before the first position there is the base alone.
    pub fn changes(&self, positions: Range<usize>) -> Vec<(usize, StackKey)> {
        let starts = self.0.iter().filter(|stack| positions.contains(&stack.position));
        let acting =
            |stack: &Stack| stack.key().filter(|&(_, weight)| f32::from_bits(weight) != 0.0).collect();
        let changes = starts.map(|stack| (stack.position - positions.start, acting(stack)));
        changes.filter(|(_, key): &(usize, StackKey)| !key.is_empty()).collect()
    }
}

impl fmt::Debug for Stacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.last().fmt(f)
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
        (kind, content): (Kind, Content),
        prepared: Prepared,
    ) -> Result<Generation, Error> {
        let mut adapters = self.lock();
        check(&adapters, name, expect)?;
        let generation = Generation::next();
        self.held.fetch_add(prepared.bytes, Ordering::Relaxed);
        let held = self.held.clone();
        let loaded = Arc::new(Loaded { name: name.to_owned(), generation, kind, content, prepared, held });
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

    /// The name of a loaded adapter with this content: `name`, if it is one.
    pub fn of_content(&self, name: &str, content: &str) -> Option<String> {
        let adapters = self.lock();
        let has = |adapter: &Loaded| adapter.content.to_string() == content;
        let own = adapters.get(name).filter(|adapter| has(adapter));
        own.or_else(|| adapters.values().find(|adapter| has(adapter))).map(|adapter| adapter.name.clone())
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
                stack.push(Stacked { adapter: adapter.clone(), weight: *weight, from: 0 });
            }
        }
        for (i, own) in stack.iter().enumerate().filter(|(_, stacked)| stacked.adapter.prepared.has_tokens())
        {
            let other = (stack.iter().enumerate())
                .find(|(j, other)| *j != i && other.adapter.prepared.changes_tokens);
            if let Some((_, other)) = other {
                let (own, other) = (own.adapter.name.clone(), other.adapter.name.clone());
                return Err(Error::Together { own, other });
            }
        }
        for name in placed {
            let adapter = loaded.get(name).ok_or_else(|| no_adapter(name))?;
            if !stack.iter().any(|other: &Stacked| Arc::ptr_eq(&other.adapter, adapter)) {
                stack.push(Stacked { adapter: adapter.clone(), weight: 0.0, from: 0 });
            }
        }
        Ok(Stack { adapters: stack.into(), position: 0 })
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
        resident: true,
        pinned: false,
        loads: 1,
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
