//! AdaLoRA: `y = W x + s B (E (A x))`, with `E` a diagonal of singular values and `s = alpha / (r + 1e-5)`.
//!
//! Tensors are `<module>.lora_A` `[r, in]`, `.lora_B` `[out, r]` and `.lora_E` `[r, 1]`, without `.weight`. The rank is
//! that of the tensors: `init_r`, or what training left of it where the configuration has a `rank_pattern`; peft divides
//! by it plus 1e-5, and takes an alpha of 0 or less for the rank. `E` is folded into `A`. (Zhang et al., arXiv
//! 2303.10512; peft's `adalora/layer.py`.)

use crate::parts::{self, Reader, Suffixes};
use crate::peft::{self, Config};
use crate::{Change, Edit, Error, Site, expand};

const UNDERSTOOD: &[&str] = &[
    "bias",
    "fan_in_fan_out",
    "init_lora_weights",
    "init_r",
    "lora_alpha",
    "rank_pattern",
    // Of LoRA's configuration, which AdaLoRA's extends: not read.
    "r",
    // Training.
    "beta1",
    "beta2",
    "deltaT",
    "orth_reg_weight",
    "target_r",
    "tfinal",
    "tinit",
    "total_step",
];

const SUFFIXES: &Suffixes<Part> = &Suffixes {
    rows: &[(".lora_A", Part::A, "A"), (".lora_B", Part::B, "B"), (".lora_E", Part::E, "E")],
    expected: "AdaLoRA tensors are base_model.model.<linear layer of a block>.lora_A, .lora_B and .lora_E",
};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    A,
    B,
    E,
}

pub(crate) fn read(config: &Config, reader: &Reader) -> Result<Vec<Edit>, Error> {
    config.check(UNDERSTOOD, peft::UNSUPPORTED)?;
    config.only("bias", &["none".into()], "only LoRA may come with trained biases")?;
    config.only("init_lora_weights", &[true.into()], "it may have changed the base")?;
    config.bool("fan_in_fan_out")?;
    let rank = match config.get("rank_pattern") {
        Some(_) => None,
        // PEFT's default where a file leaves it out.
        None => Some(config.rank("init_r")?.unwrap_or(12)),
    };
    let alpha = config.number("lora_alpha")?.unwrap_or(8.0);
    let modules = reader.modules(SUFFIXES, &[], Site::is_linear)?;
    let mut edits = parts::edits(modules.len())?;
    for (&site, module) in &modules {
        let a_name = module.need(Part::A)?;
        // Training may leave a module no rank at all.
        if rank.is_none() && reader.shape(a_name).first() == Some(&0) {
            continue;
        }
        let a = reader.matrix(a_name, [rank, None])?;
        let rank = a.rows();
        let b = reader.matrix(module.need(Part::B)?, [None, Some(rank)])?;
        let e = reader.matrix(module.need(Part::E)?, [Some(rank), Some(1)])?;
        let folded = e.decode().and_then(|e| expand::scaled_rows(&a, &e));
        let a = folded.map_err(|source| expand::failed(a_name, source))?;
        let alpha = if alpha > 0.0 { alpha } else { rank as f64 };
        let scale = (alpha / (rank as f64 + 1e-5)) as f32;
        edits.push(Edit { site, change: Change::LowRank { a, b, scale, bias: None, magnitude: None } });
    }
    Ok(edits)
}
