//! What adapters put at positions of a sequence: virtual tokens, and keys and values that are given.

use graftwork_adapters::{Adapter, Change as Edit};
use graftwork_kernels::backend::{Device, EmbeddingChange};
use graftwork_kernels::{Tensor, tensor};

use super::bind::order_of;
use super::config::Config;

/// What one adapter puts at positions, prepared for the device.
pub struct Positions<D: Device> {
    /// Its virtual tokens.
    pub tokens: Option<D::Embedding>,
    /// How many.
    pub virtual_tokens: usize,
    /// Keys and values of its given positions by layer, `[positions, kv_heads * head_dim]` each.
    pub layers: Vec<[D::Table; 2]>,
    /// How many positions.
    pub given: usize,
}

impl<D: Device> Default for Positions<D> {
    fn default() -> Self {
        Self { tokens: None, virtual_tokens: 0, layers: Vec::new(), given: 0 }
    }
}

impl<D: Device> Positions<D> {
    /// Prepares a change of `adapter` that fits the model, if it is about positions; gives the bytes it keeps.
    pub fn bind(
        &mut self,
        device: &D,
        config: &Config,
        adapter: &Adapter,
        change: &Edit,
    ) -> Result<usize, tensor::Error> {
        match change {
            Edit::VirtualTokens { rows } => {
                self.tokens = Some(device.embedding(&EmbeddingChange::Table(rows.clone()))?);
                self.virtual_tokens = rows.rows();
                Ok(rows.bytes().len())
            }
            Edit::Prefix { rows, layers } => {
                let width = config.kv_heads * config.head_dim;
                let (from, to) = (adapter.row_order, order_of(config));
                let source = |col| from.source_row(to, col, config.head_dim);
                for layer in 0..*layers {
                    let keys = columns(rows, width, |col| 2 * layer * width + source(col))?;
                    let values = columns(rows, width, |col| (2 * layer + 1) * width + col)?;
                    self.layers.push([device.table(&keys)?, device.table(&values)?]);
                }
                self.given = rows.rows();
                Ok(rows.bytes().len())
            }
            _ => Ok(0),
        }
    }
}

/// `out[t,i] = rows[t,source(i)]` for `i < width`, in the format of `rows`, whose values stand by themselves.
fn columns(rows: &Tensor, width: usize, source: impl Fn(usize) -> usize) -> Result<Tensor, tensor::Error> {
    let size = rows.format().block_bytes();
    let mut bytes = tensor::reserved(rows.rows() * width * size)?;
    for row in rows.bytes().chunks_exact(rows.row_bytes()) {
        for col in 0..width {
            bytes.extend_from_slice(&row[source(col) * size..][..size]);
        }
    }
    Tensor::new(rows.format(), rows.rows(), width, bytes.into())
}
