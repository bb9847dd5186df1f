//! The weights from which a token is drawn, in f64, the same to the bit on every platform (the exponential function of a C library
//! is not). Plain Rust without branches, which the compiler turns into vectors of the instruction set.

use super::isa::{Kernel, Simd};

/// Weights between two of the sums that [`Weights`] gives.
pub const SUMMED: usize = 1024;

/// Weights computed before they are summed: the additions, one after the other, then wait beside the next computations.
const AHEAD: usize = 16;
const _: () = assert!(SUMMED.is_multiple_of(AHEAD));

/// `w[i] = e^((x[i] - highest) / temperature)`, and the sums of the first 1024, 2048, ... and of all, added in order.
pub struct Weights<'a> {
    /// Logits, none above `highest`; `-inf` has the weight 0.
    pub x: &'a [f32],
    /// The highest of them.
    pub highest: f32,
    /// The temperature, above 0.
    pub temperature: f32,
    /// The weights.
    pub w: &'a mut [f64],
    /// The sums, one for each 1024 weights that were begun.
    pub sums: &'a mut [f64],
}

impl Kernel for Weights<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (highest, temperature) = (f64::from(self.highest), f64::from(self.temperature));
        let mut total = 0.0;
        let parts = self.x.chunks(SUMMED).zip(self.w.chunks_mut(SUMMED));
        for ((x, w), sum) in parts.zip(self.sums) {
            let (x, x_rest) = x.as_chunks::<AHEAD>();
            let (w, w_rest) = w.as_chunks_mut::<AHEAD>();
            for (x, w) in x.iter().zip(w) {
                for i in 0..AHEAD {
                    w[i] = exp((f64::from(x[i]) - highest) / temperature);
                }
                for w in w {
                    total += *w;
                }
            }
            for (x, w) in x_rest.iter().zip(w_rest) {
                *w = exp((f64::from(*x) - highest) / temperature);
                total += *w;
            }
            *sum = total;
        }
    }
}

/// ln 2, and what is missing of it in an `f64` whose last 32 bits are 0.
const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// `1 / k!`, from the highest power of the series to the lowest.
const TERMS: [f64; 14] = {
    let mut terms = [1.0; 14];
    let mut k = 1;
    while k < 14 {
        terms[13 - k] = terms[14 - k] / k as f64;
        k += 1;
    }
    terms
};

/// `1.5 * 2^52`: added to a number of some thousands and taken away again, it leaves the nearest integer, ties to even; in the sum,
/// the integer is in the lowest bits.
const INTEGERS: f64 = 6_755_399_441_055_744.0;

/// `e^x` for `x <= 0`, within 5e-16 relative; 0 below -708, where the result would be subnormal.
///
/// With `n = round(x / ln 2)` and `r = x - n ln 2`, `|r| <= ln 2 / 2`: `e^x = 2^n e^r`, and `e^r` by its series to
/// `r^13 / 13!`, whose rest is below 5e-18.
#[inline(always)]
pub fn exp(x: f64) -> f64 {
    // The integer that is not below y: the nearest one, or the next.
    let y = x * std::f64::consts::LOG2_E - 0.5;
    let nearest = (y + INTEGERS) - INTEGERS;
    let n = if nearest < y { nearest + 1.0 } else { nearest };
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut series = 0.0;
    for term in TERMS {
        series = series * r + term;
    }
    let power = f64::from_bits((n + INTEGERS).to_bits().wrapping_add(1023) << 52);
    if x < -708.0 { 0.0 } else { series * power }
}

#[cfg(test)]
mod tests {
    use super::{SUMMED, Weights, exp};
    use crate::cpu::isa::Isa;

    /// The definition with branches and conversions to integers.
    fn scalar(x: f64) -> f64 {
        if x < -708.0 {
            return 0.0;
        }
        // The cast truncates towards zero, so this rounds to the nearest.
        let n = (x * std::f64::consts::LOG2_E - 0.5) as i32;
        let r = (x - f64::from(n) * super::LN_2_HIGH) - f64::from(n) * super::LN_2_LOW;
        let series = super::TERMS.iter().fold(0.0, |sum, term| sum * r + term);
        series * f64::from_bits(((1023 + i64::from(n)) as u64) << 52)
    }

    #[test]
    fn it_is_the_exponential_function() {
        assert_eq!((exp(0.0), exp(-709.0), exp(f64::NEG_INFINITY)), (1.0, 0.0, 0.0));
        for i in 0..100_000 {
            let x = -f64::from(i) * 0.007_07;
            // Thirteen roundings in the series, mostly of small terms, and the C library's own error.
            assert!((exp(x) / x.exp() - 1.0).abs() < 5e-16, "{x}");
        }
    }

    #[test]
    fn without_branches_it_is_the_same() {
        let mut state = 1u64;
        for i in 0..400_000u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 11) as f64 / (1u64 << 53) as f64;
            // Of every size, and near the edges between two powers of two.
            let edge = f64::from(i % 1500) + 0.5;
            for x in [-800.0 * unit, -unit, -unit.powi(20), -edge * std::f64::consts::LN_2] {
                for x in [x.next_down(), x, x.next_up().min(0.0)] {
                    assert_eq!(exp(x).to_bits(), scalar(x).to_bits(), "{x}");
                }
            }
        }
        for x in [0.0, -0.0, -708.0, f64::MIN, f64::NEG_INFINITY] {
            assert_eq!(exp(x).to_bits(), scalar(x).to_bits(), "{x}");
        }
    }

    #[test]
    fn weights_and_sums_are_the_same_on_every_instruction_set() {
        for count in [1, 15, 16, SUMMED - 1, SUMMED, 3 * SUMMED + 37] {
            let x: Vec<f32> = (0..count)
                .map(|i| if i % 97 == 5 { f32::NEG_INFINITY } else { ((i * i) % 4099) as f32 * -0.013 })
                .collect();
            let expected: Vec<f64> =
                x.iter().map(|&x| scalar((f64::from(x) - 0.5) / f64::from(0.7f32))).collect();
            for isa in Isa::all() {
                let (mut w, mut sums) = (vec![7.0; count], vec![7.0; count.div_ceil(SUMMED)]);
                isa.run(Weights { x: &x, highest: 0.5, temperature: 0.7, w: &mut w, sums: &mut sums });
                assert!(w.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", isa.name());
                for (i, sum) in sums.iter().enumerate() {
                    let first = &expected[..count.min((i + 1) * SUMMED)];
                    assert_eq!(*sum, first.iter().fold(0.0, |sum, w| sum + w), "{}, {count}", isa.name());
                }
            }
        }
    }
}
