//! LoKr: `y = W x + s (W1 (x) W2) x`, a Kronecker product, `s = alpha / r`.
//!
//! Tensors are `<module>.lokr_w1` `[a, c]`, or its factors `.lokr_w1_a` `[a, r]` and `.lokr_w1_b` `[r, c]`; and
//! `.lokr_w2` `[b, d]`, or `.lokr_w2_a` `[b, r]` and `.lokr_w2_b` `[r, d]`, with `a b` outputs and `c d` inputs. The
//! scale is `alpha / r` even where no factor has rank r. (Yeh et al., LyCORIS, arXiv 2309.14859; peft's
//! `lokr/layer.py`.)

use crate::parts::{self, Module, Reader, Suffixes};
use crate::peft::{self, Config, Lycoris};
use crate::{Change, Edit, Error, Factor, Site};

const SUFFIXES: &Suffixes<Part> = &Suffixes {
    rows: &[
        (".lokr_w1", Part::W1, "W1"),
        (".lokr_w1_a", Part::W1a, "W1a"),
        (".lokr_w1_b", Part::W1b, "W1b"),
        (".lokr_w2", Part::W2, "W2"),
        (".lokr_w2_a", Part::W2a, "W2a"),
        (".lokr_w2_b", Part::W2b, "W2b"),
    ],
    expected: "LoKr tensors are base_model.model.<linear layer of a block>.lokr_w1 or .lokr_w1_a and .lokr_w1_b, and \
               .lokr_w2 or .lokr_w2_a and .lokr_w2_b",
};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    W1,
    W1a,
    W1b,
    W2,
    W2a,
    W2b,
}

pub(crate) fn read(config: &Config, reader: &Reader) -> Result<Vec<Edit>, Error> {
    // How the shapes came about: the tensors say it too.
    let settings = Lycoris::new(config, &["decompose_both", "decompose_factor"], peft::UNSUPPORTED)?;
    config.only("init_weights", &[true.into(), "lycoris".into()], "it may have changed the base")?;
    let modules = reader.modules(SUFFIXES, &[], Site::is_linear)?;
    let paths: Vec<&str> = modules.values().map(|module| module.path).collect();
    let mut edits = parts::edits(modules.len())?;
    for ((&site, module), (rank, scale)) in modules.iter().zip(settings.ranks_and_scales(&paths)?) {
        let left = factor(reader, module, [Part::W1, Part::W1a, Part::W1b], rank)?;
        let right = factor(reader, module, [Part::W2, Part::W2a, Part::W2b], rank)?;
        edits.push(Edit { site, change: Change::Kronecker { left, right, scale } });
    }
    Ok(edits)
}

/// A matrix, whole or as a product.
fn factor(
    reader: &Reader,
    module: &Module<'_, Part>,
    [whole, tall, wide]: [Part; 3],
    rank: usize,
) -> Result<Factor, Error> {
    if module.get(tall).is_none() && module.get(wide).is_none() {
        return Ok(Factor::Whole(reader.matrix(module.need(whole)?, [None, None])?));
    }
    if module.get(whole).is_some() {
        return Err(module.unknown(if module.get(tall).is_some() { tall } else { wide }));
    }
    let tall = reader.matrix(module.need(tall)?, [None, Some(rank)])?;
    let wide = reader.matrix(module.need(wide)?, [Some(rank), None])?;
    Ok(Factor::Product(tall, wide))
}
