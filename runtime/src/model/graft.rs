//! Adapters in the form in which a model applies them.

use std::ops::Range;

use graftwork_adapters::check::{self, Shape};
use graftwork_adapters::{Adapter, Change as Edit, Module, RowOrder, Site};
use graftwork_kernels::backend::{Backend, Change, Device, Graft, RopeLayout};
use graftwork_kernels::{Format, Tensor};

use super::config::Config;
use super::weights::{Linear, Model, shape_of};
use crate::Error;
use crate::batch::Batch;
use crate::registry::Prepared;

/// One change of one linear layer, prepared for the device.
enum Bound<D: Device> {
    LowRank { a: D::Matrix, b: D::Matrix, bias: Option<D::Vector>, scale: f32, rank: usize },
    Bias(D::Vector),
}

impl<D: Device> Bound<D> {
    fn rank(&self) -> usize {
        match self {
            Self::LowRank { rank, .. } => *rank,
            Self::Bias(_) => 0,
        }
    }
}

/// The changes of a model's linear layers.
struct BoundAdapter<D: Device> {
    /// By layer, then by [`Module`].
    layers: Vec<[Vec<Bound<D>>; Module::ALL.len()]>,
    head: Vec<Bound<D>>,
    /// The largest sum of ranks of one call of [`Backend::linear`].
    widest: usize,
}

/// The linear layers that [`forward`](super::forward::forward) computes in one call of [`Backend::linear`]; the head has one of its own.
const CALLS: [&[Module]; 4] =
    [&[Module::Q, Module::K, Module::V], &[Module::O], &[Module::Gate, Module::Up], &[Module::Down]];

impl<D: Device> BoundAdapter<D> {
    /// The largest sum of ranks of one call.
    fn most_ranks(&self) -> usize {
        let ranks = |changes: &[Bound<D>]| changes.iter().map(Bound::rank).sum::<usize>();
        let calls = self.layers.iter().flat_map(|layer| {
            CALLS.iter().map(move |call| call.iter().map(|&module| ranks(&layer[module as usize])).sum())
        });
        calls.chain([ranks(&self.head)]).max().unwrap_or(0)
    }
}

/// Checks that `adapter` fits `model` and prepares it, rows of queries and keys in the model's order.
///
/// # Errors
/// The adapter does not fit, changes what cannot be changed yet, or the device refuses a matrix.
pub fn prepare<D: Device>(model: &Model<D>, device: &D, adapter: &Adapter) -> Result<Prepared, Error> {
    let config = &model.config;
    check::architecture(adapter, config.architecture)?;
    check::fits(adapter, |site| shape_at(config, site))?;
    let mut bound = BoundAdapter {
        layers: model.layers.iter().map(|_| std::array::from_fn(|_| Vec::new())).collect(),
        head: Vec::new(),
        widest: 0,
    };
    let mut bytes = 0;
    for edit in &adapter.edits {
        let site = edit.site;
        let (place, linear, rotated) = match site {
            Site::Linear { layer, module } => {
                let place = &mut bound.layers[layer][module as usize];
                (place, &model.layers[layer][module], module.is_rotated())
            }
            Site::Head => (&mut bound.head, &model.head, false),
            Site::Embedding => return Err(Error::UnsupportedSite { site }),
        };
        let orders = rotated.then(|| (adapter.row_order, order_of(config)));
        let binder = Binder { device, orders, head_dim: config.head_dim };
        let (change, size) =
            binder.bind(&edit.change, linear).map_err(|source| Error::AdapterWeight { site, source })?;
        place.push(change);
        bytes += size;
    }
    bound.widest = bound.most_ranks();
    Ok(Prepared { bound: Box::new(bound), edits: adapter.edits.len(), bytes })
}

/// The shape of what an adapter may change at `site`; the embedding's as PEFT sees it.
fn shape_at(config: &Config, site: Site) -> Option<Shape> {
    let (outputs, inputs) = match site {
        Site::Linear { layer, module } if layer < config.layers => shape_of(config, module),
        Site::Linear { .. } => return None,
        Site::Embedding | Site::Head => (config.vocab, config.hidden),
    };
    Some(Shape { outputs, inputs })
}

