//! The adapters of a request, position by position.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use graftwork_adapters::check::Vocabulary;

use crate::registry::{Generation, Loaded, Resident};
use crate::text::Text;

/// The adapters that act at a position of one request, in order, each with its weight; then those, with weight 0, whose virtual
/// tokens its prompt places.
#[derive(Clone, Default)]
pub struct Stack {
    /// Those of the whole request.
    adapters: Arc<[Stacked]>,
    position: usize,
}

/// One adapter of a request.
#[derive(Clone)]
pub struct Stacked {
    adapter: Arc<Loaded>,
    weight: f32,
    /// The first position that it acts on.
    from: usize,
    /// What it has in memory, from when the request runs.
    resident: OnceLock<Arc<Resident>>,
}

impl Stacked {
    /// One that acts everywhere.
    pub fn new(adapter: Arc<Loaded>, weight: f32) -> Self {
        Self { adapter, weight, from: 0, resident: OnceLock::new() }
    }

    /// The adapter.
    pub fn adapter(&self) -> &Arc<Loaded> {
        &self.adapter
    }

    /// Its weight.
    pub fn weight(&self) -> f32 {
        self.weight
    }

    /// The first position that it acts on.
    pub fn from(&self) -> usize {
        self.from
    }

    /// What the model applies.
    ///
    /// Panics before [`Stacked::hold`]: a request runs only after that.
    pub fn bound(&self) -> &(dyn Any + Send + Sync) {
        self.resident.get().expect("in memory while its request runs").bound()
    }

    /// Keeps the adapter in memory for as long as this is there.
    pub fn hold(&self, resident: Arc<Resident>) {
        // A second time it would be the same.
        let _ = self.resident.set(resident);
    }
}

impl Stack {
    /// These adapters, from the first position on.
    pub fn new(adapters: Vec<Stacked>) -> Self {
        Self { adapters: adapters.into(), position: 0 }
    }

    /// No adapter: the base model alone.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// The adapters that act here.
    pub fn iter(&self) -> impl Iterator<Item = &Stacked> {
        self.adapters.iter().filter(|stacked| stacked.from <= self.position)
    }

    /// What distinguishes this stack from others: rows, and cached keys and values, of equal stacks can
    /// stand in for each other. The base alone comes first.
    pub fn key(&self) -> impl Iterator<Item = (Generation, u32)> {
        self.iter().map(|stacked| (stacked.adapter.generation(), stacked.weight.to_bits()))
    }

    /// The tokens that a request with these adapters has, on a base of `base` tokens.
    pub fn vocabulary(&self, base: usize) -> Vocabulary {
        let own = self.iter().find_map(|stacked| stacked.adapter.prepared().vocabulary);
        own.unwrap_or(Vocabulary { embedding: base, head: base })
    }

    /// The tokenizer that one of the adapters brings.
    pub fn text(&self) -> Option<&Text> {
        self.iter().find_map(|stacked| stacked.adapter.prepared().text.as_ref())
    }

    /// The stacks of a sequence that starts with `prompt`: adapters with an invocation sequence act from the last one on, or
    /// not at all. Gives the names of the latter, too.
    pub fn over(&self, prompt: &[u32]) -> (Stacks, Vec<&str>) {
        let (mut adapters, mut absent) = (Vec::with_capacity(self.adapters.len()), Vec::new());
        for stacked in &*self.adapters {
            match last(&stacked.adapter.prepared().invocation, prompt) {
                Some(from) => adapters.push(Stacked { from, ..stacked.clone() }),
                None => absent.push(stacked.adapter.name()),
            }
        }
        (Stacks::new(adapters), absent)
    }

    /// The stacks of a sequence in which the adapters act from these positions on.
    pub fn starting(&self, positions: &[usize]) -> Stacks {
        let adapters = self.adapters.iter().zip(positions);
        Stacks::new(adapters.map(|(stacked, &from)| Stacked { from, ..stacked.clone() }).collect())
    }
}

/// Where the last `sequence` in `tokens` starts; 0 for an empty one.
fn last(sequence: &[u32], tokens: &[u32]) -> Option<usize> {
    match sequence.len() {
        0 => Some(0),
        len => tokens.windows(len).rposition(|window| window == sequence),
    }
}

/// What a stack is to the cache of keys and values.
pub type StackKey = Vec<(Generation, u32)>;

/// The adapters of one sequence, position by position: one stack for each run of positions, each from its own on.
#[derive(Clone)]
pub struct Stacks(Vec<Stack>);

impl Stacks {
    fn new(adapters: Vec<Stacked>) -> Self {
        let mut starts: Vec<usize> = adapters.iter().map(|stacked| stacked.from).chain([0]).collect();
        starts.sort_unstable();
        starts.dedup();
        let adapters: Arc<[Stacked]> = adapters.into();
        let stack = |position| Stack { adapters: adapters.clone(), position };
        Self(starts.into_iter().map(stack).collect())
    }

    /// The adapters of the whole sequence, whatever position they act from.
    pub fn all(&self) -> &[Stacked] {
        &self.0[0].adapters
    }

    /// The same for a sequence that loses `gone` positions. It holds no adapter in memory yet.
    pub fn without(&self, gone: &Range<usize>) -> Self {
        let moved = |from: usize| match from <= gone.start {
            true => from,
            false => from.saturating_sub(gone.len()).max(gone.start),
        };
        let all = self.all().iter();
        let moved = |stacked: &Stacked| Stacked {
            from: moved(stacked.from),
            ..Stacked::new(stacked.adapter.clone(), stacked.weight)
        };
        Self::new(all.map(moved).collect())
    }

    /// The stack at a position.
    pub fn at(&self, position: usize) -> &Stack {
        // The first starts at 0.
        &self.0[self.0.partition_point(|stack| stack.position <= position) - 1]
    }

    /// Of `rows` rows from `position` on, how many have the stack of the first.
    pub fn alike(&self, position: usize, rows: usize) -> usize {
        let next = self.0.iter().find(|stack| stack.position > position);
        next.map_or(rows, |next| rows.min(next.position - position))
    }

    /// Where in `positions` another stack takes over, counted from their start, and its key, without those adapters that change
    /// nothing but where their virtual tokens stand. Before the first position there is the base alone.
    pub fn changes(&self, positions: Range<usize>) -> Vec<(usize, StackKey)> {
        let starts = self.0.iter().filter(|stack| positions.contains(&stack.position));
        let acting =
            |stack: &Stack| stack.key().filter(|&(_, weight)| f32::from_bits(weight) != 0.0).collect();
        let changes = starts.map(|stack| (stack.position - positions.start, acting(stack)));
        changes.filter(|(_, key): &(usize, StackKey)| !key.is_empty()).collect()
    }
}

impl fmt::Debug for Stacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.last().fmt(f)
    }
}

impl PartialEq for Stack {
    fn eq(&self, other: &Self) -> bool {
        self.key().eq(other.key())
    }
}

impl Eq for Stack {}

impl PartialOrd for Stack {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Stack {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(other.key())
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entry = |stacked: &Stacked| {
            format!("{}#{}:{}", stacked.adapter.name(), stacked.adapter.generation(), stacked.weight)
        };
        f.debug_list().entries(self.iter().map(entry)).finish()
    }
}
