//! Memory for packed weights: large, aligned chunks that the system is asked to back by huge pages, cut into regions.
//!
//! A matrix of some hundred kilobytes in memory of its own lies in pages of 4 KiB. Each is looked up anew, by a walk through tables that lie in
//! memory too, and processors do not read ahead beyond it; an adapter's matrices, a few pages each, mostly wait for that.

use std::alloc::{Layout, alloc, dealloc};
use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::tensor::{Error, Owner};

/// A huge page.
const HUGE: usize = 2 << 20;

/// The most that a chunk takes for several regions.
const MOST: usize = 64 << 20;

/// Where every region begins: at a multiple of this, a cache line.
const ALIGN: usize = 64;

/// Gives out regions. What is dropped is given out again; a chunk without regions goes back to the system.
#[derive(Default)]
pub struct Arena(Mutex<Vec<Weak<Chunk>>>);

impl Arena {
    /// Room for `len` bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn region(&self, len: usize) -> Result<Region, Error> {
        let size = len.checked_next_multiple_of(ALIGN).ok_or(Error::OutOfMemory { bytes: len })?.max(ALIGN);
        let mut chunks = lock(&self.0);
        chunks.retain(|chunk| chunk.strong_count() > 0);
        for chunk in chunks.iter().filter_map(Weak::upgrade) {
            if let Some(start) = chunk.take(size) {
                return Ok(Region { chunk, start, size, len: 0 });
            }
        }
        // Each as large as all before it together, so there are few.
        let before = chunks.iter().filter_map(Weak::upgrade).map(|chunk| chunk.layout.size()).sum::<usize>();
        let chunk = Arc::new(Chunk::new(size.max(before.min(MOST)))?);
        chunks.push(Arc::downgrade(&chunk));
        let start = chunk.take(size).ok_or(Error::OutOfMemory { bytes: len })?;
        Ok(Region { chunk, start, size, len: 0 })
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena of {} chunks", lock(&self.0).len())
    }
}

/// What a lock guards here is right whatever panicked meanwhile.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whole huge pages.
struct Chunk {
    memory: NonNull<u8>,
    layout: Layout,
    /// Start and size of what is free, by start; no two touch each other.
    free: Mutex<Vec<(usize, usize)>>,
}

