//! The thread team of one engine: a few threads that share the chunks of one operation after the other.
//!
//! Within a step the threads stay awake between operations; they sleep once nothing has come for some
//! microseconds. A chunk is claimed by whoever is free, so a thread that the system has put aside delays nobody.
//! Results never depend on who ran a chunk.

use std::any::Any;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::scratch::{Need, Scratch};
use crate::tensor::Error;

/// How long a thread spins for the next operation before it sleeps.
const SPIN: Duration = Duration::from_micros(20);

/// One operation: what to do with chunk `i`.
type Job<'a> = dyn Fn(usize, &mut Scratch) + Sync + 'a;

struct Shared {
    /// Number of chunks in the upper, next unclaimed chunk in the lower half.
    ticket: AtomicU64,
    /// The operation, as a pointer to a `&Job`; valid while a claimed chunk of it is not done.
    job: AtomicPtr<&'static Job<'static>>,
    /// Chunks done.
    done: AtomicUsize,
    /// Threads that sleep or are about to.
    asleep: AtomicUsize,
    quit: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Each thread's scratch, the caller's first. A thread holds its lock while it works, the caller also to reserve
    /// between operations: nobody ever waits for longer than another takes to let go.
    scratch: Box<[Mutex<Scratch>]>,
}

/// A scratch is unspecified memory, so a panic while it was locked has broken nothing.
fn lock(scratch: &Mutex<Scratch>) -> MutexGuard<'_, Scratch> {
    scratch.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Claims the next chunk of the operation in progress.
    fn claim(&self) -> Option<usize> {
        let mut ticket = self.ticket.load(Ordering::Acquire);
        while (ticket as u32) < (ticket >> 32) as u32 {
            match self.ticket.compare_exchange_weak(ticket, ticket + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some((ticket as u32) as usize),
                Err(now) => ticket = now,
            }
        }
        None
    }

    /// Claims and runs chunks until none is left, in the scratch of thread `thread`.
    fn work(&self, thread: usize) -> bool {
        let Some(mut chunk) = self.claim() else {
            return false;
        };
        let mut scratch = lock(&self.scratch[thread]);
        loop {
            // SAFETY: `run` waits until every claimed chunk is done before the job goes away, and this one
            // is claimed and not done. The pointer was published before the ticket that was claimed.
            let job = unsafe { *self.job.load(Ordering::Relaxed) };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(chunk, &mut scratch))) {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            self.done.fetch_add(1, Ordering::Release);
            match self.claim() {
                Some(next) => chunk = next,
                None => return true,
            }
        }
    }

    fn worker(&self, thread: usize) {
        let mut idle = Instant::now();
        loop {
            if self.work(thread) {
                idle = Instant::now();
            }
            if self.quit.load(Ordering::Acquire) {
                return;
            }
            for _ in 0..32 {
                std::hint::spin_loop();
            }
            if idle.elapsed() < SPIN {
                continue;
            }
            // Say that we sleep, then look once more: either we see the new ticket or its publisher sees us.
            self.asleep.fetch_add(1, Ordering::SeqCst);
            let ticket = self.ticket.load(Ordering::SeqCst);
            if (ticket as u32) >= (ticket >> 32) as u32 && !self.quit.load(Ordering::SeqCst) {
                thread::park();
            }
            self.asleep.fetch_sub(1, Ordering::SeqCst);
            idle = Instant::now();
        }
    }
}

/// A team of threads, the caller's among them.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Scratch that every thread has.
    reserved: Need,
}

