//! LoRA as PEFT saves it: `y = W x + s (B A x)`, with `s = alpha / r`, or `alpha / sqrt(r)` for rsLoRA.
//!
//! Tensors are `base_model.model.<module path>.lora_A.weight` `[r, in]` and `.lora_B.weight` `[out, r]`, with
//! `lora_bias` also `.lora_B.bias` `[out]`, and with `bias` of `lora_only` or `all` the trained bias of the layer itself.
//! With `use_dora` also `.lora_magnitude_vector` `[out]`: `y = m / |W + s B A| * (W x + s B A x) + bias`, norms over inputs.
//! For the embedding `.lora_embedding_A` `[r, vocabulary]` and `.lora_embedding_B` `[width, r]`: `y += s B A[:,token]`. Tokens
//! in `trainable_token_indices` have rows of their own, `.token_adapter.trainable_tokens_delta` `[tokens, width]`, which
//! replace the embedding's and those of a tied head. The `.weight` of embedding, head or norm replaces it as a whole
//! (`modules_to_save`, and `.base_layer.weight` under an adapter of embedding or head).
//! Rank and alpha of a module come from the first matching pattern of `rank_pattern` and `alpha_pattern`.
//! `fan_in_fan_out` says how the base stores `W`; A and B are the same either way. (Hu et al., arXiv 2106.09685;
//! Kalajdzievski, arXiv 2312.03732; DoRA: Liu et al., arXiv 2402.09353.)

use graftwork_kernels::Tensor;
use serde_json::Value;

use crate::parts::{self, Module, Reader, Suffixes};
use crate::peft::{self, Config};
use crate::{Change, Edit, Error, Site, expand, pattern};

/// The field of aLoRA.
const INVOCATION: &str = "alora_invocation_tokens";

/// The fields of the configuration that [`Settings`] and [`invocation`] read.
const UNDERSTOOD: &[&str] = &[
    INVOCATION,
    "alpha_pattern",
    "bias",
    "fan_in_fan_out",
    "init_lora_weights",
    "lora_alpha",
    "ensure_weight_tying",
    "lora_bias",
    // Which modules these are, the tensors say.
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
];

/// Fields that say plainly what the adapter needs, and that it cannot be had yet.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("layer_replication", "the base would need its layers replicated"),
    ("target_parameters", "LoRA on parameters of expert layers is not applied yet"),
];

/// What LoRA's tensors are called.
const SUFFIXES: &Suffixes<Part> = &Suffixes {
    rows: &[
        (".lora_A.weight", Part::A, "A"),
        (".lora_B.weight", Part::B, "B"),
        (".lora_B.bias", Part::BBias, "the bias of B"),
        // The wrapped layer's own bias, as PEFT names it today and as it once did.
        (".base_layer.bias", Part::Bias, "the bias"),
        (".bias", Part::Bias, "the bias"),
        // As peft saves it, and as the layer calls it.
        (".lora_magnitude_vector", Part::Magnitude, "the magnitude"),
        (".lora_magnitude_vector.weight", Part::Magnitude, "the magnitude"),
        (".lora_embedding_A", Part::EmbeddingA, "A"),
        (".lora_embedding_B", Part::EmbeddingB, "B"),
        (".token_adapter.trainable_tokens_delta", Part::Tokens, "the rows of tokens"),
        // With embedding layers saved, a file holds the module that replaces once more, and the one that it replaced.
        (".modules_to_save.weight", Part::Saved, "the weight"),
        (".original_module.weight", Part::Original, "the weight before"),
        // Under an adapter of the module, and of a module that was replaced as a whole.
        (".base_layer.weight", Part::Weight, "the weight"),
        (".weight", Part::Weight, "the weight"),
    ],
    expected: "LoRA tensors are base_model.model.<linear layer of a block>.lora_A.weight, .lora_B.weight, \
               with lora_bias .lora_B.bias, with a trained bias .base_layer.bias, with use_dora .lora_magnitude_vector; \
               for the embedding .lora_embedding_A and .lora_embedding_B; for trained tokens \
               .token_adapter.trainable_tokens_delta; and the .weight of embedding, head and norms",
};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    A,
    B,
    BBias,
    Bias,
    Magnitude,
    EmbeddingA,
    EmbeddingB,
    Tokens,
    Weight,
    Saved,
    Original,
}

/// The parts of a low-rank update.
const LOW_RANK: &[Part] = &[Part::A, Part::B, Part::BBias, Part::Magnitude];

