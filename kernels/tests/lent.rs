//! Teams of lent threads: whatever an executor does with its tasks, each chunk runs once, nothing hangs, and nobody
//! stays longer than a step.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use graftwork_kernels::cpu::executor::{Executor, Task};
use graftwork_kernels::cpu::scratch::Need;
use graftwork_kernels::cpu::team::Team;

#[allow(dead_code, reason = "only whole numbers are needed here")]
mod random;
use random::Random;

/// A pool as hosts have them: threads that take tasks from a queue.
struct Pool {
    queue: Option<Sender<Task>>,
    threads: Vec<JoinHandle<()>>,
    /// Tasks given out, and those that are not over.
    tasks: Arc<[AtomicUsize; 2]>,
}

impl Pool {
    fn new(threads: usize) -> Self {
        let (queue, tasks) = mpsc::channel::<Task>();
        let tasks = Arc::new(Mutex::new(tasks));
        let work = move || {
            let tasks = tasks.clone();
            let next = move || tasks.lock().unwrap().recv();
            thread::spawn(move || {
                while let Ok(task) = next() {
                    task()
                }
            })
        };
        Self { queue: Some(queue), threads: (0..threads).map(|_| work()).collect(), tasks: Arc::default() }
    }

    fn executor(&self) -> Executor {
        let (queue, tasks) = (self.queue.clone().unwrap(), self.tasks.clone());
        Executor::new(move |task| {
            tasks.iter().for_each(|count| _ = count.fetch_add(1, Ordering::SeqCst));
            let tasks = tasks.clone();
            let counted = move || {
                task();
                tasks[1].fetch_sub(1, Ordering::SeqCst);
            };
            // A pool without threads takes nothing.
            let _ = queue.send(Box::new(counted));
        })
    }

    /// Waits until no task runs or waits.
    fn settle(&self) {
        let start = Instant::now();
        while self.tasks[1].load(Ordering::SeqCst) > 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "a lent thread does not come back");
            thread::sleep(Duration::from_micros(100));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue = None;
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// Runs steps of several operations with pauses between them and checks that every chunk comes once.
fn check_steps(team: &mut Team, steps: usize, what: &str) {
    let mut random = Random(7);
    for step in 0..steps {
        let _step = team.step();
        for operation in 0..1 + random.bits() as usize % 6 {
            let chunks = random.bits() as usize % 40;
            let data: Vec<usize> = (0..chunks).map(|i| step * 1000 + operation * 100 + i).collect();
            let found: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
            team.run(chunks, |i, scratch| {
                let held = scratch.lanes.slice::<usize>(8);
                held.fill(data[i]);
                std::hint::spin_loop();
                found[i].fetch_add(held.iter().sum::<usize>() / 8 + 1, Ordering::Relaxed);
            });
            for (i, found) in found.iter().enumerate() {
                let found = found.load(Ordering::Relaxed);
                assert_eq!(found, data[i] + 1, "{what}: step {step}, operation {operation}, chunk {i}");
            }
            if random.bits().is_multiple_of(8) {
                thread::sleep(Duration::from_micros(random.bits() % 60));
            }
        }
    }
}

fn team(threads: usize, executor: Executor) -> Team {
    let mut team = Team::lent(threads, executor);
    team.reserve(Need { lanes: 64, work: 0 }).unwrap();
    team
}

#[test]
fn pools_of_any_size_do() {
    for (threads, lent) in [(1, 1), (2, 1), (3, 2), (4, 3), (4, 1), (4, 9), (8, 2), (3, 0)] {
        let pool = Pool::new(lent);
        let mut team = team(threads, pool.executor());
        assert_eq!(team.threads(), threads);
        check_steps(&mut team, 400, &format!("{lent} threads for a team of {threads}"));
        drop(team);
        assert_eq!(pool.tasks[0].load(Ordering::SeqCst), 400 * (threads - 1), "tasks");
        if lent > 0 {
            pool.settle();
        }
    }
}

/// Executors that do not do what they should.
#[test]
fn bad_executors_cost_speed_alone() {
    let late = Arc::new(Mutex::new(Vec::<Task>::new()));
    let keep = late.clone();
    let some = AtomicUsize::new(0);
    let one = Mutex::new(());
    let executors: [(&str, usize, Executor); 6] = [
        ("drops all", 100, Executor::new(drop)),
        ("runs them here", 100, Executor::new(|task| task())),
        ("drops every other", 100, {
            Executor::new(move |task| {
                if some.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                    thread::spawn(task);
                }
            })
        }),
        // Each of these waits for as long as a task has patience.
        ("waits for each", 4, Executor::new(|task| thread::spawn(task).join().unwrap())),
        ("one by one", 4, {
            Executor::new(move |task| {
                let _one = one.lock().unwrap();
                thread::scope(|scope| _ = scope.spawn(task));
            })
        }),
        // The tasks of one step run during another one.
        ("late", 100, {
            Executor::new(move |task| {
                let mut late = keep.lock().unwrap();
                late.push(task);
                if late.len() > 7 {
                    late.drain(..5).for_each(|task| _ = thread::spawn(task));
                }
            })
        }),
    ];
    for (what, steps, executor) in executors {
        check_steps(&mut team(4, executor), steps, what);
    }
    // And now their team is gone.
    let late = std::mem::take(&mut *late.lock().unwrap());
    assert!(!late.is_empty());
    late.into_iter().for_each(|task| task());
}

