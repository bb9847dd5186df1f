//! Statuses, and why a call failed.

use std::ffi::{CStr, c_char};

use graftwork::ErrorKind;

use crate::guard::quietly;

/// What became of a call.
pub type gw_status = i32;

/// Every status, its number and its name: the one table.
macro_rules! statuses {
    ($($name:ident = $value:literal,)*) => {
        $(#[doc = concat!("`", stringify!($name), "` of the header.")] pub const $name: gw_status = $value;)*

        fn name_of(status: gw_status) -> &'static CStr {
            match status {
                $($value => const { cstr(concat!(stringify!($name), "\0")) },)*
                _ => c"GW_ERR_UNKNOWN",
            }
        }
    };
}

statuses! {
    GW_OK = 0,
    GW_ERR_INVALID_ARG = 1,
    GW_ERR_NOT_FOUND = 2,
    GW_ERR_FORMAT = 3,
    GW_ERR_UNSUPPORTED = 4,
    GW_ERR_INCOMPATIBLE_ADAPTER = 5,
    GW_ERR_OUT_OF_MEMORY = 6,
    GW_ERR_BUDGET = 7,
    GW_ERR_BUSY = 8,
    GW_ERR_CANCELLED = 9,
    GW_ERR_IO = 10,
    GW_ERR_DEVICE_LOST = 11,
    GW_ERR_INTERNAL = 12,
    GW_ERR_ABI = 13,
    GW_ERR_CONFLICT = 14,
}

const fn cstr(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("a name without NUL"),
    }
}

/// Why a call failed, on its way to the caller.
#[derive(Debug)]
pub(crate) struct Failure {
    pub status: gw_status,
    pub message: String,
    pub detail: String,
}

impl Failure {
    pub fn new(status: gw_status, detail: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), detail: detail.into() }
    }

    /// An argument that has no meaning.
    pub fn argument(name: &str, expected: &str, found: impl std::fmt::Display) -> Self {
        Self::new(GW_ERR_INVALID_ARG, name, format!("{name}: expected {expected}, found {found}"))
    }
}

impl From<graftwork::Error> for Failure {
    fn from(error: graftwork::Error) -> Self {
        let status = match error.kind() {
            ErrorKind::InvalidArgument => GW_ERR_INVALID_ARG,
            ErrorKind::NotFound => GW_ERR_NOT_FOUND,
            ErrorKind::Format => GW_ERR_FORMAT,
            ErrorKind::Unsupported => GW_ERR_UNSUPPORTED,
            ErrorKind::IncompatibleAdapter => GW_ERR_INCOMPATIBLE_ADAPTER,
            ErrorKind::OutOfMemory => GW_ERR_OUT_OF_MEMORY,
            ErrorKind::Budget => GW_ERR_BUDGET,
            ErrorKind::Busy => GW_ERR_BUSY,
            ErrorKind::Cancelled => GW_ERR_CANCELLED,
            ErrorKind::Io => GW_ERR_IO,
            ErrorKind::Conflict => GW_ERR_CONFLICT,
            _ => GW_ERR_INTERNAL,
        };
        Self::new(status, error.detail(), error.to_string())
    }
}

/// Text that a NUL follows.
pub(crate) struct Text(Box<[u8]>);

impl Text {
    pub fn new(text: String) -> Self {
        let mut bytes = text.into_bytes();
        bytes.push(0);
        Self(bytes.into())
    }

    pub fn as_ptr(&self) -> *const c_char {
        self.0.as_ptr().cast()
    }

    /// Without the NUL.
    pub fn size(&self) -> usize {
        self.0.len() - 1
    }

    /// The pointer, and the size at `size` if that is wanted.
    ///
    /// # Safety
    /// `size` is NULL or may be written.
    unsafe fn give(&self, size: *mut usize) -> *const c_char {
        if !size.is_null() {
            // SAFETY: the caller's promise.
            unsafe { size.write(self.size()) };
        }
        self.as_ptr()
    }
}

/// Why a call failed.
pub struct gw_error {
    status: gw_status,
    message: Text,
    detail: Text,
}

impl From<Failure> for gw_error {
    fn from(failure: Failure) -> Self {
        let Failure { status, message, detail } = failure;
        Self { status, message: Text::new(message), detail: Text::new(detail) }
    }
}

/// See the header.
///
/// # Safety
/// `error` is NULL or a live error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_error_code(error: *const gw_error) -> gw_status {
    // SAFETY: the caller's promise.
    unsafe { error.as_ref() }.map_or(GW_OK, |error| error.status)
}

/// See the header.
///
/// # Safety
/// `error` is NULL or a live error; `size` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_error_message(error: *const gw_error, size: *mut usize) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe { error.as_ref().map_or(std::ptr::null(), |error| error.message.give(size)) }
}

/// See the header.
///
/// # Safety
/// `error` is NULL or a live error; `size` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_error_detail(error: *const gw_error, size: *mut usize) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe { error.as_ref().map_or(std::ptr::null(), |error| error.detail.give(size)) }
}

/// See the header.
///
/// # Safety
/// `error` is NULL, or points to NULL or to a live error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_error_free(error: *mut *mut gw_error) {
    // SAFETY: the caller's promise; errors are made by `Box::into_raw`.
    quietly(|| unsafe { crate::guard::free(error, |error| drop(Box::from_raw(error))) });
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn gw_status_name(status: gw_status) -> *const c_char {
    name_of(status).as_ptr()
}
