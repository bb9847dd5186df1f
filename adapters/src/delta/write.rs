//! Writing a delta: beside its place, synced, read once as others will, and renamed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use graftwork_kernels::{Strips, Tensor};
use sha2::{Digest, Sha256};

use super::header::{self, Header, Layout};
use super::read::{head_digest, hex};
use super::{ALIGN, Coded, DIGEST, Delta, KEY, Layer, Part, VERSION, bytes_of, carried_name, tensor_name};
use crate::file::{Dtype, open_bytes, safetensors};
use crate::{Error, RowOrder, expand, file, names};

/// Rows from which on a matrix is laid in strips: those of a strip.
const STRIP: usize = 16;

/// A tensor on its way into the file.
struct Piece<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    data: Data<'a>,
}

enum Data<'a> {
    Bytes(&'a [u8]),
    /// Laid in strips when its turn comes.
    Pack(&'a Tensor),
    Floats(&'a [f32]),
    Numbers(&'a [u32]),
}

impl Delta {
    /// Writes the delta to `path`, matrices of 16 rows and more in strips, layers by site. Equal deltas give equal files. Until it is
    /// whole, checked as [`Delta::parse`] does and on the disk, the file is called `<path>.partial`; that of an interrupted write is
    /// written over.
    ///
    /// # Errors
    /// What a reader would refuse, or what the system says.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let mut partial = path.to_owned().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let written = self.write_to(&partial).and_then(|()| {
            Delta::parse(open_bytes(&partial, 0)?)?;
            fs::rename(&partial, path).map_err(failed(path))?;
            sync_directory(path).map_err(failed(path))
        });
        if written.is_err() {
            // It may not be there; the first error is the one to tell.
            let _ = fs::remove_file(&partial);
        }
        written
    }

    fn write_to(&self, path: &Path) -> Result<(), Error> {
        let failed = failed(path);
        let mut pieces = Vec::new();
        let mut header = self.header(&mut pieces)?;
        // What is no whole number of lines comes last, so that all before it is aligned.
        pieces.sort_by_key(|piece| !piece.len().is_multiple_of(ALIGN as u64));
        let len = head(&header, &pieces)?.len();
        let mut out = BufWriter::new(File::create(path).map_err(&failed)?);
        out.write_all(&vec![0; len]).map_err(&failed)?;
        let mut hash = Sha256::new();
        for piece in &pieces {
            piece.write(&mut |bytes| {
                hash.update(bytes);
                out.write_all(bytes).map_err(&failed)
            })?;
        }
        header.data_sha256 = hex(&hash.finalize());
        let head = head(&header, &pieces)?;
        out.seek(SeekFrom::Start(0)).map_err(&failed)?;
        out.write_all(&head).map_err(&failed)?;
        let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)
    }

    /// The header, without the digest of the data, and the tensors that it mentions.
    fn header<'a>(&'a self, pieces: &mut Vec<Piece<'a>>) -> Result<Header, Error> {
        let mut layers: Vec<&Layer> = self.layers.iter().collect();
        layers.sort_by_key(|layer| layer.site);
        let mut carried: Vec<_> = self.carried.iter().collect();
        carried.sort_by_key(|edit| edit.site);
        let cannot = |what: String, reason: &str| file::Error::Write { what, reason: reason.to_owned() };
        let mut header = Header {
            version: VERSION,
            method: self.method.clone(),
            architecture: self.architecture.clone(),
            base_model: self.base_model.clone(),
            bases: self.bases.iter().map(ToString::to_string).collect(),
            row_order: match self.row_order {
                RowOrder::HuggingFace => "hf".to_owned(),
                RowOrder::Gguf => "gguf".to_owned(),
            },
            data_sha256: ZEROS.to_owned(),
            layers: Vec::new(),
            carried: Vec::new(),
        };
        for layer in layers {
            let module = names::hf_name(layer.site)
                .ok_or_else(|| cannot(layer.site.to_string(), "a delta changes layers only"))?;
            header.layers.push(layer_header(layer, module, pieces)?);
        }
        for edit in carried {
            let tensors = edit.change.tensors();
            let (Some(name), [tensor]) = (carried_name(edit), &tensors[..]) else {
                let reason = "a delta carries weights and biases of modules, no other changes";
                return Err(cannot(format!("the change of {}", edit.site), reason).into());
            };
            let dtype = Dtype::of_format(tensor.format());
            let dtype =
                dtype.ok_or_else(|| cannot(format!("tensor {name}"), "it is carried in F32, F16 or BF16"))?;
            let (rows, cols) = (tensor.rows() as u64, tensor.cols() as u64);
            let is_vector = edit.site.is_norm() || name.ends_with(".bias");
            let shape = if is_vector { vec![rows * cols] } else { vec![rows, cols] };
            pieces.push(Piece { name: name.clone(), dtype, shape, data: Data::Bytes(tensor.bytes()) });
            header.carried.push(name);
        }
        Ok(header)
    }
}

