//! Memory for intermediate values: got before a step, lent to its operations.

use bytemuck::{Pod, Zeroable};

use crate::tensor::{Error, zeros};

/// Memory of one thread for intermediate values, kept from operation to operation.
// On a cache line of its own: each thread locks its scratch in every operation.
#[derive(Default)]
#[repr(align(64))]
pub struct Scratch {
    /// For the outputs of a tile.
    pub lanes: Buffer,
    /// For everything below that.
    pub work: Buffer,
}

/// Bytes of [`Scratch`] that an operation takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Of [`Scratch::lanes`].
    pub lanes: usize,
    /// Of [`Scratch::work`].
    pub work: usize,
}

impl Need {
    /// Enough for either operation.
    pub fn or(self, other: Self) -> Self {
        Self { lanes: self.lanes.max(other.lanes), work: self.work.max(other.work) }
    }

    /// Bytes that a thread holds once this is reserved.
    pub fn bytes(self) -> usize {
        Buffer::bytes_for(self.lanes).saturating_add(Buffer::bytes_for(self.work))
    }
}

/// Memory that is reserved once, then lent as slices of one type after the other.
#[derive(Default)]
pub struct Buffer {
    lines: Vec<Line>,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Buffer {
    /// Makes room for `bytes` bytes. What was there before is lost if that was not enough.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), Error> {
        let lines = bytes.div_ceil(size_of::<Line>());
        if self.lines.len() < lines {
            // The old memory goes first: there need not be room for both, and nothing of it is kept.
            self.lines = Vec::new();
            self.lines = zeros(lines)?;
        }
        Ok(())
    }

    /// Bytes that a buffer holds once `bytes` are reserved.
    pub fn bytes_for(bytes: usize) -> usize {
        bytes.div_ceil(size_of::<Line>()).saturating_mul(size_of::<Line>())
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.lines[..])
    }

    /// A slice of `n` values aligned to 64 bytes. Its content is unspecified.
    ///
    /// Panics if that is more than was reserved.
    pub fn slice<T: Pod>(&mut self, n: usize) -> &mut [T] {
        let bytes = self.check::<T>(n);
        let all: &mut [u8] = bytemuck::cast_slice_mut(&mut self.lines);
        bytemuck::cast_slice_mut(&mut all[..bytes])
    }

    /// The `n` values that were written to [`Buffer::slice`] last.
    ///
    /// Panics if that is more than was reserved.
    pub fn values<T: Pod>(&self, n: usize) -> &[T] {
        let bytes = self.check::<T>(n);
        let all: &[u8] = bytemuck::cast_slice(&self.lines);
        bytemuck::cast_slice(&all[..bytes])
    }

    /// The bytes of `n` values, which must be there.
    fn check<T>(&self, n: usize) -> usize {
        let (bytes, held) = (n * size_of::<T>(), self.bytes());
        assert!(bytes <= held, "an operation needs {bytes} bytes of scratch, but {held} were reserved");
        bytes
    }
}
