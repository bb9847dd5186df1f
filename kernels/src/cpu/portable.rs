//! The definition: every vector operation in plain Rust.

use half::f16;

use super::isa::{GROUP, LANES, Simd};

/// The token of the instruction set that every CPU has.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

impl Portable {
    /// Always there.
    pub fn new() -> Option<Self> {
        Some(Self)
    }
}

/// Applies `f` to every lane.
#[inline(always)]
fn map2(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// Folds the upper half of the lanes onto the lower until one is left.
#[inline(always)]
fn fold(mut a: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            a[i] = f(a[i], a[i + half]);
        }
        half /= 2;
    }
    a[0]
}

impl Simd for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type Codes = [u8; 4 * LANES];
    const WIDE: bool = false;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }

    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }

    fn load(self, x: &[f32; LANES]) -> Self::F {
        *x
    }

    fn load_f16(self, x: &[u16; LANES]) -> Self::F {
        x.map(|x| f16::from_bits(x).to_f32())
    }

    fn load_bf16(self, x: &[u16; LANES]) -> Self::F {
        x.map(|x| f32::from_bits(u32::from(x) << 16))
    }

    fn store(self, x: Self::F, out: &mut [f32; LANES]) {
        *out = x;
    }

    fn store_f16(self, x: Self::F, out: &mut [u16; LANES]) {
        *out = x.map(|x| f16::from_f32(x).to_bits());
    }

    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a + b)
    }

    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a - b)
    }

    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a * b)
    }

    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a / b)
    }

    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| if a > b { a } else { b })
    }

    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| if a < b { a } else { b })
    }

    fn abs(self, a: Self::F) -> Self::F {
        a.map(f32::abs)
    }

    fn round(self, a: Self::F) -> Self::F {
        a.map(f32::round_ties_even)
    }

    fn exp2(self, n: Self::F) -> Self::F {
        n.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }

    fn sum(self, a: Self::F) -> f32 {
        fold(a, |a, b| a + b)
    }

    fn largest(self, a: Self::F) -> f32 {
        fold(a, |a, b| if a > b { a } else { b })
    }

    fn load_i8(self, x: &[i8; LANES]) -> Self::F {
        x.map(f32::from)
    }

    fn load_bits(self, x: &[u8; LANES], shift: u32, width: u32) -> Self::F {
        x.map(|x| f32::from(field(x, shift, width)))
    }

    fn load_codes(self, bytes: &[u8; 4 * LANES]) -> Self::Codes {
        *bytes
    }

    fn store_codes(self, codes: Self::Codes, out: &mut [u8; 4 * LANES]) {
        *out = codes;
    }

    fn bits(self, bytes: &[u8; 4 * LANES], shift: u32, width: u32) -> Self::Codes {
        bytes.map(|b| field(b, shift, width))
    }

    fn twos(self, bytes: &[u8; 4 * LANES], bit: u32) -> Self::Codes {
        bytes.map(|b| 2 * field(b, bit, 1))
    }

    fn join(self, low: Self::Codes, high: Self::Codes, shift: u32) -> Self::Codes {
        std::array::from_fn(|i| low[i] | high[i] << shift)
    }

    fn lookup(self, table: &[u8; 16], codes: Self::Codes) -> Self::Codes {
        codes.map(|c| table[usize::from(c % 16)])
    }

    fn dot_unsigned<const T: usize, const N: usize>(
        self,
        codes: impl Fn(usize, usize) -> Self::Codes,
        _: u8,
        x: [&[i8; GROUP]; T],
        start: [Self::I; T],
    ) -> [[Self::I; T]; N] {
        dot(codes, x, start, i32::from)
    }

    fn dot_bytes<const T: usize, const N: usize>(
        self,
        codes: impl Fn(usize, usize) -> Self::Codes,
        x: [&[i8; GROUP]; T],
        _: [i32; T],
    ) -> [[Self::I; T]; N] {
        dot(codes, x, [[0; LANES]; T], |code| i32::from(code.cast_signed()))
    }

    fn splat_int(self, x: i32) -> Self::I {
        [x; LANES]
    }

    fn to_float(self, a: Self::I) -> Self::F {
        a.map(|a| a as f32)
    }

    fn to_bytes(self, a: Self::F) -> [i8; LANES] {
        a.map(|a| a as i8)
    }
}

/// The `width` bits of `byte` from bit `shift` on.
fn field(byte: u8, shift: u32, width: u32) -> u8 {
    byte >> shift & (u8::MAX >> (8 - width))
}

fn dot<const T: usize, const N: usize>(
    codes: impl Fn(usize, usize) -> [u8; 4 * LANES],
    x: [&[i8; GROUP]; T],
    start: [[i32; LANES]; T],
    value: impl Fn(u8) -> i32,
) -> [[[i32; LANES]; T]; N] {
    let mut dots = [start; N];
    for (n, sums) in dots.iter_mut().enumerate() {
        for step in 0..GROUP / 4 {
            let codes = codes(n, step);
            for (sums, x) in sums.iter_mut().zip(x) {
                for (i, &code) in codes.iter().enumerate() {
                    sums[i / 4] += value(code) * i32::from(x[4 * step + i % 4]);
                }
            }
        }
    }
    dots
}
