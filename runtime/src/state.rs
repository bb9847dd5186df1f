//! A request that goes on later, perhaps in another process: what it is, in bytes.
//!
//! `GWSTATE1`, the length of a JSON header as u64, the header, the tokens as u32, the pages of the cache that they fill, and the SHA-256 of
//! all that; numbers little-endian. The pages are there to save time: what was computed is equal to the bit whoever computes it, so a
//! request without them reads its tokens again and goes on alike. Adapters are known by what they hold
//! ([`Content`](graftwork_adapters::Content)), not by name or generation.

use graftwork_adapters::delta::Fingerprint;
use graftwork_kernels::Format;
use graftwork_kernels::backend::PAGE;
use graftwork_kernels::tensor::reserved;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Error;
use crate::request::Context;
use crate::sample;
use crate::session::{Pages, Session};
use crate::stack::Stacked;
use crate::stream::{Saved, TextStream};

const MAGIC: &[u8; 8] = b"GWSTATE1";
const DIGEST: usize = 32;
/// Bytes of a header at most: stop texts and biases are all that can be long.
const MAX_HEADER: usize = 64 << 20;
/// Adapters at most.
const MAX_ADAPTERS: usize = 1024;
/// How pages of the cache lie in memory. Another layout gets another name.
const LAYOUT: &str = "cpu/1";

/// What a request is on.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    pub fingerprint: Fingerprint,
    pub architecture: &'a str,
    /// Of the cache.
    pub kv: Format,
    pub page_bytes: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    base: String,
    architecture: String,
    kv: String,
    layout: String,
    page_bytes: usize,
    pub adapters: Vec<Adapter>,
    pub tokens: usize,
    /// Those that are read as a prompt.
    pub prompt: usize,
    /// Those in the pages; 0 without pages.
    filled: usize,
    pub most_tokens: usize,
    /// Of the answer.
    pub left: u64,
    /// How many tokens stay when it is full; none: then it ends.
    keep: Option<usize>,
    pub end_tokens: Vec<u32>,
    sampling: Sampling,
    pub text: Option<Saved>,
    pub logprobs: Option<usize>,
    pub logits: bool,
}

/// An adapter of the request; those of weight 0 have virtual tokens in its prompt.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    pub name: String,
    pub content: String,
    /// The bits of the weight.
    pub weight: u32,
    /// The first position that it acts on.
    pub from: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sampling {
    step: u64,
    /// The bits of temperature, top-p, min-p, repetition, presence and frequency penalty.
    numbers: [u32; 6],
    top_k: u64,
    penalty_last_n: u64,
    seed: u64,
    /// Tokens and the bits of what is added.
    logit_bias: Vec<(u32, u32)>,
}

/// A saved request, checked for everything that can be checked without an engine's adapters.
pub struct State {
    pub header: Header,
    pub tokens: Vec<u32>,
    pub pages: Option<Pages>,
}

/// What `session` is, on `base`, with the pages that its tokens fill; none where they cannot be had.
pub fn write(session: &Session, base: Base<'_>, pages: &[&[u8]]) -> Result<Vec<u8>, Error> {
    let options = session.sampler.options();
    let &sample::Options { temperature, top_k, top_p, min_p, repetition_penalty, .. } = options;
    let numbers =
        [temperature, top_p, min_p, repetition_penalty, options.presence_penalty, options.frequency_penalty];
    let adapter = |stacked: &Stacked| Adapter {
        name: stacked.adapter().name().to_owned(),
        content: stacked.adapter().known().content.to_string(),
        weight: stacked.weight().to_bits(),
        from: stacked.from(),
    };
    let header = Header {
        base: base.fingerprint.to_string(),
        architecture: base.architecture.to_owned(),
        kv: base.kv.name().to_owned(),
        layout: LAYOUT.to_owned(),
        page_bytes: base.page_bytes,
        adapters: session.stacks.all().iter().map(adapter).collect(),
        tokens: session.tokens.len(),
        prompt: session.prompt,
        filled: pages.len() * PAGE,
        most_tokens: session.most_tokens,
        left: session.left as u64,
        keep: match session.context {
            Context::Stop => None,
            Context::Shift { keep } => Some(keep),
        },
        end_tokens: session.end_tokens.clone(),
        sampling: Sampling {
            step: session.sampler.step(),
            numbers: numbers.map(f32::to_bits),
            top_k: top_k as u64,
            penalty_last_n: options.penalty_last_n as u64,
            seed: options.seed,
            logit_bias: options.logit_bias.iter().map(|&(token, bias)| (token, bias.to_bits())).collect(),
        },
        text: session.text.as_ref().map(TextStream::save),
        logprobs: session.logprobs,
        logits: session.logits,
    };
    let json = serde_json::to_vec(&header).map_err(|_| Error::Internal { what: "a request has no JSON" })?;
    let size = 16
        + json.len()
        + 4 * session.tokens.len()
        + pages.iter().map(|page| page.len()).sum::<usize>()
        + DIGEST;
    let mut out = reserved(size).map_err(Error::Memory)?;
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&(json.len() as u64).to_le_bytes());
    out.extend_from_slice(&json);
    session.tokens.iter().for_each(|token| out.extend_from_slice(&token.to_le_bytes()));
    pages.iter().for_each(|page| out.extend_from_slice(page));
    let digest = Sha256::digest(&out);
    out.extend_from_slice(&digest);
    Ok(out)
}

