//! Who owns which page of the KV cache.
//!
//! A page holds [`PAGE`] consecutive positions of every layer. Pages are counted, so sequences that start
//! alike can share them; a sequence that writes into a shared page gets its own copy first. A sequence
//! reserves all the pages it can ever need before it starts, so a running one never waits for another.

use std::ops::Range;

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
    reserved: usize,
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
    reserved: usize,
    limit: usize,
}

impl Pool {
    /// At most `limit` pages.
    pub fn new(limit: usize) -> Self {
        Self { references: Vec::new(), free: Vec::new(), reserved: 0, limit }
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

    /// Pages that some sequence holds.
    pub fn used(&self) -> usize {
        self.references.len() - self.free.len()
    }

    /// Pages promised to open chains, whether they hold them yet or not.
    #[cfg(test)]
    pub fn reserved(&self) -> usize {
        self.reserved
    }

    /// Pages that are not promised to anyone.
    pub fn room(&self) -> usize {
        self.limit - self.reserved
    }

    /// A chain that may grow to `pages` pages and starts with `shared`, which others have too. `None` while
    /// that many are not to be had.
    pub fn open(&mut self, shared: &[u32], pages: usize) -> Option<Chain> {
        let reserved = pages.max(shared.len());
        if reserved > self.room() {
            return None;
        }
        self.reserved += reserved;
        for &page in shared {
            self.references[page as usize] += 1;
        }
        Some(Chain { pages: shared.to_vec(), reserved })
    }

    /// Makes `positions` writable for `chain`: gives it the pages that it lacks, and its own in place of
    /// shared ones. Pages whose content must be copied first are added to `copies` as `(from, to)`.
    ///
    /// Panics if that is more than the chain reserved.
    pub fn cover(&mut self, chain: &mut Chain, positions: Range<usize>, copies: &mut Vec<(u32, u32)>) {
        let last = pages_for(positions.end);
        assert!(last <= chain.reserved, "{last} pages, but {} are reserved", chain.reserved);
        for index in positions.start / PAGE..last {
            if index >= chain.pages.len() {
                let page = self.take();
                chain.pages.push(page);
            } else if self.references[chain.pages[index] as usize] > 1 {
                let from = std::mem::replace(&mut chain.pages[index], self.take());
                self.references[from as usize] -= 1;
                copies.push((from, chain.pages[index]));
            }
        }
    }

    /// Keeps a page of a chain that will not grow any more beyond its end, until [`Pool::release`]. The
    /// chain's reservation of the page goes with it.
    pub fn keep(&mut self, chain: &mut Chain, index: usize) -> u32 {
        let page = chain.pages[index];
        chain.reserved -= 1;
        self.references[page as usize] += 1;
        page
    }

    /// Gives up a page that was kept.
    pub fn release(&mut self, page: u32) {
        self.reserved -= 1;
        self.drop_reference(page);
    }

    /// How many chains hold a page, and whether it is kept.
    pub fn references(&self, page: u32) -> u32 {
        self.references[page as usize]
    }

    /// Takes a chain's pages back.
    pub fn close(&mut self, chain: Chain) {
        self.reserved -= chain.reserved;
        for page in chain.pages {
            self.drop_reference(page);
        }
    }

    fn drop_reference(&mut self, page: u32) {
        let references = &mut self.references[page as usize];
        *references -= 1;
        if *references == 0 {
            self.free.push(page);
        }
    }

    /// A free page, now with one reference. Reservations see to it that there is one.
    fn take(&mut self) -> u32 {
        match self.free.pop() {
            Some(page) => {
                self.references[page as usize] = 1;
                page
            }
            None => {
                assert!(self.references.len() < self.limit, "more pages in use than reserved");
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

    /// Random openings, shared beginnings, writes and closings: every sequence reads back exactly what it wrote (or what its
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
                        let positions = next(&mut state, live[parent].1.len() + 1);
                        let pages = pages_for(positions) + next(&mut state, 3);
                        let shared = live[parent].0.pages()[..pages_for(positions)].to_vec();
                        if let Some(chain) = pool.open(&shared, pages) {
                            let written = live[parent].1[..positions].to_vec();
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
                        let mut copies = Vec::new();
                        pool.cover(chain, written.len()..end, &mut copies);
                        cache.0.resize(pool.extent(), [0; PAGE]);
                        for (from, to) in copies {
                            cache.0[to as usize] = cache.0[from as usize];
                        }
                        while written.len() < end {
                            stamp += 1;
                            cache.write(&pool, chain, written.len(), stamp);
                            written.push(stamp);
                        }
                    }
                    _ => {}
                }
                assert!(pool.used() <= pool.reserved() && pool.reserved() <= pool.limit());
                for (chain, written, _) in &live {
                    for (position, &value) in written.iter().enumerate() {
                        assert_eq!(cache.read(chain, position), value, "seed {seed}, position {position}");
                    }
                }
            }
            for (chain, ..) in live {
                pool.close(chain);
            }
            assert_eq!((pool.used(), pool.reserved()), (0, 0), "seed {seed}");
        }
    }

    #[test]
    fn a_reservation_that_does_not_fit_waits() {
        let mut pool = Pool::new(4);
        let first = pool.open(&[], 3).unwrap();
        assert!(pool.open(&[], 2).is_none());
        let second = pool.open(&[], 1).unwrap();
        pool.close(first);
        let third = pool.open(&[], 3).unwrap();
        pool.close(third);
        pool.close(second);
        assert_eq!(pool.reserved(), 0);
    }
}
