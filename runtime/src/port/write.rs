//! The ported adapter in a file or directory.

use std::fs;
use std::io::Write;
use std::path::Path;

use graftwork_adapters::delta::{self, Delta, Fingerprint, Layer, Part};
use graftwork_adapters::file::gguf::MAGIC;
use graftwork_adapters::seed::{self, SeedPatch};
use graftwork_adapters::{Adapter, Change, Error as AdapterError, Kind, file, write_peft};
use serde_json::Value;

use super::{Error, Options};
use crate::place;

/// The configuration that a directory of PEFT's has.
const CONFIG: &str = "adapter_config.json";

/// Writes `adapter`, which is at `path` and of which some changes were rebased, for the base of this fingerprint.
pub fn write(
    path: &Path,
    adapter: &Adapter,
    is_rebased: bool,
    out: &Path,
    base: Fingerprint,
    options: &Options<'_>,
) -> Result<(), Error> {
    let inside = |name: &str| if path.is_dir() { path.join(name) } else { path.to_owned() };
    match adapter.kind {
        Kind::SeedPatch => seed_patch(&inside(seed::NAME), out, base)?,
        Kind::Delta if holds(&inside(delta::FILES[0]), delta::is_one) => {
            own_delta(&inside(delta::FILES[0]), adapter, out, base, options)?;
        }
        _ if is_rebased => write_peft(adapter, out)?,
        _ => {
            // What lies beside a file of tensors alone belongs to it.
            let folder = path.parent().filter(|folder| !path.is_dir() && needs_config(path, folder));
            copy(folder.unwrap_or(path), out, options)?;
        }
    }
    // As others will.
    Adapter::open(out)?;
    Ok(())
}

/// Whether a file is one of these.
fn holds(path: &Path, is_one: fn(&[u8]) -> bool) -> bool {
    file::open_bytes(path, 0).is_ok_and(|bytes| is_one(&bytes))
}

/// Whether what a file holds is said by the configuration in its directory.
fn needs_config(path: &Path, folder: &Path) -> bool {
    folder.join(CONFIG).is_file() && !holds(path, |bytes| bytes.starts_with(MAGIC))
}

fn seed_patch(path: &Path, out: &Path, base: Fingerprint) -> Result<(), Error> {
    let patch = SeedPatch::open(path)?;
    let settings = seed::Settings { bases: vec![base], ..patch.settings().clone() };
    let patch = SeedPatch::new(settings, patch.coefficients().to_vec())?;
    let mut file = fs::File::create(out).map_err(Error::io(out))?;
    patch.write(&mut file).and_then(|()| file.flush()).and_then(|()| file.sync_all()).map_err(Error::io(out))
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
            if let Part::Overwrite { values, before, .. } = part
                && let Some(new) = rebased.next()
            {
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
        return place::copy(path, out).map_err(Error::io(path));
    }
    fs::create_dir(out).map_err(Error::io(out))?;
    for entry in fs::read_dir(path).map_err(Error::io(path))? {
        let entry = entry.map_err(Error::io(path))?;
        if entry.path().is_file() {
            place::copy(&entry.path(), &out.join(entry.file_name())).map_err(Error::io(entry.path()))?;
        }
    }
    let config = out.join(CONFIG);
    if let (Ok(bytes), Some(name)) = (fs::read(&config), options.base_model) {
        let not_json =
            |error: serde_json::Error| AdapterError::from(file::Error::Json { reason: error.to_string() });
        let mut json: Value = serde_json::from_slice(&bytes).map_err(not_json)?;
        json["base_model_name_or_path"] = name.into();
        fs::write(&config, format!("{json:#}\n")).map_err(Error::io(&config))?;
    }
    Ok(())
}
