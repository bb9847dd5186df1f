//! What is measured at a stage of the model, and what is allowed there.

use std::fmt;

/// Where values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// What goes into the first block.
    Embedding,
    /// What comes out of a block.
    Layer(usize),
    /// What comes out of the last block and the norm behind it.
    Norm(usize),
    /// Logits, of each position less their mean, which probabilities do not depend on.
    Logits,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("embedding"),
            Self::Layer(layer) => write!(f, "layer {layer}"),
            Self::Norm(layer) => write!(f, "layer {layer} + norm"),
            Self::Logits => f.write_str("logits"),
        }
    }
}

/// How far values `h` of a stage, rows of positions, are from the reference's `r`.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Where.
    pub place: Place,
    /// `|h - r| / |r|` over all positions.
    pub relative: f64,
    /// The largest `|h[t] - r[t]| / |r[t]|` of a position `t`.
    pub largest: f64,
    /// What the adapters add, where the reference says what the base alone gives.
    pub contribution: Option<Contribution>,
    /// Why it is too far.
    pub reason: Option<Reason>,
}

/// How far what adapters add, `c = h - h_base`, is from the reference's `d = r - r_base`: medians over the positions that the reference's
/// adapter changes; 0 if there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Contribution {
    /// `|h_base - r_base| / |r_base|` over all positions.
    pub base: f64,
    /// Positions that the reference's adapter changes.
    pub positions: usize,
    /// `|d[t]| / |r[t]|`.
    pub size: f64,
    /// What the base alone is off by: `|h_base[t] - r_base[t]| / |d[t]|`.
    pub floor: f64,
    /// `|c[t] - d[t]| / |d[t]|`.
    pub error: f64,
    /// `c[t] . d[t] / |d[t]|^2`: how long `c` is along `d`.
    pub scale: f64,
    /// The standard error of `scale`, from the spread over positions.
    pub scale_error: f64,
}

/// Why a stage is too far from the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// `|h - r| / |r|` of a position.
    Values {
        /// What it may be.
        limit: f64,
        /// What it is.
        found: f64,
    },
    /// `|h_base - r_base| / |r_base|` of a position: the base is another.
    Base {
        /// What it may be.
        limit: f64,
        /// What it is.
        found: f64,
    },
    /// What adapters add is as long as `scale` times the reference's along that.
    Scale {
        /// How far from 1 it may be.
        limit: f64,
        /// What it is.
        found: f64,
    },
    /// What adapters add is another: `|c - d| / |d|` of a position.
    Contribution {
        /// What it may be.
        limit: f64,
        /// What it is.
        found: f64,
    },
    /// Adapters change positions that the reference's leaves alone.
    Stray {
        /// How many.
        positions: usize,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Values { limit, found } => {
                write!(f, "off by {found:.2e} of the reference, expected at most {limit:.2e}")
            }
            Self::Base { limit, found } => write!(
                f,
                "the base without adapters is off by {found:.2e} of the reference's, expected at most {limit:.2e}"
            ),
            Self::Scale { found, .. } if found.abs() < 0.01 => f.write_str("the adapter has no effect"),
            Self::Scale { limit, found } => {
                write!(f, "the adapter adds {found:.3} times what it should, expected 1 within {limit:.3}")
            }
            Self::Contribution { limit, found } => {
                write!(f, "what the adapter adds is off by {found:.2e} of that, expected at most {limit:.2e}")
            }
            Self::Stray { positions } => {
                write!(f, "the adapter changes {positions} positions that the reference's leaves alone")
            }
        }
    }
}

/// What is allowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Relative error of values, or of the base.
    pub values: f64,
    /// Relative error of what adapters add, beside what the base is off by.
    pub contribution: f64,
    /// Whether rounding makes single positions no evidence: then the median counts, not the worst.
    pub is_rounded: bool,
}

/// Relative error of f32 arithmetic in another order, over a whole model.
const ARITHMETIC: f64 = 1e-5;
/// What adapters add may be off by so many times what the base is: the difference of two roundings that have nothing to do with each other
/// is 1.4 times one of them.
const FLOORS: f64 = 2.0;
/// Standard errors of a scale that are no evidence.
const DEVIATIONS: f64 = 4.0;
/// Positions below which the spread says nothing about a scale.
const ENOUGH: usize = 8;

/// Squared norms and products at a position.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sample {
    /// `|r|^2`.
    pub reference: f64,
    /// `|h - r|^2`.
    pub error: f64,
    /// `|r_base|^2`.
    pub base: f64,
    /// `|h_base - r_base|^2`.
    pub base_error: f64,
    /// `|d|^2`.
    pub added: f64,
    /// `|c - d|^2`.
    pub added_error: f64,
    /// `c . d`.
    pub along: f64,
}

