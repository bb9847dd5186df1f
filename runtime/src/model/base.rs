//! The base's weights as its files have them, for adapters whose arithmetic depends on them.

use std::sync::OnceLock;

use graftwork_adapters::delta::Fingerprint;
use graftwork_adapters::{Site, TensorFile};
use graftwork_kernels::Tensor;

use super::arch::Names;
use super::container::Container;
use crate::Error;

/// The files of the base, where they stay in memory or mapped anyway.
pub struct Base {
    container: Option<Container>,
    names: &'static Names,
    tied_head: bool,
    /// Computed when an adapter asks for it, or before the files are let go.
    fingerprint: OnceLock<Fingerprint>,
}

impl Base {
    /// Keeps `container`, unless its bytes are copies of our own: then they would be in memory twice.
    pub fn new(container: Container, architecture: &str, names: &'static Names, tied_head: bool) -> Self {
        let weights = container.weights();
        let is_owned =
            |name: &str| matches!(weights.tensor(name), Ok(Some(tensor)) if tensor.bytes().is_owned());
        let owned = weights.names().into_iter().next().is_none_or(is_owned);
        let fingerprint = OnceLock::new();
        if owned {
            fingerprint.get_or_init(|| Fingerprint::of(architecture, weights));
        }
        Self { container: (!owned).then_some(container), names, tied_head, fingerprint }
    }

    /// The fingerprint of the files, of this architecture.
    pub fn fingerprint(&self, architecture: &str) -> Fingerprint {
        *self.fingerprint.get_or_init(|| {
            let container = self.container.as_ref().expect("computed before the files were let go");
            Fingerprint::of(architecture, container.weights())
        })
    }

    /// The weight at `site`, rows in the file's order.
    ///
    /// # Errors
    /// The files are gone, or no longer hold it.
    pub fn weight(&self, site: Site) -> Result<Tensor, Error> {
        let file: &dyn TensorFile = self.container.as_ref().ok_or(Error::NoBase { site })?.weights();
        let name = match site {
            Site::Linear { layer, module } => self.names.linear(layer, module),
            Site::Embedding => self.names.embedding.to_owned(),
            Site::AttentionNorm { layer } => self.names.in_layer(layer, self.names.attention_norm),
            Site::FfnNorm { layer } => self.names.in_layer(layer, self.names.ffn_norm),
            Site::Norm => self.names.norm.to_owned(),
            // Of no one layer; and the residual stream and what comes before the prompt have no weight.
            Site::EveryLinear { .. }
            | Site::AfterAttention { .. }
            | Site::AfterFfn { .. }
            | Site::Prompt
            | Site::Prefix => {
                return Err(Error::UnsupportedSite { site });
            }
            Site::Head if self.tied_head => self.names.embedding.to_owned(),
            Site::Head => self.names.head.to_owned(),
        };
        Ok(file.require(&format!("{name}.weight"))?)
    }
}
