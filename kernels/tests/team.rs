//! The thread team: each chunk once, panics come out, threads end with their team, and nothing hangs.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use graftwork_kernels::Error;
use graftwork_kernels::cpu::scratch::{Buffer, Need, Scratch};
use graftwork_kernels::cpu::team::{Grid, Team, Tile};

#[allow(dead_code, reason = "only whole numbers are needed here")]
mod random;
use random::Random;

/// Runs `chunks` chunks and counts how often each comes.
fn counts(team: &mut Team, chunks: usize) -> Vec<usize> {
    let counts: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
    team.run(chunks, |i, _| {
        counts[i].fetch_add(1, Ordering::Relaxed);
    });
    counts.into_iter().map(AtomicUsize::into_inner).collect()
}

#[test]
fn every_chunk_runs_once() {
    for threads in [1, 2, 3, 8] {
        let mut team = Team::new(threads).unwrap();
        assert_eq!(team.threads(), threads);
        for chunks in [0, 1, 2, 3, 7, 8, 9, 64, 1000, 20_000] {
            assert!(counts(&mut team, chunks).iter().all(|&n| n == 1), "{chunks} chunks, {threads} threads");
        }
    }
}

/// As many chunks as threads, each waiting for all others: only distinct threads can do that.
#[test]
fn all_threads_take_part() {
    let threads = 4;
    let mut team = Team::new(threads).unwrap();
    for _ in 0..20 {
        let barrier = Barrier::new(threads);
        let ids = Mutex::new(HashSet::new());
        team.run(threads, |_, _| {
            ids.lock().unwrap().insert(thread::current().id());
            barrier.wait();
        });
        let ids = ids.into_inner().unwrap();
        assert_eq!(ids.len(), threads);
        assert!(ids.contains(&thread::current().id()), "the caller works too");
    }
}

/// Sleeps of all lengths around the time after which workers go to sleep: a lost wake-up would hang or starve.
#[test]
fn many_small_jobs_with_pauses() {
    let mut random = Random(51);
    for threads in [2, 3] {
        let mut team = Team::new(threads).unwrap();
        let (mut sum, mut expected) = (0, 0);
        for job in 0..4000usize {
            let chunks = 1 + random.bits() as usize % 6;
            let total = AtomicUsize::new(0);
            // What the chunk reads was written just before by this thread: publication must be in order.
            let data: Vec<usize> = (0..chunks).map(|i| job * 7 + i).collect();
            team.run(chunks, |i, _| {
                total.fetch_add(data[i], Ordering::Relaxed);
            });
            sum += total.into_inner();
            expected += data.iter().sum::<usize>();
            match random.bits() % 8 {
                0 => thread::sleep(Duration::from_micros(random.bits() % 60)),
                1 => {
                    let end = Instant::now() + Duration::from_micros(random.bits() % 40);
                    while Instant::now() < end {
                        std::hint::spin_loop();
                    }
                }
                2 => drop(team.step()),
                _ => {}
            }
        }
        assert_eq!(sum, expected);
    }
}

#[test]
fn more_threads_than_processors_get_done() {
    let mut team = Team::new(24).unwrap();
    for _ in 0..300 {
        assert!(counts(&mut team, 50).iter().all(|&n| n == 1));
    }
}

/// The panic's own payload comes out once all chunks are over, and the team works on.
#[test]
fn panics_come_out_and_the_team_survives() {
    for threads in [1, 2, 4] {
        let mut team = Team::new(threads).unwrap();
        for bad in [0, 3, 9] {
            let running = AtomicUsize::new(0);
            let payload = catch_unwind(AssertUnwindSafe(|| {
                team.run(10, |i, _| {
                    running.fetch_add(1, Ordering::SeqCst);
                    if i == bad {
                        running.fetch_sub(1, Ordering::SeqCst);
                        // Without the hook's message.
                        std::panic::resume_unwind(Box::new(format!("chunk {i}")));
                    }
                    thread::sleep(Duration::from_micros(50));
                    running.fetch_sub(1, Ordering::SeqCst);
                });
            }))
            .unwrap_err();
            assert_eq!(running.into_inner(), 0, "nothing runs on after the panic came out");
            assert_eq!(payload.downcast_ref::<String>(), Some(&format!("chunk {bad}")));
            assert!(counts(&mut team, 100).iter().all(|&n| n == 1), "after a panic, {threads} threads");
        }
        let all = catch_unwind(AssertUnwindSafe(|| {
            team.run(20, |_, _| std::panic::resume_unwind(Box::new(())));
        }));
        assert!(all.is_err());
        assert!(counts(&mut team, 100).iter().all(|&n| n == 1), "after twenty panics, {threads} threads");
    }
}

