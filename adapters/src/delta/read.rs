//! Reading a delta: header and shapes. What is checked here cannot be wrong afterwards; the codes themselves are only looked at by
//! [`verify`](super::verify).

use std::collections::BTreeSet;

use graftwork_kernels::{Bytes, Format, Strips, Tensor};
use sha2::{Digest, Sha256};

use super::header::{self, Header, Layout, wrong};
use super::{ALIGN, Coded, DIGEST, Delta, Fingerprint, KEY, Layer, Part, bytes_of, tensor_name};
use crate::check::Shape;
use crate::file::{Dtype, Safetensors, TensorInfo, matrix, safetensors};
use crate::{Change, Edit, Error, RowOrder, expand, file, finite, names};

/// Whether the bytes are those of a delta, whole or not: a safetensors header that mentions [`KEY`].
pub fn is_one(bytes: &[u8]) -> bool {
    safetensors::mentions(bytes, KEY)
}

impl Delta {
    /// Reads header and shapes of a file, and the vectors over ranks and entries; no matrix. The rest is for
    /// [`Delta::check_values`] and [`verify`](super::verify).
    ///
    /// # Errors
    /// Whatever is malformed, missing, too much or not understood, naming the field or tensor.
    pub fn parse(bytes: Bytes) -> Result<Self, Error> {
        let file = Safetensors::parse(bytes.clone())?;
        let header = header_of(&file, &bytes)?;
        let reader = Reader { file, used: BTreeSet::new() };
        reader.delta(header)
    }
}

/// The header of a file, after the digest of what stands before the data.
pub(super) fn header_of(file: &Safetensors, bytes: &[u8]) -> Result<Header, Error> {
    let text = |key: &str| {
        let missing = || file::Error::Missing { what: "key", name: key.to_owned() };
        file.metadata().get(key).ok_or_else(missing)
    };
    let (json, digest) = (text(KEY)?, text(DIGEST)?);
    if let Some(other) = file.metadata().names().find(|name| ![KEY, DIGEST].contains(name)) {
        let value = file.metadata().get(other).cloned().unwrap_or_default().chars().take(80).collect();
        return Err(Error::UnknownField { field: other.to_owned(), value });
    }
    let found = head_digest(head(bytes), digest);
    if found.as_ref() != Some(digest) {
        let expected = format!("the SHA-256 of the header, {}", found.unwrap_or_default());
        return Err(wrong(DIGEST, expected, digest));
    }
    Header::parse(json)
}

/// What stands before the data of a file whose header is known to be whole.
pub(super) fn head(bytes: &[u8]) -> &[u8] {
    let len = bytes.first_chunk().map_or(0, |&len| u64::from_le_bytes(len) as usize);
    &bytes[..8 + len]
}

