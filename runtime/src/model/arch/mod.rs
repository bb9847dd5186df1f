//! The architectures that there are: what their files call things, and how their descriptions are read.
//!
//! A new decoder of the family is one file beside this one and one line of [`ALL`].

use graftwork_adapters::{Module, Site};

use super::config::{Config, Error, Reader, unsupported};

mod llama;

/// Every architecture.
pub static ALL: &[Architecture] = &[llama::LLAMA];

/// One architecture.
pub struct Architecture {
    /// Its `general.architecture` in GGUF files, also the prefix of its keys there.
    pub name: &'static str,
    /// Its `model_type` in config.json.
    pub model_type: &'static str,
    /// Tensor names in GGUF files.
    pub gguf: Names,
    /// Tensor names in Hugging Face files.
    pub hugging_face: Names,
    /// The configuration from GGUF metadata (keys without the prefix) and the names and shapes of tensors.
    pub from_gguf: fn(&Reader<'_>, &Tensors<'_>) -> Result<Config, Error>,
    /// The configuration from config.json.
    pub from_json: fn(&Reader<'_>) -> Result<Config, Error>,
}

/// What a GGUF file says by its tensors instead of its metadata.
pub struct Tensors<'a> {
    /// The shape of a tensor, slowest dimension first, by its full name.
    pub shape: &'a dyn Fn(&str) -> Option<Vec<u64>>,
    /// Divisors of the rotation's frequencies, if the file has `rope_freqs.weight`.
    pub rope_factors: Option<Vec<f32>>,
}

impl Tensors<'_> {
    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        (self.shape)(name).is_some()
    }
}

/// Tensor names of one architecture in one container, without `.weight` and `.bias`.
#[derive(Debug)]
pub struct Names {
    /// The token embedding.
    pub embedding: &'static str,
    /// The norm before the head.
    pub norm: &'static str,
    /// The output head.
    pub head: &'static str,
    /// What names inside a layer start with; `{}` is the layer's number.
    pub layer: &'static str,
    /// The norm before attention.
    pub attention_norm: &'static str,
    /// The norm before the feed-forward block.
    pub ffn_norm: &'static str,
    /// The linear layers, in the order of [`Module::ALL`].
    pub linears: [&'static str; Module::ALL.len()],
    /// Endings of tensors that are computed, not loaded.
    pub ignored: &'static [&'static str],
}

impl Names {
    /// The full name of `part` in `layer`.
    pub fn in_layer(&self, layer: usize, part: &str) -> String {
        format!("{}{part}", self.layer.replace("{}", &layer.to_string()))
    }

    /// The name of the weight at `site`, without `.weight`; none where there is no weight.
    pub fn of(&self, site: Site, tied_head: bool) -> Option<String> {
        Some(match site {
            Site::Linear { layer, module } => self.linear(layer, module),
            Site::Embedding => self.embedding.to_owned(),
            Site::AttentionNorm { layer } => self.in_layer(layer, self.attention_norm),
            Site::FfnNorm { layer } => self.in_layer(layer, self.ffn_norm),
            Site::Norm => self.norm.to_owned(),
            Site::Head => (if tied_head { self.embedding } else { self.head }).to_owned(),
            // Of no one layer; and the residual stream and what comes before the prompt have none.
            Site::EveryLinear { .. }
            | Site::AfterAttention { .. }
            | Site::AfterFfn { .. }
            | Site::Prompt
            | Site::Prefix => return None,
        })
    }

    /// The name of a linear layer, without `.weight`.
    pub fn linear(&self, layer: usize, module: Module) -> String {
        self.in_layer(layer, self.linears[module as usize])
    }
}

/// The architecture whose `name` (by `key`) is this.
pub fn find(
    key: &str,
    found: &str,
    name: impl Fn(&Architecture) -> &'static str,
) -> Result<&'static Architecture, Error> {
    ALL.iter().find(|arch| name(arch) == found).ok_or_else(|| {
        let known: Vec<&str> = ALL.iter().map(name).collect();
        unsupported(key, known.join(" or "), format!("\"{found}\""))
    })
}
