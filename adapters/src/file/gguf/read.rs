//! From bytes to metadata and tensors of one GGUF file.

use std::fmt;

use graftwork_kernels::{Bytes, Format};

use super::value::{ARRAY, BOOL, STR, scalar_size};
use super::{ALIGNMENT, Array, MAGIC, Metadata, TensorInfo, Value};
use crate::file::{Error, Named};

/// Dimensions that a tensor of ggml can have.
pub(super) const MAX_DIMS: usize = 4;
/// Arrays in arrays: no known file has any, so a few levels are plenty.
const MAX_DEPTH: usize = 4;
/// Bytes in a key, as the specification limits them.
const MAX_KEY: u64 = 65_535;
/// Bytes in a tensor's name. The specification says 64; some writers of long names do not care.
const MAX_NAME: u64 = 255;

/// One GGUF file, not yet known to be a whole model.
pub(super) struct File {
    pub metadata: Metadata,
    pub tensors: Named<TensorInfo>,
}

pub(super) fn parse(bytes: Bytes) -> Result<File, Error> {
    let mut cursor = Cursor { bytes: &bytes, at: 0 };
    header(&mut cursor)?;
    let tensor_count = cursor.u64(&"the number of tensors")?;
    let key_count = cursor.u64(&"the number of keys")?;

    // The shortest key is an empty name and one byte of value, the shortest tensor an empty name of no dimension.
    cursor.check_count(&"the number of keys", key_count, 8 + 4 + 1)?;
    let mut keys = Vec::with_capacity(key_count as usize);
    for i in 0..key_count {
        let key = cursor.str(MAX_KEY, &format_args!("key {i}"))?;
        let type_id = cursor.u32(&format_args!("the type of key {key}"))?;
        let value = value(&mut cursor, &key, type_id)?;
        keys.push((key, value));
    }
    let metadata = Metadata::new(keys)?;
    let alignment = alignment(&metadata)?;

    cursor.check_count(&"the number of tensors", tensor_count, 8 + 4 + 4 + 8)?;
    let mut headers = Vec::with_capacity(tensor_count as usize);
    for i in 0..tensor_count {
        let name = cursor.str(MAX_NAME, &format_args!("the name of tensor {i}"))?;
        let header = tensor_header(&mut cursor, &name)?;
        headers.push((name, header));
    }
    if headers.is_empty() {
        return Ok(File { metadata, tensors: Named::default() });
    }
    let data = data(&bytes, cursor.at, alignment)?;
    check_overlap(&headers, data.len() as u64)?;
    let mut tensors = Vec::with_capacity(headers.len());
    for (name, header) in headers {
        let info = place(&name, &header, alignment, &data)?;
        tensors.push((name, info));
    }
    let tensors = Named::new(tensors).map_err(|name| Error::Duplicate { what: "tensor", name })?;
    Ok(File { metadata, tensors })
}

fn header(cursor: &mut Cursor<'_>) -> Result<(), Error> {
    let magic = cursor.take(4, &"the magic number")?;
    if magic != MAGIC {
        let found = format!("`{}`", magic.escape_ascii());
        return Err(Error::Magic { expected: "a GGUF file", found });
    }
    let version = cursor.u32(&"the version")?;
    match version {
        2 | 3 => Ok(()),
        // The versions that exist are small numbers, so one in the upper bytes was written the other way round.
        _ if version & 0xffff == 0 && version != 0 => {
            Err(Error::Magic { expected: "a little-endian GGUF file", found: "a big-endian one".to_owned() })
        }
        _ => Err(Error::Magic { expected: "GGUF version 2 or 3", found: format!("version {version}") }),
    }
}

fn alignment(metadata: &Metadata) -> Result<u64, Error> {
    let key = "general.alignment";
    match metadata.get::<u32>(key)? {
        None => Ok(ALIGNMENT),
        Some(found) if found.is_power_of_two() => Ok(found.into()),
        Some(found) => Err(Error::Value {
            key: key.to_owned(),
            expected: "a power of two".to_owned(),
            found: found.to_string(),
        }),
    }
}

