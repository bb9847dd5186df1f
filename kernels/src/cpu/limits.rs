//! What this machine can do at most: the bars that kernels are measured against.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::isa::{GROUP, Kernel, LANES, Simd};
use super::{Cpu, team::Team};

/// Bytes that a read measurement goes over: more than any cache keeps.
const READ_BYTES: usize = 1 << 30;

/// Bytes per second that the team reads from memory: best of `rounds` passes over 1 GiB.
pub fn read_bytes_per_second(cpu: &mut Cpu, rounds: usize) -> f64 {
    struct Sum<'a>(&'a [[f32; LANES]]);
    impl Kernel for Sum<'_> {
        type Out = f32;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f32 {
            let mut sums = [s.splat(0.0); 4];
            for four in self.0.as_chunks::<4>().0 {
                for i in 0..4 {
                    sums[i] = s.add(sums[i], s.load(&four[i]));
                }
            }
            s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
        }
    }
    let data = vec![[1.0f32; LANES]; READ_BYTES / size_of::<[f32; LANES]>()];
    let parts: Vec<_> = data.chunks(1 << 14).collect();
    let isa = cpu.isa;
    let best = fastest(rounds, &mut cpu.team, |team| {
        team.run(parts.len(), |i, _| {
            black_box(isa.run(Sum(parts[i])));
        });
    });
    READ_BYTES as f64 / best.as_secs_f64()
}

/// Multiplications and additions of 8-bit integers per second that the team does, from registers and the first
/// cache: best of `rounds` rounds.
pub fn multiply_operations_per_second(cpu: &mut Cpu, rounds: usize) -> f64 {
    const TIMES: usize = 20_000;
    const TOKENS: usize = 4;
    struct Dots<'a>(&'a [u8; 4 * LANES], [&'a [i8; GROUP]; TOKENS]);
    impl Kernel for Dots<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let codes = s.bits(self.0, 0, 4);
            for _ in 0..TIMES {
                let dots: [_; 1] = s.dot_unsigned(
                    #[inline(always)]
                    |_, _| codes,
                    15,
                    self.1.map(black_box),
                    [s.splat_int(0); TOKENS],
                );
                black_box(dots);
            }
        }
    }
    let (codes, x) = ([0x37; 4 * LANES], [[5; GROUP]; TOKENS]);
    let chunks = cpu.team.threads() * 8;
    let isa = cpu.isa;
    let best = fastest(rounds, &mut cpu.team, |team| {
        team.run(chunks, |_, _| isa.run(Dots(&codes, x.each_ref())));
    });
    (2 * LANES * GROUP * TOKENS * TIMES * chunks) as f64 / best.as_secs_f64()
}

fn fastest(rounds: usize, team: &mut Team, f: impl Fn(&mut Team)) -> Duration {
    let time = |team: &mut Team| {
        let start = Instant::now();
        f(team);
        start.elapsed()
    };
    (0..rounds.max(1)).map(|_| time(team)).min().unwrap_or(Duration::MAX)
}
