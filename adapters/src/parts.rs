//! The tensors of a PEFT file, by the module of the model that they belong to.

use std::collections::BTreeMap;

use graftwork_kernels::{Bytes, Tensor, tensor};

use crate::file::{Named, SMALL, Safetensors, TensorInfo, Torch, matrix};
use crate::{Edit, Error, Key, Site, expand, file, finite, names};

/// What PEFT puts before every module path.
pub(crate) const PREFIX: &str = "base_model.model.";

/// Room for `n` edits: there are as many as a file has modules, and each is a few hundred bytes.
pub(crate) fn edits(n: usize) -> Result<Vec<Edit>, Error> {
    tensor::reserved(n).map_err(|source| expand::failed("of any module", source))
}

/// What the tensors of one kind are called.
pub(crate) struct Suffixes<P: 'static> {
    /// Suffix of the name, the part it is, what messages call that.
    pub rows: &'static [(&'static str, P, &'static str)],
    /// What names are understood.
    pub expected: &'static str,
}

/// How names of tensors lead to modules: `<before><path><between><suffix>`.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub before: &'a str,
    pub between: &'a str,
    /// The site of a path.
    pub site: &'a dyn Fn(&str) -> Option<Site>,
}

/// PEFT's.
const PEFT: Keys<'static> = Keys { before: PREFIX, between: "", site: &names::hf_site };

/// The tensors of one module.
pub(crate) struct Module<'a, P: 'static> {
    pub path: &'a str,
    /// What stands before the path and between it and the suffix.
    around: (&'a str, &'a str),
    suffixes: &'static Suffixes<P>,
    names: BTreeMap<P, &'a str>,
}

impl<'a, P: Copy + Ord> Module<'a, P> {
    /// The name of a part.
    pub fn get(&self, part: P) -> Option<&'a str> {
        self.names.get(&part).copied()
    }

    /// The name of a part that the others need.
    pub fn need(&self, part: P) -> Result<&'a str, Error> {
        self.get(part).ok_or_else(|| {
            let tensor = self.names.values().next().copied().unwrap_or_default().to_owned();
            let row = self.suffixes.rows.iter().find(|row| row.1 == part);
            Error::Unpaired {
                tensor,
                missing: [self.around.0, self.path, self.around.1, row.map_or("", |row| row.0)].concat(),
            }
        })
    }

    /// Whether there is any of these parts.
    pub fn has(&self, parts: &[P]) -> bool {
        parts.iter().any(|&part| self.get(part).is_some())
    }

    /// The error for a part that is not understood here.
    pub fn unknown(&self, part: P) -> Error {
        let tensor = self.get(part).unwrap_or_default().to_owned();
        Error::UnknownTensor { tensor, expected: self.suffixes.expected }
    }
}

/// A PEFT file, with shapes and values checked as they are read.
pub(crate) struct Reader {
    tensors: Named<TensorInfo>,
    check_values: bool,
}

impl Reader {
    pub fn new(weights: Bytes) -> Result<Self, Error> {
        let check_values = weights.len() as u64 <= SMALL;
        let tensors = match Torch::is(&weights) {
            true => Torch::parse(weights)?.into_tensors(),
            false => Safetensors::parse(weights)?.into_named(),
        };
        if tensors.is_empty() {
            return Err(Error::Empty);
        }
        Ok(Self { tensors, check_values })
    }

