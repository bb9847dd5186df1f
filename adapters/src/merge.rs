//! Changes made in the weights themselves: a linear layer with its edits is a linear layer again, `y = W' x + b'`.
//!
//! Output changes act on `W x + b` in order and input changes on `x` before them, whatever the order ([`crate::Change`] has the
//! equations), so `W' = (C_n ... C_1 W) T` with `x' = T x`. Each row of `W'` depends on the same row of `W` alone: a model is
//! merged row by row, in no more memory than a site's changes take.

use graftwork_kernels::backend::Generate as _;
use graftwork_kernels::{Tensor, tensor};

use crate::check::Shape;
use crate::expand::{self, Expanded};
use crate::seed::Update;
use crate::{Adapter, Change, Error, RowOrder, Site, file};

/// A change with the adapter's weight and its order of q and k rows.
#[derive(Clone, Copy, Debug)]
pub struct Applied<'a> {
    /// What is changed.
    pub change: &'a Change,
    /// The weight `w` of the adapter: what it changes is multiplied by it.
    pub weight: f32,
    /// The order of the rows of q and k in `change`.
    pub row_order: RowOrder,
}

/// A weight of the base.
#[derive(Clone, Copy, Debug)]
pub struct Base<'a> {
    /// Where.
    pub site: Site,
    /// `W [outputs, inputs]`, of a norm `[1, width]`.
    pub weight: &'a Tensor,
    /// `b [outputs]`.
    pub bias: Option<&'a [f32]>,
    /// The order of rows of q and k, and the width of a head.
    pub rows: (RowOrder, usize),
}

/// Refuses an adapter with a change that is none of weights.
///
/// # Errors
/// [`Error::Unsupported`] with the site and the reason.
pub fn check(adapter: &Adapter) -> Result<(), Error> {
    let refused = |site: Option<Site>, reason| {
        let place = site.map_or_else(String::new, |site| format!(" at {site}"));
        Err(Error::Unsupported { what: format!("merging {}{place}", adapter.kind.name()), reason })
    };
    if !adapter.invocation.is_empty() {
        return refused(None, "it acts on some tokens only, from its invocation on");
    }
    for edit in &adapter.edits {
        let reason = match (&edit.change, edit.site) {
            (Change::VirtualTokens { .. } | Change::Prefix { .. }, _) => {
                "what comes before the prompt is no part of the weights"
            }
            (Change::Bottleneck { .. }, _) => "a network with a function in it is no matrix",
            (Change::Add { .. } | Change::Project { .. }, _)
            | (_, Site::AfterAttention { .. } | Site::AfterFfn { .. } | Site::Prompt | Site::Prefix) => {
                "it changes the residual stream, which is no layer's alone"
            }
            (
                Change::LowRank { bias: None, magnitude: None, .. }
                | Change::Replace { .. }
                | Change::Rows { .. },
                Site::Embedding,
            ) => continue,
            (_, Site::Embedding) => "the embedding is no linear layer: its input is a token",
            (Change::Replace { .. }, _) => continue,
            (_, site) if site.is_norm() => "the weight of a norm is replaced or stays",
            _ => continue,
        };
        return refused(Some(edit.site), reason);
    }
    Ok(())
}

/// The changes of one weight, ready to be made.
pub struct Merge {
    outputs: Vec<Output>,
    /// In the order in which the input meets them.
    inputs: Vec<Input>,
    base_bias: Option<Vec<f32>>,
    /// Of the result.
    rows: usize,
    inputs_len: usize,
    order: Order,
}

/// Which row of an adapter stands for which of the base.
#[derive(Clone, Copy)]
struct Order(Option<(RowOrder, RowOrder, usize)>);

impl Order {
    fn source(self, row: usize) -> usize {
        self.0.map_or(row, |(from, to, head_dim)| from.source_row(to, row, head_dim))
    }

    fn vector(self, vector: &Tensor) -> Result<Vec<f32>, tensor::Error> {
        let values = vector.decode()?;
        Ok((0..values.len()).map(|row| values[self.source(row)]).collect())
    }
}

