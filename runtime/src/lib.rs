//! Runtime.
#![forbid(unsafe_code)]
