//! What a stack of adapters changes in a model: its description, and each of its tensors.

use graftwork_adapters::check::{self, Vocabulary};
use graftwork_adapters::delta::Fingerprint;
use graftwork_adapters::file::HfModel;
use graftwork_adapters::merge::{self, Applied, Base, Merge};
use graftwork_adapters::{Adapter, Change, Module, RowOrder, Site};
use graftwork_kernels::Tensor;
use serde_json::json;

use super::{Error, Grafted};
use crate::Error as Engine;
use crate::model::Config;
use crate::model::bind::{are_equal, in_blocks, order_of, shape_at};
use crate::model::container::Container;

/// Adapters that fit a model and can be made part of it, in order.
pub struct Stack<'a> {
    adapters: Vec<Member<'a>>,
    /// Tokens of the model: more than the base's where an adapter has tokens of its own.
    vocab: Option<usize>,
}

/// One of them.
struct Member<'a> {
    name: &'a str,
    adapter: &'a Adapter,
    weight: f32,
    /// What it changes and where, a layer of every block being one in each.
    edits: Vec<(&'a Change, Site)>,
}

/// A tensor of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Weight,
    Bias,
}

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Bias => "bias",
        }
    }
}

/// What adapters change in a tensor.
pub struct Changes<'a> {
    site: Site,
    pub part: Part,
    applied: Vec<Applied<'a>>,
    /// The weight and the bias of the base.
    base: (Tensor, Option<Tensor>),
    rows: (RowOrder, usize),
}

impl<'a> Stack<'a> {
    pub const EMPTY: Stack<'static> = Stack { adapters: Vec::new(), vocab: None };