pub(crate) fn read(config: &Config, reader: &Reader) -> Result<Vec<Edit>, Error> {
    let settings = Settings::new(config)?;
    let modules = reader.modules(SUFFIXES, &[], |_| true)?;
    if settings.tied && modules.keys().any(|site| matches!(site, Site::Embedding | Site::Head)) {
        let what = "adapter field ensure_weight_tying = true".to_owned();
        return Err(Error::Unsupported { what, reason: "embedding and head are adapted apart" });
    }
    let paths: Vec<&str> = modules.values().map(|module| module.path).collect();
    let ranks = pattern::first_matches("rank_pattern", &settings.rank_pattern, &paths)?;
    let alphas = pattern::first_matches("alpha_pattern", &settings.alpha_pattern, &paths)?;
    let mut edits = parts::edits(2 * modules.len() + 3)?;
    for ((&site, module), (rank, alpha)) in modules.iter().zip(ranks.into_iter().zip(alphas)) {
        for (part, allowed) in [
            (Part::BBias, settings.lora_bias),
            (Part::Bias, settings.trained_bias),
            (Part::Magnitude, settings.dora),
        ] {
            if module.get(part).is_some() && !allowed {
                return Err(module.unknown(part));
            }
        }
        let rank = rank.unwrap_or(settings.rank);
        let alpha = alpha.unwrap_or(settings.alpha);
        check_parts(site, module)?;
        if let Some(saved) = module.get(Part::Saved) {
            let (name, weight) = (module.need(Part::Weight)?, |name| reader.matrix(name, [None, None]));
            if reader.shape(name) != reader.shape(saved)
                || **weight(name)?.bytes() != **weight(saved)?.bytes()
            {
                let [first, second] = [name, saved].map(str::to_owned);
                return Err(Error::Conflict { first, second, what: "the weight", site });
            }
        }
        if module.get(Part::Original).is_some() {
            // Of no effect where another takes its place.
            module.need(Part::Weight)?;
        }
        if let Some(name) = module.get(Part::Weight) {
            let weight = match site.is_norm() {
                true => reader.vector(name, None)?,
                false => reader.matrix(name, [None, None])?,
            };
            edits.push(Edit { site, change: Change::Replace { weight } });
        }
        if let Some(name) = module.get(Part::Tokens) {
            edits.push(Edit { site, change: rows(reader, config, module.path, name)? });
        }
        if module.has(&[Part::EmbeddingA, Part::EmbeddingB]) {
            let a = reader.matrix(module.need(Part::EmbeddingA)?, [Some(rank), None])?;
            let b = reader.matrix(module.need(Part::EmbeddingB)?, [None, Some(rank)])?;
            let scale = settings.scale(rank, alpha);
            edits.push(Edit { site, change: Change::LowRank { a, b, scale, bias: None, magnitude: None } });
        }
        if let Some(change) = low_rank(reader, module, &settings, rank, alpha)? {
            edits.push(Edit { site, change });
        }
        if let Some(name) = module.get(Part::Bias) {
            edits.push(Edit { site, change: Change::Bias { values: reader.vector(name, None)? } });
        }
    }
    Ok(edits)
}

/// The tokens that start the adapter, none if it acts on all (aLoRA: Greenewald et al., arXiv 2504.12397; peft's `lora/variants.py`).
/// What peft does not bind to these tokens, it applies to all of them, or refuses: so do we refuse it.
pub(crate) fn invocation(config: &Config, edits: &[Edit]) -> Result<Vec<u32>, Error> {
    let Some(found) = config.get(INVOCATION) else { return Ok(Vec::new()) };
    let wrong = || peft::field(INVOCATION, "a list of tokens", found);
    let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
    let tokens = found.as_array().ok_or_else(wrong)?.iter().map(token).collect::<Result<Vec<u32>, _>>()?;
    let can_start = |edit: &&Edit| {
        let low_rank = matches!(edit.change, Change::LowRank { magnitude: None, .. });
        low_rank && (edit.site.is_linear() || edit.site == Site::Head)
    };
    match edits.iter().find(|edit| !can_start(edit)).filter(|_| !tokens.is_empty()) {
        Some(edit) => Err(Error::Unsupported {
            what: format!(
                "adapter field {INVOCATION} = {}, with another change of {}",
                peft::short(found),
                edit.site
            ),
            reason: "only LoRA on linear layers can start at an invocation sequence",
        }),
        None => Ok(tokens),
    }
}

/// Refuses parts that a site does not have.
fn check_parts(site: Site, module: &Module<'_, Part>) -> Result<(), Error> {
    let refused: &[Part] = match site {
        Site::Linear { .. } => {
            &[Part::EmbeddingA, Part::EmbeddingB, Part::Tokens, Part::Weight, Part::Saved, Part::Original]
        }
        Site::Embedding => &[Part::A, Part::B, Part::BBias, Part::Bias, Part::Magnitude],
        Site::Head => &[Part::EmbeddingA, Part::EmbeddingB, Part::Bias],
        Site::EveryLinear { .. }
        | Site::AttentionNorm { .. }
        | Site::FfnNorm { .. }
        | Site::Norm
        | Site::AfterAttention { .. }
        | Site::AfterFfn { .. }
        | Site::Prompt
        | Site::Prefix => &[
            Part::A,
            Part::B,
            Part::BBias,
            Part::Bias,
            Part::Magnitude,
            Part::EmbeddingA,
            Part::EmbeddingB,
            Part::Tokens,
            Part::Saved,
            Part::Original,
        ],
    };
    match refused.iter().find(|&&part| module.get(part).is_some()) {
        Some(&part) => Err(module.unknown(part)),
        None => Ok(()),
    }
}

