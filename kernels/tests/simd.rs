//! Every vector operation of every instruction set against the definition in plain Rust, to the bit.

use bytemuck::Zeroable;
use graftwork_kernels::cpu::isa::{BLOCK, GROUP, Isa, Kernel, LANES, Simd};
use graftwork_kernels::cpu::linear::Quantize;
use graftwork_kernels::cpu::math::{exp, load_part, store_part};
use graftwork_kernels::cpu::strip::Activations;

mod random;
use random::Random;

/// Runs a test's kernel on every instruction set; gives the results of the first and the others, by name.
macro_rules! on_every_isa {
    ($kernel:expr) => {{
        let mut all = Isa::all().into_iter();
        let first = all.next().expect("there is always the portable one");
        assert_eq!(first.name(), "portable");
        (first.run($kernel), all.map(|isa| (isa.name(), isa.run($kernel))).collect::<Vec<_>>())
    }};
}

/// The bits, but every NaN the same: which one an operation gives is left open.
fn canonical(x: f32) -> u32 {
    if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
}

/// Where this variable is set the fastest instruction set must be the one that it names: how a run on an
/// emulator proves that it has tested what it should.
#[test]
fn the_expected_instruction_set_is_there() {
    if let Ok(name) = std::env::var("GRAFTWORK_TEST_ISA") {
        assert_eq!(Isa::best().name(), name);
    }
    assert!(Isa::named("portable").is_some() && Isa::named("none").is_none());
    println!("tested: {:?}", Isa::all());
}

/// Every one that the CPU's features allow and no other, and on standard output for whoever runs this for some CPU.
#[test]
fn instruction_sets_are_those_of_the_cpu() {
    let mut expected = vec!["portable"];
    #[cfg(target_arch = "x86_64")]
    {
        use std::is_x86_feature_detected as has;
        if has!("avx2") && has!("fma") && has!("f16c") {
            expected.push("avx2");
        }
        if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
            expected.push("avx512");
            expected.extend(has!("avx512vnni").then_some("avx512vnni"));
            let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            let amx = |flag: &&str| ["amx_tile", "amx_bf16"].contains(flag);
            let line = flags.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
            expected.extend((line.split(' ').filter(amx).count() == 2).then_some("avx512amx"));
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        use std::arch::is_aarch64_feature_detected as has;
        expected.push("neon");
        if has!("dotprod") {
            expected.push("neondot");
            expected.extend(has!("i8mm").then_some("neoni8mm"));
        }
    }
    let found: Vec<_> = Isa::all().into_iter().map(Isa::name).collect();
    println!("instruction sets: {}", found.join(" "));
    assert_eq!(found, expected);
}

struct Arithmetic<'a>([&'a [f32; LANES]; 3]);

impl Kernel for Arithmetic<'_> {
    type Out = Vec<(&'static str, [f32; LANES])>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Out {
        let [a, b, c] = self.0.map(|x| s.load(x));
        let mut out = Vec::new();
        let mut give = |name, x| {
            let mut lanes = [0.0; LANES];
            s.store(x, &mut lanes);
            out.push((name, lanes));
        };
        give("load", a);
        give("splat", s.splat(self.0[0][3]));
        give("add", s.add(a, b));
        give("sub", s.sub(a, b));
        give("mul", s.mul(a, b));
        give("div", s.div(a, b));
        give("fma", s.fma(a, b, c));
        give("max", s.max(a, b));
        give("min", s.min(a, b));
        give("abs", s.abs(a));
        give("round", s.round(a));
        give("exp", exp(s, a));
        give("sum", s.splat(s.sum(a)));
        give("largest", s.splat(s.largest(a)));
        let mut halves = [0; LANES];
        s.store_f16(a, &mut halves);
        give("store_f16", s.load_f16(&halves));
        let mut part = [7.0; LANES];
        store_part(s, load_part(s, &self.0[0][..11]), &mut part[..13]);
        give("parts", s.load(&part));
        let bytes = self.0[1].map(|x| x.to_bits() as u8);
        give("load_i8", s.load_i8(&bytes.map(u8::cast_signed)));
        give("load_bits", s.load_bits(&bytes, 4, 4));
        give("load_bits", s.load_bits(&bytes, 0, 6));
        out
    }
}

