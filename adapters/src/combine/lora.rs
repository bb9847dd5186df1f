//! LoRAs become one, site by site.

use std::collections::BTreeMap;

use graftwork_kernels::{Format, Tensor, tensor};

use super::merge::{self, Rule, Task, sum};
use super::mt19937::Mt19937;
use super::{Error, Method, Options, svd};
use crate::{Adapter, Change, Edit, Site, expand, finite, parts};

/// `y += scale * B A x` of one adapter at a site, with the adapter's weight.
pub(super) struct Update<'a> {
    /// Whose, counted from 1.
    pub adapter: usize,
    pub a: &'a Tensor,
    pub b: &'a Tensor,
    pub scale: f32,
    pub weight: f32,
}

/// The updates at each site, in the order in which peft meets the sites: that of [`Site`].
type Sites<'a> = BTreeMap<Site, Vec<Update<'a>>>;

pub(super) fn combine(adapters: &[(&Adapter, f32)], options: &Options) -> Result<Vec<Edit>, Error> {
    let sites = sites(adapters)?;
    let alone = Options::new(Method::Linear);
    let options = if adapters.len() == 1 { &alone } else { options };
    let ranks = sites.values().flatten().map(|update| update.a.rows());
    let rank = options.rank.or(ranks.max()).ok_or(crate::Error::Empty)?;
    let most = sites.values().map(|updates| updates[0].a.cols().min(updates[0].b.rows())).max();
    if let Some(rank) = options.rank.filter(|&rank| Some(rank) > most) {
        let expected = "at most the lesser of inputs and outputs";
        let (option, method, found) = ("rank", options.method, rank.to_string());
        return Err(Error::Option { option, method, expected, found });
    }
    let rule = Rule::new(options);
    let mut draws = Mt19937::new(options.seed);
    if rule.is_random() {
        skip_first_values(&sites, rank, &mut draws);
    }
    let mut edits = parts::edits(sites.len())?;
    for (site, updates) in sites {
        let no_memory = |source| expand::failed(&format!("of {site}"), source);
        let (a, b) = match options.method {
            Method::Cat => cat(&updates).map_err(no_memory)?,
            Method::Svd => svd::of_products(site, &updates, rank)?,
            method if method.decomposes() => {
                let whole = whole(site, &updates, &rule, &mut draws).map_err(no_memory)?;
                svd::of_whole(site, &updates, whole, rank)?
            }
            _ => apart(site, &updates, &rule, &mut draws)?,
        };
        // Scales and weights may be large.
        finite::check(&format!("A of {site}"), &a)?;
        finite::check(&format!("B of {site}"), &b)?;
        edits.push(Edit { site, change: Change::LowRank { a, b, scale: 1.0, bias: None, magnitude: None } });
    }
    Ok(edits)
}

/// The updates by site, of equal inputs and outputs at each.
fn sites<'a>(adapters: &[(&'a Adapter, f32)]) -> Result<Sites<'a>, Error> {
    let mut sites = Sites::new();
    for (number, &(adapter, weight)) in (1..).zip(adapters) {
        for edit in &adapter.edits {
            let site = edit.site;
            let Change::LowRank { a, b, scale, bias: None, magnitude: None } = &edit.change else {
                return Err(unsupported(number, edit));
            };
            let updates = sites.entry(site).or_default();
            if updates.last().is_some_and(|last: &Update<'_>| last.adapter == number) {
                let (what, reason) = (format!("a second change of {site}"), "peft's LoRAs have one");
                return Err(Error::Unsupported { adapter: number, what, reason });
            }
            for (part, matrix) in [("A", a), ("B", b)] {
                finite::check(&format!("{part} of {site} of adapter {number}"), matrix)?;
            }
            updates.push(Update { adapter: number, a, b, scale: *scale, weight });
            let first = &updates[0];
            let shapes = [
                ("inputs of A", first.a.cols(), a.cols()),
                ("outputs of B", first.b.rows(), b.rows()),
                ("rank of B", a.rows(), b.cols()),
            ];
            for (part, expected, found) in shapes {
                same(number, site, part, expected, found)?;
            }
        }
    }
    Ok(sites)
}

fn same(adapter: usize, site: Site, part: &'static str, expected: usize, found: usize) -> Result<(), Error> {
    if expected == found {
        return Ok(());
    }
    let [expected, found] = [expected, found].map(|size| size.to_string());
    Err(Error::Shape { adapter, site, part, expected, found })
}

fn unsupported(adapter: usize, edit: &Edit) -> Error {
    let site = edit.site;
    let what = match &edit.change {
        Change::LowRank { magnitude: Some(_), .. } => format!("DoRA's magnitude at {site}"),
        Change::LowRank { .. } => format!("the bias of B at {site}"),
        Change::Bias { .. } => format!("the trained bias of {site}"),
        Change::Replace { .. } => format!("the replaced weight of {site} (modules_to_save)"),
        Change::Rows { .. } => format!("the trained tokens of {site}"),
        _ => format!("the change of {site}"),
    };
    Error::Unsupported { adapter, what, reason: "only A and B of LoRAs are; peft would lose it in silence" }
}

