//! What is quantized: the metadata that the new file gets, and the weights by the names that they have there.

use std::collections::{HashMap, HashSet};

use graftwork_adapters::Module;
use graftwork_adapters::file::gguf::Value;
use graftwork_adapters::file::{Gguf, HfModel};
use graftwork_adapters::{Source, TensorFile};
use graftwork_kernels::{Format, Tensor};

use super::Error;
use super::describe::describe;
use crate::compress::GROUPS;
use crate::model::Config;
use crate::model::arch::{self, Architecture, Names, Tensors};
use crate::model::config::Reader;
use crate::model::container::{Container, from_gguf};
use crate::model::rope::Scaling;

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
        let arch =
            arch::find("architecture", config.architecture, |arch| arch.name).map_err(crate::Error::from)?;
        let mut model = match container {
            Container::Gguf(file) => of_gguf(&file, config)?,
            Container::HuggingFace(files) => {
                let (keys, weights) = (describe(&files, &config, &name_of(source))?, Vec::new());
                let mut model = Self { config, keys, weights };
                model.rename(&files, [names, &arch.gguf])?;
                model.check(arch)?;
                model
            }
        };
        let inputs = inputs(&model.config, &arch.gguf);
        for weight in &mut model.weights {
            weight.input = inputs.get(&weight.name).copied();
        }
        model.weights.sort_by(|a, b| (layer_of(&a.name), &a.name).cmp(&(layer_of(&b.name), &b.name)));
        Ok(model)
    }

    /// Takes the weights of a Hugging Face directory, by the names that they have there.
    fn rename(&mut self, files: &HfModel, [from, to]: [&Names; 2]) -> Result<(), Error> {
        let config = &self.config;
        let mut known = HashSet::new();
        for Wanted { names: [name, renamed], shape: (rows, cols), reordered } in wanted(config, [from, to]) {
            let tensor = files.weights.require(&name)?;
            let found = (tensor.rows(), tensor.cols());
            if found != (rows, cols) {
                let (expected, found) = (format!("[{rows}, {cols}]"), format!("[{}, {}]", found.0, found.1));
                return Err(crate::Error::Shape { tensor: name, expected, found }.into());
            }
            known.insert(name);
            self.weights.push(Weight { name: renamed, tensor, reordered, kept: Format::F32, input: None });
        }
        if config.tied_head {
            // Some files carry it all the same.
            known.insert(format!("{}.weight", from.head));
        }
        let ignored = |name: &str| from.ignored.iter().any(|end| name.ends_with(end));
        let names = files.weights.names();
        if let Some(name) = names.into_iter().find(|&name| !known.contains(name) && !ignored(name)) {
            let (tensor, architecture) = (name.to_owned(), config.architecture);
            return Err(crate::Error::UnknownTensor { tensor, architecture }.into());
        }
        if let Some(factors) = config.rope.factors() {
            let name = "rope_freqs.weight".to_owned();
            let tensor = Tensor::encode(Format::F32, 1, factors.len(), &factors)
                .map_err(|source| Error::Tensor { tensor: name.clone(), source })?;
            self.weights.push(Weight { name, tensor, reordered: None, kept: Format::F32, input: None });
        }
        Ok(())
    }

    /// Refuses a description that is read back as another model.
    fn check(&self, arch: &Architecture) -> Result<(), Error> {
        let weight = |name: &str| self.weights.iter().find(|weight| weight.name == name);
        let shape = |name: &str| {
            let tensor = &weight(name)?.tensor;
            Some(vec![tensor.rows() as u64, tensor.cols() as u64])
        };
        let rope_factors = self.config.rope.factors();
        let lookup = |key: &str| {
            let (_, value) = self.keys.iter().find(|(name, _)| name == key)?;
            Some(from_gguf(value))
        };
        let reader = Reader::new(format!("{}.", arch.name), &lookup);
        let tensors = Tensors { shape: &shape, rope_factors: rope_factors.clone() };
        let found = (arch.from_gguf)(&reader, &tensors).map_err(crate::Error::from)?;
        let mut expected = self.config.clone();
        expected.rope.layout = found.rope.layout;
        // Numbers are singles there.
        let round = |x: &mut f64| *x = f64::from(*x as f32);
        round(&mut expected.rope.theta);
        match &mut expected.rope.scaling {
            Scaling::Linear { factor } => round(factor),
            Scaling::Yarn { factor, beta_fast, beta_slow, attention, .. } => {
                [&mut *factor, beta_fast, beta_slow].into_iter().for_each(round);
                *attention = Scaling::yarn_attention(*factor, None);
            }
            Scaling::None | Scaling::Llama3 { .. } | Scaling::Factors(_) => {}
        }
        if let Some(factors) = rope_factors {
            expected.rope.scaling = Scaling::Factors(factors);
        }
        match found == expected {
            true => Ok(()),
            false => Err(Error::Unwritable {
                what: "config.json".to_owned(),
                expected: format!("what a GGUF file can say, {found:?}"),
                found: format!("{expected:?}"),
            }),
        }
    }
}

/// A tensor of a Hugging Face directory.
struct Wanted {
    /// Its name there, and in a GGUF file.
    names: [String; 2],
    shape: (usize, usize),
    /// See [`Weight::reordered`].
    reordered: Option<usize>,
}

/// All tensors of a model.
fn wanted(config: &Config, names: [&Names; 2]) -> Vec<Wanted> {
    let mut all = Vec::new();
    let mut want = |stems: [String; 2], part: &str, shape, reordered| {
        all.push(Wanted { names: stems.map(|stem| format!("{stem}.{part}")), shape, reordered });
    };
    let (vector, table) = ((1, config.hidden), (config.vocab, config.hidden));
    want(names.map(|names| names.embedding.to_owned()), "weight", table, None);
    want(names.map(|names| names.norm.to_owned()), "weight", vector, None);
    if !config.tied_head {
        want(names.map(|names| names.head.to_owned()), "weight", table, None);
    }
    for layer in 0..config.layers {
        want(names.map(|names| names.in_layer(layer, names.attention_norm)), "weight", vector, None);
        want(names.map(|names| names.in_layer(layer, names.ffn_norm)), "weight", vector, None);
        for &module in Module::ALL {
            let stems = || names.map(|names| names.linear(layer, module));
            let (outputs, inputs) = config.shape_of(module);
            let reordered = module.is_rotated().then_some(config.head_dim);
            want(stems(), "weight", (outputs, inputs), reordered);
            if config.has_bias(module) {
                want(stems(), "bias", (1, outputs), reordered);
            }
        }
    }
    all
}

/// What a directory is called.
fn name_of(source: &Source) -> String {
    let name = match source {
        Source::Path { path, .. } => path.canonicalize().ok(),
        _ => None,
    };
    let name = name.as_deref().and_then(|path| path.file_name()).unwrap_or_default();
    name.to_string_lossy().into_owned()
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
