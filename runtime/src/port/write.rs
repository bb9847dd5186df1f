//! The ported adapter in a file or directory.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use graftwork_adapters::delta::{self, Delta, Fingerprint, Layer, Part};

use graftwork_adapters::seed::{self, SeedPatch};
use graftwork_adapters::{Adapter, Change, Error as AdapterError, file, write_peft};
use serde_json::Value;

use super::{Error, Options};

/// Writes `adapter`, which is at `path` and of which some changes were rebased, for the base of this fingerprint.
pub fn write(
    path: &Path,
    adapter: &Adapter,
    is_rebased: bool,
    out: &Path,
    base: Fingerprint,
    options: &Options<'_>,
) -> Result<(), Error> {
    if out.exists() {
        return Err(Error::Out { path: out.to_owned() });
    }
    let single = if path.is_dir() { None } else { Some(path.to_owned()) };
    let inside = |name: &str| single.clone().or_else(|| Some(path.join(name)).filter(|path| path.exists()));
    if let Some(path) = inside(seed::NAME).filter(|path| holds(path, seed::is_one)) {
        return seed_patch(&path, out, base);
    }
    if let Some(path) = inside(delta::FILES[0]).filter(|path| holds(path, delta::is_one)) {
        return own_delta(&path, adapter, out, base, options);
    }
    if is_rebased {
        return Ok(write_peft(adapter, out)?);
    }
    copy(path, out, options)
}

/// Whether a file is one of these.
fn holds(path: &Path, is_one: fn(&[u8]) -> bool) -> bool {
    file::open_bytes(path, 0).is_ok_and(|bytes| is_one(&bytes))
}

fn seed_patch(path: &Path, out: &Path, base: Fingerprint) -> Result<(), Error> {
    let patch = SeedPatch::open(path)?;
    let settings = seed::Settings { bases: vec![base], ..patch.settings().clone() };
    let patch = SeedPatch::new(settings, patch.coefficients().to_vec())?;
    beside(out, |partial| {
        let mut file = fs::File::create(partial).map_err(Error::io(partial))?;
        patch
            .write(&mut file)
            .and_then(|()| file.flush())
            .and_then(|()| file.sync_all())
            .map_err(Error::io(partial))
    })
}

/// Its parts as they lie in the file, but for those that were rebased.
fn own_delta(
    path: &Path,
    adapter: &Adapter,
    out: &Path,
    base: Fingerprint,
    options: &Options<'_>,
) -> Result<(), Error> {
    let mut delta = Delta::open(path)?;
    delta.bases = vec![base];
    delta.base_model = options.base_model.map(str::to_owned);
    for Layer { site, parts, .. } in &mut delta.layers {
        let mut rebased =
            adapter.edits.iter().filter(|edit| edit.site == *site).filter_map(|edit| match &edit.change {
                Change::Overwrite { values, before, .. } => Some((values.clone(), before.clone())),
                _ => None,
            });
        for part in parts {
            if let (Part::Overwrite { values, before, .. }, Some(new)) = (part, rebased.next()) {
                (*values, *before) = new;
            }
        }
    }
    let carried = |change: &Change| matches!(change, Change::Replace { .. } | Change::Bias { .. });
    delta.carried = adapter.edits.iter().filter(|edit| carried(&edit.change)).cloned().collect();
    Ok(delta.write(out)?)
}

/// Copies a file, or the files of a directory, whose configuration then names the new base.
fn copy(path: &Path, out: &Path, options: &Options<'_>) -> Result<(), Error> {
    if !path.is_dir() {
        return beside(out, |partial| {
            fs::copy(path, partial).map_err(Error::io(path))?;
            fs::File::open(partial).and_then(|file| file.sync_all()).map_err(Error::io(partial))
        });
    }
    beside(out, |partial| {
        fs::create_dir(partial).map_err(Error::io(partial))?;
        for entry in fs::read_dir(path).map_err(Error::io(path))? {
            let entry = entry.map_err(Error::io(path))?;
            if entry.path().is_file() {
                let to = partial.join(entry.file_name());
                fs::copy(entry.path(), to).map_err(Error::io(entry.path()))?;
            }
        }
        let config = partial.join("adapter_config.json");
        if let (Ok(bytes), Some(name)) = (fs::read(&config), options.base_model) {
            let not_json = |error: serde_json::Error| {
                AdapterError::from(file::Error::Json { reason: error.to_string() })
            };
            let mut json: Value = serde_json::from_slice(&bytes).map_err(not_json)?;
            json["base_model_name_or_path"] = name.into();
            fs::write(&config, format!("{json:#}\n")).map_err(Error::io(&config))?;
        }
        Ok(())
    })
}

/// Lets `make` make something beside its place, and renames it.
fn beside(out: &Path, make: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let mut partial = out.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let remove = || if partial.is_dir() { fs::remove_dir_all(&partial) } else { fs::remove_file(&partial) };
    if partial.exists() {
        remove().map_err(Error::io(&partial))?;
    }
    let made = make(&partial).and_then(|()| fs::rename(&partial, out).map_err(Error::io(out)));
    if made.is_err() {
        // It may not be there; the first error is the one to tell.
        let _ = remove();
    }
    made
}
