//! The part of an engine that only one thread at a time may touch: the one that steps.

use std::time::Instant;

use crate::Error;
use crate::batch::Batch;
use crate::mail::Mail;
use crate::model::runner::Run;
use crate::request::FinishReason;
use crate::schedule::Schedule;
use crate::trace::Counters;

/// A model, and the requests that run on it.
pub struct Core {
    /// The model.
    pub runner: Box<dyn Run>,
    /// The requests.
    pub schedule: Schedule,
    counters: Counters,
    vocab: usize,
}

impl Core {
    /// Nothing runs yet.
    pub fn new(runner: Box<dyn Run>, schedule: Schedule, vocab: usize) -> Self {
        Self { runner, schedule, counters: Counters::default(), vocab }
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        Counters { reused_rows: self.schedule.reused(), ..self.counters }
    }

    /// One step: takes in the requests that came, lets go of those that were cancelled, computes one batch, and
    /// posts what follows from it. `false` if there was nothing to do.
    ///
    /// # Errors
    /// Memory was refused. Nothing was computed, and nothing is lost.
    pub fn advance(&mut self, mail: &Mail) -> Result<bool, Error> {
        let Self { runner, schedule, counters, vocab } = self;
        mail.take_requests().into_iter().for_each(|session| schedule.push(session));
        let mut any = false;
        loop {
            for mut session in schedule.take_cancelled() {
                any = true;
                let event = session.finish(FinishReason::Cancelled);
                mail.post(event);
            }
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
            let logits = runner.logits();
            let mut ended = Vec::new();
            for (session, logits) in schedule.filled(&plan).into_iter().zip(logits.chunks_exact(*vocab)) {
                for event in session.advance(logits) {
                    if event.is_last() {
                        ended.push(session.id);
                    }
                    mail.post(event);
                }
            }
            for id in ended {
                schedule.take(id);
            }
            return Ok(true);
        }
    }
}
