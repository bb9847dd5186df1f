//! The KV cache: one buffer per layer, in which position `p` of page `n` is place `PAGE n + p`.
//!
//! A place has, for each head, its key and then its value, in whole vectors of 16.

use super::cache::{Kernel, LANES};
use super::device::GpuDevice;
use super::record::Call;
use super::{Gpu, Rows};
use crate::backend::{CacheShape, PAGE, Span};
use crate::format::Format;
use crate::tensor::Error;

/// Widest head: `attend.wgsl` keeps four outputs in each of 64 lanes.
const WIDEST: usize = 256;

/// The KV cache, in halves or singles.
pub struct Cache {
    shape: CacheShape,
    /// Nothing before the first page.
    layers: Vec<wgpu::Buffer>,
    pages: usize,
}

impl Cache {
    pub(super) fn new(shape: CacheShape) -> Self {
        assert!(shape.head_dim <= WIDEST, "heads wider than {WIDEST} have no shader yet");
        let format = shape.format;
        assert!(matches!(format, Format::F16 | Format::F32), "a cache in {format} has no shader yet");
        Self { shape, layers: Vec::new(), pages: 0 }
    }

    fn halves(&self) -> bool {
        self.shape.format == Format::F16
    }

    /// Pairs of values of a head.
    fn pairs(&self) -> usize {
        self.shape.padded_head_dim() / 2
    }
}

impl Gpu {
    /// [`Backend::grow`](crate::backend::Backend::grow): every layer is copied, one after the other.
    pub(super) fn grow_to(&mut self, cache: &mut Cache, pages: usize) -> Result<(), Error> {
        if pages <= cache.pages {
            return Ok(());
        }
        let layer = CacheShape { layers: 1, ..cache.shape };
        let bytes = pages.saturating_mul(layer.page_bytes());
        let device: &GpuDevice = &self.device;
        for l in 0..cache.shape.layers {
            let buffer = device.buffer(bytes)?;
            match cache.layers.get_mut(l) {
                Some(old) => {
                    self.recorder.copy(old, &buffer, (cache.pages * layer.page_bytes()) as u64);
                    *old = buffer;
                }
                None => cache.layers.push(buffer),
            }
        }
        cache.pages = pages;
        Ok(())
    }

    /// [`Backend::store`](crate::backend::Backend::store).
    pub(super) fn keep(&mut self, cache: &Cache, layer: usize, (k, v): (&Rows, &Rows), spans: &[Span<'_>]) {
        let CacheShape { kv_heads, head_dim, .. } = cache.shape;
        assert!(k.cols == kv_heads * head_dim && v.cols == k.cols, "shapes of keys and values");
        self.list.clear();
        for span in spans {
            for (row, position) in span.rows.clone().zip(span.position..) {
                let page = span.pages[position / PAGE];
                assert!((page as usize) < cache.pages, "page {page} of {}", cache.pages);
                self.list.extend([row as u32, page * PAGE as u32 + (position % PAGE) as u32]);
            }
        }
        let rows = self.list.len() / 2;
        if rows == 0 {
            return;
        }
        self.recorder.call(&Call {
            kernel: Kernel::Store(cache.halves()),
            args: &[kv_heads, head_dim, cache.pairs(), k.stride()].map(|n| n as u32),
            list: &[&self.list],
            y: &cache.layers[layer],
            reads: [Some(k.buffer()), None, Some(v.buffer())],
            groups: ((kv_heads * cache.pairs()).div_ceil(LANES), rows),
        });
    }

    /// [`Backend::attend`](crate::backend::Backend::attend).
    pub(super) fn look(
        &mut self,
        (y, q): (&Rows, &Rows),
        (cache, layer): (&Cache, usize),
        spans: &[Span<'_>],
        scale: f32,
    ) {
        let CacheShape { kv_heads, head_dim, .. } = cache.shape;
        let heads = q.cols / head_dim;
        let rows: usize = spans.iter().map(|span| span.rows.len()).sum();
        if rows == 0 {
            return;
        }
        self.list.clear();
        let mut pages = 3 * rows;
        for span in spans {
            for (row, position) in span.rows.clone().zip(span.position..) {
                self.list.extend([row as u32, position as u32 + 1, pages as u32]);
            }
            pages += span.pages.len();
        }
        for span in spans {
            assert!(span.pages.iter().all(|page| (*page as usize) < cache.pages), "pages beyond the cache");
            self.list.extend_from_slice(span.pages);
        }
        let shape = [heads, kv_heads, head_dim, cache.pairs(), q.stride()].map(|n| n as u32);
        self.recorder.call(&Call {
            kernel: Kernel::Attend(cache.halves()),
            args: &[&shape[..], &[scale.to_bits()]].concat(),
            list: &[&self.list],
            y: y.buffer(),
            reads: [Some(q.buffer()), Some(&cache.layers[layer]), None],
            groups: (heads, rows),
        });
    }
}
