//! BitDelta: `y += coeff sign(D) x`, one bit for each weight.
//!
//! `diff.pt`, a dictionary that `torch.save` wrote: `<linear>.mask` I32 `[inputs / 32, outputs]`, where bit `k` of word `w` is 1 for `+1` of
//! input `32 w + k` and 0 for `-1`; `<linear>.coeff`, one number; every other parameter that was trained, whole, as `<module>.weight`
//! and `.bias`. (Liu et al., arXiv 2402.10193; FasterDecoding/BitDelta, `bitdelta/diff.py` and `binary_gemm_kernel.py`.)

use graftwork_kernels::{Bytes, Format, Tensor, tensor};

use super::{Delta, Layer, Part};
use crate::check::Shape;
use crate::parts::{Keys, Module, Reader, Suffixes};
use crate::{Change, Edit, Error, RowOrder, Site, expand, names};

/// What the file is called.
pub(crate) const NAME: &str = "diff.pt";

const SUFFIXES: &Suffixes<Field> = &Suffixes {
    rows: &[
        (".mask", Field::Mask, "the signs"),
        (".coeff", Field::Coeff, "the scale"),
        (".weight", Field::Weight, "the weight"),
        (".bias", Field::Bias, "the bias"),
    ],
    expected: "BitDelta's tensors are <linear layer of a block>.mask and .coeff, <module>.weight and .bias",
};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Field {
    Mask,
    Coeff,
    Weight,
    Bias,
}

/// Whether these are the names of such a file.
pub(crate) fn is_one<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.any(|name| name.ends_with(".mask"))
}

impl Delta {
    /// Reads BitDelta's `diff.pt`, or a safetensors file with the same tensors.
    ///
    /// # Errors
    /// Whatever is malformed, missing or not understood, naming the tensor.
    pub fn from_bitdelta(bytes: Bytes) -> Result<Self, Error> {
        read(&Reader::new(bytes)?)
    }
}

pub(crate) fn read(reader: &Reader) -> Result<Delta, Error> {
    let keys = Keys { before: "", between: "", site: &names::hf_site };
    let modules = reader.modules_by(keys, SUFFIXES, &[], |_| true)?;
    let mut delta = Delta::imported("bitdelta");
    for (&site, module) in &modules {
        if module.has(&[Field::Mask, Field::Coeff]) {
            let (mask, coeff) = (module.need(Field::Mask)?, module.need(Field::Coeff)?);
            if !site.is_linear() {
                return Err(module.unknown(Field::Mask));
            }
            if let Some(weight) = module.get(Field::Weight) {
                let (first, second) = (mask.to_owned(), weight.to_owned());
                return Err(Error::Conflict { first, second, what: "the weight", site });
            }
            let matrix = signs(reader, mask)?;
            let shape = Shape { outputs: matrix.rows(), inputs: matrix.cols() };
            let part = Part::Whole { matrix: matrix.into(), scale: scalar(reader, coeff)? };
            delta.layers.push(Layer { site, shape, parts: vec![part] });
        }
        delta.carried.extend(weight(reader, module, site, Field::Weight)?);
        if let Some(name) = module.get(Field::Bias) {
            if !site.is_linear() {
                return Err(module.unknown(Field::Bias));
            }
            delta.carried.push(Edit { site, change: Change::Bias { values: reader.vector(name, None)? } });
        }
    }
    Ok(delta)
}

impl Delta {
    /// Nothing yet, of any base, rows in Hugging Face order.
    pub(super) fn imported(method: &str) -> Self {
        Self {
            method: method.to_owned(),
            architecture: None,
            base_model: None,
            bases: Vec::new(),
            row_order: RowOrder::HuggingFace,
            layers: Vec::new(),
            carried: Vec::new(),
        }
    }
}

/// A weight that becomes another, if there is one.
pub(super) fn weight<P: Copy + Ord>(
    reader: &Reader,
    module: &Module<'_, P>,
    site: Site,
    field: P,
) -> Result<Option<Edit>, Error> {
    let Some(name) = module.get(field) else { return Ok(None) };
    let weight =
        if site.is_norm() { reader.vector(name, None)? } else { reader.matrix(name, [None, None])? };
    Ok(Some(Edit { site, change: Change::Replace { weight } }))
}

/// A number, whatever the shape of its tensor.
fn scalar(reader: &Reader, name: &str) -> Result<f32, Error> {
    match reader.shape(name)[..] {
        [] => reader.number(name),
        _ => reader.scalar(name),
    }
}

/// The signs, row after row: words change places, bits stay where they are.
fn signs(reader: &Reader, name: &str) -> Result<Tensor, Error> {
    let [words, outputs] = reader.dims(name)?;
    let mask = reader.integers(name, [words, outputs])?;
    let failed = |source| expand::failed(name, source);
    let mut bytes = tensor::reserved(mask.len().saturating_mul(4)).map_err(failed)?;
    for output in 0..outputs {
        bytes.extend((0..words).flat_map(|word| (mask[word * outputs + output] as u32).to_le_bytes()));
    }
    Tensor::new(Format::Sign, outputs, words.saturating_mul(32), bytes.into()).map_err(failed)
}
