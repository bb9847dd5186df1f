//! The CPU: a team of threads, and kernels written once over the vector operations of an instruction set.
//!
//! A step is a sequence of operations; each is cut into chunks that the team's threads claim. Weights are packed
//! at load into strips of sixteen rows ([`strip`]), so that a vector lane is a row: every instruction set then sums a
//! row's products in the same order, and their results are equal to the bit.

pub(crate) mod arena;
pub mod attention;
#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
pub mod bottleneck;
pub mod change;
pub mod codes;
pub mod embedding;
pub mod executor;
pub mod isa;
mod layer;
pub mod limits;
pub mod linear;
pub mod math;
mod near;
#[cfg(target_arch = "aarch64")]
pub mod neon;
pub mod pages;
pub mod portable;
pub mod rows;
pub mod scratch;
pub mod softmax;
pub mod strip;
pub mod team;
mod unpacked;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use arena::Arena;
use attention::Attend;
use bottleneck::{Bottleneck, Rotation};
use change::Scale;
use codes::Codes;
use embedding::Embedding;
use executor::Executor;
use isa::Isa;
use linear::Matrix;
use pages::{Pages, Store, Stored};
use rows::{Add, Gate, RmsNorm, Rotate};
use scratch::{Buffer, Need};
use strip::{ActivationTile, Activations};
use team::{Grid, Team};

use crate::backend::{
    Activation, Angles, Backend, BottleneckWeights, CacheShape, Device, EmbeddingChange, EmbeddingGraft,
    Generate, InputGraft, Output, PAGE, Span, StepShape,
};
use crate::format::Format;
use crate::strips::Strips;
use crate::tensor::{Error, Tensor, reserved};

/// Rows of one sequence that one attention job takes.
const ATTENTION_ROWS: usize = 16;

/// Chunks per thread that an operation is cut into: enough to even out threads of different speed.
const CHUNKS: usize = 4;

/// Prepares weights for the CPU.
#[derive(Debug, Default)]
pub struct CpuDevice {
    arena: Arena,
}

impl Device for CpuDevice {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Table = Tensor;
    type Index = Vec<u32>;
    type Scale = Scale;
    type Embedding = Embedding;
    type Bottleneck = Bottleneck;
    type Rotation = Rotation;
    type Direction = Vec<f32>;
    type Generated = Arc<dyn Generate>;

    fn matrix(&self, weight: &Tensor) -> Result<Matrix, Error> {
        Matrix::pack(weight, &self.arena)
    }

    fn strips(&self, weight: &Strips) -> Result<Matrix, Error> {
        Matrix::from_strips(weight, &self.arena)
    }

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>, Error> {
        let mut vector = reserved(values.len())?;
        vector.extend_from_slice(values);
        Ok(vector)
    }

    fn table(&self, rows: &Tensor) -> Result<Tensor, Error> {
        Ok(rows.clone())
    }

    fn index(&self, numbers: &[u32]) -> Result<Vec<u32>, Error> {
        let mut index = reserved(numbers.len())?;
        index.extend_from_slice(numbers);
        Ok(index)
    }

    fn scale(&self, by: &[f32], shift: Option<&[f32]>) -> Result<Scale, Error> {
        let shift = shift.map(|shift| self.vector(shift)).transpose()?;
        Ok(Scale { by: self.vector(by)?, shift })
    }

    fn embedding(&self, change: &EmbeddingChange) -> Result<Embedding, Error> {
        Embedding::new(change)
    }

    fn bottleneck(&self, weights: &BottleneckWeights) -> Result<Bottleneck, Error> {
        Bottleneck::new(weights, &self.arena)
    }

    fn rotation(&self, blocks: &[Tensor]) -> Result<Rotation, Error> {
        Rotation::new(blocks, &self.arena)
    }

    fn direction(&self, values: &[f32]) -> Result<Vec<f32>, Error> {
        self.vector(values)
    }

    fn generated(&self, matrix: Arc<dyn Generate>) -> Result<Arc<dyn Generate>, Error> {
        Ok(matrix)
    }

    fn matrix_bytes(&self, matrix: &Matrix) -> usize {
        matrix.bytes()
    }

