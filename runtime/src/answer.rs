//! One request, iterated.

use std::time::Duration;

use crate::{Engine, Error, Event, RequestId};

/// The events of one request, made by stepping the engine. Dropping it cancels the request.
pub struct Answer<'a> {
    engine: &'a Engine,
    id: RequestId,
    finished: bool,
}

impl<'a> Answer<'a> {
    pub(crate) fn new(engine: &'a Engine, id: RequestId) -> Self {
        Self { engine, id, finished: false }
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
            match self.engine.poll(Some(self.id), Duration::MAX) {
                Ok(None) => {}
                Ok(Some(event)) => {
                    self.finished = event.is_last();
                    return Some(Ok(event));
                }
                Err(error) => {
                    self.finished = matches!(error, Error::Poisoned | Error::Closed);
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.engine.abandon(self.id);
        }
    }
}
