//! AVX2 with FMA and F16C: sixteen lanes are two registers.

use std::arch::x86_64::*;

use super::isa::{GROUP, LANES, Simd, steps_in_16_bits};

/// Proof that this CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// The token, where the CPU has all three.
    pub fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

/// Applies an intrinsic to both halves.
macro_rules! both {
    ($f:ident, $($x:expr),+) => {{
        // SAFETY: the caller holds an `Avx2`, so the CPU has what this intrinsic needs.
        unsafe { [$f($($x[0]),+), $f($($x[1]),+)] }
    }};
}

/// An expression for each half. No closure: a call that is not inlined would lose the instruction set.
macro_rules! halves {
    ($v:ident in $x:expr => $body:expr) => {{
        let [low, high] = $x;
        // SAFETY: the caller holds an `Avx2`, so the CPU has what the expression needs.
        unsafe {
            [
                {
                    let $v = low;
                    $body
                },
                {
                    let $v = high;
                    $body
                },
            ]
        }
    }};
}

/// Two registers from two halves of memory.
macro_rules! load {
    ($f:ident, $x:expr, $half:expr, $ty:ty) => {{
        let p = $x.as_ptr();
        // SAFETY: the caller holds an `Avx2`; the array has two halves of `$half` elements, read unaligned.
        unsafe { [$f(p.cast::<$ty>()), $f(p.add($half).cast::<$ty>())] }
    }};
}