fn value(cursor: &mut Cursor<'_>, key: &str, type_id: u32) -> Result<Value, Error> {
    let what = format_args!("the value of key {key}");
    match type_id {
        STR => cursor.str(u64::MAX, &what).map(Value::Str),
        ARRAY => array(cursor, key, MAX_DEPTH).map(Value::Array),
        _ => {
            let size = scalar_size(type_id).ok_or_else(|| unknown_type(key, type_id))?;
            let bytes = cursor.take(size as u64, &what)?;
            check_bools(key, type_id, bytes)?;
            Value::scalar(type_id, bytes).ok_or_else(|| unknown_type(key, type_id))
        }
    }
}

fn array(cursor: &mut Cursor<'_>, key: &str, depth: usize) -> Result<Array, Error> {
    if depth == 0 {
        return Err(Error::Value {
            key: key.to_owned(),
            expected: format!("arrays nested at most {MAX_DEPTH} deep"),
            found: "a deeper one".to_owned(),
        });
    }
    let type_id = cursor.u32(&format_args!("the element type of key {key}"))?;
    let what = format_args!("the number of elements of key {key}");
    let count = cursor.u64(&what)?;
    match type_id {
        STR => {
            cursor.check_count(&what, count, 8)?;
            let mut texts = Vec::with_capacity(count as usize);
            for _ in 0..count {
                texts.push(cursor.str(u64::MAX, &format_args!("an element of key {key}"))?);
            }
            Ok(Array::Str(texts))
        }
        ARRAY => {
            cursor.check_count(&what, count, 4 + 8)?;
            let mut arrays = Vec::with_capacity(count as usize);
            for _ in 0..count {
                arrays.push(array(cursor, key, depth - 1)?);
            }
            Ok(Array::Array(arrays))
        }
        _ => {
            let size = scalar_size(type_id).ok_or_else(|| unknown_type(key, type_id))?;
            cursor.check_count(&what, count, size as u64)?;
            let bytes = cursor.take(count * size as u64, &format_args!("the elements of key {key}"))?;
            check_bools(key, type_id, bytes)?;
            Array::scalars(type_id, bytes).ok_or_else(|| unknown_type(key, type_id))
        }
    }
}

fn unknown_type(key: &str, type_id: u32) -> Error {
    Error::Value {
        key: key.to_owned(),
        expected: "a value type from 0 to 12".to_owned(),
        found: type_id.to_string(),
    }
}

fn check_bools(key: &str, type_id: u32, bytes: &[u8]) -> Result<(), Error> {
    match bytes.iter().find(|&&byte| type_id == BOOL && byte > 1) {
        None => Ok(()),
        Some(byte) => Err(Error::Value {
            key: key.to_owned(),
            expected: "a bool of 0 or 1".to_owned(),
            found: byte.to_string(),
        }),
    }
}

/// A tensor as the file describes it.
struct TensorHeader {
    dims: [u64; MAX_DIMS],
    count: usize,
    type_id: u32,
    /// From the start of the data.
    offset: u64,
    /// Bytes it takes, if its type is known.
    size: Option<u64>,
}

fn tensor_header(cursor: &mut Cursor<'_>, name: &str) -> Result<TensorHeader, Error> {
    let what = format_args!("the description of tensor {name}");
    let count = cursor.u32(&what)? as usize;
    let mut dims = [1; MAX_DIMS];
    let Some(used) = dims.get_mut(..count) else {
        let what = format!("dimensions of tensor {name}");
        return Err(Error::TooMany { what, limit: MAX_DIMS as u64, found: count as u64 });
    };
    for dim in used {
        *dim = cursor.u64(&what)?;
    }
    let type_id = cursor.u32(&what)?;
    let offset = cursor.u64(&what)?;

    let bad = |expected: String| Error::Tensor {
        tensor: name.to_owned(),
        expected,
        found: format!("dimensions {:?}", &dims[..count]),
    };
    if dims.contains(&0) {
        return Err(bad("dimensions above 0".to_owned()));
    }
    let elements = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
    let elements = elements.ok_or_else(|| bad("fewer than 2^64 values".to_owned()))?;
    let size = match Format::from_ggml_id(type_id) {
        None => None,
        Some(format) => {
            let (len, bytes) = (format.block_len() as u64, format.block_bytes() as u64);
            if dims[0] % len != 0 {
                return Err(bad(format!("rows of whole {format} blocks of {len}")));
            }
            let size = (elements / len).checked_mul(bytes);
            Some(size.ok_or_else(|| bad("fewer than 2^64 bytes".to_owned()))?)
        }
    };
    Ok(TensorHeader { dims, count, type_id, offset, size })
}

