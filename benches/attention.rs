//! Attention of one row, as in decoding, and of a step of a prompt, over long contexts, for everything that a KV cache can
//! store. `GRAFTWORK_ISA` names the only instruction set.

use graftwork_benches::{isas, median_seconds, random_values};
use graftwork_kernels::backend::{Backend, CacheShape, PAGE, Span, StepShape};
use graftwork_kernels::cpu::{Cache, Cpu, Rows, limits};
use graftwork_kernels::{Format, Tensor};

/// Query heads, key-value heads, and their width.
const SHAPES: [(usize, usize, usize); 3] = [(32, 4, 64), (32, 8, 128), (16, 16, 128)];

/// Layers: enough that what a decode step reads comes from memory, as in a model.
const LAYERS: usize = 16;

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for isa in isas() {
        let mut cpu = Cpu::new(threads, isa).expect("threads");
        let read = limits::Memory::new().bytes_per_second(&mut cpu, 5);
        println!("{} with {threads} threads: reads {:.1} GB/s", isa.name(), read / 1e9);
        for (heads, kv_heads, head_dim) in SHAPES {
            for (rows, context) in [(1, 512), (1, 4096), (256, 4096)] {
                for format in [Format::F16, Format::F32, Format::Q8_0] {
                    let shape = CacheShape { layers: LAYERS, kv_heads, head_dim, format };
                    let mut bench = Bench::new(&mut cpu, shape, heads, context);
                    bench.prove();
                    let seconds = bench.seconds(rows) / LAYERS as f64;
                    let bytes = (context.div_ceil(PAGE) * shape.page_bytes() / LAYERS) as f64;
                    println!(
                        "{heads:>2} heads on {kv_heads:>2} of {head_dim:>3}, {rows:>3} rows at {context}, {:>4}: {:8.1} us a layer, {:5.1} ns a query and page, cache read at {:4.1} GB/s",
                        format.name(),
                        seconds * 1e6,
                        seconds * 1e9 * threads as f64 / (rows * heads * context / PAGE) as f64,
                        bytes / seconds / 1e9,
                    );
                }
            }
        }
    }
}

/// A cache that is full of random keys and values.
struct Bench<'a> {
    cpu: &'a mut Cpu,
    cache: Cache,
    shape: CacheShape,
    heads: usize,
    context: usize,
    pages: Vec<u32>,
}

impl<'a> Bench<'a> {
    fn new(cpu: &'a mut Cpu, shape: CacheShape, heads: usize, context: usize) -> Self {
        let cache = cpu.cache(shape);
        let pages: Vec<u32> = (0..context.div_ceil(PAGE) as u32).collect();
        let mut bench = Self { cpu, cache, shape, heads, context, pages };
        bench.cpu.grow(&mut bench.cache, bench.pages.len()).expect("memory");
        let cols = shape.kv_heads * shape.head_dim;
        let (k, v) = (bench.rows(context, cols, 1), bench.rows(context, cols, 2));
        let spans = [Span { rows: 0..context, position: 0, pages: &bench.pages }];
        for layer in 0..shape.layers {
            bench.cpu.store(&mut bench.cache, layer, (&k, &v), &spans);
        }
        bench
    }

    fn rows(&mut self, rows: usize, cols: usize, seed: u64) -> Rows {
        let table =
            Tensor::encode(Format::F32, rows, cols, &random_values(rows * cols, seed)).expect("whole rows");
        let mut x = self.cpu.rows(cols);
        self.cpu.resize(&mut x, rows).expect("memory");
        self.cpu.embed(&mut x, &table, &(0..rows as u32).collect::<Vec<_>>());
        x
    }

    /// Seconds of the last `rows` positions in all layers.
    fn seconds(&mut self, rows: usize) -> f64 {
        let (q, mut y) = self.queries(rows);
        let scale = self.scale();
        let spans = [Span { rows: 0..rows, position: self.context - rows, pages: &self.pages }];
        median_seconds(if rows == 1 { 11 } else { 3 }, || {
            self.cpu.step(|cpu| {
                for layer in 0..self.shape.layers {
                    cpu.attend(&mut y, &q, (&self.cache, layer), &spans, scale);
                }
            });
        })
    }

    fn queries(&mut self, rows: usize) -> (Rows, Rows) {
        let cols = self.heads * self.shape.head_dim;
        let q = self.rows(rows, cols, 3);
        let mut y = self.cpu.rows(cols);
        self.cpu.resize(&mut y, rows).expect("memory");
        let group = self.heads / self.shape.kv_heads;
        let step = StepShape { rows, group, head_dim: self.shape.head_dim, ..StepShape::default() };
        self.cpu.reserve(&step).expect("memory");
        (q, y)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.shape.head_dim as f32).sqrt()
    }

    /// The last row of the last head against softmax in f64 over values as they were before they were stored, within 1 % of the
    /// largest.
    fn prove(&mut self) {
        let (q, mut y) = self.queries(1);
        let spans = [Span { rows: 0..1, position: self.context - 1, pages: &self.pages }];
        self.cpu.attend(&mut y, &q, (&self.cache, 0), &spans, self.scale());
        let CacheShape { kv_heads, head_dim, .. } = self.shape;
        let cols = kv_heads * head_dim;
        let (k, v) = (random_values(self.context * cols, 1), random_values(self.context * cols, 2));
        let q = self.cpu.read(&q).to_vec();
        let last = |x: &[f32]| x[x.len() - head_dim..].to_vec();
        let query = last(&q);
        let score = |k: &[f32]| -> f64 {
            let products =
                query.iter().zip(&k[cols - head_dim..]).map(|(&q, &k)| f64::from(q) * f64::from(k));
            (products.sum::<f64>() * f64::from(self.scale())).exp()
        };
        let weights: Vec<f64> = k.chunks_exact(cols).map(score).collect();
        let total: f64 = weights.iter().sum();
        for (d, &found) in last(&self.cpu.read(&y)).iter().enumerate() {
            let values = v.chunks_exact(cols).map(|v| f64::from(v[cols - head_dim + d]));
            let exact: f64 = values.zip(&weights).map(|(v, w)| v * w / total).sum();
            assert!(
                (f64::from(found) - exact).abs() <= 0.01,
                "{}: {found} against {exact}",
                self.shape.format
            );
        }
    }
}
