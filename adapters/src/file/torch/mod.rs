//! Files that `torch.save` writes: a zip archive with a pickle that describes the tensors, and their elements.
//!
//! `<folder>/data.pkl` is the pickle, `<folder>/data/<key>` the elements of a storage, `<folder>/byteorder` their order. Nothing in the
//! pickle is run (see `pickle.rs`). What `torch.save` wrote before version 1.6 is no archive and is refused by name.

mod pickle;
mod zip;

use std::path::Path;

use graftwork_kernels::{Bytes, Tensor, tensor};

use super::safetensors::matrix;
use super::{Error, Named, TensorFile, TensorInfo, open_bytes};
use pickle::View;

/// How an archive starts.
pub const MAGIC: &[u8] = b"PK\x03\x04";
/// How files start that torch wrote before version 1.6: protocol 2, a long number.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
/// The name of a tensor that is the whole file, where others hold a dictionary.
pub const ALONE: &str = "tensor";
/// Bytes of a pickle: a tensor takes about 200.
const MAX_PICKLE: usize = 16 << 20;

/// A file of tensors as `torch.save` writes it.
#[derive(Clone, Debug)]
pub struct Torch {
    tensors: Named<TensorInfo>,
}

impl Torch {
    /// Whether a file that starts like this is one of torch's, of any version.
    pub fn is(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC) || bytes.starts_with(LEGACY)
    }

    /// Opens a file by mapping it; see [`open_bytes`] for what that asks of others.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::In`] with what is malformed or refused.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        Self::parse(open_bytes(path, 0)?).map_err(|error| error.in_file(path.display().to_string()))
    }

    /// Parses a file: a dictionary of tensors, or one tensor, then called [`ALONE`]. Tensors may share storages. Of tensors whose
    /// elements do not lie in order, transposed matrices are copied; others are refused.
    ///
    /// # Errors
    /// What is malformed, naming the entry or tensor; [`Error::Code`] if the pickle would run anything.
    pub fn parse(bytes: Bytes) -> Result<Self, Error> {
        if bytes.starts_with(LEGACY) {
            let expected = "a zip archive, as torch 1.6 and later write";
            return Err(Error::Magic { expected, found: "the format of older versions".to_owned() });
        }
        let entries = zip::entries(&bytes)?;
        let end = "/data.pkl";
        let mut pickles = entries.iter().filter(|(name, _)| name.ends_with(end));
        let missing = || Error::Missing { what: "zip entry", name: "data.pkl".to_owned() };
        let (name, pickle) = pickles.next().ok_or_else(missing)?;
        if let Some((name, _)) = pickles.next() {
            return Err(Error::Duplicate { what: "zip entry", name: name.to_owned() });
        }
        if pickle.len() > MAX_PICKLE {
            let what = "bytes of data.pkl".to_owned();
            return Err(Error::TooMany { what, limit: MAX_PICKLE as u64, found: pickle.len() as u64 });
        }
        let folder = name.strip_suffix(end).unwrap_or_default();
        let entry = |name: &str| entries.get(&format!("{folder}/{name}"));
        if let Some(order) = entry("byteorder").filter(|order| &***order != b"little") {
            let found = String::from_utf8_lossy(order).chars().take(20).collect();
            return Err(Error::Entry { entry: "byteorder".to_owned(), expected: "little", found });
        }
        // Copies may take as much as the file.
        let mut budget = bytes.len();
        let mut tensors = Vec::new();
        for (name, view) in pickle::tensors(pickle, ALONE)? {
            let key = format!("data/{}", view.storage.key);
            let data = entry(&key).ok_or_else(|| Error::Missing { what: "zip entry", name: key.clone() })?;
            tensors.push((name.to_owned(), place(name, &view, data, &mut budget)?));
        }
        Named::new(tensors)
            .map(|tensors| Self { tensors })
            .map_err(|name| Error::Duplicate { what: "tensor", name })
    }

    /// Type, shape and bytes of every tensor, in the order of the dictionary.
    pub fn tensors(&self) -> &Named<TensorInfo> {
        &self.tensors
    }

    pub(crate) fn into_tensors(self) -> Named<TensorInfo> {
        self.tensors
    }
}

impl TensorFile for Torch {
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

/// The tensor that `view` describes, in the elements `data` of its storage.
fn place(name: &str, view: &View<'_>, data: &Bytes, budget: &mut usize) -> Result<TensorInfo, Error> {
    let wrong = |expected: String, found: String| Error::Tensor { tensor: name.to_owned(), expected, found };
    let View { storage, offset, shape, strides } = view;
    let size = storage.dtype.bits() / 8;
    if storage.elements.checked_mul(size) != Some(data.len() as u64) {
        let expected = format!("{} elements of {} in data/{}", storage.elements, storage.dtype, storage.key);
        return Err(wrong(expected, format!("{} bytes", data.len())));
    }
    let elements = shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
    let end =
        elements.and_then(|elements| elements.checked_add(*offset)).filter(|&end| end <= storage.elements);
    let Some(end) = end else {
        let expected = format!("its elements within the {} of data/{}", storage.elements, storage.key);
        return Err(wrong(expected, format!("shape {shape:?} from element {offset} on")));
    };
    // Below the storage's elements, whose bytes are there.
    let bytes =
        data.slice((offset * size) as usize..(end * size) as usize).unwrap_or_else(|| Vec::new().into());
    let info = |bytes| Ok(TensorInfo { dtype: storage.dtype, shape: shape.clone(), bytes });
    if bytes.is_empty() || in_order(shape.iter().zip(strides).rev()) {
        return info(bytes);
    }
    let &[rows, cols] = &shape[..] else {
        return Err(wrong(
            "elements in order".to_owned(),
            format!("shape {shape:?} with strides {strides:?}"),
        ));
    };
    if !in_order(shape.iter().zip(strides)) {
        let expected = "a matrix in order or transposed".to_owned();
        return Err(wrong(expected, format!("shape {shape:?} with strides {strides:?}")));
    }
    let Some(left) = budget.checked_sub(bytes.len()) else {
        let what = "bytes of transposed tensors".to_owned();
        return Err(Error::TooMany { what, limit: *budget as u64, found: bytes.len() as u64 });
    };
    *budget = left;
    let failed = |source| Error::Matrix { tensor: name.to_owned(), source };
    let mut copy: Vec<u8> = tensor::reserved(bytes.len()).map_err(failed)?;
    let (rows, cols, size) = (rows as usize, cols as usize, size as usize);
    for row in 0..rows {
        (0..cols).for_each(|col| copy.extend_from_slice(&bytes[(col * rows + row) * size..][..size]));
    }
    info(copy.into())
}

/// Whether the dimensions, fastest first, lie in order without gaps; the stride of a dimension of one index says nothing.
fn in_order<'a>(dims: impl Iterator<Item = (&'a u64, &'a u64)>) -> bool {
    let mut expected = 1;
    for (&dim, &stride) in dims {
        if dim != 1 && stride != expected {
            return false;
        }
        // No overflow: all dimensions together have no more elements than the storage.
        expected *= dim;
    }
    true
}
