//! What stands between the caller and every function: nothing unwinds out of the library, nothing is printed.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, Once, PoisonError};

use crate::error::{Failure, GW_ERR_INTERNAL, GW_OK, gw_error, gw_status};

/// What the last panic said, for the error that it becomes.
static LAST: Mutex<Option<String>> = Mutex::new(None);

thread_local! {
    /// How many functions of the library this thread is inside of.
    static INSIDE: Cell<usize> = const { Cell::new(0) };
}

/// Runs the body of a function: its failure, or a panic, becomes a status and an error.
///
/// # Safety
/// `error` is NULL or may be written.
pub(crate) unsafe fn guard(
    name: &'static str,
    error: *mut *mut gw_error,
    body: impl FnOnce() -> Result<(), Failure>,
) -> gw_status {
    // SAFETY: the caller's promise.
    unsafe { report(error, caught(name, body).flatten()) }
}

/// Tells the caller how a function ended.
///
/// # Safety
/// `error` is NULL or may be written.
pub(crate) unsafe fn report(error: *mut *mut gw_error, outcome: Result<(), Failure>) -> gw_status {
    let status = outcome.as_ref().map_or_else(|failure| failure.status, |()| GW_OK);
    if !error.is_null() {
        let made = outcome.err().map(|failure| Box::into_raw(Box::new(failure.into())));
        // SAFETY: the caller's promise.
        unsafe { error.write(made.unwrap_or(std::ptr::null_mut())) };
    }
    status
}

/// Runs `body`; a panic becomes a failure.
pub(crate) fn caught<T>(name: &'static str, body: impl FnOnce() -> T) -> Result<T, Failure> {
    silence();
    INSIDE.set(INSIDE.get() + 1);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        #[cfg(feature = "inject-panics")]
        inject::maybe(name);
        body()
    }));
    INSIDE.set(INSIDE.get() - 1);
    outcome.map_err(|_| {
        let said = LAST.lock().unwrap_or_else(PoisonError::into_inner).take();
        let said = said.unwrap_or_else(|| "a panic".to_owned());
        Failure::new(GW_ERR_INTERNAL, name, format!("internal error in {name}: {said}"))
    })
}

/// Runs what has nobody to tell of a failure.
pub(crate) fn quietly(body: impl FnOnce()) {
    // A panic here is a bug that leaves nothing to be done.
    let _ = caught("", body);
}

/// Gives back what `handle` points to and sets it to NULL; nothing if it is NULL already.
///
/// # Safety
/// `handle` is NULL or may be read and written, and what it points to may be given to `free`.
pub(crate) unsafe fn free<T>(handle: *mut *mut T, free: impl FnOnce(*mut T)) {
    if handle.is_null() {
        return;
    }
    // SAFETY: the caller's promise.
    let held = unsafe { handle.replace(std::ptr::null_mut()) };
    if !held.is_null() {
        free(held);
    }
}

/// Keeps panics of this library off stderr: those of threads inside of it, and of its own threads.
///
/// The hook belongs to this library's copy of the standard library; where a Rust program shares that, its own panics go to
/// the hook before.
fn silence() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let ours = || std::thread::current().name().is_some_and(|name| name.starts_with("graftwork"));
            if INSIDE.get() > 0 || ours() {
                let said = panic.payload_as_str().unwrap_or("a panic");
                let place = panic.location().map(|place| format!(" at {place}")).unwrap_or_default();
                *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{said}{place}"));
            } else {
                before(panic);
            }
        }));
    });
}

#[cfg(feature = "inject-panics")]
pub use inject::gw_inject_panic;

#[cfg(feature = "inject-panics")]
mod inject {
    use std::ffi::c_char;
    use std::sync::{Mutex, PoisonError};

    static NEXT: Mutex<Option<String>> = Mutex::new(None);

    /// The next call of this function panics.
    ///
    /// # Safety
    /// `function` points to `size` bytes.
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn gw_inject_panic(function: *const c_char, size: usize) {
        // SAFETY: the caller's promise.
        let name = unsafe { std::slice::from_raw_parts(function.cast::<u8>(), size) };
        *NEXT.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(String::from_utf8_lossy(name).into_owned());
    }

    pub(super) fn maybe(name: &str) {
        let taken = NEXT.lock().unwrap_or_else(PoisonError::into_inner).take_if(|next| next == name);
        assert!(taken.is_none(), "injected into {name}");
    }
}
