//! Linear layers with their grafts.
//!
//! `W x` of all rows first, then each graft in order: `low = scale A x` by the shader of linear layers on the
//! graft's rows, and `y += B low + scale bias`. Rows without grafts are not touched again.

use super::cache::{Codes, Kernel, LANES, MANY};
use super::device::{Matrix, Vector};
use super::record::Call;
use super::{Gpu, Rows};
use crate::backend::{Change, Graft, Output};

impl Gpu {
    /// [`Backend::linear`](crate::backend::Backend::linear).
    pub(super) fn multiply(&mut self, x: &Rows, outputs: &mut [Output<'_, Self>]) {
        if x.rows == 0 {
            return;
        }
        let mut start = 0;
        for Output { y, weight, bias, accumulate, grafts } in outputs {
            assert!(
                y.rows == x.rows && y.cols == weight.rows && x.cols == weight.cols,
                "linear layer [{}, {}] from rows [{}, {}] to [{}, {}]",
                weight.rows,
                weight.cols,
                x.rows,
                x.cols,
                y.rows,
                y.cols,
            );
            if let Some(bias) = bias {
                assert_eq!(bias.len, weight.rows, "length of a bias");
            }
            let (rows, stride) = (x.rows, y.stride());
            let args = [rows, 0, weight.rows, x.chunks(), stride, 0].map(|n| n as u32);
            let flags = [u32::from(bias.is_some()), u32::from(*accumulate)];
            self.product(weight, &[&args[..], &[1f32.to_bits()], &flags].concat(), (x, y.buffer(), *bias));
            for graft in *grafts {
                start = self.graft((x, y), graft, *accumulate, start);
            }
        }
    }

    /// `linear.wgsl` with these arguments.
    fn product(
        &mut self,
        weight: &Matrix,
        args: &[u32],
        (x, y, bias): (&Rows, &wgpu::Buffer, Option<&Vector>),
    ) {
        let rows = args[0] as usize;
        let tokens = if rows == 1 { 1 } else { MANY };
        self.recorder.call(&Call {
            kernel: Kernel::Linear(weight.codes, tokens),
            args,
            list: &[],
            y,
            reads: [Some(x.buffer()), Some(&weight.buffer), bias.map(|b| &b.buffer)],
            groups: (weight.rows, rows.div_ceil(tokens)),
        });
    }

    /// Adds a graft to its rows of `y`; its `scale A x` begins at `start` of the reserved memory. Gives where
    /// it ends.
    fn graft(
        &mut self,
        (x, y): (&Rows, &Rows),
        graft: &Graft<'_, Self>,
        accumulate: bool,
        start: usize,
    ) -> usize {
        let (rows, scale) = (graft.rows.len(), graft.scale.to_bits());
        assert!(graft.rows.end <= x.rows, "a graft on rows {:?} of {}", graft.rows, x.rows);
        let (first, outputs) = (graft.rows.start, y.cols);
        if rows == 0 {
            return start;
        }
        let (b, bias, rank) = match graft.change {
            Change::LowRank { inner: Some(by), .. } | Change::LowRank { outer: Some(by), .. } => match *by {},
            Change::LowRank { a, b, bias, .. } => {
                assert!(
                    a.cols == x.cols && b.cols == a.rows && b.rows == outputs,
                    "shapes of a low-rank change"
                );
                (b, bias, a.rows)
            }
            // No column of any matrix is read.
            Change::Bias(v) => return self.add(y, (None, Some(v)), (first, rows, 0), (start, scale)),
            Change::Delta(delta) | Change::Replace(delta) => {
                assert!(delta.cols == x.cols && delta.rows == outputs, "shapes of a delta");
                let keep = u32::from(matches!(graft.change, Change::Delta(_)));
                assert!(
                    keep == 1 || !accumulate,
                    "only the weight of a layer that adds to nothing is replaced"
                );
                let args = [rows, first, outputs, x.chunks(), y.stride(), first * y.stride()];
                let args = [&args.map(|n| n as u32)[..], &[scale, 0, keep]].concat();
                self.product(delta, &args, (x, y.buffer(), None));
                return start;
            }
            Change::Sparse { starts: index, .. }
            | Change::Kronecker { order: index, .. }
            | Change::Rows { outputs: index, .. } => match *index {},
            Change::Scale(scale) => match *scale {},
            Change::Bottleneck(bottleneck) => match *bottleneck {},
            Change::Generated(matrix) => match *matrix {},
        };
        let end = start + rows * rank;
        let low = self.low.clone().filter(|low| low.size() as usize >= end * size_of::<f32>());
        let low = low.expect("an operation needs more scratch than was reserved");
        if let Change::LowRank { a, .. } = graft.change {
            let args = [rows, first, rank, x.chunks(), rank, start].map(|n| n as u32);
            self.product(a, &[&args[..], &[scale, 0, 0]].concat(), (x, &low, None));
        }
        self.add(y, (Some((b, &low)), bias), (first, rows, rank), (start, scale));
        end
    }

    /// `low_rank.wgsl`: adds `B low + scale bias`, either of which may be missing, to `rows` rows from
    /// `first` on.
    fn add(
        &mut self,
        y: &Rows,
        (factor, bias): (Option<(&Matrix, &wgpu::Buffer)>, Option<&Vector>),
        (first, rows, rank): (usize, usize, usize),
        (start, scale): (usize, u32),
    ) -> usize {
        if let Some(bias) = bias {
            assert_eq!(bias.len, y.cols, "length of a graft's bias");
        }
        let args = [rows, first, y.cols, y.stride(), rank, start].map(|n| n as u32);
        self.recorder.call(&Call {
            kernel: Kernel::LowRank(factor.map_or(Codes::F32, |(b, _)| b.codes)),
            args: &[&args[..], &[scale, u32::from(bias.is_some())]].concat(),
            list: &[],
            y: y.buffer(),
            reads: [factor.map(|(_, low)| low), factor.map(|(b, _)| &b.buffer), bias.map(|b| &b.buffer)],
            groups: (y.cols.div_ceil(LANES), rows),
        });
        start
    }
}
