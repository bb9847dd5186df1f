//! AVX-512, without and with VNNI, and with AMX: sixteen lanes are one register.
//!
//! The first two differ in the integer dot products alone, so they are one type with a constant for the difference.

use std::arch::asm;
use std::arch::x86_64::*;

use super::isa::{GROUP, LANES, Simd, steps_in_16_bits};

mod tiles;
pub use tiles::Tiles;

/// Proof that this CPU has AVX-512 with its F, BW, DQ and VL parts (every one but Xeon Phi), and VNNI if `VNNI`.
#[derive(Clone, Copy, Debug)]
pub struct Wide<const VNNI: bool> {
    /// Whether memory is asked into the second cache: on Intel's CPUs, where one sequence was decoded 1.15 times as fast
    /// so.
    second: bool,
    /// Whether many rows are multiplied on the CPU's matrix unit.
    tiles: bool,
}

/// AVX-512 as of 2017.
pub type Avx512 = Wide<false>;

/// AVX-512 with `vpdpbusd`: four products of 8 bits summed in one instruction.
pub type Avx512Vnni = Wide<true>;

impl<const VNNI: bool> Wide<VNNI> {
    /// The token, where the CPU has all parts.
    pub fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && (!VNNI || is_x86_feature_detected!("avx512vnni"));
        has.then(|| Self { second: intel(), tiles: false })
    }
}

