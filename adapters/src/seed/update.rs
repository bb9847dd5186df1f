//! The update of one weight, some rows of it at a time or the whole.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use graftwork_kernels::cpu::isa::Isa;
use graftwork_kernels::{Format, Tensor, tensor};

use super::normal::{Direction, Sum};
use crate::check::Shape;
use crate::{Error, Site, expand};

/// Elements that a thread takes at a time.
const JOB: usize = 1 << 13;

/// `D[o,i] = scale * sum_k c_k z(seed_k, tensor, o inputs + i)`, the update `[outputs, inputs]` of a linear layer's
/// weight. An element's bits depend on nothing but the patch, the tensor's name and the element's number: not on
/// the rows asked for, on threads or on the machine.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    pub(super) directions: &'a [Direction],
    pub(super) scale: f32,
    pub(super) tensor: u64,
    pub(super) site: Site,
    pub(super) shape: Shape,
    pub(super) isa: Isa,
}

impl Update<'_> {
    /// The same, computed with this instruction set instead of the best there is.
    pub fn with(self, isa: Isa) -> Self {
        Self { isa, ..self }
    }

    /// Computes rows from `first` on into `out`, as many as it holds, and keeps nothing: the way for some four
    /// directions.
    ///
    /// # Errors
    /// [`Error::Misfit`]: `out` does not hold whole rows, or the weight has fewer.
    pub fn rows(&self, first: usize, out: &mut [f32]) -> Result<(), Error> {
        let Shape { outputs, inputs } = self.shape;
        let rows = out.len().checked_div(inputs).unwrap_or(0);
        if rows * inputs != out.len() || first.checked_add(rows).is_none_or(|end| end > outputs) {
            return Err(Error::Misfit {
                site: self.site,
                part: "rows of the update",
                expected: format!("whole rows of {inputs} among {outputs}"),
                found: format!("{} values from row {first} on", out.len()),
            });
        }
        self.fill((first as u64).wrapping_mul(inputs as u64), out);
        Ok(())
    }

    /// Computes the whole, as F32. `threads` threads, the caller's among them, say after every piece how many
    /// elements of how many are done; `progress` answers whether to go on, and where it says no there is no result.
    /// Pieces have 8,192 elements, each of which takes as many normals as there are directions.
    ///
    /// # Errors
    /// No memory.
    pub fn materialize(
        &self,
        threads: usize,
        progress: &(dyn Fn(usize, usize) -> bool + Sync),
    ) -> Result<Option<Tensor>, Error> {
        let Shape { outputs, inputs } = self.shape;
        let elements = outputs.saturating_mul(inputs);
        let failed = |source| expand::failed(&self.site.to_string(), source);
        let mut bytes: Vec<u8> = tensor::zeros(elements.saturating_mul(4)).map_err(failed)?;
        let pieces = bytes.chunks_mut(4 * JOB);
        let threads = threads.min(pieces.len());
        let pieces = Mutex::new((0u64..).step_by(JOB).zip(pieces));
        let (done, cancelled) = (AtomicUsize::new(0), AtomicBool::new(false));
        let work = || {
            let mut values = [0.0; JOB];
            while !cancelled.load(Ordering::Relaxed) {
                let next = pieces.lock().unwrap_or_else(|e| e.into_inner()).next();
                let Some((first, piece)) = next else { return };
                let values = &mut values[..piece.len() / 4];
                self.fill(first, values);
                let (places, _) = piece.as_chunks_mut();
                places.iter_mut().zip(&*values).for_each(|(place, value)| *place = value.to_le_bytes());
                let done = done.fetch_add(values.len(), Ordering::Relaxed) + values.len();
                if !progress(done, elements) {
                    cancelled.store(true, Ordering::Relaxed);
                }
            }
        };
        std::thread::scope(|scope| {
            let spawn = |_| {
                let thread = std::thread::Builder::new().name("graftwork-seed".to_owned());
                thread.stack_size(1 << 20).spawn_scoped(scope, work).ok()
            };
            // A thread that the system refuses leaves its share to the others.
            let others: Vec<_> = (1..threads).map_while(spawn).collect();
            work();
            for other in others {
                if let Err(panic) = other.join() {
                    std::panic::resume_unwind(panic);
                }
            }
        });
        if cancelled.into_inner() {
            return Ok(None);
        }
        Tensor::new(Format::F32, outputs, inputs, bytes.into()).map(Some).map_err(failed)
    }

    fn fill(&self, first: u64, out: &mut [f32]) {
        let Self { directions, scale, tensor, isa, .. } = *self;
        isa.run(Sum { directions, scale, tensor, first, out });
    }
}
