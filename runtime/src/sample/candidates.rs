//! The tokens that can still be drawn, and how they become fewer.

use graftwork_kernels::cpu::isa::Isa;
use graftwork_kernels::cpu::softmax::{SUMMED, Weights, exp};
use graftwork_kernels::tensor::reserved;

use super::{Error, Options};

/// How many of the likeliest tokens are ranked first in the search for the top-p set; then sixteen times more each time.
const FIRST_RANKED: usize = 64;

/// Logits looked at together: the compiler makes vectors of them.
const CHUNK: usize = 64;

/// The largest of some logits that can be compared, `-inf` if there are none.
pub(super) fn largest(logits: &[f32]) -> f32 {
    let (chunks, rest) = logits.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |most, &logit| if logit > most { logit } else { most })
}

/// The tokens whose logit is `at_least` that, in order, with their logits.
fn from(logits: &[f32], at_least: f32) -> impl Iterator<Item = (u32, f32)> {
    let chunks = logits.chunks(CHUNK).enumerate().filter(move |(_, chunk)| largest(chunk) >= at_least);
    chunks
        .flat_map(|(index, chunk)| ((index * CHUNK) as u32..).zip(chunk.iter().copied()))
        .filter(move |&(_, logit)| logit >= at_least)
}

/// The first token of the highest logit.
pub(super) fn first(logits: &[f32], highest: f32) -> u32 {
    from(logits, highest).next().map_or(0, |(token, _)| token)
}

/// What tokens are ranked by, as one number: the likeliest first, in the order of [`f32::total_cmp`], equals by id.
fn rank(token: u32, logit: f32) -> u64 {
    let bits = logit.to_bits().cast_signed();
    // Descending: bits of negative numbers descend as they are, those of the others are turned.
    let descending = if bits < 0 { bits.cast_unsigned() } else { !bits.cast_unsigned() & u32::MAX >> 1 };
    u64::from(descending) << 32 | u64::from(token)
}

/// One token that can be drawn.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: u32,
    /// `exp((logit - highest) / temperature)`.
    weight: f64,
}

/// Room for the choice of a token, kept so that large vocabularies do not allocate for each.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// The logits with bias and penalties.
    changed: Vec<f32>,
    /// The tokens that are left, where those are not all.
    kept: Vec<Candidate>,
    /// The likeliest tokens, see [`rank`].
    ranked: Vec<u64>,
    /// The weights of all tokens, and their sums: see [`Weights`].
    weights: Vec<f64>,
    sums: Vec<f64>,
}

/// Empties `vector` and makes room for `n` values.
fn clear<T>(vector: &mut Vec<T>, n: usize) -> Result<(), Error> {
    vector.clear();
    if vector.capacity() < n {
        *vector = reserved(n)?;
    }
    Ok(())
}

impl Candidates {
    /// The logits with some of them changed.
    pub(super) fn change(&mut self, logits: &[f32], changes: &[(u32, f32)]) -> Result<Vec<f32>, Error> {
        clear(&mut self.changed, logits.len())?;
        self.changed.extend_from_slice(logits);
        for &(token, logit) in changes {
            self.changed[token as usize] = logit;
        }
        Ok(std::mem::take(&mut self.changed))
    }

    /// Takes the room of changed logits back.
    pub(super) fn give_back(&mut self, changed: Vec<f32>) {
        self.changed = changed;
    }

    /// The likeliest token.
    pub(super) fn likeliest(logits: &[f32], highest: f32) -> u32 {
        from(logits, highest).min_by_key(|&(token, logit)| rank(token, logit)).map_or(0, |(token, _)| token)
    }

    /// The token at `u`, in `[0, 1)`, of the weights that temperature, top-k, top-p and min-p leave, laid end to end.
    pub(super) fn draw(
        &mut self,
        logits: &[f32],
        highest: f32,
        options: &Options,
        u: f64,
    ) -> Result<u32, Error> {
        let least = f64::from(options.min_p);
        let (temperature, share) = (f64::from(options.temperature), f64::from(options.top_p));
        let weight = |logit: f32| exp((f64::from(logit) - f64::from(highest)) / temperature);
        if (1..logits.len()).contains(&options.top_k) && self.rank(logits, options.top_k)? {
            clear(&mut self.kept, self.ranked.len())?;
            let candidate =
                |&rank: &u64| Candidate { token: rank as u32, weight: weight(logits[rank as u32 as usize]) };
            self.kept.extend(self.ranked.iter().map(candidate));
            if share < 1.0 {
                let wanted = share * self.kept.iter().map(|candidate| candidate.weight).sum::<f64>();
                let mut mass = 0.0;
                let reached = self.kept.iter().position(|candidate| {
                    mass += candidate.weight;
                    mass >= wanted
                });
                self.kept.truncate(reached.map_or(usize::MAX, |last| last + 1));
            }
        } else if share < 1.0 {
            self.weigh(logits, highest, options.temperature)?;
            self.keep_mass(logits, share)?;
        } else if least > 0.0 {
            clear(&mut self.kept, logits.len())?;
            // Where weights reach `least`, with room for what the sum and the exponential round.
            let (highest, above) = (f64::from(highest), temperature * least.ln());
            let edge = highest + above - 1e-6 * (highest.abs() + above.abs()) - 1e-12 * temperature;
            let near = from(logits, edge as f32);
            self.kept.extend(near.map(|(token, logit)| Candidate { token, weight: weight(logit) }));
        } else {
            self.weigh(logits, highest, options.temperature)?;
            return Ok(self.draw_of_all(u));
        }
        self.kept.retain(|candidate| candidate.weight >= least);
        Ok(self.draw_of_kept(u))
    }