    /// Checks that the adapters fit the model and can be merged.
    pub fn new(adapters: &[Grafted<'a>], container: &Container) -> Result<Self, Error> {
        let (config, names) = container.config()?;
        let (mut members, mut own) = (Vec::new(), None);
        for &Grafted { name, adapter, weight } in adapters {
            let refused = |error: graftwork_adapters::Error| Error::Grafted {
                adapter: name.to_owned(),
                source: Box::new(error.into()),
            };
            let fingerprint = || Fingerprint::of(config.architecture, container.weights());
            check::architecture(adapter, config.architecture).map_err(refused)?;
            check::base(adapter, fingerprint).map_err(refused)?;
            check::fits(adapter, |site| shape_at(&config, site)).map_err(refused)?;
            merge::check(adapter).map_err(refused)?;
            if !weight.is_finite() {
                return Err(Engine::Weighting { name: name.to_owned(), found: weight }.into());
            }
            // It is not there then.
            if weight == 0.0 {
                continue;
            }
            let mut edits = Vec::new();
            for (edit, site) in in_blocks(adapter, config.layers) {
                // peft saves the base's own weight beside an adapter of embedding or head.
                let is_saved = match &edit.change {
                    Change::Replace { weight } if !site.is_norm() => {
                        let stem = names.of(site, config.tied_head).unwrap_or_default();
                        let base = container.weights().require(&format!("{stem}.weight"))?;
                        base.rows() == weight.rows() && are_equal(&base, weight)
                    }
                    _ => false,
                };
                if adds_bias(&edit.change) && !site.is_linear() {
                    let what = format!("merging a bias at {site}");
                    let reason = "a model's description has none there";
                    return Err(refused(graftwork_adapters::Error::Unsupported { what, reason }));
                }
                if !is_saved {
                    edits.push((&edit.change, site));
                }
            }
            let whole = edits.iter().find(|(change, _)| change.is_whole());
            if let Some(&(_, site)) = whole.filter(|_| weight != 1.0) {
                return Err(Engine::WholeWeight { name: name.to_owned(), site, found: weight }.into());
            }
            own = own.or(check::vocabulary(adapter, config.vocab).map_err(refused)?.map(|own| (name, own)));
            members.push(Member { name, adapter, weight, edits });
        }
        if let Some((name, Vocabulary { embedding, head })) = own {
            let of_tokens = |member: &Member<'_>| member.edits.iter().any(|(_, site)| site.is_of_tokens());
            if let Some(other) = members.iter().find(|member| member.name != name && of_tokens(member)) {
                let (own, other) = (name.to_owned(), other.name.to_owned());
                return Err(Engine::Together { own, other }.into());
            }
            if head != embedding {
                return Err(Error::Unwritable {
                    what: format!("{name}: tokens"),
                    expected: format!("a head of the {embedding} tokens of the embedding"),
                    found: head.to_string(),
                });
            }
        }
        Ok(Self { adapters: members, vocab: own.map(|(_, own)| own.embedding) })
    }

    pub fn is_empty(&self) -> bool {
        self.adapters.is_empty()
    }

    /// What the base becomes.
    pub fn alter(&self, base: &Config) -> Config {
        let mut config = base.clone();
        for &(change, site) in self.adapters.iter().flat_map(|member| &member.edits) {
            match site {
                Site::Linear { module, .. } if adds_bias(change) => {
                    let bias = match module {
                        Module::Q | Module::K | Module::V => &mut config.attention_bias,
                        Module::O => &mut config.output_bias,
                        Module::Gate | Module::Up | Module::Down => &mut config.mlp_bias,
                    };
                    *bias = true;
                }
                // Of the one matrix for both, only rows change in both.
                Site::Embedding if !matches!(change, Change::Rows { .. }) => config.tied_head = false,
                Site::Head => config.tied_head = false,
                _ => {}
            }
        }
        config.vocab = self.vocab.unwrap_or(config.vocab);
        config
    }

    /// The same in the files of a directory, with the tokenizer of an adapter that has tokens of its own.
    pub fn alter_files(&self, files: &mut HfModel, base: &Config) -> Result<(), Error> {
        let config = self.alter(base);
        let (attention, was) =
            (config.attention_bias || config.output_bias, base.attention_bias || base.output_bias);
        let fields = [
            ("attention_bias", (attention != was).then(|| json!(attention))),
            ("mlp_bias", (config.mlp_bias != base.mlp_bias).then(|| json!(config.mlp_bias))),
            ("tie_word_embeddings", (config.tied_head != base.tied_head).then(|| json!(config.tied_head))),
            ("vocab_size", (config.vocab != base.vocab).then(|| json!(config.vocab))),
        ];
        for (field, value) in fields {
            if let Some(value) = value {
                files.config[field] = value;
            }
        }
        let own =
            self.adapters.iter().filter(|_| self.vocab.is_some()).find_map(|own| own.adapter.text.as_ref());
        if let Some(text) = own {
            files.tokenizer = Some(text.tokenizer.clone());
            files.tokenizer_config = text.config.clone().or(files.tokenizer_config.take());
            files.chat_template = text.chat_template.clone().or(files.chat_template.take());
        }
        Ok(())
    }

    /// Whether [`Self::alter_files`] takes the tokenizer of an adapter.
    pub fn changes_tokenizer(&self) -> bool {
        self.vocab.is_some() && self.adapters.iter().any(|own| own.adapter.text.is_some())
    }

    /// Refuses tokens that the metadata of a GGUF file does not have.
    pub fn refuse_more_tokens(&self, base: &Config) -> Result<(), Error> {
        match self.vocab {
            None => Ok(()),
            Some(found) => Err(Error::Unwritable {
                what: "the vocabulary of a GGUF file".to_owned(),
                expected: format!(
                    "its {} tokens; a base in a Hugging Face directory may get more",
                    base.vocab
                ),
                found: found.to_string(),
            }),
        }
    }

    /// What is changed in a tensor of the base, whose layer has this weight and bias.
    pub fn changes(
        &self,
        (site, part): (Site, Part),
        base: &Config,
        weight: Tensor,
        bias: Option<Tensor>,
    ) -> Option<Changes<'a>> {
        let is_here = |&&(change, place): &&(&Change, Site)| {
            let of_both = base.tied_head && site == Site::Head && place == Site::Embedding;
            place == site || of_both && matches!(change, Change::Rows { .. })
        };
        let of_member = |member: &Member<'a>| {
            let (weight, row_order) = (member.weight, member.adapter.row_order);
            let here = member.edits.iter().filter(is_here);
            here.map(|&(change, _)| Applied { change, weight, row_order }).collect::<Vec<_>>()
        };
        let applied: Vec<_> = self.adapters.iter().flat_map(of_member).collect();
        let counts = |applied: &Applied<'_>| match part {
            Part::Weight => !matches!(applied.change, Change::Bias { .. }),
            Part::Bias => adds_bias(applied.change) || matches!(applied.change, Change::OutputScale { .. }),
        };
        let rows = (order_of(base), base.head_dim);
        applied.iter().any(counts).then_some(Changes { site, part, applied, base: (weight, bias), rows })
    }
}

/// Whether a layer has a bias with this change.
fn adds_bias(change: &Change) -> bool {
    matches!(change, Change::Bias { .. } | Change::LowRank { bias: Some(_), .. })
}

impl Changes<'_> {
    /// Rows of the weight: more than the base's where an adapter has tokens of its own.
    pub fn rows(&self) -> usize {
        let replaced = self.applied.iter().filter_map(|applied| match applied.change {
            Change::Replace { weight } => Some(weight.rows()),
            _ => None,
        });
        replaced.max().unwrap_or(0)
    }

    /// Ready to be made.
    pub fn prepare(&self, threads: usize) -> Result<Merge, Engine> {
        let (weight, bias) = &self.base;
        let bias = bias.as_ref().map(Tensor::decode).transpose();
        let bias = bias.map_err(|source| Engine::AdapterWeight { site: self.site, source })?;
        let base = Base { site: self.site, weight, bias: bias.as_deref(), rows: self.rows };
        Ok(Merge::new(base, &self.applied, threads)?)
    }
}
