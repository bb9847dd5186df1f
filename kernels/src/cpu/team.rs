//! The thread team of one engine: a few threads that share the chunks of one operation after the other.
//!
//! Within a step the threads stay awake between operations; they sleep once nothing has come for some
//! microseconds. A chunk is claimed by whoever is free, so a thread that the system has put aside delays nobody.
//! Results never depend on who ran a chunk.
//!
//! The threads are the team's own, or lent by a host's [`Executor`] for a step at a time. Nobody waits for lent ones
//! to come: they claim chunks like the others once they are there, and those that come late find their step over.

use std::any::Any;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::executor::Executor;
use super::scratch::{Need, Scratch};
use crate::tensor::Error;

/// How long a thread spins for the next operation before it sleeps.
const SPIN: Duration = Duration::from_micros(20);

/// How long a thread that spins keeps its processor to itself: where there are more threads than processors, others have work.
const ALONE: Duration = Duration::from_micros(2);

/// How long a lent thread waits for the first operation while the step's tasks are still being given out. An executor
/// that waits for the end of a task never gets to the next one while this lasts.
const PATIENCE: Duration = Duration::from_millis(10);

/// One operation: what to do with chunk `i`.
type Job<'a> = dyn Fn(usize, &mut Scratch) + Sync + 'a;

struct Shared {
    /// Number of chunks in the upper, next unclaimed chunk in the lower half.
    ticket: AtomicU64,
    /// The operation, as a pointer to a `&Job`; valid while a claimed chunk of it is not done.
    job: AtomicPtr<&'static Job<'static>>,
    /// Chunks done.
    done: AtomicUsize,
    /// Threads that sleep or are about to: they wait for the bell.
    asleep: AtomicUsize,
    bell: (Mutex<()>, Condvar),
    quit: AtomicBool,
    /// For lent threads. Counts up by three with each step: its tasks are being given out; all are out; it is over.
    phase: AtomicU64,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Each thread's scratch, the caller's first. A thread holds its lock while it works, the caller also to reserve
    /// between operations: nobody ever waits for longer than another takes to let go.
    scratch: Box<[Mutex<Scratch>]>,
}

/// How long a thread stays with its team.
#[derive(Clone, Copy)]
enum Stay {
    /// As long as there is a team.
    Always,
    /// As long as the step whose tasks were given out in this phase.
    Step(u64),
}

