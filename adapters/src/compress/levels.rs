//! The values that the entries of a matrix may be rounded to.

use std::ops::Range;

use faer::MatRef;
use graftwork_kernels::{Format, Tensor, tensor};
use half::f16;

/// Where scales and zero points come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// The least and the greatest value of a group: the quantizer of GPTQ and Delta-CoMe.
    Range,
    /// Least squares: `d` and `z` with the least `sum (x - d (q - z))^2` found, the range's among those tried.
    Fitted,
}

/// The levels `d (q - z)` of each entry of a matrix, `q` from `least` to `most`.
pub struct Levels {
    rows: usize,
    columns: Vec<Column>,
    /// `(d, z)` of all rows, group after group.
    groups: Vec<(f32, f32)>,
}

/// What is the same in a column.
#[derive(Clone, Copy)]
struct Column {
    /// Where the groups of its rows begin.
    start: usize,
    codes: Codes,
}

/// Whole numbers from `least` to `most`.
#[derive(Clone, Copy)]
struct Codes {
    least: f32,
    most: f32,
    /// 0.5 where the zero point lies between two of them, else 0.
    between: f32,
}

impl Codes {
    /// From 0 to `most`.
    fn up_to(most: f32) -> Self {
        Self { least: 0.0, most, between: 0.0 }
    }

    /// Signed bytes, without -128.
    const BYTES: Self = Self { least: -127.0, most: 127.0, between: 0.0 };
    /// 0 and 1 for -1 and 1.
    const SIGNS: Self = Self { least: 0.0, most: 1.0, between: 0.5 };
}

impl Levels {
    /// Codes of `bits` bits for `len` values of a row each, which share `d`, a half, and `z`.
    pub fn grouped(w: MatRef<'_, f32>, bits: u32, len: usize, scales: Scales) -> Self {
        let (rows, cols) = w.shape();
        let most = ((1 << bits) - 1) as f32;
        let mut groups = vec![(0.0, 0.0); rows * cols.div_ceil(len)];
        let mut x = Vec::with_capacity(len);
        for row in 0..rows {
            for (group, start) in (0..cols).step_by(len).enumerate() {
                x.clear();
                x.extend((start..(start + len).min(cols)).map(|col| w[(row, col)]));
                let range = range(&x, most);
                groups[group * rows + row] = match scales {
                    Scales::Range => range,
                    Scales::Fitted => fitted(&x, most, range),
                };
            }
        }
        let columns =
            (0..cols).map(|j| Column { start: j / len * rows, codes: Codes::up_to(most) }).collect();
        Self { rows, columns, groups }
    }

    /// Ternary: `-d`, 0 or `d` for `len` values of a row each: `d` is the half nearest to the mean of the greatest magnitudes, as many as
    /// make the squared error least.
    pub fn ternary(w: MatRef<'_, f32>, len: usize) -> Self {
        let (rows, cols) = w.shape();
        let mut groups = vec![(0.0, 1.0); rows * cols.div_ceil(len)];
        let mut x = Vec::with_capacity(len);
        for row in 0..rows {
            for (group, start) in (0..cols).step_by(len).enumerate() {
                x.clear();
                x.extend((start..(start + len).min(cols)).map(|col| w[(row, col)].abs()));
                x.sort_by(|a, b| b.total_cmp(a));
                // With the n greatest kept, the error is less by sum^2 / n than with none.
                let (mut sum, mut best) = (0.0, (0.0, 0.0));
                for (n, &x) in (1..).zip(&x) {
                    sum += x;
                    let gain = sum * sum / n as f32;
                    if gain > best.0 {
                        best = (gain, sum / n as f32);
                    }
                }
                groups[group * rows + row].0 = f16::from_f32(best.1).to_f32();
            }
        }
        let columns = (0..cols).map(|j| Column { start: j / len * rows, codes: Codes::up_to(2.0) }).collect();
        Self { rows, columns, groups }
    }

    /// Signed bytes with one scale for each row.
    pub fn bytes_by_row(w: MatRef<'_, f32>) -> Self {
        let groups = w.row_iter().map(|row| (row.iter().fold(0.0, |m: f32, x| m.max(x.abs())) / 127.0, 0.0));
        let columns = vec![Column { start: 0, codes: Codes::BYTES }; w.ncols()];
        Self { rows: w.nrows(), columns, groups: groups.collect() }
    }

    /// Signed bytes with one scale for each column.
    pub fn bytes_by_column(w: MatRef<'_, f32>) -> Self {
        let rows = w.nrows();
        let scales = w.col_iter().map(|col| col.iter().fold(0.0, |m: f32, x| m.max(x.abs())) / 127.0);
        let groups = scales.flat_map(|scale| std::iter::repeat_n((scale, 0.0), rows)).collect();
        let columns = (0..w.ncols()).map(|j| Column { start: j * rows, codes: Codes::BYTES });
        Self { rows, columns: columns.collect(), groups }
    }

