//! Bottlenecks and rotations of rows: small matrices with something between or beside them.

use std::ops::Range;

use super::arena::Arena;
use super::isa::LANES;
use super::layer::{Between, Inward, PROJECT_ROWS, add, slice};
use super::linear::{Inputs, Lane, Lanes, Matrix};
use super::rows::Add;
use super::team::Grid;
use super::{Cpu, Rows};
use crate::backend::{Activation, BottleneckWeights};
use crate::tensor::{Error, Tensor, reserved};

/// `B f(A x + a) + b`.
pub struct Bottleneck {
    down: Matrix,
    down_bias: Vec<f32>,
    act: Activation,
    /// `B`.
    pub(super) up: Matrix,
    /// `b`.
    pub(super) up_bias: Option<Vec<f32>>,
}

impl Bottleneck {
    /// Packs its matrices.
    pub(super) fn new(weights: &BottleneckWeights, arena: &Arena) -> Result<Self, Error> {
        let vector = |values: &[f32]| {
            let mut vector = reserved(values.len())?;
            vector.extend_from_slice(values);
            Ok(vector)
        };
        Ok(Self {
            down: Matrix::pack(&weights.down, arena)?,
            down_bias: vector(weights.down_bias.as_deref().unwrap_or_default())?,
            act: weights.activation,
            up: Matrix::pack(&weights.up, arena)?,
            up_bias: weights.up_bias.as_deref().map(vector).transpose()?,
        })
    }

    /// Values between the matrices.
    pub(super) fn size(&self) -> usize {
        self.down.rows()
    }

    /// Shapes are the caller's duty.
    pub(super) fn check(&self, inputs: usize, outputs: usize) {
        assert!(
            self.down.cols() == inputs
                && self.up.rows() == outputs
                && self.up.cols() == self.size()
                && [0, self.size()].contains(&self.down_bias.len())
                && self.up_bias.as_ref().is_none_or(|bias| bias.len() == outputs)
                && !self.down.integer()
                && !self.up.integer(),
            "shapes and formats of a bottleneck"
        );
    }

    /// `scale f(A x + a)` for some rows.
    pub(super) fn inward(&self, rows: Range<usize>, scale: f32) -> Inward<'_> {
        Inward {
            rows,
            scale,
            matrix: &self.down,
            between: Between::Act(&self.down_bias, self.act),
            rounded: false,
        }
    }
}

/// A block-diagonal matrix, one block after the other; one alone stands for all.
pub struct Rotation {
    /// Transposed: rows are outputs.
    blocks: Vec<Matrix>,
    size: usize,
}

impl Rotation {
    /// Packs the transposes of `blocks`.
    pub(super) fn new(blocks: &[Tensor], arena: &Arena) -> Result<Self, Error> {
        let size = blocks.first().map_or(0, Tensor::rows);
        let mut packed = reserved(blocks.len())?;
        for block in blocks {
            let values = block.decode()?;
            let mut turned = reserved(values.len())?;
            turned.extend((0..values.len()).map(|at| values[at % size * size + at / size]));
            let block = Tensor::encode(crate::Format::F32, size, size, &turned)?;
            packed.push(Matrix::pack(&block, arena)?);
        }
        Ok(Self { blocks: packed, size })
    }
}