/// The data section: from the first multiple of the alignment after the descriptions.
fn data(bytes: &Bytes, end: usize, alignment: u64) -> Result<Bytes, Error> {
    let padding = (end as u64).next_multiple_of(alignment) - end as u64;
    let start = usize::try_from(padding).ok().and_then(|padding| end.checked_add(padding));
    start.and_then(|start| bytes.slice(start..bytes.len())).ok_or_else(|| Error::Truncated {
        what: "the padding before the tensor data".to_owned(),
        at: end,
        expected: padding,
        found: (bytes.len() - end) as u64,
    })
}

/// The bytes of a tensor in the data section.
fn place(name: &str, header: &TensorHeader, alignment: u64, data: &Bytes) -> Result<TensorInfo, Error> {
    let bad = |expected: String, found: String| Error::Tensor { tensor: name.to_owned(), expected, found };
    let TensorHeader { dims, count, type_id, offset, size } = *header;
    if offset % alignment != 0 {
        return Err(bad(format!("an offset that is a multiple of {alignment}"), offset.to_string()));
    }
    let len = data.len() as u64;
    let bytes = usize::try_from(offset).ok().filter(|&start| start < data.len()).and_then(|start| {
        let end = size.map_or(Some(data.len()), |size| start.checked_add(usize::try_from(size).ok()?))?;
        data.slice(start..end)
    });
    let bytes = bytes.ok_or_else(|| {
        let what = size.map_or("data".to_owned(), |size| format!("{size} bytes"));
        bad(format!("its data within the {len} bytes of data"), format!("{what} at offset {offset}"))
    })?;
    Ok(TensorInfo { dims, count, type_id, bytes })
}

fn check_overlap(headers: &[(String, TensorHeader)], len: u64) -> Result<(), Error> {
    let mut order: Vec<&(String, TensorHeader)> = headers.iter().collect();
    order.sort_by_key(|(_, header)| header.offset);
    for pair in order.windows(2) {
        let ((first, a), (second, b)) = (pair[0], pair[1]);
        // Ends beyond the data are reported for what they are, by `place`.
        let end = a.offset.saturating_add(a.size.unwrap_or(1));
        if b.offset < end && end <= len {
            return Err(Error::Overlap { first: first.clone(), second: second.clone(), at: b.offset });
        }
    }
    Ok(())
}

/// What is left of the bytes. Every read says what it is for, in case that there is not enough.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, count: u64, what: &dyn fmt::Display) -> Result<&'a [u8], Error> {
        let found = self.left();
        if count > found {
            return Err(Error::Truncated { what: what.to_string(), at: self.at, expected: count, found });
        }
        let bytes = &self.bytes[self.at..][..count as usize];
        self.at += count as usize;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &dyn fmt::Display) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &dyn fmt::Display) -> Result<u32, Error> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &dyn fmt::Display) -> Result<u64, Error> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn str(&mut self, limit: u64, what: &dyn fmt::Display) -> Result<String, Error> {
        let len = self.u64(what)?;
        if len > limit {
            return Err(Error::TooMany { what: format!("bytes of {what}"), limit, found: len });
        }
        let at = self.at;
        let text = std::str::from_utf8(self.take(len, what)?);
        text.map(str::to_owned).map_err(|_| Error::NotUtf8 { what: what.to_string(), at })
    }

    /// Refuses a count of things that take `size` bytes each at least, if the rest of the file cannot hold them.
    fn check_count(&self, what: &dyn fmt::Display, count: u64, size: u64) -> Result<(), Error> {
        let limit = self.left() / size;
        if count > limit {
            return Err(Error::TooMany { what: what.to_string(), limit, found: count });
        }
        Ok(())
    }
}
