//! Bottlenecks of LLM-Adapters, a fork of peft: `z = s U f(D u)` beside or around a linear layer.
//!
//! Tensors are `<module>.adapter_down.weight` `[size, in]`, `.adapter_up.weight` `[out, size]` and, where `scaling` is `"learned"`,
//! `.adapter_scaling` `[1]`. With `use_parallel_adapter` `y = W x + z` and `u = x`. Else the module decides, of Llama: before
//! `gate_proj` and `up_proj` `y = W (x + z)` with `u = x`; behind `down_proj` `y = h + z` with `u = h = W x`. (Hu et al., arXiv 2304.01933;
//! `peft/src/peft/tuners/bottleneck.py` of AGI-Edgerunners/LLM-Adapters.)

use serde_json::{Value, json};

use crate::parts::{self, Module as Parts, Reader, Suffixes};
use crate::peft::{self, Config, field};
use crate::{Activation, Change, Edit, Error, Module, Place, Site};

const UNDERSTOOD: &[&str] = &[
    "bias",
    "bottleneck_size",
    "non_linearity",
    "scaling",
    "use_parallel_adapter",
    // Which modules are targets where none are named.
    "use_adapterp",
    // Training.
    "adapter_dropout",
    "init_weights",
];

const SUFFIXES: &Suffixes<Part> = &Suffixes {
    rows: &[
        (".adapter_down.weight", Part::Down, "the projection down"),
        (".adapter_up.weight", Part::Up, "the projection up"),
        (".adapter_scaling", Part::Scaling, "the scaling"),
    ],
    expected: "bottleneck tensors are base_model.model.<linear layer of a block>.adapter_down.weight, .adapter_up.weight and \
               .adapter_scaling",
};

/// The tensors of a bottleneck.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Down,
    DownBias,
    Up,
    UpBias,
    Scaling,
}

/// Transformers' names of activations, as far as they are there.
const ACTIVATIONS: &[(&str, Activation)] = &[
    ("gelu", Activation::Gelu),
    ("gelu_accurate", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_python", Activation::Gelu),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("leaky_relu", Activation::LeakyRelu),
    ("leakyrelu", Activation::LeakyRelu),
    ("linear", Activation::Identity),
    ("quick_gelu", Activation::QuickGelu),
    ("relu", Activation::Relu),
    ("relu2", Activation::SquaredRelu),
    ("sigmoid", Activation::Sigmoid),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("tanh", Activation::Tanh),
];

/// The activation that a field names.
pub(crate) fn activation(config: &Config, name: &str, default: &str) -> Result<Activation, Error> {
    let found = config.str(name)?.unwrap_or(default);
    match ACTIVATIONS.iter().find(|(known, _)| *known == found) {
        Some((_, activation)) => Ok(*activation),
        None => {
            let known: Vec<_> = ACTIVATIONS.iter().map(|(known, _)| *known).collect();
            Err(field(name, &format!("one of {}", known.join(", ")), &json!(found)))
        }
    }
}

/// How `z` is scaled.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Scaling {
    /// By this number.
    Number(f32),
    /// By a tensor of one value.
    Learned,
    /// By a tensor with one value for each output.
    Channels,
}

impl Scaling {
    /// What the field `scaling` says; `texts` are those that it may be.
    pub fn read(config: &Config, texts: &[(&str, Self)], default: f32) -> Result<Self, Error> {
        let expected = || texts.iter().map(|(text, _)| format!(" or \"{text}\"")).collect::<String>();
        match config.get("scaling") {
            None => Ok(Self::Number(default)),
            Some(Value::Number(_)) => Ok(Self::Number(config.number("scaling")?.unwrap_or_default() as f32)),
            Some(value) => {
                let known = texts.iter().find(|(text, _)| value == text);
                known
                    .map(|&(_, scaling)| scaling)
                    .ok_or_else(|| field("scaling", &format!("a number{}", expected()), value))
            }
        }
    }
}

/// The tensors of one bottleneck; `biases` says whether it has them.
pub(crate) fn change(
    reader: &Reader,
    module: &Parts<'_, Part>,
    (place, activation, scaling): (Place, Activation, Scaling),
    size: Option<usize>,
    biases: bool,
) -> Result<Change, Error> {
    let down = reader.matrix(module.need(Part::Down)?, [size, None])?;
    let up = reader.matrix(module.need(Part::Up)?, [None, Some(down.rows())])?;
    let bias = |part, len| match biases {
        true => reader.vector(module.need(part)?, Some(len)).map(Some),
        false => Ok(None),
    };
    let (down_bias, up_bias) = (bias(Part::DownBias, down.rows())?, bias(Part::UpBias, up.rows())?);
    let (scale, channels) = match scaling {
        Scaling::Number(_) if module.has(&[Part::Scaling]) => return Err(module.unknown(Part::Scaling)),
        Scaling::Number(scale) => (scale, None),
        Scaling::Learned => (reader.scalar(module.need(Part::Scaling)?)?, None),
        Scaling::Channels => (1.0, Some(reader.vector(module.need(Part::Scaling)?, Some(up.rows()))?)),
    };
    Ok(Change::Bottleneck { place, down, down_bias, activation, up, up_bias, scale, channels })
}

pub(crate) fn read(config: &Config, reader: &Reader) -> Result<Vec<Edit>, Error> {
    config.check(UNDERSTOOD, peft::UNSUPPORTED)?;
    config.only("bias", &[json!("none")], "biases are not replaced by bottlenecks")?;
    let activation = activation(config, "non_linearity", "tanh")?;
    let scaling = Scaling::read(config, &[("learned", Scaling::Learned)], 1.0)?;
    let size = config.rank("bottleneck_size")?.unwrap_or(256);
    let parallel = config.bool("use_parallel_adapter")?;
    config.bool("use_adapterp")?;
    let modules = reader.modules(SUFFIXES, &[], Site::is_linear)?;
    let mut edits = parts::edits(modules.len())?;
    for (&site, module) in &modules {
        let place = match site {
            _ if parallel => Place::Parallel,
            Site::Linear { module: Module::Gate | Module::Up, .. } => Place::Input,
            Site::Linear { module: Module::Down, .. } => Place::Series,
            _ => {
                let what = format!("adapter tensor {}", module.need(Part::Down)?);
                let reason =
                    "LLM-Adapters puts bottlenecks in series at gate_proj, up_proj and down_proj only";
                return Err(Error::Unsupported { what, reason });
            }
        };
        let change = change(reader, module, (place, activation, scaling), Some(size), false)?;
        edits.push(Edit { site, change });
    }
    Ok(edits)
}
