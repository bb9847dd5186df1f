//! Rotary position embedding: the angles of every position (Su et al., 2021) and how they are stretched
//! for contexts longer than the model was first trained on.
//!
//! Position `p` rotates pair `i` of a head by `p * f[i]`, `f[i] = theta^(-2 i / rotary)` before scaling.
//! The formulas and their order are those of transformers, which trained models were tuned with.

use std::f64::consts::TAU;

use graftwork_kernels::backend::RopeLayout;

use super::config::{Error, unsupported};

/// How queries and keys are rotated.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Dimensions of a head that are rotated, from its first.
    pub rotary: usize,
    /// Where the two members of a pair lie in the *file's* rows of the query and key projections.
    pub layout: RopeLayout,
    /// How frequencies are stretched.
    pub scaling: Scaling,
}

/// How frequencies are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// `f / factor` (Chen et al., 2023).
    Linear {
        /// Ratio of the stretched context to the original.
        factor: f64,
    },
    /// YaRN (Peng et al., 2023): low frequencies are divided, high ones kept, a linear ramp between; and
    /// queries and keys are scaled.
    Yarn {
        /// Ratio of the stretched context to the original.
        factor: f64,
        /// Positions of the original context.
        original_context: usize,
        /// Rotations over the original context above which a frequency is kept.
        beta_fast: f64,
        /// Rotations over the original context below which a frequency is divided.
        beta_slow: f64,
        /// Round the ends of the ramp to whole pairs.
        truncate: bool,
        /// Cosines and sines are multiplied by this.
        attention: f64,
    },
    /// The scaling of Llama 3.1: as YaRN, with a ramp in the wavelength and no attention factor.
    Llama3 {
        /// Ratio by which low frequencies are divided.
        factor: f64,
        /// Wavelengths above `original_context / low_freq` are divided.
        low_freq: f64,
        /// Wavelengths below `original_context / high_freq` are kept.
        high_freq: f64,
        /// Positions of the original context.
        original_context: usize,
    },
    /// `f[i] / factors[i]`: what GGUF files store in `rope_freqs.weight` instead of the rule.
    Factors(
        /// One divisor per pair.
        Vec<f32>,
    ),
}

impl Scaling {
    /// YaRN's attention factor when the file gives none: `m(1)`, or `m(mscale) / m(mscale_all_dim)`, with
    /// `m(a) = 0.1 a ln(factor) + 1`.
    pub fn yarn_attention(factor: f64, mscales: Option<(f64, f64)>) -> f64 {
        let m = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        mscales.map_or(m(1.0), |(mscale, all)| m(mscale) / m(all))
    }

    /// A frequency as Llama 3.1 scales it; as it is under any other scaling.
    fn as_llama3(&self, f: f64) -> f64 {
        let &Self::Llama3 { factor, low_freq, high_freq, original_context } = self else { return f };
        let (context, wavelength) = (original_context as f64, TAU / f);
        if wavelength < context / high_freq {
            f
        } else if wavelength > context / low_freq {
            f / factor
        } else {
            let kept = (context / wavelength - low_freq) / (high_freq - low_freq);
            (1.0 - kept) * f / factor + kept * f
        }
    }
}

impl Rope {
    /// Refuses parameters that have no meaning.
    pub(super) fn check(&self) -> Result<(), Error> {
        let above_zero = |key: &str, value: f64| match value.is_finite() && value > 0.0 {
            true => Ok(()),
            false => Err(unsupported(key, "a number above 0".into(), value)),
        };
        above_zero("rope theta", self.theta)?;
        match &self.scaling {
            Scaling::None => Ok(()),
            Scaling::Linear { factor } => above_zero("rope scaling factor", *factor),
            Scaling::Yarn { factor, original_context, beta_fast, beta_slow, attention, .. } => {
                above_zero("rope scaling factor", *factor)?;
                above_zero("original context length", *original_context as f64)?;
                above_zero("beta_fast", *beta_fast)?;
                above_zero("beta_slow", *beta_slow)?;
                above_zero("attention factor", *attention)
            }
            Scaling::Llama3 { factor, low_freq, high_freq, original_context } => {
                above_zero("rope scaling factor", *factor)?;
                above_zero("low_freq_factor", *low_freq)?;
                above_zero("original context length", *original_context as f64)?;
                match high_freq > low_freq && high_freq.is_finite() {
                    true => Ok(()),
                    false => Err(unsupported("high_freq_factor", format!("above {low_freq}"), high_freq)),
                }
            }
            Scaling::Factors(factors) if factors.len() != self.rotary / 2 => {
                Err(unsupported("rope_freqs.weight", format!("{} factors", self.rotary / 2), factors.len()))
            }
            Scaling::Factors(factors) => {
                factors.iter().try_for_each(|&factor| above_zero("rope_freqs.weight", factor.into()))
            }
        }
    }

    /// The frequency of a pair before scaling.
    fn plain(&self, pair: usize) -> f64 {
        self.theta.powf(-2.0 * pair as f64 / self.rotary as f64)
    }

    /// What `rope_freqs.weight` of a GGUF file holds: one divisor per pair, if the scaling is of the kind that it is for.
    pub fn factors(&self) -> Option<Vec<f32>> {
        let divisor = |pair| (self.plain(pair) / self.scaling.as_llama3(self.plain(pair))) as f32;
        match &self.scaling {
            Scaling::Llama3 { .. } => Some((0..self.rotary / 2).map(divisor).collect()),
            Scaling::Factors(factors) => Some(factors.clone()),
            Scaling::None | Scaling::Linear { .. } | Scaling::Yarn { .. } => None,
        }
    }

