//! One sequence, computed apart from all requests.

use graftwork_adapters::Module;
use graftwork_kernels::Format;

use super::Engine;
use crate::{EngineOptions, Error};

impl Engine {
    /// The logits `[tokens, vocab]` at every position of one sequence under a stack of adapters, but for those that adapters put
    /// before it, with keys and values cached in f32; `vocab` is the adapter's where one has tokens of its own. Waits for a step
    /// in progress.
    ///
    /// # Errors
    /// An adapter is not loaded, the tokens are none, too many or not the model's, or memory was refused.
    pub fn logits(&self, tokens: &[u32], adapters: &[(String, f32)]) -> Result<Vec<f32>, Error> {
        self.logits_with(tokens, adapters, Format::F32)
    }

    /// [`Engine::logits`] with keys and values cached as `kv`, F16, F32 or Q8_0.
    ///
    /// # Errors
    /// As [`Engine::logits`], or another format.
    pub fn logits_with(
        &self,
        tokens: &[u32],
        adapters: &[(String, f32)],
        kv: Format,
    ) -> Result<Vec<f32>, Error> {
        let stack = self.registry.stack(adapters, std::iter::empty())?;
        EngineOptions { kv_format: kv, ..self.options.clone() }.check()?;
        let sequence = self.sequence(&stack, tokens, &[], self.config().context + 1)?;
        let mut turn = self.turn()?;
        let stacks = self.held(&stack, &sequence)?;
        turn.runner.score(&sequence, &stacks, kv, self.options.prefill_chunk, None)
    }

    /// [`Engine::logits`], and on the way shows `seen` the residual stream `[rows, hidden]` at the same positions: `seen(0, rows)` what
    /// goes into the first block, `seen(n, rows)` what comes out of the first `n`, but after all of them that behind the final norm.
    /// Positions come in order, some rows at a time, through all blocks before the next. A GPU would be read after every block.
    ///
    /// # Errors
    /// As [`Engine::logits`].
    pub fn hidden_states(
        &self,
        tokens: &[u32],
        adapters: &[(String, f32)],
        seen: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Vec<f32>, Error> {
        let stack = self.registry.stack(adapters, std::iter::empty())?;
        let sequence = self.sequence(&stack, tokens, &[], self.config().context + 1)?;
        let mut turn = self.turn()?;
        let stacks = self.held(&stack, &sequence)?;
        turn.runner.score(&sequence, &stacks, Format::F32, self.options.prefill_chunk, Some(seen))
    }

    /// Shows `seen` the inputs `[rows, inputs]` of the linear layers of the blocks up to `last`, over one sequence without adapters, some
    /// rows at a time: once of those that share their input, as that of the first. Waits for a step in progress.
    ///
    /// # Errors
    /// As [`Engine::logits`].
    pub(crate) fn linear_inputs(
        &self,
        tokens: &[u32],
        last: usize,
        seen: &mut dyn FnMut(usize, Module, &[f32]),
    ) -> Result<(), Error> {
        let stack = self.registry.stack(&[], std::iter::empty())?;
        let sequence = self.sequence(&stack, tokens, &[], self.config().context + 1)?;
        let mut turn = self.turn()?;
        let stacks = self.held(&stack, &sequence)?;
        turn.runner.inputs(&sequence, &stacks, last, self.options.prefill_chunk, seen)
    }
}
