//! Ablation of concepts: `h -= (h Q) Q^T` behind chosen blocks, with orthonormal columns in `Q`.
//!
//! A directory whose `adapter_config.json` says `"peft_type": "ABLATION"` and, as CAFT's files do, `"dict": {"<layer>": [columns]}`: which
//! columns of which block's components. The components are `components_layer_<layer>.npy` `[width, components]`, or
//! tensors `components.<layer>` of `adapter_model.safetensors`; of these, without `dict`, all columns of all. Columns that are not
//! orthonormal would change what they should keep: they are refused. (Casademunt et al., arXiv 2507.16795; cadentj/caft.)

use std::collections::BTreeMap;

use graftwork_kernels::{Format, Tensor, tensor};
use serde_json::Value;

use crate::file::{self, Source, npy};
use crate::open::WEIGHTS;
use crate::parts::{self, Reader};
use crate::peft::{self, Config, field, short};
use crate::{Adapter, Change, Edit, Error, Kind, Site, expand, finite};

/// How far a product of two columns may be from 0 or 1: bfloat16 keeps 8 bits.
const TOLERANCE: f64 = 0.02;

/// The columns of each block.
type Columns = BTreeMap<usize, Vec<usize>>;

/// The components in `.npy` files beside a configuration of this kind, unless there is a file of tensors.
pub(crate) fn beside(config: &Config, source: &Source) -> Result<Option<Adapter>, Error> {
    if config.str("peft_type")? != Kind::Ablation.peft_type() {
        return Ok(None);
    }
    for name in WEIGHTS {
        if source.file(name)?.is_some() {
            return Ok(None);
        }
    }
    let Some(columns) = columns(config)? else {
        let expected = "the components of each block, {\"<layer>\": [columns]}, where there is no adapter_model.safetensors";
        return Err(field("dict", expected, &Value::Null));
    };
    let mut edits = parts::edits(columns.len())?;
    for (layer, columns) in columns {
        let name = format!("components_layer_{layer}.npy");
        let bytes = source.small_file(&name)?;
        let bytes = bytes.ok_or_else(|| file::Error::Missing { what: "file", name: name.clone() })?;
        let components = npy::matrix(&bytes).map_err(|error| error.in_file(&name))?;
        finite::check(&name, &components)?;
        edits.push(edit(layer, Some(&columns), &name, &components)?);
    }
    Ok(Some(Adapter::new(Kind::Ablation, edits, Vec::new())))
}

/// Reads the tensors of a safetensors file.
pub(crate) fn read(config: &Config, reader: &Reader) -> Result<Vec<Edit>, Error> {
    let columns = columns(config)?;
    let mut layers = Vec::new();
    for name in reader.names() {
        let layer = name.strip_prefix("components.").and_then(|layer| {
            let number = layer.parse::<usize>().ok()?;
            (number.to_string() == layer).then_some(number)
        });
        let expected = "components to be ablated are components.<layer>";
        layers.push(layer.ok_or_else(|| Error::UnknownTensor { tensor: name.to_owned(), expected })?);
    }
    layers.sort_unstable();
    let chosen: Vec<_> = match &columns {
        Some(columns) => columns.iter().map(|(&layer, columns)| (layer, Some(&columns[..]))).collect(),
        None => layers.into_iter().map(|layer| (layer, None)).collect(),
    };
    let mut edits = parts::edits(chosen.len())?;
    for (layer, columns) in chosen {
        let name = format!("components.{layer}");
        if !reader.has(&name) {
            return Err(file::Error::Missing { what: "tensor", name }.into());
        }
        edits.push(edit(layer, columns, &name, &reader.matrix(&name, [None, None])?)?);
    }
    Ok(edits)
}

/// The columns of `Q [width, components]` as rows.
fn edit(layer: usize, columns: Option<&[usize]>, name: &str, q: &Tensor) -> Result<Edit, Error> {
    let failed = |source| expand::failed(name, source);
    let (values, count) = (q.decode().map_err(failed)?, q.cols());
    let all: Vec<usize> = (0..count).collect();
    let columns = columns.unwrap_or(&all);
    if let Some(&column) = columns.iter().find(|&&column| column >= count) {
        let (tensor, limit, found) = (name.to_owned(), count as u64, column as i64);
        return Err(Error::Index { tensor, what: "a column in dict", limit, found });
    }
    let width = q.rows();
    let mut rows = tensor::reserved(columns.len().saturating_mul(width)).map_err(failed)?;
    for &column in columns {
        rows.extend(values.iter().skip(column).step_by(count));
    }
    for (i, a) in rows.chunks_exact(width).enumerate() {
        for (j, b) in rows.chunks_exact(width).enumerate().take(i + 1) {
            let product: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            if (product - f64::from(u8::from(i == j))).abs() > TOLERANCE {
                return Err(Error::Shape {
                    tensor: name.to_owned(),
                    expected: "of orthonormal columns".to_owned(),
                    found: format!("columns {} and {} with the product {product:.3}", columns[i], columns[j]),
                });
            }
        }
    }
    let directions = Tensor::encode(Format::F32, columns.len(), width, &rows).map_err(failed)?;
    Ok(Edit { site: Site::AfterFfn { layer }, change: Change::Project { directions } })
}

/// The field `dict`.
fn columns(config: &Config) -> Result<Option<Columns>, Error> {
    // CAFT's `path` says where the components were.
    config.check(&["dict", "path"], peft::UNSUPPORTED)?;
    let expected = "an object {\"<layer>\": [columns]}";
    let wrong = |value: &Value| field("dict", expected, value);
    let Some(value) = config.get("dict") else { return Ok(None) };
    let mut columns = Columns::new();
    for (layer, list) in value.as_object().ok_or_else(|| wrong(value))? {
        let number = layer.parse::<usize>().ok().filter(|number| number.to_string() == *layer);
        let number = number.ok_or_else(|| wrong(&Value::String(layer.clone())))?;
        let mut list = match list.as_array() {
            Some(list) if !list.is_empty() => {
                let column = |value: &Value| value.as_u64().and_then(|column| usize::try_from(column).ok());
                list.iter().map(column).collect::<Option<Vec<_>>>()
            }
            _ => None,
        }
        .ok_or_else(|| field(&format!("dict.{layer}"), "an array of columns", list))?;
        let length = list.len();
        list.sort_unstable();
        list.dedup();
        if list.len() < length {
            let found = Value::String(format!("{} of {length} different", list.len()));
            return Err(field(&format!("dict.{layer}"), "every column once", &found));
        }
        columns.insert(number, list);
    }
    match columns.is_empty() {
        true => Err(field("dict", expected, &Value::String(short(value)))),
        false => Ok(Some(columns)),
    }
}
