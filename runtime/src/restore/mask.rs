//! Which entries of a model's matrices are chosen, from a file.

use std::path::Path;

use graftwork_adapters::file::{self, Dtype, Safetensors};
use graftwork_adapters::{RowOrder, Site};

use crate::compress::Error;
use crate::model::Config;
use crate::model::bind::shape_at;

/// A safetensors file that holds, by the names of weights in Hugging Face files, U8 or BOOL of the weights' shapes: what is not 0 is
/// chosen. Rows of q and k are in the order of Hugging Face.
#[derive(Clone, Debug)]
pub struct Mask(Safetensors);

impl Mask {
    /// Maps a file.
    ///
    /// # Errors
    /// It is not readable, or no such file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, file::Error> {
        Safetensors::open(path).map(Self)
    }

    /// Refuses a mask of other matrices than these.
    pub(super) fn check(&self, sites: &[Site], config: &Config) -> Result<(), Error> {
        for (name, info) in self.0.tensors().iter() {
            let site = sites.iter().find(|&&site| name_of(site) == name);
            let shape = site.and_then(|&site| shape_at(config, site));
            let Some(shape) = shape else {
                let expected =
                    "a mask has the names of the weights of linear layers in the blocks that are restored";
                return Err(
                    graftwork_adapters::Error::UnknownTensor { tensor: name.to_owned(), expected }.into()
                );
            };
            let expected = [shape.outputs as u64, shape.inputs as u64];
            if !matches!(info.dtype, Dtype::U8 | Dtype::Bool) || info.shape != expected {
                let (expected, found) =
                    (format!("U8 or BOOL {expected:?}"), format!("{} {:?}", info.dtype, info.shape));
                return Err(crate::Error::Shape { tensor: name.to_owned(), expected, found }.into());
            }
        }
        Ok(())
    }

    /// Row `row` of a matrix whose rows are in `order`; none of one that is not chosen from.
    pub(super) fn row(&self, site: Site, row: usize, order: RowOrder, head_dim: usize) -> Option<&[u8]> {
        let info = self.0.tensors().get(&name_of(site))?;
        let row = match site {
            Site::Linear { module, .. } if module.is_rotated() => {
                RowOrder::HuggingFace.source_row(order, row, head_dim)
            }
            _ => row,
        };
        let columns = info.shape[1] as usize;
        info.bytes.get(row * columns..(row + 1) * columns)
    }
}

fn name_of(site: Site) -> String {
    format!("{}.weight", site.hf_path().unwrap_or_default())
}
