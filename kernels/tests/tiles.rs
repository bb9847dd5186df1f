//! The matrix unit of a thread, which other libraries use, too.

#![cfg(target_arch = "x86_64")]

use std::arch::asm;

use graftwork_kernels::backend::{Backend, Device, Output, StepShape};
use graftwork_kernels::cpu::Cpu;
use graftwork_kernels::cpu::isa::Isa;
use graftwork_kernels::{Format, Tensor};

/// What a library has set up on a thread is there after products of this one: ggml sets it up once, and dies where it is gone.
#[test]
fn the_unit_is_left_as_it_was_found() {
    let Some(isa) = Isa::named("avx512amx") else {
        println!("not tested: this CPU has no AMX, or the system does not allow it");
        return;
    };
    // The first tile has 3 rows of 8 bytes, and only that.
    let mut theirs = Palette([0; 64]);
    (theirs.0[0], theirs.0[16], theirs.0[48]) = (1, 8, 3);
    let mut found = Palette([0; 64]);

    let values: Vec<f32> = (0..32 * 256).map(|i| (i % 17) as f32 - 8.0).collect();
    let weight = Tensor::encode(Format::Q8_0, 32, 256, &values).unwrap();
    let table = Tensor::encode(Format::F32, 32, 256, &values).unwrap();
    // One thread is the caller's.
    let mut cpu = Cpu::new(1, isa).unwrap();
    cpu.reserve(&StepShape { rows: 32, inputs: 256, ..StepShape::default() }).unwrap();
    let weight = cpu.device().matrix(&weight).unwrap();
    let (mut x, mut y) = (cpu.rows(256), cpu.rows(32));
    cpu.resize(&mut x, 32).unwrap();
    cpu.resize(&mut y, 32).unwrap();
    cpu.embed(&mut x, &table, &(0..32).collect::<Vec<_>>());

    // SAFETY: `Isa::named` says that this process may use the unit; the palette is one that it has, of 64 bytes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &theirs) };
    cpu.linear(&x, &mut [Output { y: &mut y, weight: &weight, bias: None, accumulate: false, grafts: &[] }]);
    // SAFETY: writes 64 bytes, which `found` has.
    unsafe { asm!("sttilecfg [{}]", "tilerelease", in(reg) &mut found) };
    assert_eq!(found, theirs);
}

#[derive(Debug, PartialEq)]
#[repr(C, align(64))]
struct Palette([u8; 64]);