impl Cpu {
    /// `x[t,i] += scale z[t,i]` for some rows, with `z` what the bottleneck makes of them.
    pub(super) fn narrow(&mut self, x: &mut Rows, rows: &Range<usize>, bottleneck: &Bottleneck, scale: f32) {
        let (isa, cols, size) = (self.isa, x.cols, bottleneck.size());
        bottleneck.check(cols, cols);
        let inputs = Inputs { x: &x.data, stride: cols, cols, x8: &[], tiles: &[] };
        let low = self.low.slice::<f32>(rows.len() * size);
        let inward = bottleneck.inward(rows.clone(), scale);
        self.team
            .tiles(&mut [inward.grid(low)], |_, tile, scratch| inward.compute(isa, &inputs, tile, scratch));
        let inputs = Inputs { x: low, stride: size, cols: size, x8: &[], tiles: &[] };
        let strips = cols.div_ceil(LANES).div_ceil(self.team.threads() * super::CHUNKS).max(1);
        let cuts = (0..rows.len()).step_by(PROJECT_ROWS).chain([rows.len()]).collect();
        let part = &mut x.data[rows.start * cols..rows.end * cols];
        self.team.tiles(&mut [Grid::new(part, cols, cuts, strips * LANES)], |_, mut tile, scratch| {
            let lanes = scratch.lanes.slice::<Lane>(tile.rows.len());
            for strip in tile.cols.start / LANES..tile.cols.end.div_ceil(LANES) {
                let at = strip * LANES - tile.cols.start;
                let out = Lanes::strip(lanes);
                bottleneck.up.multiply(isa, strip..strip + 1, &inputs, tile.rows.clone(), true, out);
                for (t, lane) in tile.rows.clone().zip(&mut *lanes) {
                    if let Some(bias) = &bottleneck.up_bias {
                        add(lane, slice(bias, strip), scale);
                    }
                    let y = &mut tile.row(t)[at..];
                    y.iter_mut().zip(lane).for_each(|(y, z)| *y += *z);
                }
            }
        });
    }

    /// `x[t, k n + c] = sum_j x[t, k n + j] R_k[j,c]` for some rows.
    pub(super) fn turn(&mut self, x: &mut Rows, rows: &Range<usize>, rotation: &Rotation) {
        let (isa, cols, size) = (self.isa, x.cols, rotation.size);
        let count = rotation.blocks.len();
        assert!(
            size > 0 && cols.is_multiple_of(size) && (count == 1 || count == cols / size),
            "shapes of a rotation"
        );
        let part = &mut x.data[rows.start * cols..rows.end * cols];
        let old = self.low.slice::<f32>(part.len());
        old.copy_from_slice(part);
        let old = &*old;
        let cuts = (0..rows.len()).step_by(PROJECT_ROWS).chain([rows.len()]).collect();
        // Small blocks go together.
        let width = (4 * LANES / size).max(1) * size;
        self.team.tiles(&mut [Grid::new(part, cols, cuts, width)], |_, mut tile, scratch| {
            let lanes = scratch.lanes.slice::<Lane>(tile.rows.len());
            for k in tile.cols.start / size..tile.cols.end / size {
                let block = &rotation.blocks[if count == 1 { 0 } else { k }];
                let inputs = Inputs { x: &old[k * size..], stride: cols, cols: size, x8: &[], tiles: &[] };
                for strip in 0..size.div_ceil(LANES) {
                    let out = Lanes::strip(lanes);
                    block.multiply(isa, strip..strip + 1, &inputs, tile.rows.clone(), true, out);
                    let at = k * size - tile.cols.start;
                    for (t, lane) in tile.rows.clone().zip(&*lanes) {
                        let y = &mut tile.row(t)[at..at + size][strip * LANES..];
                        y.iter_mut().zip(lane).for_each(|(y, z)| *y = *z);
                    }
                }
            }
        });
    }

    /// `x[t,i] += scale v[i]` for some rows.
    pub(super) fn steer(&mut self, x: &mut Rows, rows: &Range<usize>, direction: &[f32], scale: f32) {
        assert_eq!(direction.len(), x.cols, "the length of a direction");
        let (isa, share, cols) = (self.isa, self.share(rows.len()), x.cols);
        let part = &mut x.data[rows.start * cols..rows.end * cols];
        self.team.tiles(&mut [Grid::by_rows(part, cols, share)], |_, mut tile, _| {
            for t in tile.rows.clone() {
                isa.run(Add { y: tile.row(t), x: direction, scale });
            }
        });
    }
}
