//! Adapters in the form in which a model applies them, looked up for the rows of a batch.

use std::collections::BTreeMap;
use std::ops::Range;

use graftwork_adapters::{Module, Site};
use graftwork_kernels::backend::{
    Backend, Change, Device, EmbeddingGraft, Graft, InputChange, InputGraft, Matrix, Table, Vector,
};

use super::positions::Positions;
use crate::batch::{Batch, Given, VirtualRows};
use crate::stack::Stacked;

/// One change of one linear layer, prepared for the device.
pub(super) enum Bound<D: Device> {
    LowRank {
        a: D::Matrix,
        b: D::Matrix,
        inner: Option<D::Scale>,
        outer: Option<D::Scale>,
        bias: Option<D::Vector>,
        scale: f32,
        rank: usize,
    },
    Bias(D::Vector),
    Delta {
        delta: D::Matrix,
        scale: f32,
    },
    Generated(D::Generated),
    Sparse {
        starts: D::Index,
        columns: D::Index,
        values: D::Vector,
    },
    Kronecker {
        left: D::Vector,
        right: D::Matrix,
        order: D::Index,
        scale: f32,
        low: usize,
    },
    Scale(D::Scale),
    Replace(D::Matrix),
    Rows {
        outputs: D::Index,
        weight: D::Matrix,
        low: usize,
    },
    Bottleneck {
        bottleneck: D::Bottleneck,
        scale: f32,
        size: usize,
    },
}

/// One change of rows between the layers, such as the input of a linear layer, prepared for the device.
pub(super) enum BoundInput<D: Device> {
    Scale(D::Scale),
    Rotate { rotation: D::Rotation, width: usize },
    Bottleneck { bottleneck: D::Bottleneck, scale: f32, size: usize },
    Add(D::Direction),
}

impl<D: Device> BoundInput<D> {
    /// Intermediate values of a row.
    fn low(&self) -> usize {
        match self {
            Self::Rotate { width, .. } => *width,
            Self::Bottleneck { size, .. } => *size,
            Self::Scale(_) | Self::Add(_) => 0,
        }
    }
}

/// The changes around attention or the feed-forward part of a layer, each in order.
pub(super) struct Hooks<D: Device> {
    /// Of the residual stream, before what the part gives is added.
    pub(super) before: Vec<BoundInput<D>>,
    /// Of what the part gives.
    pub(super) own: Vec<BoundInput<D>>,
    /// Of the residual stream, after that.
    pub(super) after: Vec<BoundInput<D>>,
}

impl<D: Device> Default for Hooks<D> {
    fn default() -> Self {
        Self { before: Vec::new(), own: Vec::new(), after: Vec::new() }
    }
}

/// The two parts of a layer.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    /// Attention, which ends with [`Module::O`].
    Attention,
    /// The feed-forward part, which ends with [`Module::Down`].
    Ffn,
}

impl Part {
    /// The part that a linear layer ends.
    pub(super) fn ended_by(module: Module) -> Option<Self> {
        match module {
            Module::O => Some(Self::Attention),
            Module::Down => Some(Self::Ffn),
            _ => None,
        }
    }
}

/// The changes of one linear layer, in order.
pub(super) struct Changes<D: Device> {
    pub(super) inputs: Vec<BoundInput<D>>,
    pub(super) outputs: Vec<Bound<D>>,
}

impl<D: Device> Default for Changes<D> {
    fn default() -> Self {
        Self { inputs: Vec::new(), outputs: Vec::new() }
    }
}

impl<D: Device> Bound<D> {
    /// Intermediate values of a row.
    fn low(&self) -> usize {
        match self {
            Self::LowRank { rank, .. } => *rank,
            Self::Kronecker { low, .. } | Self::Rows { low, .. } => *low,
            Self::Bottleneck { size, .. } => *size,
            Self::Bias(_)
            | Self::Delta { .. }
            | Self::Generated(_)
            | Self::Sparse { .. }
            | Self::Scale(_)
            | Self::Replace(_) => 0,
        }
    }
}

/// The changes of a model's linear layers.
pub(super) struct BoundAdapter<D: Device> {
    /// By layer, then by [`Module`].
    pub(super) layers: Vec<[Changes<D>; Module::ALL.len()]>,
    /// By layer, then by [`Part`].
    pub(super) hooks: Vec<[Hooks<D>; 2]>,
    pub(super) head: Changes<D>,
    /// The rows of a head that has more tokens than the base, after the base's, and how many.
    pub(super) more: Option<(D::Matrix, usize)>,
    pub(super) embedding: Vec<D::Embedding>,
    /// Norms that have another weight, by site.
    pub(super) norms: BTreeMap<Site, D::Vector>,
    pub(super) positions: Positions<D>,
    /// Most intermediate values of a row in one call of [`Backend::linear`], or of one change between the layers.
    pub(super) widest: usize,
}

