//! The header of a delta: JSON, versioned, without fields that nobody knows.

use serde::{Deserialize, Serialize};

use crate::{Error, file};

/// The key of the header among the texts of the file.
pub const KEY: &str = "graftwork.delta";
/// The key of the digest of what stands before the data.
pub const DIGEST: &str = "graftwork.delta.sha256";
/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;
/// Bytes of a header: a matrix takes some 500.
const MAX: usize = 16 << 20;

/// What the file says about its tensors.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    pub version: u32,
    pub method: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    pub bases: Vec<String>,
    pub row_order: String,
    pub data_sha256: String,
    pub layers: Vec<Layer>,
    pub carried: Vec<String>,
}

/// A layer whose weight changes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    pub module: String,
    /// Outputs and inputs.
    pub shape: [usize; 2],
    pub parts: Vec<Part>,
}

/// A part of its delta.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Part {
    Factors { ranks: [usize; 2], v: Matrix, u: Matrix },
    Whole { scale: f64, matrix: Matrix },
    Sparse { entries: usize, values: String },
    Overwrite { entries: usize, values: String },
}

/// How a matrix is kept.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    pub format: String,
    pub layout: Layout,
}

/// The order of the values of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    Rows,
    Strips,
}

/// The version alone, whatever else there is.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Header {
    /// Reads the text of [`KEY`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        let json = |error| Error::from(file::Error::json(error).in_file(format!("key {KEY}")));
        if text.len() > MAX {
            let (what, limit, found) = (format!("bytes of {KEY}"), MAX as u64, text.len() as u64);
            return Err(file::Error::TooMany { what, limit, found }.into());
        }
        let Version { version } = serde_json::from_str(text).map_err(json)?;
        if version != VERSION {
            return Err(wrong("version", VERSION, version));
        }
        serde_json::from_str(text).map_err(json)
    }
}

/// The error for a field with another value than it may have.
pub fn wrong(field: impl Into<String>, expected: impl ToString, found: impl ToString) -> Error {
    let found: String = found.to_string().chars().take(80).collect();
    Error::Field { field: field.into(), expected: expected.to_string(), found }
}
