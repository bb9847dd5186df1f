//! LoRA: one rank and alpha, and patterns where a site has others.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Files, module, names, unsupported};
use crate::{Adapter, Change, Edit, Error, Site};

pub(super) fn files(adapter: &Adapter) -> Result<Files, Error> {
    let mut files = Files::new(adapter, "LORA");
    let is_low_rank = |edit: &&Edit| matches!(edit.change, Change::LowRank { .. });
    let low_rank: Vec<&Edit> = adapter.edits.iter().filter(is_low_rank).collect();
    if low_rank.is_empty() {
        return Err(unsupported(&adapter.edits[0], "nothing but the change", "LoRAs of peft have A and B"));
    }
    let mut saved = Vec::new();
    let mut tokens_of = Map::new();
    for edit in &adapter.edits {
        let (name, path) = module(edit)?;
        match &edit.change {
            Change::LowRank { a, b, bias, magnitude, .. } => {
                if edit.site == Site::Embedding {
                    files.matrix(format!("{name}.lora_embedding_A"), a)?;
                    files.matrix(format!("{name}.lora_embedding_B"), b)?;
                } else if edit.site.is_linear() || edit.site == Site::Head {
                    files.matrix(format!("{name}.lora_A.weight"), a)?;
                    files.matrix(format!("{name}.lora_B.weight"), b)?;
                } else {
                    return Err(unsupported(edit, "the low-rank update", "peft has none there"));
                }
                if let Some(bias) = bias {
                    files.vector(format!("{name}.lora_B.bias"), bias)?;
                }
                if let Some(magnitude) = magnitude {
                    files.vector(format!("{name}.lora_magnitude_vector"), magnitude)?;
                }
            }
            Change::Replace { weight } => {
                let is_adapted = low_rank.iter().any(|other| other.site == edit.site);
                let name = format!("{name}{}.weight", if is_adapted { ".base_layer" } else { "" });
                if edit.site.is_norm() {
                    files.vector(name, weight)?;
                } else {
                    files.matrix(name, weight)?;
                }
                if !is_adapted {
                    saved.push(path);
                }
            }
            Change::Rows { tokens, rows } if edit.site == Site::Embedding => {
                files.matrix(format!("{name}.token_adapter.trainable_tokens_delta"), rows)?;
                tokens_of.insert(path, json!(&tokens[..]));
            }
            _ => {
                let reason = "only low-rank updates, replaced modules and trained tokens are";
                return Err(unsupported(edit, "the change", reason));
            }
        }
    }
    let sites: Vec<Site> = low_rank.iter().map(|edit| edit.site).collect();
    files.set("target_modules", names::targets(&sites, names::grid(&sites).is_some()));
    ranks(&mut files, &low_rank)?;
    let flag = |has: fn(&Change) -> bool, what| match low_rank.iter().find(|edit| !has(&edit.change)) {
        Some(edit) if low_rank.iter().any(|edit| has(&edit.change)) => {
            Err(unsupported(edit, what, "of LoRAs of peft all sites have one, or none"))
        }
        found => Ok(found.is_none()),
    };
    let magnitudes = |change: &Change| matches!(change, Change::LowRank { magnitude: Some(_), .. });
    files.set("use_dora", flag(magnitudes, "the update without a magnitude")?);
    let biases = |change: &Change| matches!(change, Change::LowRank { bias: Some(_), .. });
    files.set("lora_bias", flag(biases, "the update without a bias of B")?);
    files.set("modules_to_save", (!saved.is_empty()).then_some(saved));
    files.set("trainable_token_indices", (!tokens_of.is_empty()).then_some(tokens_of));
    let invocation = (!adapter.invocation.is_empty()).then(|| adapter.invocation.clone());
    files.set("alora_invocation_tokens", invocation);
    for (field, value) in
        [("bias", json!("none")), ("use_rslora", json!(false)), ("lora_dropout", json!(0.0))]
    {
        files.set(field, value);
    }
    Ok(files)
}

/// `r` and `lora_alpha` of most sites, and patterns for the others: `alpha = scale r` of the site, exact in doubles.
fn ranks(files: &mut Files, low_rank: &[&Edit]) -> Result<(), Error> {
    let mut of_sites = Vec::new();
    for edit in low_rank {
        if let Change::LowRank { a, scale, .. } = &edit.change {
            of_sites.push((module(edit)?.1, a.rows(), f64::from(*scale) * a.rows() as f64));
        }
    }
    let rank = most_frequent(of_sites.iter().map(|&(_, rank, _)| rank as u64)).unwrap_or(8);
    let alpha =
        most_frequent(of_sites.iter().map(|&(.., alpha)| alpha.to_bits())).map_or(8.0, f64::from_bits);
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for (path, site_rank, site_alpha) in of_sites {
        // A pattern is an expression that the whole path matches.
        let pattern = path.replace('.', r"\.");
        if site_rank as u64 != rank {
            ranks.insert(pattern.clone(), site_rank.into());
        }
        if site_alpha != alpha {
            alphas.insert(pattern, number(site_alpha));
        }
    }
    files.set("r", rank);
    files.set("lora_alpha", number(alpha));
    files.set("rank_pattern", ranks);
    files.set("alpha_pattern", alphas);
    Ok(())
}

/// A whole number as such, which is what peft writes.
fn number(value: f64) -> Value {
    match value as i64 as f64 == value {
        true => json!(value as i64),
        false => json!(value),
    }
}

/// Of equally frequent ones, the least.
fn most_frequent(values: impl Iterator<Item = u64>) -> Option<u64> {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1);
    counts.into_iter().rev().max_by_key(|&(_, count)| count).map(|(value, _)| value)
}