/// The linear layers that [`forward`](super::forward::forward) computes in one call of [`Backend::linear`]; the head has one of its own.
const CALLS: [&[Module]; 4] =
    [&[Module::Q, Module::K, Module::V], &[Module::O], &[Module::Gate, Module::Up], &[Module::Down]];

impl<D: Device> BoundAdapter<D> {
    /// Most intermediate values of a row in one call.
    pub(super) fn most_values(&self) -> usize {
        let low = |changes: &Changes<D>| changes.outputs.iter().map(Bound::low).sum::<usize>();
        let calls = self.layers.iter().flat_map(|layer| {
            CALLS.iter().map(move |call| call.iter().map(|&module| low(&layer[module as usize])).sum())
        });
        let inputs = self.layers.iter().flatten().flat_map(|changes| &changes.inputs);
        let hooks = self.hooks.iter().flatten().flat_map(|h| [&h.before, &h.own, &h.after]).flatten();
        let between = inputs.chain(hooks).map(BoundInput::low);
        calls.chain([low(&self.head)]).chain(between).max().unwrap_or(0)
    }

    /// Whether the inputs of layers that share theirs with others change.
    pub(super) fn changes_shared_inputs(&self) -> bool {
        let shared = CALLS.iter().filter(|call| call.len() > 1).flat_map(|call| call.iter());
        shared.into_iter().any(|&m| self.layers.iter().any(|layer| !layer[m as usize].inputs.is_empty()))
    }
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
            // Those of weight 0 are there for the virtual tokens that the prompt places.
            for stacked in segment.stack.iter().filter(|stacked| stacked.weight() != 0.0) {
                let (adapter, weight) = (bound::<B>(stacked), stacked.weight());
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

    /// Most intermediate values of one call of [`Backend::linear`].
    pub fn low(&self) -> usize {
        self.applied.iter().map(|applied| applied.rows.len() * applied.adapter.widest).sum()
    }

    /// Whether the inputs of layers that share theirs with others change.
    pub fn change_shared_inputs(&self) -> bool {
        self.applied.iter().any(|applied| applied.adapter.changes_shared_inputs())
    }

    /// What changes the embedding.
    pub fn embedding(&self) -> Vec<EmbeddingGraft<'a, B>> {
        let of = |applied: &Applied<'a, B>| {
            let (scale, rows) = (applied.weight, applied.rows.clone());
            let graft = move |change| EmbeddingGraft { rows: rows.clone(), scale, change };
            applied.adapter.embedding.iter().map(graft).collect::<Vec<_>>()
        };
        self.applied.iter().flat_map(of).collect()
    }

    /// Rows for which the norm at `site` has another weight.
    pub fn norms(&self, site: Site) -> impl Iterator<Item = (Range<usize>, &'a Vector<B>)> {
        self.applied.iter().filter_map(move |applied| {
            applied.adapter.norms.get(&site).map(|weight| (applied.rows.clone(), weight))
        })
    }

    /// The outputs whose head has more rows than the base's: those rows, and how many.
    pub fn more(&self) -> impl Iterator<Item = (Range<usize>, &'a Matrix<B>, usize)> {
        let of_outputs = self.applied.iter().filter(|applied| !applied.outputs.is_empty());
        of_outputs.filter_map(|applied| {
            let (weight, rows) = applied.adapter.more.as_ref()?;
            Some((applied.outputs.clone(), weight, *rows))
        })
    }

    /// What changes the linear layer `module` of `layer`.
    pub fn at(&self, layer: usize, module: Module) -> LinearGrafts<'a, B> {
        self.collect(|adapter| &adapter.layers[layer][module as usize])
    }

    /// What changes the residual stream around `part` of `layer`.
    pub fn around(&self, layer: usize, part: Part) -> HookGrafts<'a, B> {
        let mut grafts = HookGrafts { before: Vec::new(), own: Vec::new(), after: Vec::new() };
        for applied in &self.applied {
            let Hooks { before, own, after } = &applied.adapter.hooks[layer][part as usize];
            for (grafts, changes) in
                [(&mut grafts.before, before), (&mut grafts.own, own), (&mut grafts.after, after)]
            {
                grafts.extend(changes.iter().map(|change| input(change, applied.weight, &applied.rows)));
            }
        }
        grafts
    }

    /// What changes the head.
    pub fn head(&self) -> LinearGrafts<'a, B> {
        self.collect(|adapter| &adapter.head)
    }

    fn collect(
        &self,
        changes: impl Fn(&'a BoundAdapter<B::Device>) -> &'a Changes<B::Device>,
    ) -> LinearGrafts<'a, B> {
        let mut grafts = LinearGrafts { inputs: Vec::new(), outputs: Vec::new() };
        for applied in &self.applied {
            let Changes { inputs, outputs } = changes(applied.adapter);
            let (scale, rows) = (applied.weight, &applied.rows);
            grafts.inputs.extend(inputs.iter().map(|change| input(change, scale, rows)));
            grafts.outputs.extend(outputs.iter().map(|change| graft(change, scale, rows)));
        }
        grafts
    }
}