    fn packed_bytes(&self, format: Format, rows: usize, cols: usize) -> usize {
        Matrix::bytes_for(format, rows, cols)
    }
}

/// Activations `[rows, cols]`.
pub struct Rows {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl Rows {
    fn row(&self, t: usize) -> &[f32] {
        &self.data[t * self.cols..][..self.cols]
    }

    fn values(&self) -> &[f32] {
        &self.data[..self.rows * self.cols]
    }

    fn by_rows(&mut self, rows: usize) -> Grid<'_, f32> {
        Grid::by_rows(&mut self.data[..self.rows * self.cols], self.cols, rows)
    }
}

/// The KV cache, by what it stores.
pub enum Cache {
    /// Halves.
    F16(Pages<u16>),
    /// Singles.
    F32(Pages<f32>),
    /// 8-bit codes.
    Q8_0(Pages<Codes>),
}

/// The same for whatever a cache stores.
macro_rules! with_pages {
    ($cache:expr, $pages:ident => $what:expr) => {
        match $cache {
            Cache::F16($pages) => $what,
            Cache::F32($pages) => $what,
            Cache::Q8_0($pages) => $what,
        }
    };
}

/// The CPU as a backend.
pub struct Cpu {
    device: Arc<CpuDevice>,
    isa: Isa,
    team: Team,
    /// Bytes of weights that stay near a core.
    near: usize,
    /// The input of the linear layer in progress, in 8 bits: [`Activations`].
    x8: Buffer,
    /// The same for a matrix unit: [`ActivationTile`].
    tiles: Buffer,
    /// `scale A x` and other intermediate values of the grafts of the linear layer in progress: f32.
    low: Buffer,
}

/// Bytes that the operations of a step need beside their rows.
struct Needs {
    x8: usize,
    tiles: usize,
    low: usize,
    /// Of each thread.
    thread: Need,
}

impl Needs {
    fn of(step: &StepShape, cpu: &Cpu) -> Self {
        let queries = step.rows.min(ATTENTION_ROWS).saturating_mul(step.group);
        Self {
            x8: layer::blocks(step.rows, step.inputs).saturating_mul(size_of::<Activations>()),
            tiles: layer::tiles(cpu.isa, step.rows, step.inputs).saturating_mul(size_of::<ActivationTile>()),
            low: step.low.saturating_mul(size_of::<f32>()),
            thread: layer::scratch(cpu.near).or(attention::scratch(queries, step.head_dim)),
        }
    }
}

impl Cpu {
    /// A CPU backend with `threads` threads (the caller's among them) and this instruction set.
    pub fn new(threads: usize, isa: Isa) -> std::io::Result<Self> {
        Ok(Self::of(Team::new(threads)?, isa))
    }

    /// A CPU backend with the caller's thread and up to `threads - 1` that `executor` lends.
    pub fn lent(threads: usize, executor: Executor, isa: Isa) -> Self {
        Self::of(Team::lent(threads, executor), isa)
    }

    fn of(team: Team, isa: Isa) -> Self {
        Self {
            device: Arc::default(),
            isa,
            team,
            near: near::near(),
            x8: Buffer::default(),
            tiles: Buffer::default(),
            low: Buffer::default(),
        }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.team.threads()
    }

    /// Rows per chunk when `rows` rows are shared out.
    fn share(&self, rows: usize) -> usize {
        rows.div_ceil(self.team.threads() * CHUNKS).max(1)
    }

    fn attend_in<E: Stored>(
        &mut self,
        y: &mut Rows,
        q: &Rows,
        (pages, layer): (&Pages<E>, usize),
        spans: &[Span<'_>],
        scale: f32,
    ) {
        let shape = pages.shape();
        let dim = shape.head_dim;
        let group = q.cols / dim / shape.kv_heads;
        let mut cuts = Vec::new();
        let mut owners = Vec::new();
        for span in spans {
            for start in span.rows.clone().step_by(ATTENTION_ROWS) {
                cuts.push(start);
                owners.push(span);
            }
        }
        cuts.push(spans.last().map_or(0, |s| s.rows.end));
        // Heads of a group share the reading of a page, unless that leaves threads without work.
        let parts = (self.team.threads() * CHUNKS).div_ceil(owners.len() * shape.kv_heads).min(group);
        let heads = (1..=group / parts).rev().find(|heads| group.is_multiple_of(*heads)).unwrap_or(1);
        let isa = self.isa;
        let mut grid = [Grid::new(&mut y.data, y.cols, cuts, heads * dim)];
        self.team.tiles(&mut grid, |_, tile, scratch| {
            let span = owners[tile.index];
            let kv_head = tile.cols.start / dim / group;
            let position = span.position + tile.rows.start - span.rows.start;
            let q = &q.data[..tile.rows.end * q.cols];
            isa.run(Attend {
                cache: pages,
                layer,
                pages: span.pages,
                position,
                q,
                kv_head,
                scale,
                y: tile,
                scratch,
            });
        });
    }
}

impl Backend for Cpu {
    type Device = CpuDevice;
    type Rows = Rows;
    type Cache = Cache;

