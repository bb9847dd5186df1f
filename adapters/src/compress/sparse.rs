//! Entries that are not 0, or the greatest.

use graftwork_kernels::{Format, Tensor};

use super::{Difference, Error};
use crate::delta::Part;

/// The entries with the greatest magnitudes that fit in `bytes`, as BF16, of equal ones the first; or all that are not 0, as they are.
pub(super) fn greatest(delta: &Difference, bytes: Option<usize>) -> Result<Part, Error> {
    let (rows, cols) = (delta.outputs(), delta.inputs());
    let Some(bytes) = bytes else { return entries(delta, rows * cols, Format::F32) };
    // Starts of rows; a column and a value for each entry.
    let (starts, entry) = (4 * (rows + 1), 4 + 2);
    match bytes.checked_sub(starts).map(|rest| rest / entry).filter(|&most| most > 0) {
        Some(most) => entries(delta, most, Format::BF16),
        None => Err(Error::Budget { bytes, rows, cols, method: "one entry", least: starts + entry }),
    }
}

/// How many of the greatest entries leave out no more than each of `left` of the sum of squares; none where that is none.
pub(super) fn counts(delta: &Difference, left: [Option<f64>; 2]) -> [Option<usize>; 2] {
    let mut magnitudes: Vec<f32> = delta.values().iter().map(|value| value.abs()).collect();
    magnitudes.sort_unstable_by(f32::total_cmp);
    left.map(|left| {
        let mut rest = left?;
        let dropped = magnitudes.iter().position(|&magnitude| {
            rest -= f64::from(magnitude).powi(2);
            rest < 0.0
        });
        Some(magnitudes.len() - dropped.unwrap_or(magnitudes.len()))
    })
}

/// The `most` entries with the greatest magnitudes that are not 0, of equal ones the first.
pub(super) fn entries(delta: &Difference, most: usize, format: Format) -> Result<Part, Error> {
    let (rows, cols) = (delta.outputs(), delta.inputs());
    let values = delta.values();
    let mut kept: Vec<u32> = Vec::new();
    let index = |at: usize| {
        u32::try_from(at).map_err(|_| Error::Shape {
            what: "delta",
            expected: "at most 2^32 entries for a sparse delta".to_owned(),
            found: format!("[{rows}, {cols}]"),
        })
    };
    index(values.len() - 1)?;
    kept.extend((0..values.len()).filter(|&at| values[at] != 0.0).map(|at| at as u32));
    if most < kept.len() {
        let magnitude = |at: u32| values[at as usize].abs();
        kept.select_nth_unstable_by(most, |&a, &b| magnitude(b).total_cmp(&magnitude(a)).then(a.cmp(&b)));
        kept.truncate(most);
        kept.sort_unstable();
    }
    let mut starts = vec![0u32; rows + 1];
    kept.iter().for_each(|&at| starts[at as usize / cols + 1] += 1);
    (0..rows).for_each(|row| starts[row + 1] += starts[row]);
    let columns = kept.iter().map(|&at| at % cols as u32).collect();
    let entries: Vec<f32> = kept.iter().map(|&at| values[at as usize]).collect();
    let values = Tensor::encode(format, 1, entries.len(), &entries)?;
    Ok(Part::Sparse { starts: starts.into(), columns, values })
}
