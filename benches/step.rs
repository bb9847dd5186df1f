//! What the thread team costs: an empty operation, shared out.

use graftwork_benches::median_seconds;
use graftwork_kernels::cpu::team::Team;

fn main() {
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    for threads in 1..=most {
        let mut team = Team::new(threads).expect("threads");
        let seconds = median_seconds(21, || {
            for _ in 0..1000 {
                team.run(threads * 4, |i, _| {
                    std::hint::black_box(i);
                });
            }
        });
        println!("{threads} threads: {:.2} us an operation of {} chunks", seconds * 1e3, threads * 4);
    }
}
