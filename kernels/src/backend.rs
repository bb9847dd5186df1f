//! The coarse operations of a transformer on rows of activations: what a CPU or a GPU must be able to do.
//!
//! Each operation's equation is its definition. Rows are the tokens of one batch, whatever sequence they
//! belong to and however many there are: **the arithmetic of a row never depends on the other rows**, on
//! the number of threads or on how a prompt was cut into steps, so an answer is bit-equal alone and in any
//! company. Indices: `t` row (token), `o` output, `i` input, `h` head, `p` position.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::format::Format;
use crate::strips::Strips;
use crate::tensor::{Error, Tensor};

/// Positions in one page of the KV cache, and in one tile of attention.
pub const PAGE: usize = 32;

/// A matrix whose values are not kept: they are computed whenever they are needed, and are the same each time.
pub trait Generate: Send + Sync {
    /// Rows and columns.
    fn shape(&self) -> (usize, usize);

    /// Writes values of row `row` from column `first` on to `out`, as many as it holds.
    fn generate(&self, row: usize, first: usize, out: &mut [f32]);
}

/// Puts weights where a backend wants them. Shared by all threads: adapters are prepared while steps run.
pub trait Device: Send + Sync + 'static {
    /// A weight matrix prepared for [`Backend::linear`]. Cloning it copies no weights.
    type Matrix: Clone + Send + Sync + 'static;
    /// A vector of weights: a norm's, a bias.
    type Vector: Send + Sync + 'static;
    /// A table of rows prepared for [`Backend::embed`].
    type Table: Send + Sync + 'static;
    /// A list of row or column numbers.
    type Index: Send + Sync + 'static;
    /// Factors of the outputs or inputs of a linear layer.
    type Scale: Send + Sync + 'static;
    /// A change of the embedding.
    type Embedding: Send + Sync + 'static;
    /// A bottleneck.
    type Bottleneck: Send + Sync + 'static;
    /// A rotation of inputs, block by block.
    type Rotation: Send + Sync + 'static;
    /// A direction to be added to rows.
    type Direction: Send + Sync + 'static;
    /// A matrix that is computed as it is multiplied.
    type Generated: Send + Sync + 'static;

    /// Prepares a weight matrix `[outputs, inputs]`.
    fn matrix(&self, weight: &Tensor) -> Result<Self::Matrix, Error>;
    /// Prepares a weight matrix that lies in strips already, without a copy if its bytes are where this device can read them.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where strips are of no use.
    fn strips(&self, weight: &Strips) -> Result<Self::Matrix, Error>;
    /// Prepares a vector.
    fn vector(&self, values: &[f32]) -> Result<Self::Vector, Error>;
    /// Prepares an embedding table `[entries, width]`.
    fn table(&self, rows: &Tensor) -> Result<Self::Table, Error>;
    /// Prepares a list of numbers.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the changes that need one are not there.
    fn index(&self, numbers: &[u32]) -> Result<Self::Index, Error>;
    /// Prepares factors `by`, of values from which `shift` is taken before.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there are no changes by factors.
    fn scale(&self, by: &[f32], shift: Option<&[f32]>) -> Result<Self::Scale, Error>;
    /// Prepares a change of the embedding.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the embedding cannot be changed.
    fn embedding(&self, change: &EmbeddingChange) -> Result<Self::Embedding, Error>;
    /// Prepares a bottleneck.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there are none.
    fn bottleneck(&self, weights: &BottleneckWeights) -> Result<Self::Bottleneck, Error>;
    /// Prepares the rotation by `blocks`, square matrices of one size, one after the other: of each block of inputs its
    /// own, or one for all.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there are none.
    fn rotation(&self, blocks: &[Tensor]) -> Result<Self::Rotation, Error>;
    /// Prepares a direction.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there are none.
    fn direction(&self, values: &[f32]) -> Result<Self::Direction, Error>;
    /// Takes a matrix that is computed as it is multiplied; keeps nothing of it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where matrices have to be there.
    fn generated(&self, matrix: Arc<dyn Generate>) -> Result<Self::Generated, Error>;
    /// Bytes that a prepared matrix keeps in memory.
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize;
    /// What [`Device::matrix_bytes`] will say of a matrix `[rows, cols]` in this format, which is not there yet.
    fn packed_bytes(&self, format: Format, rows: usize, cols: usize) -> usize;
}

