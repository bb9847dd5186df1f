//! The adapters that are loaded, by name.
//!
//! A loaded adapter is immutable and has a *generation*, a number that no other adapter of the process
//! ever has. A request holds the adapters that it started with; replacing or unloading one takes its name
//! away and nothing else, and its memory goes when the last request lets go of it.
//!
//! Where adapters have a limit, what one has in memory ([`Resident`]) may leave while nobody holds it, and comes back from the
//! adapter's source: the same generation, for it holds the same ([`Content`]).

mod residency;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError, Weak};

use graftwork_adapters::check::Vocabulary;
use graftwork_adapters::{Content, Kind, Site, Source};

use crate::Error;
use crate::budget::{Budget, Charge};
use crate::mail::lock;
use crate::stack::{Stack, Stacked};
use crate::text::Text;

pub use residency::{Bound, Reach, Resident};

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
    /// Bytes that it takes while it is in memory.
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

/// A loaded adapter.
pub struct Loaded {
    name: String,
    generation: Generation,
    known: Known,
    prepared: Prepared,
    /// What it has in memory; locked by whoever brings it there.
    resident: Mutex<Option<Arc<Resident>>>,
    /// When it was last asked for.
    used: AtomicU64,
    pinned: AtomicBool,
    loads: AtomicU64,
}

/// What an adapter's files are.
pub struct Known {
    /// The kind.
    pub kind: Kind,
    /// What they hold.
    pub content: Content,
    /// Where it comes back from; `None` where it never has to.
    pub source: Option<Source>,
}

/// What is to be known of an adapter once a model has prepared it, whether it is in memory or not.
pub struct Prepared {
    /// Sites that it changes.
    pub edits: usize,
    /// Bytes that it keeps in memory.
    pub bytes: usize,
    /// Values of scratch that each of its rows takes at most.
    pub scratch: usize,
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

