//! Changes in the forms that are multiplied: what files hold as products of small things, multiplied out once.

use graftwork_kernels::{Format, Tensor, tensor};

use crate::{Error, file};

/// A change as a pair of factors `B A`, or as a whole.
pub enum Expanded {
    /// `A [rank, inputs]` and `B [outputs, rank]`.
    LowRank(Tensor, Tensor),
    /// `[outputs, inputs]`.
    Whole(Tensor),
}

/// A sparse matrix, its entries by output.
pub struct Sparse {
    /// Where the entries of each output begin, and their number: `[outputs + 1]`.
    pub starts: Vec<u32>,
    /// The input of each entry.
    pub columns: Vec<u32>,
    /// Its value.
    pub values: Vec<f32>,
}

/// How a rotation comes of a skew-symmetric matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cayley {
    /// Rows and columns of a block.
    pub size: usize,
    /// Terms of the Neumann series; none for the inverse itself.
    pub terms: Option<usize>,
    /// `Q` is held within a ball of this radius, over the square root of the number of blocks.
    pub ball: Option<f64>,
    /// Whether there is one block that stands for all.
    pub share: bool,
}

/// The failure to expand the tensor `name`.
pub(crate) fn failed(name: &str, source: tensor::Error) -> Error {
    file::Error::Matrix { tensor: name.to_owned(), source }.into()
}

/// `by m`.
///
/// # Errors
/// [`tensor::Error::OutOfMemory`].
pub fn scaled(m: &Tensor, by: f32) -> Result<Tensor, tensor::Error> {
    let mut values = m.decode()?;
    values.iter_mut().for_each(|value| *value *= by);
    Tensor::encode(Format::F32, m.rows(), m.cols(), &values)
}

/// `a - b`.
///
/// # Errors
/// [`tensor::Error::OutOfMemory`].
pub fn difference(a: &Tensor, b: &Tensor) -> Result<Tensor, tensor::Error> {
    let mut values = a.decode()?;
    values.iter_mut().zip(b.decode()?).for_each(|(a, b)| *a -= b);
    Tensor::encode(Format::F32, a.rows(), a.cols(), &values)
}

/// `out[i,j] = by[i] m[i,j]`.
///
/// # Errors
/// [`tensor::Error::OutOfMemory`].
pub fn scaled_rows(m: &Tensor, by: &[f32]) -> Result<Tensor, tensor::Error> {
    let mut values = m.decode()?;
    for (row, by) in values.chunks_exact_mut(m.cols()).zip(by) {
        row.iter_mut().for_each(|value| *value *= by);
    }
    Tensor::encode(Format::F32, m.rows(), m.cols(), &values)
}

/// `out[i,j] = sum_r a[i,r] b[r,j]`.
///
/// # Errors
/// [`tensor::Error::OutOfMemory`].
pub fn product(a: &Tensor, b: &Tensor) -> Result<Tensor, tensor::Error> {
    let (left, right) = (a.decode()?, b.decode()?);
    let cols = b.cols();
    let mut out = tensor::reserved(a.rows().saturating_mul(cols))?;
    let mut sums = vec![0.0f64; cols];
    for left in left.chunks_exact(a.cols()) {
        sums.fill(0.0);
        for (&x, right) in left.iter().zip(right.chunks_exact(cols)) {
            sums.iter_mut().zip(right).for_each(|(sum, &y)| *sum += f64::from(x) * f64::from(y));
        }
        out.extend(sums.iter().map(|&sum| sum as f32));
    }
    Tensor::encode(Format::F32, a.rows(), cols, &out)
}

