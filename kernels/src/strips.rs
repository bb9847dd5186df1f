//! Matrices as the CPU's kernels want them, in bytes: sixteen rows side by side. A file that holds them so is multiplied as it is
//! mapped.
//!
//! A matrix `[rows, cols]` is `rows / 16` strips, rounded up, one after the other; a strip is one panel for each block of its rows, from
//! the first columns on. What a panel is, each format's file says: sixteen blocks, of rows `16 s..16 s + 16`, in as many bytes. Rows that
//! the last strip lacks are blocks of zero bytes. That layout is fixed for the formats that have one: `F32`, `F16`, `BF16`, `I8`, `SIGN`
//! and the `W` formats. Numbers are little-endian, and so must the machine be that multiplies them.

use bytemuck::Zeroable;

use crate::cpu::isa::LANES;
use crate::cpu::linear::Matrix;
use crate::cpu::strip::Strip;
use crate::format::{Block, Format, Visitor};
use crate::tensor::{Bytes, Error, Tensor, zeros};

/// A matrix `[rows, cols]` in strips of sixteen rows, over bytes that somebody keeps alive. To be prepared by
/// [`Device::strips`](crate::backend::Device::strips).
#[derive(Clone, Debug)]
pub struct Strips {
    format: Format,
    rows: usize,
    cols: usize,
    bytes: Bytes,
}

impl Strips {
    /// The matrix whose strips are exactly `bytes`, which may begin at any address: one that is a multiple of 64 suits all formats.
    ///
    /// # Errors
    /// [`Error::NoStrips`] of other formats, [`Error::RaggedRow`], [`Error::Length`], [`Error::TooLarge`].
    pub fn new(format: Format, rows: usize, cols: usize, bytes: Bytes) -> Result<Self, Error> {
        if !format.has_strips() {
            return Err(Error::NoStrips { format });
        }
        if !cols.is_multiple_of(format.block_len()) {
            return Err(Error::RaggedRow { format, cols, block: format.block_len() });
        }
        let expected = Self::bytes_for(format, rows, cols);
        if expected == usize::MAX {
            return Err(Error::TooLarge { format, rows, cols });
        }
        if bytes.len() != expected {
            return Err(Error::Length { format, rows, cols, expected, found: bytes.len() });
        }
        Ok(Self { format, rows, cols, bytes })
    }

    /// `weight` in strips.
    ///
    /// # Errors
    /// [`Error::NoStrips`] of other formats, [`Error::OutOfMemory`].
    pub fn pack(weight: &Tensor) -> Result<Self, Error> {
        let (format, rows, cols) = (weight.format(), weight.rows(), weight.cols());
        if !format.has_strips() {
            return Err(Error::NoStrips { format });
        }
        Ok(Self { format, rows, cols, bytes: Matrix::pack(weight)?.into_strips() })
    }

    /// The bytes of a matrix `[rows, cols]` of whole blocks: those of its rows, as many as fill the last strip. `usize::MAX` if that is
    /// more than an address can count.
    pub fn bytes_for(format: Format, rows: usize, cols: usize) -> usize {
        Matrix::bytes_for(format, rows, cols)
    }

    /// The block format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows: outputs of a linear layer.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row: inputs of a linear layer.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The strips, one after the other.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The matrix row by row, to the bit what [`Strips::pack`] made these of.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn unpack(&self) -> Result<Tensor, Error> {
        struct Unpack<'a>(&'a Strips);
        impl Visitor for Unpack<'_> {
            type Out = Result<Vec<u8>, Error>;
            fn visit<B: Block>(self) -> Self::Out {
                let Strips { format, rows, cols, ref bytes } = *self.0;
                let unpack = <B::Strip as Strip>::UNPACK.ok_or(Error::NoStrips { format })?;
                let (length, size) = (cols / B::LEN, size_of::<<B::Strip as Strip>::Panel>());
                let mut out = zeros(rows * length * size_of::<B>())?;
                let blocks: &mut [B] = bytemuck::cast_slice_mut(&mut out);
                let mut panel = <B::Strip as Strip>::Panel::zeroed();
                for (p, bytes) in bytes.chunks_exact(size).enumerate() {
                    bytemuck::bytes_of_mut(&mut panel).copy_from_slice(bytes);
                    let (strip, at) = (p / length, p % length);
                    for (row, block) in (strip * LANES..rows).zip(unpack(&panel)) {
                        blocks[row * length + at] = block;
                    }
                }
                Ok(out)
            }
        }
        let bytes = self.format.visit(Unpack(self))?;
        Tensor::new(self.format, self.rows, self.cols, bytes.into())
    }
}