    /// `scale` and `-scale`, codes 1 and 0.
    pub fn signs(rows: usize, cols: usize, scale: f32) -> Self {
        let columns = vec![Column { start: 0, codes: Codes::SIGNS }; cols];
        Self { rows, columns, groups: vec![(2.0 * scale, 0.5); rows] }
    }

    /// The columns of all of these beside each other.
    pub fn beside(parts: impl IntoIterator<Item = Self>, rows: usize) -> Self {
        let mut all = Self { rows, columns: Vec::new(), groups: Vec::new() };
        for part in parts {
            let start = all.groups.len();
            all.columns.extend(part.columns.into_iter().map(|c| Column { start: c.start + start, ..c }));
            all.groups.extend(part.groups);
        }
        all
    }

    /// `d` of the entry in this row and column.
    pub fn scale(&self, row: usize, col: usize) -> f32 {
        self.groups[self.columns[col].start + row].0
    }

    /// Rounds column `col`, `x [rows]`, to the nearest levels.
    pub fn round(&self, col: usize, x: &[f32], codes: &mut [u8], values: &mut [f32]) {
        let Column { start, codes: range } = self.columns[col];
        for (((&x, &(d, z)), code), value) in
            x.iter().zip(&self.groups[start..][..self.rows]).zip(codes).zip(values)
        {
            let q = nearest(x, (d, z), range);
            *code = q as i32 as u8;
            *value = d * (q - z);
        }
    }

    /// Columns `cols` of the matrix with these codes, as blocks of `I8` or of a format `W..G..`.
    ///
    /// # Errors
    /// [`tensor::Error`] where `format` does not fit.
    pub fn tensor(&self, format: Format, codes: &[u8], cols: Range<usize>) -> Result<Tensor, tensor::Error> {
        let code = |row: usize, col: usize| codes[col * self.rows + row];
        let (len, size) = (format.block_len(), format.block_bytes());
        let mut bytes = tensor::zeros(self.rows * (cols.len() / len) * size)?;
        let blocks = (0..self.rows).flat_map(|row| cols.clone().step_by(len).map(move |col| (row, col)));
        for (block, (row, col)) in bytes.chunks_exact_mut(size).zip(blocks) {
            if format == Format::I8 {
                block[0] = code(row, col);
                continue;
            }
            let (d, z) = self.groups[self.columns[col].start + row];
            let (head, packed) = block.split_at_mut(3);
            head[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
            head[2] = z as u8;
            let bits = packed.len() * 8 / len;
            for (i, eight) in packed.chunks_exact_mut(bits).enumerate() {
                let codes = (0..8).map(|k| u64::from(code(row, col + 8 * i + k)) << (bits * k));
                eight.copy_from_slice(&codes.sum::<u64>().to_le_bytes()[..bits]);
            }
        }
        Tensor::new(format, self.rows, cols.len(), bytes.into())
    }
}

/// The code of the level nearest to `x`; ties to even before the zero point is added, as the formats do. Where `d` is 0, that of 0.
#[inline(always)]
fn nearest(x: f32, (d, z): (f32, f32), codes: Codes) -> f32 {
    // To a float this large, less than 2^22 is added to the nearest whole number: vectors of every instruction set do that.
    const WHOLE: f32 = 12_582_912.0;
    let d = if d > 0.0 { d } else { f32::INFINITY };
    let Codes { least, most, between } = codes;
    let steps = (x / d).clamp(least - z - 1.0, most - z + 1.0) + between;
    (steps + WHOLE - WHOLE - between + z).clamp(least, most)
}

/// `d = (max - min) / most` as a half, `z = round(-min / d)`, with 0 between `min` and `max`.
fn range(x: &[f32], most: f32) -> (f32, f32) {
    let min = x.iter().copied().fold(0.0, f32::min);
    let max = x.iter().copied().fold(0.0, f32::max);
    let d = f16::from_f32((max - min) / most).min(f16::MAX).to_f32();
    let z = if d > 0.0 { (-min / d).round_ties_even().min(most) } else { 0.0 };
    (d, z)
}

/// The pair with the least squared error found: from each of some shares of the range, with a zero point in the middle, codes and `d` in
/// turn are made the best for the other.
fn fitted(x: &[f32], most: f32, range: (f32, f32)) -> (f32, f32) {
    if range.0 == 0.0 {
        return range;
    }
    let mut best = (error(x, range, most), range);
    for z in [((most - 1.0) / 2.0).floor(), (most / 2.0).ceil()] {
        for share in [0.8, 0.5] {
            let mut d = range.0 * share;
            for _ in 0..3 {
                let (mut xq, mut qq) = (0.0f32, 0.0f32);
                for &x in x {
                    let q = nearest(x, (d, z), Codes::up_to(most)) - z;
                    xq += x * q;
                    qq += q * q;
                }
                if qq > 0.0 {
                    d = xq / qq;
                }
            }
            let pair = (f16::from_f32(d).to_f32(), z);
            let error = error(x, pair, most);
            if error < best.0 {
                best = (error, pair);
            }
        }
    }
    best.1
}

/// `sum (x - d (q - z))^2`.
fn error(x: &[f32], (d, z): (f32, f32), most: f32) -> f32 {
    x.iter().map(|&x| x - d * (nearest(x, (d, z), Codes::up_to(most)) - z)).map(|e| e * e).sum()
}

#[cfg(test)]
mod tests {
    use faer::Mat;

