//! Does this adapter fit that base?

use crate::delta::Fingerprint;
use crate::{Adapter, Change, Coded, Error, Factor, Key, Place, Site};
use graftwork_kernels::Tensor;

/// The shape of a site of the base, `[outputs, inputs]`: a linear layer's, `[vocabulary, width]`, `[1, width]` of a norm
/// and of the prompt, `[layers, width of keys]` of the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows of the weight.
    pub outputs: usize,
    /// Columns of the weight.
    pub inputs: usize,
}

/// Checks every edit of `adapter` against the base, whose `shape` at a site is `None` where it has no such site.
///
/// # Errors
/// The first edit that does not fit: [`Error::NoSite`], or [`Error::Misfit`] with the shape expected and found; in
/// [`Error::Tensors`] with the tensors of the file that it is about, and in [`Error::OtherBase`] where the adapter names the base that it was trained on.
pub fn fits(adapter: &Adapter, shape: impl Fn(Site) -> Option<Shape>) -> Result<(), Error> {
    let fits = edits_fit(adapter, shape).map_err(|error| named(adapter, error));
    fits.map_err(|source| match &adapter.base_model {
        Some(base) => {
            Error::OtherBase { base_model: base.chars().take(80).collect(), source: Box::new(source) }
        }
        None => source,
    })
}

/// How many tokens a model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// Those that can be read: rows of the embedding.
    pub embedding: usize,
    /// Those that can be written: rows of the head.
    pub head: usize,
}

/// The tokens there are with the adapter, if it replaces embedding or head by larger ones than the base's of `base` tokens.
///
/// # Errors
/// [`Error::Misfit`] in [`Error::Tensors`], as [`fits`]: the head has more tokens than the embedding, so that an answer could
/// not go on after them; or one of both is changed in another way too.
pub fn vocabulary(adapter: &Adapter, base: usize) -> Result<Option<Vocabulary>, Error> {
    let weight = |site| {
        let mut of_site = adapter.edits.iter().filter(move |edit| edit.site == site);
        of_site.find_map(|edit| match &edit.change {
            Change::Replace { weight } => Some(weight),
            _ => None,
        })
    };
    let [embedding, head] = [Site::Embedding, Site::Head].map(weight);
    let [tokens, of_head] = [embedding, head].map(|weight| weight.map_or(base, Tensor::rows));
    if tokens.max(of_head) <= base {
        return Ok(None);
    }
    let misfit =
        |site, part, expected, found| Err(named(adapter, Error::Misfit { site, part, expected, found }));
    if let Some(head) = head.filter(|head| head.rows() > tokens) {
        let expected = format!("at most the {tokens} tokens of the embedding");
        return misfit(Site::Head, "weight", expected, format!("{:?}", [head.rows(), head.cols()]));
    }
    let is_other = |change: &Change| !matches!(change, Change::Replace { .. });
    match adapter.edits.iter().find(|edit| edit.site.is_of_tokens() && is_other(&edit.change)) {
        Some(edit) => {
            let expected = format!("no other beside a weight of {tokens} tokens");
            misfit(edit.site, "change", expected, "one".to_owned())
        }
        None => Ok(Some(Vocabulary { embedding: tokens, head: of_head })),
    }
}

/// The error with the file's tensors: the one of the shape found, or all of the site.
fn named(adapter: &Adapter, error: Error) -> Error {
    let (site, found) = match &error {
        Error::NoSite { site } => (*site, ""),
        Error::Misfit { site, found, .. } => (*site, found.as_str()),
        _ => return error,
    };
    let is_here = |key: &&Key| key.site.is_none_or(|own| own == site);
    let is_found = |key: &&Key| match key.shape[..] {
        [n] | [n, 1] if format!("[1, {n}]") == found => true,
        _ => format!("{:?}", key.shape) == found,
    };
    let here: Vec<&Key> = adapter.keys.iter().filter(is_here).collect();
    let exact: Vec<&Key> = here.iter().copied().filter(is_found).collect();
    let keys = if exact.is_empty() { here } else { exact };
    if keys.is_empty() {
        return error;
    }
    let tensors = keys.iter().map(|key| key.tensor.as_str()).collect::<Vec<_>>().join(", ");
    Error::Tensors { tensors, source: Box::new(error) }
}

