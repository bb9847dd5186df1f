//! What opening a large file leaves out: the values, and whether they are what was written.

use graftwork_kernels::{Bytes, Format};
use sha2::{Digest, Sha256};

use super::read::{head, header_of, hex};
use super::{Coded, Delta, Part, carried_name, header::wrong, tensor_name};
use crate::file::Safetensors;
use crate::{Error, finite, names};

/// Rows of a strip.
const LANES: usize = 16;

/// Reads a whole file: its header as [`Delta::parse`] does, the digest of its data, and whether every value is finite.
///
/// # Errors
/// As [`Delta::parse`]; data that is not what was written; [`Error::NotFinite`].
pub fn verify(bytes: Bytes) -> Result<(), Error> {
    let header = header_of(&Safetensors::parse(bytes.clone())?, &bytes)?;
    let found = hex(&Sha256::digest(&bytes[head(&bytes).len()..]));
    if found != header.data_sha256 {
        return Err(wrong("data_sha256", format!("the SHA-256 of the data, {found}"), header.data_sha256));
    }
    Delta::parse(bytes)?.check_values()
}

impl Delta {
    /// Looks at every value that is no code, scales of codes among them.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the first that is infinite or not a number: it would poison every request of the delta.
    pub fn check_values(&self) -> Result<(), Error> {
        for layer in &self.layers {
            let module = names::hf_name(layer.site).unwrap_or_default();
            for (i, part) in layer.parts.iter().enumerate() {
                match part {
                    Part::Factors { v, u, .. } => {
                        check(&tensor_name(&module, i, "v"), v)?;
                        check(&tensor_name(&module, i, "u"), u)?;
                    }
                    Part::Whole { matrix, .. } => check(&tensor_name(&module, i, "matrix"), matrix)?,
                    // Checked when they were read.
                    Part::Sparse { .. } | Part::Overwrite { .. } => {}
                }
            }
        }
        for edit in &self.carried {
            let name = carried_name(edit).unwrap_or_default();
            edit.change.tensors().into_iter().try_for_each(|tensor| finite::check(&name, tensor))?;
        }
        Ok(())
    }
}

/// Refuses a matrix with a value that is not finite. In strips a panel is sixteen values or, of codes, begins with sixteen scales in
/// halves; what codes make of a finite one is finite.
fn check(tensor: &str, matrix: &Coded) -> Result<(), Error> {
    let strips = match matrix {
        Coded::Rows(rows) => return finite::check(tensor, rows),
        Coded::Strips(strips) => strips,
    };
    let format = match strips.format() {
        Format::Sign | Format::I8 => return Ok(()),
        format if format.block_len() == 1 => format,
        _ => Format::F16,
    };
    let (len, panel) = (strips.format().block_len(), LANES * strips.format().block_bytes());
    let panels = strips.cols() / len;
    let mut values = [0.0; LANES];
    for (i, bytes) in strips.bytes().chunks_exact(panel).enumerate() {
        format.decode(&bytes[..LANES * format.block_bytes()], &mut values);
        if let Some(lane) = values.iter().position(|value| !value.is_finite()) {
            let (row, col) = (LANES * (i / panels) + lane, i % panels * len);
            return Err(Error::NotFinite { tensor: tensor.to_owned(), row, col, found: values[lane] });
        }
    }
    Ok(())
}
