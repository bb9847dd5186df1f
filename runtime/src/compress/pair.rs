//! The two models that a delta is between.

use graftwork_adapters::compress::Difference;
use graftwork_adapters::delta::Fingerprint;
use graftwork_adapters::{Change, Edit, Module, RowOrder, Site, Source};
use graftwork_kernels::{Format, Tensor, tensor};

use super::{Error, Matrix};
use crate::model::arch::Names;
use crate::model::bind::order_of;
use crate::model::config::Config;
use crate::model::container::Container;

/// A model's files.
struct Side {
    container: Container,
    config: Config,
    names: &'static Names,
}

/// A base and a fine-tune of it.
pub struct Pair {
    base: Side,
    tuned: Side,
}

impl Pair {
    /// Opens both and checks that they differ in weights and vocabulary alone.
    pub fn open(base: &Source, tuned: &Source) -> Result<Self, Error> {
        let pair = Self::open_layers(base, tuned)?;
        let (b, t) = (&pair.base.config, &pair.tuned.config);
        if t.vocab < b.vocab {
            let (expected, found) = (format!("at least the {} tokens", b.vocab), t.vocab.to_string());
            return Err(Error::Config { field: "vocabulary", expected, found });
        }
        Ok(pair)
    }

    /// The same, whatever their vocabularies are.
    pub fn open_layers(base: &Source, tuned: &Source) -> Result<Self, Error> {
        let pair = Self { base: Side::open(base)?, tuned: Side::open(tuned)? };
        let (b, t) = (&pair.base.config, &pair.tuned.config);
        let fields = |c: &Config| {
            [
                ("architecture", c.architecture.to_owned()),
                ("layers", c.layers.to_string()),
                ("hidden size", c.hidden.to_string()),
                ("heads", c.heads.to_string()),
                ("key-value heads", c.kv_heads.to_string()),
                ("head dimension", c.head_dim.to_string()),
                ("feed-forward size", c.ffn.to_string()),
                ("epsilon of norms", c.norm_eps.to_string()),
                ("rotary base", c.rope.theta.to_string()),
                ("rotary dimensions", c.rope.rotary.to_string()),
                ("biases", format!("{:?}", [c.attention_bias, c.output_bias, c.mlp_bias])),
                ("activation", format!("{:?}", c.activation)),
            ]
        };
        for ((field, expected), (_, found)) in fields(b).into_iter().zip(fields(t)) {
            if expected != found {
                return Err(Error::Config { field, expected, found });
            }
        }
        Ok(pair)
    }

    /// What both are.
    pub fn config(&self) -> &Config {
        &self.base.config
    }

    /// The fingerprints of both.
    pub fn fingerprints(&self) -> [Fingerprint; 2] {
        [&self.base, &self.tuned].map(Side::fingerprint)
    }

    /// The order of q and k rows in the base, which is that of the delta.
    pub fn row_order(&self) -> RowOrder {
        order_of(&self.base.config)
    }

    /// The weight of a linear layer in both, rows in the base's order.
    pub fn weights_at(&self, site: Site) -> Result<[Tensor; 2], Error> {
        Ok([self.base.require(site)?, self.reordered(site, self.tuned.require(site)?)?])
    }

    /// The bias of a linear layer in both, likewise, where there is one.
    pub fn biases_at(&self, site: Site) -> Result<[Option<Tensor>; 2], Error> {
        let tuned = self.tuned.tensor(site, "bias")?;
        Ok([self.base.tensor(site, "bias")?, tuned.map(|bias| self.reordered(site, bias)).transpose()?])
    }

    /// The files of the base.
    pub fn base(&self) -> &Container {
        &self.base.container
    }

    /// The files of the tuned model.
    pub fn tuned(&self) -> &Container {
        &self.tuned.container
    }

    /// What the tuned model adds to the weight of a linear layer.
    pub fn difference(&self, site: Site) -> Result<Difference, Error> {
        let [base, tuned] = self.weights_at(site)?;
        let source = |source| Error::Matrix { tensor: name_of(site, "weight"), source };
        let difference = Difference::between(&tuned, &base).map_err(source)?;
        // They are mapped, and not needed soon.
        [tuned, base].iter().for_each(|tensor| tensor.bytes().unload());
        Ok(difference)
    }