fn edits_fit(adapter: &Adapter, shape: impl Fn(Site) -> Option<Shape>) -> Result<(), Error> {
    for edit in &adapter.edits {
        let site = edit.site;
        let Shape { outputs, inputs } = shape(site).ok_or(Error::NoSite { site })?;
        match &edit.change {
            Change::LowRank { a, b, bias, magnitude, .. } => {
                // The embedding's input is a token.
                let (outputs, inputs) = match site {
                    Site::Embedding => (inputs, outputs),
                    _ => (outputs, inputs),
                };
                part(site, "A", a, [a.rows(), inputs])?;
                part(site, "B", b, [outputs, a.rows()])?;
                for (name, vector) in [("bias of B", bias), ("magnitude", magnitude)] {
                    vector.as_ref().map_or(Ok(()), |vector| part(site, name, vector, [1, outputs]))?;
                }
            }
            Change::Bias { values } => part(site, "bias", values, [1, outputs])?,
            Change::Replace { weight } => {
                // Embedding and head may have tokens of their own after the base's.
                let outputs = match site {
                    Site::Embedding | Site::Head => outputs.max(weight.rows()),
                    _ => outputs,
                };
                part(site, "weight", weight, [outputs, inputs])?;
            }
            Change::Rows { tokens, rows } => {
                part(site, "rows of tokens", rows, [tokens.len(), inputs])?;
                if let Some(token) = tokens.last().filter(|&&token| token as usize >= outputs) {
                    let (expected, found) = (format!("below {outputs}"), token.to_string());
                    return Err(Error::Misfit { site, part: "a token", expected, found });
                }
            }
            Change::VirtualTokens { rows } => {
                part(site, "virtual tokens", rows, [rows.rows(), inputs])?;
            }
            Change::Prefix { rows, layers } => {
                let width = 2 * outputs * inputs;
                if (*layers, rows.cols()) != (outputs, width) {
                    let expected = format!("{outputs} layers of [_, {}]", 2 * inputs);
                    let found = format!("{layers} layers in [{}, {}]", rows.rows(), rows.cols());
                    return Err(Error::Misfit { site, part: "keys and values", expected, found });
                }
            }
            Change::Rotation { skew, cayley } => {
                let blocks = if cayley.share { inputs / cayley.size } else { skew.rows() };
                if blocks.checked_mul(cayley.size) != Some(inputs) {
                    let found = format!("{} blocks of {}", skew.rows(), cayley.size);
                    let (part, expected) = ("rotation", format!("blocks of {inputs} inputs together"));
                    return Err(Error::Misfit { site, part, expected, found });
                }
            }
            Change::Bottleneck { place, down, down_bias, up, up_bias, channels, .. } => {
                let (from, to) = match place {
                    Place::Input => (inputs, inputs),
                    Place::Series => (outputs, outputs),
                    Place::Parallel => (inputs, outputs),
                };
                part(site, "projection down", down, [down.rows(), from])?;
                part(site, "projection up", up, [to, down.rows()])?;
                for (name, vector, len) in [
                    ("bias of the projection down", down_bias, down.rows()),
                    ("bias of the projection up", up_bias, to),
                    ("scaling of channels", channels, to),
                ] {
                    vector.as_ref().map_or(Ok(()), |vector| part(site, name, vector, [1, len]))?;
                }
            }
            Change::Add { values } => part(site, "direction", values, [1, outputs])?,
            Change::Project { directions } => {
                part(site, "components", directions, [directions.rows(), outputs])?
            }
            Change::OutputScale { values } => part(site, "output scale", values, [1, outputs])?,
            Change::InputScale { values } => part(site, "input scale", values, [1, inputs])?,
            Change::Shared { a, b, inner, outer } => {
                if a.cols() < inputs || b.rows() < outputs {
                    let expected = format!("at least [_, {inputs}] and [{outputs}, _]");
                    let found = format!("[{}, {}] and [{}, {}]", a.rows(), a.cols(), b.rows(), b.cols());
                    return Err(Error::Misfit { site, part: "shared A and B", expected, found });
                }
                part(site, "inner scale", inner, [1, a.rows()])?;
                part(site, "outer scale", outer, [1, outputs])?;
            }
            Change::Hadamard { first, second, .. } => {
                for (a, b) in [first, second] {
                    part(site, "W1a or W2a", a, [outputs, a.cols()])?;
                    part(site, "W1b or W2b", b, [b.rows(), inputs])?;
                }
            }
            Change::Kronecker { left, right, .. } => {
                let found = [left.rows().checked_mul(right.rows()), left.cols().checked_mul(right.cols())];
                if found != [Some(outputs), Some(inputs)] {
                    let product = |f: fn(&Factor) -> usize| format!("{} * {}", f(left), f(right));
                    let found = format!("[{}, {}]", product(Factor::rows), product(Factor::cols));
                    let expected = format!("[{outputs}, {inputs}]");
                    return Err(Error::Misfit { site, part: "Kronecker product", expected, found });
                }
            }
            Change::Factors { v, s, u } => {
                coded(site, "V", v, [s.len(), inputs])?;
                coded(site, "U", u, [outputs, s.len()])?;
            }
            Change::Whole { matrix, .. } => coded(site, "delta", matrix, [outputs, inputs])?,
            // Made in the shape of the layer.
            Change::Seeded { .. } => {}
            Change::Sparse { rows, columns, .. } | Change::Overwrite { rows, columns, .. } => {
                for (what, places, limit) in
                    [("row of an entry", rows, outputs), ("column of an entry", columns, inputs)]
                {
                    if let Some(place) = places.iter().find(|&&place| place as usize >= limit) {
                        let (expected, found) = (format!("below {limit}"), place.to_string());
                        return Err(Error::Misfit { site, part: what, expected, found });
                    }
                }
            }
        }
    }
    Ok(())
}