/// A value in each thread's local storage is dropped when the thread ends, which is before `drop` returns.
#[test]
fn dropping_the_team_joins_its_threads() {
    struct Mark(Arc<AtomicUsize>);
    impl Drop for Mark {
        fn drop(&mut self) {
            thread::sleep(Duration::from_millis(2));
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    thread_local! {
        static MARK: std::cell::RefCell<Option<Mark>> = const { std::cell::RefCell::new(None) };
    }
    let threads = 5;
    for asleep in [false, true] {
        let ended = Arc::new(AtomicUsize::new(0));
        let mut team = Team::new(threads).unwrap();
        let (barrier, caller) = (Barrier::new(threads), thread::current().id());
        team.run(threads, |_, _| {
            if thread::current().id() != caller {
                MARK.set(Some(Mark(ended.clone())));
            }
            barrier.wait();
        });
        if asleep {
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(ended.load(Ordering::SeqCst), 0);
        drop(team);
        assert_eq!(ended.load(Ordering::SeqCst), threads - 1, "workers asleep: {asleep}");
    }
}

#[test]
fn teams_of_several_engines_work_side_by_side() {
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut team = Team::new(2).unwrap();
                for chunks in 0..200 {
                    assert!(counts(&mut team, chunks).iter().all(|&n| n == 1));
                }
            });
        }
    });
}

/// Every value of every matrix is written by exactly one tile, also where tiles do not divide it evenly.
#[test]
fn tiles_cover_their_matrices_once() {
    for threads in [1, 3] {
        let mut team = Team::new(threads).unwrap();
        let (mut a, mut b, mut c) = (vec![0u32; 10 * 37], vec![0u32; 5 * 16], vec![0u32; 3 * 8]);
        // The last matrix is only to be written in rows 1 and 2.
        let mut grids = [
            Grid::new(&mut a, 37, vec![0, 3, 3, 4, 10], 16),
            Grid::by_rows(&mut b, 16, 2),
            Grid::new(&mut c, 8, vec![1, 3], 5),
        ];
        team.tiles(&mut grids, |grid, mut tile, _| {
            for row in tile.rows.clone() {
                let first = tile.cols.start;
                for (i, x) in tile.row(row).iter_mut().enumerate() {
                    *x += 1 + (grid * 10_000 + row * 100 + first + i) as u32;
                }
            }
        });
        let expected = |grid: usize, rows: std::ops::Range<usize>, cols: usize| -> Vec<u32> {
            rows.flat_map(|r| (0..cols).map(move |c| 1 + (grid * 10_000 + r * 100 + c) as u32)).collect()
        };
        assert_eq!(a, expected(0, 0..10, 37));
        assert_eq!(b, expected(1, 0..5, 16));
        assert_eq!(c[..8], [0; 8]);
        assert_eq!(c[8..], expected(2, 1..3, 8));
    }
}

#[test]
fn grids_beyond_their_matrix_are_refused() {
    let mut data = [0u8; 20];
    for (stride, cuts, width) in
        [(5, vec![0, 5], 5), (5, vec![3, 2], 5), (0, vec![0, 1], 1), (5, vec![0, 4], 0)]
    {
        let made = catch_unwind(AssertUnwindSafe(|| {
            let _ = Grid::new(&mut data, stride, cuts.clone(), width);
        }));
        assert!(made.is_err(), "stride {stride}, cuts {cuts:?}, width {width}");
    }
    let mut team = Team::new(2).unwrap();
    let outside = catch_unwind(AssertUnwindSafe(|| {
        team.tiles(&mut [Grid::by_rows(&mut data, 5, 1)], |_, mut tile, _| {
            let next = tile.rows.end;
            tile.row(next)[0] = 1;
        });
    }));
    assert!(outside.is_err(), "a row of another tile");
    assert_eq!(data, [0; 20]);
}

