//! Random numbers without a state: each is a function of a seed and a step.
//!
//! So what a request draws depends on nothing but its own options and length: not on the requests that it shares a batch
//! with, nor on how often a step was repeated. Integer arithmetic only, the same on every platform.

/// The golden ratio as a fraction of 2^64, SplitMix64's increment.
const INCREMENT: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea and Flood 2014, with the constants of Stafford's variant 13): a
/// bijection in which every input bit changes every output bit with a probability near one half.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 64 random bits: output `step` of the SplitMix64 generator that starts at the mixed seed. Mixing the seed keeps the
/// sequences of neighbouring seeds from being shifts of each other.
pub fn bits(seed: u64, step: u64) -> u64 {
    mix(mix(seed ^ INCREMENT).wrapping_add(INCREMENT.wrapping_mul(step.wrapping_add(1))))
}

/// A number in `[0, 1)`, a multiple of 2^-53.
pub fn uniform(seed: u64, step: u64) -> f64 {
    (bits(seed, step) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::mix;

    #[test]
    fn mix_is_that_of_splitmix64() {
        // The first outputs of the reference implementation (Vigna) for the seed 1234567.
        let increments = |n: u64| mix(1_234_567u64.wrapping_add(super::INCREMENT.wrapping_mul(n)));
        assert_eq!(increments(1), 6_457_827_717_110_365_317);
        assert_eq!(increments(2), 3_203_168_211_198_807_973);
        assert_eq!(increments(3), 9_817_491_932_198_370_423);
    }
}
