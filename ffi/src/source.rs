//! Where models and adapters come from.

use std::ffi::{c_char, c_void};
use std::path::PathBuf;

use graftwork::{Bytes, Source};

use crate::error::{Failure, GW_ERR_CONFLICT, GW_ERR_IO, GW_ERR_OUT_OF_MEMORY, gw_error, gw_status};
use crate::guard::{free, guard, quietly};
use crate::gw_drop_fn;
use crate::input::{self, Out, User, exclusive, reference};
use crate::sized::{self, SizedStruct};

const GW_SOURCE_COPY: u32 = 1;

/// Bytes that a reader is asked for at once.
const READ: usize = 8 << 20;

/// Where a model or an adapter comes from.
pub enum gw_source {
    /// A file or directory.
    Path {
        /// The path.
        path: PathBuf,
        /// Whether to copy instead of mapping.
        copy: bool,
    },
    /// The bytes of one file.
    Bytes(Bytes),
    /// The files of a directory, by name.
    Directory(Vec<(String, Bytes)>),
}

impl gw_source {
    /// As the engine wants it.
    pub(crate) fn to_source(&self) -> Result<Source, Failure> {
        Ok(match self {
            Self::Path { path, copy: true } => Source::copied(path),
            Self::Path { path, copy: false } => path.into(),
            Self::Bytes(bytes) => bytes.clone().into(),
            Self::Directory(files) => Source::files(files.clone()).map_err(graftwork::Error::from)?,
        })
    }

    /// The bytes of the one file that this is, as argument `name`.
    pub(crate) fn file(&self, name: &str) -> Result<Bytes, Failure> {
        match self {
            Self::Path { path, copy } => {
                let copy_up_to = if *copy { u64::MAX } else { 0 };
                Ok(graftwork::open_bytes(path, copy_up_to).map_err(graftwork::Error::from)?)
            }
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::Directory(_) => Err(Failure::argument(name, "a source of one file", "a directory")),
        }
    }
}

fn copies(flags: u32) -> Result<bool, Failure> {
    match flags & !GW_SOURCE_COPY {
        0 => Ok(flags != 0),
        unknown => Err(Failure::argument("flags", "0 or GW_SOURCE_COPY", format!("{unknown:#x} as well"))),
    }
}

/// Room for `size` bytes.
fn room(size: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let refused = |_| Failure::new(GW_ERR_OUT_OF_MEMORY, "", format!("no memory for a copy of {size} bytes"));
    bytes.try_reserve_exact(size).map_err(refused)?;
    Ok(bytes)
}