#[test]
fn arithmetic_gives_the_bits_of_the_definition() {
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        2.5,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MAX,
        f32::MIN_POSITIVE,
        1e-42,
        65504.0,
        65520.0,
        5.97e-8,
        88.5,
        -104.0,
    ];
    let mut random = Random(11);
    for round in 0..2000 {
        let mut next = || match round % 4 {
            0 => random.normal(),
            1 => random.normal() * 30.0,
            2 => f32::from_bits(random.bits() as u32),
            _ => special[random.bits() as usize % special.len()],
        };
        let x: [[f32; LANES]; 3] = std::array::from_fn(|_| std::array::from_fn(|_| next()));
        let (expected, others) = on_every_isa!(Arithmetic(x.each_ref()));
        for (isa, found) in others {
            for ((name, found), (_, expected)) in found.iter().zip(&expected) {
                assert_eq!(found.map(canonical), expected.map(canonical), "{name} of {x:?} on {isa}");
            }
        }
    }
}

/// One lane at a time, so that the order of the fold shows: a large number swallows what is added to it.
#[test]
fn sums_fold_halves() {
    struct Sum<'a>(&'a [f32; LANES]);
    impl Kernel for Sum<'_> {
        type Out = [f32; 2];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; 2] {
            [s.sum(s.load(self.0)), s.largest(s.load(self.0))]
        }
    }
    let mut random = Random(12);
    for _ in 0..2000 {
        let x: [f32; LANES] =
            std::array::from_fn(|_| random.normal() * 2f32.powi((random.bits() % 40) as i32));
        let (mut folded, mut half) = (x, LANES / 2);
        while half > 0 {
            folded = std::array::from_fn(|i| if i < half { folded[i] + folded[i + half] } else { 0.0 });
            half /= 2;
        }
        let expected = [folded[0], x.into_iter().fold(f32::MIN, f32::max)];
        let (portable, others) = on_every_isa!(Sum(&x));
        assert_eq!(portable, expected);
        for (isa, found) in others {
            assert_eq!(found, expected, "{isa}");
        }
    }
}

#[test]
fn halves_and_whole_numbers_convert_exactly() {
    struct Convert<'a>(&'a [u16; LANES], &'a [f32; LANES]);
    impl Kernel for Convert<'_> {
        type Out = ([[f32; LANES]; 3], [i8; LANES]);
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Out {
            let mut out = [[0.0; LANES]; 3];
            s.store(s.load_f16(self.0), &mut out[0]);
            s.store(s.load_bf16(self.0), &mut out[1]);
            s.store(s.exp2(s.load(self.1)), &mut out[2]);
            (out, s.to_bytes(s.load(self.1)))
        }
    }
    for start in (0..=u16::MAX).step_by(LANES) {
        let halves: [u16; LANES] = std::array::from_fn(|i| start + i as u16);
        // All of -126..=127 come up.
        let whole = halves.map(|h| f32::from(h % 254) - 126.0);
        let (expected, others) = on_every_isa!(Convert(&halves, &whole));
        for i in 0..LANES {
            assert_eq!(canonical(expected.0[0][i]), canonical(half::f16::from_bits(halves[i]).to_f32()));
            assert_eq!(expected.0[1][i].to_bits(), u32::from(halves[i]) << 16);
            assert_eq!(expected.0[2][i], whole[i].exp2());
            assert_eq!(f32::from(expected.1[i]), whole[i]);
        }
        for (isa, found) in others {
            assert_eq!(found.0.map(|x| x.map(canonical)), expected.0.map(|x| x.map(canonical)), "{isa}");
            assert_eq!(found.1, expected.1, "{isa}");
        }
    }
}

/// What is done with the codes of one group.
struct Dots<'a, const T: usize> {
    /// Columns of sixteen rows, four a step.
    codes: &'a [[u8; 4 * LANES]; GROUP / 4],
    x: [&'a [i8; GROUP]; T],
}

