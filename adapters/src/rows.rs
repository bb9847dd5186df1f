//! The order of q and k rows: Hugging Face keeps the two halves of a rotated head together, GGUF its pairs.
//!
//! Rotary embedding turns pairs of values of a head. In Hugging Face files pair `i` of a head of `d` values is
//! `(i, i + d/2)`, in the GGUF files of the Llama family it is `(2i, 2i + 1)`: llama.cpp's converter has permuted
//! the rows of `attn_q` and `attn_k`, in base models and in LoRAs (the rows of `B`) alike. Row `d h + d/2 j + i` of
//! a Hugging Face file is row `d h + 2 i + j` of the GGUF file, for head `h`, `j` in {0, 1}, `i < d/2`.
//! An adapter in one order on a base in the other must be reordered at the sites where
//! [`Module::is_rotated`](crate::Module::is_rotated); architectures that GGUF leaves in Hugging Face order have nothing to do.

use graftwork_kernels::{Tensor, tensor};

use crate::{Adapter, Change, Edit, Error, Site, expand};

/// The order of the rows of q and k in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowOrder {
    /// As transformers and PEFT store them: the halves of a rotated head one after the other.
    HuggingFace,
    /// As llama.cpp's converter stores them for a GGUF base of the adapter's architecture: rotated pairs side by
    /// side where it permutes (`llama` and its kin), unchanged where it does not.
    Gguf,
}

/// The GGUF row that holds row `row` of the Hugging Face file. `head_dim` must be even and positive.
pub fn gguf_row(row: usize, head_dim: usize) -> usize {
    let (head, k) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (k % half) + k / half
}

/// The Hugging Face row that is in row `row` of the GGUF file. The inverse of [`gguf_row`].
pub fn hf_row(row: usize, head_dim: usize) -> usize {
    let (head, k) = (row / head_dim, row % head_dim);
    head * head_dim + (k % 2) * (head_dim / 2) + k / 2
}

impl RowOrder {
    /// The row of a file in this order that belongs in row `row` of a file in `target` order.
    pub fn source_row(self, target: RowOrder, row: usize, head_dim: usize) -> usize {
        match (self, target) {
            (RowOrder::HuggingFace, RowOrder::Gguf) => hf_row(row, head_dim),
            (RowOrder::Gguf, RowOrder::HuggingFace) => gguf_row(row, head_dim),
            _ => row,
        }
    }

    /// `tensor` `[heads * head_dim, cols]`, whose rows are in this order, with its rows in `target` order.
    ///
    /// # Errors
    /// `head_dim` is odd or zero, or does not divide the rows: [`tensor::Error::Length`] with the rows that would.
    pub fn reorder(
        self,
        target: RowOrder,
        tensor: &Tensor,
        head_dim: usize,
    ) -> Result<Tensor, tensor::Error> {
        let size = tensor.row_bytes();
        self.permute(target, tensor, head_dim, tensor.rows(), size)
    }

    /// `vector` `[1, heads * head_dim]` of F32, F16 or BF16 (a bias of q or k), with its values in `target` order.
    ///
    /// # Errors
    /// As [`Self::reorder`]; also a format whose blocks hold more than one value.
    pub fn reorder_vector(
        self,
        target: RowOrder,
        vector: &Tensor,
        head_dim: usize,
    ) -> Result<Tensor, tensor::Error> {
        let (format, cols) = (vector.format(), vector.cols());
        if format.block_len() != 1 {
            return Err(tensor::Error::RaggedRow { format, cols: 1, block: format.block_len() });
        }
        self.permute(target, vector, head_dim, cols, format.block_bytes())
    }

