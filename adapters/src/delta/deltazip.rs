//! DeltaZip: `y += D x` with `D[o,i] = scales[o] (q[o,i] - z[o])`, codes of 2, 3, 4 or 8 bits.
//!
//! `deltazip-compressed.safetensors`: of each quantized linear layer `.qweight` I32 `[inputs bits / 32, outputs]`, `.qzeros` I32 `[1, outputs
//! bits / 32]`, `.scales` F16 `[1, outputs]` and `.g_idx` I32 `[inputs]`, all zeros. The words of an output, one below the other, are a stream
//! of bits, the lowest of the first word first, in which code `i` is bits `bits i..bits (i + 1)`: of 3 bits 10, 1 across the words, 10, 1 across the
//! words, 10. So are the words of `qzeros`, whose code is `z - 1`. A linear layer that is not quantized has a `.weight`, which is added;
//! norms, embedding and head have one that replaces theirs. `delta_config.json` says `base_model` and `compress_config`. Codes of
//! 2 and 3 bits stay as they are, those of 4 take 8; all have the same value here as there. (Yao et al., arXiv 2312.05215;
//! eth-easl/deltazip, `nn_modules/qlinear_cuda.py` and `utils/generate.py`.)

use graftwork_kernels::{Bytes, Format, Tensor, tensor};
use serde_json::Value;

use super::{Delta, Layer, Part, bitdelta};
use crate::check::Shape;
use crate::file::{self, Dtype, Safetensors};
use crate::parts::{Keys, Module, Reader, Suffixes};
use crate::peft::field;
use crate::{Error, expand, names};

/// What the file is called.
pub(crate) const NAME: &str = "deltazip-compressed.safetensors";
/// And the configuration beside it.
pub(crate) const CONFIG: &str = "delta_config.json";
/// Bytes of a configuration.
pub(crate) const MAX_CONFIG: usize = 1 << 20;

/// Fields of `compress_config` that say how the codes were found, or what the tensors say too.
const UNDERSTOOD: &[&str] = &[
    "block_size",
    "damp_percent",
    "desc_act",
    "dtype",
    "group_rows",
    "prunem",
    "prunen",
    "sparsity",
    "sym",
    "tolerance",
    "true_sequential",
];

const SUFFIXES: &Suffixes<Field> = &Suffixes {
    rows: &[
        (".qweight", Field::Codes, "the codes"),
        (".qzeros", Field::Zeros, "the zero points"),
        (".scales", Field::Scales, "the scales"),
        (".g_idx", Field::Groups, "the groups"),
        (".weight", Field::Weight, "the weight"),
    ],
    expected: "DeltaZip's tensors are <linear layer of a block>.qweight, .qzeros, .scales and .g_idx, and <module>.weight",
};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Field {
    Codes,
    Zeros,
    Scales,
    Groups,
    Weight,
}

impl Delta {
    /// Reads DeltaZip's file, with its `delta_config.json` where there is one.
    ///
    /// # Errors
    /// Whatever is malformed, missing or not understood, naming the field or tensor; a lossless wrap around the tensors.
    pub fn from_deltazip(config: Option<&[u8]>, bytes: Bytes) -> Result<Self, Error> {
        let config = config.map(|config| file::parse_json(config, MAX_CONFIG)).transpose();
        read(config.map_err(|error| error.in_file(CONFIG))?.as_ref(), bytes).map(|(delta, _)| delta)
    }
}

/// The delta, and what its tensors are called.
pub(crate) fn read(config: Option<&Value>, bytes: Bytes) -> Result<(Delta, Reader), Error> {
    let mut delta = Delta::imported("deltazip");
    let bits = match config {
        Some(config) => {
            configuration(config, &mut delta).map_err(|error| error.in_file(CONFIG.to_owned()))?
        }
        None => None,
    };
    // What nvcomp packed has its types and shapes here.
    let file = Safetensors::parse(bytes.clone())?;
    if let Some(key) = ["dtype", "shape"]
        .into_iter()
        .find(|key| file.metadata().get(key).is_some_and(|text| !["", "{}", "null"].contains(&text.trim())))
    {
        return Err(lossless(format!("the metadata key {key}")));
    }
    let reader = Reader::new(bytes)?;
    let keys = Keys { before: "", between: "", site: &names::hf_site };
    // Made from the configuration, by every model that has them.
    let fixed: Vec<&str> = reader.names().filter(|name| name.ends_with(".rotary_emb.inv_freq")).collect();
    let modules = reader.modules_by(keys, SUFFIXES, &fixed, |_| true)?;
    for (&site, module) in &modules {
        let coded = module.has(&[Field::Codes, Field::Zeros, Field::Scales, Field::Groups]);
        let matrix = match (coded, module.get(Field::Weight)) {
            (true, None) if site.is_linear() => codes(&reader, module, bits)?,
            (true, None) => return Err(module.unknown(Field::Codes)),
            (true, Some(weight)) => {
                let first = module.need(Field::Codes)?.to_owned();
                return Err(Error::Conflict { first, second: weight.to_owned(), what: "the weight", site });
            }
            (false, Some(weight)) if site.is_linear() => reader.matrix(weight, [None, None])?,
            (false, _) => {
                delta.carried.extend(bitdelta::weight(&reader, module, site, Field::Weight)?);
                continue;
            }
        };
        let shape = Shape { outputs: matrix.rows(), inputs: matrix.cols() };
        delta.layers.push(Layer {
            site,
            shape,
            parts: vec![Part::Whole { matrix: matrix.into(), scale: 1.0 }],
        });
    }
    Ok((delta, reader))
}

