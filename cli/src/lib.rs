//! What the `graftwork` command and the tests share: known models and where they are kept.

pub mod pull;
