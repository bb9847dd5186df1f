//! LoRA as llama.cpp's converter writes it: a GGUF file with `<base tensor>.lora_a` and `<base tensor>.lora_b`.
//!
//! A is `[r, in]` and B `[out, r]` as in PEFT, with the rows of q and k already in the order of a GGUF base. One
//! `adapter.lora.alpha` serves all ranks: `s = alpha / r` with the r of the tensor, or 1 where alpha is 0 or absent.
//! llama.cpp passes over norm tensors in silence; here every name that is not understood is refused.

use std::collections::BTreeMap;

use graftwork_kernels::{Bytes, Tensor};

use crate::file::gguf::Metadata;
use crate::file::{Gguf, SMALL, TensorFile};
use crate::{Adapter, Change, Edit, Error, Key, Kind, RowOrder, Site, finite, names, parts};

/// Keys under `adapter.` that do not change the arithmetic, or that are read here.
const KEYS: &[&str] = &[
    "adapter.type",
    "adapter.lora.alpha",
    "adapter.lora.task_name",
    "adapter.lora.prompt_prefix",
    INVOCATION,
];
/// The tokens that start the adapter, u32 (aLoRA).
const INVOCATION: &str = "adapter.alora.invocation_tokens";
const EXPECTED: &str = "LoRA tensors of GGUF are blk.<layer>.<linear layer>.weight.lora_a and .lora_b";

/// Reads a LoRA from the bytes of a GGUF file.
///
/// # Errors
/// What is malformed, inconsistent, not finite (up to [`SMALL`] bytes) or not understood, by name.
pub fn from_gguf(bytes: Bytes) -> Result<Adapter, Error> {
    let check_values = bytes.len() as u64 <= SMALL;
    let file = Gguf::parse(bytes)?;
    check_metadata(file.metadata())?;
    let alpha = file.metadata().get::<f32>("adapter.lora.alpha")?.unwrap_or(0.0);
    if !alpha.is_finite() {
        let (field, expected) = ("adapter.lora.alpha".to_owned(), "a finite number".to_owned());
        return Err(Error::Field { field, expected, found: alpha.to_string() });
    }
    if file.tensors().is_empty() {
        return Err(Error::Empty);
    }
    let pairs = pairs(&file)?;
    let (mut edits, mut keys) = (parts::edits(pairs.len())?, Vec::new());
    for (site, pair) in pairs {
        for tensor in [&pair.0, &pair.1] {
            let shape = file.shape(tensor).unwrap_or_default();
            keys.push(Key { tensor: tensor.clone(), site: Some(site), shape });
        }
        let read = |name: &str| -> Result<Tensor, Error> {
            let tensor = file.require(name)?;
            if check_values {
                finite::check(name, &tensor)?;
            }
            Ok(tensor)
        };
        let (a_name, b_name) = pair;
        let (a, b) = (read(&a_name)?, read(&b_name)?);
        if b.cols() != a.rows() {
            let (expected, found) = (format!("[_, {}]", a.rows()), format!("[{}, {}]", b.rows(), b.cols()));
            return Err(Error::Shape { tensor: b_name, expected, found });
        }
        let scale = if alpha == 0.0 { 1.0 } else { alpha / a.rows() as f32 };
        edits.push(Edit { site, change: Change::LowRank { a, b, scale, bias: None, magnitude: None } });
    }
    let invocation = file.metadata().get::<Vec<u32>>(INVOCATION)?.unwrap_or_default();
    let architecture = file.metadata().require::<&str>("general.architecture")?.to_owned();
    let base_model = file.metadata().get::<&str>("general.base_model.0.name")?.map(str::to_owned);
    let (row_order, architecture) = (RowOrder::Gguf, Some(architecture));
    Ok(Adapter { row_order, architecture, base_model, invocation, ..Adapter::new(Kind::Lora, edits, keys) })
}

fn check_metadata(metadata: &Metadata) -> Result<(), Error> {
    for (key, expected) in [("general.type", "adapter"), ("adapter.type", "lora")] {
        let found = metadata.require::<&str>(key)?;
        if found != expected {
            let (expected, found) = (format!("\"{expected}\""), format!("\"{found}\""));
            return Err(Error::Field { field: key.to_owned(), expected, found });
        }
    }
    for (key, value) in metadata.iter() {
        if key.starts_with("adapter.") && !KEYS.contains(&key) {
            return Err(Error::UnknownField { field: key.to_owned(), value: value.type_name() });
        }
    }
    Ok(())
}

/// The names of A and B by site.
fn pairs(file: &Gguf) -> Result<BTreeMap<Site, (String, String)>, Error> {
    let mut pairs = BTreeMap::new();
    for name in file.tensors().names() {
        let unknown = || Error::UnknownTensor { tensor: name.to_owned(), expected: EXPECTED };
        let a = name.strip_suffix(".lora_a");
        let base = a.or_else(|| name.strip_suffix(".lora_b")).ok_or_else(unknown)?;
        let site = names::gguf_site(base).ok_or_else(unknown)?;
        if !matches!(site, Site::Linear { .. } | Site::Head) {
            let reason = "LoRA on the embedding is not applied from GGUF files";
            return Err(Error::Unsupported { what: format!("adapter tensor {name}"), reason });
        }
        let other = format!("{base}{}", if a.is_some() { ".lora_b" } else { ".lora_a" });
        if file.tensors().get(&other).is_none() {
            return Err(Error::Unpaired { tensor: name.to_owned(), missing: other });
        }
        if a.is_some() {
            pairs.insert(site, (name.to_owned(), other));
        }
    }
    Ok(pairs)
}
