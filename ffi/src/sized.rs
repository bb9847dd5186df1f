//! Structs that say their own size, because the caller may have been compiled with another version of them.

use std::mem::MaybeUninit;

use crate::error::{Failure, GW_ERR_ABI, GW_OK, gw_status};

/// The size itself and one more field: less can hold nothing.
const LEAST: usize = 8;

/// More than any version will ever have: a size that was not set.
const MOST: usize = 1 << 16;

/// A struct of the header that begins with its size.
///
/// # Safety
/// It is `repr(C)`, its first field is `struct_size: u32`, and all zeros are a value of it.
pub(crate) unsafe trait SizedStruct: Copy {
    /// Its name in messages.
    const NAME: &'static str;
}

/// The size that a struct says it has.
///
/// # Safety
/// `of` is NULL or points to a struct that begins with its size.
unsafe fn size_of_given<T: SizedStruct>(of: *const T) -> Result<usize, Failure> {
    if of.is_null() {
        return Err(Failure::argument(T::NAME, "a pointer", "NULL"));
    }
    // SAFETY: the caller's promise.
    let size = unsafe { of.cast::<u32>().read_unaligned() } as usize;
    match size {
        LEAST..=MOST => Ok(size),
        found => {
            let message = format!("{}.struct_size: expected {LEAST} to {MOST}, found {found}", T::NAME);
            Err(Failure::new(GW_ERR_ABI, T::NAME, message))
        }
    }
}

/// Copies a struct; fields that the caller does not know are zero.
///
/// # Safety
/// `from` is NULL or points to as many bytes as its `struct_size` says.
pub(crate) unsafe fn read<T: SizedStruct>(from: *const T) -> Result<T, Failure> {
    let ours = size_of::<T>();
    // SAFETY: the caller's promise; every such struct begins with its size.
    let size = unsafe { size_of_given(from) }?;
    if size > ours {
        // SAFETY: the caller's promise.
        let rest = unsafe { std::slice::from_raw_parts(from.cast::<u8>().add(ours), size - ours) };
        if let Some(at) = rest.iter().position(|&byte| byte != 0) {
            let message = format!(
                "{}: expected zeros beyond its {ours} bytes, found a field at byte {} that this version does not know",
                T::NAME,
                ours + at,
            );
            return Err(Failure::new(GW_ERR_ABI, T::NAME, message));
        }
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: both have the bytes that are copied, and zeros are a value of every field that is not.
    unsafe {
        value.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(from.cast(), size.min(ours));
        Ok(value.assume_init())
    }
}

/// Where a struct goes that the caller has made room for.
pub(crate) struct OutStruct<T> {
    to: *mut T,
    size: usize,
}

impl<T: SizedStruct> OutStruct<T> {
    /// # Safety
    /// `to` is NULL or points to as many bytes as its `struct_size` says, which may be written until this goes.
    pub unsafe fn new(to: *mut T) -> Result<Self, Failure> {
        // SAFETY: the caller's promise.
        Ok(Self { to, size: unsafe { size_of_given(to) }? })
    }

    /// Writes the fields that the caller has room for. Those that we do not know become zero.
    pub fn set(&self, value: T) {
        let ours = size_of::<T>();
        let body = self.size.min(ours) - size_of::<u32>();
        // SAFETY: the promise given to `new`. All but the size itself is written.
        unsafe {
            let to = self.to.cast::<u8>();
            let from = (&raw const value).cast::<u8>();
            to.add(size_of::<u32>()).copy_from_nonoverlapping(from.add(size_of::<u32>()), body);
            to.add(ours.min(self.size)).write_bytes(0, self.size - ours.min(self.size));
        }
    }
}

/// Sets a struct of the caller's `size` to its defaults.
///
/// # Safety
/// `to` is NULL or points to `size` bytes that may be written.
pub(crate) unsafe fn init<T: SizedStruct>(to: *mut T, size: usize) -> gw_status {
    match u32::try_from(size) {
        _ if to.is_null() => crate::error::GW_ERR_INVALID_ARG,
        Ok(told) if (LEAST..=MOST).contains(&size) => {
            // SAFETY: the caller's promise.
            unsafe {
                to.cast::<u8>().write_bytes(0, size);
                to.cast::<u32>().write_unaligned(told);
            }
            GW_OK
        }
        _ => GW_ERR_ABI,
    }
}
