//! The folder of a compression that is not finished: what is done survives a kill.
//!
//! `<out>.parts` holds `plan.json`, what is to be done, and for each matrix that is done a report and, unless it is unchanged, a delta
//! of that matrix alone. Both are written beside their place, synced and renamed, the report last: where there is one, the matrix is
//! whole. The folder is removed once the delta is written, the plan last.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use graftwork_adapters::delta::{Delta, Layer, verify};
use graftwork_adapters::file::open_bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Error, Matrix};

/// What the results depend on, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Plan(pub BTreeMap<String, String>);

/// The folder, held by this process alone.
pub struct Work {
    folder: PathBuf,
    _lock: File,
}

const PLAN: &str = "plan.json";
const LOCK: &str = "lock";

impl Work {
    /// Starts to work in `folder`, or goes on where an earlier process with the same plan ended.
    pub fn open(folder: PathBuf, plan: &Plan) -> Result<Self, Error> {
        if let Err(error) = fs::create_dir(&folder)
            && error.kind() != ErrorKind::AlreadyExists
        {
            return Err(Error::io(&folder)(error));
        }
        let has_pieces = files(&folder)?.iter().any(|path| is_piece(path));
        let plan_path = folder.join(PLAN);
        if has_pieces && !plan_path.exists() {
            return Err(Error::NotWork { path: folder });
        }
        let lock = folder.join(LOCK);
        let file = File::create(&lock).map_err(Error::io(&lock))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy { path: folder }),
            Err(TryLockError::Error(source)) => return Err(Error::Io { path: lock, source }),
        }
        if !has_pieces {
            write_json(&plan_path, plan)?;
        }
        let unreadable = || Error::NotWork { path: folder.clone() };
        let found: Plan = read_json(&plan_path)?.ok_or_else(unreadable)?;
        let fields = plan.0.keys().chain(found.0.keys());
        if let Some(field) = fields.into_iter().find(|&field| plan.0.get(field) != found.0.get(field)) {
            let value = |plan: &Plan| plan.0.get(field).cloned().unwrap_or_else(|| "none".to_owned());
            let (expected, found) = (value(plan), value(&found));
            return Err(Error::OtherWork { path: folder, field: field.clone(), expected, found });
        }
        Ok(Self { folder, _lock: file })
    }

    /// The matrix of this name, if it is done: its report, and its parts unless it is unchanged.
    pub fn done(&self, name: &str) -> Result<Option<(Matrix, Option<Layer>)>, Error> {
        let Some(report) = read_json::<Matrix>(&self.path(name, "json"))? else { return Ok(None) };
        if report.is_unchanged() {
            return Ok(Some((report, None)));
        }
        let path = self.path(name, "delta");
        let read = || {
            let bytes = open_bytes(&path, 0)?;
            verify(bytes.clone())?;
            Delta::parse(bytes)
        };
        // One that was damaged is made again.
        let layer = read().ok().and_then(|delta| delta.layers.into_iter().next());
        Ok(layer.map(|layer| (report, Some(layer))))
    }

    /// Keeps a matrix that is done, `delta` with its parts unless it is unchanged.
    pub fn keep(&self, report: &Matrix, delta: Option<&Delta>) -> Result<(), Error> {
        if let Some(delta) = delta {
            delta.write(&self.path(&report.name, "delta"))?;
        }
        write_json(&self.path(&report.name, "json"), report)
    }

    /// Removes the folder if nothing is done.
    pub fn give_up(self) -> Result<(), Error> {
        match files(&self.folder)?.iter().any(|path| is_piece(path)) {
            true => Ok(()),
            false => self.remove(),
        }
    }

    /// Removes the folder: the work is finished.
    pub fn remove(self) -> Result<(), Error> {
        let mut files = files(&self.folder)?;
        // The plan last.
        files.sort_by_key(|path| (!is_piece(path), path.ends_with(PLAN)));
        for path in files {
            fs::remove_file(&path).map_err(Error::io(path))?;
        }
        fs::remove_dir(&self.folder).map_err(Error::io(&self.folder))
    }

    fn path(&self, name: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{name}.{extension}"))
    }
}

/// What is in the folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(Error::io(folder))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

/// Whether this is neither the lock nor the plan, half written or whole.
fn is_piece(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name != LOCK && !name.starts_with(PLAN)
}

/// What a file holds; `None` if there is no such file, or none that can be understood.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path)(error)),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(Error::io(path))
}
