//! From an adapter, as its file says it, to the form in which a model applies it.

use std::collections::BTreeMap;

use graftwork_adapters::check::{self, Shape};
use graftwork_adapters::delta::Coded;
use graftwork_adapters::expand::{self, Expanded};
use graftwork_adapters::{Activation, Adapter, Change as Edit, Place, RowOrder, Site};
use graftwork_kernels::backend::{BottleneckWeights, Device, EmbeddingChange, RopeLayout};
use graftwork_kernels::{Format, Tensor, tensor};

use super::base::Base;
use super::config::Config;
use super::factors::{self, Shared, in_floats};
use super::graft::{Bound, BoundAdapter, BoundInput, Changes, Hooks, Part};
use super::positions::Positions;
use super::weights::{Linear, Model};
use crate::Error;
use crate::parallel::Progress;
use crate::registry::{Bound as AnyBound, Prepared};

/// Checks that `adapter` fits `model`, loaded from `base`, and prepares it for `device` on `threads` threads at most, rows of queries and keys in the model's order.
/// Edits are parts of `progress`; of seed patches, elements of their updates. `room` hears, edit by edit, how many bytes are kept.
///
/// # Errors
/// The adapter does not fit, changes what cannot be changed yet, or the device refuses a matrix; or `progress` or `room` ended it.
pub fn prepare<D: Device>(
    model: &Model<D>,
    base: &Base,
    (device, threads): (&D, usize),
    adapter: &Adapter,
    progress: &Progress<'_>,
    room: &mut Room<'_>,
) -> std::result::Result<(AnyBound, Prepared), Error> {
    let config = &model.config;
    check::architecture(adapter, config.architecture)?;
    check::base(adapter, || base.fingerprint(config.architecture))?;
    check::fits(adapter, |site| shape_at(config, site))?;
    let mut bound = BoundAdapter {
        layers: model.layers.iter().map(|_| std::array::from_fn(|_| Changes::default())).collect(),
        hooks: model.layers.iter().map(|_| std::array::from_fn(|_| Hooks::default())).collect(),
        head: Changes::default(),
        more: None,
        embedding: Vec::new(),
        norms: BTreeMap::new(),
        positions: Positions::default(),
        widest: 0,
    };
    let (mut bytes, mut whole, mut shared) = (0, None, Shared::default());
    let vocabulary = check::vocabulary(adapter, config.vocab)?;
    let parts = |change: &Edit, site| match change {
        Edit::Seeded { .. } => shape_at(config, site).map_or(0, |shape| shape.outputs * shape.inputs),
        _ => 1,
    };
    let all = in_blocks(adapter, config.layers).map(|(edit, site)| parts(&edit.change, site)).sum();
    let mut done = 0;
    for (edit, site) in in_blocks(adapter, config.layers) {
        let before = done;
        if !progress(before, all) {
            return Err(Error::Cancelled);
        }
        room(bytes + shared.bytes)?;
        done += parts(&edit.change, site);
        if let Edit::Replace { weight } = &edit.change
            && !site.is_norm()
            && base.weight(site).is_ok_and(|base| base.rows() == weight.rows() && are_equal(&base, weight))
        {
            // peft saves the base's own weight beside an adapter of embedding or head.
            continue;
        }
        if edit.change.is_whole() {
            whole = whole.or(Some(site));
        }
        let refused = |source| Error::AdapterWeight { site, source };
        let (place, linear, rotated) = match site {
            Site::AfterAttention { layer } | Site::AfterFfn { layer } => {
                let part = if matches!(site, Site::AfterFfn { .. }) { Part::Ffn } else { Part::Attention };
                let hooks = &mut bound.hooks[layer][part as usize];
                let (change, size) = stream(device, &edit.change).map_err(refused)?;
                bytes += size;
                match edit.change {
                    Edit::Bottleneck { place: Place::Parallel, .. } => hooks.before.extend(change),
                    _ => hooks.after.extend(change),
                }
                continue;
            }
            Site::Linear { layer, module }
                if matches!(edit.change, Edit::Bottleneck { place: Place::Series, .. }) =>
            {
                let part = Part::ended_by(module).ok_or(Error::UnsupportedSite { site })?;
                let (change, size) = stream(device, &edit.change).map_err(refused)?;
                bytes += size;
                bound.hooks[layer][part as usize].own.extend(change);
                continue;
            }
            Site::Linear { layer, module } => {
                let place = &mut bound.layers[layer][module as usize];
                (place, &model.layers[layer][module], module.is_rotated())
            }
            Site::Head => (&mut bound.head, &model.head, false),
            // One in each block by now.
            Site::EveryLinear { .. } => return Err(Error::UnsupportedSite { site }),
            Site::Embedding => {
                let (change, size) = embedding(&edit.change).ok_or(Error::UnsupportedSite { site })?;
                bound.embedding.push(device.embedding(&change).map_err(refused)?);
                bytes += size;
                if config.tied_head && matches!(edit.change, Edit::Rows { .. }) {
                    bytes += rows(device, &edit.change, &mut bound.head).map_err(refused)?;
                }
                continue;
            }
            Site::Prompt | Site::Prefix => {
                bytes += bound.positions.bind(device, config, adapter, &edit.change).map_err(refused)?;
                continue;
            }
            Site::AttentionNorm { .. } | Site::FfnNorm { .. } | Site::Norm => {
                let Edit::Replace { weight } = &edit.change else {
                    return Err(Error::UnsupportedSite { site });
                };
                let values = weight.decode().map_err(refused)?;
                bytes += size_of_val(&values[..]);
                bound.norms.insert(site, device.vector(&values).map_err(refused)?);
                continue;
            }
        };
        let more = match &edit.change {
            Edit::Replace { weight } if site == Site::Head && weight.rows() > config.vocab => {
                let (known, more) = split(weight, config.vocab).map_err(refused)?;
                let matrix = device.matrix(&more).map_err(refused)?;
                bytes += device.matrix_bytes(&matrix);
                bound.more = Some((matrix, more.rows()));
                Some(Edit::Replace { weight: known })
            }
            _ => None,
        };
        let change = more.as_ref().unwrap_or(&edit.change);
        let shape = shape_at(config, site).ok_or(graftwork_adapters::Error::NoSite { site })?;
        let weight = match edit.change {
            Edit::LowRank { magnitude: Some(_), .. } => Some(base.weight(site)?),
            _ => None,
        };
        let orders = rotated.then(|| (adapter.row_order, order_of(config)));
        let binder = Binder { device, shape, weight, linear, orders, head_dim: config.head_dim };
        let factors = binder.dora_factors(&edit.change, threads).map_err(refused)?;
        if let Some(row) = factors.iter().flatten().position(|factor| !factor.is_finite()) {
            let found = factors.map_or(0.0, |factors| factors[row]);
            return Err(graftwork_adapters::Error::Norm { site, row, found }.into());
        }
        if let Edit::Seeded { patch } = change {
            let go_on = |elements| progress(before + elements, all);
            bytes += binder.seeded(patch, site, threads, &go_on, &mut place.outputs)?;
            continue;
        }
        bytes += match change {
            Edit::Shared { a, b, inner, outer } => {
                binder.shared((a, b), (inner, outer), &mut shared, &mut place.outputs)
            }
            _ => binder.bind(change, factors, place),
        }
        .map_err(refused)?;
    }
    if !progress(done, all) {
        return Err(Error::Cancelled);
    }
    bytes += shared.bytes;
    room(bytes)?;
    bound.widest = bound.most_values();
    let (edits, invocation) = (in_blocks(adapter, config.layers).count(), adapter.invocation.clone());
    let (virtual_tokens, given) = (bound.positions.virtual_tokens, bound.positions.given);
    // Tokens of its own have inputs and logits beside the base's; changed inputs lie beside those that others use.
    let scratch = bound.widest + bound.more.as_ref().map_or(0, |(_, rows)| config.hidden + rows);
    let scratch = scratch.max(usize::from(bound.changes_shared_inputs() || bound.positions.given > 0));
    let prepared = Prepared {
        edits,
        bytes,
        scratch,
        whole,
        invocation,
        vocabulary,
        changes_tokens: adapter.edits.iter().any(|edit| edit.site.is_of_tokens()),
        text: None,
        virtual_tokens,
        given,
    };
    Ok((Box::new(bound), prepared))
}