// SAFETY: the memory is only used through regions, each of which has a part of its own.
unsafe impl Send for Chunk {}
// SAFETY: likewise.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// At least `size` bytes, all free.
    fn new(size: usize) -> Result<Self, Error> {
        let refused = Error::OutOfMemory { bytes: size };
        let Some(size) = size.checked_next_multiple_of(HUGE) else { return Err(refused) };
        let Ok(layout) = Layout::from_size_align(size.max(HUGE), HUGE) else { return Err(refused) };
        // SAFETY: the layout has a size.
        let memory = NonNull::new(unsafe { alloc(layout) }).ok_or(refused)?;
        #[cfg(target_os = "linux")]
        // SAFETY: the pages belong to this chunk alone, and how they are backed changes nothing that the program could see. Where
        // the system does not do it, they stay small.
        unsafe {
            libc::madvise(memory.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE);
        }
        Ok(Self { memory, layout, free: Mutex::new(vec![(0, layout.size())]) })
    }

    /// Takes `size` bytes out of the first free part that has them; gives where they start.
    fn take(&self, size: usize) -> Option<usize> {
        let mut free = lock(&self.free);
        let at = free.iter().position(|&(_, room)| room >= size)?;
        let (start, room) = free[at];
        if room == size {
            free.remove(at);
        } else {
            free[at] = (start + size, room - size);
        }
        Some(start)
    }

    /// Frees what was taken.
    fn give(&self, start: usize, size: usize) {
        let mut free = lock(&self.free);
        let at = free.partition_point(|&(other, _)| other < start);
        free.insert(at, (start, size));
        if at + 1 < free.len() && start + size == free[at + 1].0 {
            free[at].1 += free.remove(at + 1).1;
        }
        if at > 0 && free[at - 1].0 + free[at - 1].1 == start {
            free[at - 1].1 += free.remove(at).1;
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and no region is left.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

/// A part of a chunk, filled from its start on.
pub struct Region {
    chunk: Arc<Chunk>,
    start: usize,
    size: usize,
    /// Bytes that are filled.
    len: usize,
}

impl Region {
    /// The region as it stays.
    pub fn fill(self) -> Filled {
        // SAFETY: the region lies in the chunk.
        let start = unsafe { self.chunk.memory.add(self.start) };
        Filled { start, len: self.len, region: Arc::new(self) }
    }

    /// Appends `bytes`, for which there must be room.
    pub fn push(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.size - self.len, "a region of {} bytes is full", self.size);
        // SAFETY: the bytes after the filled ones belong to this region alone, and there are enough.
        unsafe {
            let end = self.chunk.memory.add(self.start + self.len);
            end.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
        }
        self.len += bytes.len();
    }
}

/// A region that is not written any more. Cloning copies no bytes.
// Knows where its bytes are by itself: what is behind a pointer is far away by the time that a step comes back to it.
#[derive(Clone)]
pub struct Filled {
    start: NonNull<u8>,
    len: usize,
    /// Keeps the bytes.
    #[expect(dead_code)]
    region: Arc<Region>,
}

// SAFETY: the bytes are only read.
unsafe impl Send for Filled {}
// SAFETY: likewise.
unsafe impl Sync for Filled {}

impl Deref for Filled {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: these bytes were written, belong to the region alone, which lives as long as this, and are not written again.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Owner for Filled {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.chunk.give(self.start, self.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regions of many sizes, some dropped again: each keeps its bytes and starts at a line, and no two overlap.
    #[test]
    fn regions_keep_their_bytes() {
        let arena = Arena::default();
        let mut regions: Vec<(u8, Filled)> = Vec::new();
        let mut random = 1u32;
        for i in 0..2000u32 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let choice = (random >> 8) as usize;
            if choice % 4 == 0 && !regions.is_empty() {
                regions.swap_remove(choice / 4 % regions.len());
            }
            let len = [0, 1, 63, 64, 65, 4096, 70_000][choice / 4 % 7] + i as usize % 5;
            let mut region = arena.region(len).expect("memory");
            let byte = (i % 251) as u8;
            region.push(&vec![byte; len / 2]);
            region.push(&vec![byte; len - len / 2]);
            let region = region.fill();
            assert_eq!((region.as_ptr() as usize % ALIGN, region.len()), (0, len));
            regions.push((byte, region));
        }
        assert!(regions.iter().all(|(byte, region)| region.iter().all(|b| b == byte)));
        let mut places: Vec<_> = regions.iter().map(|(_, r)| (r.as_ptr() as usize, r.len())).collect();
        places.sort_unstable();
        assert!(places.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "regions overlap");
    }

    /// What is dropped is joined with its neighbours and given out again, and in the end nothing is kept.
    #[test]
    fn memory_comes_back() {
        let arena = Arena::default();
        let part = HUGE / 4;
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
            let mut parts: Vec<_> = (0..4).map(|_| Some(arena.region(part).expect("memory"))).collect();
            let chunks: Vec<_> = parts.iter().flatten().map(|part| part.chunk.memory).collect();
            assert!(chunks.iter().all(|&chunk| chunk == chunks[0]), "four parts fill a chunk");
            let keep = arena.region(1).expect("memory");
            assert_ne!(keep.chunk.memory, chunks[0], "the chunk is full");
            for i in order {
                parts[i] = None;
            }
            assert_eq!(lock(&arena.0).iter().filter(|chunk| chunk.strong_count() > 0).count(), 1);
        }
        let first = arena.region(part).expect("memory");
        drop((arena.region(part).expect("memory"), arena.region(2 * part).expect("memory")));
        assert_eq!(*lock(&first.chunk.free), [(part, 3 * part)], "what is free is one part");
        drop(first);
        assert!(lock(&arena.0).iter().all(|chunk| chunk.strong_count() == 0));
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        for len in [usize::MAX, usize::MAX / 2, 1 << 60] {
            assert!(matches!(Arena::default().region(len), Err(Error::OutOfMemory { .. })), "{len}");
        }
    }
}
