//! Which sequences run, and what each puts into the next step.
//!
//! First come, first served. A sequence starts once its adapters are in memory and the KV cache has promised it room for its longest
//! possible answer, so what runs always ends. Every step takes one row of each sequence that is writing its
//! answer, and fills up with rows of prompts, oldest first: reading a long prompt never makes others wait
//! for more than a step.

use std::collections::VecDeque;

use graftwork_kernels::backend::PAGE;
use graftwork_kernels::tensor;

use crate::batch::{Outputs, Piece};
use crate::kv::{Chain, Pool, pages_for};
use crate::prefix::Prefixes;
use crate::registry::Reach;
use crate::request::RequestId;
use crate::sequence::Entry;
use crate::session::Session;
use crate::{Error, ErrorKind};

/// Gets the adapters of a request into memory and holds them there; `false` if there is no room yet.
pub type Hold<'a> = dyn Fn(&Session, Reach) -> Result<bool, Error> + 'a;

/// The limits of a schedule.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most sequences that run at once.
    pub batch: usize,
    /// Most prompt rows of a step.
    pub chunk: usize,
    /// Keep pages of requests that ended for those that start alike.
    pub keep_prefixes: bool,
}

/// The sequences that wait and that run.
pub struct Schedule {
    limits: Limits,
    pool: Pool,
    waiting: VecDeque<Session>,
    /// In order of admission.
    running: Vec<Session>,
    /// Rows that did not have to be computed.
    reused: u64,
    /// Pages of requests that ended, where they are kept.
    prefixes: Option<Prefixes>,
}

/// What one running sequence puts into the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which of the running.
    pub session: usize,
    /// How many of its pending tokens, given positions included.
    pub rows: usize,
}

/// The rows of one step.
#[derive(Debug, Default)]
pub struct Plan {
    /// The parts, those with equal stacks beside each other.
    pub parts: Vec<Part>,
}

impl Schedule {
    /// Nothing to do yet, in a cache of at most `pages` pages.
    pub fn new(limits: Limits, pages: usize) -> Self {
        Self {
            limits,
            pool: Pool::new(pages),
            waiting: VecDeque::new(),
            running: Vec::new(),
            reused: 0,
            prefixes: limits.keep_prefixes.then(Prefixes::default),
        }
    }

    /// Pages of the cache that there are, and those of them that sequences hold.
    pub fn pages(&self) -> (usize, usize) {
        let idle = self.prefixes.as_ref().map_or(0, |prefixes| prefixes.idle(&self.pool));
        (self.pool.extent(), self.pool.used() - idle)
    }

    /// Rows of prompts that did not have to be computed, so far.
    pub fn reused(&self) -> u64 {
        self.reused
    }

    /// Adds a sequence behind the others.
    pub fn push(&mut self, session: Session) {
        self.waiting.push_back(session);
    }

    /// Takes out the sequences that were cancelled.
    pub fn take_cancelled(&mut self) -> Vec<Session> {
        let (mut gone, waiting): (Vec<_>, Vec<_>) = self.waiting.drain(..).partition(Session::is_cancelled);
        self.waiting = waiting.into();
        let mut index = 0;
        while index < self.running.len() {
            match self.running[index].is_cancelled() {
                true => gone.push(self.remove(index)),
                false => index += 1,
            }
        }
        gone
    }

    /// Takes out a running sequence by its id, with its pages given back.
    pub fn take(&mut self, id: RequestId) -> Option<Session> {
        let index = self.running.iter().position(|session| session.id == id)?;
        Some(self.remove(index))
    }

    fn remove(&mut self, index: usize) -> Session {
        let mut session = self.running.remove(index);
        if let Some(chain) = session.chain.take() {
            if let Some(prefixes) = &mut self.prefixes
                && !session.is_told
            {
                let tokens = &session.tokens[..session.filled];
                prefixes.keep(&session.stacks, tokens, &chain, &mut self.pool);
            }
            self.pool.close(chain);
        }
        session
    }

