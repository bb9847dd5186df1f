//! What is done to the matrices of a model, in terms of the whole.

use std::fmt;
use std::str::FromStr;

use graftwork_adapters::compress::{self as matrix, Choices, Split};
use graftwork_kernels::Format;

use super::Error;

/// How the matrices of a fine-tune are compressed. [`graftwork_adapters::compress::Method`] says more of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Singular vectors in 8, 3 and 2 bits, as compresses best.
    DeltaCome,
    /// The same as published; without a budget, with the published split.
    DeltaComePublished,
    /// Signs with a scale for each matrix.
    BitDelta,
    /// Singular vectors as halves.
    LowRank,
    /// `-d`, 0 or `d`.
    Ternary,
    /// The greatest entries; without a budget, all that changed, exact.
    Sparse,
    /// All entries as BF16.
    Dense,
    /// The smallest sparse, low-rank or dense form of each matrix whose error is small enough.
    Least,
}

impl Method {
    /// All of them, with their names.
    pub const ALL: &[(Self, &str)] = &[
        (Self::DeltaCome, "delta-come"),
        (Self::DeltaComePublished, "delta-come-published"),
        (Self::BitDelta, "bitdelta"),
        (Self::LowRank, "low-rank"),
        (Self::Ternary, "ternary"),
        (Self::Sparse, "sparse"),
        (Self::Dense, "dense"),
        (Self::Least, "least"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|row| row.0 == self).map_or("", |row| row.1)
    }

    /// Whether it compresses to any number of bits.
    pub fn takes_bits(self) -> bool {
        matches!(self, Self::DeltaCome | Self::DeltaComePublished | Self::LowRank | Self::Sparse)
    }

    /// Refuses a number of bits for each weight, or an error, that means nothing.
    pub(super) fn check(self, bits: Option<f64>, error: f64) -> Result<(), Error> {
        if !(0.0..1.0).contains(&error) {
            let expected = "a number from 0 on and below 1";
            return Err(Error::Option { option: "error", expected, found: error.to_string() });
        }
        let refused = |expected| {
            let found = bits.map_or("none".to_owned(), |bits| bits.to_string());
            Err(Error::Option { option: "bits", expected, found })
        };
        match bits {
            Some(bits) if !(bits > 0.0 && bits <= 32.0) => refused("a number above 0 and at most 32"),
            Some(_) if !self.takes_bits() => refused("none: the method has its own"),
            _ => Ok(()),
        }
    }

    /// What is done to a matrix `[outputs, inputs]`.
    pub(super) fn of(
        self,
        [outputs, inputs]: [usize; 2],
        (bits, error): (Option<f64>, f64),
        is_calibrated: bool,
    ) -> matrix::Method {
        let budget = |bits: f64| ((outputs * inputs) as f64 * bits / 8.0) as usize;
        let bytes = budget(bits.unwrap_or(1.0));
        match self {
            Self::DeltaCome => matrix::Method::delta_come(Split::Bytes(bytes)),
            Self::DeltaComePublished => {
                let split = bits.map_or(Split::Published, |_| Split::Bytes(bytes));
                matrix::Method::DeltaCome { split, choices: Choices::PUBLISHED }
            }
            Self::BitDelta => matrix::Method::BitDelta { feedback: is_calibrated },
            Self::LowRank => matrix::Method::LowRank { bytes, weighted: is_calibrated },
            Self::Ternary => matrix::Method::Ternary,
            Self::Sparse => matrix::Method::Sparse { bytes: bits.map(budget) },
            Self::Dense => matrix::Method::Dense(Format::BF16),
            Self::Least => matrix::Method::Least { error },
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.iter().find(|row| row.1 == text).map(|row| row.0).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|row| row.1).collect();
            format!("expected one of {}", names.join(", "))
        })
    }
}