/// The SHA-256 of what stands before the data, with zeros where `digest` first stands; none if it does not stand there.
pub(super) fn head_digest(head: &[u8], digest: &str) -> Option<String> {
    let digits = digest.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let at = head.windows(digits.len()).position(|window| window == digits)?;
    let mut hash = Sha256::new();
    hash.update(&head[..at]);
    hash.update([b'0'; 64]);
    hash.update(&head[at + digits.len()..]);
    Some(hex(&hash.finalize()))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Reader {
    file: Safetensors,
    used: BTreeSet<String>,
}

impl Reader {
    fn delta(mut self, header: Header) -> Result<Delta, Error> {
        let row_order = match &header.row_order[..] {
            "hf" => RowOrder::HuggingFace,
            "gguf" => RowOrder::Gguf,
            other => return Err(wrong("row_order", "hf or gguf", other)),
        };
        let mut delta = Delta {
            method: header.method,
            architecture: header.architecture,
            base_model: header.base_model,
            bases: Fingerprint::read_all(&header.bases)?,
            row_order,
            layers: Vec::new(),
            carried: Vec::new(),
        };
        let mut sites = BTreeSet::new();
        for (i, layer) in header.layers.iter().enumerate() {
            let field = format!("layers[{i}].module");
            let site = names::hf_site(&layer.module).filter(|site| site.is_linear() || site.is_of_tokens());
            let site = site.ok_or_else(|| {
                wrong(&field, "a linear layer, lm_head or model.embed_tokens", &layer.module)
            })?;
            if !sites.insert(site) {
                return Err(wrong(&field, "each module once", format!("{} again", layer.module)));
            }
            let layer = self.layer(layer, site).map_err(|error| error.in_file(layer.module.clone()))?;
            delta.layers.push(layer);
        }
        for name in &header.carried {
            let edit = self.carried(name)?;
            delta.carried.push(edit);
        }
        if delta.layers.is_empty() && delta.carried.is_empty() {
            return Err(Error::Empty);
        }
        if let Some(name) = self.file.tensors().names().find(|&name| !self.used.contains(name)) {
            let expected = "the header of the delta does not mention it";
            return Err(Error::UnknownTensor { tensor: name.to_owned(), expected });
        }
        Ok(delta)
    }

    fn layer(&mut self, layer: &header::Layer, site: crate::Site) -> Result<Layer, Error> {
        let [outputs, inputs] = layer.shape;
        if outputs == 0 || inputs == 0 {
            return Err(wrong("shape", "outputs and inputs above 0", format!("{:?}", layer.shape)));
        }
        if layer.parts.is_empty() {
            return Err(wrong("parts", "at least one", "none"));
        }
        let mut parts = Vec::new();
        let mut rank = 0;
        for (i, part) in layer.parts.iter().enumerate() {
            let (at, name) = (format!("parts[{i}]"), |what: &str| tensor_name(&layer.module, i, what));
            parts.push(match part {
                header::Part::Factors { ranks: [from, to], v, u } => {
                    if *from != rank || to <= from {
                        let expected = format!(
                            "a range that starts at {rank}, where the one before ends, and is not empty"
                        );
                        return Err(wrong(format!("{at}.ranks"), expected, format!("{from} to {to}")));
                    }
                    let count = to - from;
                    rank = *to;
                    let s = self.floats(&name("s"), count)?;
                    let v = self.matrix(&name("v"), &format!("{at}.v"), v, [count, inputs])?;
                    let u = self.matrix(&name("u"), &format!("{at}.u"), u, [outputs, count])?;
                    Part::Factors { v, s, u }
                }
                header::Part::Whole { scale, matrix } => {
                    let number = *scale as f32;
                    if !number.is_finite() {
                        return Err(wrong(format!("{at}.scale"), "a finite number", scale));
                    }
                    let matrix =
                        self.matrix(&name("matrix"), &format!("{at}.matrix"), matrix, [outputs, inputs])?;
                    Part::Whole { matrix, scale: number }
                }
                header::Part::Sparse { entries, values } | header::Part::Overwrite { entries, values } => {
                    let field = format!("{at}.entries");
                    if *entries == 0 || u32::try_from(*entries).is_err() {
                        return Err(wrong(field, "1 to 4294967295", entries));
                    }
                    let format = format(&format!("{at}.values"), values)?;
                    let dtype = Dtype::of_format(format)
                        .ok_or_else(|| wrong(format!("{at}.values"), "F32, F16 or BF16", values))?;
                    let before = match part {
                        header::Part::Overwrite { .. } => {
                            Some(self.values(&name("before"), dtype, *entries)?)
                        }
                        _ => None,
                    };
                    match (self.sparse([outputs, inputs, *entries], dtype, name)?, before) {
                        (Part::Sparse { starts, columns, values }, Some(before)) => {
                            Part::Overwrite { starts, columns, values, before }
                        }
                        (part, _) => part,
                    }
                }
            });
        }
        Ok(Layer { site, shape: Shape { outputs, inputs }, parts })
    }

    fn values(&mut self, name: &str, dtype: Dtype, entries: usize) -> Result<Tensor, Error> {
        let values = self.tensor(name, dtype, &[entries])?;
        let values = matrix(name, &values)?;
        finite::check(name, &values)?;
        Ok(values)
    }

    fn sparse(
        &mut self,
        [outputs, inputs, entries]: [usize; 3],
        dtype: Dtype,
        name: impl Fn(&str) -> String,
    ) -> Result<Part, Error> {
        let values = self.values(&name("values"), dtype, entries)?;
        let starts = self.numbers(&name("starts"), outputs.saturating_add(1))?;
        let columns = self.numbers(&name("columns"), entries)?;
        let bad = |tensor: &str, what, limit: usize, found: u32| Error::Index {
            tensor: name(tensor),
            what,
            limit: limit as u64,
            found: found.into(),
        };
        if starts[0] != 0 {
            return Err(bad("starts", "a first start", 1, starts[0]));
        }
        if starts[outputs] as usize != entries {
            let expected = format!("a last start of {entries}, the number of entries");
            return Err(Error::Shape {
                tensor: name("starts"),
                expected,
                found: starts[outputs].to_string(),
            });
        }
        if let Some(pair) = starts.windows(2).find(|pair| pair[0] > pair[1]) {
            return Err(bad("starts", "a start", pair[1] as usize + 1, pair[0]));
        }
        if let Some(&column) = columns.iter().find(|&&column| column as usize >= inputs) {
            return Err(bad("columns", "a column", inputs, column));
        }
        for range in starts.windows(2) {
            let row = &columns[range[0] as usize..range[1] as usize];
            if let Some(pair) = row.windows(2).find(|pair| pair[0] >= pair[1]) {
                return Err(bad(
                    "columns",
                    "columns of an output in ascending order, this one",
                    pair[1] as usize,
                    pair[0],
                ));
            }
        }
        Ok(Part::Sparse { starts: starts.into(), columns: columns.into(), values })
    }

    /// A tensor that is carried whole.
    fn carried(&mut self, name: &str) -> Result<Edit, Error> {
        let unknown =
            || wrong("carried", "<module>.weight or the .bias of a linear layer of a block, each once", name);
        let (path, suffix) = name.rsplit_once('.').ok_or_else(unknown)?;
        let site = names::hf_site(path).ok_or_else(unknown)?;
        let is_bias = match suffix {
            "weight" => false,
            "bias" if site.is_linear() => true,
            _ => return Err(unknown()),
        };
        if self.used.contains(name) {
            return Err(unknown());
        }
        let info = self.take(name)?;
        let dims = if is_bias || site.is_norm() { 1 } else { 2 };
        if info.shape.len() != dims || info.shape.contains(&0) {
            let expected = if dims == 1 { "[_]" } else { "[_, _]" };
            return Err(shape(name, expected, &info));
        }
        let tensor = matrix(name, &info)?;
        Ok(Edit {
            site,
            change: if is_bias {
                Change::Bias { values: tensor }
            } else {
                Change::Replace { weight: tensor }
            },
        })
    }

    /// A matrix, in bytes that are filled up to a multiple of [`ALIGN`].
    fn matrix(
        &mut self,
        name: &str,
        at: &str,
        header: &header::Matrix,
        [rows, cols]: [usize; 2],
    ) -> Result<Coded, Error> {
        let format = format(&format!("{at}.format"), &header.format)?;
        let failed = |source| expand::failed(name, source);
        let len = bytes_of(header.layout, format, rows, cols).map_err(failed)?;
        let info = self.tensor(name, Dtype::U8, &[len.next_multiple_of(ALIGN)])?;
        let bytes = info.bytes.slice(0..len).unwrap_or_else(|| Vec::new().into());
        Ok(match header.layout {
            Layout::Rows => Coded::Rows(Tensor::new(format, rows, cols, bytes).map_err(failed)?),
            Layout::Strips => Coded::Strips(Strips::new(format, rows, cols, bytes).map_err(failed)?),
        })
    }

    fn floats(&mut self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let info = self.tensor(name, Dtype::F32, &[len])?;
        let values = matrix(name, &info)?;
        finite::check(name, &values)?;
        values.decode().map_err(|source| expand::failed(name, source))
    }

    fn numbers(&mut self, name: &str, len: usize) -> Result<Vec<u32>, Error> {
        let info = self.tensor(name, Dtype::U32, &[len])?;
        let mut numbers =
            graftwork_kernels::tensor::reserved(len).map_err(|source| expand::failed(name, source))?;
        numbers.extend(info.bytes.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)));
        Ok(numbers)
    }

    /// A tensor of this type and shape.
    fn tensor(&mut self, name: &str, dtype: Dtype, dims: &[usize]) -> Result<TensorInfo, Error> {
        let info = self.take(name)?;
        if info.dtype != dtype {
            let (tensor, found) = (name.to_owned(), info.dtype.to_string());
            return Err(Error::Type { tensor, expected: dtype.name(), found });
        }
        match info.shape.iter().copied().eq(dims.iter().map(|&dim| dim as u64)) {
            true => Ok(info),
            false => Err(shape(name, format!("{dims:?}"), &info)),
        }
    }

    fn take(&mut self, name: &str) -> Result<TensorInfo, Error> {
        let missing = || file::Error::Missing { what: "tensor", name: name.to_owned() };
        let info = self.file.tensors().get(name).cloned().ok_or_else(missing)?;
        self.used.insert(name.to_owned());
        Ok(info)
    }
}

fn format(field: &str, name: &str) -> Result<Format, Error> {
    let format = Format::ALL.iter().copied().find(|format| format.name() == name && format.has_strips());
    format.ok_or_else(|| {
        let names: Vec<_> =
            Format::ALL.iter().filter(|format| format.has_strips()).map(|f| f.name()).collect();
        wrong(field, format!("one of {}", names.join(", ")), name)
    })
}

fn shape(name: &str, expected: impl ToString, info: &TensorInfo) -> Error {
    let (tensor, found) = (name.to_owned(), format!("{:?}", info.shape));
    Error::Shape { tensor, expected: expected.to_string(), found }
}