/// A change of row `o` of the weight and of `b[o]`. Vectors over outputs are in the base's order.
enum Output {
    /// `W[o,:] += by (B A)[o,:]`, `b[o] += by c[o]`.
    Product { a: Vec<f32>, b: Vec<f32>, order: Order, bias: Option<Vec<f32>>, by: f32 },
    /// `W[o,:] *= 1 + by[o]`, `b[o] += by[o] (b[o] - base[o])`, the base's bias counting as zero unless `keeps_bias`.
    Scale { by: Vec<f32>, keeps_bias: bool },
    /// `b[o] += by (c[o] - base[o])`.
    Bias { values: Vec<f32>, by: f32 },
    /// `W[o,:] += by D[o,:]`.
    Whole { matrix: Tensor, order: Order, by: f32 },
    /// The same, with `D` computed.
    Seeded { update: Update, order: Order, by: f32 },
    /// `W[o,columns[e]] += by values[e]`.
    Sparse { entries: expand::Sparse, by: f32 },
    /// `W[o,columns[e]] = values[e]`; behind other changes `W[o,columns[e]] += values[e] - before[e]`, which is the same, to the bit,
    /// where it was `before[e]` up to rounding.
    Overwrite { entries: expand::Sparse, before: Option<Vec<f32>> },
    /// `W[o, k d + l] += by L[i,k] R[j,l]` for output `i b + j` of the adapter.
    Kronecker { left: Vec<f32>, right: Vec<f32>, shape: [usize; 3], order: Order, by: f32 },
    /// `W[o,:] = V[o,:]`, `b[o] = base[o]`.
    Replace { matrix: Tensor, order: Order },
    /// `W[tokens[j],:] = V[j,:]`.
    Rows { tokens: Vec<u32>, matrix: Tensor },
}

/// A change of the layer's input.
enum Input {
    /// `x[i] *= 1 + by[i]`.
    Scale(Vec<f32>),
    /// `x = x R`, blocks of `R` on the diagonal, each `[size, size]`.
    Rotate { blocks: Vec<Vec<f32>>, size: usize },
}