/// The shape of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Layers that attend.
    pub layers: usize,
    /// Key (and value) heads of a layer.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// `F16`, `F32` or `Q8_0`: 8-bit codes with a scale for each 32 values of a head.
    pub format: Format,
}

impl CacheShape {
    /// The width of a head in memory: whole vectors of 16, and whole blocks of the format.
    pub fn padded_head_dim(&self) -> usize {
        self.head_dim.next_multiple_of(self.format.block_len().max(16))
    }

    /// Bytes of one page: [`PAGE`] positions of keys and values of every layer.
    pub fn page_bytes(&self) -> usize {
        let head = self.padded_head_dim() / self.format.block_len() * self.format.block_bytes();
        2 * self.layers * self.kv_heads * head * PAGE
    }
}

/// Consecutive rows of a batch that are consecutive positions of one sequence.
#[derive(Clone, Debug)]
pub struct Span<'a> {
    /// The rows.
    pub rows: Range<usize>,
    /// Position of the first of them in its sequence.
    pub position: usize,
    /// Pages of the sequence: position `p` lies in `pages[p / PAGE]`. Covers every position of the rows.
    pub pages: &'a [u32],
}

/// Where the two members of a rotated pair lie in a head of `rotary` dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// Dimensions `i` and `i + rotary / 2`: Hugging Face files, and GGUF files of most architectures.
    Halves,
    /// Dimensions `2 i` and `2 i + 1`: GGUF files of the Llama family.
    Interleaved,
}

/// The angles by which the rows of a step are rotated.
#[derive(Clone, Copy, Debug)]
pub struct Angles<'a> {
    /// Cosines `[rows, rotary / 2]`, times the attention factor where a scaling has one.
    pub cos: &'a [f32],
    /// Sines, likewise.
    pub sin: &'a [f32],
    /// Dimensions of each head that are rotated, from its first; the rest pass through.
    pub rotary: usize,
    /// Where the members of a pair lie.
    pub layout: RopeLayout,
}

/// The function of a gated feed-forward block or of a bottleneck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x`.
    Identity,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, x / 100)`.
    LeakyRelu,
    /// `max(x, 0)^2`.
    SquaredRelu,
    /// `tanh(x)`.
    Tanh,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `x (1 + erf(x / sqrt(2))) / 2`.
    Gelu,
    /// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`.
    GeluTanh,
    /// `x / (1 + exp(-1.702 x))`.
    QuickGelu,
}

impl Activation {
    /// All of them.
    pub const ALL: &[Activation] = &[
        Self::Silu,
        Self::Identity,
        Self::Relu,
        Self::LeakyRelu,
        Self::SquaredRelu,
        Self::Tanh,
        Self::Sigmoid,
        Self::Gelu,
        Self::GeluTanh,
        Self::QuickGelu,
    ];
}

/// What a bottleneck is made of: `z[t,o] = sum_r B[o,r] f(sum_i A[r,i] x[t,i] + a[r]) + b[o]`. To be prepared by
/// [`Device::bottleneck`].
#[derive(Clone, Debug)]
pub struct BottleneckWeights {
    /// `A [size, inputs]`, in a floating-point format.
    pub down: Tensor,
    /// `a [size]`.
    pub down_bias: Option<Vec<f32>>,
    /// `f`.
    pub activation: Activation,
    /// `B [outputs, size]`, in a floating-point format.
    pub up: Tensor,
    /// `b [outputs]`.
    pub up_bias: Option<Vec<f32>>,
}

/// The prepared matrix type of a backend.
pub type Matrix<B> = <<B as Backend>::Device as Device>::Matrix;
/// The prepared vector type of a backend.
pub type Vector<B> = <<B as Backend>::Device as Device>::Vector;
/// The prepared table type of a backend.
pub type Table<B> = <<B as Backend>::Device as Device>::Table;

/// The prepared index type of a backend.
pub type Index<B> = <<B as Backend>::Device as Device>::Index;

/// The prepared factors of a backend.
pub type Scale<B> = <<B as Backend>::Device as Device>::Scale;