impl Simd for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type Codes = [__m256i; 2];
    const WIDE: bool = false;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: `self` proves that the CPU has the three features.
        unsafe { inner(f) }
    }

    #[inline(always)]
    fn prefetch<T>(self, from: &T, ahead: usize) {
        let address = std::ptr::from_ref(from).cast::<i8>().wrapping_add(ahead);
        // SAFETY: a hint; it reads nothing that the program could see, and may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: `self` proves AVX.
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        load!(_mm256_loadu_ps, x, 8, f32)
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Self::F {
        let x = load!(_mm_loadu_si128, x, 8, __m128i);
        both!(_mm256_cvtph_ps, x)
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Self::F {
        let x = load!(_mm_loadu_si128, x, 8, __m128i);
        halves!(x in x => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x))))
    }

    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; LANES]) {
        let p = out.as_mut_ptr();
        // SAFETY: `self` proves AVX; `out` holds two registers, written unaligned.
        unsafe {
            _mm256_storeu_ps(p, x[0]);
            _mm256_storeu_ps(p.add(8), x[1]);
        }
    }

    #[inline(always)]
    fn store_f16(self, x: Self::F, out: &mut [u16; LANES]) {
        let p = out.as_mut_ptr();
        // SAFETY: `self` proves F16C; `out` holds two half registers, written unaligned.
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[0]));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[1]));
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_add_ps, a, b)
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_sub_ps, a, b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_mul_ps, a, b)
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_div_ps, a, b)
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(_mm256_fmadd_ps, a, b, c)
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_max_ps, a, b)
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_min_ps, a, b)
    }

    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        halves!(a in a => _mm256_andnot_ps(_mm256_set1_ps(-0.0), a))
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        halves!(a in a => _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline(always)]
    fn exp2(self, n: Self::F) -> Self::F {
        halves!(n in n => {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        })
    }

    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        // SAFETY: `self` proves AVX.
        unsafe {
            let a = _mm256_add_ps(a[0], a[1]);
            let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps::<1>(a, a)))
        }
    }

    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        // SAFETY: `self` proves AVX.
        unsafe {
            let a = _mm256_max_ps(a[0], a[1]);
            let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps::<1>(a, a)))
        }
    }

    #[inline(always)]
    fn load_codes(self, bytes: &[u8; 4 * LANES]) -> Self::Codes {
        load!(_mm256_loadu_si256, bytes, 32, __m256i)
    }

    #[inline(always)]
    fn store_codes(self, codes: Self::Codes, out: &mut [u8; 4 * LANES]) {
        let p = out.as_mut_ptr();
        // SAFETY: `self` proves AVX; `out` holds two registers, written unaligned.
        unsafe {
            _mm256_storeu_si256(p.cast(), codes[0]);
            _mm256_storeu_si256(p.add(32).cast(), codes[1]);
        }
    }

    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Self::F {
        let x = load!(_mm_loadl_epi64, x, 8, __m128i);
        halves!(x in x => _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)))
    }

    #[inline(always)]
    fn load_bits(self, x: &[u8; LANES], shift: u32, width: u32) -> Self::F {
        let x = load!(_mm_loadl_epi64, x, 8, __m128i);
        halves!(x in x => {
            let x = _mm256_srl_epi32(_mm256_cvtepu8_epi32(x), _mm_cvtsi32_si128(shift as i32));
            _mm256_cvtepi32_ps(_mm256_and_si256(x, _mm256_set1_epi32((1 << width) - 1)))
        })
    }

    #[inline(always)]
    fn bits(self, bytes: &[u8; 4 * LANES], shift: u32, width: u32) -> Self::Codes {
        let bytes = self.load_codes(bytes);
        halves!(b in bytes => {
            // Bits that come from the byte beside are masked.
            let moved = _mm256_srl_epi16(b, _mm_cvtsi32_si128(shift as i32));
            _mm256_and_si256(moved, _mm256_set1_epi8((0xff_u8 >> (8 - width)).cast_signed()))
        })
    }

    #[inline(always)]
    fn twos(self, bytes: &[u8; 4 * LANES], bit: u32) -> Self::Codes {
        let bytes = self.load_codes(bytes);
        halves!(b in bytes => {
            // Bits that come from the byte beside are masked.
            let moved = match bit {
                0 => _mm256_add_epi8(b, b),
                _ => _mm256_srl_epi16(b, _mm_cvtsi32_si128(bit as i32 - 1)),
            };
            _mm256_and_si256(moved, _mm256_set1_epi8(2))
        })
    }

    #[inline(always)]
    fn join(self, low: Self::Codes, high: Self::Codes, shift: u32) -> Self::Codes {
        let high = halves!(h in high => _mm256_sll_epi16(h, _mm_cvtsi32_si128(shift as i32)));
        both!(_mm256_or_si256, low, high)
    }

    #[inline(always)]
    fn lookup(self, table: &[u8; 16], codes: Self::Codes) -> Self::Codes {
        // SAFETY: `self` proves AVX2; `table` is one 128-bit register, read unaligned.
        let table = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())) };
        halves!(c in codes => _mm256_shuffle_epi8(table, c))
    }

    #[inline(always)]
    fn dot_unsigned<const T: usize, const N: usize>(
        self,
        codes: impl Fn(usize, usize) -> Self::Codes,
        most: u8,
        x: [&[i8; GROUP]; T],
        start: [Self::I; T],
    ) -> [[Self::I; T]; N] {
        // SAFETY: `self` proves AVX2. A lane of 16 bits adds as many steps as fit it, `steps_in_16_bits`, and no
        // `maddubs` saturates.
        unsafe {
            let (many, ones) = (steps_in_16_bits(most), _mm256_set1_epi16(1));
            let mut dots = [start; N];
            for (n, sums) in dots.iter_mut().enumerate() {
                for first in (0..GROUP / 4).step_by(many) {
                    let mut narrow = [[_mm256_setzero_si256(); 2]; T];
                    for step in first..GROUP / 4 {
                        if step == first + many {
                            break;
                        }
                        let w = codes(n, step);
                        for t in 0..T {
                            let x = group(x[t], step);
                            for h in 0..2 {
                                let pairs = _mm256_maddubs_epi16(w[h], x);
                                narrow[t][h] = _mm256_add_epi16(narrow[t][h], pairs);
                            }
                        }
                        together(&mut narrow);
                    }
                    for (sum, narrow) in sums.as_flattened_mut().iter_mut().zip(narrow.as_flattened()) {
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(*narrow, ones));
                    }
                }
            }
            dots
        }
    }

    #[inline(always)]
    fn dot_bytes<const T: usize, const N: usize>(
        self,
        codes: impl Fn(usize, usize) -> Self::Codes,
        x: [&[i8; GROUP]; T],
        _: [i32; T],
    ) -> [[Self::I; T]; N] {
        // SAFETY: `self` proves AVX2. |code| is at most 128 and |x| at most 127: two products are at most
        // 32512, so no `maddubs` saturates.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let mut dots = [[[_mm256_setzero_si256(); 2]; T]; N];
            for (n, sums) in dots.iter_mut().enumerate() {
                for step in 0..GROUP / 4 {
                    let w = codes(n, step);
                    let magnitude = [_mm256_abs_epi8(w[0]), _mm256_abs_epi8(w[1])];
                    for t in 0..T {
                        let x = group(x[t], step);
                        for h in 0..2 {
                            let pairs = _mm256_maddubs_epi16(magnitude[h], _mm256_sign_epi8(x, w[h]));
                            let sum = _mm256_add_epi32(sums[t][h], _mm256_madd_epi16(pairs, ones));
                            sums[t][h] = in_order(sum);
                        }
                    }
                }
            }
            dots
        }
    }

    #[inline(always)]
    fn splat_int(self, x: i32) -> Self::I {
        // SAFETY: `self` proves AVX.
        unsafe { [_mm256_set1_epi32(x); 2] }
    }

    #[inline(always)]
    fn to_float(self, a: Self::I) -> Self::F {
        both!(_mm256_cvtepi32_ps, a)
    }

    #[inline(always)]
    fn to_bytes(self, a: Self::F) -> [i8; LANES] {
        let a = both!(_mm256_cvtps_epi32, a);
        let mut out = [0; LANES];
        // SAFETY: `self` proves AVX2; `out` holds one 128-bit register, written unaligned.
        unsafe {
            // The packs work within 128-bit lanes: put the four groups of four back in order afterwards.
            let words = _mm256_packs_epi32(a[0], a[1]);
            let bytes = _mm256_packs_epi16(words, words);
            let ordered = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm256_castsi256_si128(ordered));
        }
        out
    }
}

