//! Memory that is counted before it is taken: what operations need beside their rows, and what packed weights take.

use std::panic::{AssertUnwindSafe, catch_unwind};

use graftwork_kernels::backend::{Backend, CacheShape, Change, Device, Graft, Output, PAGE, Span, StepShape};
use graftwork_kernels::cpu::isa::Isa;
use graftwork_kernels::cpu::{Cpu, CpuDevice};
use graftwork_kernels::{Error, Format, Tensor};

mod activations;
mod random;
use activations::{emulated, normals, rows, weights};
use random::Random;

/// A small one and one of a real model's prompt.
const SHAPES: [StepShape; 4] = [
    StepShape { rows: 0, inputs: 0, low: 0, group: 0, head_dim: 0 },
    StepShape { rows: 1, inputs: 33, low: 7, group: 1, head_dim: 20 },
    StepShape { rows: 130, inputs: 96, low: 1000, group: 3, head_dim: 64 },
    StepShape { rows: 512, inputs: 1536, low: 512 * 48, group: 8, head_dim: 128 },
];

#[test]
fn what_is_reserved_is_what_was_announced() {
    for threads in [1, 3] {
        let mut grown = Cpu::new(threads, Isa::best()).unwrap();
        let mut last = 0;
        for shape in SHAPES {
            let mut fresh = Cpu::new(threads, Isa::best()).unwrap();
            assert_eq!(fresh.reserved_bytes(), 0);
            fresh.reserve(&shape).unwrap();
            assert_eq!(fresh.reserved_bytes(), fresh.scratch_bytes(&shape), "{shape:?}");
            grown.reserve(&shape).unwrap();
            assert_eq!(grown.reserved_bytes(), fresh.reserved_bytes(), "{shape:?} after smaller ones");
            assert!(last <= grown.reserved_bytes());
            last = grown.reserved_bytes();
        }
        grown.reserve(&SHAPES[1]).unwrap();
        assert_eq!(grown.reserved_bytes(), last, "nothing shrinks");
    }
}

#[test]
fn a_shape_beyond_all_memory_is_an_error() {
    let mut cpu = Cpu::new(2, Isa::best()).unwrap();
    let huge = usize::MAX / 2;
    for shape in [
        StepShape { rows: huge, inputs: huge, ..SHAPES[1] },
        StepShape { low: huge, ..SHAPES[1] },
        StepShape { rows: huge, ..SHAPES[1] },
        StepShape { group: huge, ..SHAPES[1] },
        StepShape { head_dim: huge, ..SHAPES[1] },
    ] {
        assert!(cpu.scratch_bytes(&shape) > usize::MAX / 4, "{shape:?}");
        assert!(matches!(cpu.reserve(&shape), Err(Error::OutOfMemory { .. })), "{shape:?}");
    }
    let mut x = cpu.rows(huge);
    assert!(matches!(cpu.resize(&mut x, huge), Err(Error::OutOfMemory { .. })));
}

