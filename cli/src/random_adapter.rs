//! Adapters of random values, for measurements: their size is that of trained ones, and so is what they cost.

use std::fs;
use std::path::PathBuf;

use graftwork::{Engine, Source};
use graftwork_adapters::check::Shape;
use graftwork_adapters::delta::{Delta, Layer, Part};
use graftwork_adapters::file::safetensors::{Dtype, TensorView, write_safetensors};
use graftwork_adapters::{Module, RowOrder, Site};
use graftwork_kernels::{Bytes, Format, Tensor};
use serde_json::json;

use crate::Failure;
use crate::arguments::{CountBits, CountRank};
use crate::random_model::{Pool, Random};

/// Loads LoRAs on every linear layer, as `random 0` and so on.
pub fn load_loras(engine: &Engine, CountRank { count, rank }: CountRank) -> Result<Vec<String>, Failure> {
    let load = |i: usize| {
        let name = format!("random {i}");
        engine.load_adapter(&name, random_lora(engine, rank, i)?)?;
        Ok(name)
    };
    (0..count).map(load).collect()
}

/// Loads compressed deltas of every linear layer, as `delta 0` and so on, from files that are mapped and gone by name.
pub fn load_deltas(engine: &Engine, CountBits { count, bits }: CountBits) -> Result<Vec<String>, Failure> {
    let pools = Pools::new()?;
    let load = |i: usize| {
        let name = format!("delta {i}");
        let file = Temporary(std::env::temp_dir().join(format!("graftwork-bench-{}", std::process::id())));
        pools.delta(engine, bits, i as u64)?.write(&file.0)?;
        engine.load_adapter(&name, file.0.as_path())?;
        Ok(name)
    };
    (0..count).map(load).collect()
}

/// A file that is removed in the end; who has mapped it keeps it.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // A system that does not remove mapped files leaves it to its own housekeeping.
        let _ = fs::remove_file(&self.0);
    }
}

/// The linear layers with their shapes, block after block.
fn linears(engine: &Engine) -> impl Iterator<Item = (Site, Shape)> {
    let config = engine.config();
    (0..config.layers).flat_map(move |layer| {
        Module::ALL.iter().map(move |&module| {
            let (outputs, inputs) = config.shape_of(module);
            (Site::Linear { layer, module }, Shape { outputs, inputs })
        })
    })
}

/// Small random values, as a PEFT directory in memory.
fn random_lora(engine: &Engine, rank: usize, seed: usize) -> Result<Source, Failure> {
    let mut state = seed as u32 + 1;
    let mut values = |n: usize| -> Vec<u8> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // A bfloat16 between -1/64 and 1/64.
            let x = ((state >> 16) as f32 / 32768.0 - 1.0) / 64.0;
            ((x.to_bits() >> 16) as u16).to_le_bytes()
        };
        (0..n).flat_map(|_| next()).collect()
    };
    let mut tensors = Vec::new();
    for (site, Shape { outputs, inputs }) in linears(engine) {
        let name = format!("base_model.model.{}", site.hf_path().unwrap_or_default());
        tensors.push((format!("{name}.lora_A.weight"), [rank, inputs], values(rank * inputs)));
        tensors.push((format!("{name}.lora_B.weight"), [outputs, rank], values(outputs * rank)));
    }
    let shapes: Vec<[u64; 2]> = tensors.iter().map(|(_, shape, _)| shape.map(|n| n as u64)).collect();
    let views: Vec<TensorView<'_>> = tensors
        .iter()
        .zip(&shapes)
        .map(|((name, _, bytes), shape)| TensorView { name, dtype: Dtype::BF16, shape, bytes })
        .collect();
    let mut file = Vec::new();
    write_safetensors(&mut file, &views, &[]).map_err(Failure::io("a synthetic adapter"))?;
    let targets: Vec<String> =
        linears(engine).take(Module::ALL.len()).filter_map(|(site, _)| site.hf_path()).collect();
    let targets: Vec<&str> = targets.iter().filter_map(|path| path.rsplit('.').next()).collect();
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": targets,
    });
    let files = vec![
        ("adapter_config.json".to_owned(), Bytes::new(config.to_string().into_bytes())),
        ("adapter_model.safetensors".to_owned(), Bytes::new(file)),
    ];
    Ok(Source::files(files)?)
}

/// Singular vectors of one precision come in multiples of this many, but for 8 bits.
const STEP: usize = 32;

/// Bits of the codes of a layer's singular vectors and how many vectors those are at most, by falling singular value: what Delta-CoMe
/// published. Of 2 bits, as many as there is room for.
const STAGES: [(u32, usize); 3] = [(8, 2), (3, 32), (2, usize::MAX)];

/// Formats of `V [count, inputs]` and `U [outputs, count]`, where they have any.
fn formats(bits: u32, count: usize, inputs: usize) -> Option<(Format, Format)> {
    match bits {
        8 => Some((Format::I8, Format::I8)),
        _ => Some((Format::coded(bits, inputs)?, Format::coded(bits, count)?)),
    }
}

