//! States: requests that are saved, and go on later.

use std::ffi::{c_char, c_void};

use graftwork::RequestId;
use graftwork::place::store;

use crate::engine::{gw_engine, on_engine};
use crate::error::{gw_error, gw_status};
use crate::event::{gw_event_fn, sink};
use crate::guard::{free, guard, quietly};
use crate::gw_drop_fn;
use crate::input::{self, Out, User, reference, set_optional};
use crate::source::gw_source;

/// A request as it was between two tokens.
pub struct gw_state(Vec<u8>);

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_state_save(
    engine: *const gw_engine,
    id: u64,
    state: *mut *mut gw_state,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        on_engine("gw_state_save", engine, error, |engine| {
            let out = Out::new(state, "state")?;
            let bytes = engine.save(RequestId::from(id))?;
            out.set(Box::into_raw(Box::new(gw_state(bytes))));
            Ok(())
        })
    }
}

/// See the header.
///
/// # Safety
/// `state` is NULL or a live state; `size` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_state_data(state: *const gw_state, size: *mut usize) -> *const c_void {
    // SAFETY: the caller's promise.
    unsafe {
        state.as_ref().map_or(std::ptr::null(), |state| {
            set_optional(size, state.0.len());
            state.0.as_ptr().cast()
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_state_write(
    state: *const gw_state,
    path: *const c_char,
    path_size: usize,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        guard("gw_state_write", error, || {
            let state = reference(state, "state")?;
            store(input::path(path, path_size, "path")?, &state.0)?;
            Ok(())
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_state_free(state: *mut *mut gw_state) {
    // SAFETY: the caller's promises; states are made by `Box::into_raw`.
    quietly(|| unsafe { free(state, |state| drop(Box::from_raw(state))) });
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_state_resume(
    engine: *const gw_engine,
    state: *const gw_source,
    on_event: gw_event_fn,
    user: *mut c_void,
    drop: gw_drop_fn,
    id: *mut u64,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        on_engine("gw_state_resume", engine, error, |engine| {
            let bytes = reference(state, "state")?.file("state")?;
            let (user, claim) = User::new(user, drop).claim();
            let resumed = match on_event {
                None => engine.resume(bytes.as_ref())?,
                Some(on_event) => engine.resume_to(sink(on_event, user), bytes.as_ref())?,
            };
            claim.keep();
            set_optional(id, resumed.get());
            Ok(())
        })
    }
}
