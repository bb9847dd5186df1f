//! What an engine has done so far, in numbers.

use std::time::Duration;

use crate::batch::Batch;

/// Totals since the engine was opened. Subtract two of them for what happened between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Forward passes that were completed.
    pub steps: u64,
    /// Forward passes that were given up because most of their rows were cancelled.
    pub abandoned: u64,
    /// Rows of prompts.
    pub prompt_rows: u64,
    /// Rows of prompts that were not computed, because their keys and values had been kept.
    pub reused_rows: u64,
    /// Rows of answers.
    pub answer_rows: u64,
    /// Rows that at least one adapter changed.
    pub adapted_rows: u64,
    /// Tokens that were chosen.
    pub tokens: u64,
    /// Time inside forward passes.
    pub computing: Duration,
}

impl Counters {
    /// Adds a forward pass that took `time` and was completed or not.
    pub(crate) fn count(&mut self, batch: &Batch<'_>, completed: bool, time: Duration) {
        self.computing += time;
        if !completed {
            self.abandoned += 1;
            return;
        }
        self.steps += 1;
        self.prompt_rows += batch.prompt_rows as u64;
        self.answer_rows += (batch.tokens.len() - batch.prompt_rows) as u64;
        self.adapted_rows += batch.segments.iter().map(|segment| segment.rows.len() as u64).sum::<u64>();
        self.tokens += batch.outputs.len() as u64;
    }
}