/// `rows` rows through a linear layer with grafts and through attention, one sequence.
fn operate(cpu: &mut Cpu, random: &mut Random, rows_now: usize, rank: usize, format: Format) {
    const INPUTS: usize = 96;
    const HEADS: CacheShape = CacheShape { layers: 1, kv_heads: 1, head_dim: 32, format: Format::F16 };
    let mut tensor = |format, rows, cols| {
        Tensor::encode(format, rows, cols, &normals(random, rows * cols)).expect("whole blocks")
    };
    let (weight, a, b) =
        (tensor(format, 40, INPUTS), tensor(format, rank, INPUTS), tensor(Format::F32, 40, rank));
    let device = cpu.device().clone();
    let [weight, a, b] = [weight, a, b].map(|tensor| device.matrix(&tensor).unwrap());
    let values = normals(random, rows_now * INPUTS);
    let x = rows(cpu, &values, INPUTS);
    let mut y = cpu.rows(40);
    cpu.resize(&mut y, rows_now).unwrap();
    let graft = Graft {
        rows: 0..rows_now,
        scale: 1.0,
        change: Change::LowRank { a: &a, b: &b, inner: None, outer: None, bias: None },
    };
    cpu.linear(
        &x,
        &mut [Output { y: &mut y, weight: &weight, bias: None, accumulate: false, grafts: &[graft] }],
    );
    let (mut cache, pages): (_, Vec<u32>) = (cpu.cache(HEADS), (0..rows_now.div_ceil(PAGE) as u32).collect());
    cpu.grow(&mut cache, pages.len()).unwrap();
    let kv = rows(cpu, &values[..rows_now * 32], 32);
    let spans = [Span { rows: 0..rows_now, position: 0, pages: &pages }];
    cpu.store(&mut cache, 0, (&kv, &kv), &spans);
    let mut out = cpu.rows(INPUTS);
    cpu.resize(&mut out, rows_now).unwrap();
    cpu.attend(&mut out, &x, (&cache, 0), &spans, 0.1);
    assert!(cpu.read(&y).iter().all(|x| x.is_finite()));
    assert!(cpu.read(&out).iter().all(|x| x.is_finite()));
}

/// What is reserved for a number of rows does for every smaller number, of any format; operations take no more.
#[test]
fn operations_up_to_a_shape_fit_what_it_reserves() {
    let mut random = Random(61);
    let most: &[usize] = if emulated() { &[5, 70] } else { &[1, 2, 17, 65, 129, 200] };
    for &most in most {
        for (threads, format) in [(1, Format::F32), (3, Format::Q4_1)] {
            let mut cpu = Cpu::new(threads, Isa::best()).unwrap();
            let rank = 5;
            let shape = StepShape { rows: most, inputs: 96, low: most * rank, group: 3, head_dim: 32 };
            cpu.reserve(&shape).unwrap();
            for rows in 1..=most {
                operate(&mut cpu, &mut random, rows, rank, format);
            }
            assert_eq!(cpu.reserved_bytes(), cpu.scratch_bytes(&shape));
        }
    }
}

#[test]
fn operations_without_a_reservation_say_so() {
    let mut random = Random(62);
    for threads in [1, 3] {
        let mut cpu = Cpu::new(threads, Isa::best()).unwrap();
        let panic = catch_unwind(AssertUnwindSafe(|| operate(&mut cpu, &mut random, 4, 2, Format::Q8_0)));
        let message = panic.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("bytes of scratch, but 0 were reserved"), "{message}");
        cpu.reserve(&StepShape { rows: 4, inputs: 96, low: 8, group: 3, head_dim: 32 }).unwrap();
        operate(&mut cpu, &mut random, 4, 2, Format::Q8_0);
    }
}

#[test]
fn packed_bytes_are_those_of_packed_matrices() {
    let mut random = Random(63);
    for &format in Format::ALL {
        let block = format.block_len();
        for rows in [1, 2, 15, 16, 17, 31, 32, 33, 100] {
            for cols in [block, 2 * block, 3 * block, 8 * block] {
                let matrix = CpuDevice::default().matrix(&weights(&mut random, format, rows, cols)).unwrap();
                let packed = CpuDevice::default().packed_bytes(format, rows, cols);
                assert_eq!(packed, CpuDevice::default().matrix_bytes(&matrix), "{format} [{rows}, {cols}]");
                assert!(packed > 0);
            }
        }
        assert_eq!(
            CpuDevice::default().packed_bytes(format, usize::MAX, usize::MAX),
            usize::MAX,
            "no overflow"
        );
    }
}

#[test]
fn activations_hold_what_they_announce() {
    let mut cpu = Cpu::new(1, Isa::best()).unwrap();
    let mut x = cpu.rows(37);
    assert_eq!(cpu.held_bytes(&x), 0);
    for (rows, most) in [(3, 3), (1, 3), (10, 10), (0, 10)] {
        cpu.resize(&mut x, rows).unwrap();
        assert_eq!(cpu.held_bytes(&x), cpu.activation_bytes(most, 37));
    }
}
