//! The operations, each a shader of the same name beside this file.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::cache::{Kernel, LANES};
use super::device::{GpuDevice, Matrix, Vector};
use super::pages::Cache;
use super::record::{Call, Recorder};
use super::{Gpu, Rows};
use crate::backend::{
    Activation, Angles, Backend, CacheShape, EmbeddingGraft, InputChange, InputGraft, Output, RopeLayout,
    Span, StepShape,
};
use crate::tensor::Error;

/// Words of the longest list of a step: the angles of all rows, or the tokens and places.
fn list_words(step: &StepShape) -> usize {
    step.rows.saturating_mul(step.head_dim.saturating_add(4))
}

impl Backend for Gpu {
    type Device = GpuDevice;
    type Rows = Rows;
    type Cache = Cache;

    fn device(&self) -> &Arc<GpuDevice> {
        &self.device
    }

    fn rows(&mut self, cols: usize) -> Rows {
        Rows { buffer: None, rows: 0, cols }
    }

    fn resize(&mut self, x: &mut Rows, rows: usize) -> Result<(), Error> {
        let bytes = self.activation_bytes(rows, x.cols);
        if bytes > self.held_bytes(x) {
            // Operations that were recorded keep the old memory until they are done.
            x.buffer = None;
            x.rows = 0;
            x.buffer = Some(self.device.buffer(bytes)?);
        }
        x.rows = rows;
        Ok(())
    }

    fn activation_bytes(&self, rows: usize, cols: usize) -> usize {
        let row = cols.div_ceil(4).saturating_mul(4 * size_of::<f32>());
        rows.saturating_mul(row)
    }

    fn held_bytes(&self, x: &Rows) -> usize {
        x.buffer.as_ref().map_or(0, |buffer| buffer.size() as usize)
    }

    fn reserve(&mut self, step: &StepShape) -> Result<(), Error> {
        let low = Self::low_bytes(step);
        if low > self.low.as_ref().map_or(0, |low| low.size() as usize) {
            self.low = None;
            self.low = Some(self.device.buffer(low)?);
        }
        self.recorder.reserve(list_words(step))
    }

    fn scratch_bytes(&self, step: &StepShape) -> usize {
        let low = Self::low_bytes(step).checked_next_multiple_of(16).unwrap_or(usize::MAX);
        low.saturating_add(Recorder::bytes_for(list_words(step)))
    }

    fn reserved_bytes(&self) -> usize {
        self.low.as_ref().map_or(0, |low| low.size() as usize) + self.recorder.bytes()
    }

    fn cache(&mut self, shape: CacheShape) -> Cache {
        Cache::new(shape)
    }

    fn grow(&mut self, cache: &mut Cache, pages: usize) -> Result<(), Error> {
        self.grow_to(cache, pages)
    }

    /// Operations outside of a step are recorded too, and submitted when something is read.
    fn step<R>(&mut self, operations: impl FnOnce(&mut Self) -> R) -> R {
        let result = operations(self);
        self.recorder.submit();
        result
    }

    fn embed(&mut self, y: &mut Rows, table: &Matrix, tokens: &[u32]) {
        assert!(y.rows == tokens.len() && y.cols == table.cols, "shapes of an embedding");
        assert!(tokens.iter().all(|token| (*token as usize) < table.rows), "tokens beyond the table");
        if y.rows > 0 {
            self.recorder.call(&Call {
                kernel: Kernel::Embed(table.codes),
                args: &[y.rows, y.chunks()].map(|n| n as u32),
                list: &[tokens],
                y: y.buffer(),
                reads: [None, Some(&table.buffer), None],
                groups: (y.rows, 1),
            });
        }
    }

