//! Writing GGUF version 3.

use std::io::{self, Read as _, Write};

use graftwork_kernels::{Format, Tensor};

use super::value::write_str;
use super::{ALIGNMENT, MAGIC, Metadata, Value};
use crate::file::{Error, Named};

/// Names that llama.cpp reads: one byte less than its `GGML_MAX_NAME`.
const MAX_NAME: usize = 63;

/// Metadata and tensors on their way into a GGUF file.
///
/// ```
/// use graftwork_adapters::file::{Gguf, GgufWriter, TensorFile, gguf::Value};
/// use graftwork_kernels::{Bytes, Format, Tensor};
///
/// let weight = Tensor::encode(Format::F32, 2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
/// let mut writer = GgufWriter::new();
/// writer.key("general.architecture", Value::Str("llama".to_owned()));
/// writer.tensor("output.weight", weight);
/// let mut file = Vec::new();
/// writer.write(&mut file)?;
///
/// let read = Gguf::parse(Bytes::new(file))?;
/// assert_eq!(read.require("output.weight")?.decode()?, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct GgufWriter {
    keys: Vec<(String, Value)>,
    tensors: Vec<(String, Entry)>,
}

/// A tensor of the file.
#[derive(Clone, Debug)]
struct Entry {
    format: Format,
    rows: usize,
    cols: usize,
    /// None of one whose bytes come when they are written.
    tensor: Option<Tensor>,
}

impl GgufWriter {
    /// A file without keys and tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a key. `general.alignment` also sets the alignment of the data.
    pub fn key(&mut self, key: impl Into<String>, value: Value) -> &mut Self {
        self.keys.push((key.into(), value));
        self
    }

    /// Appends a tensor: a single row is written as a vector, anything else as a matrix. No bytes are copied.
    pub fn tensor(&mut self, name: impl Into<String>, tensor: Tensor) -> &mut Self {
        let (format, rows, cols) = (tensor.format(), tensor.rows(), tensor.cols());
        self.tensors.push((name.into(), Entry { format, rows, cols, tensor: Some(tensor) }));
        self
    }

    /// Appends a tensor of which [`Self::write_with`] asks for the bytes.
    pub fn promise(
        &mut self,
        name: impl Into<String>,
        format: Format,
        rows: usize,
        cols: usize,
    ) -> &mut Self {
        self.tensors.push((name.into(), Entry { format, rows, cols, tensor: None }));
        self
    }

    /// Writes the file. Tensor data is padded after the last tensor too, as llama.cpp expects.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] with an [`Error`]: a name twice or too long, an alignment that is no power of
    /// two, a format that GGUF does not have, a tensor whose bytes are only promised; anything else from `out`.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        self.write_with(out, |_, _| Ok::<_, io::Error>(()))
    }

    /// The same, where `bytes` writes those of the promised tensors: called with the position of each, in order.
    ///
    /// # Errors
    /// As [`Self::write`], and what `bytes` says; a tensor of other bytes than promised is [`io::ErrorKind::InvalidInput`].
    pub fn write_with<W: Write, E: From<io::Error>>(
        &self,
        out: &mut W,
        mut bytes: impl FnMut(usize, &mut dyn Write) -> Result<(), E>,
    ) -> Result<(), E> {
        let (alignment, sizes) = self.check().map_err(invalid)?;
        out.write_all(&self.header(alignment, &sizes))?;
        for (i, ((name, entry), (_, size))) in self.tensors.iter().zip(sizes).enumerate() {
            match &entry.tensor {
                Some(tensor) => out.write_all(tensor.bytes())?,
                None => {
                    let mut counted = Counted { out: &mut *out, count: 0 };
                    bytes(i, &mut counted)?;
                    if counted.count != size {
                        let reason = format!("it takes {size} bytes, found {}", counted.count);
                        return Err(invalid(Error::Write { what: format!("tensor {name}"), reason }).into());
                    }
                }
            }
            io::copy(&mut io::repeat(0).take((size.next_multiple_of(alignment) - size) as u64), out)?;
        }
        Ok(())
    }

    /// All before the data, padded.
    fn header(&self, alignment: usize, sizes: &[(u32, usize)]) -> Vec<u8> {
        let mut header = Vec::new();
        header.extend(MAGIC);
        header.extend(3u32.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            write_str(key, &mut header);
            header.extend(value.type_id().to_le_bytes());
            value.write(&mut header);
        }
        let mut offset = 0;
        for ((name, entry), (id, size)) in self.tensors.iter().zip(sizes) {
            write_str(name, &mut header);
            let (rows, cols) = (entry.rows as u64, entry.cols as u64);
            let dims: &[u64] = if rows == 1 { &[cols] } else { &[cols, rows] };
            header.extend((dims.len() as u32).to_le_bytes());
            header.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
            header.extend(id.to_le_bytes());
            header.extend((offset as u64).to_le_bytes());
            offset += size.next_multiple_of(alignment);
        }
        header.resize(header.len().next_multiple_of(alignment), 0);
        header
    }

    /// The alignment, and of each tensor the id of its format and the bytes, if everything can be written so that we and others
    /// read it back.
    fn check(&self) -> Result<(usize, Vec<(u32, usize)>), Error> {
        let metadata = Metadata::new(self.keys.clone())?;
        let alignment = metadata.get::<u32>("general.alignment")?.unwrap_or(ALIGNMENT as u32);
        if !alignment.is_power_of_two() {
            let what = "general.alignment".to_owned();
            return Err(Error::Write { what, reason: format!("{alignment} is not a power of two") });
        }
        let names = self.tensors.iter().map(|(name, _)| (name.clone(), ())).collect();
        Named::new(names).map_err(|name| Error::Duplicate { what: "tensor", name })?;
        let mut sizes = Vec::with_capacity(self.tensors.len());
        for (name, entry) in &self.tensors {
            let Entry { format, rows, cols, .. } = *entry;
            let size = (cols / format.block_len()).checked_mul(format.block_bytes());
            let size = size.and_then(|row| row.checked_mul(rows)).filter(|size| *size < usize::MAX / 2);
            let reason = if name.len() > MAX_NAME {
                format!("the name is longer than {MAX_NAME} bytes")
            } else if rows == 0 || cols == 0 {
                "it holds no values".to_owned()
            } else if !cols.is_multiple_of(format.block_len()) {
                format!("rows of {cols} values are no whole {format} blocks of {}", format.block_len())
            } else if let (Some(id), Some(size)) = (format.ggml_id(), size) {
                sizes.push((id, size));
                continue;
            } else if size.is_none() {
                "it takes more bytes than this machine can address".to_owned()
            } else {
                format!("GGUF has no format {format}")
            };
            return Err(Error::Write { what: format!("tensor {name}"), reason });
        }
        Ok((alignment as usize, sizes))
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

/// Counts the bytes that pass.
struct Counted<'a, W> {
    out: &'a mut W,
    count: usize,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.count += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
