//! SHiRA: `y = W x + S x`, with `S` sparse.
//!
//! Tensors are `<module>.shira_weight` `[n]` and `.shira_indices` `[2, n]`, whose rows are the rows and columns of the
//! values; values at the same place add up. The scale is 1 always. (Bhardwaj et al., arXiv 2406.13175; peft's
//! `shira/layer.py`.)

use std::sync::Arc;

use crate::parts::{self, Reader, Suffixes};
use crate::peft::{self, Config};
use crate::{Change, Edit, Error, Site};

const UNDERSTOOD: &[&str] = &[
    "fan_in_fan_out",
    // How many values there are and where: the tensors say it.
    "init_weights",
    "mask_type",
    "r",
    "random_seed",
];

const SUFFIXES: &Suffixes<Part> = &Suffixes {
    rows: &[(".shira_weight", Part::Values, "the values"), (".shira_indices", Part::Places, "the indices")],
    expected: "SHiRA tensors are base_model.model.<linear layer of a block>.shira_weight and .shira_indices",
};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Values,
    Places,
}

pub(crate) fn read(config: &Config, reader: &Reader) -> Result<Vec<Edit>, Error> {
    config.check(UNDERSTOOD, peft::UNSUPPORTED)?;
    config.bool("fan_in_fan_out")?;
    let modules = reader.modules(SUFFIXES, &[], Site::is_linear)?;
    let mut edits = parts::edits(modules.len())?;
    for (&site, module) in &modules {
        let values = reader.vector(module.need(Part::Values)?, None)?;
        let name = module.need(Part::Places)?;
        let indices = reader.integers(name, [2, values.cols()])?;
        let (rows, columns) = indices.split_at(values.cols());
        let index = |what| {
            move |&found: &i64| {
                let limit = u64::from(u32::MAX);
                u32::try_from(found).map_err(|_| Error::Index { tensor: name.to_owned(), what, limit, found })
            }
        };
        let rows: Arc<[u32]> = rows.iter().map(index("a row")).collect::<Result<_, _>>()?;
        let columns: Arc<[u32]> = columns.iter().map(index("a column")).collect::<Result<_, _>>()?;
        edits.push(Edit { site, change: Change::Sparse { rows, columns, values } });
    }
    Ok(edits)
}
