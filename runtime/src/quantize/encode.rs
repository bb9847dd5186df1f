//! Rows of a tensor in another format, some at a time.

use std::io::Write;
use std::ops::Range;

use graftwork_adapters::RowOrder;
use graftwork_adapters::merge::Merge;
use graftwork_kernels::Format;

use super::importance::Importance;
use super::source::Weight;
use super::{Error, Failure, Quantized};
use crate::merge::Part as Of;
use crate::parallel::{Progress, in_parallel};

/// Values that a thread encodes at once, and in whole rows a few more: 256 KiB in singles.
const PART: usize = 1 << 16;
/// Parts that are encoded before they are written.
const PARTS: usize = 64;

/// Encodes tensors and says how far it is.
pub struct Encoder<'a> {
    pub threads: usize,
    pub importance: Option<Importance>,
    /// Values that are done.
    pub done: usize,
    /// Values of the whole model.
    pub all: usize,
    pub progress: &'a Progress<'a>,
}

/// Encoded rows.
struct Part {
    bytes: Vec<u8>,
    sums: Sums,
}

/// Sums of squares.
#[derive(Clone, Copy, Default)]
struct Sums {
    /// Of the base's values.
    base: f64,
    /// Of what adapters made of them.
    merged: f64,
    /// Of the difference of the two.
    changed: f64,
    /// Of what encoding lost.
    lost: f64,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        let Self { base, merged, changed, lost } = other;
        self.base += base;
        self.merged += merged;
        self.changed += changed;
        self.lost += lost;
    }
}

impl Encoder<'_> {
    /// Writes a tensor in its new format, with what adapters change in it; says what became of it.
    pub fn encode(
        &mut self,
        weight: &Weight<'_>,
        quantized: &mut Quantized,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        let to = quantized.to;
        let (rows, cols) = (weight.rows, weight.tensor.cols());
        let mut sums = Sums::default();
        let input = weight.input.filter(|_| rows > 1);
        let importance = self.importance.as_ref().zip(input).map(|(all, input)| all.of_input(input));
        let changes = weight.changes.as_ref();
        let merge = changes.map(|changes| changes.prepare(self.threads)).transpose().map_err(Error::from)?;
        let of = |part| merge.as_ref().filter(|_| changes.is_some_and(|changes| changes.part == part));
        let source = Rows { weight, merge: of(Of::Weight), bias: of(Of::Bias).map(Merge::bias) };
        if to == weight.tensor.format() && weight.reordered.is_none() && changes.is_none() {
            // As it is, but not at once: it may be large, and the disk slow.
            for piece in weight.tensor.bytes().chunks(PARTS * PART) {
                out.write_all(piece)?;
                self.show(0)?;
            }
            self.show(rows * cols)?;
        } else {
            let step = (PART / cols).max(1);
            let starts: Vec<usize> = (0..rows).step_by(step).collect();
            for starts in starts.chunks(PARTS) {
                let work = |at: usize| source.part(starts[at]..(starts[at] + step).min(rows), to, importance);
                let (done, all, progress) = (self.done, self.all, self.progress);
                let show = |parts: usize, _: usize| progress((done + parts * step * cols).min(all), all);
                for part in in_parallel(self.threads, starts.len(), &show, work)? {
                    out.write_all(&part.bytes)?;
                    sums.add(&part.sums);
                }
                self.done += (rows - starts[0]).min(starts.len() * step) * cols;
            }
        }
        // Its pages are not read again.
        weight.tensor.bytes().unload();
        // Infinite, of what came of nothing.
        let of = |part: f64, whole: f64| if part > 0.0 { (part / whole).sqrt() } else { 0.0 };
        quantized.change = changes.map(|_| of(sums.changed, sums.base));
        quantized.relative_error = of(sums.lost, sums.merged);
        Ok(())
    }

    /// Counts values that are done.
    fn show(&mut self, values: usize) -> Result<(), Error> {
        self.done += values;
        match (self.progress)(self.done, self.all) {
            true => Ok(()),
            false => Err(crate::Error::Cancelled.into()),
        }
    }
}

/// The rows of a tensor as they are to be written.
struct Rows<'a> {
    weight: &'a Weight<'a>,
    /// What makes them of the base's.
    merge: Option<&'a Merge>,
    /// The one row of a bias that adapters change.
    bias: Option<Vec<f32>>,
}

impl Rows<'_> {
    /// These rows in the format `to`, by the importance of their values.
    fn part(&self, rows: Range<usize>, to: Format, importance: Option<&[f32]>) -> Result<Part, Error> {
        let tensor = &self.weight.tensor;
        let (cols, size) = (tensor.cols(), tensor.cols() / to.block_len() * to.block_bytes());
        let (mut base, mut row, mut again) = (vec![0.0; cols], vec![0.0; cols], vec![0.0; cols]);
        let mut part = Part { bytes: vec![0; rows.len() * size], sums: Sums::default() };
        for (at, bytes) in rows.zip(part.bytes.chunks_exact_mut(size)) {
            self.row(at, &mut base, &mut row);
            let bad = |found| Error::Value { tensor: self.weight.name.clone(), row: at, format: to, found };
            if let Some(&found) = row.iter().find(|value| !value.is_finite()) {
                return Err(bad(found));
            }
            match importance {
                Some(importance) => to.encode_weighted(&row, importance, bytes),
                None => to.encode(&row, bytes),
            }
            to.decode(bytes, &mut again);
            let square = |x: f32| f64::from(x).powi(2);
            for ((&x, &y), &base) in row.iter().zip(&again).zip(&base) {
                if !y.is_finite() {
                    return Err(bad(x));
                }
                part.sums.lost += square(x - y);
                part.sums.merged += square(x);
                part.sums.base += square(base);
                part.sums.changed += square(x - base);
            }
        }
        Ok(part)
    }

    /// Row `at` of the file to write: the base's, and what is written in its place.
    fn row(&self, at: usize, base: &mut [f32], row: &mut [f32]) {
        let (tensor, heads) = (&self.weight.tensor, self.weight.reordered);
        let from = |at, heads| RowOrder::HuggingFace.source_row(RowOrder::Gguf, at, heads);
        // Values of a vector are rows of a matrix.
        let is_vector = tensor.rows() == 1;
        let source = heads.filter(|_| !is_vector).map_or(at, |heads| from(at, heads));
        match source < tensor.rows() {
            true => tensor.decode_row(source, base),
            false => base.fill(0.0),
        }
        row.copy_from_slice(self.bias.as_deref().unwrap_or(base));
        if let Some(merge) = self.merge {
            merge.row(source, row);
        }
        if let Some(heads) = heads.filter(|_| is_vector) {
            for values in [base, row] {
                let before = values.to_vec();
                values.iter_mut().enumerate().for_each(|(i, value)| *value = before[from(i, heads)]);
            }
        }
    }
}
