//! Block formats against ggml's own encoder and decoder, to the bit.

use std::path::Path;

use graftwork_kernels::{Format, Tensor};

mod random;
use random::Random;

/// What `golden/README.md` describes.
struct Golden {
    values: Vec<f32>,
    blocks: Vec<u8>,
    decoded: Vec<f32>,
    raw: Vec<u8>,
    raw_decoded: Vec<f32>,
}

fn golden(format: Format) -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{format}.bin"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let count = |i: usize| u32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().unwrap()) as usize;
    let (encoded, raw) = (count(0), count(1));
    assert!(encoded > 40 && raw >= 40, "{}: hardly any blocks", path.display());
    let mut rest = &bytes[8..];
    let mut take = |n: usize| {
        let (part, tail) = rest.split_at(n);
        rest = tail;
        part.to_vec()
    };
    let floats = |bytes: Vec<u8>| -> Vec<f32> {
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let (values, size) = (4 * format.block_len(), format.block_bytes());
    let golden = Golden {
        values: floats(take(encoded * values)),
        blocks: take(encoded * size),
        decoded: floats(take(encoded * values)),
        raw: take(raw * size),
        raw_decoded: floats(take(raw * values)),
    };
    assert!(rest.is_empty(), "{}: {} bytes too many", path.display(), rest.len());
    golden
}

fn assert_same_bits(format: Format, what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        // Signs of points are factors in ggml's decoders; that of NaN is then up to the compiler.
        let open = if has_grid(format) && e.is_nan() { 1 << 31 } else { 0 };
        assert_eq!(
            f.to_bits() | open,
            e.to_bits() | open,
            "{format}, {what}, value {i}: {f:e} against ggml's {e:e}"
        );
    }
}

/// The formats that ggml has too, and whose encoder or decoder computes something.
fn with_golden_blocks() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().filter(|&f| f.ggml_id().is_some() && f != Format::F32)
}

#[test]
fn blocks_decode_to_the_bits_that_ggml_gives() {
    for format in with_golden_blocks() {
        let golden = golden(format);
        for (what, blocks, expected) in
            [("encoded", &golden.blocks, &golden.decoded), ("raw", &golden.raw, &golden.raw_decoded)]
        {
            let mut found = vec![0.0; expected.len()];
            format.decode(blocks, &mut found);
            assert_same_bits(format, what, &found, expected);
        }
    }
}

#[test]
fn values_encode_to_the_bytes_that_ggml_gives() {
    for format in with_golden_blocks() {
        let golden = golden(format);
        let mut found = vec![0; golden.blocks.len()];
        format.encode(&golden.values, &mut found);
        let (len, size) = (format.block_len(), format.block_bytes());
        if has_grid(format) {
            continue;
        }
        for (b, (found, expected)) in found.chunks(size).zip(golden.blocks.chunks(size)).enumerate() {
            let values = &golden.values[b * len..][..len];
            // What a NaN carries besides is left open: ggml's own encoders of F16 differ in it.
            if values.iter().all(|v| v.is_nan()) {
                let mut value = vec![0.0; len];
                format.decode(found, &mut value);
                assert!(value.iter().all(|v| v.is_nan()), "{format}, block {b}: NaN became {value:?}");
            } else {
                assert_eq!(found, expected, "{format}, block {b} of {values:?}");
            }
        }
    }
}

/// Whether codes are points of a grid, for which there is a search of our own.
fn has_grid(format: Format) -> bool {
    let name = format.name();
    name.starts_with("IQ") && !name.starts_with("IQ4")
}

/// In each block, and by far in most.
#[test]
fn values_encode_to_points_no_further_off_than_those_of_ggml() {
    for format in with_golden_blocks().filter(|&format| has_grid(format)) {
        let golden = golden(format);
        let mut blocks = vec![0; golden.blocks.len()];
        format.encode(&golden.values, &mut blocks);
        let mut decoded = vec![0.0; golden.values.len()];
        format.decode(&blocks, &mut decoded);
        let len = format.block_len();
        let mut ratios = Vec::new();
        for (i, x) in golden.values.chunks(len).enumerate() {
            let error = |y: &[f32]| {
                let squares = x.iter().zip(&y[len * i..]).map(|(x, y)| f64::from(x - y).powi(2));
                squares.sum::<f64>().sqrt()
            };
            let (ours, theirs) = (error(&decoded), error(&golden.decoded));
            assert!(ours <= 1.001 * theirs, "{format}, block {i} of {x:?}: {ours}, ggml's {theirs}");
            if theirs > 0.0 {
                ratios.push(ours / theirs);
            }
        }
        let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
        assert!(mean <= 0.95, "{format}: errors are {mean:.3} of ggml's");
    }
}