/// The order of the model's rows of queries and keys.
fn order_of(config: &Config) -> RowOrder {
    match config.rope.layout {
        RopeLayout::Halves => RowOrder::HuggingFace,
        RopeLayout::Interleaved => RowOrder::Gguf,
    }
}

/// Prepares the changes at one site.
struct Binder<'a, D: Device> {
    device: &'a D,
    /// The rows' order in the adapter and in the model, where outputs are rotated.
    orders: Option<(RowOrder, RowOrder)>,
    head_dim: usize,
}

impl<D: Device> Binder<'_, D> {
    /// The change and the bytes it keeps.
    fn bind(&self, change: &Edit, base: &Linear<D>) -> Result<(Bound<D>, usize), graftwork_kernels::Error> {
        match change {
            Edit::LowRank { a, b, scale, bias } => {
                let b = match self.orders {
                    Some((from, to)) => from.reorder(to, b, self.head_dim)?,
                    None => b.clone(),
                };
                let rank = a.rows();
                let a = self.device.matrix(&first_factor(a, base.format)?)?;
                let b = self.device.matrix(&second_factor(b, base.format)?)?;
                let values = bias.as_ref().map(|bias| self.vector(bias)).transpose()?;
                let bytes = self.device.matrix_bytes(&a)
                    + self.device.matrix_bytes(&b)
                    + values.as_deref().map_or(0, size_of_val);
                let bias = values.map(|values| self.device.vector(&values)).transpose()?;
                Ok((Bound::LowRank { a, b, bias, scale: *scale, rank }, bytes))
            }
            Edit::Bias { values } => {
                let mut values = self.vector(values)?;
                for (value, base) in values.iter_mut().zip(base.bias_values.as_deref().unwrap_or_default()) {
                    *value -= base;
                }
                Ok((Bound::Bias(self.device.vector(&values)?), size_of_val(&values[..])))
            }
        }
    }

    /// The values of a vector over the outputs, in the model's order.
    fn vector(&self, vector: &Tensor) -> Result<Vec<f32>, graftwork_kernels::Error> {
        match self.orders {
            Some((from, to)) => from.reorder_vector(to, vector, self.head_dim)?.decode(),
            None => vector.decode(),
        }
    }
}

/// The least that the largest value of a row must be for [`first_factor`] to round it: the scale of smaller ones is a subnormal half.
const LEAST: f32 = 1.0 / 1024.0;

/// `A` as it is kept. On a base in blocks it meets activations of 8 bits, so it is rounded to `Q8_0` too: each value by at most
/// 1/128 of the largest in its row, half of that where no scale is subnormal. What would lose more stays as it is.
fn first_factor(a: &Tensor, base: Format) -> Result<Tensor, graftwork_kernels::Error> {
    let whole = a.cols().is_multiple_of(Format::Q8_0.block_len());
    if a.format().block_len() > 1 || base.block_len() == 1 || !whole {
        return Ok(a.clone());
    }
    let values = a.decode()?;
    let fits = |row: &[f32]| {
        row.iter().all(|x| x.is_finite())
            && (row.iter().all(|&x| x == 0.0) || row.iter().any(|x| x.abs() >= LEAST))
    };
    if !values.chunks(a.cols().max(1)).all(fits) {
        return Ok(a.clone());
    }
    Tensor::encode(Format::Q8_0, a.rows(), a.cols(), &values)
}

/// `B` as it is kept, in a float format: what multiplies the few numbers of a low-rank activation gains nothing from blocks, and
/// backends need not round such activations to 8 bits. On a base in blocks, F32 is rounded to BF16: each value by at most 2^-9 of itself.
fn second_factor(b: Tensor, base: Format) -> Result<Tensor, graftwork_kernels::Error> {
    let format = match (b.format(), base.block_len()) {
        (Format::F16 | Format::BF16, _) | (Format::F32, 1) => return Ok(b),
        (_, 1) => Format::F32,
        _ => Format::BF16,
    };
    Tensor::encode(format, b.rows(), b.cols(), &b.decode()?)
}

