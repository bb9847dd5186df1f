//! What is quantized: the metadata that the new file gets, and the weights by the names that they have there.

use std::collections::{HashMap, HashSet};

use graftwork_adapters::file::gguf::Value;
use graftwork_adapters::file::{Gguf, HfModel};
use graftwork_adapters::{Module, Site, Source, TensorFile};
use graftwork_kernels::{Format, Tensor};

use super::Error;
use super::describe::describe;
use crate::compress::GROUPS;
use crate::merge::{Changes, Part, Stack};
use crate::model::Config;
use crate::model::arch::{self, Architecture, Names, Tensors};
use crate::model::bind::shape_at;
use crate::model::config::Reader;
use crate::model::container::{Container, config_of, from_gguf};
use crate::model::rope::Scaling;

/// A model in the form of a GGUF file, or of a Hugging Face directory.
pub struct Model<'a> {
    pub config: Config,
    /// The metadata, without `general.file_type` and `general.quantization_version`; none of a directory.
    pub keys: Vec<(String, Value)>,
    /// `general.file_type` of a GGUF file.
    pub file_type: Option<Value>,
    /// In the order of the file.
    pub weights: Vec<Weight<'a>>,
}

/// A tensor.
pub struct Weight<'a> {
    /// Its name in the file to write.
    pub name: String,
    pub tensor: Tensor,
    /// Its rows in the file to write: more than `tensor` has where an adapter has tokens of its own.
    pub rows: usize,
    /// What adapters change in it.
    pub changes: Option<Changes<'a>>,
    /// Heads of so many rows have these in the order of Hugging Face, to be written in that of GGUF.
    pub reordered: Option<usize>,
    /// The format that it has if nothing asks for another.
    pub kept: Format,
    /// The layer and the group of linear layers with the same input, of matrices of the blocks.
    pub input: Option<(usize, usize)>,
}

impl Model<'static> {
    pub fn open(source: &Source) -> Result<Self, Error> {
        Self::of(Container::open(source)?, &Stack::EMPTY, &name_of(source))
    }
}