impl Sample {
    /// Of rows of this model and the reference, and both of the base, its own given by how far it is from the reference's.
    pub fn of(h: &[f32], r: &[f32], base: Option<(&[f32], &[f32])>) -> Self {
        let mut sample = Self::default();
        for (i, (&h, &r)) in h.iter().zip(r).enumerate() {
            let (r, e) = (f64::from(r), f64::from(h) - f64::from(r));
            sample.reference += r * r;
            sample.error += e * e;
            if let Some((base_error, base)) = base {
                let (e_base, r_base) = (f64::from(base_error[i]), f64::from(base[i]));
                let (d, off) = (r - r_base, e - e_base);
                sample.base += r_base * r_base;
                sample.base_error += e_base * e_base;
                sample.added += d * d;
                sample.added_error += off * off;
                sample.along += (d + off) * d;
            }
        }
        sample
    }

    fn changes(&self) -> bool {
        self.added.sqrt() > ARITHMETIC * self.reference.sqrt()
    }

    /// The error of what adapters add relative to what is allowed.
    fn excess(&self, limits: &Limits) -> f64 {
        let Self { reference, base_error, added, added_error, .. } = self;
        let floor = FLOORS * base_error.sqrt() + ARITHMETIC * reference.sqrt();
        let excess = ratio(added_error.sqrt(), limits.contribution * added.sqrt() + floor);
        // What is no number is beyond any limit.
        if excess.is_nan() { f64::INFINITY } else { excess }
    }
}

impl Stage {
    /// From samples of all positions; `has_base` if they have the base's.
    pub(super) fn of(place: Place, samples: &[Sample], has_base: bool, limits: &Limits) -> Self {
        let sum = |of: fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>();
        let errors = || samples.iter().map(|s| ratio(s.error, s.reference).sqrt());
        let mut stage = Self {
            place,
            relative: ratio(sum(|s| s.error), sum(|s| s.reference)).sqrt(),
            largest: largest(errors()),
            contribution: None,
            reason: None,
        };
        if !has_base {
            let (limit, found) = (limits.values, limits.typical(errors()));
            stage.reason = is_above(found, limit).then_some(Reason::Values { limit, found });
            return stage;
        }
        let changed = || samples.iter().filter(|s| s.changes());
        let scales = || changed().map(|s| s.along / s.added);
        let scale = median(scales());
        // The spread of a median of normal numbers, from the median of how far they are from it.
        let spread = 1.4826 * median(scales().map(|x| (x - scale).abs()));
        let positions = changed().count();
        let contribution = Contribution {
            base: ratio(sum(|s| s.base_error), sum(|s| s.base)).sqrt(),
            positions,
            size: median(changed().map(|s| ratio(s.added, s.reference).sqrt())),
            floor: median(changed().map(|s| (s.base_error / s.added).sqrt())),
            error: median(changed().map(|s| (s.added_error / s.added).sqrt())),
            scale,
            scale_error: 1.2533 * spread / (positions.max(1) as f64).sqrt(),
        };
        stage.reason = limits.judge(samples, &contribution);
        stage.contribution = Some(contribution);
        stage
    }
}

impl Limits {
    fn judge(&self, samples: &[Sample], contribution: &Contribution) -> Option<Reason> {
        let found = self.typical(samples.iter().map(|s| ratio(s.base_error, s.base).sqrt()));
        if is_above(found, self.values) {
            return Some(Reason::Base { limit: self.values, found });
        }
        let (changed, others): (Vec<&Sample>, Vec<&Sample>) = samples.iter().partition(|s| s.changes());
        let off = changed.iter().map(|s| (s.excess(self), ratio(s.added_error, s.added).sqrt()));
        let mut off: Vec<(f64, f64)> = off.collect();
        off.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let counts = if self.is_rounded { off.get(off.len() / 2) } else { off.last() };
        let counts = counts.filter(|&&(excess, _)| is_above(excess, 1.0));
        let &Contribution { positions, floor, error, scale, scale_error, .. } = contribution;
        // Vectors of one length that differ by `e` of it are `1 - e^2 / 2` long along each other: noise that turns an addition shortens it.
        let turned = if scale < 1.0 { error.min(FLOORS * floor).powi(2) / 2.0 } else { 0.0 };
        let limit = self.contribution + DEVIATIONS * scale_error + turned;
        let is_scaled = positions >= ENOUGH && is_above((scale - 1.0).abs(), limit);
        // The part across: small of an addition that is mostly the reference's, longer or shorter, and of none at all.
        let across = error * error - (scale - 1.0) * (scale - 1.0);
        if is_scaled && (counts.is_none() || across <= (scale * scale / 4.0).max(0.01)) {
            return Some(Reason::Scale { limit, found: scale });
        }
        if let Some(&(excess, found)) = counts {
            let limit = if excess.is_finite() { found / excess } else { self.contribution };
            return Some(Reason::Contribution { limit, found });
        }
        // What no adapter reaches is the base's to the bit, rounded or not.
        let positions = others.iter().filter(|s| is_above(s.excess(self), 1.0)).count();
        (positions > 0).then_some(Reason::Stray { positions })
    }

