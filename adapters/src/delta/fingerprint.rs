//! Which base is this?

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::{Error, TensorFile};

/// Bytes of a sample.
const SAMPLE: usize = 64;

/// A number that tells bases apart: the SHA-256 of, each text ended by a zero byte,
///
/// * the architecture in GGUF's terms (`llama`);
/// * for each tensor, by name in the order of bytes: its name; its shape as in `576,1536`, slowest dimension first; its type (`Q4_1`,
///   `F16`); and the 64 bytes at its start, in its middle (from byte `(length - 64) / 2` on) and at its end, or all if there are fewer
///   than 192. Tensors of no known type have an empty type and no bytes.
///
/// A few pages of each tensor are read, not the whole. A GGUF and the Hugging Face directory that it was made from differ.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a base with these weights.
    pub fn of(architecture: &str, weights: &dyn TensorFile) -> Self {
        let mut hash = Sha256::new();
        let mut text = |text: &str, bytes: &[&[u8]]| {
            hash.update(text);
            hash.update([0]);
            bytes.iter().for_each(|bytes| hash.update(bytes));
        };
        text(architecture, &[]);
        let mut names = weights.names();
        names.sort_unstable();
        for name in names {
            let shape: Vec<String> =
                weights.shape(name).unwrap_or_default().iter().map(u64::to_string).collect();
            text(name, &[]);
            text(&shape.join(","), &[]);
            let Ok(Some(tensor)) = weights.tensor(name) else {
                text("", &[]);
                continue;
            };
            let bytes: &[u8] = tensor.bytes();
            let last = bytes.len().saturating_sub(SAMPLE);
            match bytes.len() < 3 * SAMPLE {
                true => text(tensor.format().name(), &[bytes]),
                false => {
                    let samples = [0, last / 2, last].map(|at| &bytes[at..at + SAMPLE]);
                    text(tensor.format().name(), &samples);
                }
            }
        }
        Self(hash.finalize().into())
    }

    /// Those in the field `bases` of a header.
    pub(crate) fn read_all(bases: &[String]) -> Result<Vec<Self>, Error> {
        let read = |(i, text): (usize, &String)| {
            text.parse().map_err(|()| Error::Field {
                field: format!("bases[{i}]"),
                expected: "64 hexadecimal digits in lower case".to_owned(),
                found: text.chars().take(120).collect(),
            })
        };
        bases.iter().enumerate().map(read).collect()
    }
}

/// 64 hexadecimal digits in lower case.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = ();

    /// From 64 hexadecimal digits in lower case.
    fn from_str(text: &str) -> Result<Self, ()> {
        let digit = |&byte: &u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(()),
        };
        let digits: Vec<u8> = text.as_bytes().iter().map(digit).collect::<Result<_, ()>>()?;
        let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair[0] << 4 | pair[pair.len() - 1]).collect();
        match <[u8; 32]>::try_from(bytes) {
            Ok(bytes) if digits.len() == 64 => Ok(Self(bytes)),
            _ => Err(()),
        }
    }
}
