//! The adapters that are loaded, by name.
//!
//! A loaded adapter is immutable and has a *generation*, a number that no other adapter of the process
//! ever has. A request holds the adapters that it started with; replacing or unloading one takes its name
//! away and nothing else, and its memory goes when the last request lets go of it.
//!
//! Where adapters have a limit, what one has in memory ([`Resident`]) may leave while nobody holds it, and comes back from the
//! adapter's source: the same generation, for it holds the same ([`Content`]).

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError, Weak};

use graftwork_adapters::check::Vocabulary;
use graftwork_adapters::{Content, Kind, Site, Source};

use crate::Error;
use crate::budget::{Budget, Charge};
use crate::mail::lock;
use crate::stack::{Stack, Stacked, Stacks};
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

/// An adapter as a model applies it: `model::graft::BoundAdapter` of the backend's device, which only the model that made it knows.
pub type Bound = Box<dyn Any + Send + Sync>;

/// What an adapter has in memory.
pub struct Resident {
    bound: Bound,
    _charge: Charge,
}

impl Resident {
    /// The adapter as the model applies it.
    pub fn bound(&self) -> &(dyn Any + Send + Sync) {
        &*self.bound
    }
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

    /// Whether it may leave memory now.
    fn may_leave(&self) -> bool {
        // One that another thread locks is on its way in or out.
        let leaves = |slot: &Option<Arc<Resident>>| slot.as_ref().is_some_and(|r| Arc::strong_count(r) == 1);
        self.known.source.is_some()
            && !self.pinned.load(Ordering::Relaxed)
            && self.resident.try_lock().is_ok_and(|slot| leaves(&slot))
    }

    /// Lets it leave memory, unless somebody holds it.
    fn leave(&self) {
        let gone = match self.resident.try_lock() {
            Ok(mut slot) => slot.take_if(|resident| Arc::strong_count(resident) == 1),
            Err(_) => None,
        };
        // Freed without the lock.
        drop(gone);
    }
}

/// Brings what an adapter has in memory back from its source.
pub type Load<'a> = dyn Fn(&Loaded) -> Result<Bound, Error> + 'a;