impl Team {
    /// A team of `threads`, at least one: the caller's thread and `threads - 1` of its own.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            done: AtomicUsize::new(0),
            asleep: AtomicUsize::new(0),
            quit: AtomicBool::new(false),
            panic: Mutex::new(None),
            scratch: (0..threads.max(1)).map(|_| Mutex::default()).collect(),
        });
        let mut team = Self { shared, workers: Vec::new(), reserved: Need::default() };
        for i in 1..threads {
            let shared = team.shared.clone();
            let worker = thread::Builder::new()
                .name(format!("graftwork-{i}"))
                .stack_size(1 << 20)
                .spawn(move || shared.worker(i))?;
            team.workers.push(worker);
        }
        Ok(team)
    }

    /// Threads of the team.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Gives every thread as much scratch as `need` says; none of it shrinks.
    pub fn reserve(&mut self, need: Need) -> Result<(), Error> {
        let before = std::mem::take(&mut self.reserved);
        let all = before.or(need);
        if all != before {
            self.grow(need)?;
        }
        self.reserved = all;
        Ok(())
    }

    fn grow(&self, need: Need) -> Result<(), Error> {
        for scratch in &self.shared.scratch {
            let mut scratch = lock(scratch);
            scratch.lanes.reserve(need.lanes)?;
            scratch.work.reserve(need.work)?;
        }
        Ok(())
    }

    /// Bytes of scratch that the threads hold, all of them together.
    pub fn reserved_bytes(&self) -> usize {
        let held = |scratch: &Mutex<Scratch>| {
            let scratch = lock(scratch);
            scratch.lanes.bytes() + scratch.work.bytes()
        };
        self.shared.scratch.iter().map(held).sum()
    }

    /// Wakes the team's threads, so that the first operation of a step does not have to.
    pub fn wake(&self) {
        if self.shared.asleep.load(Ordering::SeqCst) > 0 {
            self.workers.iter().for_each(|w| w.thread().unpark());
        }
    }

    /// Runs `f(i)` for every `i < chunks`, each once, on any thread. A panic in `f` comes out here.
    pub fn run(&mut self, chunks: usize, f: impl Fn(usize, &mut Scratch) + Sync) {
        if self.workers.is_empty() || chunks <= 1 {
            let mut scratch = lock(&self.shared.scratch[0]);
            (0..chunks).for_each(|i| f(i, &mut scratch));
            return;
        }
        assert!(chunks <= u32::MAX as usize, "too many chunks");
        let job: &Job<'_> = &f;
        // SAFETY: only the lifetime changes. The pointer is used for claimed chunks alone, and this function
        // returns (or unwinds) only after all chunks are claimed and done.
        let job: &'static Job<'static> = unsafe { std::mem::transmute(job) };
        let shared = &*self.shared;
        shared.job.store((&raw const job).cast_mut(), Ordering::Relaxed);
        shared.done.store(0, Ordering::Relaxed);
        shared.ticket.store((chunks as u64) << 32, Ordering::SeqCst);
        self.wake();
        shared.work(0);
        let mut spins = 0u32;
        while shared.done.load(Ordering::Acquire) < chunks {
            spins += 1;
            if spins < 4096 { std::hint::spin_loop() } else { thread::yield_now() }
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Runs `f` for every tile of every grid, each once, on any thread.
    pub fn tiles<T: Send>(
        &mut self,
        grids: &mut [Grid<'_, T>],
        f: impl Fn(usize, Tile<'_, T>, &mut Scratch) + Sync,
    ) {
        let chunks = grids.iter().map(Grid::len).sum();
        let grids: &[Grid<'_, T>] = grids;
        self.run(chunks, |mut i, scratch| {
            let mut grid = 0;
            while i >= grids[grid].len() {
                i -= grids[grid].len();
                grid += 1;
            }
            // SAFETY: `run` gives each chunk once, so each tile of each grid is made once; the grids borrow
            // their matrices mutably, so these do not overlap.
            f(grid, unsafe { grids[grid].tile(i) }, scratch);
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its chunks, so there is nothing to hear from it.
            let _ = worker.join();
        }
    }
}

/// A matrix cut into tiles that do not overlap, for threads to write.
pub struct Grid<'a, T> {
    data: NonNull<T>,
    stride: usize,
    /// Row numbers at which tiles begin, and the number of rows.
    cuts: Vec<usize>,
    width: usize,
    of: PhantomData<&'a mut [T]>,
}

// SAFETY: a grid is a mutable borrow of its matrix that is only used through tiles, each made once.
unsafe impl<T: Send> Sync for Grid<'_, T> {}

impl<'a, T> Grid<'a, T> {
    /// Cuts `data`, rows of `stride` values, at the rows `cuts` (ascending; the last is the number of rows)
    /// and into columns of `width`, the last of which may be narrower.
    pub fn new(data: &'a mut [T], stride: usize, cuts: Vec<usize>, width: usize) -> Self {
        assert!(width > 0 && stride > 0, "empty tiles");
        assert!(
            cuts.is_sorted() && cuts.last().is_none_or(|&rows| rows * stride <= data.len()),
            "cuts beyond the matrix"
        );
        Self { data: NonNull::from(data).cast(), stride, cuts, width, of: PhantomData }
    }

    /// Cuts into tiles of `rows` whole rows.
    pub fn by_rows(data: &'a mut [T], stride: usize, rows: usize) -> Self {
        let all = data.len() / stride.max(1);
        let cuts = (0..all).step_by(rows.max(1)).chain([all]).collect();
        Self::new(data, stride.max(1), cuts, stride.max(1))
    }

    fn columns(&self) -> usize {
        self.stride.div_ceil(self.width)
    }

    fn len(&self) -> usize {
        self.cuts.len().saturating_sub(1) * self.columns()
    }

    /// # Safety
    /// No tile may be made twice while the first lives.
    unsafe fn tile(&self, i: usize) -> Tile<'_, T> {
        let (r, c) = (i / self.columns(), i % self.columns());
        let rows = self.cuts[r]..self.cuts[r + 1];
        let cols = c * self.width..self.stride.min((c + 1) * self.width);
        Tile { data: self.data, stride: self.stride, index: r, rows, cols, of: PhantomData }
    }
}

/// Some rows and columns of a matrix, for one thread to write.
pub struct Tile<'a, T> {
    data: NonNull<T>,
    stride: usize,
    /// Which of the grid's row ranges this is.
    pub index: usize,
    /// Rows of the matrix.
    pub rows: Range<usize>,
    /// Columns of the matrix.
    pub cols: Range<usize>,
    of: PhantomData<&'a mut [T]>,
}

impl<T> Tile<'_, T> {
    /// The tile's part of row `row` of the matrix.
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(self.rows.contains(&row), "row outside of the tile");
        // SAFETY: row and columns lie in the matrix that the grid borrows mutably, and no other tile has them.
        unsafe {
            let start = self.data.add(row * self.stride + self.cols.start);
            std::slice::from_raw_parts_mut(start.as_ptr(), self.cols.len())
        }
    }
}
