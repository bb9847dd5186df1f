//! Which adapters are in memory, where they have a limit.

use std::any::Any;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::{Loaded, Registry};
use crate::Error;
use crate::budget::Charge;
use crate::mail::lock;
use crate::stack::Stacks;

/// An adapter as a model applies it: `model::graft::BoundAdapter` of the backend's device, which only the model that made it knows.
pub type Bound = Box<dyn Any + Send + Sync>;

/// What an adapter has in memory.
pub struct Resident {
    bound: Bound,
    _charge: Charge,
}

impl Resident {
    /// What `charge` was taken for.
    pub fn new(bound: Bound, charge: Charge) -> Self {
        Self { bound, _charge: charge }
    }

    /// The adapter as the model applies it.
    pub fn bound(&self) -> &(dyn Any + Send + Sync) {
        &*self.bound
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

impl Loaded {
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
        let may = |resident: &mut Arc<Resident>| {
            !self.pinned.load(Ordering::Relaxed) && Arc::strong_count(resident) == 1
        };
        let gone = self.resident.try_lock().ok().and_then(|mut slot| slot.take_if(may));
        // Freed without the lock.
        drop(gone);
    }
}

impl Registry {
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
            own if Arc::ptr_eq(own, &loaded) => {
                // Whoever lets it leave looks behind this lock, or while it is still held here.
                let _slot = lock(&loaded.resident);
                loaded.pinned.store(true, Ordering::Relaxed);
            }
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
        if !self.is_limited() {
            return Ok(());
        }
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
        for (stacked, resident) in stacks.all().iter().zip(held) {
            stacked.adapter().used.store(self.now(), Ordering::Relaxed);
            stacked.hold(resident);
        }
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
            *slot = Some(Arc::new(Resident::new(bound, charge)));
        }
        Ok(slot.clone())
    }

    /// Takes as many bytes as make it `bytes`, if need be from other adapters within `reach`; `false`, and all stay, if that would not
    /// be enough.
    fn make_room(&self, charge: &mut Charge, bytes: usize, reach: Reach) -> bool {
        while !charge.grow(bytes) {
            let leaving = self.leaving(reach);
            let free: usize = leaving.iter().map(|loaded| loaded.prepared.bytes).sum();
            if charge.lacks(bytes) > free {
                return false;
            }
            let mut leaving = leaving.iter();
            while charge.lacks(bytes) > 0
                && let Some(next) = leaving.next()
            {
                next.leave();
            }
        }
        true
    }

    /// The adapters that may leave memory within `reach`, in order.
    fn leaving(&self, reach: Reach) -> Vec<Arc<Loaded>> {
        let names = lock(&self.names);
        let all: Vec<Arc<Loaded>> = names.all.iter().filter_map(Weak::upgrade).collect();
        let ranked = all.into_iter().filter(|loaded| loaded.may_leave()).map(|loaded| {
            let named = names.of.get(&loaded.name).is_some_and(|own| Arc::ptr_eq(own, &loaded));
            // Beside the name and this list.
            let requests = Arc::strong_count(&loaded) - 1 - usize::from(named);
            let used = loaded.used.load(Ordering::Relaxed);
            let rank = match (requests, named) {
                (0, _) => (Reach::Unused, used),
                (_, true) => (Reach::Awaited, u64::MAX - used),
                (_, false) => (Reach::Nameless, u64::MAX - used),
            };
            (rank, loaded)
        });
        let mut leaving: Vec<_> = ranked.filter(|((of, _), _)| *of <= reach).collect();
        leaving.sort_unstable_by_key(|(rank, _)| *rank);
        leaving.into_iter().map(|(_, loaded)| loaded).collect()
    }
}