/// Checks that the adapter is for the base's architecture, where the adapter names one.
///
/// # Errors
/// [`Error::Architecture`].
pub fn architecture(adapter: &Adapter, base: &str) -> Result<(), Error> {
    match &adapter.architecture {
        Some(found) if found != base => {
            Err(Error::Architecture { expected: base.to_owned(), found: found.clone() })
        }
        _ => Ok(()),
    }
}

/// Checks that the adapter is for the base that `fingerprint` computes the fingerprint of, where the adapter names any; asked for only
/// then.
///
/// # Errors
/// [`Error::Fingerprint`].
pub fn base(adapter: &Adapter, fingerprint: impl FnOnce() -> Fingerprint) -> Result<(), Error> {
    if adapter.bases.is_empty() {
        return Ok(());
    }
    let found = fingerprint();
    match adapter.bases.contains(&found) {
        true => Ok(()),
        false => {
            let expected: Vec<String> = adapter.bases.iter().map(ToString::to_string).collect();
            Err(Error::Fingerprint { expected: expected.join(" or "), found })
        }
    }
}

fn part(site: Site, part: &'static str, tensor: &Tensor, expected: [usize; 2]) -> Result<(), Error> {
    fits_shape(site, part, [tensor.rows(), tensor.cols()], expected)
}

fn coded(site: Site, part: &'static str, matrix: &Coded, expected: [usize; 2]) -> Result<(), Error> {
    fits_shape(site, part, [matrix.rows(), matrix.cols()], expected)
}

fn fits_shape(site: Site, part: &'static str, found: [usize; 2], expected: [usize; 2]) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Misfit { site, part, expected: format!("{expected:?}"), found: format!("{found:?}") })
}