/// Whether Intel made this CPU.
pub(super) fn intel() -> bool {
    let maker = __cpuid(0);
    [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
}

/// Folds the halves of a register together with the packed operation of each width, in the order of
/// [`super::portable`].
macro_rules! fold {
    ($x:expr, $f256:ident, $f128:ident, $f32:ident) => {{
        let x = $x;
        // SAFETY: the caller holds a `Wide`, which proves AVX-512 F and DQ.
        unsafe {
            let x = $f256(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = $f128(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = $f128(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32($f32(x, _mm_shuffle_ps::<1>(x, x)))
        }
    }};
}

impl<const VNNI: bool> Simd for Wide<VNNI> {
    type F = __m512;
    type I = __m512i;
    type Codes = __m512i;
    const WIDE: bool = true;
    // Without, the sums of 16 bits take as many registers again.
    const MANY_SUMS: bool = VNNI;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn plain<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        fn vnni<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: `self` proves that the CPU has these features, VNNI if `VNNI`.
        unsafe { if VNNI { vnni(f) } else { plain(f) } }
    }

    #[inline(always)]
    fn prefetch<T>(self, from: &T, ahead: usize) {
        let address = std::ptr::from_ref(from).cast::<i8>().wrapping_add(ahead);
        // SAFETY: a hint; it reads nothing that the program could see, and may name any address.
        unsafe {
            if self.second {
                _mm_prefetch::<_MM_HINT_T1>(address);
            } else {
                _mm_prefetch::<_MM_HINT_T0>(address);
            }
        }
    }

    #[inline(always)]
    fn tiles(self) -> Option<Tiles> {
        self.unit()
    }

    #[inline(always)]
    fn after<Q>(self, x: &Q, sum: Self::F) -> &Q {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { after(x, sum) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        // SAFETY: `self` proves AVX-512 F; `x` is one register, read unaligned.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Self::F {
        // SAFETY: `self` proves AVX-512 F; `x` is one 256-bit register, read unaligned.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Self::F {
        // SAFETY: `self` proves AVX-512 F; `x` is one 256-bit register, read unaligned.
        unsafe {
            let x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
        }
    }

    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; LANES]) {
        // SAFETY: `self` proves AVX-512 F; `out` is one register, written unaligned.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn store_f16(self, x: Self::F, out: &mut [u16; LANES]) {
        // SAFETY: `self` proves AVX-512 F; `out` is one 256-bit register, written unaligned.
        unsafe {
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), halves);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        // SAFETY: `self` proves AVX-512 DQ.
        unsafe { _mm512_andnot_ps(_mm512_set1_ps(-0.0), a) }
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn exp2(self, n: Self::F) -> Self::F {
        // SAFETY: `self` proves AVX-512 F.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }

    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        fold!(a, _mm256_add_ps, _mm_add_ps, _mm_add_ss)
    }

    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        fold!(a, _mm256_max_ps, _mm_max_ps, _mm_max_ss)
    }

    #[inline(always)]
    fn load_codes(self, bytes: &[u8; 4 * LANES]) -> Self::Codes {
        // SAFETY: `self` proves AVX-512 F; `bytes` is one register, read unaligned.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store_codes(self, codes: Self::Codes, out: &mut [u8; 4 * LANES]) {
        // SAFETY: `self` proves AVX-512 F; `out` is one register, written unaligned.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), codes) }
    }

    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Self::F {
        // SAFETY: `self` proves AVX-512 F; `x` is one 128-bit register, read unaligned.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn load_bits(self, x: &[u8; LANES], shift: u32, width: u32) -> Self::F {
        // SAFETY: `self` proves AVX-512 F; `x` is one 128-bit register, read unaligned.
        unsafe {
            let x = _mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            let x = _mm512_srl_epi32(x, _mm_cvtsi32_si128(shift as i32));
            _mm512_cvtepi32_ps(_mm512_and_si512(x, _mm512_set1_epi32((1 << width) - 1)))
        }
    }

    #[inline(always)]
    fn bits(self, bytes: &[u8; 4 * LANES], shift: u32, width: u32) -> Self::Codes {
        // SAFETY: `self` proves AVX-512 F and BW. Bits that come from the byte beside are masked.
        unsafe {
            let moved = _mm512_srl_epi16(self.load_codes(bytes), _mm_cvtsi32_si128(shift as i32));
            _mm512_and_si512(moved, _mm512_set1_epi8((0xff_u8 >> (8 - width)).cast_signed()))
        }
    }

    #[inline(always)]
    fn twos(self, bytes: &[u8; 4 * LANES], bit: u32) -> Self::Codes {
        // SAFETY: `self` proves AVX-512 F and BW. Bits that come from the byte beside are masked.
        unsafe {
            let b = self.load_codes(bytes);
            let moved = match bit {
                0 => _mm512_add_epi8(b, b),
                _ => _mm512_srl_epi16(b, _mm_cvtsi32_si128(bit as i32 - 1)),
            };
            _mm512_and_si512(moved, _mm512_set1_epi8(2))
        }
    }

    #[inline(always)]
    fn join(self, low: Self::Codes, high: Self::Codes, shift: u32) -> Self::Codes {
        // SAFETY: `self` proves AVX-512 F and BW. The caller's bits stay within their bytes.
        unsafe { _mm512_or_si512(low, _mm512_sll_epi16(high, _mm_cvtsi32_si128(shift as i32))) }
    }

    #[inline(always)]
    fn lookup(self, table: &[u8; 16], codes: Self::Codes) -> Self::Codes {
        // SAFETY: `self` proves AVX-512 F and BW; `table` is one 128-bit register, read unaligned.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, codes)
        }
    }

    #[inline(always)]
    fn dot_unsigned<const T: usize, const N: usize>(
        self,
        codes: impl Fn(usize, usize) -> Self::Codes,
        most: u8,
        x: [&[i8; GROUP]; T],
        start: [Self::I; T],
    ) -> [[Self::I; T]; N] {
        // SAFETY: `self` proves AVX-512 F and BW, and VNNI where that is used. Without it, a lane of 16 bits adds
        // as many steps as fit it, `steps_in_16_bits`, and no `maddubs` saturates.
        unsafe {
            let mut dots = [start; N];
            if VNNI {
                add_products(&mut dots, codes, x);
                return dots;
            }
            let (many, ones) = (steps_in_16_bits(most), _mm512_set1_epi16(1));
            for first in (0..GROUP / 4).step_by(many) {
                let mut narrow = [[_mm512_setzero_si512(); T]; N];
                for step in first..GROUP / 4 {
                    if step == first + many {
                        break;
                    }
                    let mut w = [_mm512_setzero_si512(); N];
                    for n in 0..N {
                        w[n] = codes(n, step);
                    }
                    for t in 0..T {
                        let x = group(x[t], step);
                        for n in 0..N {
                            let pairs = _mm512_maddubs_epi16(w[n], x);
                            narrow[n][t] = in_order(_mm512_add_epi16(narrow[n][t], pairs));
                        }
                    }
                }
                for (sum, narrow) in dots.as_flattened_mut().iter_mut().zip(narrow.as_flattened()) {
                    *sum = _mm512_add_epi32(*sum, _mm512_madd_epi16(*narrow, ones));
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
        minus: [i32; T],
    ) -> [[Self::I; T]; N] {
        // SAFETY: `self` proves AVX-512 F and BW, and VNNI where that is used.
        unsafe { if VNNI { dot_bytes_vnni(codes, x, minus) } else { dot_bytes(codes, x) } }
    }

    #[inline(always)]
    fn splat_int(self, x: i32) -> Self::I {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_set1_epi32(x) }
    }

    #[inline(always)]
    fn to_float(self, a: Self::I) -> Self::F {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_cvtepi32_ps(a) }
    }

    #[inline(always)]
    fn to_bytes(self, a: Self::F) -> [i8; LANES] {
        let mut out = [0; LANES];
        // SAFETY: `self` proves AVX-512 F; `out` is one 128-bit register, written unaligned.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a))) }
        out
    }
}

/// Signs moved from the codes to `x`, since `maddubs` takes unsigned by signed bytes.
///
/// # Safety
/// The CPU must have AVX-512 F and BW.
#[inline(always)]
unsafe fn dot_bytes<const T: usize, const N: usize>(
    codes: impl Fn(usize, usize) -> __m512i,
    x: [&[i8; GROUP]; T],
) -> [[__m512i; T]; N] {
    // SAFETY: the caller's duty. |code| is at most 128 and |x| at most 127: two products are at most 32512,
    // so no `maddubs` saturates.
    unsafe {
        let (zero, ones) = (_mm512_setzero_si512(), _mm512_set1_epi16(1));
        let mut dots = [[zero; T]; N];
        for (n, sums) in dots.iter_mut().enumerate() {
            for step in 0..GROUP / 4 {
                let w = codes(n, step);
                let (magnitude, negative) = (_mm512_abs_epi8(w), _mm512_movepi8_mask(w));
                for t in 0..T {
                    let x = group(x[t], step);
                    let pairs = _mm512_maddubs_epi16(magnitude, _mm512_mask_sub_epi8(x, negative, zero, x));
                    sums[t] = in_order(_mm512_add_epi32(sums[t], _mm512_madd_epi16(pairs, ones)));
                }
            }
        }
        dots
    }
}

/// `sum w x = sum (w + 128) x - 128 sum x`, since `dpbusd` takes unsigned by signed bytes.
///
/// # Safety
/// The CPU must have AVX-512 F and VNNI.
#[inline(always)]
unsafe fn dot_bytes_vnni<const T: usize, const N: usize>(
    codes: impl Fn(usize, usize) -> __m512i,
    x: [&[i8; GROUP]; T],
    minus: [i32; T],
) -> [[__m512i; T]; N] {
    // SAFETY: the caller's duty. 16 products of at most 255 * 127 fit in 32 bits.
    unsafe {
        let mut start = [_mm512_setzero_si512(); T];
        for t in 0..T {
            start[t] = _mm512_set1_epi32(128 * minus[t]);
        }
        let mut dots = [start; N];
        add_products(
            &mut dots,
            // As a change of bits, what adds 128 to a signed byte.
            #[inline(always)]
            |n, step| _mm512_xor_si512(codes(n, step), _mm512_set1_epi8(-128)),
            x,
        );
        dots
    }
}

/// `dots[n][t] += sum_k codes[n,row,k] x[t][k]` for unsigned codes.
///
/// # Safety
/// The CPU must have AVX-512 F and VNNI.
#[inline(always)]
unsafe fn add_products<const T: usize, const N: usize>(
    dots: &mut [[__m512i; T]; N],
    codes: impl Fn(usize, usize) -> __m512i,
    x: [&[i8; GROUP]; T],
) {
    // SAFETY: the caller's duty.
    unsafe {
        add_step::<0, T, N>(dots, &codes, x);
        add_step::<1, T, N>(dots, &codes, x);
        add_step::<2, T, N>(dots, &codes, x);
        add_step::<3, T, N>(dots, &codes, x);
    }
}

/// The products of columns `4 STEP..4 STEP + 4`.
///
/// # Safety
/// The CPU must have AVX-512 F and VNNI.
#[inline(always)]
unsafe fn add_step<const STEP: usize, const T: usize, const N: usize>(
    dots: &mut [[__m512i; T]; N],
    codes: &impl Fn(usize, usize) -> __m512i,
    x: [&[i8; GROUP]; T],
) {
    let mut w = [codes(0, STEP); N];
    for n in 1..N {
        w[n] = codes(n, STEP);
    }
    for t in 0..T {
        // SAFETY: the caller's duty.
        unsafe {
            if N == 2 {
                [dots[0][t], dots[1][t]] = add_two::<STEP>([dots[0][t], dots[1][t]], [w[0], w[1]], x[t]);
            } else {
                for n in 0..N {
                    dots[n][t] = _mm512_dpbusd_epi32(dots[n][t], w[n], group(x[t], STEP));
                }
            }
        }
    }
}

/// The products of one row of activations and two strips. In assembly, since the compiler would load activations long before
/// it needs them and then run out of registers.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_two<const STEP: usize>(
    [mut first, mut second]: [__m512i; 2],
    w: [__m512i; 2],
    x: &[i8; GROUP],
) -> [__m512i; 2] {
    let _x: __m512i;
    // SAFETY: reads the four bytes of the step, which `x` has.
    unsafe {
        asm!(
            "vpbroadcastd {x}, dword ptr [{from} + {at}]",
            "vpdpbusd {first}, {w0}, {x}",
            "vpdpbusd {second}, {w1}, {x}",
            x = out(zmm_reg) _x,
            from = in(reg) x.as_ptr(),
            at = const 4 * STEP,
            w0 = in(zmm_reg) w[0],
            w1 = in(zmm_reg) w[1],
            first = inout(zmm_reg) first,
            second = inout(zmm_reg) second,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    [first, second]
}

/// Columns `4 step..4 step + 4` of `x`, for every row.
///
/// # Safety
/// The CPU must have AVX-512 F.
#[inline(always)]
unsafe fn group(x: &[i8; GROUP], step: usize) -> __m512i {
    let four: &[u8] = bytemuck::cast_slice(&x[4 * step..4 * step + 4]);
    // SAFETY: the caller's duty.
    unsafe { _mm512_set1_epi32(bytemuck::pod_read_unaligned(four)) }
}

/// `x`, which the compiler takes to depend on `sum`.
#[inline]
#[target_feature(enable = "avx512f")]
fn after<Q>(x: &Q, sum: __m512) -> &Q {
    let mut x = std::ptr::from_ref(x);
    // SAFETY: no instruction at all; the pointer only passes through its register.
    unsafe {
        asm!("/* {0} {1} */", inout(reg) x, in(zmm_reg) sum, options(pure, readonly, nostack, preserves_flags));
        &*x
    }
}

/// Keeps the compiler from turning a chain of additions into a tree, for which it would run out of registers.
#[inline]
#[target_feature(enable = "avx512f")]
fn in_order(mut sum: __m512i) -> __m512i {
    // SAFETY: no instruction at all; the operand only passes through its register.
    unsafe {
        asm!("/* {0} */", inout(zmm_reg) sum, options(pure, nomem, nostack, preserves_flags));
    }
    sum
}