fn layer_header<'a>(
    layer: &'a Layer,
    module: String,
    pieces: &mut Vec<Piece<'a>>,
) -> Result<header::Layer, Error> {
    let mut parts = Vec::new();
    let mut rank = 0;
    for (i, part) in layer.parts.iter().enumerate() {
        let name = |what: &str| tensor_name(&module, i, what);
        parts.push(match part {
            Part::Factors { v, s, u } => {
                let ranks = [rank, rank + s.len()];
                rank += s.len();
                let v = matrix(name("v"), v, pieces)?;
                let u = matrix(name("u"), u, pieces)?;
                pieces.push(Piece::vector(name("s"), Dtype::F32, s.len(), Data::Floats(s)));
                header::Part::Factors { ranks, v, u }
            }
            Part::Whole { matrix: whole, scale } => header::Part::Whole {
                scale: f64::from(*scale),
                matrix: matrix(name("matrix"), whole, pieces)?,
            },
            Part::Sparse { starts, columns, values } | Part::Overwrite { starts, columns, values, .. } => {
                let mut numbers = |what, numbers: &'a [u32]| {
                    pieces.push(Piece::vector(name(what), Dtype::U32, numbers.len(), Data::Numbers(numbers)));
                };
                numbers("starts", starts);
                numbers("columns", columns);
                let mut floats = |what, values: &'a Tensor| {
                    let dtype = Dtype::of_format(values.format()).unwrap_or(Dtype::U8);
                    pieces.push(Piece::vector(name(what), dtype, values.cols(), Data::Bytes(values.bytes())));
                };
                floats("values", values);
                let (entries, format) = (values.cols(), values.format().name().to_owned());
                match part {
                    Part::Overwrite { before, .. } => {
                        floats("before", before);
                        header::Part::Overwrite { entries, values: format }
                    }
                    _ => header::Part::Sparse { entries, values: format },
                }
            }
        });
    }
    Ok(header::Layer { module, shape: [layer.shape.outputs, layer.shape.inputs], parts })
}

fn matrix<'a>(name: String, matrix: &'a Coded, pieces: &mut Vec<Piece<'a>>) -> Result<header::Matrix, Error> {
    let (rows, cols, format) = (matrix.rows(), matrix.cols(), matrix.format());
    let (layout, data) = match matrix {
        Coded::Rows(tensor) if rows >= STRIP => (Layout::Strips, Data::Pack(tensor)),
        Coded::Rows(tensor) => (Layout::Rows, Data::Bytes(tensor.bytes())),
        Coded::Strips(strips) => (Layout::Strips, Data::Bytes(strips.bytes())),
    };
    let len = bytes_of(layout, format, rows, cols).map_err(|source| expand::failed(&name, source))?;
    pieces.push(Piece::vector(name, Dtype::U8, len.next_multiple_of(ALIGN), data));
    Ok(header::Matrix { format: format.name().to_owned(), layout })
}

impl<'a> Piece<'a> {
    fn vector(name: String, dtype: Dtype, len: usize, data: Data<'a>) -> Self {
        Self { name, dtype, shape: vec![len as u64], data }
    }

    /// Bytes in the file.
    fn len(&self) -> u64 {
        self.shape.iter().product::<u64>().saturating_mul(self.dtype.bits()) / 8
    }

    /// Gives the bytes to `out`, with zeros behind a matrix.
    fn write(&self, out: &mut impl FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
        let mut len = 0;
        let mut put = |bytes: &[u8]| {
            len += bytes.len() as u64;
            out(bytes)
        };
        match self.data {
            Data::Bytes(bytes) => put(bytes)?,
            Data::Pack(tensor) => {
                put(Strips::pack(tensor).map_err(|source| expand::failed(&self.name, source))?.bytes())?
            }
            Data::Floats(values) => values.iter().try_for_each(|value| put(&value.to_le_bytes()))?,
            Data::Numbers(values) => values.iter().try_for_each(|value| put(&value.to_le_bytes()))?,
        }
        // Others than matrices have their length by construction, or are refused when the file is read.
        match self.len().checked_sub(len).filter(|&rest| rest < ALIGN as u64) {
            Some(rest) => out(&[0; ALIGN][..rest as usize]),
            None => {
                let reason = format!("{len} bytes are not {} {:?}", self.dtype, self.shape);
                Err(file::Error::Write { what: format!("tensor {}", self.name), reason }.into())
            }
        }
    }
}

/// What a digest is replaced by where it is not known yet.
const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What stands before the data, its digest included.
fn head(header: &Header, pieces: &[Piece<'_>]) -> Result<Vec<u8>, Error> {
    let json = serde_json::to_string(header).map_err(file::Error::json)?;
    let tensors = pieces.iter().map(|piece| (&piece.name[..], piece.dtype, &piece.shape[..]));
    let mut head = safetensors::header(tensors, &[(KEY, &json), (DIGEST, ZEROS)], ALIGN)?;
    let before = format!("\"{DIGEST}\":\"");
    let digits = format!("{before}{ZEROS}");
    // Within the texts of the header quotes are escaped, so this is the first.
    let at = head.windows(digits.len()).position(|window| window == digits.as_bytes()).unwrap_or_default()
        + before.len();
    let digest = hex(&Sha256::digest(&head));
    head[at..at + digest.len()].copy_from_slice(digest.as_bytes());
    debug_assert_eq!(head_digest(&head, &digest).as_ref(), Some(&digest));
    Ok(head)
}

/// The error for what the system says about a file.
pub(crate) fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| file::Error::Io { path: path.clone(), source }.into()
}

/// Waits until the directory of `path` is on the disk, where that can be asked for.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}
