//! Formats whose codes come in groups, of which only some exist, the points of a grid: the search for those near some values.
//!
//! ggml's search visits the neighbours of what rounding gives; this one all points, with scales of which each is refined by least
//! squares. It takes longer and is nearer.

use std::array::from_fn;

use half::f16;

use super::search::TINY;

/// Points that are compared at a time.
const CHUNK: usize = 16;

/// How many scales are tried, and by what each is smaller than the one before.
const TRIES: i32 = 16;
const RATIO: f32 = 0.93;

/// What the first of them makes of the value of largest magnitude, in the largest of the grid.
const FIRST: f32 = 2.2;

/// Points of `L` values.
pub struct Grid<const L: usize> {
    /// Of each chunk of points the first values, then the second ones.
    values: Vec<[[f32; CHUNK]; L]>,
    /// Half the sum of squares of each point.
    halves: Vec<[f32; CHUNK]>,
    largest: f32,
}

impl<const L: usize> Grid<L> {
    /// `value(p, j)` is value `j` of the point that `points[p]` stands for.
    pub fn new(points: &[u16], value: impl Fn(u16, usize) -> i32) -> Self {
        let chunks = points.as_chunks::<CHUNK>().0;
        let values: Vec<[[f32; CHUNK]; L]> =
            chunks.iter().map(|chunk| from_fn(|j| chunk.map(|p| value(p, j) as f32))).collect();
        let halves = values.iter().map(|chunk| from_fn(|p| chunk.iter().map(|v| v[p] * v[p] / 2.0).sum()));
        let largest = values.as_flattened().as_flattened().iter().fold(0.0, |a: f32, v| a.max(v.abs()));
        Self { halves: halves.collect(), values, largest }
    }

    /// The point nearest to `u`.
    fn nearest(&self, u: &[f32]) -> usize {
        let mut best = (f32::INFINITY, 0);
        for (c, (values, halves)) in self.values.iter().zip(&self.halves).enumerate() {
            // Half the squared distance, less that of `u` from 0.
            let mut costs = *halves;
            for (values, u) in values.iter().zip(u) {
                for (cost, value) in costs.iter_mut().zip(values) {
                    *cost -= value * u;
                }
            }
            let least = costs.iter().copied().fold(f32::INFINITY, |a, b| if b < a { b } else { a });
            if least < best.0 {
                best = (least, CHUNK * c + costs.iter().position(|&cost| cost == least).unwrap_or(0));
            }
        }
        best.1
    }

    fn value(&self, point: usize, j: usize) -> f32 {
        self.values[point / CHUNK][j][point % CHUNK]
    }
}

/// Which signs the values of points may take.
#[derive(Clone, Copy, PartialEq)]
pub enum Signs {
    /// Those that they have.
    Own,
    /// Any.
    Free,
    /// Of each eight, an even number negative.
    Even,
}

/// A format of 256 values, `x = d (2 s + 1) u v`, where `v` are points.
pub struct Kind<'a, const L: usize> {
    /// The grids, of which each group takes one.
    pub grids: &'a [Grid<L>],
    /// Values in a group, which share `s`: 16 or 32.
    pub group: usize,
    /// The largest `s`.
    pub most: u8,
    /// `u`.
    pub unit: f32,
    /// The signs.
    pub signs: Signs,
}

/// What a block is made of.
pub struct Choice {
    /// `d`.
    pub d: f16,
    /// `s` of each group.
    pub scales: [u8; 16],
    /// The grid of each group.
    pub grids: [usize; 16],
    /// Of each `L` values.
    pub points: [u16; 64],
    /// Of each eight values, bit `i` set if value `i` is negative.
    pub signs: [u8; 32],
}

/// The points of a group.
#[derive(Clone, Copy, Default)]
struct Group {
    points: [u16; 8],
    signs: [u8; 4],
    grid: usize,
    /// `sum x v` and `sum v v`.
    products: f32,
    squares: f32,
}

