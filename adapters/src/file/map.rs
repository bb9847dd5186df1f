//! Bytes of a file: mapped, or read into memory. The one place in this crate with `unsafe`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use graftwork_kernels::Bytes;
use memmap2::Mmap;

use super::Error;

/// The bytes of the file at `path`: read into memory if it has at most `copy_up_to` bytes, mapped otherwise.
///
/// A mapped file costs no memory of its own and is there at once, but **truncating it while it is mapped kills
/// the process** (SIGBUS), and writing to it changes weights under a running model. Where others may do that,
/// pass `u64::MAX` to copy. Replacing a file by renaming another one over it is safe either way.
///
/// # Errors
/// [`Error::Io`]: no such file, no permission, not a regular file, or no memory for a copy.
pub fn open_bytes(path: &Path, copy_up_to: u64) -> Result<Bytes, Error> {
    read(path, copy_up_to).map_err(|source| Error::Io { path: path.to_owned(), source })
}

fn read(path: &Path, copy_up_to: u64) -> io::Result<Bytes> {
    // Asked before opening: to open a named pipe without a writer would wait for ever.
    if !path.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "expected a regular file"));
    }
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    if len > copy_up_to {
        // SAFETY: the mapping is private to this value and only ever read. What Rust cannot rule out is that
        // someone changes the file underneath; the bytes are plain data of which no bit pattern is invalid,
        // every length and offset taken from them is checked against the mapping's fixed length before use, and
        // the documentation above hands the rest of the duty (not to truncate or rewrite) to the caller.
        return Ok(Bytes::new(unsafe { Mmap::map(&file) }?));
    }
    let mut bytes = Vec::new();
    let capacity = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.try_reserve_exact(capacity).map_err(|_| io::ErrorKind::OutOfMemory)?;
    file.take(len).read_to_end(&mut bytes)?;
    Ok(Bytes::new(bytes))
}
