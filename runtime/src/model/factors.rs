//! The two matrices of a low-rank change as they are kept: rounded where the base's weights are.

use std::collections::BTreeMap;
use std::sync::Arc;

use graftwork_kernels::backend::Device;
use graftwork_kernels::{Error, Format, Tensor, tensor};

/// A second factor: `B = rows * matrix`, or the matrix itself.
pub struct Second<M> {
    /// `[outputs, rank]`.
    pub matrix: M,
    /// The factor of each row, if the matrix holds codes.
    pub rows: Option<Vec<f32>>,
}

/// The least that the largest value of a row must be for [`first`] to round it: the scale of smaller ones is a subnormal half.
const LEAST: f32 = 1.0 / 1024.0;

/// `A` as it is kept for layers of so many `inputs`, of which it may have more. On a base in blocks it meets activations of 8 bits,
/// so it is rounded to `Q8_0` too: each value by at most 1/128 of the largest in its row, half of that where no scale is
/// subnormal. What would lose more stays as it is.
pub fn first(a: &Tensor, inputs: usize, base: Format) -> Result<Tensor, Error> {
    let whole = [a.cols(), inputs].iter().all(|n| n.is_multiple_of(Format::Q8_0.block_len()));
    if a.format().block_len() > 1 || base.block_len() == 1 || !whole {
        return Ok(a.clone());
    }
    let values = a.decode()?;
    let fits = |row: &[f32]| {
        row.iter().all(|x| x.is_finite())
            && (row.iter().all(|&x| x == 0.0) || row.iter().any(|x| x.abs() >= LEAST))
    };
    if !values.chunks(a.cols().max(1)).all(fits) {
        return Ok(a.clone());
    }
    Tensor::encode(Format::Q8_0, a.rows(), a.cols(), &values)
}

/// `B` as it is kept, in a format whose values stand by themselves: what multiplies the few numbers of a low-rank activation gains
/// nothing from blocks. On a base in blocks that are codes of 8 bits with a factor for each row: each value is rounded by at most 1/254 of the largest
/// in its row. Where the device has no such factors, or a row is not finite, F32 becomes BF16 there: each value by at most 2^-9 of itself.
pub fn second<D: Device>(device: &D, b: Tensor, base: Format) -> Result<Second<Tensor>, Error> {
    if base.block_len() == 1 {
        return Ok(Second { matrix: in_floats(b)?, rows: None });
    }
    let mut values = b.decode()?;
    if values.iter().all(|x| x.is_finite()) && device.scale(&[], None).is_ok() {
        let mut rows = tensor::reserved(b.rows())?;
        for row in values.chunks_mut(b.cols().max(1)) {
            let by = row.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
            // Of a row that is all but zero, nothing is left.
            let inverse = if by >= f32::MIN_POSITIVE { 1.0 / by } else { 0.0 };
            row.iter_mut().for_each(|x| *x *= inverse);
            rows.push(by);
        }
        return Ok(Second {
            matrix: Tensor::encode(Format::I8, b.rows(), b.cols(), &values)?,
            rows: Some(rows),
        });
    }
    let matrix = match b.format() {
        Format::F16 | Format::BF16 => b,
        _ => Tensor::encode(Format::BF16, b.rows(), b.cols(), &values)?,
    };
    Ok(Second { matrix, rows: None })
}

/// A tensor whose values stand by themselves, the same values.
pub fn in_floats(tensor: Tensor) -> Result<Tensor, Error> {
    match tensor.format().block_len() {
        1 => Ok(tensor),
        _ => Tensor::encode(Format::F32, tensor.rows(), tensor.cols(), &tensor.decode()?),
    }
}

/// What makes a matrix that layers share another one: where its values lie, the format of the layer's weight, and which of two
/// variants it is.
type Key = (usize, Format, bool);

/// The matrices of an adapter that several of its layers share, each prepared once.
pub struct Shared<D: Device> {
    matrices: BTreeMap<Key, Arc<Second<D::Matrix>>>,
}

impl<D: Device> Default for Shared<D> {
    fn default() -> Self {
        Self { matrices: BTreeMap::new() }
    }
}

impl<D: Device> Shared<D> {
    /// The matrix prepared of `tensor` as `make` says, and the bytes that it keeps if it is a new one. What distinguishes it from
    /// others of this tensor are `format` and `variant`.
    pub fn get(
        &mut self,
        tensor: &Tensor,
        (format, variant): (Format, bool),
        device: &D,
        make: impl FnOnce() -> Result<Second<Tensor>, Error>,
    ) -> Result<(Arc<Second<D::Matrix>>, usize), Error> {
        let key = (tensor.bytes().as_ptr() as usize, format, variant);
        if let Some(known) = self.matrices.get(&key) {
            return Ok((known.clone(), 0));
        }
        let Second { matrix, rows } = make()?;
        let matrix = device.matrix(&matrix)?;
        let bytes = device.matrix_bytes(&matrix);
        let made = Arc::new(Second { matrix, rows });
        self.matrices.insert(key, made.clone());
        Ok((made, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is kept of `A` with two rows whose largest values are `scale` and a third of it, and the format.
    fn kept(scale: f32) -> (Vec<f32>, Vec<f32>, Format) {
        let row = |scale: f32| (0..64).map(move |i| scale * ((i * 37 + 11) % 64 - 32) as f32 / 32.0);
        let values: Vec<f32> = row(scale).chain(row(scale / 3.0)).collect();
        let a = Tensor::encode(Format::F32, 2, 64, &values).expect("whole rows");
        let kept = first(&a, 64, Format::Q4K).expect("memory");
        (values, kept.decode().expect("memory"), kept.format())
    }

    #[test]
    fn first_factors_lose_no_more_than_is_said() {
        // Down to values that halves cannot scale.
        for power in 0..40 {
            let (values, kept, format) = kept(0.5f32.powi(power));
            assert_eq!(format == Format::Q8_0, 0.5f32.powi(power) / 3.0 >= LEAST, "2^-{power}");
            for (row, kept) in values.chunks(64).zip(kept.chunks(64)) {
                let largest = row.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                let error = row.iter().zip(kept).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                assert!(error <= largest / 128.0, "2^-{power}: {error} of {largest}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays() {
        let (_, kept, format) = kept(f32::INFINITY);
        assert_eq!(format, Format::F32);
        assert!(kept.iter().any(|x| !x.is_finite()));
    }
}
