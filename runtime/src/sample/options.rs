//! What a request may say about the choice of its tokens.

use super::Error;

/// How tokens are chosen; see the [module](super) for the order. The default is greedy, without penalties.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Divides the logits: 0 takes the likeliest token, 1 the model's distribution. At least 0.
    pub temperature: f32,
    /// How many of the likeliest tokens stay; 0 for all.
    pub top_k: usize,
    /// The share of the probability that the likeliest tokens must reach; above 0, and 1 for all.
    pub top_p: f32,
    /// The least probability, as a share of the likeliest token's; 0 for all, at most 1.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of repeated tokens; 1 for none, above 0.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of repeated tokens.
    pub presence_penalty: f32,
    /// Subtracted from the logits of repeated tokens for each time.
    pub frequency_penalty: f32,
    /// How many of the last tokens count as repeated; `usize::MAX` for all.
    pub penalty_last_n: usize,
    /// What all draws depend on.
    pub seed: u64,
    /// Tokens and what is added to their logits; `-inf` bans.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_last_n: 64,
            seed: 0,
            logit_bias: Vec::new(),
        }
    }
}

impl Options {
    /// Whether every value means something.
    ///
    /// # Errors
    /// [`Error::Option`], with the name of the first that does not.
    pub fn check(&self) -> Result<(), Error> {
        let finite = f32::MIN..=f32::MAX;
        let above_zero = f32::MIN_POSITIVE;
        for (option, value, range, expected) in [
            ("temperature", self.temperature, 0.0..=f32::MAX, "a number of at least 0"),
            ("top_p", self.top_p, above_zero..=1.0, "a number above 0 and at most 1"),
            ("min_p", self.min_p, 0.0..=1.0, "a number from 0 to 1"),
            ("repetition_penalty", self.repetition_penalty, above_zero..=f32::MAX, "a number above 0"),
            ("presence_penalty", self.presence_penalty, finite.clone(), "a finite number"),
            ("frequency_penalty", self.frequency_penalty, finite.clone(), "a finite number"),
        ] {
            if !range.contains(&value) {
                return Err(Error::Option { option, expected: expected.into(), found: value.to_string() });
            }
        }
        match self.logit_bias.iter().find(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY) {
            Some((token, bias)) => Err(Error::Option {
                option: "logit_bias",
                expected: "finite numbers or -inf".into(),
                found: format!("{bias} for token {token}"),
            }),
            None => Ok(()),
        }
    }

    /// Whether repeated tokens are treated differently.
    pub(super) fn has_penalties(&self) -> bool {
        let none =
            self.repetition_penalty == 1.0 && self.presence_penalty == 0.0 && self.frequency_penalty == 0.0;
        self.penalty_last_n > 0 && !none
    }

    /// The logit of a token that is there `count` times.
    pub(super) fn penalised(&self, logit: f32, count: u32) -> f32 {
        let r = self.repetition_penalty;
        let logit = if logit > 0.0 { logit / r } else { logit * r };
        logit - count as f32 * self.frequency_penalty - self.presence_penalty
    }
}