    /// Moves `count` pieces of `size` bytes.
    fn permute(
        self,
        target: RowOrder,
        tensor: &Tensor,
        head_dim: usize,
        count: usize,
        size: usize,
    ) -> Result<Tensor, tensor::Error> {
        if self == target {
            return Ok(tensor.clone());
        }
        let (format, cols, found) = (tensor.format(), tensor.cols(), tensor.bytes().len());
        if head_dim == 0 || !head_dim.is_multiple_of(2) || !count.is_multiple_of(head_dim) {
            let rows = count.next_multiple_of(head_dim.max(1).next_multiple_of(2));
            return Err(tensor::Error::Length { format, rows, cols, expected: rows * size, found });
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(found).map_err(|_| tensor::Error::OutOfMemory { bytes: found })?;
        for row in 0..count {
            let source = self.source_row(target, row, head_dim);
            bytes.extend_from_slice(&tensor.bytes()[source * size..][..size]);
        }
        Tensor::new(format, tensor.rows(), cols, bytes.into())
    }
}

/// A LoRA or IA3 with what is indexed by outputs of q and k in `target` order, of an architecture whose rows GGUF permutes, with
/// heads of `head_dim`.
///
/// # Errors
/// Another change of q or k, or before all positions; what [`RowOrder::reorder`] refuses.
pub fn in_order(adapter: &Adapter, target: RowOrder, head_dim: usize) -> Result<Adapter, Error> {
    let from = adapter.row_order;
    let mut out = Adapter { row_order: target, ..adapter.clone() };
    let is_rotated = |site| matches!(site, Site::Linear { module, .. } if module.is_rotated());
    for Edit { site, change } in out.edits.iter_mut().filter(|_| from != target) {
        let failed = |source| expand::failed(&format!("of {site}"), source);
        let vector = |values: &mut Tensor| {
            *values = from.reorder_vector(target, values, head_dim).map_err(failed)?;
            Ok::<(), Error>(())
        };
        match change {
            Change::LowRank { b, bias, magnitude, .. } if is_rotated(*site) => {
                *b = from.reorder(target, b, head_dim).map_err(failed)?;
                bias.iter_mut().chain(magnitude).try_for_each(vector)?;
            }
            Change::Bias { values } | Change::OutputScale { values } if is_rotated(*site) => vector(values)?,
            Change::InputScale { .. } => {}
            _ if is_rotated(*site) || matches!(site, Site::Prefix | Site::EveryLinear { .. }) => {
                let (what, reason) =
                    (format!("another order of the change of {site}"), "LoRA and IA3 are put in one");
                return Err(Error::Unsupported { what, reason });
            }
            _ => {}
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use graftwork_kernels::Format;

    #[test]
    fn rows_are_permuted_as_the_converter_does() {
        // `weights.reshape(heads, 2, d / 2, cols).swapaxes(1, 2)` of a column 0..16 with heads of 8.
        let expected = [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15].map(|x| x as f32);
        let hf: Vec<f32> = (0..16).map(|x| x as f32).collect();
        let column = Tensor::encode(Format::F32, 16, 1, &hf).unwrap();
        let gguf = RowOrder::HuggingFace.reorder(RowOrder::Gguf, &column, 8).unwrap();
        assert_eq!(gguf.decode().unwrap(), expected);
        let back = RowOrder::Gguf.reorder(RowOrder::HuggingFace, &gguf, 8).unwrap();
        assert_eq!(back.decode().unwrap(), hf);
        let row = Tensor::encode(Format::F16, 1, 16, &hf).unwrap();
        let row = RowOrder::HuggingFace.reorder_vector(RowOrder::Gguf, &row, 8).unwrap();
        assert_eq!(row.decode().unwrap(), expected);
    }

    #[test]
    fn maps_are_inverse() {
        for head_dim in [2, 4, 6, 16, 64, 96, 128] {
            for row in 0..3 * head_dim {
                assert_eq!(hf_row(gguf_row(row, head_dim), head_dim), row);
                assert_eq!(gguf_row(hf_row(row, head_dim), head_dim), row);
                assert_eq!(gguf_row(row, head_dim) / head_dim, row / head_dim, "rows stay in their head");
            }
        }
    }

    #[test]
    fn odd_heads_and_ragged_rows_are_refused() {
        let column = Tensor::encode(Format::F32, 16, 1, &[1.0; 16]).unwrap();
        for head_dim in [0, 3, 5, 6, 32] {
            assert!(RowOrder::Gguf.reorder(RowOrder::HuggingFace, &column, head_dim).is_err(), "{head_dim}");
        }
    }
}
