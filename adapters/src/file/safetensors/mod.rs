//! safetensors: an 8-byte length, a JSON header, the data.
//!
//! The reader is our own, checked against the `safetensors` crate in the tests: that crate keeps the last of two
//! tensors of one name and does not name the tensor in most of its errors.

mod dtype;
mod header;
mod write;

pub use dtype::Dtype;
pub(super) use header::Texts;
pub use write::{TensorView, header, write_safetensors};

use std::path::Path;

use graftwork_kernels::{Bytes, Tensor};
use serde::Deserialize;

use super::{Error, Named, TensorFile, open_bytes};
use header::{Header, TensorHeader};

/// The longest header, as the format limits it.
const MAX_HEADER: u64 = 100_000_000;

/// How far into a file whose header has no possible length a key is looked for.
const PEEK: usize = 1 << 20;

/// Whether the bytes are those of a safetensors file, whole or not, whose header mentions this key.
pub(crate) fn mentions(bytes: &[u8], key: &str) -> bool {
    let Some(len) = bytes.first_chunk().map(|&len| u64::from_le_bytes(len)) else { return false };
    let end = usize::try_from(len).ok().and_then(|len| len.checked_add(8)).filter(|&end| end <= bytes.len());
    let header = &bytes[8..end.unwrap_or(bytes.len().min(PEEK))];
    let key = format!("\"{key}\"");
    header.starts_with(b"{") && header.windows(key.len()).any(|window| window == key.as_bytes())
}

/// One tensor of a safetensors file, checked against the bytes there are.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// The element type.
    pub dtype: Dtype,
    /// The shape, slowest dimension first.
    pub shape: Vec<u64>,
    /// Exactly the tensor's bytes, little-endian and in no particular alignment.
    pub bytes: Bytes,
}

impl TensorInfo {
    /// The elements of a tensor of integers, `None` for any other type.
    pub fn integers(&self) -> Option<Vec<i64>> {
        let bytes: &[u8] = &self.bytes;
        match self.dtype {
            Dtype::U8 => Some(bytes.iter().map(|&x| x.into()).collect()),
            Dtype::I32 => Some(bytes.as_chunks().0.iter().map(|&x| i32::from_le_bytes(x).into()).collect()),
            Dtype::U32 => Some(bytes.as_chunks().0.iter().map(|&x| u32::from_le_bytes(x).into()).collect()),
            Dtype::I64 => Some(bytes.as_chunks().0.iter().map(|&x| i64::from_le_bytes(x)).collect()),
            _ => None,
        }
    }
}

/// A safetensors file.
#[derive(Clone, Debug)]
pub struct Safetensors {
    tensors: Named<TensorInfo>,
    metadata: Named<String>,
}

impl Safetensors {
    /// Opens a file by mapping it; see [`open_bytes`] for what that asks of others.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::In`] with what is malformed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        Self::parse(open_bytes(path, 0)?).map_err(|error| error.in_file(path.display().to_string()))
    }

    /// Parses a file: its header is valid, its tensors have unique names and cover the data without gap or overlap.
    ///
    /// # Errors
    /// What is malformed, naming the tensor.
    pub fn parse(bytes: Bytes) -> Result<Self, Error> {
        let (header, data) = split(&bytes)?;
        let mut json = serde_json::Deserializer::from_slice(&header);
        let Header { tensors: headers, metadata } = Header::deserialize(&mut json).map_err(Error::json)?;
        json.end().map_err(Error::json)?;
        check_cover(&headers, data.len() as u64)?;
        let mut tensors = Vec::with_capacity(headers.len());
        for (name, header) in headers {
            let info = place(&name, header, &data)?;
            tensors.push((name, info));
        }
        let duplicate = |what| move |name| Error::Duplicate { what, name };
        Ok(Self {
            tensors: Named::new(tensors).map_err(duplicate("tensor"))?,
            metadata: Named::new(metadata).map_err(duplicate("key"))?,
        })
    }

    /// Type, shape and bytes of every tensor, in the order of the header.
    pub fn tensors(&self) -> &Named<TensorInfo> {
        &self.tensors
    }

    /// The texts of `__metadata__`.
    pub fn metadata(&self) -> &Named<String> {
        &self.metadata
    }

    pub(crate) fn into_named(self) -> Named<TensorInfo> {
        self.tensors
    }

    pub(super) fn into_tensors(self) -> Vec<(String, TensorInfo)> {
        self.tensors.into_items()
    }
}

