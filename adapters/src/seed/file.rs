//! The file of a seed patch: safetensors with one tensor and a JSON header among its texts.

use std::io::{self, Write};
use std::path::Path;

use graftwork_kernels::{Bytes, tensor};
use serde::{Deserialize, Serialize};

use super::{SeedPatch, Settings, no_memory, normal, wrong};
use crate::delta::Fingerprint;
use crate::file::{
    Dtype, Error as FileError, Safetensors, TensorView, open_bytes, safetensors, write_safetensors,
};
use crate::{Error, Module, Site, names};

/// The key of the header among the texts of the file.
pub const KEY: &str = "graftwork.seed";
/// The key of the checksum over header and coefficients.
pub const CHECKSUM: &str = "graftwork.seed.fnv1a";
/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;
/// The name of the only generator there is.
pub const GENERATOR: &str = "philox4x32-10/box-muller/1";
/// What the file is called in a directory.
pub const NAME: &str = "seed.safetensors";
/// The tensor.
pub(super) const COEFFICIENTS: &str = "coefficients";
/// Bytes of a header at most.
const MAX_HEADER: usize = 64 << 10;

/// Whether the bytes are those of a seed patch, whole or not: a safetensors header that mentions [`KEY`].
pub fn is_one(bytes: &[u8]) -> bool {
    safetensors::mentions(bytes, KEY)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    version: u32,
    generator: String,
    bases: Vec<String>,
    base_seed: u64,
    scale: f32,
    count: u64,
    modules: Vec<String>,
}

impl SeedPatch {
    /// Reads a file into memory and parses it.
    ///
    /// # Errors
    /// As [`SeedPatch::parse`], or what the system says; both name the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        Self::parse(open_bytes(path, u64::MAX)?).map_err(|error| error.in_file(path.display().to_string()))
    }

    /// Parses a file.
    ///
    /// # Errors
    /// Whatever is malformed, missing, too much, damaged or not understood, naming the field or tensor; and as
    /// [`SeedPatch::new`].
    pub fn parse(bytes: Bytes) -> Result<Self, Error> {
        let file = Safetensors::parse(bytes)?;
        let text = |key: &str| {
            let missing = || FileError::Missing { what: "key", name: key.to_owned() };
            file.metadata().get(key).ok_or_else(missing)
        };
        let (json, checksum) = (text(KEY)?, text(CHECKSUM)?);
        if let Some((name, value)) = file.metadata().iter().find(|(name, _)| ![KEY, CHECKSUM].contains(name))
        {
            let value = value.chars().take(80).collect();
            return Err(Error::UnknownField { field: name.to_owned(), value });
        }
        if let Some(name) = file.tensors().names().find(|&name| name != COEFFICIENTS) {
            let expected = "a seed patch holds the tensor coefficients alone";
            return Err(Error::UnknownTensor { tensor: name.to_owned(), expected });
        }
        let missing = || FileError::Missing { what: "tensor", name: COEFFICIENTS.to_owned() };
        let info = file.tensors().get(COEFFICIENTS).ok_or_else(missing)?;
        let found = checksum_of(json, &info.bytes);
        if *checksum != found {
            let expected = format!("{found}, as header and coefficients have it");
            return Err(wrong(CHECKSUM, expected, checksum));
        }
        let header = Header::parse(json)?;
        if info.dtype != Dtype::F32 || info.shape != [header.count] {
            return Err(FileError::Tensor {
                tensor: COEFFICIENTS.to_owned(),
                expected: format!("F32 [{}], as many as count says", header.count),
                found: format!("{} {:?}", info.dtype, info.shape),
            }
            .into());
        }
        let (values, _) = info.bytes.as_chunks();
        let mut coefficients = tensor::reserved(values.len()).map_err(no_memory)?;
        coefficients.extend(values.iter().map(|&bytes| f32::from_le_bytes(bytes)));
        let Header { bases, base_seed, scale, modules, .. } = header;
        let bases = Fingerprint::read_all(&bases)?;
        let modules = modules.iter().map(|name| module(name)).collect::<Result<_, _>>()?;
        Self::new(Settings { bases, base_seed, scale, modules }, coefficients)
    }

    /// Writes a file that [`SeedPatch::parse`] reads.
    ///
    /// # Errors
    /// What `out` says.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let Settings { bases, base_seed, scale, modules } = self.settings();
        let header = Header {
            version: VERSION,
            generator: GENERATOR.to_owned(),
            bases: bases.iter().map(ToString::to_string).collect(),
            base_seed: *base_seed,
            scale: *scale,
            count: self.coefficients().len() as u64,
            modules: modules.iter().map(|&module| name_of(module)).collect(),
        };
        let json = serde_json::to_string(&header)?;
        let bytes: Vec<u8> = self.coefficients().iter().flat_map(|c| c.to_le_bytes()).collect();
        let shape = &[header.count];
        let tensor = TensorView { name: COEFFICIENTS, dtype: Dtype::F32, shape, bytes: &bytes };
        let checksum = checksum_of(&json, &bytes);
        write_safetensors(out, &[tensor], &[(KEY, &json), (CHECKSUM, &checksum)])
    }
}

impl Header {
    fn parse(text: &str) -> Result<Self, Error> {
        /// The version alone, whatever else there is.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }

        if text.len() > MAX_HEADER {
            let (what, limit, found) = (format!("bytes of {KEY}"), MAX_HEADER as u64, text.len() as u64);
            return Err(FileError::TooMany { what, limit, found }.into());
        }
        let json = |error: serde_json::Error| {
            Error::from(FileError::Json { reason: error.to_string() }.in_file(format!("key {KEY}")))
        };
        let Version { version } = serde_json::from_str(text).map_err(json)?;
        if version != VERSION {
            return Err(wrong("version", VERSION, version));
        }
        let header: Self = serde_json::from_str(text).map_err(json)?;
        if header.generator != GENERATOR {
            return Err(wrong("generator", GENERATOR, header.generator));
        }
        Ok(header)
    }
}

/// Sixteen hexadecimal digits: any change of one byte changes them.
fn checksum_of(header: &str, coefficients: &[u8]) -> String {
    format!("{:016x}", normal::fnv1a(header.bytes().chain(coefficients.iter().copied())))
}

/// What the names of tensors have between the number of the block and `.weight`, such as `self_attn.q_proj`.
fn name_of(module: Module) -> String {
    let path = names::hf_name(Site::Linear { layer: 0, module }).unwrap_or_default();
    path.trim_start_matches(BLOCK).to_owned()
}

fn module(name: &str) -> Result<Module, Error> {
    match names::hf_site(&format!("{BLOCK}{name}")) {
        Some(Site::Linear { module, .. }) => Ok(module),
        _ => {
            let all = Module::ALL.iter().map(|&module| name_of(module)).collect::<Vec<_>>().join(", ");
            Err(wrong("modules", format!("some of {all}"), name))
        }
    }
}

const BLOCK: &str = "model.layers.0.";