/// Rows of trained tokens: those that `trainable_token_indices` lists for the module, in its order.
fn rows(reader: &Reader, config: &Config, path: &str, name: &str) -> Result<Change, Error> {
    const FIELD: &str = "trainable_token_indices";
    let found = config.get(FIELD).unwrap_or(&Value::Null);
    let list = match found {
        // The names of modules, as ends of their paths.
        Value::Object(lists) => {
            let ends = |module: &str| {
                path == module || path.strip_suffix(module).is_some_and(|rest| rest.ends_with('.'))
            };
            lists.iter().find(|(module, _)| ends(module)).map(|(_, list)| list)
        }
        list => Some(list),
    };
    let wrong = || peft::field(FIELD, "a list of tokens, or one for each module", found);
    let list = list.and_then(Value::as_array).ok_or_else(wrong)?;
    let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
    let tokens = list.iter().map(token).collect::<Result<Vec<u32>, _>>()?;
    let rows = reader.matrix(name, [Some(tokens.len()), None])?;
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_by_key(|&i| tokens[i]);
    if order.windows(2).any(|pair| tokens[pair[0]] == tokens[pair[1]]) {
        return Err(peft::field(FIELD, "each token once", found));
    }
    let size = rows.row_bytes();
    let bytes: Vec<u8> = order.iter().flat_map(|&i| &rows.bytes()[i * size..][..size]).copied().collect();
    let rows = Tensor::new(rows.format(), rows.rows(), rows.cols(), bytes.into());
    let rows = rows.map_err(|source| expand::failed(name, source))?;
    Ok(Change::Rows { tokens: order.into_iter().map(|i| tokens[i]).collect(), rows })
}

/// What the configuration says about the arithmetic.
struct Settings {
    rank: usize,
    alpha: f64,
    rank_pattern: Vec<(String, usize)>,
    alpha_pattern: Vec<(String, f64)>,
    rank_stabilized: bool,
    /// Every `lora_B` has a bias.
    lora_bias: bool,
    /// The layers' own biases were trained.
    trained_bias: bool,
    /// Every layer has a magnitude: DoRA.
    dora: bool,
    /// A tied head is to be adapted with the embedding.
    tied: bool,
}

impl Settings {
    fn new(config: &Config) -> Result<Self, Error> {
        config.check(UNDERSTOOD, UNSUPPORTED)?;
        check_initialisation(config)?;
        config.bool("fan_in_fan_out")?;
        let trained_bias = match config.str("bias")? {
            None | Some("none") => false,
            Some("lora_only" | "all") => true,
            Some(other) => {
                return Err(peft::field("bias", "\"none\", \"lora_only\" or \"all\"", &other.into()));
            }
        };
        let dora = config.bool("use_dora")?;
        if dora {
            config.only("lora_bias", &[], "peft has no DoRA with biases of B")?;
        }
        Ok(Self {
            // PEFT's defaults where a file leaves them out.
            rank: config.rank("r")?.unwrap_or(8),
            alpha: config.number("lora_alpha")?.unwrap_or(8.0),
            rank_pattern: config.patterns("rank_pattern", peft::rank)?,
            alpha_pattern: config.patterns("alpha_pattern", peft::number)?,
            rank_stabilized: config.bool("use_rslora")?,
            lora_bias: config.bool("lora_bias")?,
            trained_bias,
            dora,
            tied: config.bool("ensure_weight_tying")?,
        })
    }

    fn scale(&self, rank: usize, alpha: f64) -> f32 {
        let rank = rank as f64;
        (alpha / if self.rank_stabilized { rank.sqrt() } else { rank }) as f32
    }
}

/// Refuses an initialisation that took the update out of the base: the adapter fits only that changed base.
fn check_initialisation(config: &Config) -> Result<(), Error> {
    match config.get("init_lora_weights") {
        None | Some(Value::Bool(_)) => Ok(()),
        Some(Value::String(name)) if ["gaussian", "eva", "orthogonal"].contains(&name.as_str()) => Ok(()),
        Some(other) => Err(Error::Unsupported {
            what: format!("adapter field init_lora_weights = {}", peft::short(other)),
            reason: "it may have changed the base; save with peft's path_initial_model_for_weight_conversion",
        }),
    }
}

fn low_rank(
    reader: &Reader,
    module: &Module<'_, Part>,
    settings: &Settings,
    rank: usize,
    alpha: f64,
) -> Result<Option<Change>, Error> {
    if !module.has(LOW_RANK) {
        return Ok(None);
    }
    let a = reader.matrix(module.need(Part::A)?, [Some(rank), None])?;
    let b = reader.matrix(module.need(Part::B)?, [None, Some(rank)])?;
    let bias = match settings.lora_bias {
        true => Some(reader.vector(module.need(Part::BBias)?, Some(b.rows()))?),
        false => None,
    };
    let magnitude = match settings.dora {
        true => Some(reader.vector(module.need(Part::Magnitude)?, Some(b.rows()))?),
        false => None,
    };
    Ok(Some(Change::LowRank { a, b, scale: settings.scale(rank, alpha), bias, magnitude }))
}
