//! The forward pass of every decoder of the family, on any backend.

use std::ops::Range;

use graftwork_adapters::{Module, Site};
use graftwork_kernels::backend::{Angles, Backend, Output, Span, StepShape, Vector};
use graftwork_kernels::tensor;

use super::config::Config;
use super::graft::{self, Grafts, HookGrafts, LinearGrafts, Part};
use super::weights::{Linear, Model};
use crate::batch::Batch;

/// The activations of a step; kept between steps, so that their memory is.
pub struct Scratch<B: Backend> {
    /// The residual stream, `[rows, hidden]`.
    x: B::Rows,
    /// Normalised `x`.
    n: B::Rows,
    /// Queries `[rows, heads * head_dim]`, keys and values `[rows, kv_heads * head_dim]`.
    q: B::Rows,
    k: B::Rows,
    v: B::Rows,
    /// What attention gives, `[rows, heads * head_dim]`.
    a: B::Rows,
    /// The two inner activations of the feed-forward block, `[rows, ffn]`.
    gate: B::Rows,
    up: B::Rows,
    /// A copy of `n` for a layer whose input adapters change; no rows where none do.
    changed: B::Rows,
    /// The rows of `x` and `a` whose logits are wanted.
    x_out: B::Rows,
    a_out: B::Rows,
    /// The answer of [`forward`], `[outputs, vocab]`.
    pub logits: B::Rows,
    /// What belongs to it for requests whose adapters have tokens of their own.
    pub more: Vec<More<B>>,
}

/// Logits of tokens that the base does not have.
pub struct More<B: Backend> {
    /// Whose: these of the outputs.
    pub outputs: Range<usize>,
    /// The head's input for them.
    n: B::Rows,
    /// `[outputs, tokens]`.
    pub logits: B::Rows,
}

impl<B: Backend> Scratch<B> {
    /// Room for the activations of `model`.
    pub fn new(backend: &mut B, model: &Model<B::Device>) -> Self {
        let c = &model.config;
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        Self {
            x: backend.rows(c.hidden),
            n: backend.rows(c.hidden),
            q: backend.rows(q),
            k: backend.rows(kv),
            v: backend.rows(kv),
            a: backend.rows(q),
            gate: backend.rows(c.ffn),
            up: backend.rows(c.ffn),
            changed: backend.rows(c.hidden),
            x_out: backend.rows(c.hidden),
            a_out: backend.rows(q),
            logits: backend.rows(c.vocab),
            more: Vec::new(),
        }
    }

    /// Bytes that these keep in memory, and what the backend keeps for its operations on them.
    pub fn bytes(&self, backend: &B) -> usize {
        let Self { x, n, q, k, v, a, gate, up, changed, x_out, a_out, logits, more } = self;
        let held = |rows: &B::Rows| backend.held_bytes(rows);
        [x, n, q, k, v, a, gate, up, changed, x_out, a_out, logits].map(held).iter().sum::<usize>()
            + more.iter().map(|more| held(&more.n) + held(&more.logits)).sum::<usize>()
            + backend.reserved_bytes()
    }

    /// What [`Scratch::bytes`] comes to at most for steps of up to `rows` rows, `outputs` of them with logits, whose adapters take `low`
    /// values of each; with any, inputs may change, and positions be given, too.
    pub fn most_bytes(backend: &B, c: &Config, (rows, outputs): (usize, usize), low: usize) -> usize {
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        // `narrow` exchanges `x` and `a` with their counterparts, so that in time all have all rows.
        let all = [c.hidden, c.hidden, c.hidden, q, q, q, kv, kv, c.ffn, c.ffn];
        let activations = all.map(|cols| backend.activation_bytes(rows, cols));
        let given = GIVEN.saturating_sub(rows);
        let adapters = [backend.activation_bytes(rows, c.hidden), backend.activation_bytes(given, 2 * kv)];
        let others = [
            backend.activation_bytes(outputs, c.vocab),
            backend.scratch_bytes(&step_shape(c, rows, rows.saturating_mul(low))),
        ];
        let all = activations.iter().chain(if low > 0 { &adapters[..] } else { &[] }).chain(&others);
        all.fold(0, |sum, &bytes| sum.saturating_add(bytes))
    }

    fn resize(&mut self, backend: &mut B, rows: usize, outputs: usize) -> Result<(), tensor::Error> {
        let Self { x, n, q, k, v, a, gate, up, changed: _, x_out, a_out, logits, more: _ } = self;
        for buffer in [x, n, q, k, v, a, gate, up] {
            backend.resize(buffer, rows)?;
        }
        for buffer in [x_out, a_out, logits] {
            backend.resize(buffer, outputs)?;
        }
        Ok(())
    }

