//! From a source to an adapter: which container is it, and which kind?

use graftwork_kernels::Bytes;
use std::path::Path;

use crate::delta::{self, Delta, bitdelta, deltazip};
use crate::file::{self, SMALL, gguf, hf, open_bytes};
use crate::parts::Reader;
use crate::peft::{self, Config};
use crate::seed::SeedPatch;
use crate::{
    Adapter, Error, Kind, RowOrder, Site, Source, TextFiles, ablation, adapterhub, control_vector, lora,
    lora_gguf, prompt, seed,
};

pub(crate) const CONFIG: &str = "adapter_config.json";
/// What the file of weights may be called, the first there is.
pub(crate) const WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

pub(crate) fn open(source: Source) -> Result<Adapter, Error> {
    match &source {
        Source::Path { path, copy_up_to } if !path.is_dir() => {
            file(path, *copy_up_to).map_err(|error| error.in_file(source.name()))
        }
        Source::Path { .. } => directory(&source).map_err(|error| error.in_file(source.name())),
        Source::Files(files) if files.len() == 1 => match files.iter().next() {
            Some((name, bytes)) => bare(name, bytes.clone()),
            None => Err(Error::Empty),
        },
        Source::Files(_) => directory(&source),
        Source::Bytes(bytes) => bare(&source.name(), bytes.clone()),
    }
}

/// A file with nothing beside it.
fn bare(name: &str, bytes: Bytes) -> Result<Adapter, Error> {
    if bytes.starts_with(gguf::MAGIC) {
        return from_gguf(bytes);
    }
    if delta::is_one(&bytes) {
        return from_delta(bytes);
    }
    if seed::is_one(&bytes) {
        return SeedPatch::parse(bytes)?.into_adapter();
    }
    if let Ok(reader) = Reader::new(bytes.clone())
        && bitdelta::is_one(reader.names())
    {
        return imported(bitdelta::read(&reader)?, &reader);
    }
    prompt::bare(bytes)?.ok_or_else(|| Error::NoConfig { file: name.to_owned() })
}

/// A GGUF file of either kind.
fn from_gguf(bytes: Bytes) -> Result<Adapter, Error> {
    let file = file::Gguf::parse(bytes.clone())?;
    if control_vector::is_one(&file) {
        return control_vector::from_gguf(&file, None);
    }
    lora_gguf::from_gguf(bytes)
}

/// A delta in our file.
fn from_delta(bytes: Bytes) -> Result<Adapter, Error> {
    let small = bytes.len() as u64 <= SMALL;
    let delta = Delta::parse(bytes)?;
    if small {
        delta.check_values()?;
    }
    delta.into_adapter()
}

/// A delta that another program wrote, with the names of its tensors.
fn imported(delta: Delta, reader: &Reader) -> Result<Adapter, Error> {
    Ok(Adapter { keys: reader.keys(), ..delta.into_adapter()? })
}

/// What DeltaZip wrote, with the configuration in its directory.
fn from_deltazip(directory: &Source, bytes: Bytes) -> Result<Adapter, Error> {
    let config = directory.json(deltazip::CONFIG, deltazip::MAX_CONFIG)?;
    let (delta, reader) = deltazip::read(config.as_ref(), bytes)?;
    imported(delta, &reader)
}

/// A directory with a delta or a seed patch in it, ours or another program's.
fn deltas(source: &Source) -> Result<Option<Adapter>, Error> {
    let adapter = if let Some(bytes) = source.file(delta::NAME)? {
        from_delta(bytes).map_err(|error| error.in_file(delta::NAME.to_owned()))?
    } else if let Some(bytes) = source.file(deltazip::NAME)? {
        from_deltazip(source, bytes).map_err(|error| error.in_file(deltazip::NAME.to_owned()))?
    } else if let Some(bytes) = source.file(bitdelta::NAME)? {
        bare(bitdelta::NAME, bytes).map_err(|error| error.in_file(bitdelta::NAME.to_owned()))?
    } else if let Some(bytes) = source.file(seed::NAME)? {
        let patch = SeedPatch::parse(bytes).and_then(SeedPatch::into_adapter);
        patch.map_err(|error| error.in_file(seed::NAME.to_owned()))?
    } else {
        return Ok(None);
    };
    with_text(adapter, source).map(Some)
}

