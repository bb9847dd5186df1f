//! The file of a reference: what its tensors are called and what shapes they have.

use std::path::Path;

use graftwork_adapters::file::safetensors::TensorInfo;
use graftwork_adapters::file::{Error, Safetensors};
use graftwork_kernels::Format;
use graftwork_kernels::tensor::reserved;

use crate::model::Config;

/// Tokens, and what a model with an adapter computes from them, in a safetensors file that stays mapped.
///
/// | tensor | type | shape |
/// |---|---|---|
/// | `tokens` | integers | `[sequences, positions]` |
/// | `logits` | F32, F16, BF16 | `[sequences, last, vocab]`: of all positions, or the last ones |
/// | `hidden_states`, optional | F32, F16, BF16 | `[layers + 1, sequences, positions, width]` |
/// | `base.logits`, `base.hidden_states`, optional | as those | the same without the adapter |
///
/// Hidden states are those of transformers' `output_hidden_states`: what goes into the first block, what comes out of each but
/// the last, and what comes out of the norm behind the last.
#[derive(Clone, Debug)]
pub struct Reference {
    file: String,
    tokens: Vec<u32>,
    /// Positions of a sequence.
    pub(super) positions: usize,
    pub(super) states: Option<Values>,
    pub(super) logits: Values,
    pub(super) base_states: Option<Values>,
    pub(super) base_logits: Option<Values>,
}

/// A tensor of floats as rows of its last dimension.
#[derive(Clone, Debug)]
pub(super) struct Values {
    name: &'static str,
    format: Format,
    info: TensorInfo,
    /// Its dimensions.
    pub shape: Vec<usize>,
}

impl Reference {
    /// Opens a file by mapping it.
    ///
    /// # Errors
    /// The file is no safetensors file, or a tensor is missing or of another type or shape.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let name = path.display().to_string();
        Self::of(&Safetensors::open(path)?, &name)
            .map_err(|source| Error::In { file: name, source: Box::new(source) })
    }

    fn of(file: &Safetensors, name: &str) -> Result<Self, Error> {
        let (tokens, [sequences, positions]) = tokens(file)?;
        let states = |name| {
            let expected = format!("[layers + 1, {sequences}, {positions}, width]");
            let fits =
                |shape: &[usize]| matches!(*shape, [_, s, p, w] if (s, p) == (sequences, positions) && w > 0);
            Values::of(file, name, &expected, fits)
        };
        let logits = |name| {
            let expected = format!("[{sequences}, 1 to {positions}, vocab]");
            let fits = |shape: &[usize]| matches!(*shape, [s, last, v] if s == sequences && (1..=positions).contains(&last) && v > 0);
            Values::of(file, name, &expected, fits)
        };
        let missing = || Error::Missing { what: "tensor", name: "logits".to_owned() };
        let this = Self {
            file: name.to_owned(),
            tokens,
            positions,
            states: states("hidden_states")?,
            logits: logits("logits")?.ok_or_else(missing)?,
            base_states: states("base.hidden_states")?,
            base_logits: logits("base.logits")?,
        };
        if let Some(base) = &this.base_logits
            && base.shape[1] != this.logits.shape[1]
        {
            let expected = format!("{} positions as logits has", this.logits.shape[1]);
            return Err(base.wrong(expected, base.shape[1]));
        }
        Ok(this)
    }

    /// Sequences in the file.
    pub fn sequences(&self) -> usize {
        self.tokens.len() / self.positions
    }

    /// Positions in the file.
    pub fn positions(&self) -> usize {
        self.tokens.len()
    }

    /// The tokens of a sequence.
    pub(super) fn tokens(&self, sequence: usize) -> &[u32] {
        &self.tokens[sequence * self.positions..][..self.positions]
    }

    /// Refuses a reference of another model than that of `config`.
    pub(super) fn check(&self, config: &Config) -> Result<(), Error> {
        let (states, hidden) = (config.layers + 1, config.hidden);
        for values in [&self.states, &self.base_states].into_iter().flatten() {
            if (values.shape[0], values.shape[3]) != (states, hidden) {
                let expected = format!("[{states}, sequences, positions, {hidden}] as the model has");
                return Err(self.named(values.wrong(expected, format!("{:?}", values.shape))));
            }
        }
        match &self.base_logits {
            Some(base) => self.check_vocabulary(base, config.vocab),
            None => Ok(()),
        }
    }

    /// Refuses logits of another vocabulary than the model's.
    pub(super) fn check_vocabulary(&self, logits: &Values, vocab: usize) -> Result<(), Error> {
        let found = logits.shape[2];
        match found == vocab {
            true => Ok(()),
            false => Err(self.named(logits.wrong(format!("a vocabulary of {vocab} as the model's"), found))),
        }
    }

    /// The refusal of a token that the model does not have.
    pub(super) fn wrong_token(&self, (sequence, position): (usize, usize), vocab: usize) -> Error {
        let found = format!("{} at [{sequence}, {position}]", self.tokens(sequence)[position]);
        let expected = format!("ids below the model's {vocab}");
        self.named(Error::Tensor { tensor: "tokens".to_owned(), expected, found })
    }

    /// `count` rows of a tensor from `at` in its leading dimensions.
    pub(super) fn rows(&self, values: &Values, at: &[usize], count: usize) -> Result<Vec<f32>, crate::Error> {
        let cols = values.shape[values.shape.len() - 1];
        let mut rows = reserved(count * cols).map_err(crate::Error::Memory)?;
        rows.resize(count * cols, 0.0);
        values.decode(at, &mut rows).map_err(|error| self.named(error))?;
        Ok(rows)
    }

    /// An error about a tensor, with the file's name.
    fn named(&self, source: Error) -> Error {
        Error::In { file: self.file.clone(), source: Box::new(source) }
    }
}

