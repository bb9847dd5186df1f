//! Are all values of a tensor finite?

use graftwork_kernels::{Tensor, tensor};

use crate::{Error, file};

/// Refuses a tensor with an infinite value or one that is not a number: it would poison every request of the adapter.
///
/// # Errors
/// [`Error::NotFinite`] with the first such value; or no memory for the values of a row.
pub fn check(name: &str, tensor: &Tensor) -> Result<(), Error> {
    let mut values = Vec::new();
    values.try_reserve_exact(tensor.cols()).map_err(|_| {
        let source = tensor::Error::OutOfMemory { bytes: tensor.cols().saturating_mul(4) };
        file::Error::Matrix { tensor: name.to_owned(), source }
    })?;
    values.resize(tensor.cols(), 0.0);
    for row in 0..tensor.rows() {
        tensor.decode_row(row, &mut values);
        if let Some(col) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::NotFinite { tensor: name.to_owned(), row, col, found: values[col] });
        }
    }
    Ok(())
}
