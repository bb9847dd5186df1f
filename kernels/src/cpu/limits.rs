//! What this machine can do at most: the bars that kernels are measured against.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::arena::{Arena, Filled};
use super::isa::{GROUP, Kernel, LANES, Simd};
use super::{Cpu, team::Team};

/// Memory to be read, more than any cache keeps, of the kind that weights lie in: 1 GiB.
pub struct Memory(Filled);

impl Memory {
    /// Allocates it.
    #[expect(clippy::new_without_default, reason = "a gibibyte is not made in passing")]
    pub fn new() -> Self {
        let values = [[1.0f32; LANES]; 1 << 10];
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        let mut region = Arena::default().region(1 << 30).expect("a gibibyte of memory");
        (0..(1 << 30) / bytes.len()).for_each(|_| region.push(bytes));
        Self(region.fill())
    }

    /// Bytes per second that the team reads of it: best of `rounds` passes.
    pub fn bytes_per_second(&self, cpu: &mut Cpu, rounds: usize) -> f64 {
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
        let values: &[[f32; LANES]] = bytemuck::cast_slice(&self.0);
        let parts: Vec<_> = values.chunks(1 << 14).collect();
        let isa = cpu.isa;
        let best = fastest(rounds, &mut cpu.team, |team| {
            team.run(parts.len(), |i, _| {
                black_box(isa.run(Sum(parts[i])));
            });
        });
        self.0.len() as f64 / best.as_secs_f64()
    }
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
