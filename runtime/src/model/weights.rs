//! A model's weights, from the tensors of a file to what the backend computes with.

use std::collections::HashSet;
use std::ops::Index;
use std::sync::Mutex;

use graftwork_adapters::{Module, TensorFile};
use graftwork_kernels::backend::Device;
use graftwork_kernels::{Format, Tensor};

use super::arch::Names;
use super::config::Config;
use super::rope::Frequencies;
use crate::Error;
use crate::parallel::{Progress, in_parallel};

/// A linear layer.
pub struct Linear<D: Device> {
    /// `[outputs, inputs]`.
    pub weight: D::Matrix,
    /// The format of the weight.
    pub format: Format,
    /// `[outputs]`.
    pub bias: Option<D::Vector>,
    /// The bias' values, for adapters that replace it.
    pub bias_values: Option<Vec<f32>>,
}

/// One block; its linear layers are indexed by [`Module`].
pub struct Layer<D: Device> {
    /// The norm before attention.
    pub attention_norm: D::Vector,
    /// The norm before the feed-forward block.
    pub ffn_norm: D::Vector,
    linears: Vec<Linear<D>>,
}

impl<D: Device> Index<Module> for Layer<D> {
    type Output = Linear<D>;

    fn index(&self, module: Module) -> &Linear<D> {
        &self.linears[module as usize]
    }
}

/// A model, ready to run.
pub struct Model<D: Device> {
    /// What it is.
    pub config: Config,
    /// The rotation's frequencies.
    pub frequencies: Frequencies,
    /// `[vocab, hidden]`.
    pub embedding: D::Table,
    /// The blocks.
    pub layers: Vec<Layer<D>>,
    /// The norm before the head.
    pub norm: D::Vector,
    /// `[vocab, hidden]`.
    pub head: Linear<D>,
    /// Bytes that the weights keep in memory, without the embedding.
    pub bytes: usize,
    /// Bytes of the embedding in its file.
    pub embedding_bytes: usize,
}

impl<D: Device> Model<D> {
    /// Loads every tensor that `config` asks for from `file`, on `threads` threads.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape than `config` says, not asked for, or that the device
    /// refuses; the message names it.
    pub fn load(
        config: Config,
        names: &'static Names,
        file: &dyn TensorFile,
        device: &D,
        (threads, progress): (usize, &Progress<'_>),
    ) -> Result<Self, Error> {
        let loader = Loader { config: &config, names, file, device, used: Mutex::default() };
        let table = loader.tensor(names.embedding, "weight", config.vocab, config.hidden)?;
        let table = table.compact().map_err(|e| loader.refused(names.embedding, e))?;
        let embedding = device.table(&table).map_err(|e| loader.refused(names.embedding, e))?;
        let norm = loader.vector(names.norm, config.hidden)?;
        let head_name = if config.tied_head { names.embedding } else { names.head };
        if config.tied_head {
            loader.used.lock().unwrap_or_else(|e| e.into_inner()).insert(format!("{}.weight", names.head));
        }
        enum Part<D: Device> {
            Head(Linear<D>),
            Layer(Layer<D>),
        }
        // The head first: it is the largest part by far.
        let parts = in_parallel(threads, config.layers + 1, progress, |part| match part {
            0 => loader.linear(head_name, (config.vocab, config.hidden), false).map(Part::Head),
            _ => loader.layer(part - 1).map(Part::Layer),
        })?;
        loader.check_all_used()?;
        let mut layers = Vec::with_capacity(config.layers);
        let mut head = None;
        for part in parts {
            match part {
                Part::Head(linear) => head = Some(linear),
                Part::Layer(layer) => layers.push(layer),
            }
        }
        let head = head.ok_or(Error::Internal { what: "the head was not loaded" })?;
        let matrices = layers.iter().flat_map(|layer| &layer.linears).chain([&head]);
        let bytes = matrices.map(|linear| device.matrix_bytes(&linear.weight)).sum::<usize>()
            + (2 * config.layers + 1) * config.hidden * size_of::<f32>();
        let frequencies = config.rope.frequencies();
        Ok(Self {
            frequencies,
            embedding,
            layers,
            norm,
            head,
            bytes,
            embedding_bytes: table.bytes().len(),
            config,
        })
    }

    /// Whether weights of linear layers are in blocks.
    pub fn is_quantized(&self) -> bool {
        let mut linears = self.layers.iter().flat_map(|layer| &layer.linears).chain([&self.head]);
        linears.any(|linear| linear.format.block_len() > 1)
    }
}

struct Loader<'a, D: Device> {
    config: &'a Config,
    names: &'static Names,
    file: &'a dyn TensorFile,
    device: &'a D,
    used: Mutex<HashSet<String>>,
}

impl<D: Device> Loader<'_, D> {
    fn refused(&self, name: &str, source: graftwork_kernels::Error) -> Error {
        Error::Weight { tensor: name.to_owned(), source }
    }

    fn tensor(&self, name: &str, part: &str, rows: usize, cols: usize) -> Result<Tensor, Error> {
        let name = format!("{name}.{part}");
        let tensor = self.file.require(&name)?;
        if (tensor.rows(), tensor.cols()) != (rows, cols) {
            return Err(Error::Shape {
                expected: format!("[{rows}, {cols}]"),
                found: format!("[{}, {}]", tensor.rows(), tensor.cols()),
                tensor: name,
            });
        }
        self.used.lock().unwrap_or_else(|e| e.into_inner()).insert(name);
        Ok(tensor)
    }

    fn vector(&self, name: &str, len: usize) -> Result<D::Vector, Error> {
        let values = self.tensor(name, "weight", 1, len)?.decode();
        values.and_then(|values| self.device.vector(&values)).map_err(|e| self.refused(name, e))
    }

    fn linear(&self, name: &str, (rows, cols): (usize, usize), bias: bool) -> Result<Linear<D>, Error> {
        let refused = |e| self.refused(name, e);
        let tensor = self.tensor(name, "weight", rows, cols)?;
        let format = tensor.format();
        let weight = self.device.matrix(&tensor).map_err(refused)?;
        // The device has its own.
        tensor.bytes().unload();
        let bias = bias.then(|| self.tensor(name, "bias", 1, rows)).transpose()?;
        let bias_values = bias.map(|bias| bias.decode()).transpose().map_err(refused)?;
        let bias = bias_values.as_deref().map(|v| self.device.vector(v)).transpose().map_err(refused)?;
        Ok(Linear { weight, format, bias, bias_values })
    }

    fn layer(&self, layer: usize) -> Result<Layer<D>, Error> {
        let (names, config) = (self.names, self.config);
        let linear = |&module: &Module| {
            self.linear(&names.linear(layer, module), config.shape_of(module), config.has_bias(module))
        };
        Ok(Layer {
            attention_norm: self.vector(&names.in_layer(layer, names.attention_norm), config.hidden)?,
            ffn_norm: self.vector(&names.in_layer(layer, names.ffn_norm), config.hidden)?,
            linears: Module::ALL.iter().map(linear).collect::<Result<_, _>>()?,
        })
    }

    /// Refuses a file with tensors that nothing asked for: the model would compute something else.
    fn check_all_used(&self) -> Result<(), Error> {
        let used = self.used.lock().unwrap_or_else(|e| e.into_inner());
        let ignored = |name: &str| self.names.ignored.iter().any(|end| name.ends_with(end));
        match self.file.names().into_iter().find(|&name| !used.contains(name) && !ignored(name)) {
            Some(name) => {
                Err(Error::UnknownTensor { tensor: name.to_owned(), architecture: self.config.architecture })
            }
            None => Ok(()),
        }
    }
}