/// `c[o] = m[o] / |W[o,:] + scale (B A)[o,:]|`, the norm over inputs (DoRA). `weight` gives the rows of `W`; infinite or not a
/// number where a row is zero. Computed on `threads` threads at most, each for rows of its own.
///
/// # Errors
/// [`tensor::Error::OutOfMemory`].
pub fn dora_factors(
    weight: &Tensor,
    (a, b, scale): (&Tensor, &Tensor, f32),
    magnitude: &[f32],
    threads: usize,
) -> Result<Vec<f32>, tensor::Error> {
    let (a_values, b_values) = (a.decode()?, b.decode()?);
    let mut factors = tensor::reserved(magnitude.len())?;
    factors.extend_from_slice(magnitude);
    let share = magnitude.len().div_ceil(threads.max(1)).max(1);
    // The magnitudes of `factors` become factors.
    let part = |start: usize, factors: &mut [f32]| {
        let mut row = tensor::reserved(weight.cols())?;
        row.resize(weight.cols(), 0.0f32);
        for (o, factor) in (start..).zip(factors) {
            weight.decode_row(o, &mut row);
            let b = &b_values[o * b.cols()..][..b.cols()];
            for (b, a) in b.iter().zip(a_values.chunks_exact(a.cols())) {
                row.iter_mut().zip(a).for_each(|(w, a)| *w += scale * b * a);
            }
            let square = row.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>();
            *factor = (f64::from(*factor) / square.sqrt()) as f32;
        }
        Ok(())
    };
    let part = &part;
    std::thread::scope(|scope| {
        let mut parts = (0..).step_by(share).zip(factors.chunks_mut(share));
        let mine = parts.next();
        let mut others = Vec::new();
        for (start, factors) in parts {
            let thread = std::thread::Builder::new().name("graftwork-load".to_owned()).stack_size(1 << 20);
            others.push(thread.spawn_scoped(scope, move || part(start, factors)));
        }
        mine.map_or(Ok(()), |(start, factors)| part(start, factors))?;
        others.into_iter().try_for_each(|other| match other.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => Err(tensor::Error::OutOfMemory { bytes: 1 << 20 }),
        })
    })?;
    Ok(factors)
}

/// `(W1a W1b) * (W2a W2b)` element by element. As factors it has rank `r1 r2`: `B[o,(i,j)] = W1a[o,i] W2a[o,j]` and
/// `A[(i,j),:] = W1b[i,:] * W2b[j,:]` (the Khatri-Rao products); where these would be larger than the whole, the whole.
///
/// # Errors
/// [`tensor::Error::OutOfMemory`].
pub fn hadamard(
    (w1a, w1b): (&Tensor, &Tensor),
    (w2a, w2b): (&Tensor, &Tensor),
) -> Result<Expanded, tensor::Error> {
    let (r1, r2) = (w1b.rows(), w2b.rows());
    let (outputs, inputs) = (w1a.rows(), w1b.cols());
    let rank = r1.saturating_mul(r2);
    if rank.saturating_mul(outputs + inputs) >= outputs.saturating_mul(inputs) {
        let (first, second) = (product(w1a, w1b)?.decode()?, product(w2a, w2b)?.decode()?);
        let whole: Vec<f32> = first.iter().zip(second).map(|(x, y)| x * y).collect();
        return Ok(Expanded::Whole(Tensor::encode(Format::F32, outputs, inputs, &whole)?));
    }
    let (tall, wide) = ((w1a.decode()?, w2a.decode()?), (w1b.decode()?, w2b.decode()?));
    let mut b = tensor::reserved(outputs.saturating_mul(rank))?;
    for (first, second) in tall.0.chunks_exact(r1).zip(tall.1.chunks_exact(r2)) {
        b.extend(first.iter().flat_map(|x| second.iter().map(move |y| x * y)));
    }
    let mut a = tensor::reserved(rank.saturating_mul(inputs))?;
    for first in wide.0.chunks_exact(inputs) {
        for second in wide.1.chunks_exact(inputs) {
            a.extend(first.iter().zip(second).map(|(x, y)| x * y));
        }
    }
    let a = Tensor::encode(Format::F32, rank, inputs, &a)?;
    Ok(Expanded::LowRank(a, Tensor::encode(Format::F32, outputs, rank, &b)?))
}