/// The adapters of a batch, looked up by layer and module.
pub struct Grafts<'a, B: Backend> {
    /// In order of rows, then of the stack.
    applied: Vec<Applied<'a, B>>,
}

/// One adapter of one segment.
struct Applied<'a, B: Backend> {
    adapter: &'a BoundAdapter<B::Device>,
    weight: f32,
    rows: Range<usize>,
    outputs: Range<usize>,
}

impl<'a, B: Backend> Grafts<'a, B> {
    /// The grafts of `batch`, whose adapters must have been prepared for the same type of device.
    pub fn of(batch: &Batch<'a>) -> Self {
        let mut applied = Vec::new();
        for segment in &batch.segments {
            let (rows, outputs) = (&segment.rows, &segment.outputs);
            for (adapter, weight) in segment.stack.iter() {
                let adapter = adapter.bound().downcast_ref();
                let adapter = adapter.expect("an engine's adapters are prepared by its own device");
                applied.push(Applied { adapter, weight, rows: rows.clone(), outputs: outputs.clone() });
            }
        }
        Self { applied }
    }

    /// The same for a batch narrowed to its outputs.
    pub fn of_outputs(mut self) -> Self {
        self.applied.retain(|applied| !applied.outputs.is_empty());
        for applied in &mut self.applied {
            applied.rows = applied.outputs.clone();
        }
        self
    }

    /// Most values of `A x` of one call of [`Backend::linear`].
    pub fn low(&self) -> usize {
        self.applied.iter().map(|applied| applied.rows.len() * applied.adapter.widest).sum()
    }

    /// What changes the linear layer `module` of `layer`.
    pub fn at(&self, layer: usize, module: Module) -> Vec<Graft<'a, B>> {
        self.collect(|adapter| &adapter.layers[layer][module as usize])
    }

    /// What changes the head.
    pub fn head(&self) -> Vec<Graft<'a, B>> {
        self.collect(|adapter| &adapter.head)
    }

    fn collect(
        &self,
        changes: impl Fn(&'a BoundAdapter<B::Device>) -> &'a [Bound<B::Device>],
    ) -> Vec<Graft<'a, B>> {
        let mut grafts = Vec::new();
        for applied in &self.applied {
            let graft = |change| graft(change, applied.weight, &applied.rows);
            grafts.extend(changes(applied.adapter).iter().map(graft));
        }
        grafts
    }
}

fn graft<'a, B: Backend>(bound: &'a Bound<B::Device>, weight: f32, rows: &Range<usize>) -> Graft<'a, B> {
    let (scale, change) = match bound {
        Bound::LowRank { a, b, bias, scale, .. } => {
            (weight * scale, Change::LowRank { a, b, bias: bias.as_ref() })
        }
        Bound::Bias(values) => (weight, Change::Bias(values)),
    };
    Graft { rows: rows.clone(), scale, change }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is kept of `A` with two rows whose largest values are `scale` and a third of it, and the format.
    fn kept(scale: f32) -> (Vec<f32>, Vec<f32>, Format) {
        let row = |scale: f32| (0..64).map(move |i| scale * ((i * 37 + 11) % 64 - 32) as f32 / 32.0);
        let values: Vec<f32> = row(scale).chain(row(scale / 3.0)).collect();
        let a = Tensor::encode(Format::F32, 2, 64, &values).expect("whole rows");
        let kept = first_factor(&a, Format::Q4K).expect("memory");
        (values, kept.decode().expect("memory"), kept.format())
    }

    #[test]
    fn first_factors_lose_no_more_than_is_said() {
        // Down to values that halves cannot scale.
        for power in 0..40 {
            let (values, kept, format) = kept(0.5f32.powi(power));
            assert_eq!(format == Format::Q8_0, 0.5f32.powi(power) / 3.0 >= LEAST, "2^-{power}");
            for (row, kept) in values.chunks(64).zip(kept.chunks(64)) {
                let largest = row.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                let error = row.iter().zip(kept).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                assert!(error <= largest / 128.0, "2^-{power}: {error} of {largest}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays() {
        let (_, kept, format) = kept(f32::INFINITY);
        assert_eq!(format, Format::F32);
        assert!(kept.iter().any(|x| !x.is_finite()));
    }
}
