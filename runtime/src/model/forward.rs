//! The forward pass of every decoder of the family, on any backend.

use graftwork_adapters::Module;
use graftwork_kernels::backend::{Angles, Backend, Output};
use graftwork_kernels::tensor;

use super::graft::Grafts;
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
    /// The rows whose logits are wanted: `x`, normalised, and logits `[outputs, vocab]`.
    last: B::Rows,
    last_n: B::Rows,
    /// The answer of [`forward`].
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
            last: backend.rows(c.hidden),
            last_n: backend.rows(c.hidden),
            logits: backend.rows(c.vocab),
        }
    }

    fn resize(&mut self, backend: &mut B, rows: usize, outputs: usize) -> Result<(), tensor::Error> {
        let Self { x, n, q, k, v, a, gate, up, last, last_n, logits } = self;
        for buffer in [x, n, q, k, v, a, gate, up] {
            backend.resize(buffer, rows)?;
        }
        for buffer in [last, last_n, logits] {
            backend.resize(buffer, outputs)?;
        }
        Ok(())
    }
}

/// Computes the logits of the batch's outputs into `s.logits` and stores its keys and values in `cache`.
///
/// `go_on` is asked before every layer; once it says no, the pass ends and gives `false`: nothing then
/// counts as computed, and the same batch may be run again.
pub fn forward<B: Backend>(
    backend: &mut B,
    model: &Model<B::Device>,
    cache: &mut B::Cache,
    s: &mut Scratch<B>,
    batch: &Batch<'_>,
    go_on: &dyn Fn() -> bool,
) -> Result<bool, tensor::Error> {
    let c = &model.config;
    s.resize(backend, batch.tokens.len(), batch.outputs.len())?;
    let grafts = Grafts::<B>::of(batch);
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    for &position in &batch.positions {
        model.frequencies.angles(position, &mut cos, &mut sin);
    }
    let angles = Angles { cos: &cos, sin: &sin, rotary: c.rope.rotary, layout: c.rope.layout };
    let scale = 1.0 / (c.head_dim as f32).sqrt();
    let done = backend.step(|b| {
        b.embed(&mut s.x, &model.embedding, &batch.tokens);
        for (l, layer) in model.layers.iter().enumerate() {
            if !go_on() {
                return false;
            }
            b.rms_norm(&mut s.n, &s.x, &layer.attention_norm, c.norm_eps);
            b.linear(
                &s.n,
                &mut [
                    output(&mut s.q, &layer[Module::Q], &grafts.at(l, Module::Q)),
                    output(&mut s.k, &layer[Module::K], &grafts.at(l, Module::K)),
                    output(&mut s.v, &layer[Module::V], &grafts.at(l, Module::V)),
                ],
            );
            b.rotate(&mut s.q, c.heads, &angles);
            b.rotate(&mut s.k, c.kv_heads, &angles);
            b.store(cache, l, (&s.k, &s.v), &batch.spans);
            b.attend(&mut s.a, &s.q, (cache, l), &batch.spans, scale);
            b.linear(&s.a, &mut [added(&mut s.x, &layer[Module::O], &grafts.at(l, Module::O))]);

            b.rms_norm(&mut s.n, &s.x, &layer.ffn_norm, c.norm_eps);
            b.linear(
                &s.n,
                &mut [
                    output(&mut s.gate, &layer[Module::Gate], &grafts.at(l, Module::Gate)),
                    output(&mut s.up, &layer[Module::Up], &grafts.at(l, Module::Up)),
                ],
            );
            b.gate(&mut s.gate, &s.up, c.activation);
            b.linear(&s.gate, &mut [added(&mut s.x, &layer[Module::Down], &grafts.at(l, Module::Down))]);
        }
        b.select(&mut s.last, &s.x, &batch.outputs);
        b.rms_norm(&mut s.last_n, &s.last, &model.norm, c.norm_eps);
        b.linear(&s.last_n, &mut [output(&mut s.logits, &model.head, &grafts.head())]);
        true
    });
    Ok(done)
}

type Applied<'a, B> = [graftwork_kernels::backend::Graft<'a, B>];

/// `y = W x + bias`, grafted.
fn output<'a, B: Backend>(
    y: &'a mut B::Rows,
    linear: &'a Linear<B::Device>,
    grafts: &'a Applied<'a, B>,
) -> Output<'a, B> {
    Output { y, weight: &linear.weight, bias: linear.bias.as_ref(), accumulate: false, grafts }
}

/// `y += W x + bias`, grafted.
fn added<'a, B: Backend>(
    y: &'a mut B::Rows,
    linear: &'a Linear<B::Device>,
    grafts: &'a Applied<'a, B>,
) -> Output<'a, B> {
    Output { accumulate: true, ..output(y, linear, grafts) }
}