impl<'a> Model<'a> {
    /// The model `container` as a GGUF file, with the adapters of `stack` made part of it.
    pub fn of(container: Container, stack: &Stack<'a>, name: &str) -> Result<Self, Error> {
        let (base, names) = container.config()?;
        let arch =
            arch::find("architecture", base.architecture, |arch| arch.name).map_err(crate::Error::from)?;
        let config = stack.alter(&base);
        let mut model = match container {
            Container::Gguf(file) => of_gguf(&file, config, (&base, names), stack)?,
            Container::HuggingFace(mut files) => {
                stack.alter_files(&mut files, &base)?;
                let keys = describe(&files, &config, name)?;
                let mut model = Self { config, keys, file_type: None, weights: Vec::new() };
                model.take(&files, &base, [names, &arch.gguf], stack)?;
                model.add_rope_factors()?;
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

    /// The model of a Hugging Face directory as one, with the adapters of `stack` made part of it.
    pub fn of_directory(files: &mut HfModel, stack: &Stack<'a>) -> Result<Self, Error> {
        let (base, names) = config_of(files)?;
        stack.alter_files(files, &base)?;
        // What the files say now, which is of some layers together what adapters change in one.
        let (config, _) = config_of(files)?;
        let mut model = Self { config, keys: Vec::new(), file_type: None, weights: Vec::new() };
        model.take(files, &base, [names; 2], stack)?;
        for weight in &mut model.weights {
            (weight.reordered, weight.kept) = (None, weight.tensor.format());
        }
        Ok(model)
    }

    /// Takes the weights of a Hugging Face directory, by the names that they get.
    fn take(
        &mut self,
        files: &HfModel,
        base: &Config,
        [from, to]: [&Names; 2],
        stack: &Stack<'a>,
    ) -> Result<(), Error> {
        let config = &self.config;
        let mut known = HashSet::new();
        let both = wanted(config, from).into_iter().zip(wanted(config, to));
        for (there, here) in both {
            let mut weight = there.weight((&files.weights, base, from), stack)?;
            known.insert(there.name);
            (weight.name, weight.kept) = (here.name, Format::F32);
            self.weights.push(weight);
        }
        if config.tied_head || base.tied_head {
            // Some files carry it all the same.
            known.insert(format!("{}.weight", from.head));
        }
        let ignored = |name: &str| from.ignored.iter().any(|end| name.ends_with(end));
        let names = files.weights.names();
        if let Some(name) = names.into_iter().find(|&name| !known.contains(name) && !ignored(name)) {
            let (tensor, architecture) = (name.to_owned(), config.architecture);
            return Err(crate::Error::UnknownTensor { tensor, architecture }.into());
        }
        Ok(())
    }

    /// A GGUF file has them as a tensor.
    fn add_rope_factors(&mut self) -> Result<(), Error> {
        if let Some(factors) = self.config.rope.factors() {
            let name = "rope_freqs.weight".to_owned();
            let tensor = Tensor::encode(Format::F32, 1, factors.len(), &factors)
                .map_err(|source| Error::Tensor { tensor: name.clone(), source })?;
            self.weights.push(Weight::unchanged(name, tensor));
        }
        Ok(())
    }

    /// Refuses a description that is read back as another model.
    fn check(&self, arch: &Architecture) -> Result<(), Error> {
        let weight = |name: &str| self.weights.iter().find(|weight| weight.name == name);
        let shape = |name: &str| {
            let weight = weight(name)?;
            Some(vec![weight.rows as u64, weight.tensor.cols() as u64])
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

impl Weight<'_> {
    /// A tensor as it is.
    fn unchanged(name: String, tensor: Tensor) -> Self {
        let (rows, kept) = (tensor.rows(), tensor.format());
        Self { name, tensor, rows, changes: None, reordered: None, kept, input: None }
    }
}

/// A tensor that a model has.
struct Wanted {
    name: String,
    site: Site,
    part: Part,
    /// The width of a head, where rows are of heads that Hugging Face and GGUF order in different ways.
    heads: Option<usize>,
}

impl Wanted {
    /// The tensor in the file of a base, or what stands for it where adapters add it, with what they change in it.
    fn weight<'a>(
        &self,
        (file, base, names): (&dyn TensorFile, &Config, &Names),
        stack: &Stack<'a>,
    ) -> Result<Weight<'a>, Error> {
        let Self { name, site, part, heads } = self;
        let stem = names.of(*site, base.tied_head).unwrap_or_default();
        let shape = shape_at(base, *site).map_or((0, 0), |shape| (shape.outputs, shape.inputs));
        let has_bias = matches!(site, Site::Linear { module, .. } if base.has_bias(*module));
        let tensor = match part {
            Part::Bias if !has_bias => Tensor::encode(Format::F32, 1, shape.0, &vec![0.0; shape.0])
                .map_err(|source| Error::Tensor { tensor: name.clone(), source })?,
            _ => file.require(&format!("{stem}.{}", part.name()))?,
        };
        let (expected, found) = match part {
            Part::Bias => ((1, shape.0), (tensor.rows(), tensor.cols())),
            Part::Weight if site.is_norm() => ((1, shape.1), (tensor.rows(), tensor.cols())),
            Part::Weight => (shape, (tensor.rows(), tensor.cols())),
        };
        if found != expected {
            let [expected, found] = [expected, found].map(|shape| format!("[{}, {}]", shape.0, shape.1));
            return Err(crate::Error::Shape { tensor: name.clone(), expected, found }.into());
        }
        let changes = match part {
            Part::Weight => stack.changes((*site, *part), base, tensor.clone(), None),
            Part::Bias => {
                let weight = file.require(&format!("{stem}.weight"))?;
                stack.changes((*site, *part), base, weight, has_bias.then(|| tensor.clone()))
            }
        };
        let rows = changes.as_ref().map_or(tensor.rows(), |changes| changes.rows().max(tensor.rows()));
        Ok(Weight { rows, changes, reordered: *heads, ..Weight::unchanged(name.clone(), tensor) })
    }
}

/// All tensors of a model.
fn wanted(config: &Config, names: &Names) -> Vec<Wanted> {
    let mut all = Vec::new();
    let mut want = |site: Site, part: Part, heads| {
        let stem = names.of(site, false).unwrap_or_default();
        all.push(Wanted { name: format!("{stem}.{}", part.name()), site, part, heads });
    };
    want(Site::Embedding, Part::Weight, None);
    want(Site::Norm, Part::Weight, None);
    if !config.tied_head {
        want(Site::Head, Part::Weight, None);
    }
    for layer in 0..config.layers {
        want(Site::AttentionNorm { layer }, Part::Weight, None);
        want(Site::FfnNorm { layer }, Part::Weight, None);
        for &module in Module::ALL {
            let (site, heads) =
                (Site::Linear { layer, module }, module.is_rotated().then_some(config.head_dim));
            want(site, Part::Weight, heads);
            if config.has_bias(module) {
                want(site, Part::Bias, heads);
            }
        }
    }
    all
}

/// What a directory is called.
pub fn name_of(source: &Source) -> String {
    let name = match source {
        Source::Path { path, .. } => path.canonicalize().ok(),
        _ => None,
    };
    let name = name.as_deref().and_then(|path| path.file_name()).unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// All that the file says, but what is about the formats and the shards that it had.
fn of_gguf<'a>(
    file: &Gguf,
    config: Config,
    (base, names): (&Config, &Names),
    stack: &Stack<'a>,
) -> Result<Model<'a>, Error> {
    let file_type = "general.file_type";
    let dropped = [file_type, "general.quantization_version"];
    let keys = file.metadata().iter().filter(|(key, _)| !dropped.contains(key) && !key.starts_with("split."));
    let keys = keys.map(|(key, value)| (key.to_owned(), value.clone())).collect();
    let mut changed = HashMap::new();
    if !stack.is_empty() {
        stack.refuse_more_tokens(base)?;
        for wanted in wanted(&config, names) {
            // Rows of a file stay in its order.
            let weight = Wanted { heads: None, ..wanted }.weight((file, base, names), stack)?;
            changed.insert(weight.name.clone(), weight);
        }
    }
    let as_it_is = |name: &str| Ok(Weight::unchanged(name.to_owned(), file.require(name)?));
    let others = file.names().into_iter().filter(|&name| !changed.contains_key(name));
    let mut weights = others.map(as_it_is).collect::<Result<Vec<_>, Error>>()?;
    weights.extend(changed.into_values());
    Ok(Model { config, keys, file_type: file.metadata().value(file_type).cloned(), weights })
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