    /// The error that counts.
    fn typical(&self, errors: impl Iterator<Item = f64>) -> f64 {
        if self.is_rounded { median(errors) } else { largest(errors) }
    }
}

/// Whether `found` is above `limit`, or no number.
fn is_above(found: f64, limit: f64) -> bool {
    found > limit || found.is_nan()
}

/// `a / b`, 0 of nothing.
fn ratio(a: f64, b: f64) -> f64 {
    if a == 0.0 { 0.0 } else { a / b }
}

/// The largest, NaN before all; 0 of none.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |most, x| if x > most || x.is_nan() { x } else { most })
}

/// The upper median, NaN above all; 0 of none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.map(|x| if x.is_nan() { f64::NAN } else { x }).collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 64;

    /// Numbers of about a normal distribution, the same for the same seed.
    fn noise(seed: u64, scale: f32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..WIDTH).map(|_| scale * (0..4).map(|_| next()).sum::<f32>()).collect()
    }

    fn sum(a: &[f32], b: &[f32], scale: f32) -> Vec<f32> {
        a.iter().zip(b).map(|(a, b)| a + scale * b).collect()
    }

    /// A stage at 64 positions: values of size 1, what is added of size 0.05, rounding of this size, and what is added times `scale`
    /// plus so much of something else.
    fn stage(rounding: f32, scale: f32, other: f32, limits: &Limits) -> Stage {
        let samples: Vec<Sample> = (0..64)
            .map(|t| {
                let (base, added) = (noise(t + 1, 1.0), noise(t + 101, 0.05));
                let first = noise(t + 201, rounding);
                // What has no effect rounds nothing differently.
                let second = if scale == 0.0 { first.clone() } else { noise(t + 301, rounding) };
                let h = sum(&sum(&base, &added, scale), &noise(t + 401, 0.05), other);
                Sample::of(&sum(&h, &second, 1.0), &sum(&base, &added, 1.0), Some((&first, &base)))
            })
            .collect();
        Stage::of(Place::Layer(3), &samples, true, limits)
    }

    #[test]
    fn additions_are_told_from_rounding() {
        let float = Limits { values: 1e-3, contribution: 1e-3, is_rounded: false };
        let rounded = Limits { values: 0.5, contribution: 2e-2, is_rounded: true };
        for (rounding, limits) in [(1e-6, float), (2e-3, rounded), (5e-3, rounded)] {
            let reason = |scale, other| stage(rounding, scale, other, &limits).reason;
            assert_eq!(reason(1.0, 0.0), None, "{rounding}");
            for wrong in [1.1, 0.9, 0.0, -1.0] {
                let found = reason(wrong, 0.0);
                let is_it = matches!(found, Some(Reason::Scale { found, .. }) if (found - f64::from(wrong)).abs() < 0.02);
                assert!(is_it, "{rounding} {wrong}: {found:?}");
            }
            assert!(matches!(reason(1.0, 1.0), Some(Reason::Contribution { .. })), "{rounding}");
            assert!(matches!(reason(f32::NAN, 0.0), Some(Reason::Base { .. } | Reason::Contribution { .. })));
        }
        // Another base.
        assert!(matches!(stage(1.0, 1.0, 0.0, &rounded).reason, Some(Reason::Base { .. })));
        assert_eq!(
            stage(5e-3, 0.0, 0.0, &rounded).reason.map(|reason| reason.to_string()).as_deref(),
            Some("the adapter has no effect")
        );
    }

    /// One position of many that an adapter changes, or should have changed.
    #[test]
    fn single_positions_count() {
        let limits = Limits { values: 0.5, contribution: 2e-2, is_rounded: true };
        let (base, added, none) = (noise(1, 1.0), noise(2, 0.05), [0.0; WIDTH]);
        let adapted = sum(&base, &added, 1.0);
        let of = |h: &[f32], r: &[f32]| {
            let mut samples = vec![Sample::of(&base, &base, Some((&none, &base))); 20];
            samples[7] = Sample::of(h, r, Some((&none, &base)));
            Stage::of(Place::Layer(0), &samples, true, &limits).reason
        };
        assert_eq!(of(&adapted, &adapted), None);
        assert_eq!(of(&adapted, &base), Some(Reason::Stray { positions: 1 }));
        assert!(matches!(of(&base, &adapted), Some(Reason::Contribution { .. })));
        // Without the base, by the worst position, or rounded by the median.
        for is_rounded in [false, true] {
            let limits = Limits { values: 1e-3, is_rounded, ..limits };
            let samples = [Sample::of(&base, &base, None), Sample::of(&adapted, &base, None)];
            let samples = [samples[0], samples[0], samples[1]];
            let stage = Stage::of(Place::Logits, &samples, false, &limits);
            assert_eq!(stage.reason.is_some(), !is_rounded);
            assert!(stage.largest > stage.relative && stage.contribution.is_none());
        }
    }
}
