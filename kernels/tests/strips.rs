//! Matrices in strips: the layout of every format that files may hold, written out; what is refused; and that they are multiplied where
//! they lie, to the bits of the same matrix in rows.

use std::sync::Arc;

use graftwork_kernels::backend::{Backend, Device, Output, StepShape};
use graftwork_kernels::cpu::isa::Isa;
use graftwork_kernels::cpu::{Cpu, CpuDevice};
use graftwork_kernels::{Bytes, Error, Format, Strips, Tensor};

mod activations;
mod random;
use activations::{bits, normals, rows};
use random::Random;

fn with_strips() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().filter(|format| format.has_strips())
}

fn random_tensor(random: &mut Random, format: Format, rows: usize, cols: usize) -> Tensor {
    Tensor::encode(format, rows, cols, &normals(random, rows * cols)).unwrap()
}

/// One panel as the format's file describes it, of the blocks of sixteen rows.
fn panel(format: Format, blocks: &[&[u8]]) -> Vec<u8> {
    let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (at % 8) & 1;
    match format {
        Format::F32 | Format::F16 | Format::BF16 | Format::I8 => blocks.concat(),
        Format::Sign => {
            let byte = |at: usize| (0..8).map(|s| bit(blocks[at / 4], 4 * s + at % 4) << s).sum();
            (0..64).map(byte).collect()
        }
        _ => {
            let bits: usize = format.name()[1..2].parse().unwrap();
            let code = |row: usize, i: usize| -> u8 {
                (0..bits).map(|b| bit(&blocks[row][3..], bits * i + b) << b).sum()
            };
            let mut out: Vec<u8> = blocks.iter().flat_map(|block| block[..2].to_vec()).collect();
            out.extend(blocks.iter().map(|block| block[2]));
            for first in (0..format.block_len()).step_by(32) {
                for vector in 0..bits {
                    out.extend((0..64).map(|at| -> u8 {
                        let code = |step: usize| code(at / 4, first + 4 * step + at % 4);
                        match (bits, vector) {
                            (8, _) => code(vector).wrapping_sub(128),
                            (_, 2) => (0..8).map(|s| (code(s) >> 2) << s).sum(),
                            _ => (0..4).map(|s| (code(4 * vector + s) & 3) << (2 * s)).sum(),
                        }
                    }));
                }
            }
            out
        }
    }
}

#[test]
fn panels_are_laid_out_as_documented() {
    let mut random = Random(71);
    for format in with_strips() {
        let (size, cols) = (format.block_bytes(), 3 * format.block_len());
        for rows in [1, 15, 16, 17, 35] {
            let bytes: Vec<u8> = (0..rows * 3 * size).map(|_| random.bits() as u8).collect();
            let tensor = Tensor::new(format, rows, cols, bytes.clone().into()).unwrap();
            let strips = Strips::pack(&tensor).unwrap();
            assert_eq!((strips.format(), strips.rows(), strips.cols()), (format, rows, cols));
            let zero = vec![0; size];
            let block = |row: usize, b: usize| match row < rows {
                true => &bytes[(3 * row + b) * size..][..size],
                false => &zero,
            };
            let mut expected = Vec::new();
            for first in (0..rows).step_by(16) {
                for b in 0..3 {
                    let blocks: Vec<&[u8]> = (first..first + 16).map(|row| block(row, b)).collect();
                    expected.extend(panel(format, &blocks));
                }
            }
            assert!(strips.bytes()[..] == expected, "{format} [{rows}, {cols}]");
            assert_eq!(strips.bytes().len(), Strips::bytes_for(format, rows, cols));
            assert_eq!(strips.bytes().len(), CpuDevice::default().packed_bytes(format, rows, cols));
            let back = strips.unpack().unwrap();
            assert_eq!((back.format(), back.rows(), back.cols()), (format, rows, cols));
            assert!(back.bytes()[..] == bytes, "{format} [{rows}, {cols}] and back");
        }
        let empty = Strips::pack(&random_tensor(&mut random, format, 0, cols)).unwrap();
        assert_eq!((empty.bytes().len(), empty.unpack().unwrap().rows()), (0, 0));
    }
}

