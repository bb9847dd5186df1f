//! The generator of seed patches: normal numbers that a seed, a tensor and an element determine, to the bit, on
//! every machine.
//!
//! `docs/seed-patches.md` is the definition. Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random
//! numbers: as easy as 1, 2, 3", SC 2011) with the seed as key and block and tensor as counter gives four words for
//! four consecutive elements; Box and Muller's transform (Ann. Math. Stat. 29, 1958) turns two words into two
//! normals. Floats are only added, subtracted, multiplied, converted and rooted, each operation rounded to f32 by
//! itself, so that there is one answer.

use std::f32::consts::{FRAC_PI_2, LN_2};

use graftwork_kernels::cpu::isa::{Isa, Kernel, Simd};

/// Elements that one block of the generator gives.
const WORDS: usize = 4;

/// Blocks that are summed at once: their sums stay in the first cache. Divides 2^32, so that the low word of the
/// counter never wraps among them.
const BLOCKS: usize = 128;

/// Blocks are computed in multiples of this, the lanes of the widest vector.
const LANES: usize = 16;

/// The constants of Philox: two multipliers, and what is added to the two words of the key after each round.
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// `-2 ln(1 + t) / t` for `sqrt(1/2) <= 1 + t < sqrt(2)`, relative error 2e-7; lowest power first.
const LOG: [f32; 8] =
    [-2.0, 1.0000073, -0.6667012, 0.49939817, -0.3980033, 0.3450166, -0.32445157, 0.20213787];

/// `sin(pi/2 q) / q` in powers of `q^2`, `|q| <= 1`.
const SIN: [f32; 5] = [FRAC_PI_2, -0.6459634, 0.07968848, -0.004672228, 0.00015082056];

/// `cos(pi/2 q)` in powers of `q^2`, `|q| <= 1`.
const COS: [f32; 5] = [1.0, -1.2336982, 0.25365075, -0.020810628, 0.00085819064];

/// No normal is larger: the largest is `sqrt(62 ln 2)`, 6.556, times a cosine or sine, rounded.
pub(super) const LARGEST: f64 = 6.56;

/// The bits of the float `sqrt(1/2)`.
const SQRT_HALF: u32 = 0x3f35_04f3;

/// The hash of a tensor's name: FNV-1a, 64 bits, of its UTF-8 bytes.
pub fn tensor_hash(name: &str) -> u64 {
    fnv1a(name.bytes())
}

/// FNV-1a, 64 bits (Fowler, Noll and Vo).
pub(super) fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let hash = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, hash)
}

/// Seed `k` of the candidates: the output `k`, counted from 0, of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)
/// started at `base_seed`. Different `k` have different seeds.
pub fn candidate_seed(base_seed: u64, k: u64) -> u64 {
    let z = base_seed.wrapping_add(k.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `out[i] = z(seed, tensor, first + i)`: the normals of consecutive elements of a tensor.
pub fn normals(seed: u64, tensor: u64, first: u64, out: &mut [f32]) {
    let directions = &[Direction { seed, coefficient: 1.0 }];
    Isa::best().run(Sum { directions, scale: 1.0, tensor, first, out });
}

/// One term of a sum.
#[derive(Clone, Copy, Debug)]
pub(super) struct Direction {
    pub seed: u64,
    pub coefficient: f32,
}

/// `out[i] = scale * sum_k c_k z(seed_k, tensor, first + i)`, summed from the first direction to the last.
pub(super) struct Sum<'a> {
    pub directions: &'a [Direction],
    pub scale: f32,
    pub tensor: u64,
    pub first: u64,
    pub out: &'a mut [f32],
}

impl Kernel for Sum<'_> {
    type Out = ();

    // Plain Rust, which the compiler turns into vectors of the instruction set: a lane is a block.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        const CHUNK: usize = WORDS * BLOCKS;
        let Sum { directions, scale, tensor, mut first, mut out } = self;
        while !out.is_empty() {
            // Chunks start at multiples of their size, whatever is asked for.
            let offset = (first % CHUNK as u64) as usize;
            let (now, rest) = out.split_at_mut(out.len().min(CHUNK - offset));
            let lanes =
                offset / WORDS / LANES * LANES..(offset + now.len()).div_ceil(WORDS).next_multiple_of(LANES);
            let mut sums = [[0.0f32; BLOCKS]; WORDS];
            let block = (first - offset as u64) / WORDS as u64 + lanes.start as u64;
            for direction in directions {
                let [a, b, c, d] = &mut sums;
                let sums = [
                    &mut a[lanes.clone()],
                    &mut b[lanes.clone()],
                    &mut c[lanes.clone()],
                    &mut d[lanes.clone()],
                ];
                add(sums, direction, tensor, block);
            }
            for (element, out) in (offset..).zip(&mut *now) {
                *out = scale * sums[element % WORDS][element / WORDS];
            }
            first = first.wrapping_add(now.len() as u64);
            out = rest;
        }
    }
}

