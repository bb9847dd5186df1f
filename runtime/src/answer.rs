//! One request, iterated.

use crate::mail::{Mailbox, lock};
use crate::{Engine, Error, Event, RequestId};

/// The events of one request, made by stepping the engine. Dropping it cancels the request.
pub struct Answer<'a> {
    engine: &'a Engine,
    id: RequestId,
    mailbox: Mailbox,
    finished: bool,
}

impl<'a> Answer<'a> {
    pub(crate) fn new(engine: &'a Engine, id: RequestId, mailbox: Mailbox) -> Self {
        Self { engine, id, mailbox, finished: false }
    }

    /// The request.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// The whole text of the answer.
    ///
    /// # Errors
    /// As [`Engine::step`]; or no token could be chosen.
    pub fn text(self) -> Result<String, Error> {
        let mut text = String::new();
        for event in self {
            match event? {
                Event::Failed { error, .. } => return Err(error.into()),
                event => text.push_str(event.text()),
            }
        }
        Ok(text)
    }
}

impl Iterator for Answer<'_> {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.finished {
            if let Some(event) = lock(&self.mailbox).pop_front() {
                self.finished = event.is_last();
                return Some(Ok(event));
            }
            // Another thread may bring the event while this one waits for its turn to step.
            if let Err(error) = self.engine.advance_unless(|| !lock(&self.mailbox).is_empty()) {
                self.finished = matches!(error, Error::Poisoned);
                return Some(Err(error));
            }
        }
        None
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        if !self.finished {
            // It may have ended in the meantime; then there is nothing to cancel.
            let _ = self.engine.cancel(self.id);
        }
    }
}