/// What an adapter changes in one linear layer, for some rows of the batch.
pub struct Graft<'a, B: Backend> {
    /// The rows whose request uses the adapter.
    pub rows: Range<usize>,
    /// Weight of the change: the request's weight times the adapter's own scale.
    pub scale: f32,
    /// The change.
    pub change: Change<'a, B>,
}

/// A change of a linear layer.
pub enum Change<'a, B: Backend> {
    /// `y[t,o] += scale * (outer[o] (sum_r B[o,r] inner[r] (sum_i A[r,i] x[t,i])) + bias[o])`, as `outer * (B (scale inner * (A x))) +
    /// scale bias`. What stands between a `B` of integer codes and `A` is rounded to 8 bits as the input is.
    LowRank {
        /// `A [r, inputs or more]`, of which the first columns count: whole blocks.
        a: &'a Matrix<B>,
        /// `B [outputs or more, r]`, of which the first rows count. Of integer codes, `r` may be followed by columns that stand
        /// for nothing, up to whole blocks.
        b: &'a Matrix<B>,
        /// `[r]`, without a shift.
        inner: Option<&'a Scale<B>>,
        /// `[outputs]`, without a shift.
        outer: Option<&'a Scale<B>>,
        /// `[outputs]`.
        bias: Option<&'a Vector<B>>,
    },
    /// `y[t,o] += scale * v[o]`.
    Bias(&'a Vector<B>),
    /// `y[t,o] += scale * sum_i D[o,i] x[t,i]`, with `D [outputs, inputs]`.
    Delta(&'a Matrix<B>),
    /// `y[t,o] += scale * sum_i D[o,i] x[t,i]`, with `D [outputs, inputs]` and `x` in f32, whatever the layer's weight is in.
    Generated(&'a <B::Device as Device>::Generated),
    /// `y[t,o] += scale * sum_e values[e] x[t,columns[e]]` over the entries `starts[o] <= e < starts[o + 1]`, in order.
    Sparse {
        /// Where the entries of each output begin, and their number: `[outputs + 1]`.
        starts: &'a Index<B>,
        /// The input of each entry.
        columns: &'a Index<B>,
        /// Its value.
        values: &'a Vector<B>,
    },
    /// `y[t,o] += scale * z[t,order[o]]`, with `z = (L (x) R) x`: `z[t, i b + j] = sum_k L[i,k] sum_l R[j,l] x[t, k d + l]`.
    Kronecker {
        /// `L [a, c]`, row after row.
        left: &'a Vector<B>,
        /// `R [b, d]`, in a floating-point format; `a b` outputs and `c d` inputs.
        right: &'a Matrix<B>,
        /// A permutation of the outputs; empty where they stay as they are.
        order: &'a Index<B>,
    },
    /// `y[t,o] += scale * by[o] (y[t,o] - shift[o])`, with `y` as bias and the grafts before have left it; what an
    /// accumulating output held before is no part of it.
    Scale(&'a Scale<B>),
    /// `y[t,o] = sum_i W'[o,i] x[t,i]`: whatever bias and the grafts before made of it goes. The scale must be 1.
    Replace(&'a Matrix<B>),
    /// `y[t,outputs[j]] = sum_i W'[j,i] x[t,i]` for every `j`. The scale must be 1.
    Rows {
        /// Ascending.
        outputs: &'a Index<B>,
        /// `W' [number of outputs, inputs]`, in a floating-point format.
        weight: &'a Matrix<B>,
    },
    /// `y[t,o] += scale * z[t,o]`, with `z` what the bottleneck makes of the layer's input.
    Bottleneck(&'a <B::Device as Device>::Bottleneck),
}

/// A change of the embedding, to be prepared by [`Device::embedding`].
pub enum EmbeddingChange {
    /// `y[t,:] = table[tokens[t],:]`, with the scale 1.
    Table(Tensor),
    /// `y[t,:] = rows[j,:]` where `tokens[t]` is the `j`-th of `tokens`, which ascend; with the scale 1.
    Rows {
        /// Tokens.
        tokens: Vec<u32>,
        /// Their rows.
        rows: Tensor,
    },
    /// `y[t,i] += scale * sum_r a[r,tokens[t]] b[i,r]`.
    LowRank {
        /// `[r, vocabulary]`.
        a: Tensor,
        /// `[width, r]`.
        b: Tensor,
    },
}

/// What an adapter changes in the embedding, for some rows of the batch.
pub struct EmbeddingGraft<'a, B: Backend> {
    /// The rows whose request uses the adapter.
    pub rows: Range<usize>,
    /// Weight of the change.
    pub scale: f32,
    /// The change.
    pub change: &'a <B::Device as Device>::Embedding,
}

/// What an adapter changes in rows between the layers, such as the input of a linear layer, for some rows of the batch.
pub struct InputGraft<'a, B: Backend> {
    /// The rows whose request uses the adapter.
    pub rows: Range<usize>,
    /// Weight of the change.
    pub scale: f32,
    /// The change.
    pub change: InputChange<'a, B>,
}

/// A change of rows between the layers.
pub enum InputChange<'a, B: Backend> {
    /// `x[t,i] += scale * by[i] x[t,i]`, without a shift.
    Scale(&'a Scale<B>),
    /// `x[t, k n + c] = sum_j x[t, k n + j] R_k[j,c]` with the `k`-th of blocks `[n, n]`. The scale must be 1.
    Rotate(&'a <B::Device as Device>::Rotation),
    /// `x[t,i] += scale * z[t,i]`, with `z` what the bottleneck makes of `x`.
    Bottleneck(&'a <B::Device as Device>::Bottleneck),
    /// `x[t,i] += scale * v[i]`.
    Add(&'a <B::Device as Device>::Direction),
}

/// One output of [`Backend::linear`].
pub struct Output<'a, B: Backend> {
    /// `[rows, outputs]`; must have the rows of the input already.
    pub y: &'a mut B::Rows,
    /// `W [outputs, inputs]`.
    pub weight: &'a Matrix<B>,
    /// `[outputs]`.
    pub bias: Option<&'a Vector<B>>,
    /// Add to `y` what it already holds (the residual stream).
    pub accumulate: bool,
    /// Applied in this order.
    pub grafts: &'a [Graft<'a, B>],
}

/// The largest operations of a step, for [`Backend::reserve`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepShape {
    /// Most rows of activations.
    pub rows: usize,
    /// Most inputs of a linear layer.
    pub inputs: usize,
    /// Most intermediate values in one call of [`Backend::linear`]: over its grafts, the sum of rows times the rank of a
    /// low-rank change (the columns of its `B`, if that has codes), `a d + a b` of a Kronecker product, the number of replaced outputs, or the size of a bottleneck. Or those
    /// of one graft of [`Backend::adapt`]: rows times the size of a bottleneck, or the width of a rotation.
    pub low: usize,
    /// Query heads that share a key-value head.
    pub group: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// What runs a transformer. Shapes are the caller's duty: a mismatch is a bug and panics.
pub trait Backend: Send + Sized + 'static {
    /// Where weights are prepared.
    type Device: Device;
    /// A matrix of f32 activations `[rows, cols]`.
    type Rows: Send;
    /// The pages of the KV cache.
    type Cache: Send;

    /// Where weights are prepared; may be kept and used by other threads.
    fn device(&self) -> &Arc<Self::Device>;

    /// Room for activations `[0, cols]`.
    fn rows(&mut self, cols: usize) -> Self::Rows;

    /// Gives `x` this number of rows. The values are unspecified afterwards.
    fn resize(&mut self, x: &mut Self::Rows, rows: usize) -> Result<(), Error>;

    /// Bytes that activations keep in memory once they had `[rows, cols]` values.
    fn activation_bytes(&self, rows: usize, cols: usize) -> usize;

    /// Bytes that `x` keeps in memory: those of the most rows it ever had.
    fn held_bytes(&self, x: &Self::Rows) -> usize;

    /// Gets the memory that operations of this shape, or a smaller one, need beside their rows; it is kept. Operations
    /// allocate none themselves: one that needs more than was reserved is a bug and panics.
    fn reserve(&mut self, step: &StepShape) -> Result<(), Error>;

    /// Bytes that [`Backend::reserve`] gets for this shape where nothing was reserved before. Grows with the shape.
    fn scratch_bytes(&self, step: &StepShape) -> usize;

    /// Bytes that are reserved now.
    fn reserved_bytes(&self) -> usize;

    /// An empty KV cache.
    fn cache(&mut self, shape: CacheShape) -> Self::Cache;

    /// Gives the cache pages `0..pages`; those it has keep their content, it never shrinks.
    fn grow(&mut self, cache: &mut Self::Cache, pages: usize) -> Result<(), Error>;

    /// The bytes of a page, [`CacheShape::page_bytes`] in a layout of the backend's own, as [`Backend::set_page`] takes them.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where pages cannot be read back.
    fn page<'a>(&self, _: &'a Self::Cache, _: u32) -> Result<&'a [u8], Error> {
        Err(Error::Unsupported { what: "reading pages of the cache" })
    }

    /// Fills a page that [`Backend::grow`] made.
    ///
    /// # Errors
    /// [`Error::Unsupported`] likewise; other bytes than a page has.
    fn set_page(&mut self, _: &mut Self::Cache, _: u32, _: &[u8]) -> Result<(), Error> {
        Err(Error::Unsupported { what: "writing pages of the cache" })
    }

    /// Runs the operations of one step inside one parallel region: threads are awake from its start to its end.
    fn step<R>(&mut self, operations: impl FnOnce(&mut Self) -> R) -> R;

    /// `y[t,:] = table[tokens[t],:]`.
    fn embed(&mut self, y: &mut Self::Rows, table: &Table<Self>, tokens: &[u32]);

    /// Changes rows of `y`, the embeddings of `tokens`, by each of the grafts in order.
    fn adapt_embedding(&mut self, y: &mut Self::Rows, tokens: &[u32], grafts: &[EmbeddingGraft<'_, Self>]);

    /// `y[t,i] = x[t,i] w[i] / sqrt(mean_i x[t,i]^2 + eps)` for `t` in `rows` (Zhang and Sennrich, 2019).
    fn rms_norm(
        &mut self,
        y: &mut Self::Rows,
        x: &Self::Rows,
        rows: Range<usize>,
        weight: &Vector<Self>,
        eps: f32,
    );

    /// `y[t,o] = sum_i W[o,i] x[t,i] + bias[o]` for every output, then its grafts.
    ///
    /// For weights in a block format with integer codes, `x` is first rounded to 8 bits in groups of 16.
    fn linear(&mut self, x: &Self::Rows, outputs: &mut [Output<'_, Self>]);

    /// Changes rows of `x` by each of the grafts in order.
    fn adapt(&mut self, x: &mut Self::Rows, grafts: &[InputGraft<'_, Self>]);

    /// Rotates each pair `(a, b)` of each head to `(a cos - b sin, a sin + b cos)` (Su et al., 2021).
    fn rotate(&mut self, x: &mut Self::Rows, heads: usize, angles: &Angles<'_>);

    /// Writes keys and values `[rows, kv_heads * head_dim]` of the spans' positions into the cache.
    fn store(
        &mut self,
        cache: &mut Self::Cache,
        layer: usize,
        kv: (&Self::Rows, &Self::Rows),
        spans: &[Span<'_>],
    );

    /// `y[t,h,:] = sum_p softmax_p(scale q[t,h,:] k[p,g,:]) v[p,g,:]` over `p <=` the row's position,
    /// with `g = h * kv_heads / heads`; the cache must hold the rows' own positions.
    fn attend(
        &mut self,
        y: &mut Self::Rows,
        q: &Self::Rows,
        cache: (&Self::Cache, usize),
        spans: &[Span<'_>],
        scale: f32,
    );

    /// `y[t,i] = act(y[t,i]) x[t,i]` (Shazeer, 2020).
    fn gate(&mut self, y: &mut Self::Rows, x: &Self::Rows, act: Activation);

    /// `y[t,i] += x[t,i]`.
    fn add(&mut self, y: &mut Self::Rows, x: &Self::Rows);

    /// `y = x`, whatever number of rows `y` has before.
    fn copy(&mut self, y: &mut Self::Rows, x: &Self::Rows) -> Result<(), Error>;

    /// `y[j,:] = x[rows[j],:]`.
    fn select(&mut self, y: &mut Self::Rows, x: &Self::Rows, rows: &[usize]);

    /// The values `[rows, cols]`, row after row.
    fn read<'a>(&'a mut self, x: &'a Self::Rows) -> Cow<'a, [f32]>;
}