/// `sums[w][j] += c z(element WORDS (block + j) + w)`.
#[inline(always)]
fn add(sums: [&mut [f32]; WORDS], direction: &Direction, tensor: u64, block: u64) {
    let Direction { seed, coefficient } = *direction;
    let key = [seed as u32, (seed >> 32) as u32];
    let [a, b, c, d] = sums;
    let blocks = a.iter_mut().zip(b).zip(c).zip(d);
    for (j, (((a, b), c), d)) in (0u32..).zip(blocks) {
        let counter =
            [(block as u32).wrapping_add(j), (block >> 32) as u32, tensor as u32, (tensor >> 32) as u32];
        let words = philox(counter, key);
        let [z0, z1] = box_muller(words[0], words[1]);
        let [z2, z3] = box_muller(words[2], words[3]);
        *a += coefficient * z0;
        *b += coefficient * z1;
        *c += coefficient * z2;
        *d += coefficient * z3;
    }
}

/// Philox4x32-10.
#[inline(always)]
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let wide = |multiplier: u32, word: u32| u64::from(multiplier) * u64::from(word);
        let (p, q) = (wide(MULTIPLIERS[0], counter[0]), wide(MULTIPLIERS[1], counter[2]));
        let high = |product: u64| (product >> 32) as u32;
        counter = [high(q) ^ counter[1] ^ key[0], q as u32, high(p) ^ counter[3] ^ key[1], p as u32];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// Two normals of two uniform words: `r = sqrt(-2 ln u)` with `u = (2 floor(v / 4) + 1) / 2^31` and the point of
/// the circle with that radius whose angle `w` says.
#[inline(always)]
fn box_muller(v: u32, w: u32) -> [f32; 2] {
    // x = 2^31 u = 2^e (1 + t), with 1 + t in [sqrt(1/2), sqrt(2)); L = -2 ln u = (31 - e) 2 ln 2 - 2 ln(1 + t).
    let x = (((v >> 1) | 1) as i32) as f32;
    let bits = x.to_bits().wrapping_sub(SQRT_HALF);
    let e = (bits as i32) >> 23;
    let t = f32::from_bits((bits & 0x007f_ffff) + SQRT_HALF) - 1.0;
    let r = ((31 - e) as f32 * (2.0 * LN_2) + t * polynomial(&LOG, t)).sqrt();
    // The lower 31 bits of w, signed, say an angle in [-pi/2, pi/2), its highest bit on which side of the axis.
    let q = ((w << 1) as i32) as f32 * 2f32.powi(-31);
    let y = q * q;
    let sin = q * polynomial(&SIN, y);
    let cos = polynomial(&COS, y);
    let cos = f32::from_bits(cos.to_bits() ^ (w & 0x8000_0000));
    [r * cos, r * sin]
}