#[test]
fn strips_of_the_wrong_size_or_format_are_refused() {
    let mut refused = 0;
    for &format in Format::ALL {
        let (rows, cols) = (17, 2 * format.block_len());
        let expected = 64 * format.block_bytes();
        let make = |rows, cols, bytes| Strips::new(format, rows, cols, Bytes::new(vec![0; bytes])).map(drop);
        if !format.has_strips() {
            refused += 1;
            assert_eq!(make(rows, cols, expected), Err(Error::NoStrips { format }));
            let tensor = Tensor::encode(format, rows, cols, &vec![1.0; rows * cols]).unwrap();
            assert_eq!(Strips::pack(&tensor).unwrap_err(), Error::NoStrips { format });
            continue;
        }
        assert_eq!(make(rows, cols, expected), Ok(()));
        assert_eq!(make(32, cols, expected), Ok(()));
        for found in [0, 1, 34 * format.block_bytes(), expected - 1, expected + 1] {
            assert_eq!(make(rows, cols, found), Err(Error::Length { format, rows, cols, expected, found }));
        }
        if format.block_len() > 1 {
            let block = format.block_len();
            assert_eq!(
                make(rows, cols + 1, expected),
                Err(Error::RaggedRow { format, cols: cols + 1, block })
            );
        }
        let huge = usize::MAX / format.block_len() * format.block_len();
        for (rows, cols) in [(usize::MAX, huge), (usize::MAX, cols), (1 << 40, 1 << 40)] {
            assert_eq!(make(rows, cols, 16), Err(Error::TooLarge { format, rows, cols }));
        }
    }
    let of_ggml = Format::ALL.iter().filter(|format| format.ggml_id().is_some() && format.block_len() > 1);
    assert_eq!(refused, of_ggml.count(), "ggml's formats in blocks have no strips");
}

/// At every address, with the owner kept where that suits the format and let go where it was copied.
#[test]
fn strips_are_multiplied_where_they_lie() {
    struct Owner(Vec<u64>, #[expect(dead_code)] Arc<()>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }
    }
    let mut random = Random(72);
    for format in with_strips() {
        let align = match format {
            Format::F32 => 4,
            Format::F16 | Format::BF16 => 2,
            _ => 1,
        };
        let (outputs, inputs, count) = (35, 384, 9);
        let weight = random_tensor(&mut random, format, outputs, inputs);
        let strips = Strips::pack(&weight).unwrap();
        let x = normals(&mut random, count * inputs);
        for isa in Isa::all() {
            let mut cpu = Cpu::new(2, isa).unwrap();
            cpu.reserve(&StepShape { rows: count, inputs, ..StepShape::default() }).unwrap();
            let device = cpu.device().clone();
            let input = rows(&mut cpu, &x, inputs);
            let mut run = |weight: &_| {
                let mut y = rows(&mut cpu, &vec![0.0; count * outputs], outputs);
                let output = Output { y: &mut y, weight, bias: None, accumulate: false, grafts: &[] };
                cpu.linear(&input, &mut [output]);
                bits(&cpu.read(&y))
            };
            let expected = run(&device.matrix(&weight).unwrap());
            for shift in 0..5 {
                let mut file = vec![0u64; strips.bytes().len().div_ceil(8) + 1];
                let place = shift..shift + strips.bytes().len();
                bytemuck::cast_slice_mut(&mut file)[place.clone()].copy_from_slice(strips.bytes());
                let alive = Arc::new(());
                let mapped = Bytes::new(Owner(file, alive.clone())).slice(place).unwrap();
                let mapped = Strips::new(format, outputs, inputs, mapped).unwrap();
                let matrix = device.strips(&mapped).unwrap();
                assert_eq!(device.matrix_bytes(&matrix), device.packed_bytes(format, outputs, inputs));
                drop(mapped);
                let kept = Arc::strong_count(&alive) == 2;
                assert_eq!(kept, shift % align == 0, "{format} at byte {shift}");
                assert_eq!(run(&matrix), expected, "{format} at byte {shift} on {}", isa.name());
            }
        }
    }
}
