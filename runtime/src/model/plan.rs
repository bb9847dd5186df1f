//! What a model would take, without loading it: it is "loaded" onto a device that only counts.

use std::sync::Arc;

use graftwork_kernels::backend::{BottleneckWeights, Device, EmbeddingChange, Generate};
use graftwork_kernels::tensor::Error;
use graftwork_kernels::{Format, Strips, Tensor};

/// Counts what `D` would keep in memory.
pub struct Counting<D> {
    device: Arc<D>,
}

impl<D: Device> Counting<D> {
    /// For this device.
    pub fn new(device: Arc<D>) -> Self {
        Self { device }
    }
}

impl<D: Device> Device for Counting<D> {
    /// What the matrix would take.
    type Matrix = usize;
    type Vector = ();
    type Table = ();
    type Index = ();
    type Scale = ();
    type Embedding = ();
    type Bottleneck = ();
    type Rotation = ();
    type Direction = ();
    type Generated = ();

    fn matrix(&self, weight: &Tensor) -> Result<usize, Error> {
        Ok(self.device.packed_bytes(weight.format(), weight.rows(), weight.cols()))
    }

    fn strips(&self, weight: &Strips) -> Result<usize, Error> {
        Ok(self.device.packed_bytes(weight.format(), weight.rows(), weight.cols()))
    }

    fn vector(&self, _: &[f32]) -> Result<(), Error> {
        Ok(())
    }

    fn table(&self, _: &Tensor) -> Result<(), Error> {
        Ok(())
    }

    fn index(&self, _: &[u32]) -> Result<(), Error> {
        Ok(())
    }

    fn scale(&self, _: &[f32], _: Option<&[f32]>) -> Result<(), Error> {
        Ok(())
    }

    fn embedding(&self, _: &EmbeddingChange) -> Result<(), Error> {
        Ok(())
    }

    fn bottleneck(&self, _: &BottleneckWeights) -> Result<(), Error> {
        Ok(())
    }

    fn rotation(&self, _: &[Tensor]) -> Result<(), Error> {
        Ok(())
    }

    fn direction(&self, _: &[f32]) -> Result<(), Error> {
        Ok(())
    }

    fn generated(&self, _: Arc<dyn Generate>) -> Result<(), Error> {
        Ok(())
    }

    fn matrix_bytes(&self, bytes: &usize) -> usize {
        *bytes
    }

    fn packed_bytes(&self, format: Format, rows: usize, cols: usize) -> usize {
        self.device.packed_bytes(format, rows, cols)
    }
}
