//! Adapters: loading them under names, and listing what is loaded.

use std::ffi::c_char;

use graftwork::{AdapterInfo, Generation};

use crate::engine::{gw_engine, on_engine};
use crate::error::{Failure, GW_ERR_NOT_FOUND, Text, gw_error, gw_status};
use crate::guard::{free, guard, quietly};
use crate::input::{self, Out, reference, set_optional};
use crate::sized::{OutStruct, SizedStruct};
use crate::source::gw_source;

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_adapter_load(
    engine: *const gw_engine,
    name: *const c_char,
    name_size: usize,
    source: *const gw_source,
    generation: *mut u64,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        on_engine("gw_adapter_load", engine, error, |engine| {
            let name = input::text(name, name_size, "name")?;
            let source = reference(source, "source")?.to_source()?;
            set_optional(generation, engine.load_adapter(name, source)?.get());
            Ok(())
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_adapter_replace(
    engine: *const gw_engine,
    name: *const c_char,
    name_size: usize,
    source: *const gw_source,
    expected: u64,
    generation: *mut u64,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        on_engine("gw_adapter_replace", engine, error, |engine| {
            let name = input::text(name, name_size, "name")?;
            let source = reference(source, "source")?.to_source()?;
            let expected = (expected != 0).then(|| Generation::from(expected));
            set_optional(generation, engine.replace_adapter(name, source, expected)?.get());
            Ok(())
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_adapter_unload(
    engine: *const gw_engine,
    name: *const c_char,
    name_size: usize,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        on_engine("gw_adapter_unload", engine, error, |engine| {
            engine.unload_adapter(input::text(name, name_size, "name")?)?;
            Ok(())
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_adapter_pin(
    engine: *const gw_engine,
    name: *const c_char,
    name_size: usize,
    pinned: i32,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        on_engine("gw_adapter_pin", engine, error, |engine| {
            engine.pin_adapter(input::text(name, name_size, "name")?, pinned != 0)?;
            Ok(())
        })
    }
}

/// Some adapters as they were when they were listed.
pub struct gw_adapters(Vec<(Text, Text, AdapterInfo)>);

impl gw_adapters {
    fn give(out: &Out<*mut Self>, adapters: Vec<AdapterInfo>) {
        let texts =
            |info: AdapterInfo| (Text::new(info.name.clone()), Text::new(info.kind.name().to_owned()), info);
        out.set(Box::into_raw(Box::new(Self(adapters.into_iter().map(texts).collect()))));
    }
}

/// What is known of an adapter.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "see the header")]
pub struct gw_adapter_info {
    pub struct_size: u32,
    pub state: u32,
    pub name: *const c_char,
    pub name_size: usize,
    pub kind: *const c_char,
    pub kind_size: usize,
    pub generation: u64,
    pub sites: u64,
    pub bytes: u64,
    pub requests: u64,
    pub loads: u64,
}

const RESIDENT: u32 = 1;
const PINNED: u32 = 2;

// SAFETY: `repr(C)`, the size first, and every field may be zero.
unsafe impl SizedStruct for gw_adapter_info {
    const NAME: &'static str = "info";
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_adapter_list(
    engine: *const gw_engine,
    list: *mut *mut gw_adapters,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        on_engine("gw_adapter_list", engine, error, |engine| {
            gw_adapters::give(&Out::new(list, "list")?, engine.adapters());
            Ok(())
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_adapter_describe(
    engine: *const gw_engine,
    name: *const c_char,
    name_size: usize,
    list: *mut *mut gw_adapters,
    error: *mut *mut gw_error,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        on_engine("gw_adapter_describe", engine, error, |engine| {
            let name = input::text(name, name_size, "name")?;
            let out = Out::new(list, "list")?;
            gw_adapters::give(&out, vec![engine.adapter(name)?]);
            Ok(())
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_adapters_count(list: *const gw_adapters) -> usize {
    // SAFETY: the caller's promise.
    unsafe { list.as_ref() }.map_or(0, |list| list.0.len())
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_adapters_get(
    list: *const gw_adapters,
    index: usize,
    info: *mut gw_adapter_info,
) -> gw_status {
    // SAFETY: the caller's promises.
    unsafe {
        guard("gw_adapters_get", std::ptr::null_mut(), || {
            let list = reference(list, "list")?;
            let out = OutStruct::new(info)?;
            let (name, kind, known) = list.0.get(index).ok_or_else(|| {
                let message = format!("index: expected less than {}, found {index}", list.0.len());
                Failure::new(GW_ERR_NOT_FOUND, "index", message)
            })?;
            out.set(gw_adapter_info {
                struct_size: size_of::<gw_adapter_info>() as u32,
                state: u32::from(known.resident) * RESIDENT + u32::from(known.pinned) * PINNED,
                name: name.as_ptr(),
                name_size: name.size(),
                kind: kind.as_ptr(),
                kind_size: kind.size(),
                generation: known.generation.get(),
                sites: known.edits as u64,
                bytes: known.bytes as u64,
                requests: known.requests as u64,
                loads: known.loads,
            });
            Ok(())
        })
    }
}

/// See the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gw_adapters_free(list: *mut *mut gw_adapters) {
    // SAFETY: the caller's promises; lists are made by `Box::into_raw`.
    quietly(|| unsafe { free(list, |list| drop(Box::from_raw(list))) });
}