/// Widths of unsigned codes, and the bit that they start from.
const FIELDS: [(u32, u32); 7] = [(4, 0), (4, 4), (2, 4), (1, 7), (5, 0), (6, 1), (7, 0)];

/// Bits whose double is a code.
const TWOS: [u32; 3] = [0, 1, 7];

impl<const T: usize> Kernel for Dots<'_, T> {
    /// Dots of each of `FIELDS`, of each of `TWOS`, and of signed bytes.
    type Out = Vec<Vec<[f32; LANES]>>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Out {
        // Of the second of two strips, whose codes are those of the first in another order.
        let floats = |[_, dots]: [[S::I; T]; 2], start: f32| {
            let lanes = dots.map(|dot| {
                let mut lanes = [0.0; LANES];
                s.store(s.to_float(dot), &mut lanes);
                lanes.map(|x| x - start)
            });
            lanes.to_vec()
        };
        let mut all = Vec::new();
        for (width, shift) in FIELDS {
            let codes = |n: usize, step: usize| s.bits(&self.codes[step ^ n ^ 1], shift, width);
            let start = [s.splat_int(-9); T];
            let most = u8::MAX >> (8 - width);
            all.push(floats(s.dot_unsigned(codes, most, self.x, start), -9.0));
            let paired = |n: usize, step: usize| s.pair([codes(n, step & 2), codes(n, step | 1)])[step % 2];
            let dots: [_; 2] = s.dot_paired(paired, most, self.x, start);
            assert_eq!(floats(dots, -9.0), all[all.len() - 1], "of paired codes");
        }
        for bit in TWOS {
            let codes = |n: usize, step: usize| s.twos(&self.codes[step ^ n ^ 1], bit);
            all.push(floats(s.dot_unsigned(codes, 2, self.x, [s.splat_int(5); T]), 5.0));
        }
        let minus = self.x.map(|x| -x.iter().map(|&x| i32::from(x)).sum::<i32>());
        let codes = |n: usize, step: usize| {
            let mut bytes = [0; 4 * LANES];
            s.store_codes(s.load_codes(&self.codes[step ^ n ^ 1]), &mut bytes);
            s.load_codes(&bytes)
        };
        all.push(floats(s.dot_bytes(codes, self.x, minus), 0.0));
        all
    }
}

fn dots_are_exact<const T: usize>(random: &mut Random) {
    for round in 0..200 {
        // Extremes come up in whole blocks, where sums are largest.
        let codes = std::array::from_fn(|_| {
            std::array::from_fn(|_| match round % 4 {
                0 => 0x80,
                1 => 0xff,
                2 => [0x80, 0x7f, 0x00, 0xff][random.bits() as usize % 4],
                _ => random.bits() as u8,
            })
        });
        let x: [[i8; GROUP]; T] = std::array::from_fn(|_| {
            std::array::from_fn(|_| match round / 4 % 4 {
                0 => 127,
                1 => -127,
                2 => [127, -127][random.bits() as usize % 2],
                _ => (random.bits() % 255) as i8,
            })
            .map(|x: i8| x.max(-127))
        });
        let kernel = || Dots { codes: &codes, x: x.each_ref() };
        let (mut all, others) = {
            let (first, others) = on_every_isa!(kernel());
            (vec![("portable", first)], others)
        };
        all.extend(others);
        for (isa, dots) in all {
            for t in 0..T {
                for row in 0..LANES {
                    let mut expected = [0; FIELDS.len() + TWOS.len() + 1];
                    for (column, &x) in x[t].iter().enumerate() {
                        let byte = codes[column / 4][4 * row + column % 4];
                        let fields =
                            FIELDS.map(|(width, shift)| i32::from(byte >> shift) & ((1 << width) - 1));
                        let twos = TWOS.map(|bit| i32::from(byte >> bit & 1) * 2);
                        let values = fields.into_iter().chain(twos).chain([i32::from(byte.cast_signed())]);
                        for (sum, value) in expected.iter_mut().zip(values) {
                            *sum += value * i32::from(x);
                        }
                    }
                    let found: Vec<f32> = dots.iter().map(|dots| dots[t][row]).collect();
                    let expected = expected.map(|n| n as f32);
                    assert_eq!(found, expected, "codes of row {row}, token {t} of {T} on {isa}");
                }
            }
        }
    }
}

