//! The part of an engine that only one thread at a time may touch: the one that steps.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use graftwork_kernels::backend::PAGE;

use crate::Error;
use crate::batch::Batch;
use crate::mail::{Mail, lock};
use crate::model::runner::Run;
use crate::request::{Event, FinishReason, RequestId};
use crate::schedule::{Hold, Schedule};
use crate::session::Session;
use crate::state::{self, Base};
use crate::trace::Counters;

/// What can be told of a core without waiting for it.
#[derive(Clone, Copy, Default)]
pub struct Report {
    /// Pages that the KV cache has.
    pub pages: usize,
    /// Those of them that requests hold.
    pub held: usize,
    /// Bytes of activations, and of what kernels need beside them.
    pub scratch: usize,
    /// What was done so far.
    pub counters: Counters,
}

/// The core, held by one thread. When it lets go, others can read how it left it, and those who wait for their turn wake up:
/// whatever it was held for, also after a panic.
pub struct Turn<'a> {
    core: Option<MutexGuard<'a, Core>>,
    report: &'a Mutex<Report>,
    mail: &'a Mail,
    /// Set if nothing was done since this many changes: then nobody is woken, or threads that all have nothing to do would
    /// wake each other; unless something came meanwhile that this thread did not see.
    pub idle_since: Option<u64>,
}

impl<'a> Turn<'a> {
    /// The turn of whoever holds `core`.
    pub fn new(core: MutexGuard<'a, Core>, report: &'a Mutex<Report>, mail: &'a Mail) -> Self {
        Self { core: Some(core), report, mail, idle_since: None }
    }
}

impl Deref for Turn<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        self.core.as_deref().expect("held until it is dropped")
    }
}

impl DerefMut for Turn<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        self.core.as_deref_mut().expect("held until it is dropped")
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(self.report) = self.report();
        self.core = None;
        if self.idle_since != Some(self.mail.changes()) {
            self.mail.change();
        }
    }
}

/// A model, and the requests that run on it.
pub struct Core {
    /// The model.
    pub runner: Box<dyn Run>,
    /// The requests.
    pub schedule: Schedule,
    counters: Counters,
    vocab: usize,
    /// Requests that ended, for [`Core::take_ended`].
    ended: Vec<Session>,
}

impl Core {
    /// Nothing runs yet.
    pub fn new(runner: Box<dyn Run>, schedule: Schedule, vocab: usize) -> Self {
        Self { runner, schedule, counters: Counters::default(), vocab, ended: Vec::new() }
    }

    /// What others may know of it.
    pub fn report(&self) -> Report {
        let (pages, held) = self.schedule.pages();
        let counters = Counters { reused_rows: self.schedule.reused(), ..self.counters };
        Report { pages, held, scratch: self.runner.scratch_bytes(), counters }
    }

    /// Requests that ended: to be dropped when nobody holds the core, for their adapters may go with them, and callers hear of that.
    pub fn take_ended(&mut self) -> Vec<Session> {
        std::mem::take(&mut self.ended)
    }

    /// What a request is now, to go on later; it goes on here, too.
    ///
    /// # Errors
    /// No such request waits or runs.
    pub fn save(&mut self, mail: &Mail, id: RequestId, base: Base<'_>) -> Result<Vec<u8>, Error> {
        mail.take_requests().into_iter().for_each(|session| self.schedule.push(session));
        let session = self.schedule.find(id).ok_or(Error::NoRequest { id })?;
        let pages = session.chain.as_ref().map_or(&[][..], |chain| chain.pages());
        // Full ones: the rest of the last holds what others left there.
        let pages = &pages[..(session.filled / PAGE).min(pages.len())];
        let saved = pages.iter().map(|&page| self.runner.page(page)).collect::<Option<Vec<_>>>();
        state::write(session, base, &saved.unwrap_or_default())
    }

    /// One step: takes in the requests that came, lets go of those that were cancelled, starts those that there is room for, with the
    /// adapters that `hold` gets, computes one batch, and posts what follows from it. `false` if there was nothing to do.
    ///
    /// # Errors
    /// Memory was refused. Nothing was computed, and nothing is lost.
    pub fn advance(&mut self, mail: &Mail, hold: &Hold<'_>) -> Result<bool, Error> {
        let Self { runner, schedule, counters, vocab, ended } = self;
        mail.take_requests().into_iter().for_each(|session| schedule.push(session));
        let mut any = false;
        loop {
            for mut session in schedule.take_cancelled() {
                any = true;
                mail.post(session.finish(FinishReason::Cancelled));
                ended.push(session);
            }
            while let Some((session, error)) = schedule.admit(hold)? {
                any = true;
                mail.post(Event::Failed { id: session.id, error: Arc::new(error) });
                ended.push(session);
            }
            schedule.resume(|extent, page, bytes| {
                runner.grow(extent)?;
                runner.set_page(page, bytes)
            })?;
            let plan = schedule.plan();
            if plan.parts.is_empty() {
                return Ok(any);
            }
            schedule.reserve_tokens().map_err(Error::Memory)?;
            runner.grow(schedule.extent())?;
            let batch = Batch::new(&schedule.pieces(&plan)).map_err(Error::Memory)?;
            let start = Instant::now();
            let completed = runner.run(&batch, &|| schedule.is_worth(&plan))?;
            counters.count(&batch, completed, start.elapsed());
            if !completed {
                // Most of it was cancelled in the meantime: the rest again, without.
                continue;
            }
            let wide = runner.wide_logits()?;
            let logits = runner.logits();
            let mut over = Vec::new();
            let rows = logits.chunks_exact(*vocab).enumerate();
            for (session, (output, logits)) in schedule.filled(&plan).into_iter().zip(rows) {
                let logits = wide.iter().find(|wide| wide.0 == output).map_or(logits, |wide| &wide.1);
                for event in session.advance(logits) {
                    if event.is_last() {
                        over.push(session.id);
                    }
                    mail.post(event);
                }
            }
            ended.extend(over.into_iter().filter_map(|id| schedule.take(id)));
            schedule.shift();
            return Ok(true);
        }
    }
}