    use super::*;
    use crate::compress::feedback::round;
    use crate::compress::synthetic::{Spectrum, delta};

    fn matrix(rows: usize, cols: usize) -> Mat<f32> {
        let values = delta(rows, cols, &Spectrum { tail: 0.5, ..Spectrum::default() }, 1);
        MatRef::from_row_major_slice(&values, rows, cols).to_owned()
    }

    #[test]
    fn blocks_decode_to_the_values() {
        for bits in [2, 3] {
            for (cols, start) in [(32, 0), (128, 64), (224, 128), (384, 128)] {
                for scales in [Scales::Range, Scales::Fitted] {
                    let mut w = matrix(5, cols);
                    w[(3, cols - 1)] = 0.7;
                    w.row_mut(4).fill(0.0);
                    let format = Format::coded(bits, cols - start).unwrap();
                    let levels = Levels::grouped(w.as_ref(), bits, format.block_len(), scales);
                    let rounded = round(w.as_ref(), &levels, None);
                    let tensor = levels.tensor(format, &rounded.codes, start..cols).unwrap();
                    let values = rounded.values.get(.., start..cols);
                    let values: Vec<f32> = values.row_iter().flat_map(|row| row.iter().copied()).collect();
                    assert_eq!(tensor.decode().unwrap(), values, "{format} {scales:?}");
                    if scales == Scales::Range {
                        let part = w.get(.., start..cols);
                        let part: Vec<f32> = part.row_iter().flat_map(|row| row.iter().copied()).collect();
                        let encoded = Tensor::encode(format, 5, cols - start, &part).unwrap();
                        assert_eq!(
                            encoded.bytes()[..],
                            tensor.bytes()[..],
                            "{format}: not the quantizer of the format"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn bytes_and_ternary_codes_decode_to_the_values() {
        let w = matrix(6, 64);
        let by_column = Levels::bytes_by_column(w.as_ref());
        let by_row = Levels::bytes_by_row(w.as_ref());
        for levels in [by_column, by_row] {
            let rounded = round(w.as_ref(), &levels, None);
            let codes = levels.tensor(Format::I8, &rounded.codes, 0..64).unwrap().decode().unwrap();
            for (at, code) in codes.into_iter().enumerate() {
                let (row, col) = (at / 64, at % 64);
                assert_eq!(rounded.values[(row, col)], levels.scale(row, col) * code);
                assert!((rounded.values[(row, col)] - w[(row, col)]).abs() <= 0.501 * levels.scale(row, col));
            }
        }
        let levels = Levels::ternary(w.as_ref(), 64);
        let rounded = round(w.as_ref(), &levels, None);
        let decoded = levels.tensor(Format::W2G64, &rounded.codes, 0..64).unwrap().decode().unwrap();
        for row in 0..6 {
            let d = levels.scale(row, 0);
            let decoded = &decoded[64 * row..][..64];
            assert!(
                decoded.iter().zip(w.row(row).iter()).all(|(q, w)| [0.0, d, -d].contains(q) && q * w >= 0.0)
            );
        }
    }

    #[test]
    fn fitted_scales_lose_less_than_those_of_the_range() {
        let w = matrix(64, 512);
        let lost = |bits, scales| {
            let levels = Levels::grouped(w.as_ref(), bits, 128, scales);
            (&w - round(w.as_ref(), &levels, None).values).squared_norm_l2() / w.squared_norm_l2()
        };
        let [two, two_fitted] = [Scales::Range, Scales::Fitted].map(|scales| lost(2, scales));
        let [three, three_fitted] = [Scales::Range, Scales::Fitted].map(|scales| lost(3, scales));
        assert!(two_fitted < 0.7 * two && two_fitted < 0.18, "{two_fitted} of {two}");
        assert!(three_fitted < 0.95 * three && three_fitted < 0.06, "{three_fitted} of {three}");
    }
}