#[test]
fn buffers_lend_aligned_memory_of_any_type() {
    let mut buffer = Buffer::default();
    for n in [0, 1, 5, 1000, 3] {
        buffer.reserve(n * 64).unwrap();
        assert!(buffer.bytes() >= n * 64);
        assert_eq!(buffer.slice::<f32>(n).len(), n);
        let wide = buffer.slice::<[u64; 8]>(n);
        assert_eq!((wide.len(), wide.as_ptr().addr() % 64), (n, 0));
        wide.fill([u64::MAX; 8]);
        assert!(buffer.values::<[u64; 8]>(n).iter().all(|x| *x == [u64::MAX; 8]));
    }
    assert_eq!(buffer.bytes(), 64_000, "it never shrinks");
    assert!(catch_unwind(AssertUnwindSafe(|| buffer.slice::<u8>(64_001).len())).is_err());
    assert_eq!(buffer.reserve(usize::MAX), Err(Error::OutOfMemory { bytes: usize::MAX }));
    assert_eq!((buffer.bytes(), buffer.slice::<u8>(0).len()), (0, 0));
    buffer.reserve(1).unwrap();
    assert_eq!(buffer.bytes(), 64);
}

/// Every thread has what was reserved, each its own.
#[test]
fn scratch_is_reserved_for_every_thread() {
    for threads in [1, 2, 5] {
        let mut team = Team::new(threads).unwrap();
        assert_eq!(team.reserved_bytes(), 0);
        let need = Need { lanes: 1000, work: 70 };
        for need in [need, Need { lanes: 10, work: 65 }] {
            team.reserve(need).unwrap();
            assert_eq!(team.reserved_bytes(), threads * (1024 + 128));
        }
        assert_eq!(need.bytes(), 1024 + 128);
        assert!(team.reserve(Need { lanes: usize::MAX, work: 0 }).is_err());
        team.reserve(need).unwrap();
        let barrier = Barrier::new(threads);
        team.run(threads, |i, scratch| {
            scratch.lanes.slice::<usize>(125).fill(i);
            scratch.work.slice::<u8>(70).fill(i as u8);
            barrier.wait();
            assert!(scratch.lanes.values::<usize>(125).iter().all(|&x| x == i));
            assert!(scratch.work.values::<u8>(70).iter().all(|&x| x == i as u8));
        });
    }
}

/// Tiles that need early ones get what these wrote, whoever wrote it and however late.
#[test]
fn late_tiles_see_early_ones() {
    let mut random = Random(52);
    for threads in [1, 2, 3, 8] {
        let mut team = Team::new(threads).unwrap();
        for round in 0..200 {
            let rows = 1 + (random.bits() % 5) as usize;
            let (mut first, mut second) = (vec![0.0f32; 2 * rows * 3], vec![0.0f32; 40]);
            let (left, right) = first.split_at_mut(rows * 3);
            let cuts: Vec<usize> = (0..=rows).collect();
            let mut early = [Grid::new(left, 3, cuts.clone(), 2), Grid::new(right, 3, cuts, 3)];
            let mut late = [Grid::by_rows(&mut second, 2, 1)];
            let write = |grid: usize, mut tile: Tile<'_, f32>, _: &mut Scratch| {
                if round % 10 == 0 {
                    thread::sleep(Duration::from_micros(50));
                }
                for row in tile.rows.clone() {
                    tile.row(row).fill((100 * grid + row + 1) as f32);
                }
            };
            team.tiles_after((&mut early, write), &mut late, |_, mut tile, early, _| {
                let row = tile.rows.start;
                let sums = [0, 1].map(|grid| early.rows(grid).iter().sum());
                tile.row(row).copy_from_slice(&sums);
            });
            let sum = |grid: usize| (0..rows).map(|row| 3 * (100 * grid + row + 1)).sum::<usize>() as f32;
            assert!(second.chunks(2).all(|row| row == [sum(0), sum(1)]), "{second:?}, {rows} rows");
        }
    }
}

/// A panic in an early tile comes out; those that wait for it do not wait forever.
#[test]
fn an_early_panic_comes_out() {
    let mut team = Team::new(3).unwrap();
    for _ in 0..50 {
        let (mut first, mut second) = ([0.0f32; 4], [0.0f32; 16]);
        let mut early = [Grid::by_rows(&mut first, 1, 1)];
        let mut late = [Grid::by_rows(&mut second, 1, 1)];
        let write = |_: usize, tile: Tile<'_, f32>, _: &mut Scratch| assert!(tile.rows.start != 2, "third");
        let caught = catch_unwind(AssertUnwindSafe(|| {
            team.tiles_after((&mut early, write), &mut late, |_, _, early, _| {
                early.rows(0);
            });
        }));
        assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"third"));
    }
    assert!(counts(&mut team, 100).iter().all(|&n| n == 1));
}
