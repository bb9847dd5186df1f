//! Factors, prompts and prefixes become one: `v = sum_i w_i v_i`.

use std::collections::BTreeMap;

use graftwork_kernels::Tensor;

use super::{Error, merge};
use crate::{Adapter, Change, Edit, Site, expand, finite, parts};

/// The adapter's number, counted from 1, its change and its weight.
type Weighted<'a> = (usize, &'a Change, f32);

pub(super) fn combine(adapters: &[(&Adapter, f32)]) -> Result<Vec<Edit>, Error> {
    let mut sites: BTreeMap<Site, Vec<Weighted<'_>>> = BTreeMap::new();
    for (number, &(adapter, weight)) in (1..).zip(adapters) {
        for edit in &adapter.edits {
            sites.entry(edit.site).or_default().push((number, &edit.change, weight));
        }
    }
    if sites.is_empty() {
        return Err(crate::Error::Empty.into());
    }
    let mut edits = parts::edits(sites.len())?;
    for (site, changes) in sites {
        edits.push(Edit { site, change: sum(site, &changes)? });
    }
    Ok(edits)
}

fn sum(site: Site, changes: &[Weighted<'_>]) -> Result<Change, Error> {
    let (_, first, _) = changes[0];
    let (mut tasks, mut weights, mut last) = (Vec::new(), Vec::new(), 0);
    let mut formats = Vec::new();
    let mut shape = [0, 0];
    for &(adapter, change, weight) in changes {
        let values = match (first, change) {
            (Change::OutputScale { .. }, Change::OutputScale { values })
            | (Change::InputScale { .. }, Change::InputScale { values })
            | (Change::VirtualTokens { .. }, Change::VirtualTokens { rows: values }) => values,
            (Change::Prefix { layers, .. }, Change::Prefix { rows, layers: of }) if layers == of => rows,
            (first, change) => {
                return Err(Error::Shape {
                    adapter,
                    site,
                    part: "change",
                    expected: what(first),
                    found: what(change),
                });
            }
        };
        if adapter == last {
            let (what, reason) = (format!("a second change of {site}"), "there is one of each");
            return Err(Error::Unsupported { adapter, what, reason });
        }
        last = adapter;
        let found = [values.rows(), values.cols()];
        if tasks.is_empty() {
            shape = found;
        }
        if found != shape {
            let [expected, found] = [shape, found].map(|shape| format!("{shape:?}"));
            return Err(Error::Shape { adapter, site, part: "values", expected, found });
        }
        formats.push(values.format());
        tasks.push(values.decode().map_err(|source| expand::failed(&format!("of {site}"), source))?);
        weights.push(weight);
    }
    let values = merge::sum(&tasks, &weights)
        .and_then(|values| Tensor::encode(merge::format(formats), shape[0], shape[1], &values));
    let values = values.map_err(|source| expand::failed(&format!("of {site}"), source))?;
    finite::check(&format!("of {site}"), &values)?;
    Ok(match first {
        Change::OutputScale { .. } => Change::OutputScale { values },
        Change::InputScale { .. } => Change::InputScale { values },
        Change::Prefix { layers, .. } => Change::Prefix { rows: values, layers: *layers },
        _ => Change::VirtualTokens { rows: values },
    })
}

fn what(change: &Change) -> String {
    match change {
        Change::OutputScale { .. } => "factors of outputs".to_owned(),
        Change::InputScale { .. } => "factors of inputs".to_owned(),
        Change::VirtualTokens { .. } => "virtual tokens".to_owned(),
        Change::Prefix { layers, .. } => format!("a prefix for {layers} layers"),
        _ => "another change".to_owned(),
    }
}
