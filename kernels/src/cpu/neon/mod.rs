//! NEON, alone, with dot products and with matrix products of 8-bit integers: sixteen lanes are four registers.
//!
//! The three differ in the integer dot products alone, so they are one type with a constant for the difference.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::isa::{GROUP, LANES, Simd};

/// Proof that this CPU has NEON and an instruction that multiplies so many columns of a row and sums the products: `smlal`, which
/// sums none, for 1, `sdot` for 4, `smmla` for 8.
#[derive(Clone, Copy, Debug)]
pub struct Neon<const COLUMNS: usize>(());

/// What every aarch64 has.
pub type Neon1 = Neon<1>;

/// NEON with the dot product, of 2016.
pub type Neon4 = Neon<4>;

/// NEON with the matrix product of 8-bit integers too, of 2019.
pub type Neon8 = Neon<8>;

impl<const COLUMNS: usize> Neon<COLUMNS> {
    /// The token, where the CPU has all parts.
    pub fn new() -> Option<Self> {
        let has = is_aarch64_feature_detected!("neon")
            && (COLUMNS < 4 || is_aarch64_feature_detected!("dotprod"))
            && (COLUMNS < 8 || is_aarch64_feature_detected!("i8mm"));
        has.then_some(Self(()))
    }
}

/// An expression for each register of some vectors.
macro_rules! each {
    ($($v:ident in $x:expr),+ => $body:expr) => {{
        let ($($v,)+) = ($($x,)+);
        // SAFETY: the caller holds a `Neon`, so the CPU has what the expression needs.
        unsafe {
            [
                each!(0, $($v),+ => $body),
                each!(1, $($v),+ => $body),
                each!(2, $($v),+ => $body),
                each!(3, $($v),+ => $body),
            ]
        }
    }};
    ($i:literal, $($v:ident),+ => $body:expr) => {{
        $(let $v = $v[$i];)+
        $body
    }};
}

/// Folds the lanes together in the order of [`super::portable`].
macro_rules! fold {
    ($x:expr, $f:ident) => {{
        let x = $x;
        // SAFETY: the caller holds a `Neon`.
        unsafe {
            let x = $f($f(x[0], x[2]), $f(x[1], x[3]));
            let x = $f(x, vextq_f32::<2>(x, x));
            vgetq_lane_f32::<0>($f(x, vextq_f32::<1>(x, x)))
        }
    }};
}

