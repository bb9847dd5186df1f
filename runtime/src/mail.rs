//! What the threads of an engine's callers leave for the one that steps, and it for them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Instant;

use crate::Error;
use crate::request::{Event, RequestId};
use crate::session::Session;

/// Hears the events of one request; `Break` cancels it.
pub type Sink = Box<dyn FnMut(Event) -> ControlFlow<()> + Send>;

/// Where the events of a request go.
pub enum Route {
    /// To whoever asks next.
    Shared,
    /// To those who ask for this request alone.
    Apart,
    /// To its own sink.
    Sink(Sink),
}

/// Requests on their way in, and events on their way out. No lock is held while anything is computed or any
/// sink is called.
#[derive(Default)]
pub struct Mail {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Requests that wait for the next step to take them in.
    inbox: Vec<Session>,
    /// The flag that cancels each request that has not ended.
    live: HashMap<RequestId, Arc<AtomicBool>>,
    /// Events that anybody may take, numbered in order, and which of them are whose.
    shared: BTreeMap<u64, Event>,
    of_request: HashMap<RequestId, VecDeque<u64>>,
    next: u64,
    /// Events of requests that are asked for alone.
    apart: HashMap<RequestId, VecDeque<Event>>,
    /// The sinks of requests that have not heard their last event, each away while it is called, and the events on their way
    /// to them.
    sinks: HashMap<RequestId, Option<Sink>>,
    deliveries: VecDeque<Event>,
    /// The thread that is inside of [`Mail::deliver`]: it alone calls sinks, so that events stay in order.
    delivering: Option<ThreadId>,
    /// Whether [`Mail::close`] was called.
    closed: bool,
    /// Counts whatever a waiting thread may wait for.
    changes: u64,
}

impl State {
    /// Whether no request is live and every sink has heard its last event, but for those that this thread is calling.
    fn is_quiet(&self) -> bool {
        let delivered = self.sinks.is_empty() || self.delivering == Some(thread::current().id());
        self.closed || (self.live.is_empty() && delivered)
    }

    fn take_shared(&mut self) -> Option<Event> {
        let (_, event) = self.shared.pop_first()?;
        self.took(event.id());
        Some(event)
    }

    /// Forgets the oldest event of a request in the index.
    fn took(&mut self, id: RequestId) -> Option<u64> {
        let numbers = self.of_request.get_mut(&id)?;
        let number = numbers.pop_front();
        if numbers.is_empty() {
            self.of_request.remove(&id);
        }
        number
    }

    fn take_of(&mut self, id: RequestId) -> Option<Event> {
        if let Some(queue) = self.apart.get_mut(&id) {
            let event = queue.pop_front();
            if event.as_ref().is_some_and(Event::is_last) {
                self.apart.remove(&id);
            }
            return event;
        }
        let number = self.took(id)?;
        self.shared.remove(&number)
    }
}

impl Mail {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Leaves a request for the next step.
    pub fn submit(&self, session: Session, route: Route) {
        let mut state = self.lock();
        let id = session.id;
        match route {
            Route::Shared => {}
            Route::Apart => {
                state.apart.insert(id, VecDeque::new());
            }
            Route::Sink(sink) => {
                state.sinks.insert(id, Some(sink));
            }
        }
        state.live.insert(id, session.cancelled.clone());
        state.inbox.push(session);
        drop(state);
        self.change();
    }

    /// The requests that were left.
    pub fn take_requests(&self) -> Vec<Session> {
        std::mem::take(&mut self.lock().inbox)
    }

    /// Asks for the end of a request.
    pub fn cancel(&self, id: RequestId) -> Result<(), Error> {
        self.lock().live.get(&id).ok_or(Error::NoRequest { id })?.store(true, Ordering::Relaxed);
        self.change();
        Ok(())
    }

    /// Asks for the end of a request whose events nobody will take any more.
    pub fn abandon(&self, id: RequestId) {
        self.lock().apart.remove(&id);
        // It may have ended in the meantime; then there is nothing to cancel.
        let _ = self.cancel(id);
    }