impl Merge {
    /// Prepares `changes`, which must fit the base ([`crate::check::fits`]) and be such as [`check`] lets pass, in the order of
    /// the stack, on `threads` threads at most.
    ///
    /// # Errors
    /// No memory, or a row without norm under DoRA.
    pub fn new(base: Base<'_>, changes: &[Applied<'_>], threads: usize) -> Result<Self, Error> {
        let rotated = matches!(base.site, Site::Linear { module, .. } if module.is_rotated());
        let mut merge = Self {
            outputs: Vec::new(),
            inputs: Vec::new(),
            base_bias: base.bias.map(<[f32]>::to_vec),
            rows: base.weight.rows(),
            inputs_len: base.weight.cols(),
            order: Order(None),
        };
        for applied in changes {
            let (to, head_dim) = base.rows;
            merge.order = Order(rotated.then_some((applied.row_order, to, head_dim)));
            match applied.change {
                Change::LowRank { magnitude: Some(_), .. } => merge.dora(&base, applied, threads)?,
                Change::Overwrite { .. } if merge.outputs.is_empty() && applied.weight == 1.0 => {
                    merge.overwrite(&base, applied)?;
                }
                _ => merge.add(base.site, applied).map_err(|source| failed(base.site, source))?,
            }
        }
        Ok(merge)
    }

    /// Makes row `o` of the base, zeros if it has none such, that of the result.
    pub fn row(&self, o: usize, row: &mut [f32]) {
        for output in &self.outputs {
            output.row(o, row);
        }
        for input in self.inputs.iter().rev() {
            input.row(row);
        }
    }

    /// The bias of the result; zeros where there is none.
    pub fn bias(&self) -> Vec<f32> {
        let zeros = vec![0.0; self.rows];
        let base = self.base_bias.as_ref().unwrap_or(&zeros);
        let mut bias = base.clone();
        for output in &self.outputs {
            output.bias(base, &mut bias);
        }
        bias
    }

    fn add(&mut self, site: Site, applied: &Applied<'_>) -> Result<(), tensor::Error> {
        let (by, order) = (applied.weight, self.order);
        let output = match applied.change {
            Change::LowRank { a, b, scale, .. } if site == Site::Embedding => {
                // Its input is a token: `W[t,:] += s (B A)[:,t]`.
                let (a, b) = (transposed(b)?, transposed(a)?);
                Output::Product { a, b, order, bias: None, by: by * scale }
            }
            Change::LowRank { a, b, scale, bias, .. } => {
                let bias = bias.as_ref().map(|bias| order.vector(bias)).transpose()?;
                Output::Product { a: a.decode()?, b: b.decode()?, order, bias, by: by * scale }
            }
            Change::Bias { values } => Output::Bias { values: order.vector(values)?, by },
            Change::Shared { a, b, inner, outer } => {
                let (inner, outer) = (inner.decode()?, outer.decode()?);
                let wide = expand::scaled_rows(a, &inner)?.decode()?;
                let mut first = tensor::reserved(inner.len() * self.inputs_len)?;
                wide.chunks_exact(a.cols()).for_each(|row| first.extend_from_slice(&row[..self.inputs_len]));
                let mut b = expand::scaled_rows(b, &outer)?.decode()?;
                b.truncate(outer.len() * inner.len());
                Output::Product { a: first, b, order, bias: None, by }
            }
            Change::Hadamard { first, second, scale } => {
                match expand::hadamard((&first.0, &first.1), (&second.0, &second.1))? {
                    Expanded::LowRank(a, b) => {
                        Output::Product { a: a.decode()?, b: b.decode()?, order, bias: None, by: by * scale }
                    }
                    Expanded::Whole(matrix) => Output::Whole { matrix, order, by: by * scale },
                }
            }
            Change::Kronecker { left, right, scale } => {
                let (left, right) = (left.whole()?, right.whole()?);
                let shape = [left.cols(), right.rows(), right.cols()];
                let (left, right) = (left.decode()?, right.decode()?);
                Output::Kronecker { left, right, shape, order, by: by * scale }
            }
            Change::Factors { v, s, u } => {
                let (a, b) = (expand::scaled_rows(&v.to_rows()?, s)?.decode()?, u.to_rows()?.decode()?);
                Output::Product { a, b, order, bias: None, by }
            }
            Change::Whole { matrix, scale } => {
                Output::Whole { matrix: matrix.to_rows()?, order, by: by * scale }
            }
            Change::Seeded { patch } => {
                let shape = Shape { outputs: self.rows, inputs: self.inputs_len };
                match patch.update(site, shape) {
                    Some(update) => Output::Seeded { update, order, by },
                    None => return Ok(()),
                }
            }
            Change::Sparse { rows, columns, values } => {
                Output::Sparse { entries: self.by_output((rows, columns, values))?, by }
            }
            // To the bit.
            Change::Overwrite { rows, columns, values, before } if by == 1.0 => {
                let behind = !self.outputs.is_empty();
                let before = behind.then(|| self.by_output((rows, columns, before))).transpose()?;
                let before = before.map(|before| before.values);
                Output::Overwrite { entries: self.by_output((rows, columns, values))?, before }
            }
            Change::Overwrite { rows, columns, values, before } => {
                let values = expand::difference(values, before)?;
                Output::Sparse { entries: self.by_output((rows, columns, &values))?, by }
            }
            Change::OutputScale { values } => {
                let by = order.vector(values)?.iter().map(|l| by * (l - 1.0)).collect();
                Output::Scale { by, keeps_bias: false }
            }
            Change::InputScale { values } => {
                let by = values.decode()?.iter().map(|l| by * (l - 1.0)).collect();
                self.inputs.push(Input::Scale(by));
                return Ok(());
            }
            // What is there as a whole or not at all.
            _ if by == 0.0 => return Ok(()),
            Change::Rotation { skew, cayley } => {
                let blocks = expand::rotations(skew, cayley)?;
                let blocks = blocks.iter().map(Tensor::decode).collect::<Result<_, _>>()?;
                self.inputs.push(Input::Rotate { blocks, size: cayley.size });
                return Ok(());
            }
            Change::Replace { weight } => {
                self.rows = self.rows.max(weight.rows());
                Output::Replace { matrix: weight.clone(), order }
            }
            Change::Rows { tokens, rows } => Output::Rows { tokens: tokens.to_vec(), matrix: rows.clone() },
            // Refused by `check`.
            Change::Bottleneck { .. }
            | Change::Add { .. }
            | Change::Project { .. }
            | Change::VirtualTokens { .. }
            | Change::Prefix { .. } => return Ok(()),
        };
        self.outputs.push(output);
        Ok(())
    }

    /// Entries of the base itself, which must be those that they were made for.
    fn overwrite(&mut self, base: &Base<'_>, applied: &Applied<'_>) -> Result<(), Error> {
        let Change::Overwrite { rows, columns, before, .. } = applied.change else { return Ok(()) };
        let prepared = || Ok((self.by_output((rows, columns, before))?, tensor::zeros(base.weight.cols())?));
        let (before, mut row) = prepared().map_err(|source| failed(base.site, source))?;
        let format = base.weight.format();
        let (mut bytes, mut rounded) = (vec![0; format.block_bytes()], [0.0]);
        for o in 0..self.rows {
            let range = before.starts[o] as usize..before.starts[o + 1] as usize;
            if !range.is_empty() {
                base.weight.decode_row(o, &mut row);
            }
            for e in range {
                let (column, expected) = (before.columns[e] as usize, before.values[e]);
                // What was in singles beside it is rounded in its files.
                rounded[0] = expected;
                if format.block_len() == 1 {
                    format.encode(&[expected], &mut bytes);
                    format.decode(&bytes, &mut rounded);
                }
                if row[column].to_bits() != rounded[0].to_bits() {
                    let (site, part) = (base.site, "an entry to overwrite");
                    let found = format!("{} in row {o}, column {column}", row[column]);
                    return Err(Error::Misfit {
                        site,
                        part,
                        expected: format!("{expected}, as it was"),
                        found,
                    });
                }
            }
        }
        self.add(base.site, applied).map_err(|source| failed(base.site, source))
    }

    /// Entries with outputs in the base's order.
    fn by_output(&self, entries: (&[u32], &[u32], &Tensor)) -> Result<expand::Sparse, tensor::Error> {
        let order: Vec<u32> = (0..self.rows).map(|row| self.order.source(row) as u32).collect();
        expand::by_output(entries, &order)
    }

    /// `W += w ((c - 1) W + c s B A)`, the factors `c` those of the base's weight.
    fn dora(&mut self, base: &Base<'_>, applied: &Applied<'_>, threads: usize) -> Result<(), Error> {
        let Change::LowRank { a, b, scale, magnitude: Some(magnitude), .. } = applied.change else {
            return Ok(());
        };
        let order = self.order;
        let prepared = || {
            let b = match order.0 {
                Some((from, to, head_dim)) => from.reorder(to, b, head_dim)?,
                None => b.clone(),
            };
            let magnitude = order.vector(magnitude)?;
            let factors = expand::dora_factors(base.weight, (a, &b, *scale), &magnitude, threads)?;
            Ok((a.decode()?, expand::scaled_rows(&b, &factors)?.decode()?, factors))
        };
        let (a, b, factors) = prepared().map_err(|source| failed(base.site, source))?;
        if let Some(row) = factors.iter().position(|factor| !factor.is_finite()) {
            return Err(Error::Norm { site: base.site, row, found: factors[row] });
        }
        let w = applied.weight;
        let by = factors.iter().map(|c| w * (c - 1.0)).collect();
        self.outputs.push(Output::Scale { by, keeps_bias: true });
        self.outputs.push(Output::Product { a, b, order: Order(None), bias: None, by: w * scale });
        Ok(())
    }
}

