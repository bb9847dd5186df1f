//! `logits`: the logits of given tokens, in full precision of the KV cache.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::Path;

use graftwork_adapters::file::safetensors::{Dtype, Safetensors, TensorView, write_safetensors};

use crate::arguments::Logits;
use crate::{Failure, open, output};

/// Runs the command.
pub fn logits(arguments: &Logits) -> Result<(), Failure> {
    let (positions, tokens) = tokens(arguments)?;
    let (engine, stack) = open::stack(&arguments.model, &arguments.adapters, arguments.threads)?;
    let mut bytes = Vec::new();
    for sequence in tokens.chunks_exact(positions) {
        let logits = engine.logits(sequence, &stack)?;
        bytes.extend(logits.iter().flat_map(|x| x.to_le_bytes()));
    }
    let sequences = tokens.len() / positions;
    // Adapters may have tokens of their own.
    let vocab = bytes.len() / size_of::<f32>() / tokens.len().max(1);
    let shape = [sequences as u64, positions as u64, vocab as u64];
    let tensor = TensorView { name: "logits", dtype: Dtype::F32, shape: &shape, bytes: &bytes };

    write(&arguments.out, &[tensor]).map_err(Failure::io(arguments.out.display().to_string()))?;
    output::note(&format!("{}: logits F32 {shape:?}", arguments.out.display()));
    Ok(())
}

/// Writes a file beside its place and renames it, so that nobody ever reads half a file. What is no regular
/// file, such as a pipe, is written to.
fn write(path: &Path, tensors: &[TensorView<'_>]) -> io::Result<()> {
    let write_to = |path: &Path| {
        let mut out = BufWriter::new(File::create(path)?);
        write_safetensors(&mut out, tensors, &[])?;
        out.into_inner().map_err(io::IntoInnerError::into_error)
    };
    if path.metadata().is_ok_and(|m| !m.is_file()) {
        return write_to(path).map(drop);
    }
    let mut partial = path.to_owned().into_os_string();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let written = write_to(partial).and_then(|file| file.sync_all()).and_then(|()| fs::rename(partial, path));
    if written.is_err() {
        // It may not be there; the first error is the one to tell.
        let _ = fs::remove_file(partial);
    }
    written
}

/// Positions of a sequence, and the tokens of all.
fn tokens(arguments: &Logits) -> Result<(usize, Vec<u32>), Failure> {
    let Some(path) = &arguments.tokens_file else {
        return Ok((arguments.tokens.len(), arguments.tokens.clone()));
    };
    let name = path.display();
    let file = Safetensors::open(path)?;
    let wrong = |found: &str| {
        Failure::Other(format!(
            "{name}: tensor tokens: expected integers [sequences, positions], found {found}"
        ))
    };
    let info = file.tensors().get("tokens").ok_or_else(|| wrong("none of that name"))?;
    let &[_, positions] = &info.shape[..] else {
        return Err(wrong(&format!("shape {:?}", info.shape)));
    };
    let values = info.integers().ok_or_else(|| wrong(info.dtype.name()))?;
    if values.is_empty() {
        return Err(wrong("none"));
    }
    let ids: Option<Vec<u32>> = values.iter().map(|&x| u32::try_from(x).ok()).collect();
    Ok((positions as usize, ids.ok_or_else(|| wrong("a negative or too large id"))?))
}
