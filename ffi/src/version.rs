//! Which library this is, and what it can do.

use std::ffi::c_char;

use graftwork::{Format, Kind};

use crate::guard::caught;
use crate::input;

/// The version of the interface.
pub const GW_ABI_VERSION: u32 = 1;

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn gw_abi_version() -> u32 {
    GW_ABI_VERSION
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn gw_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// See the header.
///
/// # Safety
/// `name` is NULL or a text of `name_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_has_feature(name: *const c_char, name_size: usize) -> i32 {
    caught("gw_has_feature", || {
        // SAFETY: the caller's promise.
        let Ok(name) = (unsafe { input::text(name, name_size, "name") }) else { return 0 };
        let known = ["gguf", "safetensors", "cpu", "dora", "state", "budget"].contains(&name)
            || name == "fd" && cfg!(unix)
            || Kind::ALL.iter().any(|kind| kind.name() == name)
            || Format::ALL.iter().any(|format| format.name().eq_ignore_ascii_case(name))
                && !name.contains(|c: char| c.is_ascii_uppercase());
        i32::from(known)
    })
    .unwrap_or(0)
}