/// The entries `(rows, columns, values)` of a sparse matrix, those of one output together, by column; output `o` of the
/// result is row `order[o]`.
///
/// # Errors
/// [`tensor::Error::OutOfMemory`].
pub fn by_output(
    (rows, columns, values): (&[u32], &[u32], &Tensor),
    order: &[u32],
) -> Result<Sparse, tensor::Error> {
    let mut place = tensor::reserved(order.len())?;
    place.resize(order.len(), 0u32);
    for (output, &row) in order.iter().enumerate() {
        place[row as usize] = output as u32;
    }
    let all = values.decode()?;
    let mut entries = tensor::reserved(all.len())?;
    entries.extend(rows.iter().zip(columns).zip(all).map(|((&r, &c), v)| (place[r as usize], c, v)));
    // Stable: values at one place keep their order.
    entries.sort_by_key(|&(output, column, _)| (output, column));
    let mut starts = tensor::reserved(order.len() + 1)?;
    starts.push(0);
    for output in 0..order.len() as u32 {
        starts.push(entries.partition_point(|entry| entry.0 <= output) as u32);
    }
    let mut sparse = Sparse {
        starts,
        columns: tensor::reserved(entries.len())?,
        values: tensor::reserved(entries.len())?,
    };
    for (_, column, value) in entries {
        sparse.columns.push(column);
        sparse.values.push(value);
    }
    Ok(sparse)
}

/// The blocks `R [size, size]` of OFT. With `Q` the skew-symmetric matrix whose upper triangle is a row of `skew`: `R = I + 2 Q + 2 Q^2 +
/// ... + 2 Q^(n - 2) + Q^(n - 1)` in `n` terms (`I + 2 Q` in two; three are four, as in peft), or `R = (I - Q) (I + Q)^-1`, which
/// is the other sense of rotation, as in peft.
///
/// # Errors
/// [`tensor::Error::OutOfMemory`].
pub fn rotations(skew: &Tensor, cayley: &Cayley) -> Result<Vec<Tensor>, tensor::Error> {
    let n = cayley.size;
    let values = skew.decode()?;
    let radius = cayley.ball.map(|ball| ball / (skew.rows() as f64).sqrt());
    let mut blocks = tensor::reserved(skew.rows())?;
    for above in values.chunks_exact(skew.cols()) {
        // Each value stands twice in `Q`.
        let norm = above.iter().map(|&x| 2.0 * f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        let shrink = radius.filter(|&radius| norm > radius).map_or(1.0, |radius| radius / norm);
        let mut q: Vec<f64> = tensor::zeros(n * n)?;
        let places = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j)));
        for ((i, j), &value) in places.zip(above) {
            q[i * n + j] = f64::from(value) * shrink;
            q[j * n + i] = -f64::from(value) * shrink;
        }
        let block = match cayley.terms {
            Some(terms) => neumann(&q, n, terms)?,
            None => cayley_transform(&q, n)?,
        };
        let mut rounded = tensor::reserved(n * n)?;
        rounded.extend(block.iter().map(|&x| x as f32));
        blocks.push(Tensor::encode(Format::F32, n, n, &rounded)?);
    }
    Ok(blocks)
}

fn neumann(q: &[f64], n: usize, terms: usize) -> Result<Vec<f64>, tensor::Error> {
    let mut sum: Vec<f64> = tensor::zeros(n * n)?;
    sum.iter_mut().step_by(n + 1).for_each(|x| *x = 1.0);
    if terms > 1 {
        sum.iter_mut().zip(q).for_each(|(sum, q)| *sum += 2.0 * q);
    }
    // Two terms are whole; of more, the last counts half.
    if terms > 2 {
        let mut power = square_product(q, q, n)?;
        sum.iter_mut().zip(&power).for_each(|(sum, p)| *sum += 2.0 * p);
        for last in (3..terms.max(4)).map(|term| term + 1 >= terms) {
            power = square_product(&power, q, n)?;
            sum.iter_mut().zip(&power).for_each(|(sum, p)| *sum += if last { *p } else { 2.0 * p });
        }
    }
    Ok(sum)
}

