//! A GPU through wgpu: the proof that [`Backend`](crate::backend::Backend) fits one. Correct, not fast.
//!
//! A shader is a text put together of constants, `prelude.wgsl`, one function of a format (`format/`) and one
//! operation, each with its equation (`cache.rs`). Operations are recorded, and submitted at the end of a
//! step, when values are read, and when there are many (`record.rs`): never one by one.
//!
//! The arithmetic is this backend's own: activations stay f32 whatever the format of the weights, and each
//! sum has an order that depends on neither the row nor the number of rows. So a row's result is bit-equal in
//! any company on one device and driver; from device to device a bound holds (`tests/gpu.rs`), since WGSL
//! leaves open whether `fma` rounds once, and how exact `exp` and `inverseSqrt` are.
//!
//! What comes later is named where it is missing: weights in formats other than `Q4_0` are decoded to f32
//! when they are loaded (`device.rs`), and a lost device is a panic.

mod cache;
mod device;
mod linear;
mod operations;
mod pages;
mod record;

use std::sync::Arc;

pub use device::{GpuDevice, Matrix, OpenError, Vector};
pub use pages::Cache;
use record::Recorder;

use crate::backend::StepShape;

/// Activations `[rows, cols]`. A row takes whole vectors of four; what is added stays zero.
pub struct Rows {
    /// Nothing before the first row.
    buffer: Option<wgpu::Buffer>,
    rows: usize,
    cols: usize,
}

impl Rows {
    /// Values from one row to the next.
    fn stride(&self) -> usize {
        self.cols.next_multiple_of(4)
    }

    /// Vectors of four in a row.
    fn chunks(&self) -> usize {
        self.cols.div_ceil(4)
    }

    /// The values; there must be some.
    fn buffer(&self) -> &wgpu::Buffer {
        self.buffer.as_ref().expect("rows have memory")
    }
}

/// A GPU as a backend.
pub struct Gpu {
    device: Arc<GpuDevice>,
    recorder: Recorder,
    /// `scale A x` of the grafts of the linear layer in progress: f32.
    low: Option<wgpu::Buffer>,
    /// Lists in the making.
    list: Vec<u32>,
}

impl Gpu {
    /// The first GPU that the system offers; a software implementation counts.
    ///
    /// # Errors
    /// There is none, or it refuses.
    pub fn open() -> Result<Self, OpenError> {
        let device = Arc::new(GpuDevice::open()?);
        let recorder = Recorder::new(&device).map_err(OpenError::Memory)?;
        Ok(Self { device, recorder, low: None, list: Vec::new() })
    }

    /// What the system calls it.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// How often commands were submitted so far.
    pub fn submissions(&self) -> usize {
        self.recorder.submissions()
    }

    /// Bytes of `scale A x` for a step.
    fn low_bytes(step: &StepShape) -> usize {
        step.low.saturating_mul(size_of::<f32>())
    }
}
