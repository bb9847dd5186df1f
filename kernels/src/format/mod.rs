//! Block formats: how a row of weights is cut into blocks, and what the bytes of a block mean.
//!
//! A new format is one file beside this one (its struct, `decode`, `encode` and how sixteen rows of it
//! are laid side by side for the CPU kernels) and one line of the table below: ids, names, sizes, tests and benches follow from it.

use std::fmt;

use bytemuck::Pod;

use crate::cpu::isa::LANES;
use crate::cpu::strip::Strip;

pub mod bf16;
pub mod f16;
pub mod f32;
mod grid;
pub mod i8;
pub mod iq1_m;
pub mod iq1_s;
pub mod iq2_s;
pub mod iq2_xs;
pub mod iq2_xxs;
pub mod iq3_s;
pub mod iq3_xxs;
pub mod iq4_nl;
pub mod iq4_xs;
mod levels;
pub mod mxfp4;
pub mod nvfp4;
mod plane;
mod points;
pub mod q1_0;
pub mod q2_0;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
mod search;
pub mod sign;
pub mod tq1_0;
pub mod tq2_0;
pub mod w;
mod weighted;

/// One block of a format: plain bytes without alignment, little-endian.
pub trait Block: Pod + Send + Sync {
    /// Values in a block.
    const LEN: usize;
    /// How the CPU kernels lay sixteen rows of this format side by side.
    type Strip: Strip<Block = Self>;

    /// Writes the block's `LEN` values to `out`.
    fn decode(&self, out: &mut [f32]);

    /// The block nearest to the `LEN` values of `x`, of ggml's formats chosen exactly as ggml's reference quantizer does, but for those
    /// whose codes are points of a grid, which have a search of our own.
    fn encode(x: &[f32]) -> Self;

    /// The block for which `sum_i w[i] (y[i] - x[i])^2` is small, `y` its values: never larger than that of [`Self::encode`]. `w` are
    /// `LEN` finite numbers above 0, how much each value matters. Formats without a search of their own leave it out of account.
    fn encode_weighted(x: &[f32], _w: &[f32]) -> Self {
        Self::encode(x)
    }
}

/// Code that is generic over the block type of a [`Format`] known only at run time: see [`Format::visit`].
pub trait Visitor {
    /// What the visit gives back.
    type Out;
    /// Called with the block type of the format visited.
    fn visit<B: Block>(self) -> Self::Out;
}

/// The number of the first format that ggml does not have.
const OWN: u32 = 0x1000;

macro_rules! formats {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $name:literal, $block:path;)*) => {
        /// A block format of weights. Below 0x1000 its number is the id that GGUF files use for it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Format { $($(#[$doc])* $variant = $id,)* }

        impl Format {
            /// Every format, in the order of the table.
            pub const ALL: &[Format] = &[$(Format::$variant),*];

            /// Its name, such as `Q4_1`: of ggml's formats the one that ggml and GGUF tools use.
            pub fn name(self) -> &'static str {
                match self { $(Format::$variant => $name,)* }
            }

            /// Runs `visitor` with this format's block type: the one `match` on formats there is.
            pub fn visit<V: Visitor>(self, visitor: V) -> V::Out {
                match self { $(Format::$variant => visitor.visit::<$block>(),)* }
            }
        }
    };
}