/// Hears how many bytes of an adapter are kept so far, and may end its preparation.
pub type Room<'a> = dyn FnMut(usize) -> std::result::Result<(), Error> + 'a;

/// The edits of an adapter on a base of so many blocks, each with the place where it is made.
pub fn in_blocks(
    adapter: &Adapter,
    blocks: usize,
) -> impl Iterator<Item = (&graftwork_adapters::Edit, Site)> {
    adapter.edits.iter().flat_map(move |edit| edit.site.in_blocks(blocks).map(move |site| (edit, site)))
}

/// The first `rows` rows of a matrix that has more, and the others.
fn split(weight: &Tensor, rows: usize) -> Result<(Tensor, Tensor)> {
    let at = rows * weight.row_bytes();
    let part = |range, rows| {
        let bytes = weight.bytes().slice(range).unwrap_or_else(|| Vec::new().into());
        Tensor::new(weight.format(), rows, weight.cols(), bytes)
    };
    Ok((part(0..at, rows)?, part(at..weight.bytes().len(), weight.rows() - rows)?))
}

/// Whether two matrices of one shape hold the same values.
pub fn are_equal(a: &Tensor, b: &Tensor) -> bool {
    if (a.format(), a.bytes().len()) == (b.format(), b.bytes().len()) {
        return **a.bytes() == **b.bytes();
    }
    let (mut left, mut right) = (vec![0.0; a.cols()], vec![0.0; b.cols()]);
    (0..a.rows()).all(|row| {
        a.decode_row(row, &mut left);
        b.decode_row(row, &mut right);
        left == right
    })
}

