//! What `target_modules` and its kin call modules.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Module, Site};

/// The number of layers, if there is one at least and every layer up to the last has the same linear ones of these sites.
pub(super) fn grid(sites: &[Site]) -> Option<usize> {
    let mut layers: BTreeMap<usize, BTreeSet<Module>> = BTreeMap::new();
    for site in sites {
        if let Site::Linear { layer, module } = *site {
            layers.entry(layer).or_default().insert(module);
        }
    }
    let first = layers.values().next()?;
    let is_grid =
        layers.keys().copied().eq(0..layers.len()) && layers.values().all(|modules| modules == first);
    is_grid.then_some(layers.len())
}

/// The names of these sites, sorted. peft takes a name for every module whose path ends with it: the last part of a path is `short`, and
/// stands for linear layers of every block.
pub(super) fn targets(sites: &[Site], short: bool) -> Vec<String> {
    let mut names = BTreeSet::new();
    for site in sites {
        let path = site.hf_path().unwrap_or_default();
        names.insert(match path.rsplit_once('.') {
            Some((_, last)) if short && site.is_linear() => last.to_owned(),
            _ => path,
        });
    }
    names.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_of_every_layer_have_short_names() {
        let layer = |layer| [Module::Q, Module::Up].map(|module| Site::Linear { layer, module });
        let sites: Vec<Site> = (0..3).flat_map(layer).chain([Site::Head]).collect();
        assert_eq!(grid(&sites), Some(3));
        assert_eq!(targets(&sites, true), ["lm_head", "q_proj", "up_proj"]);
        assert_eq!(targets(&sites[..1], false), ["model.layers.0.self_attn.q_proj"]);
        for some in [&sites[1..], &sites[..5], &sites[2..6], &sites[6..], &[]] {
            assert_eq!(grid(some), None, "{some:?}");
        }
    }
}
