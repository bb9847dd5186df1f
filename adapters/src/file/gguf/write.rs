//! Writing GGUF version 3.

use std::io::{self, Read as _, Write};

use graftwork_kernels::Tensor;

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
    tensors: Vec<(String, Tensor)>,
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
        self.tensors.push((name.into(), tensor));
        self
    }

    /// Writes the file. Tensor data is padded after the last tensor too, as llama.cpp expects.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] with an [`Error`]: a name twice or too long, an alignment that is no power of
    /// two, a format that GGUF does not have; anything else from `out`.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let (alignment, ids) =
            self.check().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
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
        for ((name, tensor), id) in self.tensors.iter().zip(ids) {
            write_str(name, &mut header);
            let (rows, cols) = (tensor.rows() as u64, tensor.cols() as u64);
            let dims: &[u64] = if rows == 1 { &[cols] } else { &[cols, rows] };
            header.extend((dims.len() as u32).to_le_bytes());
            header.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
            header.extend(id.to_le_bytes());
            header.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes().len().next_multiple_of(alignment);
        }
        header.resize(header.len().next_multiple_of(alignment), 0);
        out.write_all(&header)?;
        for (_, tensor) in &self.tensors {
            let len = tensor.bytes().len();
            out.write_all(tensor.bytes())?;
            io::copy(&mut io::repeat(0).take((len.next_multiple_of(alignment) - len) as u64), out)?;
        }
        Ok(())
    }

    /// The alignment and the id of each tensor's format, if everything can be written so that we and others read it back.
    fn check(&self) -> Result<(usize, Vec<u32>), Error> {
        let metadata = Metadata::new(self.keys.clone())?;
        let alignment = metadata.get::<u32>("general.alignment")?.unwrap_or(ALIGNMENT as u32);
        if !alignment.is_power_of_two() {
            let what = "general.alignment".to_owned();
            return Err(Error::Write { what, reason: format!("{alignment} is not a power of two") });
        }
        let names = self.tensors.iter().map(|(name, _)| (name.clone(), ())).collect();
        Named::new(names).map_err(|name| Error::Duplicate { what: "tensor", name })?;
        let mut ids = Vec::with_capacity(self.tensors.len());
        for (name, tensor) in &self.tensors {
            let reason = if name.len() > MAX_NAME {
                format!("the name is longer than {MAX_NAME} bytes")
            } else if tensor.rows() == 0 || tensor.cols() == 0 {
                "it holds no values".to_owned()
            } else if let Some(id) = tensor.format().ggml_id() {
                ids.push(id);
                continue;
            } else {
                format!("GGUF has no format {}", tensor.format())
            };
            return Err(Error::Write { what: format!("tensor {name}"), reason });
        }
        Ok((alignment as usize, ids))
    }
}
