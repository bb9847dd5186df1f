//! VeRA: `y = W x + b (B (d (A x)))`, with one random pair `A`, `B` for all modules and two trained vectors for each.
//!
//! Tensors are `base_model.vera_A` `[r, widest in]` and `base_model.vera_B` `[widest out, r]`, of which a module takes
//! the first `in` columns and `out` rows, and `<module>.vera_lambda_d` `[r]` and `.vera_lambda_b` `[out]`. There is no
//! other scale. A file without the projections holds a seed of torch's generator instead and is refused. (Kopiczko et
//! al., arXiv 2310.11454; peft's `vera/layer.py`.)

use crate::parts::{self, Reader, Suffixes};
use crate::peft::{self, Config};
use crate::{Change, Edit, Error, Site};

const UNDERSTOOD: &[&str] = &[
    "bias",
    "fan_in_fan_out",
    "projection_prng_key",
    "r",
    "save_projection",
    // Training.
    "d_initial",
    "init_weights",
    "vera_dropout",
];

const SUFFIXES: &Suffixes<Part> = &Suffixes {
    rows: &[(".vera_lambda_b", Part::Outer, "b"), (".vera_lambda_d", Part::Inner, "d")],
    expected: "VeRA tensors are base_model.vera_A, base_model.vera_B, and base_model.model.<linear layer of a \
               block>.vera_lambda_b and .vera_lambda_d",
};

const A: &str = "base_model.vera_A";
const B: &str = "base_model.vera_B";

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Inner,
    Outer,
}

pub(crate) fn read(config: &Config, reader: &Reader) -> Result<Vec<Edit>, Error> {
    config.check(UNDERSTOOD, peft::UNSUPPORTED)?;
    config.only("bias", &["none".into()], "only LoRA may come with trained biases")?;
    config.bool("fan_in_fan_out")?;
    // PEFT's default where a file leaves it out.
    let rank = config.rank("r")?.unwrap_or(256);
    for name in [A, B] {
        if !reader.has(name) {
            let reason = "the projections come from a seed; save with save_projection";
            return Err(Error::Unsupported { what: format!("VeRA without tensor {name}"), reason });
        }
    }
    let a = reader.matrix(A, [Some(rank), None])?;
    let b = reader.matrix(B, [None, Some(rank)])?;
    let modules = reader.modules(SUFFIXES, &[A, B], Site::is_linear)?;
    let mut edits = parts::edits(modules.len())?;
    for (&site, module) in &modules {
        let inner = reader.vector(module.need(Part::Inner)?, Some(rank))?;
        let outer = reader.vector(module.need(Part::Outer)?, None)?;
        edits.push(Edit { site, change: Change::Shared { a: a.clone(), b: b.clone(), inner, outer } });
    }
    Ok(edits)
}