    /// Goes on with the rows `outputs` alone.
    fn narrow(&mut self, backend: &mut B, outputs: &[usize]) -> Result<(), tensor::Error> {
        backend.select(&mut self.x_out, &self.x, outputs);
        backend.select(&mut self.a_out, &self.a, outputs);
        std::mem::swap(&mut self.x, &mut self.x_out);
        std::mem::swap(&mut self.a, &mut self.a_out);
        for buffer in [&mut self.n, &mut self.gate, &mut self.up] {
            backend.resize(buffer, outputs.len())?;
        }
        Ok(())
    }
}

/// What follows a forward pass.
pub struct Watch<'a, B: Backend> {
    /// Asked before every layer, half a layer, part of a long attention, and the head; once it says no, the pass ends and gives
    /// `false`: nothing then counts as computed, and the same batch may be run again.
    pub go_on: &'a dyn Fn() -> bool,
    /// Is shown the input of linear layers of a block, once for all that share it: of the query projection, of the output projection,
    /// of the gate and of the down projection. That of the last block has the rows of the outputs alone from attention's output on.
    pub input: &'a mut Inputs<'a, B>,
    /// Is shown the residual stream: what goes into the first block (0), what comes out of block `l` (`l + 1`), but after the last
    /// block that after the norm, of the rows of the outputs alone.
    pub state: &'a mut States<'a, B>,
}

/// Takes the input of a linear layer.
pub type Inputs<'a, B> = dyn FnMut(&mut B, usize, Module, &<B as Backend>::Rows) + 'a;

/// Takes the residual stream after so many blocks.
pub type States<'a, B> = dyn FnMut(&mut B, usize, &<B as Backend>::Rows) + 'a;