impl<const COLUMNS: usize> Simd for Neon<COLUMNS> {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type Codes = [uint8x16_t; 4];
    const WIDE: bool = false;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "neon")]
        fn plain<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        #[target_feature(enable = "neon,dotprod")]
        fn dot<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        #[target_feature(enable = "neon,dotprod,i8mm")]
        fn matrix<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe {
            match COLUMNS {
                1 => plain(f),
                4 => dot(f),
                _ => matrix(f),
            }
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, from: &T, ahead: usize) {
        let address = std::ptr::from_ref(from).cast::<u8>().wrapping_add(ahead);
        // SAFETY: a hint; it reads nothing that the program could see, and may name any address.
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) address, options(readonly, nostack, preserves_flags)) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: `self` proves NEON.
        unsafe { [vdupq_n_f32(x); 4] }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        let x = x.as_chunks::<4>().0;
        each!(x in x => vld1q_f32(x.as_ptr()))
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Self::F {
        let x = x.as_chunks::<4>().0;
        each!(x in x => {
            let halves = vld1_u16(x.as_ptr());
            let wide: float32x4_t;
            asm!(
                "fcvtl {0:v}.4s, {1:v}.4h",
                lateout(vreg) wide,
                in(vreg) halves,
                options(pure, nomem, nostack, preserves_flags)
            );
            wide
        })
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Self::F {
        let x = x.as_chunks::<4>().0;
        each!(x in x => vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(x.as_ptr()))))
    }

    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; LANES]) {
        for (x, out) in x.into_iter().zip(out.as_chunks_mut::<4>().0) {
            // SAFETY: `self` proves NEON; `out` is one register, written unaligned.
            unsafe { vst1q_f32(out.as_mut_ptr(), x) }
        }
    }

    #[inline(always)]
    fn store_f16(self, x: Self::F, out: &mut [u16; LANES]) {
        for (x, out) in x.into_iter().zip(out.as_chunks_mut::<4>().0) {
            let halves: uint16x4_t;
            // SAFETY: `self` proves NEON; `out` is half a register, written unaligned.
            unsafe {
                asm!(
                    "fcvtn {0:v}.4h, {1:v}.4s",
                    lateout(vreg) halves,
                    in(vreg) x,
                    options(pure, nomem, nostack, preserves_flags)
                );
                vst1_u16(out.as_mut_ptr(), halves);
            }
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        each!(a in a, b in b => vaddq_f32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        each!(a in a, b in b => vsubq_f32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        each!(a in a, b in b => vmulq_f32(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        each!(a in a, b in b => vdivq_f32(a, b))
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each!(a in a, b in b, c in c => vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        each!(a in a, b in b => larger(a, b))
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        each!(a in a, b in b => vbslq_f32(greater(b, a), a, b))
    }

    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        each!(a in a => vabsq_f32(a))
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        each!(a in a => vrndnq_f32(a))
    }

    #[inline(always)]
    fn exp2(self, n: Self::F) -> Self::F {
        each!(n in n => {
            let biased = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
        })
    }

    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        fold!(a, vaddq_f32)
    }

    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        fold!(a, larger)
    }

    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Self::F {
        // SAFETY: `self` proves NEON; `x` is one register, read unaligned.
        let x = unsafe {
            let x = vld1q_s8(x.as_ptr());
            let (low, high) = (vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x));
            [
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ]
        };
        self.to_float(x)
    }

    #[inline(always)]
    fn load_bits(self, x: &[u8; LANES], shift: u32, width: u32) -> Self::F {
        // SAFETY: `self` proves NEON; `x` is one register, read unaligned.
        let x = unsafe {
            let x = field(vld1q_u8(x.as_ptr()), shift, width);
            let (low, high) = (vmovl_u8(vget_low_u8(x)), vmovl_high_u8(x));
            [
                vmovl_u16(vget_low_u16(low)),
                vmovl_high_u16(low),
                vmovl_u16(vget_low_u16(high)),
                vmovl_high_u16(high),
            ]
        };
        each!(x in x => vcvtq_f32_u32(x))
    }

    #[inline(always)]
    fn load_codes(self, bytes: &[u8; 4 * LANES]) -> Self::Codes {
        let bytes = bytes.as_chunks::<16>().0;
        each!(b in bytes => vld1q_u8(b.as_ptr()))
    }

    #[inline(always)]
    fn store_codes(self, codes: Self::Codes, out: &mut [u8; 4 * LANES]) {
        for (codes, out) in codes.into_iter().zip(out.as_chunks_mut::<16>().0) {
            // SAFETY: `self` proves NEON; `out` is one register, written unaligned.
            unsafe { vst1q_u8(out.as_mut_ptr(), codes) }
        }
    }

    #[inline(always)]
    fn bits(self, bytes: &[u8; 4 * LANES], shift: u32, width: u32) -> Self::Codes {
        each!(b in self.load_codes(bytes) => field(b, shift, width))
    }

    #[inline(always)]
    fn twos(self, bytes: &[u8; 4 * LANES], bit: u32) -> Self::Codes {
        each!(b in self.load_codes(bytes) => {
            vandq_u8(vshlq_u8(b, vdupq_n_s8(1 - bit as i8)), vdupq_n_u8(2))
        })
    }

    #[inline(always)]
    fn join(self, low: Self::Codes, high: Self::Codes, shift: u32) -> Self::Codes {
        each!(low in low, high in high => vorrq_u8(low, vshlq_u8(high, vdupq_n_s8(shift as i8))))
    }

    #[inline(always)]
    fn lookup(self, table: &[u8; 16], codes: Self::Codes) -> Self::Codes {
        each!(c in codes => vqtbl1q_u8(vld1q_u8(table.as_ptr()), c))
    }

    #[inline(always)]
    fn dot_unsigned<const T: usize, const N: usize>(
        self,
        codes: impl Fn(usize, usize) -> Self::Codes,
        most: u8,
        x: [&[i8; GROUP]; T],
        start: [Self::I; T],
    ) -> [[Self::I; T]; N] {
        // SAFETY: `self` is the proof.
        unsafe { dot::<COLUMNS, T, N>(codes, most, x, start) }
    }

    #[inline(always)]
    fn pair(self, [a, b]: [Self::Codes; 2]) -> [Self::Codes; 2] {
        if COLUMNS < 8 {
            return [a, b];
        }
        let [a, b] = [each!(a in a => vreinterpretq_u32_u8(a)), each!(b in b => vreinterpretq_u32_u8(b))];
        [
            each!(a in a, b in b => vreinterpretq_u8_u32(vzip1q_u32(a, b))),
            each!(a in a, b in b => vreinterpretq_u8_u32(vzip2q_u32(a, b))),
        ]
    }

    #[inline(always)]
    fn dot_paired<const T: usize, const N: usize>(
        self,
        codes: impl Fn(usize, usize) -> Self::Codes,
        most: u8,
        x: [&[i8; GROUP]; T],
        start: [Self::I; T],
    ) -> [[Self::I; T]; N] {
        if COLUMNS < 8 {
            return self.dot_unsigned(codes, most, x, start);
        }
        // SAFETY: `self` is the proof.
        unsafe { dot_paired(codes, x, start) }
    }

    #[inline(always)]
    fn dot_bytes<const T: usize, const N: usize>(
        self,
        codes: impl Fn(usize, usize) -> Self::Codes,
        x: [&[i8; GROUP]; T],
        _: [i32; T],
    ) -> [[Self::I; T]; N] {
        // SAFETY: `self` is the proof.
        unsafe { dot::<COLUMNS, T, N>(codes, 128, x, [self.splat_int(0); T]) }
    }

    #[inline(always)]
    fn splat_int(self, x: i32) -> Self::I {
        // SAFETY: `self` proves NEON.
        unsafe { [vdupq_n_s32(x); 4] }
    }

    #[inline(always)]
    fn to_float(self, a: Self::I) -> Self::F {
        each!(a in a => vcvtq_f32_s32(a))
    }

    #[inline(always)]
    fn to_bytes(self, a: Self::F) -> [i8; LANES] {
        let a = each!(a in a => vqmovn_s32(vcvtq_s32_f32(a)));
        let mut out = [0; LANES];
        // SAFETY: `self` proves NEON; `out` is one register, written unaligned.
        unsafe {
            let [low, high] = [vcombine_s16(a[0], a[1]), vcombine_s16(a[2], a[3])];
            vst1q_s8(out.as_mut_ptr(), vqmovn_high_s16(vqmovn_s16(low), high));
        }
        out
    }
}

/// All bits of the lanes where `a > b`. In assembly, since the compiler would make `fmaxnm` of this and a selection, which gives something
/// else for a signalling NaN.
///
/// # Safety
/// The CPU must have NEON.
#[inline(always)]
unsafe fn greater(a: float32x4_t, b: float32x4_t) -> uint32x4_t {
    let mask;
    // SAFETY: works on registers alone; the CPU has the instruction.
    unsafe {
        asm!(
            "fcmgt {mask:v}.4s, {a:v}.4s, {b:v}.4s",
            mask = lateout(vreg) mask,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    mask
}

/// `a` where `a > b`, else `b`.
///
/// # Safety
/// The CPU must have NEON.
#[inline(always)]
unsafe fn larger(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: the caller's duty.
    unsafe { vbslq_f32(greater(a, b), a, b) }
}

/// The `width` bits of each byte from bit `shift` on.
///
/// # Safety
/// The CPU must have NEON.
#[inline(always)]
unsafe fn field(bytes: uint8x16_t, shift: u32, width: u32) -> uint8x16_t {
    // SAFETY: the caller's duty. A shift by less than nothing goes to the right.
    unsafe {
        let moved = vshlq_u8(bytes, vdupq_n_s8(-(shift as i8)));
        if shift + width == 8 { moved } else { vandq_u8(moved, vdupq_n_u8(0xff >> (8 - width))) }
    }
}

/// `start[t] + sum_k codes[n,row,k] x[t][k]` for codes with sign whose magnitude is at most `most`; those without are the same with
/// one, being at most 127.
///
/// # Safety
/// The CPU must have what a `Neon<COLUMNS>` proves.
#[inline(always)]
unsafe fn dot<const COLUMNS: usize, const T: usize, const N: usize>(
    codes: impl Fn(usize, usize) -> [uint8x16_t; 4],
    most: u8,
    x: [&[i8; GROUP]; T],
    start: [[int32x4_t; 4]; T],
) -> [[[int32x4_t; 4]; T]; N] {
    let mut dots = [start; N];
    for n in 0..N {
        let w = [codes(n, 0), codes(n, 1), codes(n, 2), codes(n, 3)];
        // SAFETY: the caller's duty.
        unsafe {
            add_group::<COLUMNS, 0, T>(&mut dots[n], w, most, x);
            add_group::<COLUMNS, 1, T>(&mut dots[n], w, most, x);
            add_group::<COLUMNS, 2, T>(&mut dots[n], w, most, x);
            add_group::<COLUMNS, 3, T>(&mut dots[n], w, most, x);
        }
    }
    dots
}

/// Adds the products of a group to the sums in register `R`.
///
/// # Safety
/// The CPU must have what a `Neon<COLUMNS>` proves.
#[inline(always)]
unsafe fn add_group<const COLUMNS: usize, const R: usize, const T: usize>(
    sums: &mut [[int32x4_t; 4]; T],
    w: [[uint8x16_t; 4]; 4],
    most: u8,
    x: [&[i8; GROUP]; T],
) {
    // SAFETY: the caller's duty.
    unsafe {
        let w = w.map(
            #[inline(always)]
            |w| vreinterpretq_s8_u8(w[R]),
        );
        for t in 0..T {
            sums[t][R] = match COLUMNS {
                1 => add_products(sums[t][R], w, most, x[t]),
                _ => add_dots(sums[t][R], w, x[t]),
            };
        }
    }
}

/// `sum`, of four rows, with the products of a group added. Steps are summed in 16 bits as far as they fit: all four of them, and
/// both halves of a row, if codes are small, else two.
///
/// # Safety
/// The CPU must have NEON.
#[inline(always)]
unsafe fn add_products(sum: int32x4_t, w: [int8x16_t; 4], most: u8, x: &[i8; GROUP]) -> int32x4_t {
    let small = most <= 32;
    // SAFETY: the caller's duty. Two products are at most 2 * 128 * 127 = 32512, eight of small codes 8 * 32 * 127 = 32512 too.
    unsafe {
        let none = [vdupq_n_s16(0); 2];
        let first = add_step(none, w[0], step(x, 0));
        let first = add_step(first, w[1], step(x, 1));
        let second = add_step(if small { first } else { none }, w[2], step(x, 2));
        let second = add_step(second, w[3], step(x, 3));
        if small {
            return vpadalq_s16(sum, vpaddq_s16(second[0], second[1]));
        }
        let low = vpadalq_s16(vpaddlq_s16(first[0]), second[0]);
        let high = vpadalq_s16(vpaddlq_s16(first[1]), second[1]);
        vaddq_s32(sum, vpaddq_s32(low, high))
    }
}

/// `sums[half] + w x`, a lane for each product.
///
/// # Safety
/// The CPU must have NEON.
#[inline(always)]
unsafe fn add_step(sums: [int16x8_t; 2], w: int8x16_t, x: int8x16_t) -> [int16x8_t; 2] {
    // SAFETY: the caller's duty.
    unsafe { [vmlal_s8(sums[0], vget_low_s8(w), vget_low_s8(x)), vmlal_high_s8(sums[1], w, x)] }
}

/// Columns `4 i..4 i + 4` of `x`, for every row.
///
/// # Safety
/// The CPU must have NEON.
#[inline(always)]
unsafe fn step(x: &[i8; GROUP], i: usize) -> int8x16_t {
    let four: &[u8] = bytemuck::cast_slice(&x[4 * i..4 * i + 4]);
    // SAFETY: the caller's duty.
    unsafe { vreinterpretq_s8_s32(vdupq_n_s32(bytemuck::pod_read_unaligned(four))) }
}

/// `sum`, of four rows, with the products of a group added.
///
/// # Safety
/// The CPU must have NEON and the dot product.
#[inline(always)]
unsafe fn add_dots(sum: int32x4_t, w: [int8x16_t; 4], x: &[i8; GROUP]) -> int32x4_t {
    // SAFETY: the caller's duty; `x` is one register, read unaligned.
    unsafe {
        let x = vld1q_s8(x.as_ptr());
        let sum = sdot::<0>(sum, w[0], x);
        let sum = sdot::<1>(sum, w[1], x);
        let sum = sdot::<2>(sum, w[2], x);
        sdot::<3>(sum, w[3], x)
    }
}

/// `sum[row] + sum_k w[row,k] x[4 STEP + k]`, over four columns of four rows.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot<const STEP: usize>(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: works on registers alone; the CPU has the instruction.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.4b[{step}]",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            x = in(vreg) x,
            step = const STEP,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// `start[t] + sum_k codes[n,row,k] x[t][k]`, for two rows of activations at a time, of codes of which two steps of two rows lie
/// side by side.
///
/// # Safety
/// The CPU must have NEON and the matrix product.
#[inline(always)]
unsafe fn dot_paired<const T: usize, const N: usize>(
    codes: impl Fn(usize, usize) -> [uint8x16_t; 4],
    x: [&[i8; GROUP]; T],
    start: [[int32x4_t; 4]; T],
) -> [[[int32x4_t; 4]; T]; N] {
    let mut dots = [start; N];
    for n in 0..N {
        let w = [codes(n, 0), codes(n, 1), codes(n, 2), codes(n, 3)];
        for first in (0..T).step_by(2) {
            // An odd last row meets itself.
            let second = if first + 1 < T { first + 1 } else { first };
            for r in 0..4 {
                let w = [w[0][r], w[1][r], w[2][r], w[3][r]];
                // SAFETY: the caller's duty.
                [dots[n][first][r], dots[n][second][r]] =
                    unsafe { add_two([start[first][r], start[second][r]], w, [x[first], x[second]]) };
            }
        }
    }
    dots
}

/// The sums of four rows with each of two rows of activations, with the products of a group added.
///
/// # Safety
/// The CPU must have NEON and the matrix product.
#[inline(always)]
unsafe fn add_two(sums: [int32x4_t; 2], w: [uint8x16_t; 4], x: [&[i8; GROUP]; 2]) -> [int32x4_t; 2] {
    // SAFETY: the caller's duty; each of `x` is one register, read unaligned.
    unsafe {
        let x =
            [vreinterpretq_s64_s8(vld1q_s8(x[0].as_ptr())), vreinterpretq_s64_s8(vld1q_s8(x[1].as_ptr()))];
        let x = [vzip1q_s64(x[0], x[1]), vzip2q_s64(x[0], x[1])];
        // Two rows of codes by two of activations.
        let low = smmla(smmla(vzip1q_s32(sums[0], sums[1]), w[0], x[0]), w[2], x[1]);
        let high = smmla(smmla(vzip2q_s32(sums[0], sums[1]), w[1], x[0]), w[3], x[1]);
        [vuzp1q_s32(low, high), vuzp2q_s32(low, high)]
    }
}

/// `sum[row,t] + sum_k w[row,k] x[t,k]`, over eight columns of two rows of each.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn smmla(mut sum: int32x4_t, w: uint8x16_t, x: int64x2_t) -> int32x4_t {
    // SAFETY: works on registers alone; the CPU has the instruction.
    unsafe {
        asm!(
            "smmla {sum:v}.4s, {w:v}.16b, {x:v}.16b",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}
