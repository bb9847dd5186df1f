//! What stands at each position of a sequence: tokens of the vocabulary, and what the request's adapters put there.
//!
//! One number a position. Tokens are themselves, and a stack counts the virtual tokens and the given positions of its adapters,
//! in order, from numbers that no vocabulary reaches. So a list of numbers says all about a sequence under its stack: what is to
//! be computed, and which cached pages it may share.

use graftwork_kernels::tensor::reserved;

use crate::Error;
use crate::registry::Prepared;
use crate::stack::{Stack, Stacked, Stacks};

/// The first virtual token. Vocabularies have 2^24 entries at most.
const VIRTUAL: u32 = 1 << 31;
/// The first given position.
const GIVEN: u32 = 3 << 30;
/// Most virtual tokens, and most given positions, of a stack.
const MOST: usize = 1 << 30;

/// What stands at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A token of the vocabulary.
    Token(u32),
    /// A virtual token of the stack.
    Virtual(u32),
    /// A position of the stack whose keys and values are given.
    Given(u32),
}

impl Entry {
    /// What `number` stands for.
    pub fn of(number: u32) -> Self {
        match number {
            GIVEN.. => Self::Given(number - GIVEN),
            VIRTUAL.. => Self::Virtual(number - VIRTUAL),
            _ => Self::Token(number),
        }
    }

    /// Whether `number` is a token of the vocabulary.
    pub fn is_token(number: u32) -> bool {
        number < VIRTUAL
    }

    /// How many of the first `numbers` are what adapters put before the prompt.
    pub fn own(numbers: &[u32]) -> usize {
        numbers.iter().take_while(|&&number| !Self::is_token(number)).count()
    }

    /// How many of the first `numbers` are given.
    pub fn given(numbers: &[u32]) -> usize {
        numbers.iter().take_while(|&&number| number >= GIVEN).count()
    }
}

/// Virtual tokens in the middle of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// How many tokens of the prompt come before.
    pub at: usize,
    /// The adapter's name.
    pub adapter: String,
    /// How many of its virtual tokens; all if `None`.
    pub first: Option<usize>,
}

/// How many virtual tokens, or how many given positions, an adapter has.
type Count = fn(&Prepared) -> usize;

/// The adapters of a stack: where the own of each begin among the stack's, how many they are, and whose.
fn offsets(stack: &Stack, count: Count) -> impl Iterator<Item = (usize, usize, &Stacked)> {
    let mut next = 0;
    stack.iter().map(move |stacked| {
        let (first, count) = (next, count(stacked.adapter().prepared()));
        next += count;
        (first, count, stacked)
    })
}

/// The adapter of number `index`, and which of its own that is.
fn find(stack: &Stack, count: Count, index: u32) -> (&Stacked, u32) {
    let index = index as usize;
    let mut all = offsets(stack, count);
    let found = all.find(|&(first, count, ..)| (first..first + count).contains(&index));
    let (first, _, adapter) = found.expect("a number that its stack has given out");
    (adapter, (index - first) as u32)
}

impl Stack {
    /// The adapter of a virtual token, and which of its own it is.
    pub fn virtual_token(&self, index: u32) -> (&Stacked, u32) {
        find(self, |prepared| prepared.virtual_tokens, index)
    }

    /// The adapter of a given position, and which of its own it is.
    pub fn given(&self, index: u32) -> (&Stacked, u32) {
        find(self, |prepared| prepared.given, index)
    }

    /// The sequence that starts with `prompt`: given positions, then virtual tokens, then the prompt with those that it places.
    ///
    /// # Errors
    /// A place whose adapter has no virtual tokens, or not as many; `limit` positions or more; no memory.
    pub fn sequence(&self, prompt: &[u32], places: &[Place], limit: usize) -> Result<Vec<u32>, Error> {
        let mut found = prompt.len();
        let mut run = |base: u32, first: usize, count: usize| {
            found = found.saturating_add(count);
            let end = first.saturating_add(count);
            if end >= MOST || found >= limit {
                return Err(Error::TooLong { context: limit, found: found.max(end) });
            }
            Ok(base + first as u32..base + end as u32)
        };
        let mut runs = Vec::new();
        let own: [(u32, Count); 2] = [(GIVEN, |p| p.given), (VIRTUAL, |p| p.virtual_tokens)];
        for (base, count) in own {
            for (first, count, stacked) in offsets(self, count) {
                if stacked.weight() != 0.0 {
                    runs.push((0, run(base, first, count)?));
                }
            }
        }
        for Place { at, adapter: name, first: wanted } in places {
            let mut all = offsets(self, |p| p.virtual_tokens);
            let own = all.find(|(_, _, stacked)| stacked.adapter().name() == name);
            let (first, have, ..) = own.ok_or_else(|| Error::NoAdapter { name: name.clone() })?;
            if have == 0 {
                return Err(Error::NoVirtualTokens { name: name.clone() });
            }
            let count = wanted.unwrap_or(have);
            if count > have {
                return Err(Error::VirtualTokens { name: name.clone(), have, found: count });
            }
            runs.push((*at, run(VIRTUAL, first, count)?));
        }
        if found >= limit {
            return Err(Error::TooLong { context: limit, found });
        }
        let mut sequence = reserved(found).map_err(Error::Memory)?;
        let mut done = 0;
        for (at, run) in runs {
            sequence.extend_from_slice(&prompt[done..at]);
            sequence.extend(run);
            done = at;
        }
        sequence.extend_from_slice(&prompt[done..]);
        Ok(sequence)
    }
}

impl Stacks {
    /// Refuses a sequence that these stacks could not have made, of which so many are the prompt; the vocabulary has `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn check(&self, sequence: &[u32], tokens: usize, prompt: usize) -> Result<(), Error> {
        let count = |at, of: Count| offsets(self.at(at), of).map(|(_, count, _)| count).sum::<usize>();
        let wrong = |expected, found| Err(Error::State { what: "tokens", expected, found });
        let first = Entry::given(sequence);
        let given = count(first, |p| p.given);
        for (at, &number) in sequence.iter().enumerate() {
            let fits = match Entry::of(number) {
                Entry::Token(token) => (token as usize) < tokens,
                Entry::Virtual(index) => at < prompt && (index as usize) < count(at, |p| p.virtual_tokens),
                Entry::Given(index) => at < first && index as usize == at && at < given,
            };
            if !fits {
                return wrong("a position that its adapters give".to_owned(), format!("{number} at {at}"));
            }
        }
        // There must be logits of the last of the prompt.
        match first < prompt && (first == given || first == 0) {
            true => Ok(()),
            false => wrong(format!("{given} given positions before a prompt"), first.to_string()),
        }
    }
}
