//! Choosing the next token from the logits.
//!
//! The chain, in this order:
//! 1. **Logit bias** is added, so that a ban (`-inf`) is one whatever follows.
//! 2. **Penalties** for tokens among the last `penalty_last_n` of prompt and answer, counted `c` times: repetition (`l / r`
//!    if `l > 0`, else `l * r`; Keskar et al. 2019), then `l - c * frequency - presence` (`c > 0`), as llama.cpp.
//! 3. **Temperature** `l / T`. At 0 the likeliest token is taken, the lowest id of equals, and nothing follows.
//! 4. **Top-k**: the `k` likeliest.
//! 5. **Top-p**: of those, the fewest likeliest whose share of the probability reaches `p` (Holtzman et al. 2020).
//! 6. **Min-p**: of those, tokens with at least `min_p` times the probability of the likeliest (Nguyen et al. 2024).
//! 7. **A draw** in proportion to the probabilities that are left.
//!
//! Temperature comes before the truncations, as in transformers, vLLM and the papers: top-p means the mass of the
//! distribution that is drawn from. (llama.cpp by default truncates first.) Equal logits rank by id, so every step has
//! one result, and min-p does not depend on top-k and top-p.
//!
//! A draw depends on the seed and on how many tokens its request has drawn, see [`random`]; never on other requests.
//!
//! ```
//! use graftwork::sample::{Options, Sampler};
//!
//! let mut sampler = Sampler::new(Options { temperature: 0.8, top_k: 2, seed: 7, ..Options::default() })?;
//! let token = sampler.sample(&[0.1, 2.0, 1.9, -3.0], &[])?;
//! assert!(token == 1 || token == 2);
//! let mut greedy = Sampler::new(Options::default())?;
//! assert_eq!(greedy.sample(&[0.1, 2.0, 2.0, -3.0], &[])?, 1);
//! # Ok::<(), graftwork::sample::Error>(())
//! ```

mod candidates;
mod options;
pub mod random;

pub use options::Options;

use candidates::Candidates;
use std::cell::RefCell;
use std::collections::HashMap;

/// Why a token could not be chosen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// An option has a value that means nothing.
    #[error("{option}: expected {expected}, found {found}")]
    Option {
        /// The option.
        option: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The model gave something that cannot be compared.
    #[error("logits: expected numbers, found {found} for token {token}")]
    Logit {
        /// The token.
        token: usize,
        /// NaN or infinity.
        found: f32,
    },
    /// Memory as large as the vocabulary was refused.
    #[error(transparent)]
    Memory(#[from] graftwork_kernels::Error),
    /// Every token is banned, or there are no logits.
    #[error("logits: expected a token that is not banned, found none of {vocab}")]
    NoToken {
        /// How many logits there are.
        vocab: usize,
    },
}

thread_local! {
    /// Room for the candidates of one draw, kept so that large vocabularies do not allocate for each token.
    static ROOM: RefCell<Candidates> = RefCell::default();
}

/// Chooses the tokens of one request.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: Options,
    step: u64,
}

impl Sampler {
    /// A sampler for one request.
    ///
    /// # Errors
    /// [`Error::Option`], for a value that means nothing.
    pub fn new(options: Options) -> Result<Self, Error> {
        options.check()?;
        Ok(Self { options, step: 0 })
    }

    /// A sampler that has drawn `step` tokens already.
    ///
    /// # Errors
    /// [`Error::Option`], for a value that means nothing.
    pub fn resumed(options: Options, step: u64) -> Result<Self, Error> {
        Ok(Self { step, ..Self::new(options)? })
    }

    /// How many tokens it has drawn.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The options that it was made with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The next token, from `logits [vocab]` and the tokens so far, prompt and answer.
    ///
    /// # Errors
    /// [`Error::Logit`] for NaN or infinity, [`Error::NoToken`] if all are `-inf`, [`Error::Option`] for a bias of a
    /// token that does not exist, [`Error::Memory`].
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32, Error> {
        let step = self.step;
        self.step = self.step.wrapping_add(1);
        let changes = self.changes(logits, history)?;
        ROOM.with_borrow_mut(|room| {
            if changes.is_empty() {
                return self.choose(room, logits, step, candidates::first);
            }
            let changed = room.change(logits, &changes)?;
            let token = self.choose(room, &changed, step, Candidates::likeliest);
            room.give_back(changed);
            token
        })
    }

    /// The next token, from logits with bias and penalties; without a temperature the one that `greedy` finds.
    fn choose(
        &self,
        room: &mut Candidates,
        logits: &[f32],
        step: u64,
        greedy: fn(&[f32], f32) -> u32,
    ) -> Result<u32, Error> {
        check(logits)?;
        let highest = candidates::largest(logits);
        if highest == f32::NEG_INFINITY {
            return Err(Error::NoToken { vocab: logits.len() });
        }
        match self.options.temperature {
            0.0 => Ok(greedy(logits, highest)),
            _ => room.draw(logits, highest, &self.options, random::uniform(self.options.seed, step)),
        }
    }

    /// The logits that bias and penalties change, with their new values, each token once.
    fn changes(&self, logits: &[f32], history: &[u32]) -> Result<Vec<(u32, f32)>, Error> {
        let options = &self.options;
        let mut changed: HashMap<u32, f32> = HashMap::new();
        for &(token, bias) in &options.logit_bias {
            let Some(&logit) = logits.get(token as usize) else {
                let expected = format!("token ids below {}", logits.len());
                return Err(Error::Option { option: "logit_bias", expected, found: token.to_string() });
            };
            *changed.entry(token).or_insert(logit) += bias;
        }
        if options.has_penalties() {
            let mut counts: HashMap<u32, u32> = HashMap::new();
            for &token in &history[history.len().saturating_sub(options.penalty_last_n)..] {
                *counts.entry(token).or_default() += 1;
            }
            for (token, count) in counts {
                if let Some(&logit) = logits.get(token as usize) {
                    let logit = changed.entry(token).or_insert(logit);
                    *logit = options.penalised(*logit, count);
                }
            }
        }
        Ok(changed.into_iter().collect())
    }
}

/// Whether all logits can be compared.
fn check(logits: &[f32]) -> Result<(), Error> {
    // All of a chunk at once, so that the compiler makes vectors of them.
    let wrong = |logit: f32| logit.is_nan() || logit == f32::INFINITY;
    let chunk =
        logits.chunks(64).position(|chunk| chunk.iter().fold(false, |any, &logit| any | wrong(logit)));
    let Some(start) = chunk.map(|chunk| chunk * 64) else { return Ok(()) };
    match (start..).zip(&logits[start..]).find(|(_, logit)| wrong(**logit)) {
        Some((token, &found)) => Err(Error::Logit { token, found }),
        None => Ok(()),
    }
}
