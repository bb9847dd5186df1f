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
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let texts: BTreeMap<&str, &str> = metadata.iter().copied().collect();
        header.insert("__metadata__".to_owned(), serde_json::json!(texts));
    }
    let mut at = 0;
    for &TensorView { name, dtype, shape, bytes } in tensors {
        if dtype.size(shape) != Some(bytes.len() as u64) {
            let reason = format!("{} bytes are not {dtype} {shape:?}", bytes.len());
            return Err(invalid(Error::Write { what: format!("tensor {name}"), reason }));
        }
        let end = at + bytes.len();
        let entry = serde_json::json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [at, end]});
        if header.insert(name.to_owned(), entry).is_some() {
            return Err(invalid(Error::Duplicate { what: "tensor", name: name.to_owned() }));
        }
        at = end;
    }
    let mut header = serde_json::Value::Object(header).to_string();
    // Spaces keep the data aligned for readers that map it.
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    tensors.iter().try_for_each(|tensor| out.write_all(tensor.bytes))
}
