//! What the threads of an engine's callers leave for the one that steps, and it for them.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::Error;
use crate::request::{Event, RequestId};
use crate::session::Session;

/// Where the events of a request go that is iterated on its own.
pub type Mailbox = Arc<Mutex<VecDeque<Event>>>;

/// Requests on their way in, and events on their way out. No lock is held while anything is computed.
#[derive(Default)]
pub struct Mail {
    /// Requests that wait for the next step to take them in.
    inbox: Mutex<Vec<Session>>,
    /// The flag that cancels each request that has not ended.
    live: Mutex<HashMap<RequestId, Arc<AtomicBool>>>,
    /// Events for the next caller of `step`.
    outbox: Mutex<Vec<Event>>,
}

impl Mail {
    /// Leaves a request for the next step.
    pub fn submit(&self, session: Session) {
        lock(&self.live).insert(session.id, session.cancelled.clone());
        lock(&self.inbox).push(session);
    }

    /// The requests that were left.
    pub fn take_requests(&self) -> Vec<Session> {
        std::mem::take(&mut lock(&self.inbox))
    }

    /// Asks for the end of a request.
    pub fn cancel(&self, id: RequestId) -> Result<(), Error> {
        let live = lock(&self.live);
        live.get(&id).ok_or(Error::NoRequest { id })?.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Delivers an event of a request.
    pub fn post(&self, session: &Session, event: Event) {
        let last = event.is_last();
        match &session.mailbox {
            Some(mailbox) => lock(mailbox).push_back(event),
            None => lock(&self.outbox).push(event),
        }
        // Only now: until the event can be seen, the request counts as live.
        if last {
            lock(&self.live).remove(&session.id);
        }
    }

    /// The events that no mailbox took, in order.
    pub fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut lock(&self.outbox))
    }

    /// Whether no request is live and no event waits to be taken.
    pub fn is_empty(&self) -> bool {
        lock(&self.live).is_empty() && lock(&self.outbox).is_empty()
    }
}

/// Locks, also after a panic elsewhere: for what is consistent between any two statements.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
