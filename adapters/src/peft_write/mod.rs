//! Writing adapters as peft saves them: `adapter_config.json` and `adapter_model.safetensors`, which [`Adapter::open`] and peft read.

mod directory;
mod lora;
mod names;

use std::path::Path;

use graftwork_kernels::{Format, Tensor};
use serde_json::{Map, Value};

use crate::parts::PREFIX;
use crate::{Adapter, Change, Edit, Error, Kind, RowOrder, Site, expand};

/// Writes an adapter as a PEFT directory: LoRA and AdaLoRA (as LoRA, with ranks and scales of each site, embedding and head, magnitudes,
/// biases of B, invocation tokens, replaced norms, embedding and head, trained tokens), IA3, LayerNorm tuning, prompt tuning, P-tuning and prefix tuning.
/// Tensors stay in F32, F16 and BF16; others become F32. A tokenizer of the adapter's own is written beside it.
///
/// The directory is written as `<dir>.partial`, synced, opened as others will, and renamed. An empty directory is replaced, and one that
/// holds nothing but what this function writes; the old one is `<dir>.old` until the new one is there.
///
/// # Errors
/// By name, what PEFT's files do not say or this function does not write: other kinds, trained biases, magnitudes or biases of B at some
/// sites only, rows in the order of GGUF ([`rows::in_order`](crate::rows::in_order) puts them in another). A place that is taken by something else.
/// What [`Adapter::open`] would refuse, or what the system says.
pub fn write_peft(adapter: &Adapter, dir: &Path) -> Result<(), Error> {
    let files = files(adapter)?;
    directory::replace(dir, adapter, &files)
}

/// The fields of the configuration, and the tensors.
struct Files {
    config: Map<String, Value>,
    tensors: Vec<Piece>,
}

struct Piece {
    name: String,
    /// What the file says; a tensor is always a matrix.
    shape: Vec<u64>,
    tensor: Tensor,
}

impl Files {
    /// Fields of every configuration.
    fn new(adapter: &Adapter, peft_type: &str) -> Self {
        let mut files = Self { config: Map::new(), tensors: Vec::new() };
        files.set("peft_type", peft_type);
        files.set("task_type", "CAUSAL_LM");
        files.set("base_model_name_or_path", adapter.base_model.clone());
        files.set("inference_mode", true);
        files
    }

    fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.config.insert(field.to_owned(), value.into());
    }

    /// A matrix.
    fn matrix(&mut self, name: String, tensor: &Tensor) -> Result<(), Error> {
        let shape = vec![tensor.rows() as u64, tensor.cols() as u64];
        self.tensor(name, shape, tensor)
    }

    /// A tensor `[1, n]` of the shape `[n]`.
    fn vector(&mut self, name: String, tensor: &Tensor) -> Result<(), Error> {
        self.tensor(name, vec![tensor.cols() as u64], tensor)
    }

    fn tensor(&mut self, name: String, shape: Vec<u64>, tensor: &Tensor) -> Result<(), Error> {
        let tensor = match tensor.format() {
            Format::F32 | Format::F16 | Format::BF16 => tensor.clone(),
            _ => expand::scaled(tensor, 1.0).map_err(|source| expand::failed(&name, source))?,
        };
        self.tensors.push(Piece { name, shape, tensor });
        Ok(())
    }
}

fn files(adapter: &Adapter) -> Result<Files, Error> {
    if adapter.row_order != RowOrder::HuggingFace {
        let what = "writing rows in the order of GGUF".to_owned();
        return Err(Error::Unsupported { what, reason: "PEFT's files have Hugging Face's" });
    }
    if adapter.edits.is_empty() {
        return Err(Error::Empty);
    }
    match adapter.kind {
        Kind::Lora | Kind::AdaLora => lora::files(adapter),
        Kind::Ia3 => ia3(adapter),
        Kind::LnTuning => ln_tuning(adapter),
        Kind::PromptTuning | Kind::PTuning | Kind::PrefixTuning => before(adapter),
        kind => {
            let what = format!("writing adapters of kind {}", kind.name());
            let reason = "LoRA, IA3, LayerNorm tuning, prompts and prefixes are written";
            Err(Error::Unsupported { what, reason })
        }
    }
}

fn unsupported(edit: &Edit, what: &str, reason: &'static str) -> Error {
    Error::Unsupported { what: format!("writing {what} of {}", edit.site), reason }
}

/// `<prefix><path of the site>`.
fn module(edit: &Edit) -> Result<(String, String), Error> {
    let reason = "PEFT's files name modules";
    let path = edit.site.hf_path().ok_or_else(|| unsupported(edit, "the change", reason))?;
    Ok((format!("{PREFIX}{path}"), path))
}

fn ia3(adapter: &Adapter) -> Result<Files, Error> {
    let mut files = Files::new(adapter, "IA3");
    let mut feedforward = Vec::new();
    for edit in &adapter.edits {
        let name = format!("{}.ia3_l", module(edit)?.0);
        match &edit.change {
            Change::OutputScale { values } => {
                files.tensor(name, vec![values.cols() as u64, 1], values)?;
            }
            Change::InputScale { values } => {
                feedforward.push(edit.site);
                files.matrix(name, values)?;
            }
            _ => return Err(unsupported(edit, "the change", "IA3 holds factors only")),
        }
    }
    let sites: Vec<Site> = adapter.edits.iter().map(|edit| edit.site).collect();
    // What is a name in one list has to be one in the other, and means the same in every layer.
    let layers = names::grid(&sites);
    let short = layers.is_some() && (feedforward.is_empty() || names::grid(&feedforward) == layers);
    files.set("target_modules", names::targets(&sites, short));
    files.set("feedforward_modules", names::targets(&feedforward, short));
    Ok(files)
}

fn ln_tuning(adapter: &Adapter) -> Result<Files, Error> {
    let mut files = Files::new(adapter, "LN_TUNING");
    for edit in &adapter.edits {
        let Change::Replace { weight } = &edit.change else {
            return Err(unsupported(edit, "the change", "LayerNorm tuning holds weights of norms only"));
        };
        files.vector(format!("{}.ln_tuning_layers.weight", module(edit)?.0), weight)?;
    }
    let sites: Vec<Site> = adapter.edits.iter().map(|edit| edit.site).collect();
    files.set("target_modules", names::targets(&sites, false));
    Ok(files)
}

fn before(adapter: &Adapter) -> Result<Files, Error> {
    let peft_type = adapter.kind.peft_type().unwrap_or_default();
    let mut files = Files::new(adapter, peft_type);
    let [edit] = &adapter.edits[..] else {
        return Err(unsupported(&adapter.edits[0], "more than one change", "there is one prompt"));
    };
    let (rows, width) = match &edit.change {
        Change::VirtualTokens { rows } if adapter.kind != Kind::PrefixTuning => (rows, rows.cols()),
        Change::Prefix { rows, layers } if adapter.kind == Kind::PrefixTuning => {
            files.set("num_layers", *layers);
            files.set("prefix_projection", false);
            (rows, rows.cols() / (2 * layers).max(1))
        }
        _ => return Err(unsupported(edit, "the change", "the kind is another's")),
    };
    files.set("num_virtual_tokens", rows.rows());
    files.set("token_dim", width);
    files.set("num_transformer_submodules", 1);
    files.matrix("prompt_embeddings".to_owned(), rows)?;
    Ok(files)
}
