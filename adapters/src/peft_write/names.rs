//! What `target_modules` and its kin call modules.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Module, Site};

/// The names of these sites, sorted. peft takes a name for every module whose path ends with it: so where every layer up to the last has
/// the same modules, they are named by the last part of their paths, else by the whole. `others` are sites that must not be taken.
pub(super) fn targets(sites: &[Site], others: &[Site]) -> Vec<String> {
    let mut layers: BTreeMap<usize, BTreeSet<Module>> = BTreeMap::new();
    for site in sites {
        if let Site::Linear { layer, module } = *site {
            layers.entry(layer).or_default().insert(module);
        }
    }
    let first = layers.values().next();
    let is_grid = layers.keys().copied().eq(0..layers.len()) && layers.values().all(|set| Some(set) == first);
    let is_apart = |other: &Site| {
        let taken = |module| first.is_some_and(|modules| modules.contains(&module));
        !matches!(other, Site::Linear { module, .. } if !sites.contains(other) && taken(*module))
    };
    let is_short = is_grid && others.iter().all(is_apart);
    let mut names = BTreeSet::new();
    for site in sites {
        let path = site.hf_path().unwrap_or_default();
        names.insert(match path.rsplit_once('.') {
            Some((_, last)) if is_short && site.is_linear() => last.to_owned(),
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
        let at = |layer, module| Site::Linear { layer, module };
        let all: Vec<Site> = (0..3)
            .flat_map(|layer| [at(layer, Module::Q), at(layer, Module::Up)])
            .chain([Site::Head])
            .collect();
        assert_eq!(targets(&all, &[]), ["lm_head", "q_proj", "up_proj"]);
        let some = &all[1..5];
        let paths = targets(some, &[]);
        assert_eq!(paths[0], "model.layers.0.mlp.up_proj");
        assert_eq!(paths.len(), 4);
    }
}