impl Output {
    fn row(&self, o: usize, row: &mut [f32]) {
        match self {
            Self::Product { a, b, order, by, .. } => {
                let rank = a.len() / row.len().max(1);
                let b = &b[order.source(o) * rank..][..rank];
                for (b, a) in b.iter().zip(a.chunks_exact(row.len())) {
                    let by = by * b;
                    row.iter_mut().zip(a).for_each(|(w, a)| *w += by * a);
                }
            }
            Self::Scale { by, .. } => row.iter_mut().for_each(|w| *w *= 1.0 + by[o]),
            Self::Bias { .. } => {}
            Self::Whole { matrix, order, by } => {
                let mut delta = vec![0.0; row.len()];
                matrix.decode_row(order.source(o), &mut delta);
                row.iter_mut().zip(delta).for_each(|(w, d)| *w += by * d);
            }
            Self::Seeded { update, order, by } => {
                let mut delta = vec![0.0; row.len()];
                update.generate(order.source(o), 0, &mut delta);
                row.iter_mut().zip(delta).for_each(|(w, d)| *w += by * d);
            }
            Self::Sparse { entries, by } => {
                for e in entries.starts[o] as usize..entries.starts[o + 1] as usize {
                    row[entries.columns[e] as usize] += by * entries.values[e];
                }
            }
            Self::Overwrite { entries, before } => {
                for e in entries.starts[o] as usize..entries.starts[o + 1] as usize {
                    let (value, w) = (entries.values[e], &mut row[entries.columns[e] as usize]);
                    *w = match before.as_ref().map(|before| before[e]) {
                        Some(before) if (*w - before).abs() > 1e-5 * before.abs() => *w + (value - before),
                        _ => value,
                    };
                }
            }
            Self::Kronecker { left, right, shape: [c, b, d], order, by } => {
                let o = order.source(o);
                let right = &right[o % b * d..][..*d];
                for (piece, left) in row.chunks_exact_mut(*d).zip(&left[o / b * c..][..*c]) {
                    let by = by * left;
                    piece.iter_mut().zip(right).for_each(|(w, r)| *w += by * r);
                }
            }
            Self::Replace { matrix, order } => {
                if o < matrix.rows() {
                    matrix.decode_row(order.source(o), row);
                }
            }
            Self::Rows { tokens, matrix } => {
                if let Ok(at) = tokens.binary_search(&(o as u32)) {
                    matrix.decode_row(at, row);
                }
            }
        }
    }