    /// Ranks the `most` likeliest tokens that are not banned; gives whether there are more.
    fn rank(&mut self, logits: &[f32], most: usize) -> Result<bool, Error> {
        let ranked = &mut self.ranked;
        let full = most.saturating_mul(2).saturating_add(CHUNK);
        clear(ranked, full.saturating_add(CHUNK).min(logits.len()))?;
        // Tokens below this are not among them.
        let (mut least, mut more) = (f32::MIN, false);
        for (index, chunk) in logits.chunks(CHUNK).enumerate() {
            if largest(chunk) < least {
                continue;
            }
            let tokens = ((index * CHUNK) as u32..).zip(chunk).filter(|&(_, &logit)| logit >= least);
            ranked.extend(tokens.map(|(token, &logit)| rank(token, logit)));
            if ranked.len() > full {
                let (_, last, _) = ranked.select_nth_unstable(most - 1);
                least = logits[*last as u32 as usize];
                ranked.truncate(most);
                more = true;
            }
        }
        if ranked.len() > most {
            ranked.select_nth_unstable(most - 1);
            ranked.truncate(most);
            more = true;
        }
        ranked.sort_unstable();
        Ok(more)
    }

    /// Computes the weights of all tokens.
    fn weigh(&mut self, logits: &[f32], highest: f32, temperature: f32) -> Result<(), Error> {
        for (vector, n) in
            [(&mut self.weights, logits.len()), (&mut self.sums, logits.len().div_ceil(SUMMED))]
        {
            // What is there is overwritten.
            if vector.len() != n {
                clear(vector, n)?;
                vector.resize(n, 0.0);
            }
        }
        let (w, sums) = (&mut self.weights[..], &mut self.sums[..]);
        Isa::best().run(Weights { x: logits, highest, temperature, w, sums });
        Ok(())
    }

    /// Keeps the fewest likeliest tokens whose share of all weights reaches `share`, ranked.
    fn keep_mass(&mut self, logits: &[f32], share: f64) -> Result<(), Error> {
        let wanted = share * self.sums.last().copied().unwrap_or(0.0);
        let (mut mass, mut passed, mut most) = (0.0, 0, FIRST_RANKED);
        let reached = loop {
            most = most.min(logits.len());
            let more = self.rank(logits, most)?;
            let reached = self.ranked[passed..].iter().position(|&rank| {
                mass += self.weights[rank as u32 as usize];
                mass >= wanted
            });
            if let Some(last) = reached {
                break passed + last + 1;
            }
            passed = self.ranked.len();
            if !more {
                break passed;
            }
            most *= 16;
        };
        clear(&mut self.kept, reached)?;
        let candidate =
            |&rank: &u64| Candidate { token: rank as u32, weight: self.weights[rank as u32 as usize] };
        self.kept.extend(self.ranked[..reached].iter().map(candidate));
        Ok(())
    }

    fn draw_of_kept(&self, u: f64) -> u32 {
        let target = u * self.kept.iter().map(|candidate| candidate.weight).sum::<f64>();
        let tokens = self.kept.iter().map(|candidate| (candidate.token, candidate.weight));
        passing(tokens, 0.0, target)
    }

    fn draw_of_all(&self, u: f64) -> u32 {
        let target = u * self.sums.last().copied().unwrap_or(0.0);
        // The part in which the sum passes the target; the last one where rounding lets none.
        let part = self.sums.iter().position(|&sum| sum > target);
        let start = part.map_or(0, |part| part * SUMMED);
        let passed = if start == 0 { 0.0 } else { self.sums[start / SUMMED - 1] };
        passing((start as u32..).zip(self.weights[start..].iter().copied()), passed, target)
    }
}

/// The first token with which the sum of weights, so far `passed`, passes `target`; else the last that has a weight.
fn passing(tokens: impl Iterator<Item = (u32, f64)>, mut passed: f64, target: f64) -> u32 {
    let mut last = 0;
    for (token, weight) in tokens.filter(|&(_, weight)| weight > 0.0) {
        passed += weight;
        last = token;
        if passed > target {
            break;
        }
    }
    last
}
