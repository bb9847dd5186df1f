//! Compressed matrices: what methods lose, take and refuse.

use graftwork_adapters::compress::synthetic::{self, Spectrum};
use graftwork_adapters::compress::{
    Calibration, Choices, Compressed, Difference, Error, Hessian, Method, Split, Stage, compress,
};
use graftwork_adapters::delta::Part;
use graftwork_kernels::{Bytes, Format, Tensor};

fn delta(outputs: usize, inputs: usize, seed: u64) -> Difference {
    let spectrum = Spectrum { norm: 0.5, rank: 256, exponent: 0.7, tail: 0.05 };
    Difference::new(outputs, inputs, synthetic::delta(outputs, inputs, &spectrum, seed)).unwrap()
}

/// Of correlated inputs, some channels of them larger.
fn calibration(inputs: usize, seed: u64) -> Calibration {
    let tokens = 2 * inputs;
    let spectrum = Spectrum { norm: (tokens as f32).sqrt(), rank: 64, exponent: 0.5, tail: 0.2 };
    let mut x = synthetic::delta(tokens, inputs, &spectrum, seed);
    x.chunks_exact_mut(inputs).for_each(|x| x.iter_mut().step_by(24).for_each(|x| *x *= 6.0));
    let mut hessian = Hessian::new(inputs);
    // In pieces, as a calibration run has them.
    x.chunks(inputs * 7).for_each(|x| hessian.add(x).unwrap());
    hessian.calibrate().unwrap()
}

fn stages(stages: &[(u32, usize)]) -> Split {
    Split::Stages(stages.iter().map(|&(bits, count)| Stage { bits, count }).collect())
}

fn methods(bytes: usize) -> Vec<Method> {
    vec![
        Method::DeltaCome { split: Split::Published, choices: Choices::PUBLISHED },
        Method::DeltaCome { split: Split::Bytes(bytes), choices: Choices::PUBLISHED },
        Method::delta_come(Split::Bytes(bytes)),
        Method::BitDelta { feedback: false },
        Method::BitDelta { feedback: true },
        Method::LowRank { bytes, weighted: false },
        Method::LowRank { bytes, weighted: true },
        Method::Ternary,
        Method::Sparse { bytes: Some(bytes) },
        Method::Sparse { bytes: None },
        Method::Dense(Format::F16),
        Method::Dense(Format::BF16),
    ]
}

/// The parts' bytes, one after the other.
fn bytes(compressed: &Compressed) -> Vec<u8> {
    let part = |part: &Part| match part {
        Part::Factors { v, s, u } => [v.bytes(), bytemuck(s).as_slice(), u.bytes()].concat(),
        Part::Whole { matrix, scale } => [matrix.bytes(), &scale.to_le_bytes()[..]].concat(),
        Part::Sparse { starts, columns, values } | Part::Overwrite { starts, columns, values, .. } => {
            let indices = starts.iter().chain(&**columns).flat_map(|x| x.to_le_bytes());
            [&indices.collect::<Vec<u8>>(), &**values.bytes()].concat()
        }
    };
    compressed.parts.iter().flat_map(part).collect()
}