    fn adapt_embedding(&mut self, _: &mut Rows, _: &[u32], grafts: &[EmbeddingGraft<'_, Self>]) {
        if let Some(graft) = grafts.first() {
            match *graft.change {}
        }
    }

    fn rms_norm(&mut self, y: &mut Rows, x: &Rows, rows: Range<usize>, weight: &Vector, eps: f32) {
        assert!(y.rows == x.rows && y.cols == x.cols && weight.len == x.cols, "shapes of a norm");
        assert!(rows.end <= x.rows, "a norm of rows {rows:?} of {}", x.rows);
        if !rows.is_empty() {
            let shape = [rows.len(), rows.start, x.cols, x.chunks()].map(|n| n as u32);
            self.recorder.call(&Call {
                kernel: Kernel::RmsNorm,
                args: &[&shape[..], &[eps.to_bits()]].concat(),
                list: &[],
                y: y.buffer(),
                reads: [Some(x.buffer()), None, Some(&weight.buffer)],
                groups: (rows.len(), 1),
            });
        }
    }

    fn linear(&mut self, x: &Rows, outputs: &mut [Output<'_, Self>]) {
        self.multiply(x, outputs);
    }

    fn adapt(&mut self, _: &mut Rows, grafts: &[InputGraft<'_, Self>]) {
        if let Some(graft) = grafts.first() {
            match graft.change {
                InputChange::Scale(scale) => match *scale {},
                InputChange::Rotate(rotation) => match *rotation {},
                InputChange::Bottleneck(bottleneck) => match *bottleneck {},
                InputChange::Add(direction) => match *direction {},
            }
        }
    }

    fn rotate(&mut self, x: &mut Rows, heads: usize, angles: &Angles<'_>) {
        let (half, dim) = (angles.rotary / 2, x.cols / heads);
        let pairs = x.rows * half;
        let interleaved = usize::from(angles.layout == RopeLayout::Interleaved);
        if x.rows > 0 {
            self.recorder.call(&Call {
                kernel: Kernel::Rotate,
                args: &[x.rows, heads, dim, half, x.stride(), interleaved].map(|n| n as u32),
                list: &[&angles.cos[..pairs], &angles.sin[..pairs]].map(bytemuck::cast_slice),
                y: x.buffer(),
                reads: [None; 3],
                groups: ((heads * half).div_ceil(LANES), x.rows),
            });
        }
    }

    fn store(&mut self, cache: &mut Cache, layer: usize, kv: (&Rows, &Rows), spans: &[Span<'_>]) {
        self.keep(cache, layer, kv, spans);
    }

    fn attend(&mut self, y: &mut Rows, q: &Rows, cache: (&Cache, usize), spans: &[Span<'_>], scale: f32) {
        assert!(y.rows == q.rows && y.cols == q.cols, "attention keeps the shape of the queries");
        self.look((y, q), cache, spans, scale);
    }

    fn gate(&mut self, y: &mut Rows, x: &Rows, act: Activation) {
        assert!(y.rows == x.rows && y.cols == x.cols, "shapes of a gate");
        assert_eq!(act, Activation::Silu, "the one that the shader computes");
        if x.rows > 0 {
            let chunks = x.rows * x.chunks();
            self.recorder.call(&Call {
                kernel: Kernel::Gate,
                args: &[chunks as u32],
                list: &[],
                y: y.buffer(),
                reads: [Some(x.buffer()), None, None],
                groups: (chunks.div_ceil(LANES), 1),
            });
        }
    }

    fn add(&mut self, y: &mut Rows, x: &Rows) {
        assert!(y.rows == x.rows && y.cols == x.cols, "shapes of a sum");
        if x.rows > 0 {
            let chunks = x.rows * x.chunks();
            self.recorder.call(&Call {
                kernel: Kernel::Add,
                args: &[chunks as u32],
                list: &[],
                y: y.buffer(),
                reads: [Some(x.buffer()), None, None],
                groups: (chunks.div_ceil(LANES), 1),
            });
        }
    }

    fn copy(&mut self, y: &mut Rows, x: &Rows) -> Result<(), Error> {
        self.resize(y, x.rows)?;
        let rows: Vec<usize> = (0..x.rows).collect();
        self.select(y, x, &rows);
        Ok(())
    }

    fn select(&mut self, y: &mut Rows, x: &Rows, rows: &[usize]) {
        assert!(y.rows == rows.len() && y.cols == x.cols, "shapes of a selection");
        assert!(rows.iter().all(|row| *row < x.rows), "rows beyond the last");
        if y.rows > 0 {
            self.list.clear();
            self.list.extend(rows.iter().map(|row| *row as u32));
            self.recorder.call(&Call {
                kernel: Kernel::Select,
                args: &[y.rows, y.chunks()].map(|n| n as u32),
                list: &[&self.list],
                y: y.buffer(),
                reads: [Some(x.buffer()), None, None],
                groups: (y.rows, 1),
            });
        }
    }

    fn read<'a>(&'a mut self, x: &'a Rows) -> Cow<'a, [f32]> {
        if x.rows == 0 {
            return Cow::Borrowed(&[]);
        }
        let (stride, cols) = (x.stride(), x.cols);
        let mut values = self.recorder.read(x.buffer(), x.rows * stride);
        if stride != cols {
            for t in 1..x.rows {
                values.copy_within(t * stride..t * stride + cols, t * cols);
            }
            values.truncate(x.rows * cols);
        }
        Cow::Owned(values)
    }
}
