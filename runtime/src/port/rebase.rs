//! What replaces something of the old base becomes what would replace it in the new one.

use graftwork_adapters::{Adapter, Change, Edit, RowOrder, Site, expand};
use graftwork_kernels::{Format, Tensor, tensor};

use super::{Error, Options};
use crate::compress::Pair;

/// The adapter with every such change rebased, and how many there were.
pub fn rebase(mut adapter: Adapter, pair: &Pair, options: &Options<'_>) -> Result<(Adapter, usize), Error> {
    let mut rebased = 0;
    let order = adapter.row_order;
    for Edit { site, change } in &mut adapter.edits {
        let rebase = Rebase { pair, site: *site, order, threads: options.threads };
        if let Some(new) = rebase.change(change)? {
            *change = new;
            rebased += 1;
        }
    }
    adapter.base_model = options.base_model.map(str::to_owned);
    Ok((adapter, rebased))
}

struct Rebase<'a> {
    pair: &'a Pair,
    site: Site,
    /// Of rows of q and k in the adapter.
    order: RowOrder,
    threads: usize,
}

impl Rebase<'_> {
    /// The change for the new base, unless it is the same.
    fn change(&self, change: &Change) -> Result<Option<Change>, Error> {
        let failed = |source| crate::Error::AdapterWeight { site: self.site, source };
        Ok(match change {
            Change::Replace { weight } => {
                let weight = self.moved(weight, self.weights()?, Some).map_err(failed)?;
                Some(Change::Replace { weight })
            }
            Change::Rows { tokens, rows } => {
                let of_row = |row: usize| tokens.get(row).map(|&token| token as usize);
                let rows = self.moved(rows, self.weights()?, of_row).map_err(failed)?;
                Some(Change::Rows { tokens: tokens.clone(), rows })
            }
            Change::Bias { values } => match self.pair.biases_at(self.site)? {
                // Of none, before and after, it is what it adds.
                [None, None] => None,
                biases => {
                    let zeros = || Tensor::encode(Format::F32, 1, values.cols(), &vec![0.0; values.cols()]);
                    let biases = biases.map(|bias| match bias {
                        Some(bias) => self.in_order(&bias),
                        None => zeros(),
                    });
                    let [old, new] = biases;
                    let pair = [old.map_err(failed)?, new.map_err(failed)?];
                    Some(Change::Bias { values: self.moved(values, pair, Some).map_err(failed)? })
                }
            },
            Change::LowRank { a, b, scale, bias, magnitude: Some(magnitude) } => {
                let weights = self.weights()?;
                let ratios = self.norms((a, b, *scale), weights).map_err(failed)?;
                if let Some(row) = ratios.iter().position(|ratio| !ratio.is_finite()) {
                    let (site, found) = (self.site, ratios[row]);
                    return Err(graftwork_adapters::Error::Norm { site, row, found }.into());
                }
                let magnitude = expand::scaled_rows(&column(magnitude).map_err(failed)?, &ratios);
                let magnitude =
                    magnitude.and_then(|m| Tensor::new(m.format(), 1, m.rows(), m.bytes().clone()));
                let magnitude = magnitude.map_err(failed)?;
                let (a, b, scale, bias) = (a.clone(), b.clone(), *scale, bias.clone());
                Some(Change::LowRank { a, b, scale, bias, magnitude: Some(magnitude) })
            }
            Change::Overwrite { rows, columns, values, before } => {
                let change =
                    expand::difference(values, before).and_then(|change| change.decode()).map_err(failed)?;
                let weight = &self.weights()?[1];
                let mut row_values = vec![0.0; weight.cols()];
                let mut old: Vec<f32> = Vec::with_capacity(change.len());
                let mut decoded = None;
                for (&row, &column) in rows.iter().zip(&**columns) {
                    if decoded != Some(row) {
                        weight.decode_row(row as usize, &mut row_values);
                        decoded = Some(row);
                    }
                    old.push(row_values[column as usize]);
                }
                let new: Vec<f32> = old.iter().zip(change).map(|(old, change)| old + change).collect();
                let tensor = |values: &[f32]| Tensor::encode(values_format(weight), 1, values.len(), values);
                let (values, before) = (tensor(&new).map_err(failed)?, tensor(&old).map_err(failed)?);
                Some(Change::Overwrite { rows: rows.clone(), columns: columns.clone(), values, before })
            }
            // What is added, scaled, rotated or put before the prompt is what it was.
            _ => None,
        })
    }

    /// The weight of the old base and of the new one, rows in the adapter's order.
    fn weights(&self) -> Result<[Tensor; 2], Error> {
        let failed = |source| crate::Error::AdapterWeight { site: self.site, source };
        let [old, new] = self.pair.weights_at(self.site)?;
        Ok([self.in_order(&old).map_err(failed)?, self.in_order(&new).map_err(failed)?])
    }

    /// A weight or bias of the pair, rows in the adapter's order.
    fn in_order(&self, tensor: &Tensor) -> Result<Tensor, tensor::Error> {
        let (from, head_dim) = (self.pair.row_order(), self.pair.config().head_dim);
        match self.site {
            Site::Linear { module, .. } if module.is_rotated() && from != self.order => match tensor.rows() {
                1 => from.reorder_vector(self.order, tensor, head_dim),
                _ => from.reorder(self.order, tensor, head_dim),
            },
            _ => Ok(tensor.clone()),
        }
    }

    /// `W' + (V - W)`, where row `r` of `V` is row `of_row(r)` of the bases, if they have it.
    fn moved(
        &self,
        tensor: &Tensor,
        [old, new]: [Tensor; 2],
        of_row: impl Fn(usize) -> Option<usize>,
    ) -> Result<Tensor, tensor::Error> {
        let (cols, mut values) = (tensor.cols(), tensor.decode()?);
        let (mut from, mut to) = (vec![0.0; cols], vec![0.0; cols]);
        for (row, values) in values.chunks_exact_mut(cols.max(1)).enumerate() {
            let Some(row) = of_row(row).filter(|&row| row < old.rows().min(new.rows())) else { continue };
            old.decode_row(row, &mut from);
            new.decode_row(row, &mut to);
            for ((value, from), to) in values.iter_mut().zip(&from).zip(&to) {
                // What was the base's own stays so, to the bit.
                *value = if value == from { *to } else { to + (*value - from) };
            }
        }
        Tensor::encode(Format::F32, tensor.rows(), cols, &values)
    }

    /// `|W' + s B A| / |W + s B A|` of each row: with magnitudes that grow so the factor of the output stays what it was.
    fn norms(
        &self,
        low_rank: (&Tensor, &Tensor, f32),
        weights: [Tensor; 2],
    ) -> Result<Vec<f32>, tensor::Error> {
        let ones = vec![1.0; low_rank.1.rows()];
        let [old, new] = weights.map(|weight| expand::dora_factors(&weight, low_rank, &ones, self.threads));
        Ok(old?.iter().zip(new?).map(|(old, new)| old / new).collect())
    }
}

/// A vector as a matrix of one column.
fn column(vector: &Tensor) -> Result<Tensor, tensor::Error> {
    Tensor::encode(Format::F32, vector.cols(), 1, &vector.decode()?)
}

/// What values of a tensor's entries are kept in.
fn values_format(tensor: &Tensor) -> Format {
    if tensor.format().block_len() == 1 { tensor.format() } else { Format::F32 }
}
