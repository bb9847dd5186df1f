//! What is quantized: the metadata that the new file gets, and the weights by the names that they have there.

use std::collections::HashMap;

use graftwork_adapters::Module;
use graftwork_adapters::file::Gguf;
use graftwork_adapters::file::gguf::Value;
use graftwork_adapters::{Source, TensorFile};
use graftwork_kernels::{Format, Tensor};

use super::Error;
use crate::compress::GROUPS;
use crate::model::Config;
use crate::model::arch::Names;
use crate::model::container::Container;

/// A model in the form of a GGUF file.
pub struct Model {
    pub config: Config,
    /// The metadata, without `general.file_type` and `general.quantization_version`.
    pub keys: Vec<(String, Value)>,
    /// In the order of the file.
    pub weights: Vec<Weight>,
}

/// A tensor.
pub struct Weight {
    /// Its name in a GGUF file.
    pub name: String,
    pub tensor: Tensor,
    /// Heads of so many rows have these in the order of Hugging Face, to be written in that of GGUF.
    pub reordered: Option<usize>,
    /// The format that it has if nothing asks for another.
    pub kept: Format,
    /// The layer and the group of linear layers with the same input, of matrices of the blocks.
    pub input: Option<(usize, usize)>,
}

impl Model {
    pub fn open(source: &Source) -> Result<Self, Error> {
        let container = Container::open(source)?;
        let (config, names) = container.config()?;
        let mut model = match container {
            Container::Gguf(file) => of_gguf(&file, config)?,
            Container::HuggingFace(_) => {
                return Err(Error::Unwritable {
                    what: "IN".into(),
                    expected: "GGUF".into(),
                    found: "Hugging Face".into(),
                });
            }
        };
        let inputs = inputs(&model.config, names);
        for weight in &mut model.weights {
            weight.input = inputs.get(&weight.name).copied();
        }
        model.weights.sort_by(|a, b| (layer_of(&a.name), &a.name).cmp(&(layer_of(&b.name), &b.name)));
        Ok(model)
    }
}

/// All that the file says, but what is about the formats and the shards that it had.
fn of_gguf(file: &Gguf, config: Config) -> Result<Model, Error> {
    let dropped = ["general.file_type", "general.quantization_version"];
    let keys = file.metadata().iter().filter(|(key, _)| !dropped.contains(key) && !key.starts_with("split."));
    let keys = keys.map(|(key, value)| (key.to_owned(), value.clone())).collect();
    let weight = |name: &str| {
        let tensor = file.require(name)?;
        Ok(Weight { name: name.to_owned(), kept: tensor.format(), tensor, reordered: None, input: None })
    };
    let weights = file.names().into_iter().map(weight).collect::<Result<_, Error>>()?;
    Ok(Model { config, keys, weights })
}

/// The inputs of the matrices of the blocks, by names in GGUF files.
fn inputs(config: &Config, names: &Names) -> HashMap<String, (usize, usize)> {
    let group_of = |module: Module| GROUPS.iter().position(|group| group.contains(&module));
    let named = |layer: usize, &module: &Module| {
        Some((format!("{}.weight", names.linear(layer, module)), (layer, group_of(module)?)))
    };
    let layers = 0..config.layers;
    layers.flat_map(|layer| Module::ALL.iter().filter_map(move |module| named(layer, module))).collect()
}

/// The layer of a tensor, 1 for the first; 0 of those outside of layers. The order of files is by it, then by name.
fn layer_of(name: &str) -> usize {
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')?.0.parse::<usize>().ok());
    layer.map_or(0, |layer| layer.saturating_add(1))
}
