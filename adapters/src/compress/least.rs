//! The smallest of the sparse, low-rank and dense forms whose error is small enough.

use graftwork_kernels::Format;

use super::decompose::{Vectors, decompose};
use super::matrix::{self, inner};
use super::{Difference, Error, factors, sparse, whole};
use crate::delta::Part;

/// `|E|_F / |D|_F` that rounding to BF16 costs, and to halves where two factors are rounded.
const BF16: f64 = 1.0 / 512.0;
const HALVES: f64 = 1.0 / 2048.0;

/// A form, before it is made.
#[derive(Clone, Copy)]
enum Form {
    /// So many of the greatest entries.
    Sparse(usize, Format),
    /// So many of the greatest singular values.
    LowRank(usize, Format),
    Dense(Format),
}

/// The form with the fewest bytes of those with `|E|_F <= error |D|_F`.
pub(super) fn least(delta: &Difference, error: f64) -> Result<Part, Error> {
    let (rows, cols) = (delta.outputs(), delta.inputs());
    if !(error >= 0.0 && error.is_finite()) {
        return Err(Error::Shape {
            what: "error",
            expected: "0 or more".to_owned(),
            found: error.to_string(),
        });
    }
    let norm = inner(delta.matrix(), delta.matrix()).sqrt();
    // What may be left out where rounding takes its part; nothing if that alone is too much.
    let left = |rounding: f64| {
        let squares = error * error - rounding * rounding;
        (squares >= 0.0).then_some(squares * norm * norm)
    };
    let mut forms = vec![Form::Dense(Format::BF16), Form::Dense(Format::F16), Form::Dense(Format::F32)];
    let counts = sparse::counts(delta, [left(BF16), left(0.0)]);
    forms.extend(counts.into_iter().zip([Format::BF16, Format::F32]).filter_map(|(count, format)| {
        // An index of an entry has 32 bits.
        count.filter(|_| u32::try_from(rows * cols).is_ok()).map(|count| Form::Sparse(count, format))
    }));
    let bytes = |form: &Form| match *form {
        Form::Sparse(count, format) => 4 * (rows + 1) + count * (4 + format.block_bytes()),
        Form::LowRank(rank, format) => rank * (format.block_bytes() * (rows + cols) + size_of::<f32>()),
        Form::Dense(format) => rows * cols * format.block_bytes() + size_of::<f32>(),
    };
    // Those in F32 are exact, so one of them is there in the end.
    let exact = |form: &&Form| matches!(form, Form::Sparse(_, Format::F32) | Form::Dense(Format::F32));
    let most = forms.iter().filter(exact).map(bytes).min().unwrap_or_default();
    let mut vectors = None;
    let ranks = most / bytes(&Form::LowRank(1, Format::F16));
    if ranks > 0 {
        let found = decompose(delta, None, ranks)?;
        let squares = found.s.iter().map(|&s| f64::from(s).powi(2)).sum::<f64>();
        let beyond = if found.s.len() < ranks { 0.0 } else { (norm * norm - squares).max(0.0) };
        for (format, rounding) in [(Format::F16, HALVES), (Format::F32, 0.0)] {
            let rank = left(rounding).and_then(|left| rank(&found, beyond, left));
            forms.extend(rank.map(|rank| Form::LowRank(rank, format)));
        }
        vectors = Some(found);
    }
    forms.sort_by_key(bytes);
    for form in forms {
        let part = match (form, &vectors) {
            (Form::Sparse(count, format), _) => sparse::entries(delta, count, format)?,
            (Form::Dense(format), _) => whole::dense(delta, format)?,
            (Form::LowRank(rank, format), Some(vectors)) => factors::of_rank(vectors, rank, format)?,
            (Form::LowRank(..), None) => continue,
        };
        let lost = delta.matrix() - matrix::sum(std::slice::from_ref(&part), rows, cols)?;
        if inner(lost.as_ref(), lost.as_ref()).sqrt() <= error * norm {
            return Ok(part);
        }
    }
    // Values so small that dividing them by a scale is not exact.
    sparse::entries(delta, rows * cols, Format::F32)
}

/// The least rank that leaves out no more than `left` of the sum of squares; none if what was found is not enough. `beyond` is what was
/// not found of it.
fn rank(vectors: &Vectors, beyond: f64, left: f64) -> Option<usize> {
    let mut rest = beyond;
    // From the end: the whole less the first ones would be the whole's rounding.
    let kept = vectors.s.iter().rev().take_while(|&&s| {
        rest += f64::from(s).powi(2);
        rest <= left
    });
    (beyond <= left).then(|| (vectors.s.len() - kept.count()).max(1))
}