    fn device(&self) -> &Arc<CpuDevice> {
        &self.device
    }

    fn rows(&mut self, cols: usize) -> Rows {
        Rows { data: Vec::new(), rows: 0, cols }
    }

    fn resize(&mut self, x: &mut Rows, rows: usize) -> Result<(), Error> {
        let size = rows.saturating_mul(x.cols);
        if size > x.data.len() {
            let bytes = self.activation_bytes(rows, x.cols);
            x.data.try_reserve_exact(size - x.data.len()).map_err(|_| Error::OutOfMemory { bytes })?;
            x.data.resize(size, 0.0);
        }
        x.rows = rows;
        Ok(())
    }

    fn activation_bytes(&self, rows: usize, cols: usize) -> usize {
        rows.saturating_mul(cols).saturating_mul(size_of::<f32>())
    }

    fn held_bytes(&self, x: &Rows) -> usize {
        size_of_val(&x.data[..])
    }

    fn reserve(&mut self, step: &StepShape) -> Result<(), Error> {
        let needs = Needs::of(step, self);
        self.x8.reserve(needs.x8)?;
        self.tiles.reserve(needs.tiles)?;
        self.low.reserve(needs.low)?;
        self.team.reserve(needs.thread)
    }

    fn scratch_bytes(&self, step: &StepShape) -> usize {
        let Needs { x8, tiles, low, thread } = Needs::of(step, self);
        let threads = thread.bytes().saturating_mul(self.threads());
        [x8, tiles, low].map(Buffer::bytes_for).into_iter().fold(threads, usize::saturating_add)
    }

    fn reserved_bytes(&self) -> usize {
        self.x8.bytes() + self.tiles.bytes() + self.low.bytes() + self.team.reserved_bytes()
    }

    fn cache(&mut self, shape: CacheShape) -> Cache {
        match shape.format {
            Format::F16 => Cache::F16(Pages::new(shape)),
            Format::F32 => Cache::F32(Pages::new(shape)),
            Format::Q8_0 => Cache::Q8_0(Pages::new(shape)),
            format => panic!("a cache in {format}: expected F16, F32 or Q8_0"),
        }
    }

    fn grow(&mut self, cache: &mut Cache, pages: usize) -> Result<(), Error> {
        with_pages!(cache, c => c.grow(pages))
    }

