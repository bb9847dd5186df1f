//! Work in parts, on threads that end with it.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::Error;

/// Called while something is done in parts with those that are done and all there are, from any thread; `false` ends it.
pub type Progress<'a> = dyn Fn(usize, usize) -> bool + Sync + 'a;

/// The name of threads that load or compress. Those of this library all begin so.
pub const THREAD: &str = "graftwork-load";

/// Bytes of their stack.
pub const STACK: usize = 2 << 20;

/// `work` on `0..parts`, in order of the results, on up to `threads` threads; the first error ends it.
pub fn in_parallel<T: Send, E: From<Error> + Send>(
    threads: usize,
    parts: usize,
    progress: &Progress<'_>,
    work: impl Fn(usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let worker = || {
        let mut results = Vec::new();
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                return Ok(results);
            }
            match work(part) {
                Ok(result) => results.push((part, result)),
                Err(error) => {
                    next.store(parts, Ordering::Relaxed);
                    return Err(error);
                }
            }
            if !progress(done.fetch_add(1, Ordering::Relaxed) + 1, parts) {
                next.store(parts, Ordering::Relaxed);
                return Err(Error::Cancelled.into());
            }
        }
    };
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        // With the size of its stack given, the standard library asks no environment variable for it.
        let spawn = |_| {
            let thread = std::thread::Builder::new().name(THREAD.to_owned());
            thread.stack_size(STACK).spawn_scoped(scope, worker).ok()
        };
        // A thread that the system refuses leaves its share to the others.
        let others: Vec<_> = (1..threads.min(parts)).map_while(spawn).collect();
        let mine = worker();
        let joined = |other: std::thread::ScopedJoinHandle<'_, _>| match other.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        std::iter::once(mine).chain(others.into_iter().map(joined)).collect()
    });
    // Not sized by `parts`, which a file may claim without holding them.
    let mut results = Vec::new();
    for outcome in outcomes {
        results.extend(outcome?);
    }
    results.sort_by_key(|&(part, _)| part);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}