#[test]
fn decoded_blocks_encode_to_themselves_in_float_formats() {
    for half in 0..=u16::MAX {
        for format in [Format::F16, Format::BF16] {
            let mut value = [0.0];
            format.decode(&half.to_le_bytes(), &mut value);
            let mut again = [0; 2];
            format.encode(&value, &mut again);
            assert!(
                value[0].is_nan() || again == half.to_le_bytes(),
                "{format} {half:#06x} is {} and comes back as {again:x?}",
                value[0]
            );
        }
    }
}

/// Half a step of the code, and the rounding of scale and minimum to halves (`2^-11` of each).
#[test]
fn encoding_loses_at_most_half_a_step() {
    let mut random = Random(4);
    let half = 2f32.powi(-11);
    for _ in 0..200 {
        let size = 10f32.powi((random.bits() % 5) as i32 - 2);
        let x: Vec<f32> = (0..128).map(|_| random.normal() * size).collect();
        let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let (min, max) = x.iter().fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
        let affine = |steps: f32| (max - min) / steps / 2.0 * 1.001 + (2.0 * largest + max - min) * half;
        // The code of the extreme is the first; its counterpart of the other sign is one step short.
        let signed = |steps: f32| largest / steps * 1.001 + largest * half;
        // From 0, if that is not within. The range shrinks or grows with the rounding of the scale.
        let with_zero = |steps: f32| (max.max(0.0) - min.min(0.0)) * (0.5 / steps * 1.001 + half);
        for &format in Format::ALL.iter().filter(|format| format.block_len() < 256) {
            let bound = match format {
                Format::F32 => 0.0,
                Format::F16 => largest * half,
                Format::BF16 => largest / 256.0,
                Format::Q4_0 => signed(8.0),
                Format::Q5_0 => signed(16.0),
                Format::Q4_1 => affine(15.0),
                Format::Q5_1 => affine(31.0),
                Format::Q8_0 => largest / 254.0 * 1.001 + largest * half,
                Format::I8 => 0.5f32.max(largest - 127.0),
                Format::Sign => 1f32.max(largest - 1.0),
                Format::W2G32 | Format::W2G64 | Format::W2G128 => with_zero(3.0),
                Format::W3G32 | Format::W3G64 | Format::W3G128 => with_zero(7.0),
                Format::W8G32 | Format::W8G64 | Format::W8G128 => with_zero(255.0),
                // Held against ggml's encoder alone.
                other if other.ggml_id().is_some() => continue,
                other => panic!("{other} has no bound here: add it"),
            };
            let decoded = Tensor::encode(format, 1, 128, &x).unwrap().decode().unwrap();
            for (x, y) in x.iter().zip(decoded) {
                assert!((x - y).abs() <= bound, "{format}: {x} became {y}, more than {bound} away");
            }
        }
    }
}

/// Uniform rounding with the steps that the range of each group asks for has an RMS error of `step / sqrt(12)`. Scales that are
/// rounded to 4 or 6 bits make steps coarser, the search for good scales makes errors smaller.
#[test]
fn encoding_in_groups_loses_what_rounding_loses() {
    let mut random = Random(5);
    for &format in Format::ALL.iter().filter(|format| format.block_len() == 256) {
        let (group, steps, most) = match format {
            Format::Q2K => (16, 3.0, 1.1),
            Format::Q3K => (16, 7.0, 1.1),
            Format::Q4K => (32, 15.0, 1.1),
            Format::Q5K => (32, 31.0, 1.1),
            Format::Q6K => (16, 63.0, 1.1),
            // Held against ggml's encoder alone.
            other if other.ggml_id().is_some() => continue,
            other => panic!("{other} has no bound here: add it"),
        };
        let (mut error, mut expected) = (0.0, 0.0);
        for _ in 0..50 {
            let size = 10f32.powi((random.bits() % 5) as i32 - 2);
            let x: Vec<f32> = (0..256).map(|_| random.normal() * size).collect();
            let decoded = Tensor::encode(format, 1, 256, &x).unwrap().decode().unwrap();
            let squares = |x: f32| f64::from(x / size).powi(2);
            error += x.iter().zip(&decoded).map(|(x, y)| squares(x - y)).sum::<f64>();
            for group in x.chunks(group) {
                let (min, max) = group.iter().fold((0.0f32, 0.0f32), |(l, h), &v| (l.min(v), h.max(v)));
                // Without a minimum, steps reach as far to either side.
                let range = match format {
                    Format::Q3K | Format::Q6K => 2.0 * max.max(-min),
                    _ => max - min,
                };
                expected += squares(range / steps) / 12.0 * group.len() as f64;
            }
        }
        let ratio = (error / expected).sqrt();
        assert!((0.5..most).contains(&ratio), "{format}: {ratio:.3} of what rounding alone would lose");
    }
}

