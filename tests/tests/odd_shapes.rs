//! Models and adapters whose sizes fit no vector, no block and no page, against the definition written out in f64.

use graftwork::{Bytes, Engine, EngineOptions, Event, Format, Request};
use graftwork_adapters::file::{GgufWriter, gguf::Value};
use graftwork_kernels::Tensor;

/// The sizes of one model.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: usize,
    /// Its matrices' format.
    format: Format,
}

const LAYERS: usize = 2;
const EPS: f64 = 1e-5;
const THETA: f64 = 1000.0;

const MODELS: [Sizes; 5] = [
    Sizes { hidden: 24, heads: 3, kv_heads: 1, head_dim: 6, ffn: 20, vocab: 37, format: Format::F32 },
    Sizes { hidden: 7, heads: 1, kv_heads: 1, head_dim: 2, ffn: 1, vocab: 3, format: Format::F16 },
    Sizes { hidden: 50, heads: 10, kv_heads: 5, head_dim: 34, ffn: 33, vocab: 130, format: Format::BF16 },
    Sizes { hidden: 17, heads: 6, kv_heads: 3, head_dim: 18, ffn: 65, vocab: 16, format: Format::F32 },
    Sizes { hidden: 96, heads: 2, kv_heads: 2, head_dim: 80, ffn: 224, vocab: 50, format: Format::F32 },
];

/// A stream of values in (-1, 1), the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2.0
    }

    /// A matrix whose products keep the size of their inputs.
    fn matrix(&mut self, format: Format, rows: usize, cols: usize) -> Tensor {
        let scale = (3.0 / cols as f32).sqrt();
        let values: Vec<f32> = (0..rows * cols).map(|_| self.next() * scale).collect();
        Tensor::encode(format, rows, cols, &values).unwrap()
    }
}

/// `(A, B)` of every linear layer, by layer.
type Factors = Vec<Vec<(Matrix, Matrix)>>;

/// A matrix in f64, `[rows, cols]`.
#[derive(Clone)]
struct Matrix {
    rows: usize,
    cols: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn of(tensor: &Tensor) -> Self {
        let values = tensor.decode().unwrap().into_iter().map(f64::from).collect();
        Self { rows: tensor.rows(), cols: tensor.cols(), values }
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.cols..][..self.cols]
    }

    fn times(&self, x: &[f64]) -> Vec<f64> {
        assert_eq!(x.len(), self.cols);
        (0..self.rows).map(|row| self.row(row).iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    }

    /// `W + scale B A`: the adapter merged.
    fn add(&mut self, scale: f64, a: &Matrix, b: &Matrix) {
        for row in 0..self.rows {
            for col in 0..self.cols {
                let change: f64 = (0..a.rows).map(|r| b.row(row)[r] * a.row(r)[col]).sum();
                self.values[row * self.cols + col] += scale * change;
            }
        }
    }
}

