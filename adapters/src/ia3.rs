//! IA3: `y = l * (W x + bias)`, or `y = W (l * x) + bias` for the layers that count as feed-forward.
//!
//! Tensors are `<module>.ia3_l`: `[out, 1]` scales outputs, `[1, in]` inputs; peft decides by `feedforward_modules`, and
//! shapes its tensors so. (Liu et al., arXiv 2205.05638; peft's `ia3/layer.py`.)

use graftwork_kernels::Tensor;

use crate::parts::{self, Reader, Suffixes};
use crate::peft::{self, Config};
use crate::{Change, Edit, Error, Site, expand};

const UNDERSTOOD: &[&str] = &["fan_in_fan_out", "feedforward_modules", "init_ia3_weights"];

const SUFFIXES: &Suffixes<()> = &Suffixes {
    rows: &[(".ia3_l", (), "the factors")],
    expected: "IA3 tensors are base_model.model.<linear layer of a block>.ia3_l",
};

pub(crate) fn read(config: &Config, reader: &Reader) -> Result<Vec<Edit>, Error> {
    config.check(UNDERSTOOD, peft::UNSUPPORTED)?;
    config.bool("fan_in_fan_out")?;
    let modules = reader.modules(SUFFIXES, &[], Site::is_linear)?;
    let mut edits = parts::edits(modules.len())?;
    for (&site, module) in &modules {
        let name = module.need(())?;
        let change = if reader.shape(name).first() == Some(&1) {
            Change::InputScale { values: reader.matrix(name, [Some(1), None])? }
        } else {
            let column = reader.matrix(name, [None, Some(1)])?;
            let row = Tensor::new(column.format(), 1, column.rows(), column.bytes().clone());
            Change::OutputScale { values: row.map_err(|source| expand::failed(name, source))? }
        };
        edits.push(Edit { site, change });
    }
    Ok(edits)
}