    fn page<'a>(&self, cache: &'a Cache, page: u32) -> Result<&'a [u8], Error> {
        Ok(with_pages!(cache, c => c.bytes(page)))
    }

    fn set_page(&mut self, cache: &mut Cache, page: u32, bytes: &[u8]) -> Result<(), Error> {
        with_pages!(cache, c => c.set_bytes(page, bytes))
    }

    fn step<R>(&mut self, operations: impl FnOnce(&mut Self) -> R) -> R {
        let _step = self.team.step();
        operations(self)
    }

    fn embed(&mut self, y: &mut Rows, table: &Tensor, tokens: &[u32]) {
        assert_eq!(y.rows, tokens.len(), "one row per token");
        for (y, &token) in y.data.chunks_exact_mut(y.cols).zip(tokens) {
            table.decode_row(token as usize, y);
        }
    }

    fn adapt_embedding(&mut self, y: &mut Rows, tokens: &[u32], grafts: &[EmbeddingGraft<'_, Self>]) {
        for graft in grafts {
            for t in graft.rows.clone() {
                graft.change.apply(&mut y.data[t * y.cols..][..y.cols], tokens[t], graft.scale);
            }
        }
    }

    fn rms_norm(&mut self, y: &mut Rows, x: &Rows, rows: Range<usize>, weight: &Vec<f32>, eps: f32) {
        assert!(y.rows == x.rows && y.cols == x.cols && weight.len() == x.cols, "shapes of a norm");
        let (isa, share) = (self.isa, self.share(rows.len()));
        let part = &mut y.data[rows.start * x.cols..rows.end * x.cols];
        self.team.tiles(&mut [Grid::by_rows(part, x.cols, share)], |_, mut tile, _| {
            for t in tile.rows.clone() {
                isa.run(RmsNorm { x: x.row(rows.start + t), weight, eps, y: tile.row(t) });
            }
        });
    }

    fn linear(&mut self, x: &Rows, outputs: &mut [Output<'_, Self>]) {
        self.multiply(x, outputs);
    }

    fn adapt(&mut self, x: &mut Rows, grafts: &[InputGraft<'_, Self>]) {
        for graft in grafts {
            self.change_input(x, graft);
        }
    }

    fn rotate(&mut self, x: &mut Rows, heads: usize, angles: &Angles<'_>) {
        let (half, head_dim, layout) = (angles.rotary / 2, x.cols / heads, angles.layout);
        let (isa, share) = (self.isa, self.share(x.rows));
        self.team.tiles(&mut [x.by_rows(share)], |_, mut tile, _| {
            for t in tile.rows.clone() {
                let (cos, sin) = (&angles.cos[t * half..][..half], &angles.sin[t * half..][..half]);
                isa.run(Rotate { x: tile.row(t), head_dim, cos, sin, layout });
            }
        });
    }

    fn store(&mut self, cache: &mut Cache, layer: usize, (k, v): (&Rows, &Rows), spans: &[Span<'_>]) {
        for span in spans {
            for (row, position) in span.rows.clone().zip(span.position..) {
                let place = (span.pages[position / PAGE], position % PAGE);
                let (k, v) = (k.row(row), v.row(row));
                with_pages!(cache, cache => self.isa.run(Store { cache, layer, place, k, v }));
            }
        }
    }

    fn attend(
        &mut self,
        y: &mut Rows,
        q: &Rows,
        (cache, layer): (&Cache, usize),
        spans: &[Span<'_>],
        scale: f32,
    ) {
        assert!(y.rows == q.rows && y.cols == q.cols, "attention keeps the shape of the queries");
        with_pages!(cache, c => self.attend_in(y, q, (c, layer), spans, scale));
    }

    fn gate(&mut self, y: &mut Rows, x: &Rows, act: Activation) {
        assert!(y.rows == x.rows && y.cols == x.cols, "shapes of a gate");
        let (isa, share) = (self.isa, self.share(x.rows));
        self.team.tiles(&mut [y.by_rows(share)], |_, mut tile, _| {
            for t in tile.rows.clone() {
                isa.run(Gate { y: tile.row(t), x: x.row(t), act });
            }
        });
    }

    fn add(&mut self, y: &mut Rows, x: &Rows) {
        assert!(y.rows == x.rows && y.cols == x.cols, "shapes of a sum");
        let (isa, share) = (self.isa, self.share(x.rows));
        self.team.tiles(&mut [y.by_rows(share)], |_, mut tile, _| {
            for t in tile.rows.clone() {
                isa.run(Add { y: tile.row(t), x: x.row(t), scale: 1.0 });
            }
        });
    }

    fn copy(&mut self, y: &mut Rows, x: &Rows) -> Result<(), Error> {
        self.resize(y, x.rows)?;
        y.data[..x.values().len()].copy_from_slice(x.values());
        Ok(())
    }

    fn select(&mut self, y: &mut Rows, x: &Rows, rows: &[usize]) {
        assert!(y.rows == rows.len() && y.cols == x.cols, "shapes of a selection");
        for (y, &row) in y.data.chunks_exact_mut(x.cols).zip(rows) {
            y.copy_from_slice(x.row(row));
        }
    }

    fn read<'a>(&'a mut self, x: &'a Rows) -> Cow<'a, [f32]> {
        Cow::Borrowed(x.values())
    }
}