/// The adapter with the tokenizer beside it, if it replaces the embedding or rows of it.
fn with_text(mut adapter: Adapter, source: &Source) -> Result<Adapter, Error> {
    if adapter.edits.iter().any(|edit| edit.site == Site::Embedding && edit.change.is_whole()) {
        adapter.text = text(source)?;
    }
    Ok(adapter)
}

/// A file on disk.
fn file(path: &Path, copy_up_to: u64) -> Result<Adapter, Error> {
    let bytes = open_bytes(path, copy_up_to.max(SMALL))?;
    if [delta::is_one, seed::is_one].iter().any(|is_one| is_one(&bytes)) || bytes.starts_with(gguf::MAGIC) {
        return bare(&path.display().to_string(), bytes);
    }
    let beside = Source::Path { path: path.parent().unwrap_or(Path::new("")).to_owned(), copy_up_to };
    match beside.json(CONFIG, peft::MAX_CONFIG)? {
        Some(config) => by_kind(&Config::new(config)?, bytes),
        None if path.file_name() == Some(deltazip::NAME.as_ref()) => from_deltazip(&beside, bytes),
        None => bare(&path.display().to_string(), bytes),
    }
}

/// A directory as PEFT saves it, or with a delta or a seed patch in it.
fn directory(source: &Source) -> Result<Adapter, Error> {
    let missing = |name: &str| file::Error::Missing { what: "file", name: name.to_owned() };
    let source = match source {
        Source::Path { path, copy_up_to } => {
            &Source::Path { path: path.clone(), copy_up_to: (*copy_up_to).max(SMALL) }
        }
        source => source,
    };
    let config = match source.json(CONFIG, peft::MAX_CONFIG)? {
        Some(config) => Config::new(config)?,
        None => return deltas(source)?.ok_or_else(|| missing(CONFIG).into()),
    };
    if let Some(adapter) = control_vector::beside(&config, source)?.or(ablation::beside(&config, source)?) {
        return Ok(adapter);
    }
    let names = match adapterhub::is_one(&config) {
        true => adapterhub::WEIGHTS,
        false => WEIGHTS,
    };
    for name in names {
        if let Some(weights) = source.file(name)? {
            return with_text(by_kind(&config, weights)?, source);
        }
    }
    Err(missing(names[0]).into())
}

/// The tokenizer beside an adapter.
fn text(source: &Source) -> Result<Option<TextFiles>, Error> {
    let Some(tokenizer) = source.small_file("tokenizer.json")? else { return Ok(None) };
    let config = source.json("tokenizer_config.json", hf::MAX_TOKENIZER_CONFIG)?;
    Ok(Some(TextFiles { tokenizer, config, chat_template: hf::chat_template(source)? }))
}

/// A PEFT adapter of whichever kind its configuration says.
pub(crate) fn by_kind(config: &Config, weights: Bytes) -> Result<Adapter, Error> {
    if adapterhub::is_one(config) {
        return adapterhub::read(config, &Reader::new(weights)?);
    }
    let name = config.str("peft_type")?.unwrap_or_default();
    let Some((kind, read)) = Kind::of_peft_type(name) else {
        return Err(Error::Unsupported {
            what: format!("adapter field peft_type = \"{}\"", name.chars().take(80).collect::<String>()),
            reason: "docs/adapters.md lists the kinds that this version applies",
        });
    };
    let reader = Reader::new(weights)?;
    let edits = read(config, &reader)?;
    let base_model = config.str("base_model_name_or_path")?.map(str::to_owned);
    let invocation = lora::invocation(config, &edits)?;
    let row_order = RowOrder::HuggingFace;
    Ok(Adapter { row_order, base_model, invocation, ..Adapter::new(kind, edits, reader.keys()) })
}