fn square_product(a: &[f64], b: &[f64], n: usize) -> Result<Vec<f64>, tensor::Error> {
    let mut out: Vec<f64> = tensor::zeros(n * n)?;
    for (a, out) in a.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
        for (&a, b) in a.iter().zip(b.chunks_exact(n)) {
            out.iter_mut().zip(b).for_each(|(out, b)| *out += a * b);
        }
    }
    Ok(out)
}

/// `(I - Q) (I + Q)^-1 = 2 (I + Q)^-1 - I`, by elimination: `I + Q` has no eigenvalue below 1 in magnitude.
fn cayley_transform(q: &[f64], n: usize) -> Result<Vec<f64>, tensor::Error> {
    let mut left: Vec<f64> = tensor::zeros(n * n)?;
    left.copy_from_slice(q);
    let mut right: Vec<f64> = tensor::zeros(n * n)?;
    for i in 0..n {
        left[i * n + i] += 1.0;
        right[i * n + i] = 1.0;
    }
    for k in 0..n {
        let pivot =
            (k..n).max_by(|&i, &j| left[i * n + k].abs().total_cmp(&left[j * n + k].abs())).unwrap_or(k);
        for j in 0..n {
            left.swap(k * n + j, pivot * n + j);
            right.swap(k * n + j, pivot * n + j);
        }
        let by = 1.0 / left[k * n + k];
        for j in 0..n {
            left[k * n + j] *= by;
            right[k * n + j] *= by;
        }
        for i in (0..n).filter(|&i| i != k) {
            let by = left[i * n + k];
            for j in 0..n {
                left[i * n + j] -= by * left[k * n + j];
                right[i * n + j] -= by * right[k * n + j];
            }
        }
    }
    right.iter_mut().for_each(|x| *x *= 2.0);
    right.iter_mut().step_by(n + 1).for_each(|x| *x -= 1.0);
    Ok(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(seed: usize, rows: usize, cols: usize) -> Tensor {
        let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 7 + seed * 13) as f32).sin()).collect();
        Tensor::encode(Format::F32, rows, cols, &values).unwrap()
    }

    #[test]
    fn factors_and_whole_of_a_hadamard_product_are_equal() {
        // Rank 2 * 3 of [40, 50] is smaller as factors, rank 6 * 5 of [7, 6] as a whole.
        for (outputs, inputs, r1, r2) in [(40, 50, 2, 3), (7, 6, 6, 5), (9, 9, 1, 1)] {
            let (w1a, w1b) = (matrix(1, outputs, r1), matrix(2, r1, inputs));
            let (w2a, w2b) = (matrix(3, outputs, r2), matrix(4, r2, inputs));
            let whole = match hadamard((&w1a, &w1b), (&w2a, &w2b)).unwrap() {
                Expanded::Whole(whole) => {
                    assert!(r1 * r2 * (outputs + inputs) >= outputs * inputs);
                    whole
                }
                Expanded::LowRank(a, b) => {
                    assert_eq!((a.rows(), b.cols()), (r1 * r2, r1 * r2));
                    product(&b, &a).unwrap()
                }
            };
            let (first, second) = (product(&w1a, &w1b).unwrap(), product(&w2a, &w2b).unwrap());
            let (first, second) = (first.decode().unwrap(), second.decode().unwrap());
            for ((found, x), y) in whole.decode().unwrap().iter().zip(first).zip(second) {
                // At most 30 products below 1 in magnitude.
                assert!((found - x * y).abs() <= 40.0 * f32::EPSILON, "{found} against {}", x * y);
            }
        }
    }

    #[test]
    fn entries_go_to_their_output_in_order_of_columns() {
        let values = Tensor::encode(Format::F32, 1, 5, &[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        // Row 2 becomes output 0, row 0 output 1, row 1 output 2; output 1 has none.
        let sparse = by_output((&[2, 1, 2, 1, 2], &[7, 3, 1, 0, 7], &values), &[2, 0, 1]).unwrap();
        assert_eq!(sparse.starts, [0, 3, 3, 5]);
        assert_eq!(sparse.columns, [1, 7, 7, 0, 3]);
        assert_eq!(sparse.values, [3.0, 1.0, 5.0, 4.0, 2.0]);
    }
}
