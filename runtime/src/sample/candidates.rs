//! The tokens that can still be drawn, and how they become fewer.

use super::exp::exp;
use super::{Error, Options, check};
use graftwork_kernels::tensor::reserved;
use std::cmp::Ordering;

/// How many of the likeliest tokens are ranked first in the search for the top-p set; then eight times more each time.
const FIRST_RANKED: usize = 64;

/// One token that can be drawn.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    logit: f32,
    token: u32,
    /// `exp((logit - highest) / temperature)`.
    weight: f64,
}

/// Likeliest first, equals by id.
fn rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// The tokens that can be drawn. Never empty once [filled](Self::fill).
#[derive(Debug, Default)]
pub(super) struct Candidates(Vec<Candidate>);

impl Candidates {
    /// All tokens that are not banned, by id, with the changed logits.
    pub(super) fn fill(&mut self, logits: &[f32], changes: &[(u32, f32)]) -> Result<(), Error> {
        self.0.clear();
        if self.0.capacity() < logits.len() {
            self.0 = reserved(logits.len())?;
        }
        self.0.extend((0u32..).zip(logits).map(|(token, &logit)| Candidate { logit, token, weight: 0.0 }));
        for &(token, logit) in changes {
            self.0[token as usize].logit = logit;
        }
        for candidate in &self.0 {
            check(candidate.token, candidate.logit)?;
        }
        self.0.retain(|candidate| candidate.logit > f32::NEG_INFINITY);
        if self.0.is_empty() { Err(Error::NoToken { vocab: logits.len() }) } else { Ok(()) }
    }

    /// The likeliest token.
    pub(super) fn likeliest(&self) -> u32 {
        self.0.iter().min_by(|a, b| rank(a, b)).map_or(0, |candidate| candidate.token)
    }

    /// Temperature, top-k, top-p and min-p.
    pub(super) fn truncate(&mut self, options: &Options) {
        if (1..self.0.len()).contains(&options.top_k) {
            self.0.select_nth_unstable_by(options.top_k - 1, rank);
            self.0.truncate(options.top_k);
            // The sums below are over floats, so their order is part of the result.
            self.0.sort_unstable_by(rank);
        }
        let highest = self.0.iter().map(|candidate| candidate.logit).fold(f32::NEG_INFINITY, f32::max);
        let temperature = f64::from(options.temperature);
        for candidate in &mut self.0 {
            candidate.weight = exp((f64::from(candidate.logit) - f64::from(highest)) / temperature);
        }
        if options.top_p < 1.0 {
            self.keep_mass(f64::from(options.top_p));
        }
        let least = f64::from(options.min_p);
        self.0.retain(|candidate| candidate.weight >= least);
    }

    /// Keeps the fewest likeliest candidates whose share of all weights reaches `share`, ranked.
    fn keep_mass(&mut self, share: f64) {
        let wanted = share * self.0.iter().map(|candidate| candidate.weight).sum::<f64>();
        let (mut mass, mut ranked, mut more) = (0.0, 0, FIRST_RANKED);
        while ranked < self.0.len() {
            let rest = &mut self.0[ranked..];
            if more < rest.len() {
                rest.select_nth_unstable_by(more, rank);
            }
            let head = more.min(rest.len());
            rest[..head].sort_unstable_by(rank);
            let reached = rest[..head].iter().position(|candidate| {
                mass += candidate.weight;
                mass >= wanted
            });
            if let Some(last) = reached {
                self.0.truncate(ranked + last + 1);
                return;
            }
            ranked += head;
            more *= 8;
        }
    }

    /// The token at `u`, in `[0, 1)`, of the weights laid end to end.
    pub(super) fn draw(&self, u: f64) -> u32 {
        let target = u * self.0.iter().map(|candidate| candidate.weight).sum::<f64>();
        let mut passed = 0.0;
        let mut last = 0;
        for candidate in self.0.iter().filter(|candidate| candidate.weight > 0.0) {
            passed += candidate.weight;
            last = candidate.token;
            if passed > target {
                break;
            }
        }
        last
    }
}
