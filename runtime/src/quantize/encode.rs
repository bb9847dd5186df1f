//! Rows of a tensor in another format, some at a time.

use std::io::Write;
use std::ops::Range;

use graftwork_adapters::RowOrder;
use graftwork_kernels::Format;

use super::importance::Importance;
use super::source::Weight;
use super::{Error, Failure};
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
    /// The sums of the squares of what was lost and of what there was.
    lost: f64,
    whole: f64,
}

impl Encoder<'_> {
    /// Writes a tensor in the format `to`; gives `|E|_F / |W|_F`.
    pub fn encode(&mut self, weight: &Weight, to: Format, out: &mut dyn Write) -> Result<f64, Failure> {
        let Weight { tensor, reordered, .. } = weight;
        let (rows, cols) = (tensor.rows(), tensor.cols());
        let (mut lost, mut whole) = (0.0, 0.0);
        let input = weight.input.filter(|_| rows > 1);
        let importance = self.importance.as_ref().zip(input).map(|(all, input)| all.of_input(input));
        if to == tensor.format() && reordered.is_none() {
            // As it is, but not at once: it may be large, and the disk slow.
            for piece in tensor.bytes().chunks(PARTS * PART) {
                out.write_all(piece)?;
                self.show(0)?;
            }
            self.show(rows * cols)?;
        } else {
            let step = (PART / cols).max(1);
            let starts: Vec<usize> = (0..rows).step_by(step).collect();
            for starts in starts.chunks(PARTS) {
                let work =
                    |at: usize| part(weight, starts[at]..(starts[at] + step).min(rows), to, importance);
                let (done, all, progress) = (self.done, self.all, self.progress);
                let show = |parts: usize, _: usize| progress((done + parts * step * cols).min(all), all);
                for part in in_parallel(self.threads, starts.len(), &show, work)? {
                    out.write_all(&part.bytes)?;
                    (lost, whole) = (lost + part.lost, whole + part.whole);
                }
                self.done += (rows - starts[0]).min(starts.len() * step) * cols;
            }
        }
        // Its pages are not read again.
        tensor.bytes().unload();
        Ok(if whole > 0.0 { (lost / whole).sqrt() } else { 0.0 })
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

/// These rows of a tensor in the format `to`, by the importance of their values.
fn part(weight: &Weight, rows: Range<usize>, to: Format, importance: Option<&[f32]>) -> Result<Part, Error> {
    let tensor = &weight.tensor;
    let (cols, size) = (tensor.cols(), tensor.cols() / to.block_len() * to.block_bytes());
    let (mut row, mut again) = (vec![0.0; cols], vec![0.0; cols]);
    let mut part = Part { bytes: vec![0; rows.len() * size], lost: 0.0, whole: 0.0 };
    for (at, bytes) in rows.zip(part.bytes.chunks_exact_mut(size)) {
        match weight.reordered {
            None => tensor.decode_row(at, &mut row),
            Some(head_dim) if tensor.rows() > 1 => {
                let from = RowOrder::HuggingFace.source_row(RowOrder::Gguf, at, head_dim);
                tensor.decode_row(from, &mut row);
            }
            // Values of a vector are rows of a matrix.
            Some(head_dim) => {
                tensor.decode_row(at, &mut again);
                for (i, value) in row.iter_mut().enumerate() {
                    *value = again[RowOrder::HuggingFace.source_row(RowOrder::Gguf, i, head_dim)];
                }
            }
        }
        let bad = |found: f32| Error::Value { tensor: weight.name.clone(), row: at, format: to, found };
        if let Some(&found) = row.iter().find(|value| !value.is_finite()) {
            return Err(bad(found));
        }
        match importance {
            Some(importance) => to.encode_weighted(&row, importance, bytes),
            None => to.encode(&row, bytes),
        }
        to.decode(bytes, &mut again);
        for (&x, &y) in row.iter().zip(&again) {
            if !y.is_finite() {
                return Err(bad(x));
            }
            part.lost += f64::from(x - y).powi(2);
            part.whole += f64::from(x).powi(2);
        }
    }
    Ok(part)
}