    /// Which of all adapters that ever had the name.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// What its files are.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// What is known of it as prepared.
    pub fn prepared(&self) -> &Prepared {
        &self.prepared
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
pub struct Registry {
    names: Mutex<Names>,
    /// Bytes of all that are in memory, with a name or without.
    budget: Arc<Budget>,
    clock: AtomicU64,
}

#[derive(Default)]
struct Names {
    of: BTreeMap<String, Arc<Loaded>>,
    /// All that there are, with a name or without.
    all: Vec<Weak<Loaded>>,
}

impl Names {
    fn find(&self, name: &str) -> Result<&Arc<Loaded>, Error> {
        self.of.get(name).ok_or_else(|| Error::NoAdapter { name: name.to_owned() })
    }

    /// Refuses a name that is not in the state expected.
    fn check(&self, name: &str, expect: Expect) -> Result<(), Error> {
        match (expect, self.find(name)) {
            (Expect::Free, Err(_)) | (Expect::Any, Ok(_)) => Ok(()),
            (Expect::Free, Ok(_)) => Err(Error::NameTaken { name: name.to_owned() }),
            (Expect::Any | Expect::Exactly(_), Err(error)) => Err(error),
            (Expect::Exactly(expected), Ok(found)) if expected == found.generation => Ok(()),
            (Expect::Exactly(expected), Ok(found)) => {
                Err(Error::Changed { name: name.to_owned(), expected, found: found.generation })
            }
        }
    }
}

impl Registry {
    /// None yet; in memory at most `limit` bytes of them.
    pub fn new(limit: usize) -> Self {
        Self { names: Mutex::default(), budget: Arc::new(Budget::new(limit)), clock: AtomicU64::new(0) }
    }

    /// Whether adapters may have to leave memory.
    pub fn is_limited(&self) -> bool {
        self.budget.limit() != usize::MAX
    }

    /// Refuses a name that is not in the state expected. Asked before an adapter is prepared, to fail soon;
    /// [`Registry::put`] asks again.
    pub fn check(&self, name: &str, expect: Expect) -> Result<(), Error> {
        lock(&self.names).check(name, expect)
    }

    /// Gives `name` to a prepared adapter, which keeps what `charge` took. Requests that hold the one before keep it.
    pub fn put(
        &self,
        name: &str,
        expect: Expect,
        known: Known,
        (bound, prepared): (Bound, Prepared),
        charge: Charge,
    ) -> Result<Generation, Error> {
        let mut names = lock(&self.names);
        names.check(name, expect)?;
        let generation = Generation::next();
        let loaded = Arc::new(Loaded {
            name: name.to_owned(),
            generation,
            known,
            prepared,
            resident: Mutex::new(Some(Arc::new(Resident::new(bound, charge)))),
            used: AtomicU64::new(self.now()),
            pinned: AtomicBool::new(false),
            loads: AtomicU64::new(1),
        });
        names.all.retain(|loaded| loaded.strong_count() > 0);
        names.all.push(Arc::downgrade(&loaded));
        let before = names.of.insert(name.to_owned(), loaded);
        // Its memory may be large: freed without the lock.
        drop(names);
        before.inspect(|before| before.pinned.store(false, Ordering::Relaxed));
        Ok(generation)
    }

    /// Takes the name away; its adapter goes when the last request that holds it ends.
    pub fn remove(&self, name: &str) -> Result<Generation, Error> {
        let mut names = lock(&self.names);
        names.find(name)?;
        let removed = names.of.remove(name);
        drop(names);
        let removed = removed.ok_or_else(|| Error::NoAdapter { name: name.to_owned() })?;
        removed.pinned.store(false, Ordering::Relaxed);
        Ok(removed.generation)
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Bytes of all adapters that are in memory.
    pub fn held_bytes(&self) -> usize {
        self.budget.held()
    }

    /// What is loaded, by name.
    pub fn list(&self) -> Vec<AdapterInfo> {
        lock(&self.names).of.values().map(info).collect()
    }

    /// What is loaded under one name.
    pub fn find(&self, name: &str) -> Result<AdapterInfo, Error> {
        lock(&self.names).find(name).map(info)
    }

    /// An adapter with this content: that of this name, if it has it.
    pub fn of_content(&self, name: &str, content: &str) -> Option<Arc<Loaded>> {
        let names = lock(&self.names);
        let has = |adapter: &&Arc<Loaded>| adapter.known.content.to_string() == content;
        let own = names.of.get(name).filter(has);
        own.or_else(|| names.of.values().find(has)).cloned()
    }

    /// The stack of these adapters as they are now, and of those that a prompt places.
    pub fn stack<'a>(
        &self,
        adapters: &[(String, f32)],
        placed: impl Iterator<Item = &'a str>,
    ) -> Result<Stack, Error> {
        let names = lock(&self.names);
        let find = |name: &str| names.find(name).cloned();
        let weighted = |(name, weight): &(String, f32)| {
            finite(name, *weight)?;
            Ok((find(name)?, *weight))
        };
        let adapters = adapters.iter().map(weighted).collect::<Result<Vec<_>, Error>>()?;
        let placed = placed.map(find).collect::<Result<Vec<_>, _>>()?;
        drop(names);
        self.stack_of(adapters, placed)
    }

    /// The stack of these adapters, and of those that a prompt places. One with weight 0 changes nothing and is left out.
    pub fn stack_of(
        &self,
        adapters: Vec<(Arc<Loaded>, f32)>,
        placed: Vec<Arc<Loaded>>,
    ) -> Result<Stack, Error> {
        for adapter in adapters.iter().map(|(adapter, _)| adapter).chain(&placed) {
            adapter.used.store(self.now(), Ordering::Relaxed);
        }
        let mut stack: Vec<Stacked> = Vec::with_capacity(adapters.len());
        for (adapter, weight) in adapters {
            let name = || adapter.name.clone();
            finite(&adapter.name, weight)?;
            if let Some(site) = adapter.prepared.whole
                && ![0.0, 1.0].contains(&weight)
            {
                return Err(match site {
                    Site::Prompt | Site::Prefix => Error::PromptWeight { name: name(), found: weight },
                    _ => Error::WholeWeight { name: name(), site, found: weight },
                });
            }
            if weight != 0.0 {
                stack.push(Stacked::new(adapter, weight));
            }
        }
        for (i, own) in stack.iter().enumerate().filter(|(_, own)| own.adapter().prepared.has_tokens()) {
            let other = (stack.iter().enumerate())
                .find(|(j, other)| *j != i && other.adapter().prepared.changes_tokens);
            if let Some((_, other)) = other {
                let (own, other) = (own.adapter().name.clone(), other.adapter().name.clone());
                return Err(Error::Together { own, other });
            }
        }
        for adapter in placed {
            if !stack.iter().any(|other| Arc::ptr_eq(other.adapter(), &adapter)) {
                stack.push(Stacked::new(adapter, 0.0));
            }
        }
        Ok(Stack::new(stack))
    }
}

/// Refuses a weight that is no number.
fn finite(name: &str, weight: f32) -> Result<(), Error> {
    match weight.is_finite() {
        true => Ok(()),
        false => Err(Error::Weighting { name: name.to_owned(), found: weight }),
    }
}

fn info(adapter: &Arc<Loaded>) -> AdapterInfo {
    let resident = match adapter.resident.try_lock() {
        Ok(slot) => slot.is_some(),
        // On its way.
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Poisoned(slot)) => slot.into_inner().is_some(),
    };
    AdapterInfo {
        name: adapter.name.clone(),
        generation: adapter.generation,
        kind: adapter.known.kind,
        edits: adapter.prepared.edits,
        bytes: adapter.prepared.bytes,
        positions: adapter.prepared.virtual_tokens + adapter.prepared.given,
        requests: Arc::strong_count(adapter) - 1,
        resident,
        pinned: adapter.pinned.load(Ordering::Relaxed),
        loads: adapter.loads.load(Ordering::Relaxed),
    }
}