/// A change of the embedding and the bytes it keeps, if it is one.
fn embedding(change: &Edit) -> Option<(EmbeddingChange, usize)> {
    Some(match change {
        Edit::LowRank { a, b, scale, bias: None, magnitude: None } => {
            let (a, b) = (expand::scaled(a, *scale).ok()?, b.clone());
            let bytes = (a.rows() * a.cols() + b.rows() * b.cols()) * size_of::<f32>();
            (EmbeddingChange::LowRank { a, b }, bytes)
        }
        Edit::Replace { weight } => (EmbeddingChange::Table(weight.clone()), weight.bytes().len()),
        Edit::Rows { tokens, rows } => {
            let bytes = size_of_val(&tokens[..]) + rows.bytes().len();
            (EmbeddingChange::Rows { tokens: tokens.to_vec(), rows: rows.clone() }, bytes)
        }
        _ => return None,
    })
}

/// A change of the residual stream, or of what is about to be added to it, and the bytes that it keeps.
fn stream<D: Device>(device: &D, change: &Edit) -> Result<(Option<BoundInput<D>>, usize)> {
    Ok(match change {
        Edit::Bottleneck { scale, .. } => {
            let weights = bottleneck(change, |tensor| Ok(tensor.clone()), |vector| vector.decode())?;
            let (bottleneck, bytes) = prepared(device, weights.as_ref())?;
            let size = weights.map_or(0, |weights| weights.down.rows());
            (bottleneck.map(|bottleneck| BoundInput::Bottleneck { bottleneck, scale: *scale, size }), bytes)
        }
        Edit::Add { values } => {
            let values = values.decode()?;
            (Some(BoundInput::Add(device.direction(&values)?)), size_of_val(&values[..]))
        }
        Edit::Project { directions } => {
            let (count, width) = (directions.rows(), directions.cols());
            let values = directions.decode()?;
            let mut turned = tensor::reserved(values.len())?;
            turned.extend((0..values.len()).map(|at| values[at % count * width + at / count]));
            let weights = BottleneckWeights {
                down: in_floats(directions.clone())?,
                down_bias: None,
                activation: Activation::Identity,
                up: Tensor::encode(Format::F32, width, count, &turned)?,
                up_bias: None,
            };
            let (bottleneck, bytes) = prepared(device, Some(&weights))?;
            let bound = |bottleneck| BoundInput::Bottleneck { bottleneck, scale: -1.0, size: count };
            (bottleneck.map(bound), bytes)
        }
        _ => {
            return Err(graftwork_kernels::Error::Unsupported { what: "this change of the residual stream" });
        }
    })
}