    /// The tensors by site, but for those called as one of `shared`; refuses every name that is not understood, and sites
    /// that the kind does not take.
    pub fn modules<P: Copy + Ord>(
        &self,
        suffixes: &'static Suffixes<P>,
        shared: &[&str],
        takes: fn(Site) -> bool,
    ) -> Result<BTreeMap<Site, Module<'_, P>>, Error> {
        self.modules_by(PEFT, suffixes, shared, takes)
    }

    /// [`Reader::modules`] of files whose names are made in another way.
    pub fn modules_by<'a, P: Copy + Ord>(
        &'a self,
        keys: Keys<'a>,
        suffixes: &'static Suffixes<P>,
        shared: &[&str],
        takes: fn(Site) -> bool,
    ) -> Result<BTreeMap<Site, Module<'a, P>>, Error> {
        let mut modules: BTreeMap<Site, Module<'a, P>> = BTreeMap::new();
        for name in self.tensors.names().filter(|name| !shared.contains(name)) {
            let unknown = || Error::UnknownTensor { tensor: name.to_owned(), expected: suffixes.expected };
            let path = name.strip_prefix(keys.before).ok_or_else(unknown)?;
            let cut = |row: &(&str, P, _)| path.strip_suffix(row.0)?.strip_suffix(keys.between);
            let split = suffixes.rows.iter().find_map(|row| cut(row).zip(Some(row)));
            let (path, &(_, part, what)) = split.ok_or_else(unknown)?;
            let site = (keys.site)(path).ok_or_else(unknown)?;
            if !takes(site) {
                let reason = "this kind of adapter is not applied there";
                return Err(Error::Unsupported { what: format!("adapter tensor {name}"), reason });
            }
            let around = (keys.before, keys.between);
            let new = || Module { path, around, suffixes, names: BTreeMap::new() };
            let module = modules.entry(site).or_insert_with(new);
            if let Some(first) = module.names.insert(part, name) {
                return Err(Error::Conflict { first: first.to_owned(), second: name.to_owned(), what, site });
            }
        }
        Ok(modules)
    }

    /// All tensors.
    pub fn keys(&self) -> Vec<Key> {
        let key = |(name, info): (&str, &TensorInfo)| {
            let path = name.strip_prefix(PREFIX).unwrap_or(name);
            // The longest beginning that is a module's.
            let site = path.rmatch_indices('.').find_map(|(end, _)| names::hf_site(&path[..end]));
            Key { tensor: name.to_owned(), site, shape: info.shape.clone() }
        };
        self.tensors.iter().map(key).collect()
    }

    /// Refuses every tensor but the one of this name.
    pub fn only(&self, name: &str, expected: &'static str) -> Result<(), Error> {
        match self.names().find(|&other| other != name) {
            Some(other) => Err(Error::UnknownTensor { tensor: other.to_owned(), expected }),
            None => Ok(()),
        }
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.names()
    }

    /// The value of a tensor of one.
    pub fn scalar(&self, name: &str) -> Result<f32, Error> {
        let values = self.vector(name, Some(1))?.decode().map_err(|source| expand::failed(name, source))?;
        Ok(values[0])
    }

    /// The value of a tensor without dimensions.
    pub fn number(&self, name: &str) -> Result<f32, Error> {
        self.check_shape(name, &[])?;
        let values = self.tensor(name)?.decode().map_err(|source| expand::failed(name, source))?;
        Ok(values[0])
    }

    /// The dimensions of a matrix, both above 0.
    pub fn dims(&self, name: &str) -> Result<[usize; 2], Error> {
        self.check_shape(name, &[None, None])?;
        // As many elements as the file has.
        Ok([0, 1].map(|i| self.shape(name)[i] as usize))
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.get(name).is_some()
    }

    /// The file's shape of a tensor.
    pub fn shape(&self, name: &str) -> Vec<u64> {
        self.tensors.get(name).map(|info| info.shape.clone()).unwrap_or_default()
    }

    /// A matrix with these dimensions where they are known, and at least one row and column.
    pub fn matrix(&self, name: &str, dims: [Option<usize>; 2]) -> Result<Tensor, Error> {
        self.check_shape(name, &dims)?;
        self.tensor(name)
    }

    /// A vector of this length, if it is known, as `[1, length]`.
    pub fn vector(&self, name: &str, len: Option<usize>) -> Result<Tensor, Error> {
        self.check_shape(name, &[len])?;
        self.tensor(name)
    }

    /// A matrix of integers with these dimensions, row after row.
    pub fn integers(&self, name: &str, dims: [usize; 2]) -> Result<Vec<i64>, Error> {
        self.check_shape(name, &dims.map(Some))?;
        self.numbers(name)
    }

    /// A vector of integers of this length.
    pub fn integer_vector(&self, name: &str, len: usize) -> Result<Vec<i64>, Error> {
        self.check_shape(name, &[Some(len)])?;
        self.numbers(name)
    }

    fn numbers(&self, name: &str) -> Result<Vec<i64>, Error> {
        let info = self.tensors.get(name);
        let values = info.and_then(|info| info.integers());
        values.ok_or_else(|| Error::Type {
            tensor: name.to_owned(),
            expected: "integers",
            found: info.map_or(String::new(), |info| info.dtype.to_string()),
        })
    }

    fn check_shape(&self, name: &str, dims: &[Option<usize>]) -> Result<(), Error> {
        let found = self.shape(name);
        let fits =
            |(&found, dim): (&u64, &Option<usize>)| found > 0 && dim.is_none_or(|dim| found == dim as u64);
        if found.len() == dims.len() && found.iter().zip(dims).all(fits) {
            return Ok(());
        }
        let dims: Vec<_> = dims.iter().map(|dim| dim.map_or("_".to_owned(), |dim| dim.to_string())).collect();
        let expected = format!("[{}]", dims.join(", "));
        Err(Error::Shape { tensor: name.to_owned(), expected, found: format!("{found:?}") })
    }

    fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        let missing = || file::Error::Missing { what: "tensor", name: name.to_owned() };
        let tensor = matrix(name, self.tensors.get(name).ok_or_else(missing)?)?;
        if self.check_values {
            finite::check(name, &tensor)?;
        }
        Ok(tensor)
    }
}