impl Values {
    /// The tensor of this name, if there is one, whose shape `fits`.
    fn of(
        file: &Safetensors,
        name: &'static str,
        expected: &str,
        fits: impl Fn(&[usize]) -> bool,
    ) -> Result<Option<Self>, Error> {
        let Some(info) = file.tensors().get(name) else { return Ok(None) };
        let wrong = |expected: &str, found: String| Error::Tensor {
            tensor: name.to_owned(),
            expected: expected.to_owned(),
            found,
        };
        let format = info.dtype.format().ok_or_else(|| wrong("F32, F16 or BF16", info.dtype.to_string()))?;
        let shape: Option<Vec<usize>> = info.shape.iter().map(|&dim| usize::try_from(dim).ok()).collect();
        let shape = shape.filter(|shape| fits(shape));
        let shape = shape.ok_or_else(|| wrong(&format!("shape {expected}"), format!("{:?}", info.shape)))?;
        Ok(Some(Self { name, format, info: info.clone(), shape }))
    }

    /// How far a value may be from what was rounded to this type, relative to it.
    pub fn rounding(&self) -> f64 {
        match self.format {
            Format::F16 => 2f64.powi(-11),
            Format::BF16 => 2f64.powi(-8),
            _ => 0.0,
        }
    }

    /// The rows from `at` in the leading dimensions on, all finite.
    fn decode(&self, at: &[usize], rows: &mut [f32]) -> Result<(), Error> {
        let cols = self.shape[self.shape.len() - 1];
        let first = at.iter().zip(&self.shape).fold(0, |row, (index, dim)| row * dim + index);
        let size = self.info.dtype.bits() as usize / 8;
        self.format.decode(&self.info.bytes[first * cols * size..][..rows.len() * size], rows);
        let Some(index) = rows.iter().position(|value| !value.is_finite()) else { return Ok(()) };
        let mut place = at.to_vec();
        if let Some(row) = place.last_mut() {
            *row += index / cols;
        }
        place.push(index % cols);
        Err(self.wrong("finite values".to_owned(), format!("{} at {place:?}", rows[index])))
    }

    fn wrong(&self, expected: String, found: impl ToString) -> Error {
        Error::Tensor { tensor: self.name.to_owned(), expected, found: found.to_string() }
    }
}

/// The tokens and their shape.
fn tokens(file: &Safetensors) -> Result<(Vec<u32>, [usize; 2]), Error> {
    let wrong = |expected: &str, found: String| Error::Tensor {
        tensor: "tokens".to_owned(),
        expected: expected.to_owned(),
        found,
    };
    let missing = || Error::Missing { what: "tensor", name: "tokens".to_owned() };
    let info = file.tensors().get("tokens").ok_or_else(missing)?;
    let ids = info.integers().ok_or_else(|| wrong("integers", info.dtype.to_string()))?;
    // What the file holds fits an address.
    let shape = match info.shape[..] {
        [sequences, positions] if !ids.is_empty() => [sequences as usize, positions as usize],
        _ => return Err(wrong("shape [sequences, positions], none of them 0", format!("{:?}", info.shape))),
    };
    match ids.iter().find(|&&id| u32::try_from(id).is_err()) {
        Some(id) => Err(wrong("ids of tokens", id.to_string())),
        None => Ok((ids.into_iter().map(|id| id as u32).collect(), shape)),
    }
}