#[test]
fn dots_of_codes_are_exact() {
    let mut random = Random(13);
    dots_are_exact::<1>(&mut random);
    dots_are_exact::<2>(&mut random);
    dots_are_exact::<4>(&mut random);
    dots_are_exact::<6>(&mut random);
}

#[test]
fn exp_is_within_two_units_in_the_last_place() {
    struct Exp<'a>(&'a [f32; LANES]);
    impl Kernel for Exp<'_> {
        type Out = [f32; LANES];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Out {
            let mut out = [0.0; LANES];
            s.store(exp(s, s.load(self.0)), &mut out);
            out
        }
    }
    // The portable version has the same bits (tested above) but is slow: every thousandth point is enough there.
    for isa in Isa::all() {
        let points = if isa.name() == Isa::best().name() { 400_000 } else { 4_000 };
        for start in (0..points).step_by(LANES) {
            let x: [f32; LANES] =
                std::array::from_fn(|i| -87.0 + 175.0 * ((start + i) as f32 / points as f32));
            for (x, found) in x.into_iter().zip(isa.run(Exp(&x))) {
                let exact = f64::from(x).exp();
                let unit = f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
                let error = (f64::from(found) - exact).abs() / unit;
                assert!(error <= 2.0, "exp({x}) is {found}, {error} units off, on {}", isa.name());
            }
        }
        let ends = [-1e9, f32::NEG_INFINITY, -87.0, 88.0, 1e9, f32::INFINITY, 0.0, -0.0];
        let ends = isa.run(Exp(&std::array::from_fn(|i| ends[i % 8])));
        assert_eq!(ends[0], ends[2], "clamped below on {}", isa.name());
        assert_eq!(ends[1], ends[2]);
        assert_eq!(ends[4], ends[3], "clamped above on {}", isa.name());
        assert_eq!(ends[5], ends[3]);
        assert_eq!(ends[6..8], [1.0, 1.0], "exactly one on {}", isa.name());
    }
}

#[test]
fn activations_round_to_8_bits_as_defined() {
    let mut random = Random(14);
    let mut rows: Vec<Vec<f32>> =
        (0..60).map(|i| (0..96).map(|_| random.normal() * 10f32.powi(i % 9 - 4)).collect()).collect();
    rows.push(vec![0.0; 96]);
    rows.push((0..96).map(|i| if i % 32 == 5 { -1e6 } else { random.normal() }).collect());
    rows.push((0..96).map(|i| (i % 32) as f32 * 127.0 / 31.0).collect());
    for x in rows {
        for isa in Isa::all() {
            let mut out = [Activations::zeroed(); 3];
            isa.run(Quantize { x: &x, out: &mut out });
            for (x, out) in x.chunks(BLOCK).zip(&out) {
                let mut dsum = [0.0f32; 2];
                for (g, x) in x.chunks(GROUP).enumerate() {
                    let max = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                    let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
                    let codes: Vec<i8> = x.iter().map(|x| (x * inverse).round_ties_even() as i8).collect();
                    let sum: i32 = codes.iter().map(|&c| i32::from(c)).sum();
                    assert_eq!(out.q[g][..], codes, "{}", isa.name());
                    assert_eq!((out.d[g], out.minus[g]), (max / 127.0, -sum));
                    dsum[g] = max / 127.0 * sum as f32;
                }
                assert_eq!(out.dsum, dsum[0] + dsum[1]);
            }
        }
    }
}

/// No sound model has them, but the dot products rely on codes of at most 127 in magnitude.
#[test]
fn infinities_and_nan_leave_codes_in_range() {
    for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, 1e-45] {
        for isa in Isa::all() {
            let mut x = [1.0; BLOCK];
            (x[0], x[17], x[31]) = (bad, -bad, bad);
            let mut out = [Activations::zeroed()];
            isa.run(Quantize { x: &x, out: &mut out });
            assert!(!out[0].q.as_flattened().contains(&-128), "{bad} on {}", isa.name());
        }
    }
}
