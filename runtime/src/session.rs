//! One request on its way, from submission to its last event.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use graftwork_kernels::tensor::reserved;

use crate::kv::Chain;
use crate::request::{Context, Event, FinishReason, Logprob, RequestId};
use crate::sample::{self, Sampler};
use crate::sequence::Entry;
use crate::stack::{Stack, Stacks};
use crate::stream::TextStream;

/// A request, checked and tokenized.
pub struct Session {
    /// Its id.
    pub id: RequestId,
    /// The adapters that it started with and keeps.
    pub stacks: Stacks,
    /// What stands at each position ([`Entry`](crate::sequence::Entry)): the prompt, then what was answered so far.
    pub tokens: Vec<u32>,
    /// How many of the tokens are the prompt, or what is read like it after [`Session::shift`].
    pub prompt: usize,
    /// How many of the tokens have their keys and values in the cache.
    pub filled: usize,
    /// Its pages, once it runs.
    pub chain: Option<Chain>,
    /// Length of `tokens` at which it is full.
    pub most_tokens: usize,
    /// How many tokens the answer may still get.
    pub left: usize,
    /// What happens when it is full; what stays counts what adapters put before the prompt, too.
    pub context: Context,
    /// Tokens that end it.
    pub end_tokens: Vec<u32>,
    /// Chooses tokens.
    pub sampler: Sampler,
    /// Turns tokens into text; `None` where the model has no tokenizer.
    pub text: Option<TextStream>,
    /// What the first pages of the cache held when it was saved, until it runs.
    pub saved: Option<Pages>,
    /// Whether its pages hold what others said that they hold: then they are not for other requests.
    pub is_told: bool,
    /// See [`crate::Request::logprobs`].
    pub logprobs: Option<usize>,
    /// See [`crate::Request::logits`].
    pub logits: bool,
    /// Set by whoever cancels it.
    pub cancelled: Arc<AtomicBool>,
}

/// The pages of the cache of a saved request.
pub struct Pages {
    /// How many of the tokens they hold.
    pub filled: usize,
    /// What they hold, one after the other.
    pub bytes: Vec<u8>,
}

/// A token, and what is to be reported with it.
struct Chosen {
    token: u32,
    logprob: Option<Logprob>,
    logits: Option<Vec<f32>>,
}

impl Session {
    /// Whether somebody asked for its end.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Tokens whose keys and values are not in the cache yet; never 0.
    pub fn pending(&self) -> &[u32] {
        &self.tokens[self.filled..]
    }

    /// The adapters of the next rows.
    pub fn stack(&self) -> &Stack {
        self.stacks.at(self.filled + Entry::given(self.pending()))
    }

    /// Chooses the next token from its `logits` and says what follows.
    pub fn advance(&mut self, logits: &[f32]) -> Vec<Event> {
        let id = self.id;
        let Chosen { token, logprob, logits } = match self.choose(logits) {
            Ok(chosen) => chosen,
            Err(error) => return vec![Event::Failed { id, error: Arc::new(error.into()) }],
        };
        self.tokens.push(token);
        self.left = self.left.saturating_sub(1);
        if self.end_tokens.contains(&token) {
            return vec![self.finish(FinishReason::Stop)];
        }
        let pushed = self.text.as_mut().map(|text| text.push(token)).unwrap_or_default();
        let mut events = vec![Event::Token { id, token, text: pushed.text, logprob, logits }];
        if pushed.stopped {
            events.push(Event::Finished { id, reason: FinishReason::StopText, text: String::new() });
        } else if self.left == 0 || self.is_full() && self.context == Context::Stop {
            events.push(self.finish(FinishReason::Length));
        }
        events
    }

    /// Whether there is no place for another token.
    pub fn is_full(&self) -> bool {
        self.tokens.len() >= self.most_tokens
    }

    /// Lets go of the oldest tokens behind those that stay, half of them, so that what is left is a prompt that is yet to be read.
    pub fn shift(&mut self) {
        let Context::Shift { keep } = self.context else { return };
        let gone = keep..keep + (self.tokens.len() - keep).div_ceil(2);
        self.stacks = self.stacks.without(&gone);
        self.tokens.drain(gone);
        self.prompt = self.tokens.len();
        self.filled = 0;
        // All of it is computed here now.
        self.is_told = false;
    }

    /// Chooses the next token from its `logits`.
    fn choose(&mut self, logits: &[f32]) -> Result<Chosen, sample::Error> {
        let token = self.sampler.sample(logits, &self.tokens)?;
        let logprob = self.logprobs.map(|top| logprob(logits, token, top)).transpose()?;
        let reported = self.logits.then(|| {
            let mut values = reserved(logits.len())?;
            values.extend_from_slice(logits);
            Ok::<_, sample::Error>(values)
        });
        Ok(Chosen { token, logprob, logits: reported.transpose()? })
    }

    /// The last event, with the text that was held back.
    pub fn finish(&mut self, reason: FinishReason) -> Event {
        let text = self.text.as_mut().map(TextStream::finish).unwrap_or_default();
        Event::Finished { id: self.id, reason, text }
    }
}

/// `log softmax` of the logits at `token`, and at the `top` likeliest; summed in f64.
fn logprob(logits: &[f32], token: u32, top: usize) -> Result<Logprob, sample::Error> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let of = |token: u32| (f64::from(logits[token as usize] - max) - sum.ln()) as f32;
    let top = top.min(logits.len());
    let mut order: Vec<u32> = Vec::new();
    if top > 0 {
        let likelier = |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
        order = reserved(logits.len())?;
        order.extend(0..logits.len() as u32);
        order.select_nth_unstable_by(top - 1, likelier);
        order.truncate(top);
        order.sort_unstable_by(likelier);
    }
    let mut likeliest = reserved(order.len())?;
    likeliest.extend(order.into_iter().map(|token| (token, of(token))));
    Ok(Logprob { chosen: of(token), top: likeliest })
}
