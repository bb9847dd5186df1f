//! Control vectors: `h += v` behind chosen blocks.
//!
//! A GGUF file as llama.cpp's generator writes it: `general.architecture` is `controlvector`, tensors are `direction.<layer>` `[width]`,
//! added to the output of the block of that number, counted from 0; block 0 has none. Or a directory whose `adapter_config.json` says
//! `"peft_type": "CONTROL_VECTOR"`, with the GGUF file as `control_vector.gguf` or the same tensors in `adapter_model.safetensors`;
//! `"layers": [first, last]` there keeps the directions of these blocks only. (Zou et al., arXiv 2310.01405; llama.cpp's
//! `llama-adapter.cpp` and `common.cpp`.)

use serde_json::Value;

use crate::file::gguf::Metadata;
use crate::file::{Gguf, SMALL, Source, TensorFile};
use crate::parts::{self, Reader};
use crate::peft::{self, Config, field};
use crate::{Adapter, Change, Edit, Error, Key, Kind, Site, finite};
use graftwork_kernels::Tensor;

const WEIGHTS: &str = "control_vector.gguf";
const EXPECTED: &str = "tensors of control vectors are direction.<layer>, from layer 1 on";

/// Keys that do not change the arithmetic.
const KEYS: &[&str] = &["controlvector.layer_count", "controlvector.model_hint"];

/// First and last block that are changed.
type Layers = Option<(usize, usize)>;

/// Whether a GGUF file says that it is one.
pub(crate) fn is_one(file: &Gguf) -> bool {
    matches!(file.metadata().get::<&str>("general.architecture"), Ok(Some("controlvector")))
}

/// The GGUF file beside a configuration of this kind, if there is one.
pub(crate) fn beside(config: &Config, source: &Source) -> Result<Option<Adapter>, Error> {
    if config.str("peft_type")? != Kind::ControlVector.peft_type() {
        return Ok(None);
    }
    let layers = layers(config)?;
    match source.small_file(WEIGHTS)? {
        Some(bytes) => from_gguf(&Gguf::parse(bytes)?, layers).map(Some),
        None => Ok(None),
    }
}

/// Reads the tensors of a safetensors file.
pub(crate) fn read(config: &Config, reader: &Reader) -> Result<Vec<Edit>, Error> {
    edits(reader.names(), layers(config)?, |name| reader.vector(name, None))
}

/// Reads a control vector from a GGUF file, whole or some of its layers.
pub(crate) fn from_gguf(file: &Gguf, layers: Layers) -> Result<Adapter, Error> {
    check_metadata(file.metadata())?;
    if file.tensors().is_empty() {
        return Err(Error::Empty);
    }
    let edits = edits(file.tensors().names(), layers, |name| {
        let tensor = file.require(name)?;
        if file.shape(name).is_none_or(|shape| shape.len() != 1) {
            let found = format!("{:?}", file.shape(name).unwrap_or_default());
            return Err(Error::Shape { tensor: name.to_owned(), expected: "[_]".to_owned(), found });
        }
        if tensor.bytes().len() as u64 <= SMALL {
            finite::check(name, &tensor)?;
        }
        Ok(tensor)
    })?;
    let base_model = file.metadata().get::<&str>("controlvector.model_hint")?.map(str::to_owned);
    let key = |name: &str| Key {
        tensor: name.to_owned(),
        site: None,
        shape: file.shape(name).unwrap_or_default().to_vec(),
    };
    let keys = file.tensors().names().map(key).collect();
    Ok(Adapter { base_model, ..Adapter::new(Kind::ControlVector, edits, keys) })
}

fn check_metadata(metadata: &Metadata) -> Result<(), Error> {
    for (key, value) in metadata.iter() {
        if key.starts_with("controlvector.") && !KEYS.contains(&key) {
            return Err(Error::UnknownField { field: key.to_owned(), value: value.type_name() });
        }
    }
    Ok(())
}

fn edits<'a>(
    names: impl Iterator<Item = &'a str>,
    layers: Layers,
    read: impl Fn(&str) -> Result<Tensor, Error>,
) -> Result<Vec<Edit>, Error> {
    let mut edits = parts::edits(0)?;
    for name in names {
        let layer = name.strip_prefix("direction.").and_then(|layer| {
            let number = layer.parse::<usize>().ok().filter(|&number| number > 0)?;
            (number.to_string() == layer).then_some(number)
        });
        let unknown = || Error::UnknownTensor { tensor: name.to_owned(), expected: EXPECTED };
        let layer = layer.ok_or_else(unknown)?;
        let values = read(name)?;
        if layers.is_none_or(|(first, last)| (first..=last).contains(&layer)) {
            edits.push(Edit { site: Site::AfterFfn { layer }, change: Change::Add { values } });
        }
    }
    if let (true, Some((first, last))) = (edits.is_empty(), layers) {
        let expected = "blocks that the file has directions of";
        return Err(field("layers", expected, &Value::String(format!("{first} to {last}"))));
    }
    edits.sort_by_key(|edit| edit.site);
    Ok(edits)
}

fn layers(config: &Config) -> Result<Layers, Error> {
    config.check(&["layers"], peft::UNSUPPORTED)?;
    let Some(value) = config.get("layers") else { return Ok(None) };
    let number = |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok());
    match value.as_array().map(|range| range.iter().map(number).collect::<Option<Vec<_>>>()) {
        Some(Some(range)) if range.len() == 2 && range[0] <= range[1] => Ok(Some((range[0], range[1]))),
        _ => Err(field("layers", "the first and the last block, [first, last]", value)),
    }
}