/// Computes the logits of the batch's outputs into `s.logits` and stores its keys and values in `cache`; `false` if `watch` ended it.
pub fn forward<B: Backend>(
    backend: &mut B,
    model: &Model<B::Device>,
    cache: &mut B::Cache,
    s: &mut Scratch<B>,
    batch: &Batch<'_>,
    watch: Watch<'_, B>,
) -> Result<bool, tensor::Error> {
    let Watch { go_on, input, state } = watch;
    let c = &model.config;
    s.resize(backend, batch.tokens.len(), batch.outputs.len())?;
    let mut grafts = Grafts::<B>::of(batch);
    if grafts.change_shared_inputs() {
        backend.resize(&mut s.changed, batch.tokens.len())?;
    }
    if !batch.given.is_empty() {
        resize(backend, (&mut s.k, &mut s.v), GIVEN.max(batch.tokens.len()))?;
    }
    backend.reserve(&step_shape(c, batch.tokens.len(), grafts.low()))?;
    let pairs = batch.tokens.len().saturating_mul(c.rope.rotary / 2);
    let (mut cos, mut sin) = (tensor::reserved(pairs)?, tensor::reserved(pairs)?);
    for &position in &batch.positions {
        model.frequencies.angles(position, &mut cos, &mut sin);
    }
    let angles = Angles { cos: &cos, sin: &sin, rotary: c.rope.rotary, layout: c.rope.layout };
    let scale = 1.0 / (c.head_dim as f32).sqrt();
    let parts = attention_parts(&batch.spans);
    s.more.clear();
    for (outputs, _, tokens) in grafts.more() {
        let (mut n, mut logits) = (backend.rows(c.hidden), backend.rows(tokens));
        backend.resize(&mut n, outputs.len())?;
        backend.resize(&mut logits, outputs.len())?;
        s.more.push(More { outputs, n, logits });
    }
    // Tokens that only adapters have get their embedding from these.
    let mut known = tensor::reserved(batch.tokens.len())?;
    known.extend(batch.tokens.iter().map(|&token| if (token as usize) < c.vocab { token } else { 0 }));
    let mut rows = batch.tokens.len();
    backend.step(|b| {
        b.embed(&mut s.x, &model.embedding, &known);
        b.adapt_embedding(&mut s.x, &batch.tokens, &grafts.embedding());
        b.adapt_embedding(&mut s.x, &batch.virtual_tokens, &graft::virtual_tokens(batch));
        for (l, layer) in model.layers.iter().enumerate() {
            if !go_on() {
                return Ok(false);
            }
            state(b, l, &s.x);
            give(b, (cache, l), (&mut s.k, &mut s.v), batch)?;
            norm(
                b,
                (&mut s.n, &s.x, rows),
                (&layer.attention_norm, c.norm_eps),
                grafts.norms(Site::AttentionNorm { layer: l }),
            );
            input(b, l, Module::Q, &s.n);
            let [q, k, v] = [Module::Q, Module::K, Module::V].map(|module| grafts.at(l, module));
            shared(
                b,
                (&s.n, &mut s.changed),
                [
                    (output(&mut s.q, &layer[Module::Q], &q), &q),
                    (output(&mut s.k, &layer[Module::K], &k), &k),
                    (output(&mut s.v, &layer[Module::V], &v), &v),
                ],
            )?;
            b.rotate(&mut s.q, c.heads, &angles);
            b.rotate(&mut s.k, c.kv_heads, &angles);
            b.store(cache, l, (&s.k, &s.v), &batch.spans);
            for part in &parts {
                if !go_on() {
                    return Ok(false);
                }
                b.attend(&mut s.a, &s.q, (cache, l), part, scale);
            }
            if l + 1 == model.layers.len() && batch.outputs.len() < batch.tokens.len() {
                // Nothing attends to the others any more.
                s.narrow(b, &batch.outputs)?;
                grafts = grafts.of_outputs();
                rows = batch.outputs.len();
            }
            let o = grafts.at(l, Module::O);
            b.adapt(&mut s.a, &o.inputs);
            input(b, l, Module::O, &s.a);
            let hooks = grafts.around(l, Part::Attention);
            residual(b, (&mut s.x, &mut s.n), &s.a, (&layer[Module::O], &o), &hooks);

            if !go_on() {
                return Ok(false);
            }
            norm(
                b,
                (&mut s.n, &s.x, rows),
                (&layer.ffn_norm, c.norm_eps),
                grafts.norms(Site::FfnNorm { layer: l }),
            );
            input(b, l, Module::Gate, &s.n);
            let [gate, up] = [Module::Gate, Module::Up].map(|module| grafts.at(l, module));
            shared(
                b,
                (&s.n, &mut s.changed),
                [
                    (output(&mut s.gate, &layer[Module::Gate], &gate), &gate),
                    (output(&mut s.up, &layer[Module::Up], &up), &up),
                ],
            )?;
            b.gate(&mut s.gate, &s.up, c.activation);
            let down = grafts.at(l, Module::Down);
            b.adapt(&mut s.gate, &down.inputs);
            input(b, l, Module::Down, &s.gate);
            let hooks = grafts.around(l, Part::Ffn);
            residual(b, (&mut s.x, &mut s.n), &s.gate, (&layer[Module::Down], &down), &hooks);
        }
        if !go_on() {
            return Ok(false);
        }
        norm(b, (&mut s.n, &s.x, rows), (&model.norm, c.norm_eps), grafts.norms(Site::Norm));
        state(b, model.layers.len(), &s.n);
        b.linear(&s.n, &mut [output(&mut s.logits, &model.head, &grafts.head())]);
        for (more, (_, weight, _)) in s.more.iter_mut().zip(grafts.more()) {
            let outputs: Vec<usize> = more.outputs.clone().collect();
            b.select(&mut more.n, &s.n, &outputs);
            let y = &mut more.logits;
            b.linear(&more.n, &mut [Output { y, weight, bias: None, accumulate: false, grafts: &[] }]);
        }
        Ok(true)
    })
}

/// The largest operations of a pass over `rows` rows whose adapters' low-rank activations have up to `low` values.
pub fn step_shape(config: &Config, rows: usize, low: usize) -> StepShape {
    StepShape {
        rows,
        inputs: config.hidden.max(config.heads * config.head_dim).max(config.ffn),
        low,
        group: config.heads / config.kv_heads,
        head_dim: config.head_dim,
    }
}

/// Rows times positions of one call of [`Backend::attend`]: some milliseconds of a small model.
const ATTENDED: usize = 1 << 18;

/// Cuts a step's attention into calls short enough to give up between them.
fn attention_parts<'a>(spans: &[Span<'a>]) -> Vec<Vec<Span<'a>>> {
    let (mut parts, mut part, mut room) = (Vec::new(), Vec::new(), ATTENDED);
    for span in spans {
        let (mut start, end) = (span.rows.start, span.rows.end);
        while start < end {
            let position = span.position + start - span.rows.start;
            // The rows see at least what the first of them sees: a few too many cost nothing but promptness.
            let fit = (room / (position + 1)).max(usize::from(room == ATTENDED));
            if fit == 0 {
                parts.push(std::mem::take(&mut part));
                room = ATTENDED;
                continue;
            }
            let rows = start..end.min(start + fit);
            room = room.saturating_sub(rows.len() * (position + rows.len()));
            start = rows.end;
            part.push(Span { rows, position, pages: span.pages });
        }
    }
    parts.push(part);
    parts
}

