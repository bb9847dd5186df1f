//! Does this adapter fit that base?

use crate::{Adapter, Change, Error, Factor, Place, Site};
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
/// [`Error::OtherBase`] where the adapter names the base that it was trained on.
pub fn fits(adapter: &Adapter, shape: impl Fn(Site) -> Option<Shape>) -> Result<(), Error> {
    edits_fit(adapter, shape).map_err(|source| match &adapter.base_model {
        Some(base) => {
            Error::OtherBase { base_model: base.chars().take(80).collect(), source: Box::new(source) }
        }
        None => source,
    })
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
            Change::Replace { weight } => part(site, "weight", weight, [outputs, inputs])?,
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
            Change::Sparse { rows, columns, .. } => {
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

fn part(site: Site, part: &'static str, tensor: &Tensor, expected: [usize; 2]) -> Result<(), Error> {
    let found = [tensor.rows(), tensor.cols()];
    if found == expected {
        return Ok(());
    }
    Err(Error::Misfit { site, part, expected: format!("{expected:?}"), found: format!("{found:?}") })
}
