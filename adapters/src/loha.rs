//! LoHa: `y = W x + s ((W1a W1b) * (W2a W2b)) x`, the product of two low-rank matrices element by element, `s = alpha / r`.
//!
//! Tensors are `<module>.hada_w1_a` `[out, r]`, `.hada_w1_b` `[r, in]`, `.hada_w2_a` `[out, r]` and `.hada_w2_b`
//! `[r, in]`. The product has rank `r^2` at most, with factors that are products of the files' columns and rows: see
//! [`expand::hadamard`](crate::expand::hadamard). (Hyeon-Woo et al., FedPara, arXiv 2108.06098; peft's `loha/layer.py`.)

use crate::parts::{self, Reader, Suffixes};
use crate::peft::{self, Config, Lycoris};
use crate::{Change, Edit, Error, Site};

const SUFFIXES: &Suffixes<Part> = &Suffixes {
    rows: &[
        (".hada_w1_a", Part::W1a, "W1a"),
        (".hada_w1_b", Part::W1b, "W1b"),
        (".hada_w2_a", Part::W2a, "W2a"),
        (".hada_w2_b", Part::W2b, "W2b"),
    ],
    expected: "LoHa tensors are base_model.model.<linear layer of a block>.hada_w1_a, .hada_w1_b, .hada_w2_a and .hada_w2_b",
};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    W1a,
    W1b,
    W2a,
    W2b,
}

pub(crate) fn read(config: &Config, reader: &Reader) -> Result<Vec<Edit>, Error> {
    let settings = Lycoris::new(config, &["use_khatri_rao"], peft::UNSUPPORTED)?;
    let reason = "ABBA adapters have another scale and may have changed the base";
    config.only("init_weights", &[true.into()], reason)?;
    config.only("use_khatri_rao", &["auto".into()], reason)?;
    let modules = reader.modules(SUFFIXES, &[], Site::is_linear)?;
    let paths: Vec<&str> = modules.values().map(|module| module.path).collect();
    let mut edits = parts::edits(modules.len())?;
    for ((&site, module), (rank, scale)) in modules.iter().zip(settings.ranks_and_scales(&paths)?) {
        let tall = |part, outputs| reader.matrix(module.need(part)?, [outputs, Some(rank)]);
        let wide = |part, inputs| reader.matrix(module.need(part)?, [Some(rank), inputs]);
        let (w1a, w1b) = (tall(Part::W1a, None)?, wide(Part::W1b, None)?);
        let (w2a, w2b) = (tall(Part::W2a, Some(w1a.rows()))?, wide(Part::W2b, Some(w1b.cols()))?);
        edits.push(Edit { site, change: Change::Hadamard { first: (w1a, w1b), second: (w2a, w2b), scale } });
    }
    Ok(edits)
}