/// A bottleneck without its scale: what is over outputs as `matrix` and `vector` order it, channels multiplied in.
fn bottleneck(
    change: &Edit,
    matrix: impl Fn(&Tensor) -> Result<Tensor>,
    vector: impl Fn(&Tensor) -> Result<Vec<f32>>,
) -> Result<Option<BottleneckWeights>> {
    let Edit::Bottleneck { down, down_bias, activation, up, up_bias, channels, .. } = change else {
        return Ok(None);
    };
    let mut up = in_floats(matrix(up)?)?;
    let mut up_bias = up_bias.as_ref().map(&vector).transpose()?;
    if let Some(channels) = channels {
        let channels = vector(channels)?;
        up = expand::scaled_rows(&up, &channels)?;
        if let Some(bias) = &mut up_bias {
            bias.iter_mut().zip(&channels).for_each(|(bias, channel)| *bias *= channel);
        }
    }
    Ok(Some(BottleneckWeights {
        down: in_floats(down.clone())?,
        down_bias: down_bias.as_ref().map(Tensor::decode).transpose()?,
        activation: *activation,
        up,
        up_bias,
    }))
}

/// A bottleneck as the device wants it, and the bytes that it keeps.
fn prepared<D: Device>(
    device: &D,
    weights: Option<&BottleneckWeights>,
) -> Result<(Option<D::Bottleneck>, usize)> {
    let Some(weights) = weights else { return Ok((None, 0)) };
    let packed = |tensor: &Tensor| device.packed_bytes(tensor.format(), tensor.rows(), tensor.cols());
    let biases = [&weights.down_bias, &weights.up_bias].into_iter().flatten();
    let bytes = packed(&weights.down)
        + packed(&weights.up)
        + biases.map(|bias| size_of_val(&bias[..])).sum::<usize>();
    Ok((Some(device.bottleneck(weights)?), bytes))
}

/// Adds replaced rows to the changes of the head; gives the bytes they keep.
fn rows<D: Device>(device: &D, change: &Edit, place: &mut Changes<D>) -> Result<usize> {
    let Edit::Rows { tokens, rows } = change else { return Ok(0) };
    let weight = device.matrix(&in_floats(rows.clone())?)?;
    let bytes = device.matrix_bytes(&weight) + size_of_val(&tokens[..]);
    place.outputs.push(Bound::Rows { outputs: device.index(tokens)?, weight, low: tokens.len() });
    Ok(bytes)
}

/// The shape of what an adapter may change at `site`; the embedding's as PEFT sees it.
pub fn shape_at(config: &Config, site: Site) -> Option<Shape> {
    let (outputs, inputs) = match site {
        Site::Linear { layer, module } if layer < config.layers => config.shape_of(module),
        Site::Linear { .. } => return None,
        Site::EveryLinear { module } => config.shape_of(module),
        Site::Embedding | Site::Head => (config.vocab, config.hidden),
        Site::AttentionNorm { layer } | Site::FfnNorm { layer } if layer < config.layers => {
            (1, config.hidden)
        }
        Site::AttentionNorm { .. } | Site::FfnNorm { .. } => return None,
        Site::AfterAttention { layer } | Site::AfterFfn { layer } if layer < config.layers => {
            (config.hidden, config.hidden)
        }
        Site::AfterAttention { .. } | Site::AfterFfn { .. } => return None,
        Site::Norm | Site::Prompt => (1, config.hidden),
        Site::Prefix => (config.layers, config.kv_heads * config.head_dim),
    };
    Some(Shape { outputs, inputs })
}

/// The order of the model's rows of queries and keys.
pub fn order_of(config: &Config) -> RowOrder {
    match config.rope.layout {
        RopeLayout::Halves => RowOrder::HuggingFace,
        RopeLayout::Interleaved => RowOrder::Gguf,
    }
}

type Result<T> = std::result::Result<T, graftwork_kernels::Error>;

