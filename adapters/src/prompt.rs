//! Prompt tuning: virtual tokens with trained embeddings, before all tokens of a prompt, BOS included.
//!
//! The file holds one tensor, `prompt_embeddings [num_virtual_tokens, token_dim]`. Also read without a configuration, from a
//! safetensors or torch file with a single matrix `[tokens, width]` called as one of [`BARE`]: tokens that were added to an embedding
//! and trained (Zhu et al., "One Token Can Help", `DaoD/SPRING`), and soft prompts ([`task_prompts`]). (Lester et al., arXiv
//! 2104.08691; peft's `prompt_tuning/model.py`.)

use std::io;

use graftwork_kernels::{Bytes, Format, Tensor};

use crate::file::torch::ALONE;
use crate::file::{Dtype, TensorView, Torch, write_safetensors};
use crate::parts::{self, Reader};
use crate::peft::{self, Config};
use crate::{Adapter, Change, Edit, Error, Key, Kind, Site, expand};

/// The tensor of every kind that puts something before the prompt.
const NAME: &str = "prompt_embeddings";

/// What the only tensor of a file of virtual tokens without a configuration is called.
pub const BARE: [&str; 3] = [NAME, "added_token_embeddings", ALONE];

const EXPECTED: &str = "the only tensor of an adapter before the prompt is prompt_embeddings";

/// Fields of all these kinds.
const UNDERSTOOD: &[&str] =
    &["num_attention_heads", "num_layers", "num_transformer_submodules", "num_virtual_tokens", "token_dim"];

pub(crate) fn read(config: &Config, reader: &Reader) -> Result<Vec<Edit>, Error> {
    // Where the first values came from.
    let own = ["prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_kwargs", "tokenizer_name_or_path"];
    virtual_tokens(config, reader, &own)
}

/// Virtual tokens, with a configuration that may have the fields `own`.
pub(crate) fn virtual_tokens(config: &Config, reader: &Reader, own: &[&str]) -> Result<Vec<Edit>, Error> {
    check(config, own)?;
    let rows = rows(config, reader, config.rank("token_dim")?)?;
    edit(Site::Prompt, Change::VirtualTokens { rows })
}

/// Checks the configuration of a kind that puts something before the prompt and has the fields `own`.
pub(crate) fn check(config: &Config, own: &[&str]) -> Result<(), Error> {
    config.check(&[UNDERSTOOD, own].concat(), peft::UNSUPPORTED)?;
    match config.get("num_transformer_submodules") {
        Some(value) if value.as_u64() != Some(1) => Err(Error::Unsupported {
            what: format!("adapter field num_transformer_submodules = {}", peft::short(value)),
            reason: "only models of one decoder, with 1, have one prompt",
        }),
        _ => Ok(()),
    }
}

/// `prompt_embeddings [num_virtual_tokens, cols]`.
pub(crate) fn rows(config: &Config, reader: &Reader, cols: Option<usize>) -> Result<Tensor, Error> {
    let count = config.rank("num_virtual_tokens")?;
    reader.only(NAME, EXPECTED)?;
    reader.matrix(NAME, [count, cols])
}

/// The only edit of such an adapter.
pub(crate) fn edit(site: Site, change: Change) -> Result<Vec<Edit>, Error> {
    let mut edits = parts::edits(1)?;
    edits.push(Edit { site, change });
    Ok(edits)
}

/// Whether a file without a configuration, whose tensors have these names, holds virtual tokens.
pub fn is_bare<'a>(names: impl IntoIterator<Item = &'a str>) -> bool {
    let mut names = names.into_iter();
    names.next().is_some_and(|name| BARE.contains(&name)) && names.next().is_none()
}

/// The adapter in a file without a configuration, if it holds virtual tokens.
pub(crate) fn bare(bytes: Bytes) -> Result<Option<Adapter>, Error> {
    let is_torch = Torch::is(&bytes);
    let reader = match Reader::new(bytes) {
        Ok(reader) if is_bare(reader.names()) => reader,
        // Nothing else starts as torch's files do.
        Err(error) if is_torch => return Err(error),
        _ => return Ok(None),
    };
    let name = reader.names().next().unwrap_or_default();
    let rows = reader.matrix(name, [None, None])?;
    Ok(Some(adapter(rows, reader.keys())?))
}

fn adapter(rows: Tensor, keys: Vec<Key>) -> Result<Adapter, Error> {
    let edits = edit(Site::Prompt, Change::VirtualTokens { rows })?;
    Ok(Adapter::new(Kind::PromptTuning, edits, keys))
}

/// The embeddings of an adapter's virtual tokens, `[tokens, width]`.
pub fn embeddings(adapter: &Adapter) -> Option<&Tensor> {
    match &adapter.edits[..] {
        [Edit { change: Change::VirtualTokens { rows }, .. }] => Some(rows),
        _ => None,
    }
}

/// `P = origin + weight * sum_t (tasks[t] - initial)`, element by element on prompts `[tokens, width]` of one shape: task
/// prompt vectors, the differences that training made of one initial prompt, moved to `origin` and added up. With `origin` the
/// initial prompt, one task and the weight 1 it is the task's prompt, up to rounding. (Belanec et al., arXiv 2408.01119.)
///
/// # Errors
/// One of them has no virtual tokens, or others than `origin` has in number or width; no memory.
pub fn task_prompts(
    origin: &Adapter,
    initial: &Adapter,
    tasks: &[&Adapter],
    weight: f32,
) -> Result<Adapter, Error> {
    let need = |adapter, role: &str| embeddings(adapter).ok_or_else(|| no_prompt(role));
    let rows = need(origin, "origin")?;
    let shape = [rows.rows(), rows.cols()];
    let values = |adapter, role: &str| {
        let tensor: &Tensor = need(adapter, role)?;
        let found = [tensor.rows(), tensor.cols()];
        if found != shape {
            let (tensor, expected) = (format!("{NAME} of the {role}"), format!("{shape:?}"));
            return Err(Error::Shape { tensor, expected, found: format!("{found:?}") });
        }
        tensor.decode().map_err(|source| expand::failed(NAME, source))
    };
    let initial = values(initial, "initial prompt")?;
    let mut sum = values(origin, "origin")?;
    for (number, task) in tasks.iter().enumerate() {
        for ((sum, task), initial) in
            sum.iter_mut().zip(values(task, &format!("task {number}"))?).zip(&initial)
        {
            *sum += weight * (task - initial);
        }
    }
    let rows = Tensor::encode(Format::F32, shape[0], shape[1], &sum);
    adapter(rows.map_err(|source| expand::failed(NAME, source))?, Vec::new())
}

fn no_prompt(role: &str) -> Error {
    Error::Unsupported {
        what: format!("a prompt as the {role}"),
        reason: "the adapter has no virtual tokens",
    }
}

/// Writes virtual tokens `[tokens, width]` as a safetensors file that [`Adapter::open`] reads without a configuration.
///
/// # Errors
/// Writing failed, or the values are in a format that safetensors files do not have.
pub fn write(out: &mut impl io::Write, rows: &Tensor) -> io::Result<()> {
    let dtype = match rows.format() {
        Format::F32 => Dtype::F32,
        Format::F16 => Dtype::F16,
        Format::BF16 => Dtype::BF16,
        other => return Err(io::Error::other(format!("expected F32, F16 or BF16, found {other}"))),
    };
    let shape = [rows.rows() as u64, rows.cols() as u64];
    write_safetensors(out, &[TensorView { name: NAME, dtype, shape: &shape, bytes: rows.bytes() }], &[])?;
    Ok(())
}