/// The bits of a block as the formats' files describe them, written out.
#[test]
fn blocks_of_our_own_are_laid_out_as_documented() {
    let mut random = Random(6);
    for &format in Format::ALL.iter().filter(|format| format.ggml_id().is_none()) {
        let (len, size) = (format.block_len(), format.block_bytes());
        for _ in 0..20 {
            let mut block: Vec<u8> = (0..size).map(|_| random.bits() as u8).collect();
            let bit = |block: &[u8], at: usize| u16::from(block[at / 8] >> (at % 8) & 1);
            let expected: Vec<f32> = match format {
                Format::I8 => vec![f32::from(block[0] as i8)],
                Format::Sign => (0..len).map(|i| [-1.0, 1.0][usize::from(bit(&block, i))]).collect(),
                _ => {
                    let bits: usize = format.name()[1..2].parse().unwrap();
                    assert_eq!(format.name()[3..], len.to_string());
                    assert_eq!(size, 3 + len * bits / 8);
                    let d = random.normal() / 10.0;
                    block[..2].copy_from_slice(&half::f16::from_f32(d).to_le_bytes());
                    let d = half::f16::from_f32(d).to_f32();
                    let code = |i: usize| (0..bits).map(|b| bit(&block[3..], bits * i + b) << b).sum::<u16>();
                    (0..len).map(|i| (f32::from(code(i)) - f32::from(block[2])) * d).collect()
                }
            };
            let mut found = vec![0.0; len];
            format.decode(&block, &mut found);
            assert_eq!(found, expected, "{format}, block {block:?}");
        }
    }
}

/// The quantizer of GPTQ and Delta-CoMe, in f64 from the rounded step on.
#[test]
fn groups_with_a_zero_point_are_quantized_by_the_formula() {
    let mut random = Random(7);
    let ours = [2, 3, 8].map(|bits| [32, 64, 128].map(|len| (bits, Format::coded(bits, len).unwrap())));
    for (bits, format) in ours.into_iter().flatten() {
        let (len, most) = (format.block_len(), f64::from((1 << bits) - 1));
        let mut blocks: Vec<Vec<f32>> = (0..60)
            .map(|i| {
                // With 0 inside the range, below it and above it.
                let (size, shift) = (10f32.powi(i % 7 - 4), [0.0, 8.0, -8.0][i as usize % 3]);
                (0..len).map(|_| (random.normal() + shift) * size).collect()
            })
            .collect();
        blocks.push(vec![0.0; len]);
        blocks.push(vec![-3.0; len]);
        // A step beyond the largest half stays that.
        blocks.push((0..len).map(|i| if i % 2 == 0 { 1e8 } else { -1e8 }).collect());
        for x in blocks {
            let mut block = vec![0; format.block_bytes()];
            format.encode(&x, &mut block);
            let (min, max) = x.iter().fold((0.0f32, 0.0f32), |(l, h), &v| (l.min(v), h.max(v)));
            let d = half::f16::from_f32((max - min) / most as f32).to_f32().min(65504.0);
            let z = if d > 0.0 { (-f64::from(min / d)).round_ties_even().min(most) } else { 0.0 };
            assert_eq!(
                (block[..2].to_vec(), f64::from(block[2])),
                (half::f16::from_f32(d).to_le_bytes().into(), z)
            );
            let mut found = vec![0.0; len];
            format.decode(&block, &mut found);
            for (x, found) in x.iter().zip(found) {
                let steps = if d > 0.0 { f64::from(x / d).round_ties_even() } else { 0.0 };
                let expected = f64::from(d) * ((steps + z).clamp(0.0, most) - z);
                assert_eq!(f64::from(found), expected, "{format}: {x} with d {d}, z {z}");
            }
        }
    }
}