fn give(out: &Out<*mut gw_source>, source: gw_source) {
    out.set(Box::into_raw(Box::new(source)));
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_source_path(
    path: *const c_char,
    path_size: usize,
    flags: u32,
    source: *mut *mut gw_source,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises, here and below.
    unsafe {
        guard("gw_source_path", error, || {
            let out = Out::new(source, "source")?;
            let path = input::path(path, path_size, "path")?;
            give(&out, gw_source::Path { path: path.into(), copy: copies(flags)? });
            Ok(())
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_source_fd(
    fd: i32,
    offset: u64,
    length: u64,
    flags: u32,
    source: *mut *mut gw_source,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        guard("gw_source_fd", error, || {
            let out = Out::new(source, "source")?;
            give(&out, gw_source::Bytes(map(fd, offset, length, copies(flags)?)?));
            Ok(())
        })
    }
}

#[cfg(unix)]
fn map(fd: i32, offset: u64, length: u64, copy: bool) -> Result<Bytes, Failure> {
    use std::mem::ManuallyDrop;
    use std::os::fd::FromRawFd;
    if fd < 0 {
        return Err(Failure::argument("fd", "an open file", fd));
    }
    // SAFETY: the descriptor is only borrowed: it is not closed here, and not used after this returns.
    let file = ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(fd) });
    graftwork::map_range(&file, offset, length, copy).map_err(|error| {
        let status = match error.kind() {
            std::io::ErrorKind::OutOfMemory => GW_ERR_OUT_OF_MEMORY,
            std::io::ErrorKind::InvalidInput => crate::error::GW_ERR_INVALID_ARG,
            _ => GW_ERR_IO,
        };
        Failure::new(status, "fd", format!("descriptor {fd}: {error}"))
    })
}

#[cfg(not(unix))]
fn map(_: i32, _: u64, _: u64, _: bool) -> Result<Bytes, Failure> {
    let message = "files have no descriptors on this system";
    Err(Failure::new(crate::error::GW_ERR_UNSUPPORTED, "fd", message))
}

/// Bytes that the caller keeps for us.
struct Borrowed {
    data: *const u8,
    size: usize,
    _user: User,
}

// SAFETY: the header asks that the bytes stay as they are until `drop`, so that any thread may read them.
unsafe impl Send for Borrowed {}
// SAFETY: as above.
unsafe impl Sync for Borrowed {}

impl AsRef<[u8]> for Borrowed {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: as above; `data` was checked to be an array.
        unsafe { std::slice::from_raw_parts(self.data, self.size) }
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_source_memory(
    data: *const c_void,
    size: usize,
    flags: u32,
    drop: gw_drop_fn,
    user: *mut c_void,
    source: *mut *mut gw_source,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        guard("gw_source_memory", error, || {
            let out = Out::new(source, "source")?;
            let copy = copies(flags)?;
            let all = input::array(data.cast::<u8>(), size, "data")?;
            let bytes = if copy {
                let bytes = input::copy(all, "data")?;
                std::mem::drop(User::new(user, drop));
                Bytes::from(bytes)
            } else {
                Bytes::new(Borrowed { data: all.as_ptr(), size, _user: User::new(user, drop) })
            };
            give(&out, gw_source::Bytes(bytes));
            Ok(())
        })
    }
}

/// A file that only the caller can read.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "see the header")]
pub struct gw_reader {
    pub struct_size: u32,
    pub reserved: u32,
    pub length: u64,
    pub read:
        Option<unsafe extern "C" fn(user: *mut c_void, offset: u64, buffer: *mut c_void, size: usize) -> i32>,
    pub user: *mut c_void,
    pub drop: gw_drop_fn,
}

// SAFETY: `repr(C)`, the size first, and every field may be zero.
unsafe impl SizedStruct for gw_reader {
    const NAME: &'static str = "reader";
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_source_reader(
    reader: *const gw_reader,
    source: *mut *mut gw_source,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        guard("gw_source_reader", error, || {
            let out = Out::new(source, "source")?;
            let gw_reader { length, read, user, drop, reserved, .. } = sized::read(reader)?;
            if reserved != 0 {
                let message = format!("reader: expected reserved to be 0, found {reserved}");
                return Err(Failure::new(crate::error::GW_ERR_ABI, "reserved", message));
            }
            let read = read.ok_or_else(|| Failure::argument("reader.read", "a function", "NULL"))?;
            let size = usize::try_from(length)
                .map_err(|_| Failure::argument("reader.length", "bytes that can be addressed", length))?;
            let mut bytes = room(size)?;
            while bytes.len() < size {
                let (offset, count) = (bytes.len(), READ.min(size - bytes.len()));
                // Zeroed first: whatever the caller's function does, what is read below was written.
                bytes.resize(offset + count, 0);
                let status = read(user, offset as u64, bytes[offset..].as_mut_ptr().cast(), count);
                if status != 0 {
                    let message =
                        format!("reader.read: expected {count} bytes at {offset}, found failure {status}");
                    return Err(Failure::new(GW_ERR_IO, "reader.read", message));
                }
            }
            std::mem::drop(User::new(user, drop));
            give(&out, gw_source::Bytes(Bytes::from(bytes)));
            Ok(())
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_source_directory(
    source: *mut *mut gw_source,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        guard("gw_source_directory", error, || {
            give(&Out::new(source, "source")?, gw_source::Directory(Vec::new()));
            Ok(())
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_source_add(
    directory: *mut gw_source,
    name: *const c_char,
    name_size: usize,
    file: *const gw_source,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises. One source as both is found out before there are two references to it.
    unsafe {
        guard("gw_source_add", error, || {
            let name = input::text(name, name_size, "name")?;
            let bytes = reference(file, "file")?.file("file");
            let gw_source::Directory(files) = exclusive(directory, "directory")? else {
                return Err(Failure::argument("directory", "a source of gw_source_directory", "another"));
            };
            if files.iter().any(|(before, _)| before == name) {
                let message = format!("expected unique names, found two of file {name}");
                return Err(Failure::new(GW_ERR_CONFLICT, name, message));
            }
            files.push((name.to_owned(), bytes?));
            Ok(())
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_source_free(source: *mut *mut gw_source) {
    // SAFETY: the caller's promises; sources are made by `Box::into_raw`.
    quietly(|| unsafe { free(source, |source| drop(Box::from_raw(source))) });
}