/// Passes over the numbers that peft draws for the first values of the new adapter: of a linear layer, `A` and `B` as layers begin,
/// then `A` as a LoRA begins; of the embedding, normal `A` and `B`, then `B`.
fn skip_first_values(sites: &Sites<'_>, rank: usize, draws: &mut Mt19937) {
    for (site, updates) in sites {
        let (a, b) = (rank * updates[0].a.cols(), rank * updates[0].b.rows());
        match site {
            Site::Embedding => [a, b, b].into_iter().for_each(|n| draws.skip_normal(n)),
            _ => [a, b, a].into_iter().for_each(|n| draws.skip_uniform(n)),
        }
    }
}

/// `A` and `B` of the updates, each combined apart: with `v = |w s|`, `A` by `sgn(w s) sqrt v` and `B` by `sqrt v`.
fn apart(
    site: Site,
    updates: &[Update<'_>],
    rule: &Rule,
    draws: &mut Mt19937,
) -> Result<(Tensor, Tensor), Error> {
    let rank = updates[0].a.rows();
    for update in updates {
        same(update.adapter, site, "rank", rank, update.a.rows())?;
    }
    let weight = |update: &Update<'_>| f64::from(update.weight) * f64::from(update.scale);
    let roots: Vec<f32> = updates.iter().map(|update| weight(update).abs().sqrt() as f32).collect();
    let signed: Vec<f32> =
        updates.iter().zip(&roots).map(|(update, root)| root * weight(update).signum() as f32).collect();
    let mut merge = |matrices: &[&Tensor], weights: &[f32]| {
        let task = |matrix: &&Tensor| Ok(Task { values: matrix.decode()?, cols_if_transposed: None });
        let tasks = matrices.iter().map(task).collect::<Result<Vec<Task>, tensor::Error>>()?;
        let values = rule.merge(tasks, weights, draws)?;
        Tensor::encode(format(updates), matrices[0].rows(), matrices[0].cols(), &values)
    };
    let a: Vec<&Tensor> = updates.iter().map(|update| update.a).collect();
    let b: Vec<&Tensor> = updates.iter().map(|update| update.b).collect();
    let no_memory = |source| expand::failed(&format!("of {site}"), source);
    let a = merge(&a, &signed).map_err(no_memory)?;
    Ok((a, merge(&b, &roots).map_err(no_memory)?))
}

/// `A = [w_i s_i A_i]`, one under the other, and `B = [B_i]`, side by side.
fn cat(updates: &[Update<'_>]) -> Result<(Tensor, Tensor), tensor::Error> {
    let (inputs, outputs) = (updates[0].a.cols(), updates[0].b.rows());
    let rank: usize = updates.iter().map(|update| update.a.rows()).sum();
    let mut a = tensor::reserved(rank.saturating_mul(inputs))?;
    let mut b = tensor::zeros(outputs.saturating_mul(rank))?;
    let mut at = 0;
    for update in updates {
        a.extend(update.a.decode()?.iter().map(|value| value * update.weight * update.scale));
        let columns = update.b.cols();
        for (row, values) in b.chunks_exact_mut(rank).zip(update.b.decode()?.chunks_exact(columns)) {
            row[at..][..columns].copy_from_slice(values);
        }
        at += columns;
    }
    let format = format(updates);
    Ok((Tensor::encode(format, rank, inputs, &a)?, Tensor::encode(format, outputs, rank, &b)?))
}

/// The updates `D_i = s_i B_i A_i` `[outputs, inputs]`, pruned and combined with `w_i`. peft holds those of the embedding transposed.
fn whole(
    site: Site,
    updates: &[Update<'_>],
    rule: &Rule,
    draws: &mut Mt19937,
) -> Result<Vec<f32>, tensor::Error> {
    let mut tasks = Vec::new();
    for update in updates {
        let values = sum(&[expand::product(update.b, update.a)?.decode()?], &[update.scale])?;
        let cols_if_transposed = (site == Site::Embedding).then_some(update.a.cols());
        tasks.push(Task { values, cols_if_transposed });
    }
    let weights: Vec<f32> = updates.iter().map(|update| update.weight).collect();
    rule.merge(tasks, &weights, draws)
}

impl Update<'_> {
    fn formats(&self) -> [Format; 2] {
        [self.a.format(), self.b.format()]
    }
}

/// The format of the result.
pub(super) fn format(updates: &[Update<'_>]) -> Format {
    merge::format(updates.iter().flat_map(Update::formats))
}