/// Columns `4 step..4 step + 4` of `x`, for every row.
///
/// # Safety
/// The CPU must have AVX2.
#[inline(always)]
unsafe fn group(x: &[i8; GROUP], step: usize) -> __m256i {
    let four: &[u8] = bytemuck::cast_slice(&x[4 * step..4 * step + 4]);
    // SAFETY: the caller's duty.
    unsafe { _mm256_set1_epi32(bytemuck::pod_read_unaligned(four)) }
}

/// Keeps the compiler from turning chains of additions into trees, and from adding up one row of activations after the other: it would
/// run out of registers.
#[inline]
#[target_feature(enable = "avx2")]
fn together<const T: usize>(sums: &mut [[__m256i; 2]; T]) {
    let [[a, b], [c, d]] = match &mut sums[..] {
        [first, second] => [first, second],
        others => {
            for sum in others.as_flattened_mut() {
                *sum = in_order(*sum);
            }
            return;
        }
    };
    // SAFETY: no instruction at all; the operands only pass through their registers.
    unsafe {
        std::arch::asm!(
            "/* {0} {1} {2} {3} */",
            inout(ymm_reg) * a,
            inout(ymm_reg) * b,
            inout(ymm_reg) * c,
            inout(ymm_reg) * d,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
}

/// Keeps the compiler from turning a chain of additions into a tree, for which it would run out of registers.
///
/// Not `inline(always)`, which does not go with a target feature; `.ci/run` sees that no call is left.
#[inline]
#[target_feature(enable = "avx2")]
fn in_order(mut sum: __m256i) -> __m256i {
    // SAFETY: no instruction at all; the operand only passes through its register.
    unsafe {
        std::arch::asm!("/* {0} */", inout(ymm_reg) sum, options(pure, nomem, nostack, preserves_flags));
    }
    sum
}