/// What a lock guards here is right whatever panicked meanwhile: a scratch is unspecified memory.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new(threads: usize) -> Arc<Self> {
        Arc::new(Self {
            ticket: AtomicU64::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            done: AtomicUsize::new(0),
            asleep: AtomicUsize::new(0),
            bell: (Mutex::new(()), Condvar::new()),
            quit: AtomicBool::new(false),
            phase: AtomicU64::new(0),
            panic: Mutex::new(None),
            scratch: (0..threads.max(1)).map(|_| Mutex::default()).collect(),
        })
    }

    /// Whether a chunk is unclaimed.
    fn has_work(&self) -> bool {
        let ticket = self.ticket.load(Ordering::SeqCst);
        (ticket as u32) < (ticket >> 32) as u32
    }

    fn is_over(&self, stay: Stay) -> bool {
        match stay {
            Stay::Always => self.quit.load(Ordering::SeqCst),
            Stay::Step(phase) => self.phase.load(Ordering::SeqCst) >= phase + 2,
        }
    }

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

    /// Claims and runs chunks until none is left, in the scratch of thread `thread`; `false` if there was none.
    fn work(&self, thread: usize) -> bool {
        if !self.has_work() {
            return false;
        }
        let mut scratch = match self.scratch[thread].try_lock() {
            Ok(scratch) => scratch,
            Err(TryLockError::Poisoned(scratch)) => scratch.into_inner(),
            // A thread that was lent to an earlier step and has not noticed its end works in this one's place.
            Err(TryLockError::WouldBlock) => return false,
        };
        let Some(mut chunk) = self.claim() else {
            return false;
        };
        loop {
            // SAFETY: `run` waits until every claimed chunk is done before the job goes away, and this one
            // is claimed and not done. The pointer was published before the ticket that was claimed.
            let job = unsafe { *self.job.load(Ordering::Relaxed) };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(chunk, &mut scratch))) {
                *lock(&self.panic) = Some(panic);
            }
            self.done.fetch_add(1, Ordering::Release);
            match self.claim() {
                Some(next) => chunk = next,
                None => return true,
            }
        }
    }

    /// Works as thread `thread` until its stay is over.
    fn worker(&self, thread: usize, stay: Stay) {
        let mut idle = Instant::now();
        while !self.is_over(stay) {
            if self.work(thread) {
                idle = Instant::now();
            }
            for _ in 0..32 {
                std::hint::spin_loop();
            }
            let waited = idle.elapsed();
            if waited >= ALONE {
                thread::yield_now();
            }
            if waited < SPIN {
                continue;
            }
            if !self.sleep(stay) {
                return;
            }
            idle = Instant::now();
        }
    }

    /// Sleeps until something happens; `false` if that was too much to wait for.
    fn sleep(&self, stay: Stay) -> bool {
        let (mutex, bell) = &self.bell;
        let guard = lock(mutex);
        let mut patient = true;
        // Say that we sleep, then look once more: either we see what came or who brought it sees us.
        self.asleep.fetch_add(1, Ordering::SeqCst);
        if !self.has_work() && !self.is_over(stay) {
            let given_out = |phase| self.phase.load(Ordering::SeqCst) > phase;
            match stay {
                Stay::Step(phase) if !given_out(phase) => {
                    let (guard, waited) =
                        bell.wait_timeout(guard, PATIENCE).unwrap_or_else(PoisonError::into_inner);
                    drop(guard);
                    patient = !waited.timed_out() || given_out(phase);
                }
                _ => drop(bell.wait(guard)),
            }
        }
        self.asleep.fetch_sub(1, Ordering::SeqCst);
        patient
    }

    /// Wakes whoever sleeps.
    fn wake(&self) {
        if self.asleep.load(Ordering::SeqCst) > 0 {
            // Whoever is about to sleep holds this until it hears the bell.
            drop(lock(&self.bell.0));
            self.bell.1.notify_all();
        }
    }
}

/// A team of threads, the caller's among them.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    executor: Option<Executor>,
    /// Scratch that every thread has.
    reserved: Need,
}

/// A step in progress: lent threads stay until this goes.
#[must_use = "the step is over when this goes"]
pub struct Step(Option<(Arc<Shared>, u64)>);

impl Drop for Step {
    fn drop(&mut self) {
        if let Some((shared, phase)) = &self.0 {
            shared.phase.store(phase + 2, Ordering::SeqCst);
            shared.wake();
        }
    }
}

