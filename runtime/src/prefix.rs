//! Pages of the KV cache that outlive their request, for the next that starts alike.
//!
//! Keys and values depend on every token before them and on the adapters, so a page may stand in only for
//! one with the same tokens, the same page before it and the same stack at every position: all three are its key, compared
//! whole and never by a hash alone. (Where an adapter starts at its invocation sequence, the pages before are the base's; one
//! whose virtual tokens a prompt places changes nothing before them.) What was computed is equal to the bit whoever computes it, so a request
//! cannot tell by its answer that it was spared the work.

use std::collections::HashMap;

use graftwork_kernels::backend::PAGE;

use crate::kv::{Chain, Pool};
use crate::sequence::Entry;
use crate::stack::{StackKey, Stacks};

/// What a page holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// The kept page before it; none where the sequence starts.
    before: Option<u32>,
    /// Where in the page another stack takes over from the one before, and its key: at the start of a sequence from the base.
    changes: Vec<(usize, StackKey)>,
    numbers: [u32; PAGE],
    /// The key of the stack, where it says what some of the numbers are; else empty.
    stack: StackKey,
}

impl Key {
    fn new(before: Option<u32>, stacks: &Stacks, index: usize, numbers: [u32; PAGE]) -> Self {
        let positions = index * PAGE..(index + 1) * PAGE;
        let mut stack = Vec::new();
        if !numbers.iter().all(|&number| Entry::is_token(number)) {
            // Adapters that start later put nothing anywhere.
            stack.extend(stacks.at(positions.start).key());
        }
        Self { before, changes: stacks.changes(positions), numbers, stack }
    }
}

/// A page that is kept.
struct Kept {
    key: Key,
    /// Kept pages that follow it.
    followers: usize,
    /// When it was last of use.
    used: u64,
}

/// The pages that are kept.
#[derive(Default)]
pub struct Prefixes {
    next: HashMap<Key, u32>,
    pages: HashMap<u32, Kept>,
    clock: u64,
}

impl Prefixes {
    /// The kept pages that hold the longest beginning of `tokens` under `stacks`; at least one token is
    /// left over, for there must be logits.
    pub fn find(&mut self, stacks: &Stacks, tokens: &[u32]) -> Vec<u32> {
        self.clock += 1;
        let mut found = Vec::new();
        let mut before = None;
        let whole = &tokens[..tokens.len().saturating_sub(1)];
        for (index, &chunk) in whole.as_chunks::<PAGE>().0.iter().enumerate() {
            let Some(&page) = self.next.get(&Key::new(before, stacks, index, chunk)) else { break };
            if let Some(kept) = self.pages.get_mut(&page) {
                kept.used = self.clock;
            }
            found.push(page);
            before = Some(page);
        }
        found
    }

    /// Keeps the full pages of a sequence that ends, `tokens` being those whose keys and values it holds.
    pub fn keep(&mut self, stacks: &Stacks, tokens: &[u32], chain: &Chain, pool: &mut Pool) {
        self.clock += 1;
        let mut before = None;
        for (index, &chunk) in tokens.as_chunks::<PAGE>().0.iter().enumerate() {
            let key = Key::new(before, stacks, index, chunk);
            let page = match self.next.get(&key) {
                Some(&page) => page,
                None => {
                    let page = pool.keep(chain, index);
                    if let Some(before) = before
                        && let Some(kept) = self.pages.get_mut(&before)
                    {
                        kept.followers += 1;
                    }
                    self.next.insert(key.clone(), page);
                    self.pages.insert(page, Kept { key, followers: 0, used: self.clock });
                    page
                }
            };
            if let Some(kept) = self.pages.get_mut(&page) {
                kept.used = self.clock;
            }
            before = Some(page);
        }
    }

    /// Makes room for `pages` pages by letting go of those that no sequence uses, first what was of no use for the
    /// longest time, without the `spared`. Nothing is lost in vain: if that is not enough, all stay.
    pub fn make_room(&mut self, pages: usize, spared: &[u32], pool: &mut Pool) {
        if pool.room() >= pages {
            return;
        }
        let spared = spared.iter().filter(|&&page| pool.references(page) == 1).count();
        if pool.room() + self.idle(pool) - spared >= pages {
            while pool.room() < pages && self.drop_one(pool) {}
        }
    }

    /// Lets go of the page that was of no use for the longest time; `false` if sequences use all.
    fn drop_one(&mut self, pool: &mut Pool) -> bool {
        let idle = |(page, kept): &(&u32, &Kept)| kept.followers == 0 && pool.references(**page) == 1;
        let Some((&page, _)) = self.pages.iter().filter(idle).min_by_key(|(_, kept)| kept.used) else {
            return false;
        };
        if let Some(kept) = self.pages.remove(&page) {
            if let Some(before) = kept.key.before
                && let Some(before) = self.pages.get_mut(&before)
            {
                before.followers -= 1;
            }
            self.next.remove(&kept.key);
        }
        pool.release(page);
        true
    }

    /// Kept pages that no sequence uses.
    pub fn idle(&self, pool: &Pool) -> usize {
        self.pages.keys().filter(|&&page| pool.references(page) == 1).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::pages_for;

    /// Runs a sequence to its end; gives how many positions it did not have to compute.
    fn run(prefixes: &mut Prefixes, pool: &mut Pool, tokens: &[u32]) -> usize {
        let (stacks, _) = crate::stack::Stack::default().over(tokens);
        let shared = prefixes.find(&stacks, tokens);
        let pages = pages_for(tokens.len());
        prefixes.make_room(pages - shared.len(), &shared, pool);
        let mut chain = pool.open(&shared, pages).expect("room");
        let reused = chain.pages().len() * PAGE;
        pool.cover(&mut chain, tokens.len());
        prefixes.keep(&stacks, tokens, &chain, pool);
        pool.close(chain);
        reused
    }

    fn tokens(first: u32, length: usize) -> Vec<u32> {
        (0..length as u32).map(|i| if i == 0 { first } else { i }).collect()
    }

    #[test]
    fn only_equal_beginnings_are_reused() {
        let (mut prefixes, mut pool) = (Prefixes::default(), Pool::new(100));
        assert_eq!(run(&mut prefixes, &mut pool, &tokens(7, 100)), 0);
        assert_eq!(run(&mut prefixes, &mut pool, &tokens(7, 100)), 96);
        // One token must be left, even if all are kept.
        assert_eq!(run(&mut prefixes, &mut pool, &tokens(7, 96)), 64);
        assert_eq!(run(&mut prefixes, &mut pool, &tokens(7, 97)), 96);
        // The second page has the same tokens, but another page before it.
        assert_eq!(run(&mut prefixes, &mut pool, &tokens(8, 100)), 0);
        assert_eq!(pool.used(), prefixes.idle(&pool));
    }

    #[test]
    fn the_oldest_make_room_and_nothing_leaks() {
        let (mut prefixes, mut pool) = (Prefixes::default(), Pool::new(8));
        for round in 0..50u32 {
            run(&mut prefixes, &mut pool, &tokens(round % 7, 70 + (round as usize * 13) % 120));
            assert!(pool.used() <= pool.limit() && pool.room() == pool.limit() - pool.used());
        }
        run(&mut prefixes, &mut pool, &tokens(1000, 100));
        assert_eq!(run(&mut prefixes, &mut pool, &tokens(1000, 100)), 96);
        while prefixes.drop_one(&mut pool) {}
        assert_eq!((pool.used(), pool.room()), (0, 8));
        assert!(prefixes.next.is_empty());
    }
}