formats! {
    /// IEEE single precision.
    F32 = 0, "F32", f32::BlockF32;
    /// IEEE half precision.
    F16 = 1, "F16", f16::BlockF16;
    /// 4-bit codes of 32 values with one scale.
    Q4_0 = 2, "Q4_0", q4_0::BlockQ4_0;
    /// 4-bit codes of 32 values with a scale and a minimum.
    Q4_1 = 3, "Q4_1", q4_1::BlockQ4_1;
    /// 5-bit codes of 32 values with one scale.
    Q5_0 = 6, "Q5_0", q5_0::BlockQ5_0;
    /// 5-bit codes of 32 values with a scale and a minimum.
    Q5_1 = 7, "Q5_1", q5_1::BlockQ5_1;
    /// 8-bit codes of 32 values with one scale.
    Q8_0 = 8, "Q8_0", q8_0::BlockQ8_0;
    /// 2-bit codes of 256 values, a scale and a minimum for each 16.
    Q2K = 10, "Q2_K", q2_k::BlockQ2K;
    /// 3-bit codes of 256 values, a scale for each 16.
    Q3K = 11, "Q3_K", q3_k::BlockQ3K;
    /// 4-bit codes of 256 values, a scale and a minimum for each 32.
    Q4K = 12, "Q4_K", q4_k::BlockQ4K;
    /// 5-bit codes of 256 values, a scale and a minimum for each 32.
    Q5K = 13, "Q5_K", q5_k::BlockQ5K;
    /// 6-bit codes of 256 values, a scale for each 16.
    Q6K = 14, "Q6_K", q6_k::BlockQ6K;
    /// Eight of 256 values are one of 256 points with signs, a scale for each 32.
    IQ2XXS = 16, "IQ2_XXS", iq2_xxs::BlockIQ2XXS;
    /// Eight of 256 values are one of 512 points with signs, a scale for each 16.
    IQ2XS = 17, "IQ2_XS", iq2_xs::BlockIQ2XS;
    /// Four of 256 values are one of 256 points with signs, a scale for each 32.
    IQ3XXS = 18, "IQ3_XXS", iq3_xxs::BlockIQ3XXS;
    /// Eight of 256 values are one of 2048 points, a scale and a shift for each 32.
    IQ1S = 19, "IQ1_S", iq1_s::BlockIQ1S;
    /// 4-bit codes of uneven levels of 32 values with one scale.
    IQ4NL = 20, "IQ4_NL", iq4_nl::BlockIQ4NL;
    /// Four of 256 values are one of 512 points with signs, a scale for each 32.
    IQ3S = 21, "IQ3_S", iq3_s::BlockIQ3S;
    /// Eight of 256 values are one of 1024 points with signs, a scale for each 16.
    IQ2S = 22, "IQ2_S", iq2_s::BlockIQ2S;
    /// 4-bit codes of uneven levels of 256 values, a scale for each 32.
    IQ4XS = 23, "IQ4_XS", iq4_xs::BlockIQ4XS;
    /// Eight of 256 values are one of 2048 points with a shift, a scale for each 16.
    IQ1M = 29, "IQ1_M", iq1_m::BlockIQ1M;
    /// bfloat16: the upper half of a single.
    BF16 = 30, "BF16", bf16::BlockBF16;
    /// 256 values of -1, 0 and 1 with one scale, five in a byte.
    TQ1_0 = 34, "TQ1_0", tq1_0::BlockTQ1_0;
    /// 256 values of -1, 0 and 1 with one scale, four in a byte.
    TQ2_0 = 35, "TQ2_0", tq2_0::BlockTQ2_0;
    /// 4-bit floats of 32 values with a power of two.
    MXFP4 = 39, "MXFP4", mxfp4::BlockMXFP4;
    /// 4-bit floats of 64 values, a float of 8 bits as scale for each 16.
    NVFP4 = 40, "NVFP4", nvfp4::BlockNVFP4;
    /// Signs of 128 values with one scale.
    Q1_0 = 41, "Q1_0", q1_0::BlockQ1_0;
    /// 2-bit codes of 64 values with one scale.
    Q2_0 = 42, "Q2_0", q2_0::BlockQ2_0;
    /// Signed bytes without a scale.
    I8 = 0x1000, "I8", i8::BlockI8;
    /// Signs: 1 or -1, without a scale.
    Sign = 0x1001, "SIGN", sign::BlockSign;
    /// 2-bit codes of 32 values with a scale and a zero point.
    W2G32 = 0x1010, "W2G32", w::BlockW<2, 1>;
    /// 2-bit codes of 64 values with a scale and a zero point.
    W2G64 = 0x1011, "W2G64", w::BlockW<2, 2>;
    /// 2-bit codes of 128 values with a scale and a zero point.
    W2G128 = 0x1012, "W2G128", w::BlockW<2, 4>;
    /// 3-bit codes of 32 values with a scale and a zero point.
    W3G32 = 0x1020, "W3G32", w::BlockW<3, 1>;
    /// 3-bit codes of 64 values with a scale and a zero point.
    W3G64 = 0x1021, "W3G64", w::BlockW<3, 2>;
    /// 3-bit codes of 128 values with a scale and a zero point.
    W3G128 = 0x1022, "W3G128", w::BlockW<3, 4>;
    /// 8-bit codes of 32 values with a scale and a zero point.
    W8G32 = 0x1030, "W8G32", w::BlockW<8, 1>;
    /// 8-bit codes of 64 values with a scale and a zero point.
    W8G64 = 0x1031, "W8G64", w::BlockW<8, 2>;
    /// 8-bit codes of 128 values with a scale and a zero point.
    W8G128 = 0x1032, "W8G128", w::BlockW<8, 4>;
}

impl Format {
    /// The id in GGUF files, of formats that ggml has too.
    pub fn ggml_id(self) -> Option<u32> {
        Some(self as u32).filter(|&id| id < OWN)
    }

