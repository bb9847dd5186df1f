//! Text to tokens and back, and logits.

use std::ffi::c_char;

use crate::engine::{gw_engine, on_engine};
use crate::error::{Failure, gw_error, gw_status};
use crate::input::{Out, array};
use crate::request::{gw_request, gw_use, stack};
use crate::sized;

/// Writes `values` to the caller's array of `capacity`, and their number to `count` in any case.
///
/// # Safety
/// `to` is NULL or has room for `capacity` values.
unsafe fn fill<T: Copy>(
    values: &[T],
    (to, capacity, name): (*mut T, usize, &str),
    count: &Out<usize>,
) -> Result<(), Failure> {
    count.set(values.len());
    if capacity == 0 {
        return Ok(());
    }
    if to.is_null() {
        return Err(Failure::argument(name, "a pointer", "NULL"));
    }
    if values.len() > capacity {
        return Err(Failure::argument("capacity", &format!("at least {}", values.len()), capacity));
    }
    // SAFETY: the caller's promise, and there is room for all.
    unsafe { to.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    Ok(())
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_prompt_tokens(
    engine: *const gw_engine,
    request: *const gw_request,
    tokens: *mut u32,
    capacity: usize,
    count: *mut usize,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        on_engine("gw_prompt_tokens", engine, error, |engine| {
            let count = Out::new(count, "count")?;
            let prompt = engine.prompt_tokens(sized::read(request)?.prompt()?)?;
            fill(&prompt, (tokens, capacity, "tokens"), &count)
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_detokenize(
    engine: *const gw_engine,
    tokens: *const u32,
    token_count: usize,
    text: *mut c_char,
    capacity: usize,
    size: *mut usize,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        on_engine("gw_detokenize", engine, error, |engine| {
            let size = Out::new(size, "size")?;
            let tokens = array(tokens, token_count, "tokens")?;
            let decoded = engine.detokenize(tokens)?;
            fill(decoded.as_bytes(), (text.cast(), capacity, "text"), &size)
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_logits(
    engine: *const gw_engine,
    tokens: *const u32,
    token_count: usize,
    adapters: *const gw_use,
    adapter_count: usize,
    logits: *mut f32,
    capacity: usize,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        on_engine("gw_logits", engine, error, |engine| {
            Out::new(logits, "logits")?;
            let tokens = array(tokens, token_count, "tokens")?;
            let needed = token_count.saturating_mul(engine.config().vocab);
            if capacity < needed {
                return Err(Failure::argument("capacity", &format!("at least {needed} values"), capacity));
            }
            let values = engine.logits(tokens, &stack(adapters, adapter_count)?)?;
            if capacity < values.len() {
                let needed = format!("at least {} values", values.len());
                return Err(Failure::argument("capacity", &needed, capacity));
            }
            logits.copy_from_nonoverlapping(values.as_ptr(), values.len());
            Ok(())
        })
    }
}
