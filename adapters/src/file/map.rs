//! Bytes of a file: mapped, or read into memory. The one place in this crate with `unsafe`.

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;

use graftwork_kernels::Bytes;
use graftwork_kernels::tensor::Owner;
use memmap2::{Mmap, MmapOptions};

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
    let metadata = path.metadata()?;
    regular(&metadata)?;
    map_range(&File::open(path)?, 0, 0, metadata.len() <= copy_up_to)
}

/// `length` bytes of an open file from byte `offset`, which need not be aligned; length 0 stands for all up to its end.
/// Mapped, with what that asks of others (see [`open_bytes`]), or with `copy` read into memory. The file's position does not
/// matter and stays where it is (but on Windows). The file may be closed afterwards.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`]: not a regular file, or the range does not lie in it. Otherwise what the system
/// says, such as [`io::ErrorKind::OutOfMemory`] for a copy.
pub fn map_range(file: &File, offset: u64, length: u64, copy: bool) -> io::Result<Bytes> {
    let metadata = file.metadata()?;
    regular(&metadata)?;
    let size = metadata.len();
    let rest = size.checked_sub(offset).filter(|&rest| length <= rest).ok_or_else(|| {
        let expected = if length == 0 { "bytes".to_owned() } else { format!("{length} bytes") };
        let message = format!("expected {expected} from byte {offset} on, found a file of {size} bytes");
        io::Error::new(io::ErrorKind::InvalidInput, message)
    })?;
    let length = if length == 0 { rest } else { length };
    let size = usize::try_from(length).map_err(|_| io::ErrorKind::OutOfMemory)?;
    if copy || size == 0 {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(size).map_err(|_| io::ErrorKind::OutOfMemory)?;
        bytes.resize(size, 0);
        read_at(file, &mut bytes, offset)?;
        return Ok(bytes.into());
    }
    // SAFETY: the mapping is private to this value and only ever read. What Rust cannot rule out is that
    // someone changes the file underneath; the bytes are plain data of which no bit pattern is invalid,
    // every length and offset taken from them is checked against the mapping's fixed length before use, and
    // the documentation above hands the rest of the duty (not to truncate or rewrite) to the caller.
    let map = unsafe { MmapOptions::new().offset(offset).len(size).map(file) }?;
    Ok(Bytes::of(Mapping(map)))
}

/// A mapped file, only ever read.
struct Mapping(Mmap);

impl Owner for Mapping {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    #[cfg(unix)]
    fn unload(&self, range: std::ops::Range<usize>) {
        let advice = memmap2::UncheckedAdvice::DontNeed;
        // SAFETY: the mapping is of a file and never written, so the pages that this takes away, those of neighbours at the ends of
        // the range included, hold what the file does and are read from there again.
        let refused = unsafe { self.0.unchecked_advise_range(advice, range.start, range.len()) };
        // Then they stay in memory, which is all that a caller could do about it.
        let _ = refused;
    }
}

/// Fills `bytes` from byte `offset` of the file, which others may be reading through the same descriptor.
#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn read_at(mut file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}

fn regular(metadata: &Metadata) -> io::Result<()> {
    match metadata.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "expected a regular file")),
    }
}
