//! How far one model's answers are from another's.

use super::{Error, Progress, Stage, WINDOW};
use crate::Engine;

/// How far the next tokens of a model are from those of a reference, over the positions of some texts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// Positions compared.
    pub positions: usize,
    /// The mean of `KL(P || Q) = sum_t P(t) log (P(t) / Q(t))` over positions, in nats, `P` the reference's.
    pub kl: f64,
    /// The share of positions whose likeliest token is the same.
    pub top1: f64,
}

impl Divergence {
    /// Counts a position with these logits of reference and model.
    pub(crate) fn add(&mut self, p: &[f32], q: &[f32]) {
        let (kl, is_same) = compare(p, q);
        self.positions += 1;
        let n = self.positions as f64;
        self.kl += (kl - self.kl) / n;
        self.top1 += (f64::from(u8::from(is_same)) - self.top1) / n;
    }
}

/// The divergence of `model`'s next tokens from `reference`'s under each of `stacks` of adapters, over texts in tokens.
///
/// # Errors
/// The models have different vocabularies, or refuse the texts; or `progress` ended it.
pub fn divergence(
    reference: &Engine,
    (model, stacks): (&Engine, &[Vec<(String, f32)>]),
    texts: &[Vec<u32>],
    progress: &Progress<'_>,
) -> Result<Vec<Divergence>, Error> {
    let (all, mut done) = (texts.iter().map(Vec::len).sum(), 0);
    let window = WINDOW.min(reference.config().context);
    let mut found = vec![Divergence::default(); stacks.len()];
    for text in texts.iter().flat_map(|text| text.chunks(window)) {
        let p = reference.logits(text, &[])?;
        for (found, adapters) in found.iter_mut().zip(stacks) {
            let q = model.logits(text, adapters)?;
            if p.len() != q.len() {
                let vocabulary = |logits: &[f32]| (logits.len() / text.len()).to_string();
                let (expected, found) = (vocabulary(&q), vocabulary(&p));
                return Err(Error::Config { field: "vocabulary", expected, found });
            }
            let vocabulary = p.len() / text.len();
            for (p, q) in p.chunks_exact(vocabulary).zip(q.chunks_exact(vocabulary)) {
                found.add(p, q);
            }
        }
        done += text.len();
        if !progress(Stage::Comparing, done, all) {
            return Err(crate::Error::Cancelled.into());
        }
    }
    Ok(found)
}

/// `KL(P || Q)` of two rows of logits, and whether their greatest is the same.
fn compare(p: &[f32], q: &[f32]) -> (f64, bool) {
    let greatest = |x: &[f32]| (0..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best });
    let (top_p, top_q) = (greatest(p), greatest(q));
    let log_sum = |x: &[f32], top: usize| {
        let most = f64::from(x[top]);
        most + x.iter().map(|&x| (f64::from(x) - most).exp()).sum::<f64>().ln()
    };
    let (log_p, log_q) = (log_sum(p, top_p), log_sum(q, top_q));
    let term = |(&p, &q): (&f32, &f32)| {
        let (p, q) = (f64::from(p) - log_p, f64::from(q) - log_q);
        p.exp() * (p - q)
    };
    (p.iter().zip(q).map(term).sum(), top_p == top_q)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_probabilities_as_by_hand() {
        let logits = |p: [f64; 3]| p.map(|p| (p.ln() + 4.0) as f32);
        let (p, q) = ([0.5, 0.25, 0.25], [0.2, 0.2, 0.6]);
        let expected = p.iter().zip(&q).map(|(p, q): (&f64, &f64)| p * (p / q).ln()).sum::<f64>();
        let (kl, same) = compare(&logits(p), &logits(q));
        assert!((kl - expected).abs() < 1e-6 && !same, "{kl}, not {expected}");
        let (kl, same) = compare(&logits(p), &logits(p).map(|x| x - 7.0));
        assert!(kl.abs() < 1e-6 && same, "{kl}");
    }
}