impl TensorFile for Safetensors {
    fn names(&self) -> Vec<&str> {
        self.tensors.names().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<u64>> {
        self.tensors.get(name).map(|info| info.shape.clone())
    }

    fn tensor(&self, name: &str) -> Result<Option<Tensor>, Error> {
        self.tensors.get(name).map(|info| matrix(name, info)).transpose()
    }
}

/// A tensor as a matrix.
pub(crate) fn matrix(name: &str, info: &TensorInfo) -> Result<Tensor, Error> {
    let Some(format) = info.dtype.format() else {
        return Err(Error::Unsupported { tensor: name.to_owned(), found: info.dtype.to_string() });
    };
    let (rows, cols) = match *info.shape {
        [] => (1, 1),
        [cols] => (1, cols),
        [rows, cols] => (rows, cols),
        ref shape => {
            return Err(Error::Tensor {
                tensor: name.to_owned(),
                expected: "a vector or a matrix".to_owned(),
                found: format!("shape {shape:?}"),
            });
        }
    };
    // An empty tensor can have one huge dimension; it fits an address only by luck.
    let (Ok(rows), Ok(cols)) = (usize::try_from(rows), usize::try_from(cols)) else {
        let (expected, found) = ("dimensions that fit an address".to_owned(), format!("{:?}", info.shape));
        return Err(Error::Tensor { tensor: name.to_owned(), expected, found });
    };
    Tensor::new(format, rows, cols, info.bytes.clone())
        .map_err(|source| Error::Matrix { tensor: name.to_owned(), source })
}

/// The header and the data.
fn split(bytes: &Bytes) -> Result<(Bytes, Bytes), Error> {
    let truncated = |what: &str, at, expected| Error::Truncated {
        what: what.to_owned(),
        at,
        expected,
        found: (bytes.len() - at) as u64,
    };
    let Some(len) = bytes.first_chunk().map(|&len| u64::from_le_bytes(len)) else {
        return Err(truncated("the length of the safetensors header", 0, 8));
    };
    if len > MAX_HEADER {
        let what = "bytes of safetensors header".to_owned();
        return Err(Error::TooMany { what, limit: MAX_HEADER, found: len });
    }
    // At most MAX_HEADER, so it fits.
    let end = 8 + len as usize;
    let parts = bytes.slice(8..end).zip(bytes.slice(end..bytes.len().max(end)));
    parts.ok_or_else(|| truncated("the safetensors header", 8, len))
}

/// Refuses gaps, overlaps and sizes that do not follow from type and shape.
fn check_cover(headers: &[(String, TensorHeader)], len: u64) -> Result<(), Error> {
    let mut order: Vec<&(String, TensorHeader)> = headers.iter().collect();
    order.sort_by_key(|(_, header)| header.data_offsets);
    let mut at = 0;
    let mut before: Option<&str> = None;
    for (name, header) in order {
        let (start, end) = header.data_offsets;
        let bad = |expected: String, found: String| Error::Tensor { tensor: name.clone(), expected, found };
        if start < at
            && let Some(first) = before
        {
            return Err(Error::Overlap { first: first.to_owned(), second: name.clone(), at: start });
        }
        if start != at {
            return Err(bad(format!("data that starts at byte {at}"), format!("a gap up to byte {start}")));
        }
        if end < start || end > len {
            return Err(bad(
                format!("its data within the {len} bytes of data"),
                format!("bytes {start} to {end}"),
            ));
        }
        let size = header.dtype.size(&header.shape).ok_or_else(|| {
            bad("a size of whole bytes below 2^64".to_owned(), format!("{} {:?}", header.dtype, header.shape))
        })?;
        if end - start != size {
            let expected = format!("{size} bytes for {} {:?}", header.dtype, header.shape);
            return Err(bad(expected, format!("{} bytes", end - start)));
        }
        (at, before) = (end, Some(name.as_str()));
    }
    if at != len {
        let what = "bytes of data that belong to tensors".to_owned();
        return Err(Error::TooMany { what, limit: at, found: len });
    }
    Ok(())
}

fn place(name: &str, header: TensorHeader, data: &Bytes) -> Result<TensorInfo, Error> {
    let TensorHeader { dtype, shape, data_offsets: (start, end) } = header;
    let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
    let bytes = range.and_then(|(start, end)| data.slice(start..end)).ok_or_else(|| Error::Tensor {
        tensor: name.to_owned(),
        expected: format!("its data within the {} bytes of data", data.len()),
        found: format!("bytes {start} to {end}"),
    })?;
    Ok(TensorInfo { dtype, shape, bytes })
}
