//! Instruction sets as values: code that needs one takes its token, and a token exists only where the CPU has it.
//!
//! Every kernel is written once, over [`Simd`]: sixteen lanes of f32 and the dot products of 8-bit codes.
//! An instruction set is one implementation of that trait. All of them do the same operations on the same
//! lanes in the same order, with one rounding per fused multiply-add, so **all give the same bits**.

use super::portable::Portable;

/// Rows of a strip, and f32 lanes of every vector operation.
pub const LANES: usize = 16;

/// Columns of integer codes that are multiplied between two additions to a row's sum, at most.
pub const BLOCK: usize = 32;

/// Columns of activations that share a scale when they are rounded to 8 bits: half a [`BLOCK`].
pub const GROUP: usize = 16;

/// How many `dot_unsigned` steps of four products each a signed 16-bit lane, which takes two of them, can add up.
#[cfg(target_arch = "x86_64")]
pub(super) const fn steps_in_16_bits(most: u8) -> usize {
    let steps = i16::MAX as usize / (2 * 127 * most as usize);
    if steps < GROUP / 4 { steps } else { GROUP / 4 }
}

/// The vector operations that kernels are written in.
pub trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32.
    type I: Copy;
    /// For each of sixteen rows, the codes of four consecutive columns.
    type Codes: Copy;

    /// Whether registers hold the sums of four rows of activations times two strips, rather than of two times one.
    const WIDE: bool;

    /// Whether registers hold the sums of eight rows of activations, too, times a strip of codes.
    const MANY_SUMS: bool = false;

    /// Runs `f` compiled for this instruction set. `f` must be inlined into it: `#[inline(always)]`.
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R;

    /// Asks for the memory `ahead` bytes after the start of `from`, wherever that is, to be brought near.
    #[inline(always)]
    fn prefetch<T>(self, _from: &T, _ahead: usize) {}

    /// `x`, from which nothing is loaded before `sum` is there, where else the compiler would run out of registers.
    #[inline(always)]
    fn after<Q>(self, x: &Q, _sum: Self::F) -> &Q {
        x
    }

    /// The unit that multiplies many rows, where the CPU has one and this may use it.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn tiles(self) -> Option<super::avx512::Tiles> {
        None
    }

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// Lane `i` is `x[i]`.
    fn load(self, x: &[f32; LANES]) -> Self::F;
    /// Lane `i` is the half `x[i]`.
    fn load_f16(self, x: &[u16; LANES]) -> Self::F;
    /// Lane `i` is the bfloat16 `x[i]`.
    fn load_bf16(self, x: &[u16; LANES]) -> Self::F;
    /// `out[i]` is lane `i`.
    fn store(self, x: Self::F, out: &mut [f32; LANES]);
    /// `out[i]` is lane `i` as half, ties to even.
    fn store_f16(self, x: Self::F, out: &mut [u16; LANES]);
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a` where `a > b`, else `b`.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a` where `a < b`, else `b`.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The magnitude.
    fn abs(self, a: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// `2^n` for integral `n` in `-126..=127`.
    fn exp2(self, n: Self::F) -> Self::F;
    /// The sum of the lanes: halves folded together until one is left.
    fn sum(self, a: Self::F) -> f32;
    /// The largest lane.
    fn largest(self, a: Self::F) -> f32;

    /// Lane `i` is byte `x[i]`.
    fn load_i8(self, x: &[i8; LANES]) -> Self::F;
    /// Lane `i` is the `width` bits of byte `x[i]` from bit `shift` on, without sign. Both are constants where this is inlined.
    fn load_bits(self, x: &[u8; LANES], shift: u32, width: u32) -> Self::F;

    /// The bytes as they are.
    fn load_codes(self, bytes: &[u8; 4 * LANES]) -> Self::Codes;
    /// `out` is the bytes.
    fn store_codes(self, codes: Self::Codes, out: &mut [u8; 4 * LANES]);
    /// The `width` bits of each byte from bit `shift` on. Both are constants where this is inlined.
    fn bits(self, bytes: &[u8; 4 * LANES], shift: u32, width: u32) -> Self::Codes;
    /// Twice the bit `bit` of each byte; a constant where this is inlined.
    fn twos(self, bytes: &[u8; 4 * LANES], bit: u32) -> Self::Codes;
    /// `low + high 2^shift` of each byte, where they have no bit in common.
    fn join(self, low: Self::Codes, high: Self::Codes, shift: u32) -> Self::Codes;
    /// `table[c]` of each byte `c`, which must be below 16.
    fn lookup(self, table: &[u8; 16], codes: Self::Codes) -> Self::Codes;
    /// `start[t] + sum_k codes[n,row,k] x[t][k]` over one group, exactly, for each of `N` strips; codes are unsigned, at most
    /// `most <= 127`; `codes(n, j)` gives columns `4 j..4 j + 4` of strip `n`. `x` must not hold -128.
    fn dot_unsigned<const T: usize, const N: usize>(
        self,
        codes: impl Fn(usize, usize) -> Self::Codes,
        most: u8,
        x: [&[i8; GROUP]; T],
        start: [Self::I; T],
    ) -> [[Self::I; T]; N];
    /// The codes of two steps, in the order in which [`Simd::dot_paired`] takes them.
    #[inline(always)]
    fn pair(self, codes: [Self::Codes; 2]) -> [Self::Codes; 2] {
        codes
    }
    /// As [`Simd::dot_unsigned`], where `codes(n, 2 i)` and `codes(n, 2 i + 1)` are what [`Simd::pair`] gave: for codes that meet
    /// many rows of activations.
    #[inline(always)]
    fn dot_paired<const T: usize, const N: usize>(
        self,
        codes: impl Fn(usize, usize) -> Self::Codes,
        most: u8,
        x: [&[i8; GROUP]; T],
        start: [Self::I; T],
    ) -> [[Self::I; T]; N] {
        self.dot_unsigned(codes, most, x, start)
    }
    /// `sum_k codes[n,row,k] x[t][k]` likewise for signed 8-bit codes; `minus[t]` is minus the sum of `x[t]`.
    fn dot_bytes<const T: usize, const N: usize>(
        self,
        codes: impl Fn(usize, usize) -> Self::Codes,
        x: [&[i8; GROUP]; T],
        minus: [i32; T],
    ) -> [[Self::I; T]; N];
    /// `x` in every lane.
    fn splat_int(self, x: i32) -> Self::I;
    /// As f32, exact up to 2^24.
    fn to_float(self, a: Self::I) -> Self::F;
    /// 8-bit codes of sixteen integral values in `-127..=127`.
    fn to_bytes(self, a: Self::F) -> [i8; LANES];
}

