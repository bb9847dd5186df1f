//! The update of one weight, some rows of it at a time or the whole.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use graftwork_kernels::backend::Generate;
use graftwork_kernels::cpu::isa::Isa;
use graftwork_kernels::{Format, Tensor, tensor};

use super::normal::{Direction, Sum};
use crate::check::Shape;
use crate::{Error, Site, expand};

/// Elements that a thread takes at a time: whole blocks of every format.
const JOB: usize = 1 << 13;

/// `D[o,i] = scale * sum_k c_k z(seed_k, tensor, o inputs + i)`, the update `[outputs, inputs]` of a linear layer's
/// weight. An element's bits depend on nothing but the patch, the tensor's name and the element's number: not on
/// the rows asked for, on threads or on the machine.
#[derive(Clone, Debug)]
pub struct Update {
    pub(super) directions: Arc<Vec<Direction>>,
    pub(super) scale: f32,
    pub(super) tensor: u64,
    pub(super) site: Site,
    pub(super) shape: Shape,
    pub(super) isa: Isa,
}

impl Update {
    /// The same, computed with this instruction set instead of the best there is.
    pub fn with(self, isa: Isa) -> Self {
        Self { isa, ..self }
    }

    /// The update `M` and the number `by` with `D = by * M`, where the elements of `M` have variance 1: for formats that small
    /// numbers do not fit.
    pub fn normalized(self) -> (Self, f32) {
        let square = self.directions.iter().map(|d| f64::from(d.coefficient).powi(2)).sum::<f64>();
        // The inverse of a smaller one might be infinite.
        let norm = square.sqrt().max(f32::MIN_POSITIVE.into());
        let by = f64::from(self.scale.abs()) * norm;
        let scale = (1.0 / norm) as f32;
        (Self { scale: scale.copysign(self.scale), ..self }, by as f32)
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

    /// Computes the whole, in any format. `threads` threads, the caller's among them, say after every piece how many
    /// elements of how many are done; `progress` answers whether to go on, and where it says no there is no result.
    /// Pieces have 8,192 elements, each of which takes as many normals as there are directions.
    ///
    /// # Errors
    /// No memory; or rows that are no whole blocks of the format.
    pub fn materialize(
        &self,
        format: Format,
        threads: usize,
        progress: &(dyn Fn(usize, usize) -> bool + Sync),
    ) -> Result<Option<Tensor>, Error> {
        let Shape { outputs, inputs } = self.shape;
        let elements = outputs.saturating_mul(inputs);
        let failed = |source| expand::failed(&self.site.to_string(), source);
        let (len, size) = (format.block_len(), format.block_bytes());
        if !inputs.is_multiple_of(len) {
            return Err(failed(tensor::Error::RaggedRow { format, cols: inputs, block: len }));
        }
        let mut bytes: Vec<u8> = tensor::zeros((elements / len).saturating_mul(size)).map_err(failed)?;
        let pieces = bytes.chunks_mut(JOB / len * size);
        let threads = threads.min(pieces.len());
        let pieces = Mutex::new((0u64..).step_by(JOB).zip(pieces));
        let (done, cancelled) = (AtomicUsize::new(0), AtomicBool::new(false));
        let work = || {
            let mut values = [0.0; JOB];
            while !cancelled.load(Ordering::Relaxed) {
                let next = pieces.lock().unwrap_or_else(|e| e.into_inner()).next();
                let Some((first, piece)) = next else { return };
                let values = &mut values[..piece.len() / size * len];
                self.fill(first, values);
                format.encode(values, piece);
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
        Tensor::new(format, outputs, inputs, bytes.into()).map(Some).map_err(failed)
    }

    /// Numbers of the tensor's elements from `first` on.
    fn fill(&self, first: u64, out: &mut [f32]) {
        let &Self { ref directions, scale, tensor, isa, .. } = self;
        isa.run(Sum { directions, scale, tensor, first, out });
    }
}

/// Rows in Hugging Face order.
impl Generate for Update {
    fn shape(&self) -> (usize, usize) {
        (self.shape.outputs, self.shape.inputs)
    }

    fn generate(&self, row: usize, first: usize, out: &mut [f32]) {
        self.fill((row as u64).wrapping_mul(self.shape.inputs as u64).wrapping_add(first as u64), out);
    }
}
