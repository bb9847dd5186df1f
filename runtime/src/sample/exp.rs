//! The exponential function, the same to the bit on every platform (that of a C library is not).

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

/// `e^x` for `x <= 0`, within 5e-16 relative; 0 below -708, where the result would be subnormal.
///
/// With `n = round(x / ln 2)` and `r = x - n ln 2`, `|r| <= ln 2 / 2`: `e^x = 2^n e^r`, and `e^r` by its series to
/// `r^13 / 13!`, whose rest is below 5e-18.
pub(super) fn exp(x: f64) -> f64 {
    if x < -708.0 {
        return 0.0;
    }
    // The cast truncates towards zero, so this rounds to the nearest.
    let n = (x * std::f64::consts::LOG2_E - 0.5) as i32;
    let r = (x - f64::from(n) * LN_2_HIGH) - f64::from(n) * LN_2_LOW;
    let series = TERMS.iter().fold(0.0, |sum, term| sum * r + term);
    series * f64::from_bits(((1023 + i64::from(n)) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn it_is_the_exponential_function() {
        assert_eq!((exp(0.0), exp(-709.0), exp(f64::NEG_INFINITY)), (1.0, 0.0, 0.0));
        for i in 0..100_000 {
            let x = -f64::from(i) * 0.007_07;
            // Thirteen roundings in the series, mostly of small terms, and the C library's own error.
            assert!((exp(x) / x.exp() - 1.0).abs() < 5e-16, "{x}");
        }
    }
}
