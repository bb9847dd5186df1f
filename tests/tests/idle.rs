//! An engine with nothing to do takes no time: its threads sleep, and those that it borrowed are back with their host.
//! Alone in its process, whose time it counts.
#![cfg(target_os = "linux")]

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use graftwork::{Engine, EngineOptions, Executor, Request, Task};
use graftwork_tests::reference::golden;

/// Nanoseconds that the other threads of this process have run so far; `None` where the system does not count them.
fn time_of_others() -> Option<u64> {
    let own = std::fs::read_link("/proc/thread-self").ok()?;
    let mut sum = 0;
    for thread in std::fs::read_dir("/proc/self/task").ok()? {
        let thread = thread.ok()?;
        if own.file_name() != Some(&thread.file_name()) {
            let counts = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            sum += counts.split(' ').next()?.parse::<u64>().ok()?;
        }
    }
    Some(sum)
}

/// A host's pool of as many threads, which ends with the executor.
fn pool(threads: usize) -> Executor {
    let (queue, tasks) = mpsc::channel::<Task>();
    let tasks = Arc::new(Mutex::new(tasks));
    for _ in 0..threads {
        let tasks = tasks.clone();
        let next = move || tasks.lock().unwrap().recv();
        thread::spawn(move || {
            while let Ok(task) = next() {
                task()
            }
        });
    }
    Executor::new(move |task| queue.send(task).unwrap())
}

#[test]
fn an_idle_engine_takes_no_time() {
    let Some(start) = time_of_others() else {
        println!("left out: this system does not count the time of threads");
        return;
    };
    let open = |(threads, executor)| {
        let options = EngineOptions { threads, executor, ..EngineOptions::default() };
        let engine = Engine::open(golden("adapters/base"), options).unwrap_or_else(|error| panic!("{error}"));
        let request = Request { ignore_eos: true, ..Request::new(vec![1, 17, 42]).max_tokens(8) };
        assert_eq!(engine.generate(request).unwrap().count(), 9);
        engine
    };
    let engines = [(2, None), (8, None), (2, Some(pool(1))), (8, Some(pool(7)))].map(open);
    // Threads may be slow to fall asleep on a busy machine; one that spins, or wakes by a clock, would take some of every second.
    let seconds: Vec<u64> = (0..10)
        .map(|_| {
            let before = time_of_others().unwrap();
            assert!(before > start, "work is counted");
            thread::sleep(Duration::from_secs(1));
            time_of_others().unwrap() - before
        })
        .take_while(|&time| time > 0)
        .collect();
    assert!(
        seconds.len() < 10,
        "{} idle engines took some of each second, in nanoseconds: {seconds:?}",
        engines.len()
    );
}
