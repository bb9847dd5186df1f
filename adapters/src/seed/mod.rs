//! Seed patches: a fine-tune as coefficients of random directions, which a seed determines. FedKSeed and evolution
//! strategies make them.
//!
//! `W' = W + scale * sum_k c_k z(seed_k, tensor, element)` over chosen linear layers of every block, `seed_k` being
//! candidate `k` of a base seed. The file holds the coefficients and a header, some 17 KB for 4,096.
//! `docs/seed-patches.md` defines file and generator so that a stranger can write both, and has test vectors.
//!
//! (Qin et al., "Federated full-parameter tuning of billion-sized language models with communication cost under 18
//! kilobytes", arXiv 2312.06353; Qiu et al., "Evolution strategies at scale", arXiv 2509.24372.)

mod file;
mod normal;
mod update;

pub use file::{CHECKSUM, GENERATOR, KEY, NAME, VERSION, is_one};
pub use normal::{candidate_seed, normals, tensor_hash};
pub use update::Update;

use std::sync::Arc;

use graftwork_kernels::cpu::isa::Isa;
use graftwork_kernels::tensor;

use crate::check::Shape;
use crate::delta::Fingerprint;
use crate::{Adapter, Change, Edit, Error, Key, Kind, Module, Site, expand, names, parts};
use normal::Direction;

/// What a seed patch is beside its coefficients.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The bases that it is for; at least one.
    pub bases: Vec<Fingerprint>,
    /// What the candidates' seeds come of.
    pub base_seed: u64,
    /// The factor of all coefficients, such as minus the learning rate.
    pub scale: f32,
    /// The layers that it changes, in every block; each once, at least one.
    pub modules: Vec<Module>,
}

/// A seed patch. What can be checked without the base is checked: every value is finite, and so is every update.
#[derive(Clone, Debug)]
pub struct SeedPatch {
    settings: Settings,
    coefficients: Vec<f32>,
    /// Those of the candidates whose coefficient is not zero.
    directions: Arc<Vec<Direction>>,
}

impl SeedPatch {
    /// The patch `W' = W + scale * sum_k coefficients[k] z_k`.
    ///
    /// # Errors
    /// [`Error::Field`] or [`Error::NotFinite`]: no base, no layer, a layer twice, no coefficient, a number that is
    /// not finite, or coefficients so large that their sum might not be. No memory.
    pub fn new(settings: Settings, coefficients: Vec<f32>) -> Result<Self, Error> {
        let Settings { bases, base_seed, scale, modules } = &settings;
        if bases.is_empty() {
            return Err(wrong("bases", "the fingerprint of a base at least", "none"));
        }
        let names = || modules.iter().map(|module| module.name()).collect::<Vec<_>>().join(", ");
        if modules.is_empty() || (1..modules.len()).any(|i| modules[..i].contains(&modules[i])) {
            return Err(wrong("modules", "layers, each once", names()));
        }
        if coefficients.is_empty() {
            return Err(wrong("count", "a coefficient at least", 0));
        }
        if let Some(col) = coefficients.iter().position(|c| !c.is_finite()) {
            let (tensor, found) = (file::COEFFICIENTS.to_owned(), coefficients[col]);
            return Err(Error::NotFinite { tensor, row: 0, col, found });
        }
        // Far from the largest float: sums are rounded as often as there are coefficients.
        let sum = coefficients.iter().map(|&c| f64::from(c.abs())).sum::<f64>() * normal::LARGEST;
        let most = sum * f64::from(scale.abs()).max(1.0);
        if !(scale.is_finite() && most < 1e30) {
            let expected = "a number with which scaled and other sums stay below 1e30";
            return Err(wrong("scale", expected, format!("{scale:e}, sums of up to {most:e}")));
        }
        let used = (0..).zip(&coefficients).filter(|&(_, &c)| c != 0.0);
        let mut directions = tensor::reserved(used.clone().count()).map_err(no_memory)?;
        directions.extend(used.map(|(k, &coefficient)| {
            let seed = candidate_seed(*base_seed, k);
            Direction { seed, coefficient }
        }));
        Ok(Self { settings, coefficients, directions: Arc::new(directions) })
    }

    /// Everything but the coefficients.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The coefficients of all candidates, zeros included.
    pub fn coefficients(&self) -> &[f32] {
        &self.coefficients
    }

    /// How many coefficients are not zero: so many normals each element of an update takes.
    pub fn directions(&self) -> usize {
        self.directions.len()
    }

    /// The adapter that it is: an edit at each of its layers, of every block that a base may have.
    ///
    /// # Errors
    /// No memory.
    pub fn into_adapter(self) -> Result<Adapter, Error> {
        let patch = Arc::new(self);
        let Settings { bases, modules, .. } = &patch.settings;
        let mut edits = parts::edits(modules.len())?;
        edits.extend(modules.iter().map(|&module| {
            let change = Change::Seeded { patch: patch.clone() };
            Edit { site: Site::EveryLinear { module }, change }
        }));
        edits.sort_by_key(|edit| edit.site);
        let shape = vec![patch.coefficients.len() as u64];
        let keys = vec![Key { tensor: file::COEFFICIENTS.to_owned(), site: None, shape }];
        Ok(Adapter { bases: bases.clone(), ..Adapter::new(Kind::SeedPatch, edits, keys) })
    }

    /// The update of a linear layer whose weight has this shape, rows in Hugging Face order; `None` if the patch
    /// leaves it alone.
    pub fn update(&self, site: Site, shape: Shape) -> Option<Update> {
        let Site::Linear { module, .. } = site else { return None };
        let name = format!("{}.weight", names::hf_name(site)?);
        self.settings.modules.contains(&module).then(|| Update {
            directions: self.directions.clone(),
            scale: self.settings.scale,
            tensor: tensor_hash(&name),
            site,
            shape,
            isa: Isa::best(),
        })
    }
}

fn no_memory(source: tensor::Error) -> Error {
    expand::failed(file::COEFFICIENTS, source)
}

/// The error for a field with another value than it may have.
fn wrong(field: impl Into<String>, expected: impl ToString, found: impl ToString) -> Error {
    let found = found.to_string().chars().take(120).collect();
    Error::Field { field: field.into(), expected: expected.to_string(), found }
}