fn wrong<T>(what: &'static str, expected: impl ToString, found: impl ToString) -> Result<T, Error> {
    Err(Error::State { what, expected: expected.to_string(), found: found.to_string() })
}

/// What the bytes say, for a request on `base`.
pub fn read(bytes: &[u8], base: Base<'_>) -> Result<State, Error> {
    let Some((body, digest)) = bytes.split_last_chunk::<DIGEST>() else {
        return wrong("bytes", format!("more than {DIGEST}"), bytes.len());
    };
    let Some(rest) = body.strip_prefix(MAGIC) else {
        let found = body.iter().take(MAGIC.len()).map(|byte| format!("{byte:02x}")).collect::<String>();
        return wrong("first bytes", "GWSTATE1", found);
    };
    if Sha256::digest(body).as_slice() != digest {
        return wrong("digest", "that of the bytes", "another: they were changed or cut");
    }
    let Some((len, rest)) = rest.split_first_chunk() else { return wrong("header", "its length", "none") };
    let len = usize::try_from(u64::from_le_bytes(*len)).unwrap_or(usize::MAX);
    if len > MAX_HEADER.min(rest.len()) {
        return wrong("header", format!("at most {} bytes", MAX_HEADER.min(rest.len())), len);
    }
    let (json, payload) = rest.split_at(len);
    let header: Header = match serde_json::from_slice(json) {
        Ok(header) => header,
        Err(error) => return wrong("header", "what this version writes", error),
    };
    for (what, expected, found) in [
        ("base", base.fingerprint.to_string(), &header.base),
        ("architecture", base.architecture.to_owned(), &header.architecture),
        ("format of keys and values", base.kv.name().to_owned(), &header.kv),
    ] {
        if expected != *found {
            return wrong(what, expected, found);
        }
    }
    let Header { tokens, prompt, filled, most_tokens, left, keep, .. } = header;
    if prompt == 0
        || prompt > tokens
        || filled >= tokens
        || !filled.is_multiple_of(PAGE)
        || tokens >= most_tokens
        || left == 0
    {
        let found = format!(
            "{prompt} of prompt, {filled} in pages, {tokens} in all, {most_tokens} at most, {left} to come"
        );
        return wrong(
            "tokens",
            "some of prompt, whole pages of fewer than all, fewer than at most, some to come",
            found,
        );
    }
    if let Some(keep) = keep.filter(|&keep| keep > prompt || keep.saturating_add(2) > most_tokens) {
        return wrong("tokens that stay", "some of the prompt, at least two fewer than there can be", keep);
    }
    if header.text.as_ref().is_some_and(|text| !text.is_possible()) {
        return wrong("text that is held back", "the beginning of a character or of a stop text", "more");
    }
    if header.adapters.len() > MAX_ADAPTERS {
        return wrong("adapters", format!("{MAX_ADAPTERS} at most"), header.adapters.len());
    }
    if let Some(adapter) = header.adapters.iter().find(|adapter| adapter.from > prompt) {
        return wrong("adapter", format!("one that acts from the prompt on, {prompt} at most"), adapter.from);
    }
    let pages = (filled / PAGE).checked_mul(header.page_bytes);
    let size = tokens.checked_mul(4).zip(pages).and_then(|(tokens, pages)| tokens.checked_add(pages));
    if size != Some(payload.len()) {
        let expected = size.map_or("as many as tokens and pages take".to_owned(), |size| size.to_string());
        return wrong("bytes behind the header", expected, payload.len());
    }
    let (numbers, pages) = payload.split_at(4 * tokens);
    let mut tokens = reserved(numbers.len() / 4).map_err(Error::Memory)?;
    tokens.extend(numbers.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)));
    // Those of another layout are computed again.
    let fits = filled > 0 && header.layout == LAYOUT && header.page_bytes == base.page_bytes;
    let pages = match fits {
        false => None,
        true => {
            let mut bytes = reserved(pages.len()).map_err(Error::Memory)?;
            bytes.extend_from_slice(pages);
            Some(Pages { filled, bytes })
        }
    };
    Ok(State { header, tokens, pages })
}

impl Header {
    /// What happens when it is full.
    pub fn context(&self) -> Context {
        self.keep.map_or(Context::Stop, |keep| Context::Shift { keep })
    }

    /// How tokens are chosen from here on.
    pub fn sampler(&self) -> Result<sample::Sampler, Error> {
        let Sampling { step, numbers, top_k, penalty_last_n, seed, logit_bias } = &self.sampling;
        let [temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty] =
            numbers.map(f32::from_bits);
        let options = sample::Options {
            temperature,
            top_k: usize::try_from(*top_k).unwrap_or(usize::MAX),
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            penalty_last_n: usize::try_from(*penalty_last_n).unwrap_or(usize::MAX),
            seed: *seed,
            logit_bias: logit_bias.iter().map(|&(token, bias)| (token, f32::from_bits(bias))).collect(),
        };
        Ok(sample::Sampler::resumed(options, *step)?)
    }
}