#[test]
fn the_longest_whole_group_is_taken() {
    let name = |bits, cols| Format::coded(bits, cols).map(Format::name);
    assert_eq!(name(2, 4096), Some("W2G128"));
    assert_eq!(name(3, 576), Some("W3G64"));
    assert_eq!(name(8, 96), Some("W8G32"));
    assert_eq!((name(2, 48), name(4, 128), name(3, 1)), (None, None, None));
}

#[test]
fn the_table_of_formats_is_one_to_one() {
    for &format in Format::ALL {
        if let Some(id) = format.ggml_id() {
            assert_eq!(Format::from_ggml_id(id), Some(format));
        }
        assert_eq!(Format::from_ggml_id(format as u32), format.ggml_id().map(|_| format));
        assert_eq!(Format::from_name(&format.name().to_lowercase()), Some(format));
        assert_eq!(Format::ALL.iter().filter(|&&f| f as u32 == format as u32).count(), 1);
        assert_eq!(format.to_string(), format.name());
        assert!(format.block_len() > 0 && format.block_bytes() > 0);
    }
    assert_eq!(Format::from_ggml_id(4), None, "ggml removed Q4_2");
    assert_eq!(Format::from_name("Q4_2"), None);
}

/// How much each value matters: mostly little, some a hundred times as much.
fn importance(random: &mut Random, len: usize) -> Vec<f32> {
    (0..len)
        .map(|_| random.normal().powi(2) * if random.bits().is_multiple_of(16) { 100.0 } else { 1.0 } + 0.01)
        .collect()
}

#[test]
fn importance_makes_the_weighted_error_smaller() {
    let mut random = Random(8);
    let (blocks, len) = (40, 256);
    for &format in Format::ALL {
        let (mut plain, mut weighted, mut equal) = (0.0, 0.0, 0.0);
        for _ in 0..blocks {
            let size = 10f32.powi((random.bits() % 5) as i32 - 2);
            let shift = if random.bits().is_multiple_of(4) { size } else { 0.0 };
            let x: Vec<f32> = (0..len).map(|_| random.normal() * size + shift).collect();
            let w = importance(&mut random, len);
            let error = |weights: Option<&[f32]>| {
                let mut bytes = vec![0; len / format.block_len() * format.block_bytes()];
                match weights {
                    Some(weights) => format.encode_weighted(&x, weights, &mut bytes),
                    None => format.encode(&x, &mut bytes),
                }
                let mut y = vec![0.0; len];
                format.decode(&bytes, &mut y);
                let term =
                    |((x, y), w): ((&f32, &f32), &f32)| f64::from(*w) * f64::from((y - x) / size).powi(2);
                x.iter().zip(&y).zip(&w).map(term).sum::<f64>()
            };
            let (before, after) = (error(None), error(Some(&w)));
            assert!(after <= before * 1.000_001, "{format}: {after} after {before}");
            (plain, weighted) = (plain + before, weighted + after);
            equal += error(Some(&vec![1.0; len]));
        }
        let searches = matches!(
            format.name(),
            "Q4_0" | "Q4_1" | "Q5_0" | "Q5_1" | "Q2_K" | "Q3_K" | "Q4_K" | "Q5_K" | "Q6_K"
        );
        let most = if searches { 0.6 } else { 1.0 };
        assert!(weighted <= most * plain, "{format}: {weighted:.4} with weights, {plain:.4} without");
        // Weights that say nothing help less than those that the error counts by.
        assert!(weighted <= equal * 1.000_001, "{format}: {weighted:.4}, {equal:.4} with equal weights");
    }
}

#[test]
fn values_that_are_all_equal_are_encoded_with_weights_too() {
    let mut random = Random(9);
    for &format in Format::ALL {
        for value in [0.0, 1.0, -3.0, 1e-20] {
            let x = vec![value; 256];
            let w = importance(&mut random, 256);
            let mut bytes = vec![0; 256 / format.block_len() * format.block_bytes()];
            format.encode_weighted(&x, &w, &mut bytes);
            let mut y = vec![0.0; 256];
            format.decode(&bytes, &mut y);
            assert!(y.iter().all(|y| y.is_finite()), "{format}: {value} became {y:?}");
        }
    }
}
