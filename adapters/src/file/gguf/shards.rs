//! Models cut into several GGUF files.

use std::path::Path;

use graftwork_kernels::Bytes;

use super::read::{self, File};
use super::{Gguf, Metadata};
use crate::file::{Error, Named};

/// More shards than any model has, few enough to open.
const MAX_SHARDS: usize = 1024;

/// The model in one file.
pub(super) fn single(file: File) -> Result<Gguf, Error> {
    let count = split_count(&file.metadata)?;
    if count > 1 {
        return Err(Error::Value {
            key: "split.count".to_owned(),
            expected: "all shards of the model".to_owned(),
            found: format!("one of {count}"),
        });
    }
    Ok(Gguf { metadata: file.metadata, tensors: file.tensors })
}

/// The model at `path`, with the other shards beside it if it is one of several.
pub(super) fn open(path: &Path, bytes: impl Fn(&Path) -> Result<Bytes, Error>) -> Result<Gguf, Error> {
    let name = path.display().to_string();
    let file = read::parse(bytes(path)?).map_err(|error| error.in_file(&name))?;
    let count = split_count(&file.metadata).map_err(|error| error.in_file(&name))?;
    if count <= 1 {
        return single(file).map_err(|error| error.in_file(name));
    }
    // `model-00002-of-00003.gguf`: the same name with every number.
    let stem = path.file_name().and_then(|name| name.to_str()).and_then(|name| {
        let (stem, tail) = name.split_at_checked(name.len().checked_sub("-00001-of-00003.gguf".len())?)?;
        let number = tail.strip_prefix('-')?.strip_suffix(&format!("-of-{count:05}.gguf"))?;
        (number.len() == 5 && number.bytes().all(|c| c.is_ascii_digit())).then_some(stem)
    });
    let stem = stem.ok_or_else(|| {
        let found = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let key = format!("split.count = {count}, file names");
        Error::FileName { key, found }.in_file(&name)
    })?;
    let shards = (1..=count).map(|number| {
        let shard = path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf"));
        Ok((shard.display().to_string(), bytes(&shard)?))
    });
    parse(shards.collect::<Result<_, Error>>()?)
}

/// The model in these shards, in any order.
pub(super) fn parse(shards: Vec<(String, Bytes)>) -> Result<Gguf, Error> {
    let mut files = Vec::with_capacity(shards.len());
    for (name, bytes) in shards {
        let file = read::parse(bytes).map_err(|error| error.in_file(&name))?;
        files.push((name, file));
    }
    let total = files.len();
    if total == 1
        && let Some((name, file)) = files.pop()
    {
        return single(file).map_err(|error| error.in_file(name));
    }
    let mut placed = Vec::with_capacity(total);
    for (name, file) in files {
        let number = check_shard(&file.metadata, total).map_err(|error| error.in_file(&name))?;
        placed.push((number, name, file));
    }
    placed.sort_by_key(|(number, ..)| *number);
    for (i, (number, name, _)) in placed.iter().enumerate() {
        if *number != i {
            let key = "split.no".to_owned();
            let (expected, found) = (format!("one shard of each number below {total}"), number.to_string());
            return Err(Error::Value { key, expected, found }.in_file(name));
        }
    }
    let mut metadata = None;
    let mut tensors = Vec::new();
    for (_, _, file) in placed {
        metadata.get_or_insert(file.metadata);
        tensors.extend(file.tensors.into_items());
    }
    let metadata = metadata.ok_or(Error::Missing { what: "file", name: "of a GGUF model".to_owned() })?;
    if let Some(expected) = metadata.get::<u64>("split.tensors.count")?
        && expected != tensors.len() as u64
    {
        let key = "split.tensors.count".to_owned();
        let found = format!("{} in the shards", tensors.len());
        return Err(Error::Value { key, expected: format!("{expected} tensors"), found });
    }
    let tensors = Named::new(tensors).map_err(|name| Error::Duplicate { what: "tensor", name })?;
    Ok(Gguf { metadata, tensors })
}

fn split_count(metadata: &Metadata) -> Result<usize, Error> {
    let count = metadata.get::<usize>("split.count")?.unwrap_or(1);
    if count > MAX_SHARDS {
        return Err(Error::TooMany {
            what: "split.count".to_owned(),
            limit: MAX_SHARDS as u64,
            found: count as u64,
        });
    }
    Ok(count)
}

/// The number of a shard, counted from 0.
fn check_shard(metadata: &Metadata, total: usize) -> Result<usize, Error> {
    let count = metadata.require::<usize>("split.count")?;
    if count != total {
        let key = "split.count".to_owned();
        return Err(Error::Value {
            key,
            expected: format!("{total}, as there are files"),
            found: count.to_string(),
        });
    }
    metadata.require("split.no")
}
