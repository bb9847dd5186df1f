//! From a request to what the engine computes.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use graftwork_kernels::backend::PAGE;

use super::Engine;
use crate::kv::pages_for;
use crate::log::Level;
use crate::mail::Route;
use crate::request::{Context, Event, Request, RequestId};
use crate::sample::Sampler;
use crate::sequence::{Entry, Place};
use crate::session::Session;
use crate::stack::Stack;
use crate::text::{Text, Tokens};
use crate::{Answer, Error};

impl Engine {
    /// Accepts a request; its events come from [`Engine::step`] or [`Engine::poll`]. It keeps the adapters that its names mean
    /// now, whatever happens to the names.
    ///
    /// # Errors
    /// An adapter is not loaded, the prompt is empty, too long or not the model's, the KV cache could never
    /// hold it, or an option has no meaning.
    pub fn submit(&self, request: Request) -> Result<RequestId, Error> {
        self.accept(request, Route::Shared)
    }

    /// Accepts a request whose events go to `sink`: in order, one at a time, on whichever thread is inside of
    /// [`Engine::step`] or [`Engine::poll`], with no lock held. `Break` cancels the request; its last event follows.
    /// The sink is dropped after the last event.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn submit_to(
        &self,
        sink: impl FnMut(Event) -> ControlFlow<()> + Send + 'static,
        request: Request,
    ) -> Result<RequestId, Error> {
        self.accept(request, Route::Sink(Box::new(sink)))
    }

    /// Accepts a request and gives an iterator of its events. Iterating steps the engine, so other
    /// requests go on too; dropping the iterator cancels the request.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn generate(&self, request: Request) -> Result<Answer<'_>, Error> {
        Ok(Answer::new(self, self.accept(request, Route::Apart)?))
    }

    fn accept(&self, request: Request, route: Route) -> Result<RequestId, Error> {
        self.mail.check_open()?;
        let stack = self.registry.stack(&request.adapters, request.prompt.placed())?;
        let text = stack.text().or(self.text.as_ref());
        let Tokens { tokens, places, new_text } = Text::tokens_of(text, request.prompt)?;
        let tokens = self.sequence(&stack, &tokens, &places, self.config().context)?;
        let most_tokens = self.most_tokens(tokens.len(), request.max_tokens, request.context)?;
        let context = match request.context {
            Context::Stop => Context::Stop,
            Context::Shift { keep } => {
                let keep = Entry::own(&tokens).saturating_add(keep).min(tokens.len());
                if keep + 2 > most_tokens {
                    let expected = "at least two fewer than the context and the KV cache hold";
                    return Err(Error::Option { option: "keep", expected, found: keep.to_string() });
                }
                Context::Shift { keep }
            }
        };
        let vocabulary = stack.vocabulary(self.config().vocab);
        let mut end_tokens = request.stop_tokens;
        if !request.ignore_eos {
            end_tokens.extend_from_slice(&self.end_tokens);
            end_tokens.extend(stack.text().iter().flat_map(|text| text.tokenizer().ends_of_generation()));
        }
        let text = match text {
            Some(text) => Some(text.stream(request.stop, new_text)?),
            None if request.stop.is_empty() => None,
            None => return Err(Error::NoTokenizer),
        };
        let biased = request.sampling.logit_bias.iter().map(|&(token, _)| token);
        check_tokens("logit_bias", biased, vocabulary.head)?;
        let (stacks, absent) = stack.over(&tokens);
        self.admit(&stacks)?;
        if !absent.is_empty() {
            self.say(Level::Warn, || {
                format!("the prompt holds no invocation sequence of {absent:?}: they do nothing")
            });
        }
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let session = Session {
            id,
            stacks,
            prompt: tokens.len(),
            filled: 0,
            chain: None,
            most_tokens,
            left: request.max_tokens.unwrap_or(usize::MAX),
            context,
            end_tokens,
            sampler: Sampler::new(request.sampling)?,
            text,
            saved: None,
            is_told: false,
            logprobs: request.logprobs,
            logits: request.logits,
            cancelled: Arc::default(),
            tokens,
        };
        self.say(Level::Debug, || {
            format!("request {id}: {} tokens of prompt, adapters {:?}", session.prompt, session.stacks)
        });
        self.mail.submit(session, route);
        Ok(id)
    }

    /// What stands at the positions of a prompt under a stack, fewer than `limit`.
    pub(super) fn sequence(
        &self,
        stack: &Stack,
        prompt: &[u32],
        places: &[Place],
        limit: usize,
    ) -> Result<Vec<u32>, Error> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let vocabulary = stack.vocabulary(self.config().vocab);
        check_tokens("prompt", prompt.iter().copied(), vocabulary.embedding)?;
        stack.sequence(prompt, places, limit)
    }

    /// Positions at which a sequence that starts with `found`, fewer than the context's, is full; an error if it cannot start.
    fn most_tokens(&self, found: usize, answer: Option<usize>, policy: Context) -> Result<usize, Error> {
        let config = self.model.config();
        if answer == Some(0) {
            let found = "0".to_owned();
            return Err(Error::Option { option: "max_tokens", expected: "1 or more", found });
        }
        let room = self.kv_pages.saturating_mul(PAGE);
        let most = found.saturating_add(answer.unwrap_or(usize::MAX)).min(config.context);
        let most = match (answer, policy) {
            // What it asked for is promised whole, or refused.
            (Some(_), Context::Stop) => most,
            _ => most.min(room.saturating_add(1)).max(found + 1),
        };
        let needed = pages_for(most - 1);
        match needed <= self.kv_pages {
            true => Ok(most),
            false => Err(Error::Budget { needed, limit: self.kv_pages }),
        }
    }
}

/// Refuses tokens that a vocabulary of `vocab` does not have.
pub(super) fn check_tokens(
    place: &'static str,
    tokens: impl Iterator<Item = u32>,
    vocab: usize,
) -> Result<(), Error> {
    match tokens.enumerate().find(|&(_, token)| token as usize >= vocab) {
        Some((index, found)) => Err(Error::Token { place, index, vocab, found }),
        None => Ok(()),
    }
}
