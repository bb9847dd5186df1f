//! The updates of seed patches, as a model applies them.

use std::sync::Arc;

use graftwork_adapters::seed::{SeedPatch, Update};
use graftwork_adapters::{RowOrder, Site};
use graftwork_kernels::Format;
use graftwork_kernels::backend::{Device, Generate};

use super::bind::Binder;
use super::graft::Bound;
use crate::Error;

/// Directions up to which an update is not kept, but computed whenever it is multiplied.
const ON_THE_FLY: usize = 4;

/// The format of an update that is kept on a base in blocks.
const ROUNDED: Format = Format::Q8_0;

impl<D: Device> Binder<'_, D> {
    /// Adds the update that `patch` makes of the weight at `site`, computed on `threads` threads if it is kept; gives the bytes it
    /// keeps. After each piece `go_on` is told how many elements are done, and answers whether to go on.
    ///
    /// On a base in floats it is kept in F32, to the bit. On one in blocks it is kept in [`ROUNDED`], as a matrix whose values have
    /// variance 1 and a factor: the scales that blocks of what training leaves would have are subnormal halves.
    pub(super) fn seeded(
        &self,
        patch: &SeedPatch,
        site: Site,
        threads: usize,
        go_on: &(dyn Fn(usize) -> bool + Sync),
        outputs: &mut Vec<Bound<D>>,
    ) -> Result<usize, Error> {
        let refused = |source| Error::AdapterWeight { site, source };
        let update = patch.update(site, self.shape).ok_or(Error::UnsupportedSite { site })?;
        if patch.directions() == 0 {
            return Ok(0);
        }
        if patch.directions() <= ON_THE_FLY {
            let rows = Rows { update, orders: self.orders, head_dim: self.head_dim };
            outputs.push(Bound::Generated(self.device.generated(Arc::new(rows)).map_err(refused)?));
            return Ok(size_of::<Rows>());
        }
        let (update, scale, format) = match self.linear.format.block_len() {
            1 => (update, 1.0, Format::F32),
            _ => {
                let (update, by) = update.normalized();
                (update, by, ROUNDED)
            }
        };
        let matrix = update.materialize(format, threads, &|done, _| go_on(done))?.ok_or(Error::Cancelled)?;
        let matrix = self.reordered(&matrix).map_err(refused)?;
        let delta = self.device.matrix(&matrix).map_err(refused)?;
        let bytes = self.device.matrix_bytes(&delta);
        outputs.push(Bound::Delta { delta, scale });
        Ok(bytes)
    }
}

/// An update with its rows in the model's order.
struct Rows {
    update: Update,
    /// The rows' order in the patch and in the model, where outputs are rotated.
    orders: Option<(RowOrder, RowOrder)>,
    head_dim: usize,
}

impl Generate for Rows {
    fn shape(&self) -> (usize, usize) {
        self.update.shape()
    }

    fn generate(&self, row: usize, first: usize, out: &mut [f32]) {
        let row = self.orders.map_or(row, |(from, to)| from.source_row(to, row, self.head_dim));
        self.update.generate(row, first, out);
    }
}
