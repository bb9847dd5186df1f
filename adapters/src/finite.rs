//! Are all values of a tensor finite?

use graftwork_kernels::Tensor;

use crate::Error;

/// Refuses a tensor with an infinite value or one that is not a number: it would poison every request of the adapter.
///
/// # Errors
/// [`Error::NotFinite`] with the first such value.
pub fn check(name: &str, tensor: &Tensor) -> Result<(), Error> {
    let mut values = vec![0.0; tensor.cols()];
    for row in 0..tensor.rows() {
        tensor.decode_row(row, &mut values);
        if let Some(col) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::NotFinite { tensor: name.to_owned(), row, col, found: values[col] });
        }
    }
    Ok(())
}
