//! Places that tools write to: never over what they read, and whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use graftwork_adapters::{Source, file};

use crate::Error;

/// A place that may not be written to.
#[derive(Debug, thiserror::Error)]
#[error("{}: expected {expected}, found {found}", path.display())]
pub struct Taken {
    /// The place.
    pub path: PathBuf,
    /// What it may be.
    pub expected: &'static str,
    /// What it is.
    pub found: &'static str,
}

/// What is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A file, which may take another's place.
    File,
    /// A directory, which may not.
    Directory,
}

/// Refuses to write to `out` over one of `inputs`, a file in one that is a directory, a directory that holds one, or what has another form.
///
/// # Errors
/// [`Taken`].
pub fn check<'a>(inputs: impl IntoIterator<Item = &'a Path>, out: &Path, form: Form) -> Result<(), Taken> {
    let taken = |expected, found| Err(Taken { path: out.to_owned(), expected, found });
    let Ok(place) = out.canonicalize() else { return Ok(()) };
    match form {
        Form::File if !place.is_file() => return taken("a file to write", "something else of that name"),
        Form::Directory if fs::read_dir(&place).map_or(true, |mut entries| entries.next().is_some()) => {
            return taken("a new directory", "something of that name");
        }
        _ => {}
    }
    let is_read = |input: &Path| {
        input.canonicalize().is_ok_and(|input| {
            place == input || input.is_dir() && place.parent() == Some(&*input) || input.starts_with(&place)
        })
    };
    match inputs.into_iter().any(is_read) {
        true => taken("another place than what is read", "what is read"),
        false => Ok(()),
    }
}

/// The path of a source, if it has one.
pub fn path_of(source: &Source) -> Option<&Path> {
    match source {
        Source::Path { path, .. } => Some(path),
        _ => None,
    }
}

/// Writes a file whole or not at all (if nobody else writes it meanwhile), also if the process or the system ends meanwhile: beside its place first, over what an
/// earlier attempt left there.
///
/// # Errors
/// [`file::Error::Io`].
pub fn store(out: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut partial = out.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let written = File::create(partial).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(partial, out)?;
        // That it is there is part of its folder.
        let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
    });
    written.map_err(|source| {
        // It may not be there; the first error is the one to tell.
        let _ = fs::remove_file(partial);
        file::Error::Io { path: out.to_owned(), source }.into()
    })
}

/// Lets `make` make a file or directory beside `out` and renames it; what is left of it after an error is removed.
///
/// # Errors
/// What `make` says; or something has the name that the unfinished one would get, or the system refuses.
pub(crate) fn beside<T, E: From<Taken>>(
    out: &Path,
    io: impl Fn(&Path, io::Error) -> E,
    make: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    // Without a slash at its end.
    let out: PathBuf = out.components().collect();
    let mut partial = out.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    if partial.symlink_metadata().is_ok() {
        let (expected, found) = ("nothing of that name", "what an earlier run left, or something else");
        return Err(Taken { path: partial, expected, found }.into());
    }
    let made = make(&partial).and_then(|made| {
        if partial.is_dir() && out.is_dir() {
            // Empty: a rename would do on some systems alone.
            fs::remove_dir(&out).map_err(|error| io(&out, error))?;
        }
        fs::rename(&partial, &out).map_err(|error| io(&out, error))?;
        Ok(made)
    });
    if made.is_err() {
        // It may not be there; the first error is the one to tell.
        let _ = if partial.is_dir() { fs::remove_dir_all(&partial) } else { fs::remove_file(&partial) };
    }
    made
}

/// Copies what a file holds, not who may write it.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut out = File::create(to)?;
    io::copy(&mut File::open(from)?, &mut out)?;
    out.sync_all()
}