/// Bytes of a stage, scales and singular values included.
fn size(Shape { outputs, inputs }: Shape, (count, v, u): (usize, Format, Format)) -> usize {
    let row = |format: Format, cols| cols / format.block_len() * format.block_bytes();
    count * (row(v, inputs) + size_of::<f32>()) + outputs * row(u, count)
}

/// Stages whose vectors take at most so many bytes.
fn stages(shape: Shape, mut bytes: usize) -> Vec<(usize, Format, Format)> {
    let Shape { outputs, inputs } = shape;
    let mut stages = Vec::new();
    let mut rank = outputs.min(inputs).next_multiple_of(STEP);
    for (bits, most) in STAGES {
        let step = if bits == 8 { most } else { STEP };
        let counts = (step..=rank.min(most)).rev().filter(|count| count.is_multiple_of(step));
        let coded = counts.filter_map(|count| formats(bits, count, inputs).map(|(v, u)| (count, v, u)));
        if let Some(stage) = { coded }.find(|&stage| size(shape, stage) <= bytes) {
            bytes -= size(shape, stage);
            rank = (rank - stage.0) / STEP * STEP;
            stages.push(stage);
        }
    }
    stages
}

/// Random blocks of the formats of deltas, which matrices are put together from.
struct Pools(Vec<(Format, Pool)>);

/// What the values of a pool are about as large as. Those of `I8` are whole numbers.
fn size_of_values(format: Format) -> f32 {
    if format == Format::I8 { 32.0 } else { 1.0 }
}

impl Pools {
    fn new() -> Result<Self, Failure> {
        let mut random = Random(1);
        let coded = [2, 3].into_iter().flat_map(|bits| [32, 64, 128].map(|len| Format::coded(bits, len)));
        let pool = |format| Ok((format, Pool::new(&mut random, format, size_of_values(format))?));
        coded.flatten().chain([Format::I8]).map(pool).collect::<Result<_, Failure>>().map(Self)
    }

    fn matrix(
        &self,
        random: &mut Random,
        rows: usize,
        cols: usize,
        format: Format,
    ) -> Result<Tensor, Failure> {
        let pool = self.0.iter().find(|(other, _)| *other == format);
        let (_, pool) = pool.ok_or_else(|| Failure::Other(format!("no random blocks of {format}")))?;
        pool.matrix(random, rows, cols)
    }

    /// A delta with `bits` bits for each weight, all counted, whose values are about a twentieth of the weights of a random model.
    fn delta(&self, engine: &Engine, bits: f64, seed: u64) -> Result<Delta, Failure> {
        let mut random = Random(seed);
        let mut layers = Vec::new();
        for (site, shape) in linears(engine) {
            let Shape { outputs, inputs } = shape;
            let bytes = (bits / 8.0 * outputs as f64 * inputs as f64) as usize;
            let stages = stages(shape, bytes);
            if stages.is_empty() {
                let least = "32 singular vectors of 2 bits or two of 8";
                return Err(Failure::Other(format!(
                    "--random-deltas: expected at least {least}, found {bytes} bytes for {site} [{outputs}, {inputs}]"
                )));
            }
            let rank: usize = stages.iter().map(|(count, ..)| count).sum();
            let size = 0.05 / ((rank * inputs) as f32).sqrt();
            let part = |(count, v, u): (usize, Format, Format)| {
                let s = size / (size_of_values(v) * size_of_values(u));
                Ok(Part::Factors {
                    v: self.matrix(&mut random, count, inputs, v)?.into(),
                    s: vec![s; count],
                    u: self.matrix(&mut random, outputs, count, u)?.into(),
                })
            };
            let parts = stages.into_iter().map(part).collect::<Result<_, Failure>>()?;
            layers.push(Layer { site, shape, parts });
        }
        Ok(Delta {
            method: "random".to_owned(),
            architecture: None,
            base_model: None,
            bases: Vec::new(),
            row_order: RowOrder::HuggingFace,
            layers,
            carried: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the shapes of a 1.1B model: the published stages first, then as many vectors as there are bytes for.
    #[test]
    fn stages_take_the_bytes_that_there_are() {
        for (outputs, inputs) in [(2048, 2048), (256, 2048), (5632, 2048), (2048, 5632)] {
            let (shape, bytes) = (Shape { outputs, inputs }, outputs * inputs / 8);
            let stages = stages(shape, bytes);
            let counts: Vec<usize> = stages.iter().map(|(count, ..)| *count).collect();
            assert_eq!(counts[..2], [2, 32], "{shape:?}");
            let all: usize = stages.iter().map(|&stage| size(shape, stage)).sum();
            assert!(all <= bytes, "{shape:?}: {counts:?} take {all} of {bytes} bytes");
            let [.., last] = stages[..] else { panic!("{shape:?}") };
            let rest = bytes - all + size(shape, last);
            for count in (last.0 + STEP..=outputs.min(inputs)).step_by(STEP) {
                let (v, u) = formats(2, count, inputs).unwrap();
                assert!(size(shape, (count, v, u)) > rest, "{shape:?}: {count} instead of {} fit", last.0);
            }
        }
        assert!(stages(Shape { outputs: 64, inputs: 64 }, 100).is_empty());
    }
}
