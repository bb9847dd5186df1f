//! LayerNorm tuning: the weights of norms, replaced.
//!
//! Tensors are `<norm>.ln_tuning_layers.weight` `[width]`. (Zhao et al., arXiv 2312.11420; peft's `ln_tuning/layer.py`.)

use crate::parts::{self, Reader, Suffixes};
use crate::peft::{self, Config};
use crate::{Change, Edit, Error, Site};

const SUFFIXES: &Suffixes<()> = &Suffixes {
    rows: &[(".ln_tuning_layers.weight", (), "the weight")],
    expected: "LayerNorm tuning tensors are base_model.model.<norm>.ln_tuning_layers.weight",
};

pub(crate) fn read(config: &Config, reader: &Reader) -> Result<Vec<Edit>, Error> {
    config.check(&[], peft::UNSUPPORTED)?;
    let modules = reader.modules(SUFFIXES, &[], Site::is_norm)?;
    let mut edits = parts::edits(modules.len())?;
    for (&site, module) in &modules {
        let weight = reader.vector(module.need(())?, None)?;
        edits.push(Edit { site, change: Change::Replace { weight } });
    }
    Ok(edits)
}
