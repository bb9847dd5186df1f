//! Requests that are saved and go on.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Engine;
use super::requests::check_tokens;
use crate::kv::pages_for;
use crate::log::Level;
use crate::mail::Route;
use crate::request::{Context, Event, RequestId};
use crate::sequence::Entry;
use crate::session::Session;
use crate::state::State;
use crate::{Answer, Error, state};

impl Engine {
    /// What a request is now, in bytes with which [`Engine::resume`] goes on, here or in another process; it goes on here, too. With the
    /// keys and values of its tokens, so that these need not be computed again. Waits for a step in progress.
    ///
    /// # Errors
    /// No such request waits or runs; no memory.
    pub fn save(&self, id: RequestId) -> Result<Vec<u8>, Error> {
        self.turn()?.save(&self.mail, id, self.state_base())
    }

    /// Accepts a request that was saved: its next event is the one that followed, equal to the bit. Its adapters must be loaded, under any
    /// names: what they hold counts.
    ///
    /// # Errors
    /// The bytes were changed, cut, or made by another version; another base, other keys and values; an adapter is not loaded; the KV
    /// cache could never hold it. Nothing of it runs then.
    pub fn resume(&self, state: &[u8]) -> Result<RequestId, Error> {
        self.accept_saved(state, Route::Shared)
    }

    /// [`Engine::resume`] as [`Engine::submit_to`].
    ///
    /// # Errors
    /// As [`Engine::resume`].
    pub fn resume_to(
        &self,
        sink: impl FnMut(Event) -> ControlFlow<()> + Send + 'static,
        state: &[u8],
    ) -> Result<RequestId, Error> {
        self.accept_saved(state, Route::Sink(Box::new(sink)))
    }

    /// [`Engine::resume`] as [`Engine::generate`].
    ///
    /// # Errors
    /// As [`Engine::resume`].
    pub fn resume_apart(&self, state: &[u8]) -> Result<Answer<'_>, Error> {
        Ok(Answer::new(self, self.accept_saved(state, Route::Apart)?))
    }

    fn state_base(&self) -> state::Base<'_> {
        state::Base {
            fingerprint: self.model.fingerprint(),
            architecture: self.config().architecture,
            kv: self.options.kv_format,
            page_bytes: self.page_bytes,
        }
    }

    fn accept_saved(&self, bytes: &[u8], route: Route) -> Result<RequestId, Error> {
        self.mail.check_open()?;
        let State { header, tokens, pages } = state::read(bytes, self.state_base())?;
        let wrong = |what, expected: String, found: String| Err(Error::State { what, expected, found });
        let (mut adapters, mut placed) = (Vec::new(), Vec::new());
        let (mut from, mut placed_from) = (Vec::new(), Vec::new());
        for state::Adapter { name, content, weight, from: first } in &header.adapters {
            let Some(own) = self.registry.of_content(name, content) else {
                return wrong("adapter", format!("{name} of content {content}, loaded"), "none".to_owned());
            };
            match f32::from_bits(*weight) {
                0.0 => {
                    placed.push(own);
                    placed_from.push(*first);
                }
                weight => {
                    adapters.push((own, weight));
                    from.push(*first);
                }
            }
        }
        from.extend(placed_from);
        let stack = self.registry.stack_of(adapters, placed)?;
        let vocabulary = stack.vocabulary(self.config().vocab);
        let stacks = stack.starting(&from);
        if stacks.all().len() != from.len() {
            return wrong("adapters", "each once".to_owned(), "one that is named and placed".to_owned());
        }
        stacks.check(&tokens, vocabulary.embedding, header.prompt)?;
        let (context, own) = (header.context(), Entry::own(&tokens));
        if let Context::Shift { keep } = context
            && keep < own
        {
            return wrong("tokens that stay", format!("{own} or more"), keep.to_string());
        }
        if header.most_tokens > self.config().context {
            return wrong(
                "tokens",
                format!("at most {}", self.config().context),
                header.most_tokens.to_string(),
            );
        }
        let needed = pages_for(header.most_tokens - 1);
        if needed > self.kv_pages {
            return Err(Error::Budget { needed, limit: self.kv_pages });
        }
        let sampler = header.sampler()?;
        let biased = sampler.options().logit_bias.iter().map(|&(token, _)| token);
        check_tokens("logit_bias", biased, vocabulary.head)?;
        let text = match (stack.text().or(self.text.as_ref()), header.text) {
            (Some(text), Some(saved)) => Some(text.resume(saved)?),
            (None, Some(_)) => return Err(Error::NoTokenizer),
            (_, None) => None,
        };
        self.admit(&stacks)?;
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let session = Session {
            id,
            stacks,
            prompt: header.prompt,
            filled: 0,
            chain: None,
            most_tokens: header.most_tokens,
            left: usize::try_from(header.left).unwrap_or(usize::MAX),
            context,
            end_tokens: header.end_tokens,
            sampler,
            text,
            saved: pages,
            is_told: false,
            logprobs: header.logprobs,
            logits: header.logits,
            cancelled: Arc::default(),
            tokens,
        };
        self.say(Level::Debug, || format!("request {id}: resumed at {} tokens", session.tokens.len()));
        self.mail.submit(session, route);
        Ok(id)
    }
}