    /// What other places than linear layers are replaced by, exact, and the biases of linear layers.
    pub fn carried(&self) -> Result<Vec<Edit>, Error> {
        let layers = 0..self.config().layers;
        let norms = layers.clone().flat_map(|layer| [Site::AttentionNorm { layer }, Site::FfnNorm { layer }]);
        let linears =
            layers.flat_map(|layer| Module::ALL.iter().map(move |&module| Site::Linear { layer, module }));
        let mut edits = Vec::new();
        for site in [Site::Embedding, Site::Head, Site::Norm].into_iter().chain(norms) {
            let (base, tuned) = (self.base.require(site)?, self.tuned.require(site)?);
            if let Some(weight) = changed(&base, tuned).map_err(failed(site, "weight"))? {
                edits.push(Edit { site, change: Change::Replace { weight } });
            }
        }
        for site in linears {
            let (Some(base), Some(tuned)) =
                (self.base.tensor(site, "bias")?, self.tuned.tensor(site, "bias")?)
            else {
                continue;
            };
            let tuned = self.reordered(site, tuned)?;
            if let Some(values) = changed(&base, tuned).map_err(failed(site, "bias"))? {
                edits.push(Edit { site, change: Change::Bias { values } });
            }
        }
        Ok(edits)
    }

    /// Weights of the base: those of `linears`, of embedding and head, of norms.
    pub fn weights(&self, linears: &[Matrix]) -> usize {
        let config = self.config();
        let tables = if config.tied_head { 1 } else { 2 };
        linears.iter().map(Matrix::weights).sum::<usize>()
            + tables * config.vocab * config.hidden
            + (2 * config.layers + 1) * config.hidden
    }

    /// The tuned model's weight or bias at `site` with rows in the base's order.
    fn reordered(&self, site: Site, tensor: Tensor) -> Result<Tensor, Error> {
        let [from, to] = [&self.tuned, &self.base].map(|side| order_of(&side.config));
        let head_dim = self.config().head_dim;
        match site {
            Site::Linear { module, .. } if module.is_rotated() && from != to => match tensor.rows() {
                1 => from.reorder_vector(to, &tensor, head_dim).map_err(failed(site, "bias")),
                _ => from.reorder(to, &tensor, head_dim).map_err(failed(site, "weight")),
            },
            _ => Ok(tensor),
        }
    }
}

impl Side {
    fn open(source: &Source) -> Result<Self, Error> {
        let container = Container::open(source)?;
        let (config, names) = container.config()?;
        Ok(Self { container, config, names })
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.config.architecture, self.container.weights())
    }

    /// The weight or bias at `site`, if there is one.
    fn tensor(&self, site: Site, part: &str) -> Result<Option<Tensor>, Error> {
        let Some(name) = self.names.of(site, self.config.tied_head) else { return Ok(None) };
        Ok(self.container.weights().tensor(&format!("{name}.{part}"))?)
    }

    /// The weight at `site`.
    fn require(&self, site: Site) -> Result<Tensor, Error> {
        let name = self.names.of(site, self.config.tied_head).unwrap_or_default();
        Ok(self.container.weights().require(&format!("{name}.weight"))?)
    }
}

/// The tuned tensor, in floats, if it differs from the base's.
fn changed(base: &Tensor, tuned: Tensor) -> Result<Option<Tensor>, tensor::Error> {
    if (base.format(), base.rows()) == (tuned.format(), tuned.rows()) && **base.bytes() == **tuned.bytes() {
        return Ok(None);
    }
    let values = tuned.decode()?;
    if (base.rows(), base.cols()) == (tuned.rows(), tuned.cols()) && base.decode()? == values {
        return Ok(None);
    }
    match tuned.format().block_len() {
        1 => Ok(Some(tuned)),
        _ => Tensor::encode(Format::F32, tuned.rows(), tuned.cols(), &values).map(Some),
    }
}

/// The name of a part of a site in Hugging Face files.
pub fn name_of(site: Site, part: &str) -> String {
    format!("{}.{part}", site.hf_path().unwrap_or_default())
}

/// The error for a tensor that could not be read.
fn failed(site: Site, part: &'static str) -> impl Fn(tensor::Error) -> Error {
    move |source| Error::Tensor { tensor: name_of(site, part), source }
}
