//! The methods by which LoRAs are combined, and what they are made of.

use std::fmt;
use std::str::FromStr;

/// How LoRAs are combined: peft's `combination_type`, under the same names. With weights `w_i` and scales `s_i`, methods combine `A_i`
/// with the weights `sgn(w_i s_i) sqrt|w_i s_i|` and `B_i` with `sqrt|w_i s_i|`, each apart; those that end in `svd` combine the
/// updates `D_i = s_i B_i A_i` with `w_i`, and the result is their best approximation of the rank. (peft's `lora/model.py`, `utils/merge_utils.py`.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// `sum_i v_i T_i`, of `A` and of `B`: a rough approximation of the sum of updates, except for one adapter.
    Linear,
    /// `A = [w_i s_i A_i]`, one under the other, `B = [B_i]`, side by side: exactly the sum of updates, with the sum of ranks.
    Cat,
    /// `sum_i w_i D_i`.
    Svd,
    /// Of each `T_i` the greatest are kept; of these, those of the elected sign are averaged (Yadav et al., arXiv 2306.01708).
    Ties,
    /// The same of `D_i`.
    TiesSvd,
    /// Of each `T_i` values are kept at random and divided by the density; the sum of these (Yu et al., arXiv 2311.03099).
    DareLinear,
    /// The same of `D_i`.
    DareLinearSvd,
    /// Kept at random as in DARE, elected and averaged as in TIES.
    DareTies,
    /// The same of `D_i`.
    DareTiesSvd,
    /// Of each `T_i` the greatest are kept; the sum of these.
    MagnitudePrune,
    /// The same of `D_i`.
    MagnitudePruneSvd,
}

/// Which values a method keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pruning {
    /// The greatest magnitudes.
    Magnitude,
    /// Some at random, divided by the density.
    Random,
}

/// What a sign is elected by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MajoritySign {
    /// `sum_i T_i`.
    Total,
    /// `sum_i sgn(T_i)`.
    Frequency,
}

impl Method {
    /// All of them, with their names.
    pub const ALL: &[(Self, &str)] = &[
        (Self::Linear, "linear"),
        (Self::Cat, "cat"),
        (Self::Svd, "svd"),
        (Self::Ties, "ties"),
        (Self::TiesSvd, "ties_svd"),
        (Self::DareLinear, "dare_linear"),
        (Self::DareLinearSvd, "dare_linear_svd"),
        (Self::DareTies, "dare_ties"),
        (Self::DareTiesSvd, "dare_ties_svd"),
        (Self::MagnitudePrune, "magnitude_prune"),
        (Self::MagnitudePruneSvd, "magnitude_prune_svd"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|row| row.0 == self).map_or("", |row| row.1)
    }

    /// Whether it keeps a share of the values: [`Options::density`](super::Options::density).
    pub fn prunes(self) -> bool {
        self.pruning().is_some()
    }

    /// Whether it combines whole updates and decomposes the result: [`Options::rank`](super::Options::rank).
    pub fn decomposes(self) -> bool {
        self.name().ends_with("svd")
    }

    /// Whether it elects signs: [`Options::sign`](super::Options::sign).
    pub fn elects(self) -> bool {
        matches!(self, Self::Ties | Self::TiesSvd | Self::DareTies | Self::DareTiesSvd)
    }

    pub(super) fn pruning(self) -> Option<Pruning> {
        match self {
            Self::Linear | Self::Cat | Self::Svd => None,
            Self::Ties | Self::TiesSvd | Self::MagnitudePrune | Self::MagnitudePruneSvd => {
                Some(Pruning::Magnitude)
            }
            Self::DareLinear | Self::DareLinearSvd | Self::DareTies | Self::DareTiesSvd => {
                Some(Pruning::Random)
            }
        }
    }
}

impl MajoritySign {
    /// Both, with their names.
    pub const ALL: &[(Self, &str)] = &[(Self::Total, "total"), (Self::Frequency, "frequency")];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|row| row.0 == self).map_or("", |row| row.1)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for MajoritySign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        of_name(Self::ALL, text)
    }
}

impl FromStr for MajoritySign {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        of_name(Self::ALL, text)
    }
}

fn of_name<T: Copy>(table: &[(T, &str)], text: &str) -> Result<T, String> {
    table.iter().find(|row| row.1 == text).map(|row| row.0).ok_or_else(|| {
        let names: Vec<&str> = table.iter().map(|row| row.1).collect();
        format!("expected one of {}", names.join(", "))
    })
}
