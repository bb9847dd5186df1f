//! The rows of one step: any mix of prompts being read and answers being written.
//!
//! Rows with the same adapter stack are neighbours, so that each adapter works on few, long segments.

use std::ops::Range;

use graftwork_kernels::backend::Span;
use graftwork_kernels::tensor::{self, reserved};

use crate::registry::Stack;

/// Which of a piece's rows give logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// None: the prompt goes on.
    None,
    /// The last.
    Last,
    /// Every row.
    All,
}

impl Outputs {
    /// How many of `rows` rows give logits.
    fn count(self, rows: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Last => 1,
            Self::All => rows,
        }
    }
}

/// What one sequence puts into a step: tokens at consecutive positions.
#[derive(Clone, Debug)]
pub struct Piece<'a> {
    /// The adapters that its rows use.
    pub stack: &'a Stack,
    /// The tokens.
    pub tokens: &'a [u32],
    /// Position of the first.
    pub position: usize,
    /// The sequence's pages of the KV cache, up to the last position here.
    pub pages: &'a [u32],
    /// How many of the tokens are the prompt's; the rest are the answer's.
    pub prompt: usize,
    /// Which rows give logits.
    pub outputs: Outputs,
}

/// Neighbouring rows that use one adapter stack.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    /// The stack; never empty.
    pub stack: &'a Stack,
    /// The rows of the batch.
    pub rows: Range<usize>,
    /// Those of [`Batch::outputs`] that are among them.
    pub outputs: Range<usize>,
}

/// The rows of one step, ready for the forward pass.
#[derive(Clone, Debug, Default)]
pub struct Batch<'a> {
    /// The token of every row.
    pub tokens: Vec<u32>,
    /// The position of every row.
    pub positions: Vec<u32>,
    /// The rows of each sequence.
    pub spans: Vec<Span<'a>>,
    /// The rows of each stack; rows without adapters are in none.
    pub segments: Vec<Segment<'a>>,
    /// The rows whose logits are wanted, in the order of the pieces.
    pub outputs: Vec<usize>,
    /// How many of the rows are of prompts.
    pub prompt_rows: usize,
}

impl<'a> Batch<'a> {
    /// The batch of `pieces`, in their order. Those with equal stacks should be neighbours.
    ///
    /// # Errors
    /// [`tensor::Error::OutOfMemory`].
    pub fn new(pieces: &[Piece<'a>]) -> Result<Self, tensor::Error> {
        let rows = pieces.iter().map(|piece| piece.tokens.len()).sum();
        let outputs = pieces.iter().map(|piece| piece.outputs.count(piece.tokens.len())).sum();
        let mut batch = Self {
            tokens: reserved(rows)?,
            positions: reserved(rows)?,
            outputs: reserved(outputs)?,
            ..Self::default()
        };
        for piece in pieces {
            let rows = batch.tokens.len()..batch.tokens.len() + piece.tokens.len();
            let outputs = batch.outputs.len();
            batch.tokens.extend_from_slice(piece.tokens);
            batch.prompt_rows += piece.prompt;
            let end = piece.position + piece.tokens.len();
            batch.positions.extend((piece.position..end).map(|position| position as u32));
            batch.outputs.extend(match piece.outputs {
                Outputs::None => rows.end..rows.end,
                Outputs::Last => rows.end - 1..rows.end,
                Outputs::All => rows.clone(),
            });
            batch.spans.push(Span { rows: rows.clone(), position: piece.position, pages: piece.pages });
            if piece.stack.is_empty() {
                continue;
            }
            match batch.segments.last_mut() {
                Some(last) if last.rows.end == rows.start && last.stack == piece.stack => {
                    last.rows.end = rows.end;
                    last.outputs.end = batch.outputs.len();
                }
                _ => batch.segments.push(Segment {
                    stack: piece.stack,
                    rows,
                    outputs: outputs..batch.outputs.len(),
                }),
            }
        }
        Ok(batch)
    }
}
