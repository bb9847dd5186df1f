//! Writing safetensors.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::Dtype;
use crate::file::Error;

/// A tensor on its way into a safetensors file.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Its name.
    pub name: &'a str,
    /// The element type.
    pub dtype: Dtype,
    /// The shape, slowest dimension first.
    pub shape: &'a [u64],
    /// The elements, little-endian.
    pub bytes: &'a [u8],
}

/// Writes a safetensors file with these tensors, in this order, and the texts of `metadata`.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] with an [`Error`]: a name twice, or bytes that are not of type and shape; anything
/// else from `out`.
pub fn write_safetensors(
    out: &mut impl Write,
    tensors: &[TensorView<'_>],
    metadata: &[(&str, &str)],
) -> io::Result<()> {
    let invalid = |error: Error| io::Error::new(io::ErrorKind::InvalidInput, error);
    for &TensorView { name, dtype, shape, bytes } in tensors {
        if dtype.size(shape) != Some(bytes.len() as u64) {
            let reason = format!("{} bytes are not {dtype} {shape:?}", bytes.len());
            return Err(invalid(Error::Write { what: format!("tensor {name}"), reason }));
        }
    }
    let rows = tensors.iter().map(|tensor| (tensor.name, tensor.dtype, tensor.shape));
    out.write_all(&header(rows, metadata, 8).map_err(invalid)?)?;
    tensors.iter().try_for_each(|tensor| out.write_all(tensor.bytes))
}

/// What stands before the data of a file with tensors of these names, types and shapes, in this order: the length of the header and
/// the header, padded with spaces to a multiple of `align` bytes, so that the data is aligned for readers that map it.
///
/// # Errors
/// A name twice, or more bytes than can be counted.
pub fn header<'a>(
    tensors: impl IntoIterator<Item = (&'a str, Dtype, &'a [u64])>,
    metadata: &[(&str, &str)],
    align: usize,
) -> Result<Vec<u8>, Error> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let texts: BTreeMap<&str, &str> = metadata.iter().copied().collect();
        header.insert("__metadata__".to_owned(), serde_json::json!(texts));
    }
    let mut at = 0u64;
    for (name, dtype, shape) in tensors {
        let end = dtype.size(shape).and_then(|size| at.checked_add(size)).ok_or_else(|| Error::Write {
            what: format!("tensor {name}"),
            reason: format!("{dtype} {shape:?} takes more bytes than a file can have"),
        })?;
        let entry = serde_json::json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [at, end]});
        if header.insert(name.to_owned(), entry).is_some() {
            return Err(Error::Duplicate { what: "tensor", name: name.to_owned() });
        }
        at = end;
    }
    let header = serde_json::Value::Object(header).to_string();
    let padded = (8 + header.len()).next_multiple_of(align);
    let mut out = (padded as u64 - 8).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.resize(padded, b' ');
    Ok(out)
}
