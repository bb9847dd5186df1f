//! Arguments: pointers that must not be NULL, text, arrays, callers' data.

use std::ffi::{c_char, c_void};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Failure, GW_ERR_INVALID_ARG, GW_ERR_OUT_OF_MEMORY};
use crate::gw_drop_fn;

/// As a size: up to the NUL.
const NUL: usize = usize::MAX;

fn null(name: &str) -> Failure {
    Failure::new(GW_ERR_INVALID_ARG, name, format!("{name}: expected a pointer, found NULL"))
}

/// What a pointer points to.
///
/// # Safety
/// It is NULL, or points to a live `T` that nobody writes for `'a`.
pub(crate) unsafe fn reference<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.ok_or_else(|| null(name))
}

/// What a pointer points to, alone.
///
/// # Safety
/// It is NULL, or points to a live `T` that nobody else uses for `'a`.
pub(crate) unsafe fn exclusive<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut T, Failure> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_mut() }.ok_or_else(|| null(name))
}

/// Where a result goes.
pub(crate) struct Out<T>(NonNull<T>);

impl<T> Out<T> {
    /// A result that the caller must take.
    ///
    /// # Safety
    /// `pointer` is NULL or may be written until this goes.
    pub unsafe fn new(pointer: *mut T, name: &str) -> Result<Self, Failure> {
        NonNull::new(pointer).map(Self).ok_or_else(|| null(name))
    }

    pub fn set(&self, value: T) {
        // SAFETY: the promise given to `new`.
        unsafe { self.0.write(value) };
    }
}

/// Writes a result that the caller may not want.
///
/// # Safety
/// `pointer` is NULL or may be written.
pub(crate) unsafe fn set_optional<T>(pointer: *mut T, value: T) {
    if !pointer.is_null() {
        // SAFETY: the caller's promise.
        unsafe { pointer.write(value) };
    }
}

/// An array; NULL only if it is empty.
///
/// # Safety
/// `pointer` is NULL or points to `count` values that nobody writes for `'a`.
pub(crate) unsafe fn array<'a, T>(pointer: *const T, count: usize, name: &str) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    if count > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Failure::argument(
            name,
            "an array that fits the address space",
            format!("{count} elements"),
        ));
    }
    let first = NonNull::new(pointer.cast_mut()).ok_or_else(|| null(name))?;
    // SAFETY: the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(first.as_ptr(), count) })
}

/// A copy of an array.
pub(crate) fn copy<T: Copy>(from: &[T], name: &str) -> Result<Vec<T>, Failure> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(from.len()).map_err(|_| {
        let message = format!("{name}: no memory for a copy of {} bytes", size_of_val(from));
        Failure::new(GW_ERR_OUT_OF_MEMORY, name, message)
    })?;
    copy.extend_from_slice(from);
    Ok(copy)
}

/// The bytes of a text, which must be there.
///
/// # Safety
/// `pointer` is NULL or points to `size` bytes, or to a NUL-terminated text if `size` says so.
pub(crate) unsafe fn bytes<'a>(pointer: *const c_char, size: usize, name: &str) -> Result<&'a [u8], Failure> {
    if pointer.is_null() {
        return Err(null(name));
    }
    if size == NUL {
        // SAFETY: the caller's promise.
        return Ok(unsafe { std::ffi::CStr::from_ptr(pointer) }.to_bytes());
    }
    // SAFETY: the caller's promise.
    unsafe { array(pointer.cast(), size, name) }
}

/// A text.
///
/// # Safety
/// As [`bytes`].
pub(crate) unsafe fn text<'a>(pointer: *const c_char, size: usize, name: &str) -> Result<&'a str, Failure> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { bytes(pointer, size, name) }?;
    std::str::from_utf8(bytes).map_err(|error| {
        Failure::argument(name, "UTF-8", format!("an invalid byte at {}", error.valid_up_to()))
    })
}

/// A path: on Unix any bytes.
///
/// # Safety
/// As [`bytes`].
pub(crate) unsafe fn path<'a>(
    pointer: *const c_char,
    size: usize,
    name: &str,
) -> Result<&'a std::path::Path, Failure> {
    #[cfg(unix)]
    let path = {
        use std::os::unix::ffi::OsStrExt;
        // SAFETY: the caller's promise.
        std::ffi::OsStr::from_bytes(unsafe { bytes(pointer, size, name) }?)
    };
    #[cfg(not(unix))]
    // SAFETY: the caller's promise.
    let path = unsafe { text(pointer, size, name) }?;
    Ok(path.as_ref())
}

/// Data of a caller that callbacks get, and how to let go of it.
pub(crate) struct User {
    data: *mut c_void,
    drop: gw_drop_fn,
    /// Whether it is ours to let go of.
    taken: AtomicBool,
}

// SAFETY: the header says that callbacks, and `drop` among them, are called from any thread.
unsafe impl Send for User {}
// SAFETY: as above.
unsafe impl Sync for User {}

impl User {
    pub fn new(data: *mut c_void, drop: gw_drop_fn) -> Self {
        Self { data, drop, taken: AtomicBool::new(true) }
    }

    pub fn data(&self) -> *mut c_void {
        self.data
    }

    /// Shares it with a callback that the call in progress makes: unless the claim is kept, the call failed and the data
    /// stays the caller's.
    pub fn claim(self) -> (Arc<Self>, Claim) {
        let user = Arc::new(self);
        (user.clone(), Claim(Some(user)))
    }
}

/// A call that has taken a caller's data but may still fail.
pub(crate) struct Claim(Option<Arc<User>>);

impl Claim {
    /// The call succeeded.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(user) = &self.0 {
            user.taken.store(false, Ordering::Relaxed);
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if let Some(drop) = self.drop
            && self.taken.load(Ordering::Relaxed)
        {
            // SAFETY: the caller gave both for this, and it happens once.
            unsafe { drop(self.data) };
        }
    }
}