/// Which adapters make room for another: of those that nobody holds and that are not pinned,
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// those that no request waits for, the longest unused first;
    Unused,
    /// then those that requests wait for, the last to be asked for first;
    Awaited,
    /// then, of these, those that lost their name, whose sources may hold others by now.
    Nameless,
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

    /// Makes room for an adapter that is being prepared: takes as many bytes as make it `bytes`.
    ///
    /// # Errors
    /// There is not so much, or not now.
    pub fn take(&self, name: &str, charge: &mut Charge, bytes: usize) -> Result<(), Error> {
        if self.make_room(charge, bytes, Reach::Awaited) {
            return Ok(());
        }
        self.must_fit(bytes, &[])?;
        Err(self.busy(name))
    }

    /// No bytes yet, for [`Registry::take`].
    pub fn charge(&self) -> Charge {
        Charge::new(&self.budget)
    }

    fn busy(&self, name: &str) -> Error {
        Error::Busy { name: name.to_owned(), limit: self.budget.limit() }
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
            resident: Mutex::new(Some(Arc::new(Resident { bound, _charge: charge }))),
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

    /// The name of a loaded adapter with this content: `name`, if it is one.
    pub fn of_content(&self, name: &str, content: &str) -> Option<String> {
        let names = lock(&self.names);
        let has = |adapter: &Loaded| adapter.known.content.to_string() == content;
        let own = names.of.get(name).filter(|adapter| has(adapter));
        own.or_else(|| names.of.values().find(|adapter| has(adapter))).map(|adapter| adapter.name.clone())
    }

    /// Keeps an adapter in memory, bringing it there with `load`; or does not any more.
    pub fn pin(&self, name: &str, pinned: bool, load: &Load<'_>) -> Result<(), Error> {
        let loaded = lock(&self.names).find(name)?.clone();
        if !pinned {
            loaded.pinned.store(false, Ordering::Relaxed);
            return Ok(());
        }
        let resident = self.resident(&loaded, Reach::Awaited, load)?;
        if resident.is_none() {
            self.must_fit(0, &[&loaded])?;
            return Err(self.busy(name));
        }
        let names = lock(&self.names);
        match names.find(name)? {
            own if Arc::ptr_eq(own, &loaded) => loaded.pinned.store(true, Ordering::Relaxed),
            own => {
                let (expected, found) = (loaded.generation, own.generation);
                return Err(Error::Changed { name: name.to_owned(), expected, found });
            }
        }
        Ok(())
    }

    /// Refuses what would not fit the limit if all but pinned adapters were gone: so many `bytes`, or the adapters of a request.
    ///
    /// # Errors
    /// [`Error::Limit`].
    pub fn must_fit(&self, bytes: usize, adapters: &[&Arc<Loaded>]) -> Result<(), Error> {
        let is_pinned = |loaded: &Arc<Loaded>| loaded.pinned.load(Ordering::Relaxed);
        let mut all: Vec<Arc<Loaded>> =
            lock(&self.names).of.values().filter(|&l| is_pinned(l)).cloned().collect();
        all.extend(adapters.iter().map(|&loaded| loaded.clone()));
        all.sort_unstable_by_key(|loaded| loaded.generation);
        all.dedup_by_key(|loaded| loaded.generation);
        let others = all.iter().map(|loaded| loaded.prepared.bytes);
        let needed = others.fold(bytes, usize::saturating_add);
        let limit = self.budget.limit();
        match needed <= limit {
            true => Ok(()),
            false => Err(Error::Limit { option: "adapter_bytes", needed, limit }),
        }
    }

    /// Holds the adapters of a request in memory, bringing back with `load` those that left it; `false` if there is no room
    /// within `reach`.
    ///
    /// # Errors
    /// What `load` says.
    pub fn hold(&self, stacks: &Stacks, reach: Reach, load: &Load<'_>) -> Result<bool, Error> {
        let mut held = Vec::with_capacity(stacks.all().len());
        for stacked in stacks.all() {
            match self.resident(stacked.adapter(), reach, load)? {
                Some(resident) => held.push(resident),
                None => return Ok(false),
            }
        }
        stacks.all().iter().zip(held).for_each(|(stacked, resident)| stacked.hold(resident));
        Ok(true)
    }

    /// Brings the adapters of a request back that no other has to leave for that requests wait for.
    ///
    /// # Errors
    /// What `load` says.
    pub fn prefetch(&self, stack: &Stacks, load: &Load<'_>) -> Result<(), Error> {
        stack.all().iter().try_for_each(|s| self.resident(s.adapter(), Reach::Unused, load).map(drop))
    }

    /// What an adapter has in memory, if need be brought back; `None` if there is no room within `reach`.
    fn resident(
        &self,
        loaded: &Loaded,
        reach: Reach,
        load: &Load<'_>,
    ) -> Result<Option<Arc<Resident>>, Error> {
        // Another thread may be bringing it.
        let mut slot = lock(&loaded.resident);
        if slot.is_none() {
            let mut charge = self.charge();
            if !self.make_room(&mut charge, loaded.prepared.bytes, reach) {
                return Ok(None);
            }
            let bound = load(loaded)?;
            loaded.loads.fetch_add(1, Ordering::Relaxed);
            *slot = Some(Arc::new(Resident { bound, _charge: charge }));
        }
        Ok(slot.clone())
    }

    /// Takes as many bytes as make it `bytes`, if need be from other adapters within `reach`; `false` if that is not possible.
    fn make_room(&self, charge: &mut Charge, bytes: usize, reach: Reach) -> bool {
        while !charge.grow(bytes) {
            if bytes > self.budget.limit() || !self.free_one(reach) {
                return false;
            }
        }
        true
    }

    /// Lets an adapter within `reach` leave memory; `false` if there is none.
    fn free_one(&self, reach: Reach) -> bool {
        let names = lock(&self.names);
        let all: Vec<Arc<Loaded>> = names.all.iter().filter_map(Weak::upgrade).collect();
        let ranked = all.iter().filter(|loaded| loaded.may_leave()).map(|loaded| {
            let named = names.of.get(&loaded.name).is_some_and(|own| Arc::ptr_eq(own, loaded));
            // Beside the name and this list.
            let requests = Arc::strong_count(loaded) - 1 - usize::from(named);
            let used = loaded.used.load(Ordering::Relaxed);
            let rank = match (requests, named) {
                (0, _) => (Reach::Unused, used),
                (_, true) => (Reach::Awaited, u64::MAX - used),
                (_, false) => (Reach::Nameless, u64::MAX - used),
            };
            (rank, loaded)
        });
        let first = ranked.min_by_key(|(rank, _)| *rank).filter(|((of, _), _)| *of <= reach);
        drop(names);
        first.inspect(|(_, loaded)| loaded.leave()).is_some()
    }

    /// The stack of these adapters as they are now, and of those that a prompt places. One with weight 0 changes nothing and is
    /// left out.
    pub fn stack<'a>(
        &self,
        adapters: &[(String, f32)],
        placed: impl Iterator<Item = &'a str>,
    ) -> Result<Stack, Error> {
        let names = lock(&self.names);
        let find = |name: &str| {
            let loaded = names.find(name)?;
            loaded.used.store(self.now(), Ordering::Relaxed);
            Ok::<_, Error>(loaded)
        };
        let mut stack: Vec<Stacked> = Vec::with_capacity(adapters.len());
        for (name, weight) in adapters {
            if !weight.is_finite() {
                return Err(Error::Weighting { name: name.clone(), found: *weight });
            }
            let adapter = find(name)?;
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
                stack.push(Stacked::new(adapter.clone(), *weight));
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
        for name in placed {
            let adapter = find(name)?;
            if !stack.iter().any(|other| Arc::ptr_eq(other.adapter(), adapter)) {
                stack.push(Stacked::new(adapter.clone(), 0.0));
            }
        }
        Ok(Stack::new(stack))
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
