//! The device: its memory, and weights in it. Shared by all threads.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use wgpu::{BufferUsages, ErrorFilter};

use super::cache::Codes;
use crate::backend::{BottleneckWeights, Device, EmbeddingChange, Generate};
use crate::format::Format;
use crate::strips::Strips;
use crate::tensor::{Error, Tensor, zeros};

/// Why there is no GPU.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// None that can compute.
    #[error("no GPU: {0}")]
    NoAdapter(#[from] wgpu::RequestAdapterError),
    /// It is there, and refuses.
    #[error("the GPU refuses: {0}")]
    Refused(#[from] wgpu::RequestDeviceError),
    /// It has no memory for the least that is needed.
    #[error(transparent)]
    Memory(Error),
}

/// A GPU's memory, and the queue of its commands.
pub struct GpuDevice {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    name: String,
}

/// A weight matrix, or a table, in a buffer of its own.
#[derive(Clone)]
pub struct Matrix {
    pub(super) buffer: wgpu::Buffer,
    pub(super) codes: Codes,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// A vector of weights, then zeros up to a whole vector of four.
pub struct Vector {
    pub(super) buffer: wgpu::Buffer,
    pub(super) len: usize,
}

impl GpuDevice {
    pub(super) fn open() -> Result<Self, OpenError> {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::VULKAN;
        let instance = wgpu::Instance::new(descriptor);
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = ready(instance.request_adapter(&options))?;
        let (device, queue) = ready(adapter.request_device(&wgpu::DeviceDescriptor {
            required_limits: adapter.limits(),
            ..Default::default()
        }))?;
        Ok(Self { device, queue, name: adapter.get_info().name })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A buffer of zeros for shaders.
    pub(super) fn buffer(&self, bytes: usize) -> Result<wgpu::Buffer, Error> {
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        self.buffer_for(usage, bytes, false)
    }

    /// A buffer for these uses; refusal is an error.
    pub(super) fn buffer_for(
        &self,
        usage: BufferUsages,
        bytes: usize,
        mapped_at_creation: bool,
    ) -> Result<wgpu::Buffer, Error> {
        let limits = self.device.limits();
        let most = limits.max_buffer_size.min(limits.max_storage_buffer_binding_size);
        // Shaders read whole vectors of four, and a buffer of nothing cannot be bound.
        let size = bytes.max(1).checked_next_multiple_of(16).map(|size| size as u64);
        let refused = Error::OutOfMemory { bytes };
        let size = size.filter(|size| *size <= most).ok_or(refused.clone())?;
        let scope = self.device.push_error_scope(ErrorFilter::OutOfMemory);
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation };
        let buffer = self.device.create_buffer(&descriptor);
        match ready(scope.pop()) {
            None => Ok(buffer),
            Some(_) => Err(refused),
        }
    }

    /// A buffer of `count` parts of `words` words each; `fill` writes each part over zeros.
    fn filled(
        &self,
        count: usize,
        words: usize,
        mut fill: impl FnMut(usize, &mut [u32]),
    ) -> Result<wgpu::Buffer, Error> {
        let bytes = words.saturating_mul(size_of::<u32>());
        let buffer = self.buffer_for(BufferUsages::STORAGE, count.saturating_mul(bytes), true)?;
        let mut part: Vec<u32> = zeros(words)?;
        let mut view = buffer.get_mapped_range_mut(..).expect("it was made mapped");
        for i in 0..count {
            part.fill(0);
            fill(i, &mut part);
            view.slice(i * bytes..(i + 1) * bytes).copy_from_slice(bytemuck::cast_slice(&part));
        }
        drop(view);
        buffer.unmap();
        Ok(buffer)
    }
}

impl Device for GpuDevice {
    type Matrix = Matrix;
    type Vector = Vector;
    type Table = Matrix;
    /// There is none: nothing that needs one can be computed yet.
    type Index = std::convert::Infallible;
    /// Likewise.
    type Scale = std::convert::Infallible;
    /// Likewise.
    type Embedding = std::convert::Infallible;
    /// Likewise.
    type Bottleneck = std::convert::Infallible;
    /// Likewise.
    type Rotation = std::convert::Infallible;
    /// Likewise.
    type Direction = std::convert::Infallible;
    type Generated = std::convert::Infallible;

    fn matrix(&self, weight: &Tensor) -> Result<Matrix, Error> {
        let (rows, cols, codes) = (weight.rows(), weight.cols(), Codes::of(weight.format()));
        let mut values: Vec<f32> = zeros(if codes == Codes::F32 { cols } else { 0 })?;
        let size = weight.row_bytes();
        let buffer = self.filled(rows, codes.row_words(cols), |row, words| match codes {
            Codes::F32 => {
                weight.decode_row(row, &mut values);
                words[..cols].copy_from_slice(bytemuck::cast_slice(&values));
            }
            Codes::Q4_0 => pack_q4_0(&weight.bytes()[row * size..][..size], words),
        })?;
        Ok(Matrix { buffer, codes, rows, cols })
    }

    fn strips(&self, _: &Strips) -> Result<Matrix, Error> {
        Err(Error::Unsupported { what: "matrices in strips" })
    }

    fn vector(&self, values: &[f32]) -> Result<Vector, Error> {
        let len = values.len();
        let fill = |_: usize, words: &mut [u32]| words[..len].copy_from_slice(bytemuck::cast_slice(values));
        Ok(Vector { buffer: self.filled(1, len.next_multiple_of(4), fill)?, len })
    }

    fn table(&self, rows: &Tensor) -> Result<Matrix, Error> {
        self.matrix(rows)
    }

    fn index(&self, _: &[u32]) -> Result<Self::Index, Error> {
        Err(Error::Unsupported { what: "sparse changes and Kronecker products" })
    }

    fn scale(&self, _: &[f32], _: Option<&[f32]>) -> Result<Self::Scale, Error> {
        Err(Error::Unsupported { what: "factors of inputs and outputs" })
    }

    fn embedding(&self, _: &EmbeddingChange) -> Result<Self::Embedding, Error> {
        Err(Error::Unsupported { what: "changes of the embedding" })
    }

    fn bottleneck(&self, _: &BottleneckWeights) -> Result<Self::Bottleneck, Error> {
        Err(Error::Unsupported { what: "bottlenecks and projections" })
    }

    fn rotation(&self, _: &[Tensor]) -> Result<Self::Rotation, Error> {
        Err(Error::Unsupported { what: "rotations of inputs" })
    }

    fn direction(&self, _: &[f32]) -> Result<Self::Direction, Error> {
        Err(Error::Unsupported { what: "directions" })
    }

    fn generated(&self, _: Arc<dyn Generate>) -> Result<Self::Generated, Error> {
        Err(Error::Unsupported { what: "matrices that are computed as they are multiplied" })
    }

    fn matrix_bytes(&self, matrix: &Matrix) -> usize {
        matrix.buffer.size() as usize
    }

    fn packed_bytes(&self, format: Format, rows: usize, cols: usize) -> usize {
        let words = rows.saturating_mul(Codes::of(format).row_words(cols));
        let bytes = words.saturating_mul(size_of::<u32>()).max(1);
        bytes.checked_next_multiple_of(16).unwrap_or(usize::MAX)
    }
}

/// Blocks of 18 bytes as five words: the scale as f32, then the codes.
fn pack_q4_0(blocks: &[u8], words: &mut [u32]) {
    for (block, words) in blocks.chunks_exact(18).zip(words.chunks_exact_mut(5)) {
        words[0] = half::f16::from_le_bytes([block[0], block[1]]).to_f32().to_bits();
        for (word, codes) in words[1..].iter_mut().zip(block[2..].chunks_exact(4)) {
            *word = u32::from_le_bytes(codes.try_into().expect("four bytes"));
        }
    }
}

/// The outcome of a future that is ready at once, as all of wgpu's are outside of browsers.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("wgpu answers at once"),
    }
}