impl<const L: usize> Kind<'_, L> {
    /// Makes `sum (x - d (2 s + 1) u v)^2` small over 256 values.
    pub fn choose(&self, x: &[f32]) -> Choice {
        let groups = x.chunks(self.group);
        let mut wanted = [0.0; 16];
        for (wanted, x) in wanted.iter_mut().zip(groups.clone()) {
            *wanted = self.fit(x);
        }
        let largest = wanted.iter().copied().fold(0.0, |a: f32, b| if b > a { b } else { a });
        let mut choice =
            Choice { d: f16::ZERO, scales: [0; 16], grids: [0; 16], points: [0; 64], signs: [0; 32] };
        if largest < TINY {
            return choice;
        }
        let d = f16::from_f32(largest / (self.unit * (2.0 * f32::from(self.most) + 1.0)));
        let step = d.to_f32().max(f32::MIN_POSITIVE) * self.unit;
        let (mut products, mut squares) = (0.0, 0.0);
        for (g, x) in groups.enumerate() {
            let code = ((wanted[g] / step - 1.0) / 2.0).round().clamp(0.0, f32::from(self.most));
            let times = 2.0 * code + 1.0;
            let group = self.best_points(x, 1.0 / (step * times));
            let (points, signs) = (self.group / L, self.group / 8);
            choice.scales[g] = code as u8;
            choice.grids[g] = group.grid;
            choice.points[g * points..][..points].copy_from_slice(&group.points[..points]);
            choice.signs[g * signs..][..signs].copy_from_slice(&group.signs[..signs]);
            products += times * group.products;
            squares += times * times * group.squares;
        }
        choice.d = if squares > 0.0 { f16::from_f32(products / squares / self.unit) } else { d };
        choice
    }

    /// The scale with which the points nearest to `x` make the least error.
    fn fit(&self, x: &[f32]) -> f32 {
        let extreme = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        if extreme < TINY {
            return 0.0;
        }
        let (mut gain, mut scale) = (0.0, 0.0);
        // After the last once more, from the best.
        for i in 0..=TRIES {
            let tried = FIRST * RATIO.powi(i) * self.grids[0].largest / extreme;
            let group = self.best_points(x, if i == TRIES { 1.0 / scale } else { tried });
            let fitted = group.products / group.squares;
            if fitted > 0.0 && fitted * group.products > gain {
                (gain, scale) = (fitted * group.products, fitted);
            }
        }
        scale
    }

    /// The points nearest to `inverse x`, of the grid that is nearest.
    fn best_points(&self, x: &[f32], inverse: f32) -> Group {
        let error = |group: &Group| group.squares - 2.0 * inverse * group.products;
        let groups = (0..self.grids.len()).map(|grid| self.points(x, inverse, grid));
        groups.reduce(|a, b| if error(&b) < error(&a) { b } else { a }).unwrap_or_default()
    }

    fn points(&self, x: &[f32], inverse: f32, grid: usize) -> Group {
        let mut group = Group { grid, ..Group::default() };
        let grid = &self.grids[grid];
        for (e, x) in x.as_chunks::<8>().0.iter().enumerate() {
            let mut signs = 0u8;
            if self.signs != Signs::Own {
                signs = (0..8).map(|i| u8::from(x[i] < 0.0) << i).sum();
            }
            if self.signs == Signs::Even && signs.count_ones() % 2 == 1 {
                let least = (1..8).fold(0, |least, i| if x[i].abs() < x[least].abs() { i } else { least });
                signs ^= 1 << least;
            }
            group.signs[e] = signs;
            let u: [f32; 8] = from_fn(|i| if signs >> i & 1 == 1 { -x[i] } else { x[i] });
            for (k, u) in u.as_chunks::<L>().0.iter().enumerate() {
                let point = grid.nearest(&u.map(|u| u * inverse));
                group.points[e * 8 / L + k] = point as u16;
                for (j, u) in u.iter().enumerate() {
                    let value = grid.value(point, j);
                    group.products += u * value;
                    group.squares += value * value;
                }
            }
        }
        group
    }
}

/// The sign of each of eight values from the first seven, of which and the eighth an even number is negative.
pub fn with_eighth(seven: u8) -> u8 {
    seven | ((seven.count_ones() % 2) as u8) << 7
}