fn lossless(what: String) -> Error {
    Error::Unsupported {
        what,
        reason: "tensors under a lossless compression; save the delta with lossless = none",
    }
}

/// Takes the base's name from the configuration; gives the bits of all codes, if it says them.
fn configuration(config: &Value, delta: &mut Delta) -> Result<Option<u64>, Error> {
    let object =
        |name: &str, value: &Value| value.as_object().cloned().ok_or_else(|| field(name, "an object", value));
    let mut bits = None;
    for (name, value) in &object("delta_config", config)? {
        match &name[..] {
            "base_model" => {
                let text = value.as_str().ok_or_else(|| field(name, "a text", value))?;
                delta.base_model = Some(text.to_owned());
            }
            // The tensors say it.
            "target_modules" => {}
            "compress_config" => {
                for (name, value) in &object(name, value)? {
                    let path = format!("compress_config.{name}");
                    match &name[..] {
                        "bits" => {
                            let known = value.as_u64().filter(|bits| [2, 3, 4, 8].contains(bits));
                            bits = Some(known.ok_or_else(|| field(&path, "2, 3, 4 or 8", value))?);
                        }
                        "lossless" if !value.is_null() && value != "none" => return Err(lossless(path)),
                        "group_size" if value.as_i64() != Some(-1) => {
                            return Err(field(&path, "-1, a scale for each output", value));
                        }
                        "lossless" | "group_size" => {}
                        _ if UNDERSTOOD.contains(&&name[..]) => {}
                        _ => {
                            return Err(Error::UnknownField {
                                field: path,
                                value: crate::peft::short(value),
                            });
                        }
                    }
                }
            }
            _ => return Err(Error::UnknownField { field: name.clone(), value: crate::peft::short(value) }),
        }
    }
    Ok(bits)
}

/// The matrix of a quantized layer.
fn codes(reader: &Reader, module: &Module<'_, Field>, configured: Option<u64>) -> Result<Tensor, Error> {
    let [codes, zeros, scales, groups] =
        [Field::Codes, Field::Zeros, Field::Scales, Field::Groups].map(|field| module.need(field));
    let (codes, zeros, scales, groups) = (codes?, zeros?, scales?, groups?);
    let wrong = |name: &str, expected: String, found: String| Error::Shape {
        tensor: name.to_owned(),
        expected,
        found,
    };
    let [words, outputs] = reader.dims(codes)?;
    let inputs = match reader.shape(groups)[..] {
        [inputs] if inputs > 0 && inputs % 32 == 0 => inputs as usize,
        ref shape => return Err(wrong(groups, "[_], a multiple of 32".to_owned(), format!("{shape:?}"))),
    };
    let bits = match (words * 32 / inputs, words * 32 % inputs) {
        (bits @ (2 | 3 | 4 | 8), 0) if configured.is_none_or(|expected| expected == bits as u64) => bits,
        _ => {
            let bits = configured.map_or("2, 3, 4 or 8".to_owned(), |bits| bits.to_string());
            let expected = format!("[{inputs} * {bits} / 32, _], codes of {bits} bits for {inputs} inputs");
            return Err(wrong(codes, expected, format!("[{words}, {outputs}]")));
        }
    };
    if outputs * bits % 32 != 0 {
        let expected = format!("outputs whose zero points of {bits} bits fill words");
        return Err(wrong(codes, expected, outputs.to_string()));
    }
    if let Some((i, group)) =
        reader.integer_vector(groups, inputs)?.into_iter().enumerate().find(|row| row.1 != 0)
    {
        let expected = "0 for every input, one group";
        return Err(wrong(groups, expected.to_owned(), format!("{group} for input {i}")));
    }
    let zero_codes = reader.integers(zeros, [1, outputs * bits / 32])?;
    let d = reader.matrix(scales, [Some(1), Some(outputs)])?;
    if d.format() != Format::F16 {
        let (tensor, found) = (scales.to_owned(), d.format().name().to_owned());
        return Err(Error::Type { tensor, expected: Dtype::F16.name(), found });
    }
    let failed = |source| expand::failed(codes, source);
    let qweight = reader.integers(codes, [words, outputs])?;
    let kept = if bits == 4 { 8 } else { bits };
    let format = Format::coded(kept as u32, inputs).unwrap_or(Format::F32);
    let len = format.block_len();
    let mut bytes: Vec<u8> =
        tensor::reserved(outputs * (inputs / len) * format.block_bytes()).map_err(failed)?;
    let mut column: Vec<u8> = tensor::reserved(words * 4).map_err(failed)?;
    for output in 0..outputs {
        let z = code(&zero_codes, bits, output) + 1;
        let z =
            u8::try_from(z).map_err(|_| wrong(zeros, "zero points of 1 to 255".to_owned(), z.to_string()))?;
        column.clear();
        column.extend((0..words).flat_map(|word| (qweight[word * outputs + output] as u32).to_le_bytes()));
        for group in column.chunks_exact(len * bits / 8) {
            bytes.extend_from_slice(&d.bytes()[2 * output..2 * output + 2]);
            bytes.push(z);
            match bits {
                4 => bytes.extend(group.iter().flat_map(|pair| [pair & 15, pair >> 4])),
                _ => bytes.extend_from_slice(group),
            }
        }
    }
    Tensor::new(format, outputs, inputs, bytes.into()).map_err(failed)
}

/// Code `i` of a stream of words.
fn code(words: &[i64], bits: usize, i: usize) -> u32 {
    let (word, at) = (bits * i / 32, bits * i % 32);
    let low = words[word] as u32 as u64;
    let high = words.get(word + 1).map_or(0, |&word| word as u32 as u64);
    ((high << 32 | low) >> at) as u32 & ((1 << bits) - 1)
}
