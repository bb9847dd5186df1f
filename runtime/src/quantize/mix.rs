//! File types: which format each tensor of a file gets.
//!
//! The rules are those of llama.cpp's `llama-quantize`, as a table. Most matrices have one format; those that a model feels most have a
//! better one, in every layer or in some. A matrix whose rows are no whole blocks falls back to a format of shorter blocks.

use std::fmt;
use std::str::FromStr;

use graftwork_kernels::Format;

use crate::model::Config;

/// What a file is called whose matrices are quantized by one set of rules, such as `Q4_K_M`.
#[derive(Clone, Copy)]
pub struct FileType(&'static Mix);

struct Mix {
    name: &'static str,
    /// Another name, if there is one.
    alias: &'static str,
    /// Its number as `general.file_type`.
    number: u32,
    /// The format of matrices that no rule is for.
    most: Format,
    /// The first that applies counts.
    rules: &'static [Rule],
}

struct Rule(Part, When, Format);

/// A kind of matrix that some mixes keep in a better format.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    /// `attn_v`.
    Value,
    /// `attn_output`.
    Output,
    /// `ffn_down`.
    Down,
}

/// Where a rule applies.
enum When {
    Always,
    /// At least four heads of queries share those of keys and values.
    Shared,
    /// In the first layers, so many.
    First(usize),
    /// In the first layers, one part of so many.
    FirstPart(usize),
    /// The same, and only with a calibration text.
    FirstPartCalibrated(usize),
    /// In the first and the last eighth of layers, and every third between.
    More,
}

use Format::{BF16, F16, F32, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use Part::{Down, Output, Value};
use When::{Always, First, FirstPart, FirstPartCalibrated, More, Shared};

const fn plain(name: &'static str, number: u32, most: Format) -> Mix {
    Mix { name, alias: "", number, most, rules: &[] }
}

static MIXES: &[Mix] = &[
    plain("F32", 0, F32),
    plain("F16", 1, F16),
    plain("BF16", 32, BF16),
    Mix { rules: &[Rule(Down, FirstPartCalibrated(8), Q4_1)], ..plain("Q4_0", 2, Q4_0) },
    plain("Q4_1", 3, Q4_1),
    Mix { rules: &[Rule(Down, FirstPartCalibrated(8), Q5_1)], ..plain("Q5_0", 8, Q5_0) },
    plain("Q5_1", 9, Q5_1),
    plain("Q8_0", 7, Q8_0),
    Mix {
        rules: &[
            Rule(Value, Shared, Q4K),
            Rule(Value, Always, Q3K),
            Rule(Down, Always, Q3K),
            Rule(Output, Always, Q3K),
        ],
        ..plain("Q2_K", 10, Q2K)
    },
    Mix { rules: &[Rule(Value, Shared, Q4K), Rule(Down, FirstPart(8), Q4K)], ..plain("Q2_K_S", 21, Q2K) },
    plain("Q3_K_S", 11, Q3K),
    Mix {
        alias: "Q3_K",
        rules: &[
            Rule(Value, First(2), Q5K),
            Rule(Value, Always, Q4K),
            Rule(Down, FirstPart(16), Q5K),
            Rule(Down, Always, Q4K),
            Rule(Output, Always, Q4K),
        ],
        ..plain("Q3_K_M", 12, Q3K)
    },
    Mix {
        rules: &[Rule(Value, Always, Q5K), Rule(Down, Always, Q5K), Rule(Output, Always, Q5K)],
        ..plain("Q3_K_L", 13, Q3K)
    },
    Mix { rules: &[Rule(Value, First(4), Q5K), Rule(Down, FirstPart(8), Q5K)], ..plain("Q4_K_S", 14, Q4K) },
    Mix {
        alias: "Q4_K",
        rules: &[Rule(Value, More, Q6K), Rule(Down, More, Q6K)],
        ..plain("Q4_K_M", 15, Q4K)
    },
    plain("Q5_K_S", 16, Q5K),
    Mix {
        alias: "Q5_K",
        rules: &[Rule(Value, More, Q6K), Rule(Down, More, Q6K)],
        ..plain("Q5_K_M", 17, Q5K)
    },
    plain("Q6_K", 18, Q6K),
];

/// Layers of the one model that has a rule of its own: with 80 and shared keys and values, `attn_v` has at least `Q5_K`.
const LAYERS_OF_70B: usize = 80;

/// What rules ask about the model.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// Layers.
    pub layers: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// The head is the embedding.
    pub tied_head: bool,
    /// There is a calibration text.
    pub calibrated: bool,
}