/// Prepares the changes at one site.
pub(super) struct Binder<'a, D: Device> {
    pub(super) device: &'a D,
    pub(super) shape: Shape,
    /// The base's weight where a change depends on it, as its files have it.
    weight: Option<Tensor>,
    pub(super) linear: &'a Linear<D>,
    /// The rows' order in the adapter and in the model, where outputs are rotated.
    pub(super) orders: Option<(RowOrder, RowOrder)>,
    pub(super) head_dim: usize,
}

impl<D: Device> Binder<'_, D> {
    /// The factors of the outputs under DoRA, in the model's order; none of any other change.
    fn dora_factors(&self, change: &Edit, threads: usize) -> Result<Option<Vec<f32>>> {
        let (Edit::LowRank { a, b, scale, magnitude: Some(magnitude), .. }, Some(weight)) =
            (change, &self.weight)
        else {
            return Ok(None);
        };
        let (b, magnitude) = (self.reordered(b)?, self.vector(magnitude)?);
        expand::dora_factors(weight, (a, &b, *scale), &magnitude, threads).map(Some)
    }

    /// Adds the change, with the factors of DoRA if it has any, to those of its place; gives the bytes it keeps.
    fn bind(&self, change: &Edit, factors: Option<Vec<f32>>, place: &mut Changes<D>) -> Result<usize> {
        let outputs = &mut place.outputs;
        let base_bias = self.linear.bias_values.as_deref();
        match change {
            Edit::LowRank { a, b, scale, bias, .. } => {
                let b = self.reordered(b)?;
                let Some(mut factors) = factors else {
                    return self.low_rank((a, b), *scale, bias.as_ref(), outputs);
                };
                let b = expand::scaled_rows(&b, &factors)?;
                factors.iter_mut().for_each(|c| *c -= 1.0);
                outputs.push(Bound::Scale(self.device.scale(&factors, base_bias)?));
                let bytes = size_of_val(&factors[..]) + base_bias.map_or(0, size_of_val);
                Ok(bytes + self.low_rank((a, b), *scale, None, outputs)?)
            }
            Edit::Bias { values } => {
                let mut values = self.vector(values)?;
                for (value, base) in values.iter_mut().zip(base_bias.unwrap_or_default()) {
                    *value -= base;
                }
                outputs.push(Bound::Bias(self.device.vector(&values)?));
                Ok(size_of_val(&values[..]))
            }
            Edit::OutputScale { values } => {
                let factors: Vec<f32> = self.vector(values)?.iter().map(|l| l - 1.0).collect();
                outputs.push(Bound::Scale(self.device.scale(&factors, None)?));
                Ok(size_of_val(&factors[..]))
            }
            Edit::InputScale { values } => {
                let factors: Vec<f32> = values.decode()?.iter().map(|l| l - 1.0).collect();
                place.inputs.push(BoundInput::Scale(self.device.scale(&factors, None)?));
                Ok(size_of_val(&factors[..]))
            }
            Edit::Replace { weight } => {
                let weight = self.device.matrix(&self.reordered(weight)?)?;
                let bytes = self.device.matrix_bytes(&weight);
                outputs.push(Bound::Replace(weight));
                // The bias is no part of what was replaced.
                if let Some(bias) = base_bias {
                    outputs.push(Bound::Bias(self.device.vector(bias)?));
                }
                Ok(bytes + base_bias.map_or(0, size_of_val))
            }
            Edit::Rows { .. } => rows(self.device, change, place),
            Edit::Rotation { skew, cayley } => {
                let blocks = expand::rotations(skew, cayley)?;
                let rotation = self.device.rotation(&blocks)?;
                place.inputs.push(BoundInput::Rotate { rotation, width: self.shape.inputs });
                let packed =
                    |block: &Tensor| self.device.packed_bytes(Format::F32, block.rows(), block.cols());
                Ok(blocks.iter().map(packed).sum())
            }
            Edit::Bottleneck { place: Place::Input, .. } => {
                let (input, bytes) = stream(self.device, change)?;
                place.inputs.extend(input);
                Ok(bytes)
            }
            Edit::Bottleneck { scale, .. } => {
                let weights = bottleneck(change, |m| self.reordered(m), |v| self.vector(v))?;
                let (bottleneck, bytes) = prepared(self.device, weights.as_ref())?;
                let size = weights.map_or(0, |weights| weights.down.rows());
                let bound = |bottleneck| Bound::Bottleneck { bottleneck, scale: *scale, size };
                outputs.extend(bottleneck.map(bound));
                Ok(bytes)
            }
            Edit::Add { .. } | Edit::Project { .. } => {
                Err(graftwork_kernels::Error::Unsupported { what: "this change of a linear layer" })
            }
            Edit::Hadamard { first, second, scale } => {
                match expand::hadamard((&first.0, &first.1), (&second.0, &second.1))? {
                    Expanded::LowRank(a, b) => {
                        self.low_rank((&a, self.reordered(&b)?), *scale, None, outputs)
                    }
                    Expanded::Whole(delta) => {
                        let delta = self.device.matrix(&self.reordered(&delta)?)?;
                        let bytes = self.device.matrix_bytes(&delta);
                        outputs.push(Bound::Delta { delta, scale: *scale });
                        Ok(bytes)
                    }
                }
            }
            Edit::Kronecker { left, right, scale } => {
                let low = left.rows() * right.cols() + self.shape.outputs;
                let (left, right) = (left.whole()?.decode()?, self.device.matrix(&right.whole()?)?);
                let order = if self.orders.is_some() { self.order()? } else { Vec::new() };
                let bytes =
                    size_of_val(&left[..]) + self.device.matrix_bytes(&right) + size_of_val(&order[..]);
                let left = self.device.vector(&left)?;
                let order = self.device.index(&order)?;
                outputs.push(Bound::Kronecker { left, right, order, scale: *scale, low });
                Ok(bytes)
            }
            Edit::Sparse { .. } | Edit::Overwrite { .. } => {
                let sparse = self.sparse(change)?;
                let starts = self.device.index(&sparse.starts)?;
                let columns = self.device.index(&sparse.columns)?;
                let values = self.device.vector(&sparse.values)?;
                outputs.push(Bound::Sparse { starts, columns, values });
                Ok(size_of_val(&sparse.starts[..]) + 2 * size_of_val(&sparse.values[..]))
            }
            Edit::Factors { v, s, u } => {
                let ((a, a_bytes), (b, b_bytes)) = (self.coded(v, false)?, self.coded(u, true)?);
                let inner = Some(self.device.scale(s, None)?);
                let rank = s.len().max(u.cols());
                outputs.push(Bound::LowRank { a, b, inner, outer: None, bias: None, scale: 1.0, rank });
                Ok(a_bytes + b_bytes + size_of_val(&s[..]))
            }
            Edit::Whole { matrix, scale } => {
                let (delta, bytes) = self.coded(matrix, true)?;
                outputs.push(Bound::Delta { delta, scale: *scale });
                Ok(bytes)
            }
            // Bound by `shared` and `seeded`, or of no linear layer.
            Edit::Shared { .. } | Edit::Seeded { .. } | Edit::VirtualTokens { .. } | Edit::Prefix { .. } => {
                Err(graftwork_kernels::Error::Unsupported { what: "this change of a linear layer" })
            }
        }
    }

    /// The entries that a change adds, outputs in the model's order.
    fn sparse(&self, change: &Edit) -> Result<expand::Sparse> {
        let order = self.order()?;
        match change {
            Edit::Sparse { rows, columns, values } => expand::by_output((rows, columns, values), &order),
            Edit::Overwrite { rows, columns, values, before } => {
                expand::by_output((rows, columns, &expand::difference(values, before)?), &order)
            }
            _ => Err(graftwork_kernels::Error::Unsupported { what: "these entries" }),
        }
    }

    /// `B A` with the rows of `B` in the model's order.
    fn low_rank(
        &self,
        (a, b): (&Tensor, Tensor),
        scale: f32,
        bias: Option<&Tensor>,
        outputs: &mut Vec<Bound<D>>,
    ) -> Result<usize> {
        let (rank, format) = (a.rows(), self.linear.format);
        let a = self.device.matrix(&factors::first(a, a.cols(), format)?)?;
        let second = factors::second(self.device, b, format)?;
        let b = self.device.matrix(&second.matrix)?;
        let outer = second.rows.as_deref().map(|rows| self.device.scale(rows, None)).transpose()?;
        let values = bias.map(|bias| self.vector(bias)).transpose()?;
        let bytes = self.device.matrix_bytes(&a)
            + self.device.matrix_bytes(&b)
            + [&second.rows, &values].into_iter().flatten().map(|v| size_of_val(&v[..])).sum::<usize>();
        let bias = values.map(|values| self.device.vector(&values)).transpose()?;
        outputs.push(Bound::LowRank { a, b, inner: None, outer, bias, scale, rank });
        Ok(bytes)
    }

    /// `outer * (B[:outputs] (inner * (A[:, :inputs] x)))`, with matrices that other layers have too.
    fn shared(
        &self,
        (a, b): (&Tensor, &Tensor),
        (inner, outer): (&Tensor, &Tensor),
        shared: &mut Shared<D>,
        outputs: &mut Vec<Bound<D>>,
    ) -> Result<usize> {
        let (rank, format, inputs) = (a.rows(), self.linear.format, self.shape.inputs);
        let whole = inputs.is_multiple_of(Format::Q8_0.block_len());
        let first = shared.get(a, (format, whole), self.device, || {
            Ok(factors::Second { matrix: factors::first(a, inputs, format)?, rows: None })
        })?;
        let second = shared.get(b, (format, self.orders.is_some()), self.device, || {
            // Whole heads, if these are reordered.
            let heads = if self.orders.is_some() { self.head_dim } else { 1 };
            let (b, _) = split(b, b.rows() / heads * heads)?;
            factors::second(self.device, self.reordered(&b)?, format)
        })?;
        let (inner, mut outer) = (inner.decode()?, self.vector(outer)?);
        for (by, row) in outer.iter_mut().zip(second.rows.iter().flatten()) {
            *by *= row;
        }
        let bytes = size_of_val(&inner[..]) + size_of_val(&outer[..]);
        outputs.push(Bound::LowRank {
            a: first.matrix.clone(),
            b: second.matrix.clone(),
            inner: Some(self.device.scale(&inner, None)?),
            outer: Some(self.device.scale(&outer, None)?),
            bias: None,
            scale: 1.0,
            rank,
        });
        Ok(bytes)
    }

    /// A matrix of a compressed delta and the bytes that it keeps. Strips stay where they are, but on a base in floats codes
    /// become F32: kernels multiply codes with inputs that are rounded to 8 bits, as that of a base in blocks is anyway.
    fn coded(&self, matrix: &Coded, over_outputs: bool) -> Result<(D::Matrix, usize)> {
        let moved = over_outputs && self.orders.is_some_and(|(from, to)| from != to);
        let exact = self.linear.format.block_len() == 1 && matrix.format().block_len() > 1;
        let matrix = match matrix {
            Coded::Strips(strips) if !moved && !exact => self.device.strips(strips)?,
            coded => {
                let mut rows = coded.to_rows()?;
                // The device has its own.
                coded.bytes().unload();
                if moved {
                    rows = self.reordered(&rows)?;
                }
                self.device.matrix(&if exact { in_floats(rows)? } else { rows })?
            }
        };
        let bytes = self.device.matrix_bytes(&matrix);
        Ok((matrix, bytes))
    }

    /// A matrix whose rows are outputs, in the model's order.
    pub(super) fn reordered(&self, tensor: &Tensor) -> Result<Tensor> {
        match self.orders {
            Some((from, to)) => from.reorder(to, tensor, self.head_dim),
            None => Ok(tensor.clone()),
        }
    }

    /// The values of a vector over the outputs, in the model's order.
    fn vector(&self, vector: &Tensor) -> Result<Vec<f32>> {
        match self.orders {
            Some((from, to)) => from.reorder_vector(to, vector, self.head_dim)?.decode(),
            None => vector.decode(),
        }
    }

    /// For each output of the model, which output of the adapter it is.
    fn order(&self) -> Result<Vec<u32>> {
        let outputs = self.shape.outputs;
        let mut order = tensor::reserved(outputs)?;
        order.extend((0..outputs).map(|row| match self.orders {
            Some((from, to)) => from.source_row(to, row, self.head_dim) as u32,
            None => row as u32,
        }));
        Ok(order)
    }
}
