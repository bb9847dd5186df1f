//! What sharing an operation out to the thread team costs: chunks of a known length, against the ideal.

use std::hint::black_box;

use graftwork_benches::median_seconds;
use graftwork_kernels::cpu::team::Team;

/// Spins for about this many turns: some microseconds.
fn work(turns: usize) {
    (0..turns).for_each(|i| {
        black_box(i);
    });
}

fn main() {
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    for turns in [0, 1000, 4000, 16000] {
        let alone = median_seconds(21, || (0..1000).for_each(|_| work(turns))) / 1000.0;
        for threads in 1..=most {
            let (mut team, chunks) = (Team::new(threads).expect("threads"), threads * 4);
            let seconds = median_seconds(21, || {
                for _ in 0..1000 {
                    team.run(chunks, |_, _| work(turns));
                }
            }) / 1000.0;
            let ideal = alone * 4.0;
            println!(
                "{threads} threads, {chunks} chunks of {:.2} us: {:.2} us an operation, {:.2} us more than ideal",
                alone * 1e6,
                seconds * 1e6,
                (seconds - ideal) * 1e6
            );
        }
    }
}