impl Traits {
    /// Those of a model.
    pub fn of(config: &Config, calibrated: bool) -> Self {
        let &Config { layers, heads, kv_heads, tied_head, .. } = config;
        Self { layers, heads, kv_heads, tied_head, calibrated }
    }
}

impl FileType {
    /// Every file type.
    pub fn all() -> impl Iterator<Item = Self> {
        MIXES.iter().map(Self)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Its number as `general.file_type` of a GGUF file.
    pub fn number(self) -> u32 {
        self.0.number
    }

    /// Whether llama.cpp refuses to write it without a calibration text: too much is lost.
    pub fn needs_calibration(self) -> bool {
        self.0.name == "Q2_K_S"
    }

    /// Whether its matrices are in blocks.
    pub fn is_quantized(self) -> bool {
        self.0.most.block_len() > 1
    }

    /// The format of a matrix with rows of `cols` values, by its name in a GGUF file; none of one that stays as it is.
    pub fn format_of(self, name: &str, cols: usize, traits: &Traits) -> Option<Format> {
        let stem = name.strip_suffix(".weight")?;
        if stem.ends_with("_norm") {
            return None;
        }
        if !self.is_quantized() {
            return Some(self.0.most);
        }
        let wanted = match stem {
            "output" => self.head(cols),
            "token_embd" if traits.tied_head => self.head(cols),
            _ => in_layer(stem).map_or(self.0.most, |(layer, part)| self.in_layer(layer, part, traits)),
        };
        Some(fallback(wanted, cols))
    }

    /// The format of a head.
    fn head(self, cols: usize) -> Format {
        match self.0.most {
            most if most == Q8_0 || !cols.is_multiple_of(most.block_len()) => Q8_0,
            _ => Q6K,
        }
    }

    fn in_layer(self, layer: usize, part: Part, traits: &Traits) -> Format {
        let &Traits { layers, heads, kv_heads, calibrated, .. } = traits;
        let applies = |when: &When| match *when {
            Always => true,
            Shared => heads / kv_heads.max(1) >= 4,
            First(count) => layer < count,
            FirstPart(parts) => layer < layers / parts,
            FirstPartCalibrated(parts) => calibrated && layer < layers / parts,
            More => {
                let eighth = layers / 8;
                layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
            }
        };
        let rule = self.0.rules.iter().find(|Rule(of, when, _)| *of == part && applies(when));
        let format = rule.map_or(self.0.most, |&Rule(.., format)| format);
        let is_70b = layers == LAYERS_OF_70B && heads != kv_heads;
        match format {
            Q3K | Q4K if part == Value && is_70b => Q5K,
            format => format,
        }
    }
}

/// The layer and the kind of a matrix that rules are for.
fn in_layer(stem: &str) -> Option<(usize, Part)> {
    let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    let part = match part {
        "attn_v" => Value,
        "attn_output" => Output,
        "ffn_down" => Down,
        _ => return None,
    };
    Some((layer.parse().ok()?, part))
}

/// The format itself, or what takes its place where rows of `cols` values are not whole blocks of it.
fn fallback(format: Format, cols: usize) -> Format {
    let whole = |format: &Format| cols.is_multiple_of(format.block_len());
    let shorter = match format {
        Q2K | Q3K => Q4_0,
        Q4K => Q5_0,
        Q5K => Q5_1,
        Q6K => Q8_0,
        other => other,
    };
    [format, shorter].into_iter().find(whole).unwrap_or(F16)
}

impl FromStr for FileType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is = |name: &str| !name.is_empty() && name.eq_ignore_ascii_case(text);
        Self::all().find(|Self(mix)| is(mix.name) || is(mix.alias)).ok_or_else(|| {
            let known: Vec<&str> = Self::all().map(Self::name).collect();
            format!("expected one of {}", known.join(", "))
        })
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