    fn bias(&self, base: &[f32], bias: &mut [f32]) {
        match self {
            Self::Product { bias: Some(values), by, .. } => {
                bias.iter_mut().zip(values).for_each(|(b, v)| *b += by * v);
            }
            Self::Bias { values, by } => {
                for ((b, v), base) in bias.iter_mut().zip(values).zip(base) {
                    *b += by * (v - base);
                }
            }
            Self::Scale { by, keeps_bias } => {
                for ((b, by), base) in bias.iter_mut().zip(by).zip(base) {
                    *b += by * (*b - if *keeps_bias { *base } else { 0.0 });
                }
            }
            Self::Replace { .. } => bias.copy_from_slice(base),
            _ => {}
        }
    }
}

impl Input {
    /// `row T`.
    fn row(&self, row: &mut [f32]) {
        match self {
            Self::Scale(by) => row.iter_mut().zip(by).for_each(|(w, by)| *w *= 1.0 + by),
            Self::Rotate { blocks, size } => {
                let mut turned = vec![0.0; *size];
                for (k, piece) in row.chunks_exact_mut(*size).enumerate() {
                    let block = &blocks[if blocks.len() == 1 { 0 } else { k }];
                    // `x'[c] = sum_j x[j] R[j,c]`, so `W'[j] = sum_c R[j,c] W[c]`.
                    for (turned, r) in turned.iter_mut().zip(block.chunks_exact(*size)) {
                        *turned = r.iter().zip(&*piece).map(|(r, w)| r * w).sum();
                    }
                    piece.copy_from_slice(&turned);
                }
            }
        }
    }
}

/// `m^T`, row after row.
fn transposed(m: &Tensor) -> Result<Vec<f32>, tensor::Error> {
    let (values, rows, cols) = (m.decode()?, m.rows(), m.cols());
    let mut out = tensor::reserved(values.len())?;
    out.extend((0..values.len()).map(|at| values[at % rows * cols + at / rows]));
    Ok(out)
}

fn failed(site: Site, source: tensor::Error) -> Error {
    file::Error::Matrix { tensor: site.to_string(), source }.into()
}