impl Team {
    /// A team of `threads`, at least one: the caller's thread and `threads - 1` of its own.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Shared::new(threads);
        let mut team = Self { shared, workers: Vec::new(), executor: None, reserved: Need::default() };
        for i in 1..threads {
            let shared = team.shared.clone();
            let worker = thread::Builder::new()
                .name(format!("graftwork-{i}"))
                .stack_size(1 << 20)
                .spawn(move || shared.worker(i, Stay::Always))?;
            team.workers.push(worker);
        }
        Ok(team)
    }

    /// A team of `threads`, at least one: the caller's thread and up to `threads - 1` that `executor` lends.
    pub fn lent(threads: usize, executor: Executor) -> Self {
        let shared = Shared::new(threads);
        Self { shared, workers: Vec::new(), executor: Some(executor), reserved: Need::default() }
    }

    /// Threads of the team.
    pub fn threads(&self) -> usize {
        self.shared.scratch.len()
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

    /// Begins a step: wakes the team's own threads, so that the first operation does not have to, or asks for lent ones.
    pub fn step(&self) -> Step {
        let shared = &self.shared;
        let Some(executor) = &self.executor else {
            shared.wake();
            return Step(None);
        };
        let phase = shared.phase.load(Ordering::Relaxed) + 1;
        shared.phase.store(phase, Ordering::SeqCst);
        let step = Step(Some((shared.clone(), phase)));
        let caller = thread::current().id();
        for i in 1..self.threads() {
            let shared = Arc::downgrade(shared);
            executor.execute(Box::new(move || {
                // The caller cannot wait for itself.
                if thread::current().id() != caller
                    && let Some(shared) = shared.upgrade()
                {
                    shared.worker(i, Stay::Step(phase));
                }
            }));
        }
        shared.phase.store(phase + 1, Ordering::SeqCst);
        step
    }

    /// Runs `f(i)` for every `i < chunks`, each once, on any thread. A panic in `f` comes out here. Lent threads take
    /// part within a [`Step`] only.
    pub fn run(&mut self, chunks: usize, f: impl Fn(usize, &mut Scratch) + Sync) {
        if self.threads() == 1 || chunks <= 1 {
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
        shared.wake();
        shared.work(0);
        let mut wait = Wait::default();
        while shared.done.load(Ordering::Acquire) < chunks {
            wait.once();
        }
        let panic = lock(&shared.panic).take();
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
        self.run(chunks, |i, scratch| {
            let (grid, i) = locate(grids, i);
            // SAFETY: `run` gives each chunk once, so each tile of each grid is made once; the grids borrow
            // their matrices mutably, so these do not overlap.
            f(grid, unsafe { grids[grid].tile(i) }, scratch);
        });
    }

    /// Runs `first` for every tile of `early` and `f` for every tile of `grids`, each once, on any thread. No tile of `grids`
    /// is begun before all of `early` are; if it needs them done, it waits ([`Early::rows`]).
    pub fn tiles_after<T: Send + Sync, U: Send>(
        &mut self,
        (early, first): (&mut [Grid<'_, T>], impl Fn(usize, Tile<'_, T>, &mut Scratch) + Sync),
        grids: &mut [Grid<'_, U>],
        f: impl Fn(usize, Tile<'_, U>, &Early<'_, T>, &mut Scratch) + Sync,
    ) {
        let ahead = early.iter().map(Grid::len).sum();
        let chunks = ahead + grids.iter().map(Grid::len).sum::<usize>();
        let left = AtomicUsize::new(ahead);
        let (early, grids): (&[Grid<'_, T>], &[Grid<'_, U>]) = (early, grids);
        self.run(chunks, |i, scratch| {
            if i < ahead {
                let _done = CountDown(&left);
                let (grid, i) = locate(early, i);
                // SAFETY: as in `tiles`.
                first(grid, unsafe { early[grid].tile(i) }, scratch);
            } else {
                let (grid, i) = locate(grids, i - ahead);
                // SAFETY: as in `tiles`.
                f(grid, unsafe { grids[grid].tile(i) }, &Early { grids: early, left: &left }, scratch);
            }
        });
    }
}

/// Which tile of which grid the `i`-th of all is.
fn locate<T>(grids: &[Grid<'_, T>], mut i: usize) -> (usize, usize) {
    let mut grid = 0;
    while i >= grids[grid].len() {
        i -= grids[grid].len();
        grid += 1;
    }
    (grid, i)
}

/// Counts an early tile as done when it goes, also in a panic: others wait for it.
struct CountDown<'a>(&'a AtomicUsize);

impl Drop for CountDown<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// What the early tiles of [`Team::tiles_after`] write.
pub struct Early<'a, T> {
    grids: &'a [Grid<'a, T>],
    /// Tiles that are not done.
    left: &'a AtomicUsize,
}

impl<'a, T: Sync> Early<'a, T> {
    /// The rows of a grid, once all early tiles are done.
    pub fn rows(&self, grid: usize) -> &'a [T] {
        let mut wait = Wait::default();
        while self.left.load(Ordering::Acquire) > 0 {
            wait.once();
        }
        let Grid { data, stride, cuts, .. } = &self.grids[grid];
        let rows = cuts.last().copied().unwrap_or(0);
        // SAFETY: the rows lie in the matrix that the grid borrows mutably. Each tile was made once, and is gone: what
        // its thread wrote was published by counting down.
        unsafe { std::slice::from_raw_parts(data.as_ptr(), rows * stride) }
    }
}

/// Waiting for another thread. Where there are fewer processors than threads, it may need this one.
#[derive(Default)]
struct Wait(u32);

impl Wait {
    fn once(&mut self) {
        self.0 += 1;
        if self.0 < 256 { std::hint::spin_loop() } else { thread::yield_now() }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::SeqCst);
        self.shared.wake();
        for worker in self.workers.drain(..) {
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
