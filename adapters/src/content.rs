//! What an adapter holds, as a number: equal for equal changes, whatever they came in.

use std::fmt;

use graftwork_kernels::Tensor;
use sha2::{Digest, Sha256};

use crate::{Adapter, Change, Coded, Edit, Factor};

/// Bytes of adapters up to which all are looked at; of larger ones, which are mapped, samples of every tensor.
const WHOLE: usize = crate::file::SMALL as usize;
/// Bytes of a sample.
const SAMPLE: usize = 4096;

/// The SHA-256 of an adapter's changes: sites, numbers, shapes, formats and values, of adapters of more than 64 MiB samples of
/// them at the start, in the middle and at the end of every tensor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Content([u8; 32]);

impl Content {
    /// Of an adapter.
    pub fn of(adapter: &Adapter) -> Self {
        let bytes: usize = adapter.edits.iter().map(|edit| edit.change.bytes()).sum();
        let mut hash = Hash { sha: Sha256::new(), whole: bytes <= WHOLE };
        hash.text(&format!("{} {:?} {:?}", adapter.kind.name(), adapter.row_order, adapter.invocation));
        adapter.edits.iter().for_each(|edit| hash.edit(edit));
        if let Some(text) = &adapter.text {
            hash.bytes(&text.tokenizer);
        }
        Self(hash.sha.finalize().into())
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

struct Hash {
    sha: Sha256,
    whole: bool,
}

impl Hash {
    /// A text, ended by a zero byte.
    fn text(&mut self, text: &str) {
        self.sha.update(text);
        self.sha.update([0]);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.sha.update((bytes.len() as u64).to_le_bytes());
        let last = bytes.len().saturating_sub(SAMPLE);
        match self.whole || bytes.len() < 3 * SAMPLE {
            true => self.sha.update(bytes),
            false => [0, last / 2, last].iter().for_each(|&at| self.sha.update(&bytes[at..at + SAMPLE])),
        }
    }

    fn tensor(&mut self, tensor: &Tensor) {
        self.text(&format!("{} {} {}", tensor.format().name(), tensor.rows(), tensor.cols()));
        self.bytes(tensor.bytes());
    }

    fn coded(&mut self, matrix: &Coded) {
        let layout = if matrix.as_rows().is_some() { "rows" } else { "strips" };
        self.text(&format!("{layout} {} {} {}", matrix.format().name(), matrix.rows(), matrix.cols()));
        self.bytes(matrix.bytes());
    }

    fn floats(&mut self, floats: &[f32]) {
        self.sha.update((floats.len() as u64).to_le_bytes());
        floats.iter().for_each(|x| self.sha.update(x.to_bits().to_le_bytes()));
    }

    fn numbers(&mut self, numbers: &[u32]) {
        self.sha.update((numbers.len() as u64).to_le_bytes());
        numbers.iter().for_each(|x| self.sha.update(x.to_le_bytes()));
    }

    fn edit(&mut self, Edit { site, change }: &Edit) {
        self.text(&site.to_string());
        // What tensors do not say.
        let (name, scale) = match change {
            Change::LowRank { scale, bias, magnitude, .. } => {
                let parts = [bias, magnitude].map(|part| part.is_some());
                self.text(&format!("{parts:?}"));
                ("low rank", *scale)
            }
            Change::Bias { .. } => ("bias", 1.0),
            Change::Shared { .. } => ("shared", 1.0),
            Change::Hadamard { scale, .. } => ("hadamard", *scale),
            Change::Kronecker { left, right, scale } => {
                let parts = [left, right].map(|factor| matches!(factor, Factor::Whole(_)));
                self.text(&format!("{parts:?}"));
                ("kronecker", *scale)
            }
            Change::Factors { v, s, u } => {
                self.coded(v);
                self.floats(s);
                self.coded(u);
                ("factors", 1.0)
            }
            Change::Whole { matrix, scale } => {
                self.coded(matrix);
                ("whole", *scale)
            }
            Change::Seeded { patch } => {
                self.floats(patch.coefficients());
                self.sha.update(patch.settings().base_seed.to_le_bytes());
                ("seeded", patch.settings().scale)
            }
            Change::Sparse { rows, columns, .. } => {
                self.numbers(rows);
                self.numbers(columns);
                ("sparse", 1.0)
            }
            Change::Overwrite { rows, columns, .. } => {
                self.numbers(rows);
                self.numbers(columns);
                ("overwrite", 1.0)
            }
            Change::OutputScale { .. } => ("output scale", 1.0),
            Change::InputScale { .. } => ("input scale", 1.0),
            Change::Replace { .. } => ("replace", 1.0),
            Change::Rotation { cayley, .. } => {
                self.text(&format!("{cayley:?}"));
                ("rotation", 1.0)
            }
            Change::Bottleneck { place, activation, scale, down_bias, up_bias, channels, .. } => {
                let parts = [down_bias, up_bias, channels].map(|part| part.is_some());
                self.text(&format!("{place:?} {activation:?} {parts:?}"));
                ("bottleneck", *scale)
            }
            Change::Add { .. } => ("add", 1.0),
            Change::Project { .. } => ("project", 1.0),
            Change::Rows { tokens, .. } => {
                self.numbers(tokens);
                ("rows", 1.0)
            }
            Change::VirtualTokens { .. } => ("virtual tokens", 1.0),
            Change::Prefix { layers, .. } => {
                self.numbers(&[*layers as u32]);
                ("prefix", 1.0)
            }
        };
        self.text(name);
        self.floats(&[scale]);
        if !matches!(change, Change::Factors { .. } | Change::Whole { .. }) {
            change.tensors().into_iter().for_each(|tensor| self.tensor(tensor));
        }
    }
}
