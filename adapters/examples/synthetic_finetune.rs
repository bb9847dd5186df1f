//! A fine-tune that nobody trained: of a GGUF base, the linear layers of the blocks plus deltas with a long-tailed spectrum, in F32.
//!
//! `cargo run --release -p graftwork-adapters --example synthetic_finetune -- BASE.gguf OUT.gguf [SHARE] [SEED]`: each delta has SHARE
//! (0.1) of its weight's norm. To measure methods of compression where no fine-tune is at hand.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};

use graftwork_adapters::TensorFile;
use graftwork_adapters::compress::synthetic::{Spectrum, delta};
use graftwork_adapters::file::{Gguf, GgufWriter};
use graftwork_kernels::{Format, Tensor};

const LINEARS: [&str; 7] = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base, out, rest @ ..] = &arguments[..] else {
        return Err("expected BASE.gguf OUT.gguf [SHARE] [SEED]".into());
    };
    let share: f64 = rest.first().map_or(Ok(0.1), |share| share.parse())?;
    let seed: u64 = rest.get(1).map_or(Ok(1), |seed| seed.parse())?;
    let base = Gguf::open(base)?;
    let mut tuned = GgufWriter::new();
    for (key, value) in base.metadata().iter() {
        tuned.key(key, value.clone());
    }
    for (number, (name, _)) in (0..).zip(base.tensors().iter()) {
        let mut tensor = base.require(name)?;
        if LINEARS.iter().any(|linear| name.ends_with(&format!(".{linear}.weight"))) {
            let (rows, cols, mut values) = (tensor.rows(), tensor.cols(), tensor.decode()?);
            let norm = values.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
            let spectrum = Spectrum { norm: (share * norm) as f32, ..Spectrum::default() };
            let change = delta(rows, cols, &spectrum, seed.wrapping_mul(1 << 32).wrapping_add(number));
            values.iter_mut().zip(change).for_each(|(w, d)| *w += d);
            tensor = Tensor::encode(Format::F32, rows, cols, &values)?;
        }
        tuned.tensor(name, tensor);
    }
    let mut file = BufWriter::new(File::create(out)?);
    tuned.write(&mut file)?;
    file.flush()?;
    Ok(())
}
