//! A directory appears as a whole, or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{Files, Piece};
use crate::delta::write::{failed, sync_directory};
use crate::file::{self, Dtype, TensorView, write_safetensors};
use crate::open::{CONFIG, WEIGHTS};
use crate::{Adapter, Error};

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// All that is ever written: a directory with other files in it is not ours to replace.
const OURS: &[&str] = &[CONFIG, WEIGHTS[0], TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE];

pub(super) fn replace(dir: &Path, adapter: &Adapter, files: &Files) -> Result<(), Error> {
    // Without a slash at the end, so that names can be made of it.
    let dir: PathBuf = dir.components().collect();
    let name = dir.file_name().ok_or_else(|| taken(&dir, "expected a path with a name"))?;
    let beside = |end: &str| {
        let mut name = name.to_owned();
        name.push(end);
        dir.with_file_name(name)
    };
    let (partial, old) = (beside(".partial"), beside(".old"));
    let is_there = check(&dir)?;
    // Of interrupted writes. While there is no directory, the old one is the only one.
    for (left, is_useless) in [(&partial, true), (&old, is_there)] {
        if check(left)? && is_useless {
            fs::remove_dir_all(left).map_err(failed(left))?;
        }
    }
    fs::create_dir(&partial).map_err(failed(&partial))?;
    let renamed = write(&partial, adapter, files).and_then(|()| {
        if is_there {
            fs::rename(&dir, &old).map_err(failed(&dir))?;
        }
        fs::rename(&partial, &dir).or_else(|error| {
            if is_there {
                fs::rename(&old, &dir).map_err(failed(&old))?;
            }
            Err(failed(&dir)(error))
        })
    });
    if renamed.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_dir_all(&partial);
        return renamed;
    }
    sync_directory(&dir).map_err(failed(&dir))?;
    if old.is_dir() {
        fs::remove_dir_all(&old).map_err(failed(&old))?;
    }
    Ok(())
}

/// Whether there is something at the path; refuses what is not empty and not ours.
fn check(dir: &Path) -> Result<bool, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(dir)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed(dir))?;
        let is_file = entry.file_type().map_err(failed(dir))?.is_file();
        let name = entry.file_name();
        if !is_file || !OURS.iter().any(|ours| *ours == name) {
            let found = name.to_string_lossy();
            let reason = format!("expected none, an empty one or an earlier adapter, found {found} in it");
            return Err(taken(dir, &reason));
        }
    }
    Ok(true)
}

fn taken(dir: &Path, reason: &str) -> Error {
    file::Error::Write { what: format!("directory {}", dir.display()), reason: reason.to_owned() }.into()
}

/// Writes the files and reads them once as others will.
fn write(dir: &Path, adapter: &Adapter, files: &Files) -> Result<(), Error> {
    put(dir, CONFIG, &pretty(&files.config)?)?;
    let place = dir.join(WEIGHTS[0]);
    let mut views = Vec::new();
    for Piece { name, shape, tensor } in &files.tensors {
        let dtype = Dtype::of_format(tensor.format()).unwrap_or(Dtype::F32);
        views.push(TensorView { name, dtype, shape, bytes: tensor.bytes() });
    }
    let mut out = BufWriter::new(File::create(&place).map_err(failed(&place))?);
    write_safetensors(&mut out, &views, &[("format", "pt")]).map_err(failed(&place))?;
    let file = out.into_inner().map_err(|error| failed(&place)(error.into_error()))?;
    file.sync_all().map_err(failed(&place))?;
    if let Some(text) = &adapter.text {
        put(dir, TOKENIZER, &text.tokenizer)?;
        text.config.iter().try_for_each(|config| put(dir, TOKENIZER_CONFIG, &pretty(config)?))?;
        text.chat_template.iter().try_for_each(|template| put(dir, CHAT_TEMPLATE, template.as_bytes()))?;
    }
    Adapter::open(dir)?;
    sync_directory(&place).map_err(failed(dir))
}

fn put(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let place = dir.join(name);
    let write = || {
        let mut file = File::create(&place)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(failed(&place))
}

fn pretty(value: &impl serde::Serialize) -> Result<Vec<u8>, Error> {
    let mut text = serde_json::to_vec_pretty(value).map_err(file::Error::json)?;
    text.push(b'\n');
    Ok(text)
}
