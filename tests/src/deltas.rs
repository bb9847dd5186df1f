//! Compressed deltas of the small base in `golden/adapters/base`, of every method, and the weights that they are of.

use graftwork_adapters::check::Shape;
use graftwork_adapters::compress::{Difference, Method, Split, Stage, compress, synthetic};
use graftwork_adapters::delta::{Coded, Delta, Layer, Part};
use graftwork_adapters::{Module, RowOrder, Site};
use graftwork_kernels::{Format, Tensor};

use crate::reference::tensors;

/// Layers of the small base.
pub const LAYERS: usize = 3;

/// The weights of the linear layers in Hugging Face files, in the order of [`Module::ALL`].
pub const NAMES: [&str; Module::ALL.len()] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

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
        for (&module, part) in Module::ALL.iter().zip(NAMES) {
            let name = format!("model.layers.{layer}.{part}.weight");
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
            layers.push(Layer {
                site: Site::Linear { layer, module },
                shape: Shape { outputs, inputs },
                parts,
            });
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
        Part::Sparse { starts, columns, values: entries } => {
            let entries = entries.decode().unwrap();
            for (row, ends) in values.chunks_mut(inputs).zip(starts.windows(2)) {
                for e in ends[0] as usize..ends[1] as usize {
                    row[columns[e] as usize] += entries[e];
                }
            }
        }
    }
}