fn bytemuck(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[test]
fn more_bits_and_more_vectors_lose_less() {
    let (delta, inputs) = (delta(160, 256, 1), calibration(256, 2));
    for choices in [Choices::PUBLISHED, Choices::BEST] {
        for inputs in [None, Some(&inputs)] {
            let error = |split: &[(u32, usize)]| {
                let method = Method::DeltaCome { split: stages(split), choices };
                let report = compress(&delta, inputs, &method).unwrap().report;
                report.output_error.unwrap_or(report.relative_error)
            };
            let by_bits = [2, 3, 8].map(|bits| error(&[(bits, 64)]));
            assert!(by_bits.is_sorted_by(|a, b| *a > 1.05 * b), "{choices:?}: {by_bits:?}");
            // Groups of 32 along all of these ranks.
            let by_count = [32, 96, 160].map(|count| error(&[(3, count)]));
            assert!(by_count.is_sorted_by(|a, b| a > b), "{choices:?}: {by_count:?}");
            let more = error(&[(8, 2), (3, 32), (2, 64)]);
            assert!(more < error(&[(3, 32), (2, 64)]), "{choices:?}: {more}");
        }
    }
}

#[test]
fn each_choice_makes_outputs_better() {
    let (delta, inputs) = (delta(160, 256, 3), calibration(256, 4));
    let error = |choices| {
        let method = Method::DeltaCome { split: stages(&[(8, 2), (3, 32), (2, 64)]), choices };
        compress(&delta, Some(&inputs), &method).unwrap().report.output_error.unwrap()
    };
    let published = error(Choices::PUBLISHED);
    for choices in [
        Choices { weighted: true, ..Choices::PUBLISHED },
        Choices { scales: Choices::BEST.scales, ..Choices::PUBLISHED },
        Choices { refit: true, ..Choices::PUBLISHED },
    ] {
        assert!(error(choices) < 0.98 * published, "{choices:?}: {} and {published}", error(choices));
    }
    assert!(error(Choices::BEST) < 0.8 * published, "{} and {published}", error(Choices::BEST));
}

#[test]
fn delta_come_beats_low_rank_and_signs_at_their_size() {
    let (delta, inputs) = (delta(320, 512, 5), calibration(512, 6));
    let budget = 320 * 512 / 8;
    for inputs in [None, Some(&inputs)] {
        let error = |method: &Method| {
            let report = compress(&delta, inputs, method).unwrap().report;
            assert!(report.bytes <= budget + 4, "{method:?}: {}", report.bytes);
            report.output_error.unwrap_or(report.relative_error)
        };
        let published =
            error(&Method::DeltaCome { split: Split::Bytes(budget), choices: Choices::PUBLISHED });
        let best = error(&Method::delta_come(Split::Bytes(budget)));
        let low_rank = |weighted| error(&Method::LowRank { bytes: budget, weighted });
        let signs = |feedback| error(&Method::BitDelta { feedback });
        assert!(published < 0.9 * low_rank(false).min(signs(false)), "{published} {}", low_rank(false));
        assert!(best < 0.9 * low_rank(true).min(signs(true)), "{best} {} {}", low_rank(true), signs(true));
        assert!(best < published);
    }
}

#[test]
fn budgets_are_kept_and_used() {
    let (delta, inputs) = (delta(192, 256, 7), calibration(256, 8));
    let mut last = f64::INFINITY;
    for budget in [1000, 2000, 4000, 6000, 8000, 12000, 20000] {
        let report =
            compress(&delta, Some(&inputs), &Method::delta_come(Split::Bytes(budget))).unwrap().report;
        assert!(report.bytes <= budget && report.bytes * 2 > budget, "{} of {budget}", report.bytes);
        assert!(report.output_error.unwrap() < last, "{budget}: {report:?} after {last}");
        last = report.output_error.unwrap();
    }
}

/// Eckart and Young: what the truncated decomposition loses is the rest of the spectrum.
#[test]
fn low_rank_loses_the_other_singular_values() {
    let spectrum = Spectrum { norm: 2.0, rank: 80, exponent: 0.5, tail: 0.0 };
    for (outputs, inputs) in [(96, 160), (160, 96)] {
        let values = synthetic::delta(outputs, inputs, &spectrum, 9);
        let delta = Difference::new(outputs, inputs, values).unwrap();
        for rank in [1, 7, 40, 79] {
            let bytes = rank * (2 * (outputs + inputs) + 4);
            let method = Method::LowRank { bytes, weighted: false };
            let found = compress(&delta, None, &method).unwrap().report;
            let squares = |ks: std::ops::Range<usize>| ks.map(|k| 1.0 / (k as f64 + 1.0)).sum::<f64>();
            let expected = (squares(rank..80) / squares(0..80)).sqrt();
            // Halves lose 2^-12 of each factor.
            assert!((found.relative_error - expected).abs() < 1e-3, "{rank}: {found:?}, not {expected}");
            assert_eq!(found.bytes, bytes);
        }
    }
}

#[test]
fn weighted_vectors_are_better_for_outputs_either_way_up() {
    for (outputs, inputs) in [(96, 160), (160, 96)] {
        let (delta, calibration) = (delta(outputs, inputs, 10), calibration(inputs, 11));
        let error = |weighted| {
            let method = Method::LowRank { bytes: 32 * (2 * (outputs + inputs) + 4), weighted };
            compress(&delta, Some(&calibration), &method).unwrap().report
        };
        let (plain, weighted) = (error(false), error(true));
        assert!(weighted.output_error.unwrap() < 0.9 * plain.output_error.unwrap(), "{plain:?} {weighted:?}");
        assert!(weighted.relative_error > plain.relative_error, "{plain:?} {weighted:?}");
    }
}

#[test]
fn the_scale_of_signs_is_the_best() {
    let (delta, inputs) = (delta(64, 96, 12), calibration(96, 13));
    for feedback in [false, true] {
        for calibration in [None, Some(&inputs)] {
            let compressed = compress(&delta, calibration, &Method::BitDelta { feedback }).unwrap();
            let error = |by: f32| {
                let mut other = compressed.clone();
                let Part::Whole { scale, .. } = &mut other.parts[0] else { panic!("{:?}", other.parts) };
                *scale *= by;
                match calibration {
                    Some(inputs) => other.output_error(&delta, inputs).unwrap(),
                    None => other.relative_error(&delta).unwrap(),
                }
            };
            assert!(error(1.0) < error(1.02) && error(1.0) < error(0.98), "{}", error(1.0));
            if calibration.is_none() {
                let Part::Whole { scale, .. } = compressed.parts[0] else { panic!() };
                let mean = delta.values().iter().map(|x| x.abs()).sum::<f32>() / delta.values().len() as f32;
                assert!((scale / mean - 1.0).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn every_method_gives_the_same_bytes_again_and_takes_odd_shapes() {
    for (outputs, inputs) in [(576, 1536), (192, 576), (100, 96), (40, 32), (1, 64)] {
        let (delta, calibration) = (delta(outputs, inputs, 14), calibration(inputs.min(192), 15));
        let calibration = (inputs <= 192).then_some(&calibration);
        for method in methods(8 * (outputs + inputs)) {
            let [first, second] = [(); 2].map(|()| compress(&delta, calibration, &method).unwrap());
            assert_eq!(bytes(&first), bytes(&second), "{method:?}");
            assert_eq!(first.report, second.report);
            assert!(first.report.relative_error < 1.5, "{method:?}: {:?}", first.report);
            if calibration.is_none() {
                assert!(first.report.relative_error < 1.0, "{method:?}: {:?}", first.report);
            }
        }
    }
}

#[test]
fn stages_beyond_the_rank_are_cut() {
    let delta = delta(96, 64, 16);
    let method = Method::DeltaCome { split: stages(&[(8, 8), (3, 512), (2, 512)]), choices: Choices::BEST };
    let compressed = compress(&delta, None, &method).unwrap();
    // 56 vectors are left for 3 bits, 64 with zeros.
    let ranks: Vec<usize> = compressed
        .parts
        .iter()
        .map(|part| if let Part::Factors { s, .. } = part { s.len() } else { 0 })
        .collect();
    assert_eq!(ranks, [8, 64]);
    assert!(compressed.report.relative_error < 0.25, "{:?}", compressed.report);
    // A merged LoRA: what is left after its rank is not noise.
    let spectrum = Spectrum { norm: 1.0, rank: 5, exponent: 0.1, tail: 0.0 };
    let delta = Difference::new(96, 64, synthetic::delta(96, 64, &spectrum, 17)).unwrap();
    let compressed = compress(&delta, None, &Method::delta_come(stages(&[(8, 16)]))).unwrap();
    assert!(matches!(&compressed.parts[..], [Part::Factors { s, .. }] if s.len() == 5));
    assert!(compressed.report.relative_error < 0.02, "{:?}", compressed.report);
}

#[test]
fn an_unchanged_matrix_has_no_parts() {
    let delta = Difference::new(32, 64, vec![0.0; 32 * 64]).unwrap();
    let calibration = calibration(64, 18);
    for method in methods(1000) {
        let compressed = compress(&delta, Some(&calibration), &method).unwrap();
        assert!(compressed.parts.is_empty());
        assert_eq!(compressed.report.bytes, 0);
        assert_eq!(compressed.report.relative_error, 0.0);
    }
}

#[test]
fn inputs_without_signal_are_as_none() {
    let mut hessian = Hessian::new(64);
    hessian.add(&[0.0; 64]).unwrap();
    let (delta, calibration) = (delta(64, 64, 19), hessian.calibrate().unwrap());
    for method in methods(6000) {
        let [with, without] = [Some(&calibration), None].map(|c| compress(&delta, c, &method).unwrap());
        assert_eq!(bytes(&with), bytes(&without), "{method:?}");
        assert_eq!(with.report.output_error, Some(0.0));
    }
}

#[test]
fn sparse_entries_are_exact_or_the_greatest() {
    let mut values = vec![0.0; 20 * 30];
    for (at, value) in [(3, 1.5), (29, -0.25), (30, 1e-30), (599, -3.0), (310, 0.1)] {
        values[at] = value;
    }
    let delta = Difference::new(20, 30, values).unwrap();
    let all = compress(&delta, None, &Method::Sparse { bytes: None }).unwrap();
    assert_eq!(all.report.relative_error, 0.0);
    assert_eq!(all.report.bytes, 21 * 4 + 5 * 8);
    let some = compress(&delta, None, &Method::Sparse { bytes: Some(21 * 4 + 2 * 6) }).unwrap();
    let Part::Sparse { starts, columns, values } = &some.parts[0] else { panic!("{:?}", some.parts) };
    assert_eq!((starts[1], starts[19], starts[20]), (1, 1, 2));
    assert_eq!(**columns, [3, 29]);
    assert_eq!(values.decode().unwrap(), [1.5, -3.0]);
}

#[test]
fn dense_formats_round_once() {
    let delta = delta(33, 65, 20);
    for (format, most) in [(Format::F32, 1e-9), (Format::F16, 5e-4), (Format::BF16, 4e-3)] {
        let report = compress(&delta, None, &Method::Dense(format)).unwrap().report;
        assert!(report.relative_error < most, "{format}: {report:?}");
    }
}

#[test]
fn the_difference_of_weights() {
    let tensor = |values: &[f32]| {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        Tensor::new(Format::F32, 2, 2, Bytes::from(bytes)).unwrap()
    };
    let (tuned, base) = (tensor(&[1.0, 2.0, 3.0, 4.5]), tensor(&[1.0, 1.5, 4.0, 4.0]));
    assert_eq!(Difference::between(&tuned, &base).unwrap().values(), [0.0, 0.5, -1.0, 0.5]);
    let error = Difference::between(&tensor(&[0.0, 0.0, f32::NAN, 0.0]), &base).unwrap_err();
    assert_eq!(error.to_string(), "tuned weight: expected finite values, found NaN in row 1, column 0");
}

#[test]
fn refusals_say_what_and_where() {
    let refused = |outcome: Result<Compressed, Error>| outcome.unwrap_err().to_string();
    let error = Difference::new(2, 2, vec![0.0, 1.0, f32::INFINITY, 0.0]).unwrap_err();
    assert_eq!(error.to_string(), "delta: expected finite values, found inf in row 1, column 0");
    let error = Difference::new(2, 2, vec![0.0]).unwrap_err();
    assert_eq!(error.to_string(), "delta: expected [2, 2], not empty, found 1 values");
    let mut hessian = Hessian::new(2);
    let error = hessian.add(&[0.0, 1.0, 2.0, f32::NAN]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "inputs of the layer: expected finite values, found NaN in row 1, column 1"
    );
    let error = hessian.add(&[0.0]).unwrap_err();
    assert_eq!(error.to_string(), "inputs of the layer: expected rows of 2 values, found 1 values");
    hessian.add(&[1e30, 1e30]).unwrap();
    let error = hessian.calibrate().unwrap_err();
    assert!(matches!(error, Error::NotFinite { .. }), "{error}");

    let (narrow, wide) = (delta(32, 100, 21), delta(32, 64, 22));
    let come = |split| Method::delta_come(split);
    let message = refused(compress(&narrow, None, &come(stages(&[(2, 32)]))));
    assert_eq!(message, "a row of 100 inputs: expected a multiple of 32 for vectors of 2 or 3 bits");
    let message = refused(compress(&narrow, None, &Method::BitDelta { feedback: false }));
    assert_eq!(message, "a row of 100 inputs: expected a multiple of 32 for signs");
    let message = refused(compress(&wide, None, &come(stages(&[(8, 1), (4, 32)]))));
    assert_eq!(message, "stage 1: expected 2, 3 or 8 bits, found 4");
    let message = refused(compress(&wide, None, &come(stages(&[(2, 33)]))));
    assert_eq!(message, "stage 0: expected a multiple of 32 vectors of 2 or 3 bits, found 33");
    let message = refused(compress(&wide, None, &come(Split::Bytes(50))));
    assert_eq!(message, "50 bytes for a [32, 64] matrix: one singular vector takes 100 at least");
    let message = refused(compress(&wide, None, &Method::LowRank { bytes: 50, weighted: false }));
    assert_eq!(message, "50 bytes for a [32, 64] matrix: one pair of singular vectors takes 196 at least");
    let message = refused(compress(&wide, None, &Method::Sparse { bytes: Some(50) }));
    assert_eq!(message, "50 bytes for a [32, 64] matrix: one entry takes 138 at least");
    let message = refused(compress(&wide, Some(&calibration(96, 23)), &Method::Ternary));
    assert_eq!(message, "calibration: expected that of 64 inputs, found 96");
}

#[test]
fn synthetic_deltas_have_the_spectrum_asked_for() {
    let spectrum = Spectrum { norm: 3.0, rank: 40, exponent: 0.8, tail: 0.25 };
    let values = synthetic::delta(64, 96, &spectrum, 24);
    assert_eq!(values, synthetic::delta(64, 96, &spectrum, 24));
    assert_ne!(values, synthetic::delta(64, 96, &spectrum, 25));
    let norm = values.iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!((norm - 3.0).abs() < 0.1, "{norm}");
}
