//! Places in a model where an adapter can change something, in terms that no architecture owns.

use std::fmt;

use crate::names;

/// A linear layer inside a transformer block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Module {
    /// Query projection of attention.
    Q,
    /// Key projection of attention.
    K,
    /// Value projection of attention.
    V,
    /// Output projection of attention.
    O,
    /// Gate projection of the feed-forward part (`silu(gate x) * up x`).
    Gate,
    /// Up projection of the feed-forward part.
    Up,
    /// Down projection of the feed-forward part.
    Down,
}

impl Module {
    /// Every module, in the order in which a block runs them.
    pub const ALL: &[Module] =
        &[Module::Q, Module::K, Module::V, Module::O, Module::Gate, Module::Up, Module::Down];

    /// The short name in messages, such as `q`.
    pub fn name(self) -> &'static str {
        match self {
            Module::Q => "q",
            Module::K => "k",
            Module::V => "v",
            Module::O => "o",
            Module::Gate => "gate",
            Module::Up => "up",
            Module::Down => "down",
        }
    }

    /// Whether the outputs of this layer are rotated by position: then their row order depends on the container.
    pub fn is_rotated(self) -> bool {
        matches!(self, Module::Q | Module::K)
    }
}

/// A place in a model that an [`Edit`](crate::Edit) changes.
///
/// Kinds of adapter that change something else (a prompt position, the KV cache, a block as a
/// whole) add their place here; every consumer matches without a wildcard, so none can forget it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// The token embedding, `[vocabulary, width]`.
    Embedding,
    /// A linear layer of block `layer`, counted from 0.
    Linear {
        /// Index of the block.
        layer: usize,
        /// Which layer in it.
        module: Module,
    },
    /// A linear layer of every block, however many there are.
    EveryLinear {
        /// Which layer in each.
        module: Module,
    },
    /// The norm before the attention of block `layer`, `[1, width]`.
    AttentionNorm {
        /// Index of the block.
        layer: usize,
    },
    /// The norm before the feed-forward part of block `layer`, `[1, width]`.
    FfnNorm {
        /// Index of the block.
        layer: usize,
    },
    /// The residual stream behind the attention of block `layer`, `[width, width]`.
    AfterAttention {
        /// Index of the block.
        layer: usize,
    },
    /// The residual stream behind the feed-forward part of block `layer`, which is the output of the block, `[width, width]`.
    AfterFfn {
        /// Index of the block.
        layer: usize,
    },
    /// The norm before the head, `[1, width]`.
    Norm,
    /// The output head, `[vocabulary, width]`.
    Head,
    /// The prompt, among whose tokens virtual ones are put: `[tokens, width]`.
    Prompt,
    /// The keys and values of positions before all others, `[positions, 2 * layers * width of keys]`.
    Prefix,
}

impl Site {
    /// The path of its module in Hugging Face files of the Llama family, such as `model.layers.3.self_attn.q_proj`; none of what is
    /// no module.
    pub fn hf_path(self) -> Option<String> {
        names::hf_name(self)
    }

    /// Whether this is a linear layer of a block.
    pub fn is_linear(self) -> bool {
        matches!(self, Site::Linear { .. })
    }

    /// The places that this is in a model of so many blocks: of a layer of every block, one in each.
    pub fn in_blocks(self, blocks: usize) -> impl Iterator<Item = Site> {
        let layers = match self {
            Site::EveryLinear { .. } => 0..blocks,
            _ => 0..1,
        };
        layers.map(move |layer| match self {
            Site::EveryLinear { module } => Site::Linear { layer, module },
            site => site,
        })
    }

    /// Whether this is the embedding or the head, which have a row for every token.
    pub fn is_of_tokens(self) -> bool {
        matches!(self, Site::Embedding | Site::Head)
    }

    /// Whether this is a norm.
    pub fn is_norm(self) -> bool {
        matches!(self, Site::AttentionNorm { .. } | Site::FfnNorm { .. } | Site::Norm)
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Site::Embedding => f.write_str("embedding"),
            Site::Linear { layer, module } => write!(f, "layer {layer} {}", module.name()),
            Site::EveryLinear { module } => write!(f, "every layer's {}", module.name()),
            Site::AttentionNorm { layer } => write!(f, "layer {layer} attention norm"),
            Site::FfnNorm { layer } => write!(f, "layer {layer} feed-forward norm"),
            Site::AfterAttention { layer } => write!(f, "layer {layer} stream after attention"),
            Site::AfterFfn { layer } => write!(f, "layer {layer} stream after feed-forward"),
            Site::Norm => f.write_str("last norm"),
            Site::Head => f.write_str("head"),
            Site::Prompt => f.write_str("prompt"),
            Site::Prefix => f.write_str("prefix"),
        }
    }
}