    /// Posts an event of a request.
    pub fn post(&self, event: Event) {
        let state = &mut *self.lock();
        let (id, last) = (event.id(), event.is_last());
        if let Some(queue) = state.apart.get_mut(&id) {
            queue.push_back(event);
        } else if state.sinks.contains_key(&id) {
            state.deliveries.push_back(event);
        } else {
            state.of_request.entry(id).or_default().push_back(state.next);
            state.shared.insert(state.next, event);
            state.next += 1;
        }
        // Only now: until the event can be seen, the request counts as live.
        if last {
            state.live.remove(&id);
        }
    }

    /// Brings the events of requests with a sink there, in order, unless another thread is about it: that one then
    /// takes these along. A panic of a sink cancels its request and comes out here.
    pub fn deliver(&self) {
        let mut state = self.lock();
        if state.deliveries.is_empty() || state.delivering.is_some() {
            return;
        }
        state.delivering = Some(thread::current().id());
        let mut panic = None;
        while panic.is_none() {
            let Some(event) = state.deliveries.pop_front() else { break };
            let (id, last) = (event.id(), event.is_last());
            let Some(mut sink) = state.sinks.get_mut(&id).and_then(Option::take) else { continue };
            drop(state);
            let flow = catch_unwind(AssertUnwindSafe(|| sink(event)));
            // One that has heard all, or panicked, goes now: without the lock, because it may call back.
            let kept = (!last && flow.is_ok()).then_some(sink);
            state = self.lock();
            match kept {
                None => state.sinks.remove(&id),
                kept => state.sinks.insert(id, kept),
            };
            if !matches!(flow, Ok(ControlFlow::Continue(()))) {
                state.live.get(&id).inspect(|cancelled| cancelled.store(true, Ordering::Relaxed));
            }
            panic = flow.err();
        }
        state.delivering = None;
        drop(state);
        self.change();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// The next event that anybody may take, or of one request.
    ///
    /// # Errors
    /// No event of this request is there or to come, or a sink takes them; or all was closed.
    pub fn take(&self, id: Option<RequestId>) -> Result<Option<Event>, Error> {
        let mut state = self.lock();
        if state.closed {
            return Err(Error::Closed);
        }
        let Some(id) = id else { return Ok(state.take_shared()) };
        match state.take_of(id) {
            None if !state.live.contains_key(&id) || state.sinks.contains_key(&id) => {
                Err(Error::NoRequest { id })
            }
            event => Ok(event),
        }
    }

    /// The events that anybody may take, in order.
    pub fn take_all(&self) -> Vec<Event> {
        let mut state = self.lock();
        state.of_request.clear();
        std::mem::take(&mut state.shared).into_values().collect()
    }

    /// Whether no request is live and every sink has heard its last event; a sink that asks does not count.
    pub fn is_quiet(&self) -> bool {
        self.lock().is_quiet()
    }

    /// Whether no request is live and no event waits to be taken.
    pub fn is_empty(&self) -> bool {
        let state = self.lock();
        state.is_quiet() && (state.closed || state.shared.is_empty())
    }

    /// Ends everything: nobody takes or hears another event.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.deliveries.clear();
        drop(state);
        self.change();
    }

    /// # Errors
    /// [`Mail::close`] was called.
    pub fn check_open(&self) -> Result<(), Error> {
        match self.lock().closed {
            true => Err(Error::Closed),
            false => Ok(()),
        }
    }

    /// Waits until no other thread is calling sinks, or until there was a change after `seen`.
    pub fn wait_for_deliveries(&self, seen: u64) {
        let mut state = self.lock();
        while state.changes == seen && state.delivering.is_some_and(|thread| thread != thread::current().id())
        {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Tells the threads in [`Mail::wait`] that there is something new for them.
    pub fn change(&self) {
        self.lock().changes += 1;
        self.changed.notify_all();
    }

    /// How many changes there were: taken before a look at what is there, for [`Mail::wait`] after it.
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Waits until there was a change after `seen`, or until `deadline`; for ever without one.
    pub fn wait(&self, seen: u64, deadline: Option<Instant>) {
        let mut state = self.lock();
        while state.changes == seen {
            let Some(deadline) = deadline else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Tells the threads in [`Mail::wait`], when it is dropped, that there may be room for their requests now.
pub struct Wake<'a>(pub &'a Mail);

impl Drop for Wake<'_> {
    fn drop(&mut self) {
        self.0.change();
    }
}

/// Locks, also after a panic elsewhere: for what is consistent between any two statements.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