/// Horner's scheme, from the highest power down.
#[inline(always)]
fn polynomial<const N: usize>(coefficients: &[f32; N], x: f32) -> f32 {
    let mut sum = coefficients[N - 1];
    for &coefficient in coefficients[..N - 1].iter().rev() {
        sum = sum * x + coefficient;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, one element alone.
    fn normal(seed: u64, tensor: u64, element: u64) -> f32 {
        let block = element / 4;
        let split = |x: u64| [x as u32, (x >> 32) as u32];
        let ([low, high], [first, second]) = (split(block), split(tensor));
        let words = philox([low, high, first, second], split(seed));
        let pair = (element % 4 / 2) as usize;
        box_muller(words[2 * pair], words[2 * pair + 1])[(element % 2) as usize]
    }

    #[test]
    fn philox_gives_the_known_answers() {
        // `kat_vectors` of the authors' Random123.
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344, 0xa409_3822, 0x299f_31d0];
        for (input, answer) in [
            ([0; 6], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 6], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ] {
            let [a, b, c, d, e, f] = input;
            assert_eq!(philox([a, b, c, d], [e, f]), answer, "{input:x?}");
        }
    }

    #[test]
    fn seeds_and_hashes_are_the_known_ones() {
        let seeds: Vec<u64> = (0..3).map(|k| candidate_seed(1_234_567, k)).collect();
        assert_eq!(seeds, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
        let hashes = ["", "a", "foobar"].map(tensor_hash);
        assert_eq!(hashes, [0xcbf2_9ce4_8422_2325, 0xaf63_dc4c_8601_ec8c, 0x8594_4171_f739_67e8]);
        let mut seeds: Vec<u64> = (0..4096).map(|k| candidate_seed(u64::MAX, k)).collect();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), 4096);
    }

    #[test]
    fn no_two_tensors_share_a_hash() {
        let modules =
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj"];
        let mut hashes: Vec<u64> = (0..1000)
            .flat_map(|layer| {
                modules.map(|module| tensor_hash(&format!("model.layers.{layer}.{module}.weight")))
            })
            .collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), 5000);
    }

    /// `sum` by every instruction set equals the definition, whatever the first element and the length are.
    #[test]
    fn every_instruction_set_gives_the_definition() {
        let directions: Vec<Direction> = (0..5)
            .map(|k| Direction {
                seed: candidate_seed(9, k),
                coefficient: [0.5, -1.25, 3e-4, 7.0, -0.1][k as usize],
            })
            .collect();
        let (scale, tensor) = (-0.01, tensor_hash("model.layers.3.mlp.up_proj.weight"));
        let edge = 1u64 << 34;
        for first in [0, 1, 3, 511, 512, 1021, edge - 700, edge - 3, edge, u64::MAX - 2000] {
            for len in [1, 2, 5, 63, 64, 65, 513, 1500] {
                let expected: Vec<u32> = (first..first + len)
                    .map(|element| {
                        let terms =
                            directions.iter().map(|d| d.coefficient * normal(d.seed, tensor, element));
                        (scale * terms.fold(0.0, |sum, term| sum + term)).to_bits()
                    })
                    .collect();
                for isa in Isa::all() {
                    let mut out = vec![f32::NAN; len as usize];
                    isa.run(Sum { directions: &directions, scale, tensor, first, out: &mut out });
                    let bits: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
                    assert_eq!(bits, expected, "{} from {first}, {len}", isa.name());
                }
            }
        }
    }

    /// The errors of the polynomials, 2e-7 of the logarithm (half of it in its root) and 1e-7 of sine and cosine,
    /// and some ten roundings of 6e-8; all in relation to the radius. `u` counts as rounded to f32.
    #[test]
    fn the_transform_is_box_and_mullers() {
        let mut state = 5;
        let mut word = || {
            state += 1;
            candidate_seed(11, state)
        };
        let edges = [0, 1, 2, 3, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, u32::MAX - 1, u32::MAX];
        let random = (0..200_000).map(|_| word()).map(|x| (x as u32, (x >> 32) as u32));
        let pairs = edges.iter().flat_map(|&v| edges.map(|w| (v, w))).chain(random);
        let mut worst = 0.0f64;
        for (v, w) in pairs {
            let u = f64::from(((v >> 1) | 1) as f32) / 2f64.powi(31);
            let r = (-2.0 * u.ln()).sqrt();
            let angle = f64::from((w << 1) as i32) / 2f64.powi(31) * std::f64::consts::FRAC_PI_2;
            let side = if w >> 31 == 1 { -1.0 } else { 1.0 };
            let exact = [side * r * angle.cos(), r * angle.sin()];
            for (z, exact) in box_muller(v, w).into_iter().zip(exact) {
                assert!(z.is_finite() && f64::from(z.abs()) <= LARGEST, "{v:x} {w:x}: {z}");
                worst = worst.max((f64::from(z) - exact).abs() / r.max(1e-9));
            }
        }
        println!("largest error in relation to the radius: {worst:e}");
        assert!(worst < 1e-6, "{worst:e}");
    }

    /// Moments of `x`, whose expectations are those of a normal number.
    fn moments(x: &[f32]) -> [f64; 4] {
        [1, 2, 3, 4].map(|n| x.iter().map(|&x| f64::from(x).powi(n)).sum::<f64>() / x.len() as f64)
    }

    /// All tolerances are five standard deviations of what is measured, were the numbers independent and normal.
    const SIGMAS: f64 = 5.0;

    #[test]
    fn moments_and_tails_are_normal() {
        let n = 1 << 22;
        let mut z = vec![0.0; n];
        // P(|z| > 1), ... P(|z| > 5).
        let tails = [0.317_310_508, 0.045_500_264, 0.002_699_796_1, 6.334_248_4e-5, 5.733_031_4e-7];
        for (seed, name) in [(0, "model.layers.0.self_attn.q_proj.weight"), (u64::MAX, "x")] {
            normals(seed, tensor_hash(name), 0, &mut z);
            // Each of the four elements of a block alone, too.
            let lane = |lane| z.iter().skip(lane).step_by(4).copied().collect::<Vec<f32>>();
            for x in [z.clone(), lane(0), lane(1), lane(2), lane(3)] {
                let n = x.len() as f64;
                // Variances of z, z^2, z^3 and z^4.
                for ((moment, exact), variance) in
                    moments(&x).into_iter().zip([0.0, 1.0, 0.0, 3.0]).zip([1.0f64, 2.0, 15.0, 96.0])
                {
                    let sigmas = (moment - exact) / (variance / n).sqrt();
                    assert!(sigmas.abs() < SIGMAS, "{name}: {moment} for {exact} is {sigmas} sigmas off");
                }
                for (limit, p) in (1u8..).zip(tails) {
                    let found = x.iter().filter(|x| x.abs() > f32::from(limit)).count() as f64;
                    let sigmas = (found - p * n) / (p * (1.0 - p) * n).sqrt();
                    assert!(sigmas.abs() < SIGMAS, "{name}: {found} beyond {limit} is {sigmas} sigmas off");
                }
            }
        }
    }

    /// Kolmogorov and Smirnov: the distance of the distribution functions is above 3 / sqrt(n) with a probability of
    /// 2 exp(-18), 3e-8.
    #[test]
    fn the_distribution_is_normal() {
        let n = 1 << 20;
        let mut z = vec![0.0; n];
        normals(candidate_seed(3, 4095), tensor_hash("model.layers.29.mlp.down_proj.weight"), 1, &mut z);
        z.sort_unstable_by(f32::total_cmp);
        // Abramowitz and Stegun 7.1.26, error 1.5e-7.
        let phi = |x: f64| {
            let a = [0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429];
            let y = x.abs() / 2f64.sqrt();
            let t = 1.0 / (1.0 + 0.3275911 * y);
            let tail = a.iter().rev().fold(0.0, |sum, a| (sum + a) * t) * (-y * y).exp() / 2.0;
            if x < 0.0 { tail } else { 1.0 - tail }
        };
        let distance = (0u32..).zip(&z).map(|(i, &x)| (phi(x.into()) - f64::from(i) / n as f64).abs());
        let distance = distance.fold(0.0, f64::max);
        println!("distance {:.2} / sqrt(n)", distance * (n as f64).sqrt());
        assert!(distance < 3.0 / (n as f64).sqrt(), "{distance}");
    }

    /// Neither numbers nor their squares are correlated: between candidates, seeds that differ in a bit, tensors,
    /// and elements at small and large distances.
    #[test]
    fn streams_are_independent() {
        let n = 1 << 18;
        let seeds = [0, 1, 2, 1 << 32, candidate_seed(0, 0), candidate_seed(0, 1), candidate_seed(1, 0)];
        let names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", "q", "r"];
        let streams: Vec<(String, Vec<f32>)> = seeds
            .iter()
            .flat_map(|&seed| names.map(|name| (seed, name)))
            .map(|(seed, name)| {
                let mut z = vec![0.0; n];
                normals(seed, tensor_hash(name), 0, &mut z);
                (format!("{seed} {name}"), z)
            })
            .collect();
        let check = |what: &str, x: &[f32], y: &[f32]| {
            let n = (x.len() as f64).sqrt();
            let pairs = || x.iter().zip(y).map(|(&x, &y)| (f64::from(x), f64::from(y)));
            let plain = pairs().map(|(x, y)| x * y).sum::<f64>() / n;
            // The square less one has variance two.
            let squares = pairs().map(|(x, y)| (x * x - 1.0) * (y * y - 1.0) / 2.0).sum::<f64>() / n;
            assert!(plain.abs() < SIGMAS, "{what}: correlated by {plain} sigmas");
            assert!(squares.abs() < SIGMAS, "{what}: squares correlated by {squares} sigmas");
        };
        for (i, (what, x)) in streams.iter().enumerate() {
            for (other, y) in &streams[..i] {
                check(&format!("{what} and {other}"), x, y);
            }
            for lag in [1, 2, 3, 4, 5, 8, 16, 64, 512, 576, 1536, 4096] {
                check(&format!("{what} {lag} apart"), &x[lag..], &x[..n - lag]);
            }
        }
    }

    /// A sum over candidates is normal as well, with the variance of its coefficients.
    #[test]
    fn sums_over_candidates_have_the_variance_of_their_coefficients() {
        let directions: Vec<Direction> = (0..256)
            .map(|k| Direction { seed: candidate_seed(77, k), coefficient: (k % 7) as f32 - 3.0 })
            .collect();
        let variance: f64 = directions.iter().map(|d| f64::from(d.coefficient).powi(2)).sum();
        let mut out = vec![0.0; 1 << 18];
        Isa::best().run(Sum { directions: &directions, scale: 1.0, tensor: 1, first: 0, out: &mut out });
        let n = out.len() as f64;
        let [mean, square, _, fourth] = moments(&out);
        assert!((mean / (variance / n).sqrt()).abs() < SIGMAS);
        assert!(((square / variance - 1.0) / (2.0 / n).sqrt()).abs() < SIGMAS);
        assert!(((fourth / variance / variance - 3.0) / (96.0 / n).sqrt()).abs() < SIGMAS);
    }
}