/// The linear layers of a block with their shapes `[outputs, inputs]`.
fn linears(s: Sizes) -> [(&'static str, usize, usize); 7] {
    let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    [
        ("attn_q", q, s.hidden),
        ("attn_k", kv, s.hidden),
        ("attn_v", kv, s.hidden),
        ("attn_output", s.hidden, q),
        ("ffn_gate", s.ffn, s.hidden),
        ("ffn_up", s.ffn, s.hidden),
        ("ffn_down", s.hidden, s.ffn),
    ]
}

/// A model: its file, and its matrices for the definition.
struct Model {
    sizes: Sizes,
    file: Bytes,
    embedding: Matrix,
    head: Matrix,
    /// By layer, in the order of [`linears`].
    layers: Vec<Vec<Matrix>>,
    /// Two norms of each layer, then the last.
    norms: Vec<Matrix>,
}

fn written(file: &GgufWriter) -> Bytes {
    let mut out = Vec::new();
    file.write(&mut out).unwrap();
    Bytes::new(out)
}

impl Model {
    fn new(sizes: Sizes, random: &mut Random) -> Self {
        let s = sizes;
        let mut file = GgufWriter::new();
        file.key("general.architecture", Value::Str("llama".into()));
        for (key, size) in [
            ("embedding_length", s.hidden),
            ("block_count", LAYERS),
            ("feed_forward_length", s.ffn),
            ("attention.head_count", s.heads),
            ("attention.head_count_kv", s.kv_heads),
            ("attention.key_length", s.head_dim),
            ("attention.value_length", s.head_dim),
            ("context_length", 200),
        ] {
            file.key(format!("llama.{key}"), Value::U32(size as u32));
        }
        file.key("llama.attention.layer_norm_rms_epsilon", Value::F32(EPS as f32));
        file.key("llama.rope.freq_base", Value::F32(THETA as f32));
        let mut tensor = |file: &mut GgufWriter, name: &str, format, rows, cols| {
            let tensor = random.matrix(format, rows, cols);
            let matrix = Matrix::of(&tensor);
            file.tensor(format!("{name}.weight"), tensor);
            matrix
        };
        let embedding = tensor(&mut file, "token_embd", s.format, s.vocab, s.hidden);
        let head = tensor(&mut file, "output", s.format, s.vocab, s.hidden);
        let (mut layers, mut norms) = (Vec::new(), Vec::new());
        for layer in 0..LAYERS {
            layers.push(
                linears(s)
                    .map(|(name, rows, cols)| {
                        tensor(&mut file, &format!("blk.{layer}.{name}"), s.format, rows, cols)
                    })
                    .into(),
            );
            for norm in ["attn_norm", "ffn_norm"] {
                norms.push(tensor(&mut file, &format!("blk.{layer}.{norm}"), Format::F32, 1, s.hidden));
            }
        }
        norms.push(tensor(&mut file, "output_norm", Format::F32, 1, s.hidden));
        Self { sizes, file: written(&file), embedding, head, layers, norms }
    }

    /// A GGUF LoRA on every linear layer, and its factors.
    fn lora(&self, rank: usize, random: &mut Random) -> (Bytes, Factors) {
        let mut file = GgufWriter::new();
        for (key, value) in
            [("general.type", "adapter"), ("general.architecture", "llama"), ("adapter.type", "lora")]
        {
            file.key(key, Value::Str(value.into()));
        }
        file.key("adapter.lora.alpha", Value::F32(rank as f32));
        let mut factors = Vec::new();
        for layer in 0..LAYERS {
            let mut of_layer = Vec::new();
            for (name, outputs, inputs) in linears(self.sizes) {
                let a = random.matrix(Format::F16, rank, inputs);
                let b = random.matrix(Format::F32, outputs, rank);
                of_layer.push((Matrix::of(&a), Matrix::of(&b)));
                file.tensor(format!("blk.{layer}.{name}.weight.lora_a"), a);
                file.tensor(format!("blk.{layer}.{name}.weight.lora_b"), b);
            }
            factors.push(of_layer);
        }
        (written(&file), factors)
    }

    /// The logits `[tokens, vocab]` by the definition.
    fn logits(&self, tokens: &[u32]) -> Vec<f64> {
        let s = self.sizes;
        let norm = |x: &[f64], which: usize| -> Vec<f64> {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            x.iter().zip(self.norms[which].row(0)).map(|(x, w)| x * w / (mean + EPS).sqrt()).collect()
        };
        let rotate = |x: &mut [f64], position: usize| {
            for head in x.chunks_exact_mut(s.head_dim) {
                for (i, pair) in head.chunks_exact_mut(2).enumerate() {
                    let angle = position as f64 * THETA.powf(-2.0 * i as f64 / s.head_dim as f64);
                    let (a, b) = (pair[0], pair[1]);
                    pair[0] = a * angle.cos() - b * angle.sin();
                    pair[1] = a * angle.sin() + b * angle.cos();
                }
            }
        };
        let mut cache = vec![Vec::<(Vec<f64>, Vec<f64>)>::new(); LAYERS];
        let mut logits = Vec::new();
        for (position, &token) in tokens.iter().enumerate() {
            let mut x = self.embedding.row(token as usize).to_vec();
            for (l, layer) in self.layers.iter().enumerate() {
                let n = norm(&x, 2 * l);
                let [mut q, mut k, v] = [0, 1, 2].map(|i| layer[i].times(&n));
                rotate(&mut q, position);
                rotate(&mut k, position);
                cache[l].push((k, v));
                let mut attended = Vec::new();
                for (h, q) in q.chunks_exact(s.head_dim).enumerate() {
                    let at = h * s.kv_heads / s.heads * s.head_dim;
                    let dot =
                        |k: &[f64]| q.iter().zip(&k[at..][..s.head_dim]).map(|(q, k)| q * k).sum::<f64>();
                    let weights: Vec<f64> =
                        cache[l].iter().map(|(k, _)| (dot(k) / (s.head_dim as f64).sqrt()).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    attended.extend((0..s.head_dim).map(|d| {
                        weights.iter().zip(&cache[l]).map(|(w, (_, v))| w / sum * v[at + d]).sum::<f64>()
                    }));
                }
                for (x, y) in x.iter_mut().zip(layer[3].times(&attended)) {
                    *x += y;
                }
                let n = norm(&x, 2 * l + 1);
                let (gate, up) = (layer[4].times(&n), layer[5].times(&n));
                let inner: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                for (x, y) in x.iter_mut().zip(layer[6].times(&inner)) {
                    *x += y;
                }
            }
            logits.extend(self.head.times(&norm(&x, 2 * LAYERS)));
        }
        logits
    }

    /// The model with adapters merged: `W + sum of weight B A`.
    fn merged(&self, adapters: &[(&Factors, f64)]) -> Self {
        let mut layers = self.layers.clone();
        for (factors, weight) in adapters {
            for (layer, factors) in layers.iter_mut().zip(*factors) {
                for (matrix, (a, b)) in layer.iter_mut().zip(factors) {
                    matrix.add(*weight, a, b);
                }
            }
        }
        let (embedding, head) = (self.embedding.clone(), self.head.clone());
        Self {
            sizes: self.sizes,
            file: self.file.clone(),
            embedding,
            head,
            layers,
            norms: self.norms.clone(),
        }
    }
}

/// Applied is merged, alone and stacked, in any format and at any size; and all that may not matter does not: threads,
/// chunks of the prompt, company.
#[test]
fn odd_sizes_compute_the_definition() {
    for (seed, sizes) in (1..).zip(MODELS) {
        let mut random = Random(seed);
        let model = Model::new(sizes, &mut random);
        let (one, one_factors) = model.lora(1, &mut random);
        let (odd, odd_factors) = model.lora(19, &mut random);
        let tokens: Vec<u32> = (0..71).map(|i| (i * i + 3 * i) % sizes.vocab as u32).collect();
        let stacks: [(&[(&str, f32)], Model); 4] = [
            (&[], model.merged(&[])),
            (&[("one", 0.8)], model.merged(&[(&one_factors, f64::from(0.8f32))])),
            (&[("odd", -0.5)], model.merged(&[(&odd_factors, -0.5)])),
            (&[("odd", 0.25), ("one", 1.5)], model.merged(&[(&odd_factors, 0.25), (&one_factors, 1.5)])),
        ];
        let mut bits: Vec<Vec<Vec<f32>>> = Vec::new();
        for (threads, prefill_chunk) in [(1, 512), (2, 5), (3, 1)] {
            let options = EngineOptions { threads, prefill_chunk, ..EngineOptions::default() };
            let engine = Engine::open(model.file.clone(), options).unwrap();
            engine.load_adapter("one", one.clone()).unwrap();
            engine.load_adapter("odd", odd.clone()).unwrap();
            let mut found = Vec::new();
            for (stack, merged) in &stacks {
                let stack: Vec<_> = stack.iter().map(|&(name, weight)| (name.to_owned(), weight)).collect();
                let logits = engine.logits(&tokens, &stack).unwrap();
                let expected = merged.logits(&tokens);
                let worst = logits.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs());
                let worst = worst.fold(0.0, f64::max);
                // f32 sums of up to 340 products of the order of 1 in two layers, each with an error of 6e-8 of
                // the running sum, grown by attention and the norms by less than a factor of ten.
                assert!(worst < 1e-3, "{sizes:?}, {stack:?}: {worst}");
                found.push(logits);
                let request = Request { adapters: stack, logits: true, ..Request::new(tokens.clone()) };
                engine.submit(request.max_tokens(4)).unwrap();
            }
            let mut company = vec![Vec::new(); stacks.len()];
            while !engine.is_idle() {
                for event in engine.step().unwrap() {
                    if let Event::Token { id, logits: Some(logits), .. } = event {
                        company[id.get() as usize - 1].extend(logits);
                    }
                }
            }
            found.extend(company);
            bits.push(found);
        }
        assert!(bits[0] == bits[1] && bits[0] == bits[2], "{sizes:?}");
    }
}