    /// Plans a step; empty if there is nothing to run.
    pub fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        let mut room = self.limits.chunk;
        for (index, session) in self.running.iter().enumerate() {
            let rows = match session.pending().len() {
                1 => 1,
                pending => {
                    // Given positions are no rows, but need some after them for a step, which takes rows of one stack only.
                    let given = Entry::given(session.pending());
                    let rows = session.stacks.alike(session.filled + given, pending - given).min(room);
                    room -= rows;
                    if rows > 0 { given + rows } else { 0 }
                }
            };
            if rows > 0 {
                plan.parts.push(Part { session: index, rows });
            }
        }
        let running = &mut self.running;
        plan.parts.sort_by(|a, b| running[a.session].stack().cmp(running[b.session].stack()));
        for part in &plan.parts {
            let session = &mut running[part.session];
            if let Some(chain) = &mut session.chain {
                self.pool.cover(chain, session.filled + part.rows);
            }
        }
        plan
    }

    /// The request of this id, waiting or running.
    pub fn find(&self, id: RequestId) -> Option<&Session> {
        self.running.iter().chain(&self.waiting).find(|session| session.id == id)
    }

    /// Gives sequences that were saved what their pages held: `fill` writes one, once the cache has so many.
    pub fn resume<E>(&mut self, mut fill: impl FnMut(usize, u32, &[u8]) -> Result<(), E>) -> Result<(), E> {
        for session in &mut self.running {
            let (Some(saved), Some(chain)) = (&session.saved, &mut session.chain) else { continue };
            // Kept pages of other requests may hold as much.
            if saved.filled > session.filled {
                let shared = session.filled / PAGE;
                self.pool.cover(chain, saved.filled);
                let bytes = saved.bytes.chunks_exact(saved.bytes.len() / pages_for(saved.filled));
                for (&page, bytes) in chain.pages().iter().zip(bytes).skip(shared) {
                    fill(self.pool.extent(), page, bytes)?;
                }
                (session.filled, session.is_told) = (saved.filled, true);
            }
            session.saved = None;
        }
        Ok(())
    }

    /// Starts waiting sequences while there is room: for their adapters, which `hold` gets into memory if it can, and for their keys
    /// and values. Gives one whose adapters cannot be had, and why; then there may be more to start.
    ///
    /// # Errors
    /// Memory was refused; nothing is lost.
    pub fn admit(&mut self, hold: &Hold<'_>) -> Result<Option<(Session, Error)>, Error> {
        while self.running.len() < self.limits.batch
            && let Some(next) = self.waiting.front()
        {
            // With nothing else to run, nothing is worth more than going on.
            let reach = if self.running.is_empty() { Reach::Nameless } else { Reach::Awaited };
            match hold(next, reach) {
                Ok(true) => {}
                Ok(false) | Err(Error::Cancelled) => break,
                Err(error) if error.kind() == ErrorKind::OutOfMemory => return Err(error),
                Err(error) => return Ok(self.waiting.pop_front().map(|session| (session, error))),
            }
            let Some(chain) = open(&mut self.pool, self.prefixes.as_mut(), next) else { break };
            let Some(mut session) = self.waiting.pop_front() else { break };
            session.filled = chain.pages().len() * PAGE;
            self.reused += session.filled as u64;
            session.chain = Some(chain);
            self.running.push(session);
        }
        Ok(None)
    }

    /// Lets sequences that are full lose their oldest tokens. They start again behind those that wait, who would never come to their turn
    /// behind one without an end.
    pub fn shift(&mut self) {
        while let Some(index) = self.running.iter().position(Session::is_full) {
            let mut session = self.remove(index);
            session.shift();
            self.waiting.push_back(session);
        }
    }

    /// Makes room for one more token of every running sequence.
    ///
    /// # Errors
    /// [`tensor::Error::OutOfMemory`]; no sequence has changed.
    pub fn reserve_tokens(&mut self) -> Result<(), tensor::Error> {
        self.running.iter_mut().try_for_each(|session| {
            let bytes = size_of_val(&session.tokens[..]) + size_of::<u32>();
            session.tokens.try_reserve(1).map_err(|_| tensor::Error::OutOfMemory { bytes })
        })
    }

    /// Pages that the cache must have.
    pub fn extent(&self) -> usize {
        self.pool.extent()
    }

    /// The parts of a plan as pieces of a batch.
    pub fn pieces(&self, plan: &Plan) -> Vec<Piece<'_>> {
        let piece = |part: &Part| {
            let session = &self.running[part.session];
            let pending = session.pending();
            Piece {
                stack: session.stack(),
                tokens: &pending[..part.rows],
                position: session.filled,
                pages: session.chain.as_ref().map_or(&[], |chain| chain.pages()),
                prompt: session.prompt.saturating_sub(session.filled).min(part.rows),
                outputs: if part.rows == pending.len() { Outputs::Last } else { Outputs::None },
            }
        };
        plan.parts.iter().map(piece).collect()
    }

    /// Whether a step of this plan is still worth its while: not once half of its rows are cancelled.
    pub fn is_worth(&self, plan: &Plan) -> bool {
        let cancelled = |part: &&Part| self.running[part.session].is_cancelled();
        let gone: usize = plan.parts.iter().filter(cancelled).map(|part| part.rows).sum();
        let all: usize = plan.parts.iter().map(|part| part.rows).sum();
        gone * 2 < all || gone == 0
    }

    /// Notes that the rows of a plan are in the cache. Gives the sequences that now have logits, in the
    /// order of the batch's outputs.
    pub fn filled(&mut self, plan: &Plan) -> Vec<&mut Session> {
        let mut ready = Vec::new();
        for part in &plan.parts {
            let session = &mut self.running[part.session];
            session.filled += part.rows;
            if session.filled == session.tokens.len() {
                ready.push(part.session);
            }
        }
        let mut sessions: Vec<Option<&mut Session>> = self.running.iter_mut().map(Some).collect();
        ready.into_iter().filter_map(|index| sessions[index].take()).collect()
    }
}

/// A chain for `session` that starts with the pages that are kept of its beginning. Others that are kept
/// make room for it. `None` while there is not enough.
fn open(pool: &mut Pool, prefixes: Option<&mut Prefixes>, session: &Session) -> Option<Chain> {
    let pages = pages_for(session.most_tokens - 1);
    let mut shared = Vec::new();
    if let Some(prefixes) = prefixes {
        shared = prefixes.find(&session.stacks, &session.tokens);
        prefixes.make_room(pages - shared.len(), &shared, pool);
    }
    pool.open(&shared, pages)
}
