//! OFT: `y = W (x R) + bias`, with `R` made of blocks on the diagonal, each a rotation.
//!
//! Tensors are `<module>.oft_R.weight` `[blocks, n (n - 1) / 2]`: what is above the diagonal of each block's skew-symmetric
//! `Q`. `R` is the Cayley transform of `Q`, by its Neumann series (`R = I + 2Q + 2Q^2 + 2Q^3 + Q^4`) or exactly. With
//! `block_share` one block stands for all; with `coft` each `Q` is held within a small ball. (Qiu et al., arXiv 2306.07280,
//! 2506.19847; peft's `oft/layer.py`.)

use serde_json::json;

use crate::expand::Cayley;
use crate::parts::{self, Reader, Suffixes};
use crate::peft::{self, Config};
use crate::{Change, Edit, Error, Site};

const UNDERSTOOD: &[&str] = &[
    "bias",
    "block_share",
    "coft",
    "eps",
    "fan_in_fan_out",
    "num_cayley_neumann_terms",
    "use_cayley_neumann",
    // The tensors say it: peft adjusts them to the layer.
    "oft_block_size",
    "r",
    // Training.
    "init_weights",
    "module_dropout",
];

/// Most terms of the series: where it converges so slowly, it is not what was trained.
const MOST_TERMS: usize = 64;

const SUFFIXES: &Suffixes<()> = &Suffixes {
    rows: &[(".oft_R.weight", (), "the rotation")],
    expected: "OFT tensors are base_model.model.<linear layer of a block>.oft_R.weight",
};

pub(crate) fn read(config: &Config, reader: &Reader) -> Result<Vec<Edit>, Error> {
    config.check(UNDERSTOOD, peft::UNSUPPORTED)?;
    config.bool("fan_in_fan_out")?;
    config.only("bias", &[json!("none")], "biases are not replaced by OFT")?;
    let terms = match config.true_unless("use_cayley_neumann")? {
        true => Some(terms(config)?),
        false => None,
    };
    let ball = match config.bool("coft")? {
        true => Some(config.number("eps")?.unwrap_or(6e-5)),
        false => None,
    };
    let share = config.bool("block_share")?;
    let modules = reader.modules(SUFFIXES, &[], Site::is_linear)?;
    let mut edits = parts::edits(modules.len())?;
    for (&site, module) in &modules {
        let name = module.need(())?;
        let skew = reader.matrix(name, [share.then_some(1), None])?;
        let Some(size) = size_of(skew.cols()) else {
            let (expected, found) = ("[_, n (n - 1) / 2]".to_owned(), format!("{:?}", reader.shape(name)));
            return Err(Error::Shape { tensor: name.to_owned(), expected, found });
        };
        edits.push(Edit {
            site,
            change: Change::Rotation { skew, cayley: Cayley { size, terms, ball, share } },
        });
    }
    Ok(edits)
}

/// The terms of the series.
fn terms(config: &Config) -> Result<usize, Error> {
    const TERMS: &str = "num_cayley_neumann_terms";
    match config.rank(TERMS)?.unwrap_or(5) {
        terms if terms <= MOST_TERMS => Ok(terms),
        terms => Err(peft::field(TERMS, &format!("at most {MOST_TERMS}"), &json!(terms))),
    }
}

/// The `n` with `n (n - 1) / 2` values above the diagonal.
fn size_of(above: usize) -> Option<usize> {
    let n = above.saturating_mul(8).saturating_add(1).isqrt().div_ceil(2);
    (n * (n - 1) / 2 == above).then_some(n)
}

#[cfg(test)]
mod tests {
    use super::size_of;

    #[test]
    fn sizes_of_triangles() {
        for n in 2..300 {
            assert_eq!(size_of(n * (n - 1) / 2), Some(n));
            assert_eq!(
                size_of(n * (n - 1) / 2 + 1),
                if n == 2 { None } else { size_of(n * (n - 1) / 2 + 1) }
            );
        }
        assert_eq!([size_of(2), size_of(4), size_of(495), size_of(497)], [None; 4]);
        // As large as a file of 2^40 bytes could be.
        assert_eq!(size_of(1 << 38), None);
    }
}