/// Gives keys and values this number of rows.
fn resize<B: Backend>(
    b: &mut B,
    (k, v): (&mut B::Rows, &mut B::Rows),
    rows: usize,
) -> Result<(), tensor::Error> {
    b.resize(k, rows)?;
    b.resize(v, rows)
}

/// Given positions that are stored at once, where a step has fewer rows.
const GIVEN: usize = 64;

/// Stores the keys and values that adapters give for a layer, by way of `k` and `v`, which have the batch's rows before and
/// after.
fn give<B: Backend>(
    b: &mut B,
    (cache, layer): (&mut B::Cache, usize),
    (k, v): (&mut B::Rows, &mut B::Rows),
    batch: &Batch<'_>,
) -> Result<(), tensor::Error> {
    if batch.given.is_empty() {
        return Ok(());
    }
    for given in &batch.given {
        let [keys, values] = graft::given::<B>(given, layer);
        let at_once = GIVEN.max(batch.tokens.len());
        for (part, own) in given.own.chunks(at_once).enumerate() {
            resize(b, (k, v), own.len())?;
            b.embed(k, keys, own);
            b.embed(v, values, own);
            let position = given.span.position + part * at_once;
            let span = Span { rows: 0..own.len(), position, pages: given.span.pages };
            b.store(cache, layer, (k, v), &[span]);
        }
    }
    resize(b, (k, v), batch.tokens.len())
}

/// [`Backend::rms_norm`] of all rows, those of `others` with their own weights.
fn norm<'a, B: Backend>(
    b: &mut B,
    (y, x, rows): (&mut B::Rows, &B::Rows, usize),
    (weight, eps): (&Vector<B>, f32),
    others: impl Iterator<Item = (Range<usize>, &'a Vector<B>)>,
) {
    b.rms_norm(y, x, 0..rows, weight, eps);
    for (rows, weight) in others {
        b.rms_norm(y, x, rows, weight, eps);
    }
}

/// An output of a linear layer and what changes that.
type Adapted<'a, B> = (Output<'a, B>, &'a LinearGrafts<'a, B>);

/// [`Backend::linear`] of layers with the input `x`; those whose input adapters change have a copy each.
fn shared<B: Backend, const N: usize>(
    b: &mut B,
    (x, copy): (&B::Rows, &mut B::Rows),
    outputs: [Adapted<'_, B>; N],
) -> Result<(), tensor::Error> {
    if outputs.iter().all(|(_, grafts)| grafts.inputs.is_empty()) {
        b.linear(x, &mut outputs.map(|(output, _)| output));
        return Ok(());
    }
    let (mut same, mut own) = (Vec::with_capacity(outputs.len()), Vec::new());
    for (output, grafts) in outputs {
        match grafts.inputs.is_empty() {
            true => same.push(output),
            false => own.push((output, grafts)),
        }
    }
    if !same.is_empty() {
        b.linear(x, &mut same);
    }
    for (output, grafts) in own {
        b.copy(copy, x)?;
        b.adapt(copy, &grafts.inputs);
        b.linear(copy, &mut [output]);
    }
    Ok(())
}

/// `x += W y + bias`, grafted, for the residual stream `x`, with what changes that before and after; what is added goes through
/// `own` where something changes it.
fn residual<B: Backend>(
    b: &mut B,
    (x, own): (&mut B::Rows, &mut B::Rows),
    y: &B::Rows,
    (linear, grafts): (&Linear<B::Device>, &LinearGrafts<'_, B>),
    hooks: &HookGrafts<'_, B>,
) {
    b.adapt(x, &hooks.before);
    if hooks.own.is_empty() {
        b.linear(y, &mut [added(x, linear, grafts)]);
    } else {
        b.linear(y, &mut [output(own, linear, grafts)]);
        b.adapt(own, &hooks.own);
        b.add(x, own);
    }
    b.adapt(x, &hooks.after);
}

/// `y = W x + bias`, grafted.
fn output<'a, B: Backend>(
    y: &'a mut B::Rows,
    linear: &'a Linear<B::Device>,
    grafts: &'a LinearGrafts<'a, B>,
) -> Output<'a, B> {
    let grafts = &grafts.outputs[..];
    Output { y, weight: &linear.weight, bias: linear.bias.as_ref(), accumulate: false, grafts }
}

/// `y += W x + bias`, grafted.
fn added<'a, B: Backend>(
    y: &'a mut B::Rows,
    linear: &'a Linear<B::Device>,
    grafts: &'a LinearGrafts<'a, B>,
) -> Output<'a, B> {
    Output { accumulate: true, ..output(y, linear, grafts) }
}
