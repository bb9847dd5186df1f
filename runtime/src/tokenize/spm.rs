//! SentencePiece BPE: merges in the order of the vocabulary's scores, bytes for what is left.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// The mark that stands for a space inside of tokens.
pub(crate) const SPACE: &str = "\u{2581}";

/// A SentencePiece BPE model.
///
/// Starting from single characters, the neighbours whose union is the token of the highest score are joined, the
/// leftmost first among equals, until no union is a token. Characters that never became part of a token are written
/// as their bytes. This is what SentencePiece and llama.cpp compute. It differs from a list of merges derived from
/// the vocabulary, which knows neither characters outside of the vocabulary inside of tokens, nor equal scores.
#[derive(Debug)]
pub(crate) struct ScoreBpe {
    /// Id and score of every token that text can become.
    pub(crate) tokens: HashMap<String, (u32, f32)>,
    /// The id of each byte.
    pub(crate) bytes: Box<[Option<u32>; 256]>,
    /// What a byte without a token becomes.
    pub(crate) unknown: Option<u32>,
    /// Whether a run of text gets a space in front.
    pub(crate) space_prefix: bool,
}

/// Part of the text; `end` is 0 once it was joined to its left neighbour.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// A possible union of two neighbours, valid while the left one starts and the right one ends as they did.
#[derive(PartialEq)]
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    end: usize,
}

impl Eq for Merge {}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl ScoreBpe {
    /// The ids of one run of ordinary text.
    pub(crate) fn encode(&self, run: &str) -> Vec<u32> {
        let mut text = if self.space_prefix { SPACE.to_owned() } else { String::new() };
        text.push_str(&run.replace(' ', SPACE));
        let symbols = self.join(&text);
        let mut ids = Vec::with_capacity(symbols.len());
        for piece in symbols {
            match self.tokens.get(piece) {
                Some(&(id, _)) => ids.push(id),
                None => ids.extend(piece.bytes().filter_map(|b| self.bytes[usize::from(b)].or(self.unknown))),
            }
        }
        ids
    }

    /// The text as pieces, after all joins.
    fn join<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(at, (start, c))| Symbol {
                start,
                end: start + c.len_utf8(),
                previous: at.checked_sub(1),
                next: (start + c.len_utf8() < text.len()).then_some(at + 1),
            })
            .collect();
        let mut queue = BinaryHeap::with_capacity(symbols.len());
        for left in 1..symbols.len() {
            queue.extend(self.merge(text, &symbols, left - 1));
        }
        while let Some(Merge { left, right, end, .. }) = queue.pop() {
            // Stale when either part has been joined to something else in between.
            if symbols[left].end == 0 || symbols[left].next != Some(right) || symbols[right].end != end {
                continue;
            }
            let next = symbols[right].next;
            symbols[left].end = end;
            symbols[left].next = next;
            symbols[right].end = 0;
            if let Some(next) = next {
                symbols[next].previous = Some(left);
            }
            queue.extend(symbols[left].previous.and_then(|previous| self.merge(text, &symbols, previous)));
            queue.extend(self.merge(text, &symbols, left));
        }
        symbols.iter().filter(|s| s.end != 0).map(|s| &text[s.start..s.end]).collect()
    }

    /// The union of a symbol and its right neighbour, if it is a token.
    fn merge(&self, text: &str, symbols: &[Symbol], left: usize) -> Option<Merge> {
        let right = symbols[left].next?;
        let end = symbols[right].end;
        let &(_, score) = self.tokens.get(&text[symbols[left].start..end])?;
        Some(Merge { score, left, right, end })
    }
}