/// What an adapter is for the device of `B`.
fn bound<B: Backend>(adapter: &Stacked) -> &BoundAdapter<B::Device> {
    adapter.bound().downcast_ref().expect("an engine's adapters are prepared by its own device")
}

/// What makes the embeddings of rows that are virtual tokens, by their [`Batch::virtual_tokens`].
pub fn virtual_tokens<'a, B: Backend>(batch: &Batch<'a>) -> Vec<EmbeddingGraft<'a, B>> {
    let graft = |rows: &VirtualRows<'a>| {
        let change = bound::<B>(rows.adapter).positions.tokens.as_ref()?;
        Some(EmbeddingGraft { rows: rows.rows.clone(), scale: 1.0, change })
    };
    batch.virtual_rows.iter().filter_map(graft).collect()
}

/// The keys and values of `layer` at the positions that an adapter gives, by [`Given::own`].
pub fn given<'a, B: Backend>(given: &Given<'a>, layer: usize) -> &'a [Table<B>; 2] {
    &bound::<B>(given.adapter).positions.layers[layer]
}

/// What changes one linear layer, in order of rows, then of the stack.
pub struct LinearGrafts<'a, B: Backend> {
    /// Before its weight.
    pub inputs: Vec<InputGraft<'a, B>>,
    /// After it.
    pub outputs: Vec<Graft<'a, B>>,
}

/// What changes the residual stream around a part of a layer, in order of rows, then of the stack.
pub struct HookGrafts<'a, B: Backend> {
    /// Before what the part gives is added.
    pub before: Vec<InputGraft<'a, B>>,
    /// What the part gives.
    pub own: Vec<InputGraft<'a, B>>,
    /// After it is added.
    pub after: Vec<InputGraft<'a, B>>,
}

fn input<'a, B: Backend>(
    bound: &'a BoundInput<B::Device>,
    weight: f32,
    rows: &Range<usize>,
) -> InputGraft<'a, B> {
    let (scale, change) = match bound {
        BoundInput::Scale(by) => (1.0, InputChange::Scale(by)),
        BoundInput::Rotate { rotation, .. } => (1.0, InputChange::Rotate(rotation)),
        BoundInput::Bottleneck { bottleneck, scale, .. } => (*scale, InputChange::Bottleneck(bottleneck)),
        BoundInput::Add(direction) => (1.0, InputChange::Add(direction)),
    };
    InputGraft { rows: rows.clone(), scale: weight * scale, change }
}

fn graft<'a, B: Backend>(bound: &'a Bound<B::Device>, weight: f32, rows: &Range<usize>) -> Graft<'a, B> {
    let (scale, change) = match bound {
        Bound::LowRank { a, b, inner, outer, bias, scale, .. } => {
            let (inner, outer, bias) = (inner.as_ref(), outer.as_ref(), bias.as_ref());
            (*scale, Change::LowRank { a, b, inner, outer, bias })
        }
        Bound::Bias(values) => (1.0, Change::Bias(values)),
        Bound::Scale(by) => (1.0, Change::Scale(by)),
        Bound::Replace(weight) => (1.0, Change::Replace(weight)),
        Bound::Rows { outputs, weight, .. } => (1.0, Change::Rows { outputs, weight }),
        Bound::Bottleneck { bottleneck, scale, .. } => (*scale, Change::Bottleneck(bottleneck)),
        Bound::Delta { delta, scale } => (*scale, Change::Delta(delta)),
        Bound::Generated(matrix) => (1.0, Change::Generated(matrix)),
        Bound::Sparse { starts, columns, values } => (1.0, Change::Sparse { starts, columns, values }),
        Bound::Kronecker { left, right, order, scale, .. } => {
            (*scale, Change::Kronecker { left, right, order })
        }
    };
    Graft { rows: rows.clone(), scale: weight * scale, change }
}