/// As many chunks as threads, each waiting for all others: only distinct threads can do that.
#[test]
fn lent_threads_take_part() {
    let pool = Pool::new(3);
    let mut team = team(4, pool.executor());
    for pause in [0, 0, 0, 5] {
        let _step = team.step();
        for _ in 0..3 {
            // They sleep in the longer pauses, and stay.
            thread::sleep(Duration::from_millis(pause));
            let (barrier, ids) = (Barrier::new(4), Mutex::new(HashSet::new()));
            team.run(4, |_, _| {
                ids.lock().unwrap().insert(thread::current().id());
                barrier.wait();
            });
            let ids = ids.into_inner().unwrap();
            assert_eq!(ids.len(), 4);
            assert!(ids.contains(&thread::current().id()), "the caller works too");
        }
    }
    // One task for each lent thread and step.
    assert_eq!(pool.tasks[0].load(Ordering::SeqCst), 4 * 3);
}

/// Between steps the threads are their host's, also after operations that panicked.
#[test]
fn lent_threads_go_home_after_a_step() {
    let pool = Pool::new(2);
    let mut team = team(3, pool.executor());
    for pause in [0, 5] {
        for panics in [false, true] {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let _step = team.step();
                team.run(10, |_, _| thread::sleep(Duration::from_micros(20)));
                thread::sleep(Duration::from_millis(pause));
                if panics {
                    team.run(10, |i, _| std::panic::resume_unwind(Box::new(i)));
                }
            }));
            assert_eq!(outcome.is_err(), panics);
            pool.settle();
            // No step, no tasks: the caller works alone.
            let (given, caller) = (pool.tasks[0].load(Ordering::SeqCst), thread::current().id());
            team.run(10, |_, _| assert_eq!(thread::current().id(), caller));
            assert_eq!(pool.tasks[0].load(Ordering::SeqCst), given);
        }
    }
}

/// What a task is dropped with is let go of: the executor may keep tasks for ever, the team's memory goes.
#[test]
fn tasks_that_are_kept_keep_nothing_alive() {
    let kept = Arc::new(Mutex::new(Vec::<Task>::new()));
    let (keep, witness) = (kept.clone(), Arc::new(()));
    let held = witness.clone();
    let executor = Executor::new(move |task| {
        let _held = &held;
        keep.lock().unwrap().push(task);
    });
    let mut team = team(3, executor);
    check_steps(&mut team, 5, "keeps all");
    drop(team);
    assert_eq!(Arc::strong_count(&witness), 1, "the executor goes with its team");
    assert_eq!(kept.lock().unwrap().len(), 10);
}

/// Teams of several engines share one pool, which has fewer threads than they ask for.
#[test]
fn teams_share_a_pool() {
    let pool = Pool::new(3);
    thread::scope(|scope| {
        for threads in [2, 3, 4] {
            let executor = pool.executor();
            scope.spawn(move || check_steps(&mut team(threads, executor), 300, "shared"));
        }
    });
    pool.settle();
}