    /// The frequency of every pair, radians per position, and the factor of cosines and sines.
    pub fn frequencies(&self) -> Frequencies {
        let pairs = self.rotary / 2;
        let plain = |pair: usize| self.plain(pair);
        let mut attention = 1.0;
        let of_pair: Vec<f64> = match &self.scaling {
            Scaling::None => (0..pairs).map(plain).collect(),
            Scaling::Linear { factor } => (0..pairs).map(|pair| plain(pair) / factor).collect(),
            Scaling::Factors(factors) => {
                (0..pairs).map(|pair| plain(pair) / f64::from(factors[pair])).collect()
            }
            &Scaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, attention: a } => {
                attention = a;
                // The pair that rotates this often over the original context.
                let pair_of = |rotations: f64| {
                    self.rotary as f64 * (original_context as f64 / (rotations * TAU)).ln()
                        / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(self.rotary as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let divided = |pair: usize| ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                (0..pairs)
                    .map(|pair| plain(pair) / factor * divided(pair) + plain(pair) * (1.0 - divided(pair)))
                    .collect()
            }
            scaling @ Scaling::Llama3 { .. } => {
                (0..pairs).map(|pair| scaling.as_llama3(plain(pair))).collect()
            }
        };
        Frequencies { of_pair: of_pair.into_iter().map(|f| f as f32).collect(), attention: attention as f32 }
    }
}

/// The frequency of every pair.
#[derive(Clone, Debug)]
pub struct Frequencies {
    /// Radians per position.
    pub of_pair: Vec<f32>,
    /// Factor of cosines and sines.
    pub attention: f32,
}

impl Frequencies {
    /// Appends the cosines and sines of `position`, one per pair.
    pub fn angles(&self, position: u32, cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
        for &frequency in &self.of_pair {
            let (s, c) = (position as f32 * frequency).sin_cos();
            cos.push(c * self.attention);
            sin.push(s * self.attention);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: Scaling) -> Rope {
        Rope { theta: 500_000.0, rotary: 64, layout: RopeLayout::Halves, scaling }
    }

    /// Values of the formulas worked out by hand, at the ends and in the middle of their ramps.
    #[test]
    fn scalings_stretch_what_they_should() {
        let plain = rope(Scaling::None).frequencies().of_pair;
        assert_eq!(plain[0], 1.0);
        assert!((plain[16] - 500_000f32.powf(-0.5)).abs() < 1e-9);

        let linear = rope(Scaling::Linear { factor: 4.0 }).frequencies().of_pair;
        assert!(linear.iter().zip(&plain).all(|(a, b)| (a * 4.0 - b).abs() < 1e-7));

        let llama3 = Scaling::Llama3 { factor: 8.0, low_freq: 1.0, high_freq: 4.0, original_context: 8192 };
        let llama3 = rope(llama3).frequencies();
        for (scaled, plain) in llama3.of_pair.iter().zip(&plain) {
            let wavelength = std::f32::consts::TAU / plain;
            let ratio = scaled / plain;
            match wavelength {
                short if short < 8192.0 / 4.0 => assert_eq!(ratio, 1.0),
                long if long > 8192.0 => assert_eq!(ratio, 1.0 / 8.0),
                // The ramp in `8192 / wavelength`, from 1 to 4.
                middle => {
                    let kept = (8192.0 / middle - 1.0) / 3.0;
                    assert!((ratio - (kept + (1.0 - kept) / 8.0)).abs() < 1e-4, "{ratio} at {middle}");
                }
            }
        }
        assert_eq!(llama3.attention, 1.0);
    }

    /// A GGUF file stores what the rule of Llama 3.1 divides by, instead of the rule.
    #[test]
    fn stored_factors_equal_the_rule() {
        let rule = Scaling::Llama3 { factor: 32.0, low_freq: 1.0, high_freq: 4.0, original_context: 8192 };
        let plain = rope(Scaling::None).frequencies().of_pair;
        let by_rule = rope(rule).frequencies().of_pair;
        let factors = plain.iter().zip(&by_rule).map(|(plain, scaled)| plain / scaled).collect();
        let stored = rope(Scaling::Factors(factors)).frequencies().of_pair;
        for (stored, rule) in stored.iter().zip(&by_rule) {
            assert!((stored / rule - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn yarn_scales_attention() {
        assert_eq!(Scaling::yarn_attention(1.0, None), 1.0);
        assert!((Scaling::yarn_attention(4.0, None) - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
        let deepseek = Scaling::yarn_attention(40.0, Some((0.707, 0.707)));
        assert_eq!(deepseek, 1.0);
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        Frequencies { of_pair: vec![0.0, 1.0], attention: 1.5 }.angles(2, &mut cos, &mut sin);
        assert_eq!((cos[0], sin[0]), (1.5, 0.0));
        assert!((sin[1] - 1.5 * 2f32.sin()).abs() < 1e-6);
    }

    #[test]
    fn meaningless_parameters_are_refused() {
        for scaling in [
            Scaling::Linear { factor: 0.0 },
            Scaling::Linear { factor: f64::NAN },
            Scaling::Llama3 { factor: 8.0, low_freq: 4.0, high_freq: 4.0, original_context: 8192 },
            Scaling::Factors(vec![1.0; 31]),
            Scaling::Factors(vec![0.0; 32]),
        ] {
            assert!(rope(scaling.clone()).check().is_err(), "{scaling:?}");
        }
    }
}
