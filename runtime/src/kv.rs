//! Who owns which page of the KV cache.
//!
//! A page holds [`PAGE`] consecutive positions of every layer. References to pages are counted, so sequences that
//! start alike share those that are full, which nobody writes any more. A sequence is promised all the pages it can
//! ever need before it starts, so a running one never waits for another.

use graftwork_kernels::backend::PAGE;

/// Pages that `positions` positions take.
pub fn pages_for(positions: usize) -> usize {
    positions.div_ceil(PAGE)
}

/// The pages of one sequence: position `p` lies in page `p / PAGE` of them. Give it back to
/// [`Pool::close`]; a chain that is dropped instead keeps its pages from everyone.
#[derive(Debug)]
#[must_use = "a chain that is not closed keeps its pages"]
pub struct Chain {
    pages: Vec<u32>,
    /// Pages that it may still take.
    promised: usize,
}

impl Chain {
    /// The pages, in order of position.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }
}

/// The pages of one cache: how many references each has, and which are free.
#[derive(Debug)]
pub struct Pool {
    /// References of every page that was ever used; 0 means free.
    references: Vec<u32>,
    free: Vec<u32>,
    /// Pages that open chains may still take. With those in use, never more than the limit.
    promised: usize,
    limit: usize,
}

impl Pool {
    /// At most `limit` pages.
    pub fn new(limit: usize) -> Self {
        Self { references: Vec::new(), free: Vec::new(), promised: 0, limit }
    }

    /// Most pages that there can be.
    #[cfg(test)]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Pages the cache must have: one more than the highest that was ever given out.
    pub fn extent(&self) -> usize {
        self.references.len()
    }

    /// Pages that some sequence holds, or that are kept.
    pub fn used(&self) -> usize {
        self.references.len() - self.free.len()
    }

    /// Pages that are neither in use nor promised.
    pub fn room(&self) -> usize {
        self.limit - self.used() - self.promised
    }

    /// A chain that may grow to `pages` pages and starts with `shared`, full pages that others have too. `None` while
    /// there is not room for all that it may take.
    pub fn open(&mut self, shared: &[u32], pages: usize) -> Option<Chain> {
        let promised = pages.saturating_sub(shared.len());
        if promised > self.room() {
            return None;
        }
        self.promised += promised;
        for &page in shared {
            self.references[page as usize] += 1;
        }
        Some(Chain { pages: shared.to_vec(), promised })
    }

    /// Gives `chain` the pages that it lacks for `positions` positions.
    ///
    /// Panics if that is more than it was promised.
    pub fn cover(&mut self, chain: &mut Chain, positions: usize) {
        while chain.pages.len() < pages_for(positions) {
            assert!(chain.promised > 0, "a page more than was promised");
            chain.promised -= 1;
            self.promised -= 1;
            chain.pages.push(self.take());
        }
    }

    /// Keeps a page of a chain until [`Pool::release`].
    pub fn keep(&mut self, chain: &Chain, index: usize) -> u32 {
        let page = chain.pages[index];
        self.references[page as usize] += 1;
        page
    }

    /// Gives up a page that was kept.
    pub fn release(&mut self, page: u32) {
        let references = &mut self.references[page as usize];
        *references -= 1;
        if *references == 0 {
            self.free.push(page);
        }
    }

    /// How many chains hold a page, and whether it is kept.
    pub fn references(&self, page: u32) -> u32 {
        self.references[page as usize]
    }

    /// Takes a chain's pages back.
    pub fn close(&mut self, chain: Chain) {
        self.promised -= chain.promised;
        chain.pages.into_iter().for_each(|page| self.release(page));
    }

    /// A free page, now with one reference. Promises see to it that there is one.
    fn take(&mut self) -> u32 {
        match self.free.pop() {
            Some(page) => {
                self.references[page as usize] = 1;
                page
            }
            None => {
                self.references.push(1);
                (self.references.len() - 1) as u32
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model of the cache: what each page holds, one value per position.
    struct Cache(Vec<[u64; PAGE]>);

    impl Cache {
        fn write(&mut self, pool: &Pool, chain: &Chain, position: usize, value: u64) {
            self.0.resize(pool.extent(), [0; PAGE]);
            self.0[chain.pages()[position / PAGE] as usize][position % PAGE] = value;
        }

        fn read(&self, chain: &Chain, position: usize) -> u64 {
            self.0[chain.pages()[position / PAGE] as usize][position % PAGE]
        }
    }

    /// xorshift64*: a deterministic stream of numbers below `bound`.
    fn next(state: &mut u64, bound: usize) -> usize {
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    /// Random openings, shared beginnings, writes and closings: every sequence reads back what it wrote (or what its
    /// parent had written before they parted), never more pages than the limit, and none left at the end.
    #[test]
    fn sequences_never_see_each_other_and_nothing_leaks() {
        for seed in 1..=40u64 {
            let mut state = seed * 0x9e37_79b9;
            let mut pool = Pool::new(24);
            let mut cache = Cache(Vec::new());
            let mut live: Vec<(Chain, Vec<u64>, usize)> = Vec::new();
            let mut stamp = 0;
            for _ in 0..600 {
                match next(&mut state, 5) {
                    0 => {
                        let pages = 1 + next(&mut state, 6);
                        if let Some(chain) = pool.open(&[], pages) {
                            live.push((chain, Vec::new(), pages));
                        }
                    }
                    1 if !live.is_empty() => {
                        let parent = next(&mut state, live.len());
                        let full = next(&mut state, live[parent].1.len() / PAGE + 1);
                        let pages = full + next(&mut state, 3);
                        let shared = live[parent].0.pages()[..full].to_vec();
                        if let Some(chain) = pool.open(&shared, pages) {
                            let written = live[parent].1[..full * PAGE].to_vec();
                            live.push((chain, written, pages));
                        }
                    }
                    2 if !live.is_empty() => {
                        let (chain, ..) = live.swap_remove(next(&mut state, live.len()));
                        pool.close(chain);
                    }
                    _ if !live.is_empty() => {
                        let index = next(&mut state, live.len());
                        let (chain, written, pages) = &mut live[index];
                        let end = (written.len() + 1 + next(&mut state, 2 * PAGE)).min(*pages * PAGE);
                        pool.cover(chain, end);
                        while written.len() < end {
                            stamp += 1;
                            cache.write(&pool, chain, written.len(), stamp);
                            written.push(stamp);
                        }
                    }
                    _ => {}
                }
                assert!(pool.used() + pool.promised <= pool.limit());
                for (chain, written, _) in &live {
                    for (position, &value) in written.iter().enumerate() {
                        assert_eq!(cache.read(chain, position), value, "seed {seed}, position {position}");
                    }
                }
            }
            for (chain, ..) in live {
                pool.close(chain);
            }
            assert_eq!((pool.used(), pool.promised), (0, 0), "seed {seed}");
        }
    }

    #[test]
    fn a_promise_that_does_not_fit_waits() {
        let mut pool = Pool::new(4);
        let first = pool.open(&[], 3).unwrap();
        assert!(pool.open(&[], 2).is_none());
        let second = pool.open(&[], 1).unwrap();
        pool.close(first);
        let third = pool.open(&[], 3).unwrap();
        pool.close(third);
        pool.close(second);
        assert_eq!(pool.promised, 0);
    }
}