    /// The format with this GGUF id, if it is one that we have too.
    pub fn from_ggml_id(id: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|f| f.ggml_id() == Some(id))
    }

    /// The format that a row of `cols` values takes in codes of `bits` bits with a scale and a zero point ([`w`]): that with the longest
    /// groups, of 128, 64 or 32 values, which are whole. `None` if there is none: of other bits than 2, 3 and 8, or other rows.
    pub fn coded(bits: u32, cols: usize) -> Option<Self> {
        let longest_first = match bits {
            2 => [Self::W2G128, Self::W2G64, Self::W2G32],
            3 => [Self::W3G128, Self::W3G64, Self::W3G32],
            8 => [Self::W8G128, Self::W8G64, Self::W8G32],
            _ => return None,
        };
        longest_first.into_iter().find(|format| cols.is_multiple_of(format.block_len()))
    }

    /// The format with this name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|f| f.name().eq_ignore_ascii_case(name))
    }

    /// Whether [`Strips`](crate::Strips) of it have a fixed layout.
    pub fn has_strips(self) -> bool {
        struct Has;
        impl Visitor for Has {
            type Out = bool;
            fn visit<B: Block>(self) -> bool {
                <B::Strip as Strip>::UNPACK.is_some()
            }
        }
        self.visit(Has)
    }

    /// Values in a block.
    pub fn block_len(self) -> usize {
        struct Len;
        impl Visitor for Len {
            type Out = usize;
            fn visit<B: Block>(self) -> usize {
                B::LEN
            }
        }
        self.visit(Len)
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        struct Size;
        impl Visitor for Size {
            type Out = usize;
            fn visit<B: Block>(self) -> usize {
                size_of::<B>()
            }
        }
        self.visit(Size)
    }

    /// Decodes whole blocks. Panics unless `bytes` and `out` are the same number of blocks.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        struct Decode<'a>(&'a [u8], &'a mut [f32]);
        impl Visitor for Decode<'_> {
            type Out = ();
            fn visit<B: Block>(self) {
                let blocks: &[B] = bytemuck::cast_slice(self.0);
                assert_eq!(blocks.len() * B::LEN, self.1.len(), "blocks and values differ in number");
                for (block, out) in blocks.iter().zip(self.1.chunks_exact_mut(B::LEN)) {
                    block.decode(out);
                }
            }
        }
        self.visit(Decode(bytes, out))
    }

    /// Encodes whole blocks. Panics unless `x` and `bytes` are the same number of blocks.
    pub fn encode(self, x: &[f32], bytes: &mut [u8]) {
        struct Encode<'a>(&'a [f32], &'a mut [u8]);
        impl Visitor for Encode<'_> {
            type Out = ();
            fn visit<B: Block>(self) {
                let blocks: &mut [B] = bytemuck::cast_slice_mut(self.1);
                assert_eq!(blocks.len() * B::LEN, self.0.len(), "blocks and values differ in number");
                for (block, x) in blocks.iter_mut().zip(self.0.chunks_exact(B::LEN)) {
                    *block = B::encode(x);
                }
            }
        }
        self.visit(Encode(x, bytes))
    }

    /// The same, by how much each value matters: see [`Block::encode_weighted`].
    pub fn encode_weighted(self, x: &[f32], weights: &[f32], bytes: &mut [u8]) {
        struct Encode<'a>(&'a [f32], &'a [f32], &'a mut [u8]);
        impl Visitor for Encode<'_> {
            type Out = ();
            fn visit<B: Block>(self) {
                let blocks: &mut [B] = bytemuck::cast_slice_mut(self.2);
                assert_eq!(blocks.len() * B::LEN, self.0.len(), "blocks and values differ in number");
                assert_eq!(self.0.len(), self.1.len(), "values and weights differ in number");
                let values = self.0.chunks_exact(B::LEN).zip(self.1.chunks_exact(B::LEN));
                for (block, (x, weights)) in blocks.iter_mut().zip(values) {
                    *block = B::encode_weighted(x, weights);
                }
            }
        }
        self.visit(Encode(x, weights, bytes))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Cuts the code bytes of sixteen rows into groups of four and lays group `g` of all rows side by side.
fn interleave<const BYTES: usize, const GROUPS: usize>(
    rows: [&[u8; BYTES]; LANES],
) -> [[u8; 4 * LANES]; GROUPS] {
    const { assert!(BYTES == 4 * GROUPS) };
    std::array::from_fn(|g| std::array::from_fn(|i| rows[i / 4][4 * g + i % 4]))
}
