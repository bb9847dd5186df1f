//! The rows of one step: any mix of prompts being read and answers being written.
//!
//! Rows with the same adapter stack are neighbours, so that each adapter works on few, long segments.

use std::ops::Range;
use std::sync::Arc;

use graftwork_kernels::backend::Span;
use graftwork_kernels::tensor::{self, reserved};

use crate::sequence::Entry;
use crate::stack::{Stack, Stacked};

/// Which of a piece's rows give logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// None: the prompt goes on.
    None,
    /// The last.
    Last,
    /// Every row of a token, not of virtual ones.
    All,
}

/// What one sequence puts into a step: tokens at consecutive positions.
#[derive(Clone, Debug)]
pub struct Piece<'a> {
    /// The adapters that its rows use.
    pub stack: &'a Stack,
    /// What stands there ([`Entry`]): tokens, virtual or not, and before them given positions.
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

/// Neighbouring rows that are virtual tokens of one adapter.
#[derive(Clone)]
pub struct VirtualRows<'a> {
    /// The adapter.
    pub adapter: &'a Stacked,
    /// The rows of the batch.
    pub rows: Range<usize>,
}

/// Positions whose keys and values one adapter gives.
#[derive(Clone)]
pub struct Given<'a> {
    /// The adapter.
    pub adapter: &'a Stacked,
    /// Which of its own.
    pub own: Vec<u32>,
    /// Where: its rows are those of `own`.
    pub span: Span<'a>,
}

/// The rows of one step, ready for the forward pass.
#[derive(Clone, Default)]
pub struct Batch<'a> {
    /// The token of every row; 0 for virtual ones.
    pub tokens: Vec<u32>,
    /// Which virtual token of its adapter a row is; 0 for others. Empty if there are none.
    pub virtual_tokens: Vec<u32>,
    /// The rows that are virtual tokens.
    pub virtual_rows: Vec<VirtualRows<'a>>,
    /// What is to be stored before the rows.
    pub given: Vec<Given<'a>>,
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
        let outputs = pieces.iter().map(|piece| match piece.outputs {
            Outputs::None => 0,
            Outputs::Last => 1,
            Outputs::All => piece.tokens.len(),
        });
        let mut batch = Self {
            tokens: reserved(rows)?,
            positions: reserved(rows)?,
            outputs: reserved(outputs.sum())?,
            ..Self::default()
        };
        for piece in pieces {
            let outputs = batch.outputs.len();
            let (given, tokens) = piece.tokens.split_at(Entry::given(piece.tokens));
            let rows = batch.tokens.len()..batch.tokens.len() + tokens.len();
            batch.give(piece, given)?;
            for (row, &number) in rows.clone().zip(tokens) {
                match Entry::of(number) {
                    Entry::Virtual(index) => batch.put(piece.stack.virtual_token(index), row)?,
                    _ => batch.tokens.push(number),
                }
            }
            batch.prompt_rows += piece.prompt - given.len();
            let position = piece.position + given.len();
            batch.positions.extend((position..position + tokens.len()).map(|position| position as u32));
            match piece.outputs {
                Outputs::None => {}
                Outputs::Last => batch.outputs.push(rows.end - 1),
                Outputs::All => {
                    let tokens = rows.clone().zip(tokens).filter(|(_, number)| Entry::is_token(**number));
                    batch.outputs.extend(tokens.map(|(row, _)| row));
                }
            }
            batch.spans.push(Span { rows: rows.clone(), position, pages: piece.pages });
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
        if !batch.virtual_tokens.is_empty() {
            batch.virtual_tokens.resize(batch.tokens.len(), 0);
        }
        Ok(batch)
    }

    /// Adds a row that is a virtual token.
    fn put(&mut self, (adapter, own): (&'a Stacked, u32), row: usize) -> Result<(), tensor::Error> {
        if self.virtual_tokens.is_empty() {
            self.virtual_tokens = reserved(self.tokens.capacity())?;
        }
        self.virtual_tokens.resize(row, 0);
        self.virtual_tokens.push(own);
        self.tokens.push(0);
        match self.virtual_rows.last_mut() {
            Some(last) if last.rows.end == row && Arc::ptr_eq(last.adapter.adapter(), adapter.adapter()) => {
                last.rows.end += 1
            }
            _ => self.virtual_rows.push(VirtualRows { adapter, rows: row..row + 1 }),
        }
        Ok(())
    }

    /// Adds the positions `given` at the start of a piece.
    fn give(&mut self, piece: &Piece<'a>, given: &[u32]) -> Result<(), tensor::Error> {
        let start = self.given.len();
        for (position, &number) in (piece.position..).zip(given) {
            let Entry::Given(index) = Entry::of(number) else { continue };
            let (adapter, own) = piece.stack.given(index);
            match self.given[start..].last_mut() {
                Some(last) if Arc::ptr_eq(last.adapter.adapter(), adapter.adapter()) => {
                    last.own.push(own);
                    last.span.rows.end += 1;
                }
                _ => {
                    let mut all = reserved(given.len())?;
                    all.push(own);
                    let span = Span { rows: 0..1, position, pages: piece.pages };
                    self.given.push(Given { adapter, own: all, span });
                }
            }
        }
        Ok(())
    }
}
