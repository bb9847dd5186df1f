//! What was measured: lines for people, JSON for plots.

use graftwork_kernels::Format;
use graftwork_kernels::cpu::{Cpu, limits};
use serde_json::{Value, json};

/// What the machine can do: the best measured so far in this run.
#[derive(Default)]
pub struct Limits {
    /// Bytes per second that all threads read.
    pub read: f64,
    /// Multiplications and additions of 8-bit integers per second.
    pub multiply: f64,
}

impl Limits {
    /// Measures again and keeps the better: a machine with other work shows less than it can do.
    pub fn measure(&mut self, cpu: &mut Cpu) {
        self.read = self.read.max(limits::read_bytes_per_second(cpu, 9));
        self.multiply = self.multiply.max(limits::multiply_operations_per_second(cpu, 9));
    }
}

/// One layer, measured on both sides.
pub struct Row {
    /// Of the weights.
    pub format: Format,
    /// Rows of the matrix.
    pub outputs: usize,
    /// Columns of the matrix.
    pub inputs: usize,
    /// Rows of activations.
    pub rows: usize,
    /// Graftwork's median, seconds a layer.
    pub ours: f64,
    /// ggml's median for each buffer type, seconds a layer, fastest first.
    pub ggml: Vec<(String, f64)>,
    /// Whether a median is far above its best round: other work on the machine, the ratio means little.
    pub disturbed: bool,
}

impl Row {
    /// Seconds of the faster buffer type.
    fn theirs(&self) -> f64 {
        self.ggml[0].1
    }

    /// Bytes of the file's weights for one row, else operations: what limits the layer.
    fn work(&self) -> f64 {
        let weights = self.outputs * self.inputs;
        if self.rows == 1 {
            (weights / self.format.block_len() * self.format.block_bytes()) as f64
        } else {
            (2 * weights * self.rows) as f64
        }
    }

    fn limit(&self, limits: &Limits) -> f64 {
        if self.rows == 1 { limits.read } else { limits.multiply }
    }

    /// Prints the row; the ratio only if `comparable`.
    pub fn print(&self, limits: &Limits, comparable: bool) {
        let unit = if self.rows == 1 { "GB/s" } else { "GOP/s" };
        let side = |seconds: f64| {
            let rate = self.work() / seconds;
            let percent = 100.0 * rate / self.limit(limits);
            format!("{:>9.1} us {:>7.1} {unit:<5} {percent:>4.0} %", seconds * 1e6, rate / 1e9)
        };
        let shape = format!("[{}, {}] x {}", self.outputs, self.inputs, self.rows);
        let ratio =
            if comparable { format!("{:>6.2}x", self.theirs() / self.ours) } else { "      -".into() };
        let others: Vec<_> = self.ggml[1..]
            .iter()
            .map(|(name, seconds)| format!(", {name} {:.1} us", seconds * 1e6))
            .collect();
        println!(
            "{:>5} {shape:<20} {} | ggml {} {ratio}  ({}{}){}",
            self.format.name(),
            side(self.ours),
            side(self.theirs()),
            self.ggml[0].0,
            others.concat(),
            if self.disturbed { " DISTURBED" } else { "" },
        );
    }

    fn json(&self, limits: &Limits) -> Value {
        let percent = |seconds: f64| 100.0 * self.work() / seconds / self.limit(limits);
        let buffers: Vec<_> =
            self.ggml.iter().map(|(name, s)| json!({ "name": name, "seconds": s })).collect();
        json!({
            "format": self.format.name(), "outputs": self.outputs, "inputs": self.inputs, "rows": self.rows,
            "seconds": self.ours, "percent": percent(self.ours),
            "ggml_seconds": self.theirs(), "ggml_percent": percent(self.theirs()), "ggml_buffers": buffers,
            "disturbed": self.disturbed,
        })
    }
}

/// Everything as one JSON object; see the keys of a row in [`Row::json`].
pub fn document(
    isa: &str,
    ggml: &str,
    threads: usize,
    limits: &Limits,
    comparable: bool,
    rows: &[Row],
) -> Value {
    json!({
        "isa": isa, "ggml_features": ggml, "threads": threads, "comparable": comparable,
        "read_limit_gb_per_second": limits.read / 1e9,
        "multiply_limit_gop_per_second": limits.multiply / 1e9,
        "layers": rows.iter().map(|row| row.json(limits)).collect::<Vec<_>>(),
    })
}
