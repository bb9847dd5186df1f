//! Compressed deltas of the small base in `golden/adapters/base`, of every method, and the weights that they are of.

use std::fs;

use graftwork_adapters::check::Shape;
use graftwork_adapters::compress::{Difference, Method, Split, Stage, compress, synthetic};
use graftwork_adapters::delta::{Coded, Delta, Layer, Part};
use graftwork_adapters::file::{Dtype, TensorView, write_safetensors};
use graftwork_adapters::{Module, RowOrder, Site, Source};
use graftwork_kernels::{Bytes, Format, Tensor};

use crate::reference::{golden, tensors};

/// Layers of the small base.
pub const LAYERS: usize = 3;

/// The methods by name. Stages of singular vectors are fewer than is usual: the matrices are small.
pub fn methods() -> Vec<(&'static str, Method)> {
    let stage = |bits, count| Stage { bits, count };
    let stages = vec![stage(8, 2), stage(3, 32), stage(2, 64)];
    vec![
        ("delta-come", Method::delta_come(Split::Stages(stages))),
        ("bitdelta", Method::BitDelta { feedback: false }),
        ("low-rank", Method::LowRank { bytes: 6000, weighted: false }),
        ("ternary", Method::Ternary),
        ("sparse", Method::Sparse { bytes: Some(4000) }),
        ("dense", Method::Dense(Format::BF16)),
    ]
}

/// The delta of a synthetic fine-tune by a method, and the base's tensors with what its parts decode to added.
pub fn tuned(name: &str, method: &Method, seed: u64) -> (Delta, Vec<(String, Tensor)>) {
    let mut merged = tensors("adapters/base/model.safetensors");
    let mut layers = Vec::new();
    for layer in 0..LAYERS {
        for &module in Module::ALL {
            let site = Site::Linear { layer, module };
            let name = format!("{}.weight", site.hf_path().unwrap());
            let (_, weight) = merged.iter_mut().find(|(other, _)| *other == name).expect("a linear layer");
            let (outputs, inputs) = (weight.rows(), weight.cols());
            let mut values = weight.decode().unwrap();
            let norm = values.iter().map(|w| w * w).sum::<f32>().sqrt();
            let spectrum = synthetic::Spectrum { norm: 0.3 * norm, ..Default::default() };
            let seed = seed * 1000 + (layer * Module::ALL.len() + module as usize) as u64;
            let delta = synthetic::delta(outputs, inputs, &spectrum, seed);
            let parts =
                compress(&Difference::new(outputs, inputs, delta).unwrap(), None, method).unwrap().parts;
            for part in &parts {
                add(part, inputs, &mut values);
            }
            *weight = Tensor::encode(Format::F32, outputs, inputs, &values).unwrap();
            layers.push(Layer { site, shape: Shape { outputs, inputs }, parts });
        }
    }
    let delta = Delta {
        method: name.to_owned(),
        architecture: Some("llama".to_owned()),
        base_model: None,
        bases: Vec::new(),
        row_order: RowOrder::HuggingFace,
        layers,
        carried: Vec::new(),
    };
    (delta, merged)
}

/// The small base with other weights.
pub fn with_weights(weights: &[(String, Tensor)]) -> Source {
    let shapes: Vec<[u64; 2]> = weights.iter().map(|(_, t)| [t.rows() as u64, t.cols() as u64]).collect();
    let views: Vec<_> = weights
        .iter()
        .zip(&shapes)
        .map(|((name, tensor), shape)| {
            let shape = if name.contains("norm") { &shape[1..] } else { &shape[..] };
            TensorView { name, dtype: Dtype::F32, shape, bytes: tensor.bytes() }
        })
        .collect();
    let mut file = Vec::new();
    write_safetensors(&mut file, &views, &[]).unwrap();
    let config = fs::read(golden("adapters/base/config.json")).unwrap();
    let files = [("config.json", Bytes::from(config)), ("model.safetensors", Bytes::from(file))];
    Source::files(files.map(|(name, bytes)| (name.to_owned(), bytes)).into()).unwrap()
}

/// Adds what a part says to a matrix `[outputs, inputs]`.
fn add(part: &Part, inputs: usize, values: &mut [f32]) {
    let decode = |matrix: &Coded| matrix.to_rows().unwrap().decode().unwrap();
    match part {
        Part::Factors { v, s, u } => {
            let (v, u, rank) = (decode(v), decode(u), u.cols());
            for (u, row) in u.chunks(rank).zip(values.chunks_mut(inputs)) {
                for ((u, s), v) in u.iter().zip(s).zip(v.chunks(inputs)) {
                    row.iter_mut().zip(v).for_each(|(w, v)| *w += u * s * v);
                }
            }
        }
        Part::Whole { matrix, scale } => {
            values.iter_mut().zip(decode(matrix)).for_each(|(w, d)| *w += scale * d);
        }
        Part::Sparse { starts, columns, values: entries }
        | Part::Overwrite { starts, columns, values: entries, .. } => {
            let mut entries = entries.decode().unwrap();
            if let Part::Overwrite { before, .. } = part {
                entries.iter_mut().zip(before.decode().unwrap()).for_each(|(value, before)| *value -= before);
            }
            for (row, ends) in values.chunks_mut(inputs).zip(starts.windows(2)) {
                for e in ends[0] as usize..ends[1] as usize {
                    row[columns[e] as usize] += entries[e];
                }
            }
        }
    }
}
