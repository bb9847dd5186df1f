//! Compressed deltas: the difference of a full fine-tune to its base, for each layer a sum of [`Part`]s, and the file that holds them.
//!
//! `W' = W + sum of parts`; what is no linear layer (norms, embedding, head) is carried whole. `docs/delta-format.md` describes the file.

pub(crate) mod bitdelta;
pub(crate) mod deltazip;
mod fingerprint;
mod header;
mod part;
mod read;
mod verify;
pub(crate) mod write;

pub use fingerprint::Fingerprint;
pub use header::{DIGEST, KEY, VERSION};
pub use part::{Coded, Part};
pub use read::is_one;
pub use verify::verify;

use std::path::Path;

use graftwork_kernels::{Format, Strips, tensor};

use crate::check::Shape;
use crate::{Adapter, Change, Edit, Error, Key, Kind, RowOrder, Site, file, names, parts};

/// What the file is called in a directory.
pub(crate) const NAME: &str = "delta.safetensors";

/// What deltas are called in directories: ours, DeltaZip's, BitDelta's.
pub const FILES: [&str; 3] = [NAME, deltazip::NAME, bitdelta::NAME];

/// A compressed delta.
#[derive(Clone, Debug)]
pub struct Delta {
    /// What made it, such as `delta-come`; for messages only.
    pub method: String,
    /// The architecture of its base, in GGUF's terms (`llama`).
    pub architecture: Option<String>,
    /// What its base is called, for messages only.
    pub base_model: Option<String>,
    /// The bases that it is for; none: any that it fits.
    pub bases: Vec<Fingerprint>,
    /// The order of q and k rows in all of it.
    pub row_order: RowOrder,
    /// The layers whose weight changes, each once.
    pub layers: Vec<Layer>,
    /// What is carried whole: [`Change::Replace`] and [`Change::Bias`], each once.
    pub carried: Vec<Edit>,
}

/// The delta of a layer: `y += sum of parts`.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Which: a linear layer of a block, the embedding or the head.
    pub site: Site,
    /// The shape of its weight.
    pub shape: Shape,
    /// At least one. Ranks of factors count on from part to part.
    pub parts: Vec<Part>,
}

impl Delta {
    /// Maps a file and reads its header; see [`Delta::parse`] and, for what mapping asks of others, [`file::open_bytes`].
    ///
    /// # Errors
    /// As [`Delta::parse`], or what the system says; both name the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let bytes = file::open_bytes(path, 0)?;
        Self::parse(bytes).map_err(|error| error.in_file(path.display().to_string()))
    }

    /// The adapter that it is.
    ///
    /// # Errors
    /// No memory.
    pub fn into_adapter(self) -> Result<Adapter, Error> {
        let keys = self.keys();
        let mut edits = parts::edits(
            self.layers.iter().map(|layer| layer.parts.len()).sum::<usize>() + self.carried.len(),
        )?;
        for layer in self.layers {
            let edit = |part: Part| Edit { site: layer.site, change: part.into() };
            edits.extend(layer.parts.into_iter().map(edit));
        }
        edits.extend(self.carried);
        edits.sort_by_key(|edit| edit.site);
        let Self { architecture, base_model, bases, row_order, .. } =
            Self { layers: Vec::new(), carried: Vec::new(), ..self };
        Ok(Adapter { architecture, base_model, bases, row_order, ..Adapter::new(Kind::Delta, edits, keys) })
    }

    /// The tensors of its file, with the shapes of the matrices that they hold.
    fn keys(&self) -> Vec<Key> {
        let mut keys = Vec::new();
        let mut push = |site, tensor, shape: &[usize]| {
            let shape = shape.iter().map(|&n| n as u64).collect();
            keys.push(Key { tensor, site: Some(site), shape });
        };
        for Layer { site, parts, .. } in &self.layers {
            let module = names::hf_name(*site).unwrap_or_default();
            for (i, part) in parts.iter().enumerate() {
                let mut matrix =
                    |what: &str, m: &Coded| push(*site, tensor_name(&module, i, what), &[m.rows(), m.cols()]);
                match part {
                    Part::Factors { v, u, .. } => {
                        matrix("v", v);
                        matrix("u", u);
                    }
                    Part::Whole { matrix: m, .. } => matrix("matrix", m),
                    Part::Sparse { values, .. } | Part::Overwrite { values, .. } => {
                        push(*site, tensor_name(&module, i, "values"), &[values.cols()])
                    }
                }
            }
        }
        for edit in &self.carried {
            if let (Some(tensor), Some(weight)) = (carried_name(edit), edit.change.tensors().first()) {
                push(edit.site, tensor, &[weight.rows(), weight.cols()]);
            }
        }
        keys
    }
}

/// The name of a tensor of a part.
fn tensor_name(module: &str, part: usize, what: &str) -> String {
    format!("{module}.{part}.{what}")
}

/// The name of a tensor that is carried whole, as in a Hugging Face file.
fn carried_name(edit: &Edit) -> Option<String> {
    let suffix = match edit.change {
        Change::Replace { .. } => "weight",
        Change::Bias { .. } if edit.site.is_linear() => "bias",
        _ => return None,
    };
    Some(format!("{}.{suffix}", names::hf_name(edit.site)?))
}

/// Bytes of a matrix in the file, without what fills it up.
fn bytes_of(
    layout: header::Layout,
    format: Format,
    rows: usize,
    cols: usize,
) -> Result<usize, tensor::Error> {
    if !cols.is_multiple_of(format.block_len()) {
        return Err(tensor::Error::RaggedRow { format, cols, block: format.block_len() });
    }
    let bytes = match layout {
        header::Layout::Rows => {
            let row = (cols / format.block_len()).checked_mul(format.block_bytes());
            row.and_then(|row| row.checked_mul(rows))
        }
        header::Layout::Strips => Some(Strips::bytes_for(format, rows, cols)),
    };
    // Room for what fills it up.
    bytes.filter(|&bytes| bytes < usize::MAX - ALIGN).ok_or(tensor::Error::TooLarge { format, rows, cols })
}

/// What tensors of matrices are filled up to a multiple of, and where they start at one.
const ALIGN: usize = 64;