/// A computation written over [`Simd`]. `run` must be `#[inline(always)]`.
pub trait Kernel {
    /// What it gives back.
    type Out;
    /// Computes with the operations of `s`.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

macro_rules! isas {
    ($($(#[doc = $doc:literal])* $(#[cfg($cfg:meta)])? $variant:ident($token:path) = $name:literal;)*) => {
        /// An instruction set that this CPU has.
        #[derive(Clone, Copy, Debug)]
        #[non_exhaustive]
        pub enum Isa { $($(#[doc = $doc])* $(#[cfg($cfg)])? $variant($token),)* }

        impl Isa {
            /// Every instruction set that this CPU has, slowest first. The first is always [`Portable`].
            pub fn all() -> Vec<Isa> {
                let mut all = Vec::new();
                $($(#[cfg($cfg)])? all.extend(<$token>::new().map(Isa::$variant));)*
                #[cfg(target_arch = "x86_64")]
                all.extend(super::avx512::Avx512Vnni::with_tiles().map(Isa::Avx512Vnni));
                all
            }

            /// A short name, such as `avx2`.
            pub fn name(self) -> &'static str {
                match self {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512Vnni(_) if self.tiles() => "avx512amx",
                    $($(#[cfg($cfg)])? Isa::$variant(_) => $name,)*
                }
            }

            /// Runs a kernel with this instruction set.
            #[inline]
            pub fn run<K: Kernel>(self, kernel: K) -> K::Out {
                match self {
                    $($(#[cfg($cfg)])? Isa::$variant(s) => s.vectorize(#[inline(always)] || kernel.run(s)),)*
                }
            }
        }
    };
}

isas! {
    /// Plain Rust: the definition.
    Portable(Portable) = "portable";
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(super::avx2::Avx2) = "avx2";
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512(super::avx512::Avx512) = "avx512";
    /// AVX-512 with VNNI; and, as `avx512amx`, with AMX for many rows.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(super::avx512::Avx512Vnni) = "avx512vnni";
    /// NEON, which every aarch64 has.
    #[cfg(target_arch = "aarch64")]
    Neon(super::neon::Neon1) = "neon";
    /// NEON with the dot product.
    #[cfg(target_arch = "aarch64")]
    NeonDot(super::neon::Neon4) = "neondot";
    /// NEON with the matrix product of 8-bit integers.
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(super::neon::Neon8) = "neoni8mm";
}

impl Isa {
    /// The fastest instruction set that this CPU has.
    pub fn best() -> Isa {
        Self::all().pop().unwrap_or(Isa::Portable(Portable))
    }

    /// Whether many rows are multiplied on a matrix unit.
    pub fn tiles(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(s) => s.tiles().is_some(),
            _ => false,
        }
    }

    /// The instruction set with this name, if this CPU has it.
    pub fn named(name: &str) -> Option<Isa> {
        Self::all().into_iter().find(|isa| isa.name() == name)
    }
}
