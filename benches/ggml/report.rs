//! What was measured: lines for people, JSON for plots.

use graftwork_benches::median;
use graftwork_kernels::Format;
use serde_json::{Value, json};

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
    /// What the machine can do at most, a median of measurements in turn with the sides: bytes per second read for one row,
    /// else multiplications and additions of 8-bit integers per second.
    pub limit: f64,
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

    /// Per cent of the limit that a side reaches.
    fn percent(&self, seconds: f64) -> f64 {
        100.0 * self.work() / seconds / self.limit
    }

    /// Prints the row; the ratio only if `comparable`.
    pub fn print(&self, comparable: bool) {
        let unit = if self.rows == 1 { "GB/s" } else { "GOP/s" };
        let side = |seconds: f64| {
            let rate = self.work() / seconds / 1e9;
            format!("{:>9.1} us {rate:>7.1} {unit:<5} {:>4.0} %", seconds * 1e6, self.percent(seconds))
        };
        let shape = format!("[{}, {}] x {}", self.outputs, self.inputs, self.rows);
        let ratio =
            if comparable { format!("{:>6.2}x", self.theirs() / self.ours) } else { "      -".into() };
        let others: Vec<_> = self.ggml[1..]
            .iter()
            .map(|(name, seconds)| format!(", {name} {:.1} us", seconds * 1e6))
            .collect();
        println!(
            "{:>5} {shape:<20} {} | ggml {} {ratio}  of {:.1} ({}{}){}",
            self.format.name(),
            side(self.ours),
            side(self.theirs()),
            self.limit / 1e9,
            self.ggml[0].0,
            others.concat(),
            if self.disturbed { " DISTURBED" } else { "" },
        );
    }

    fn json(&self) -> Value {
        let buffers: Vec<_> =
            self.ggml.iter().map(|(name, s)| json!({ "name": name, "seconds": s })).collect();
        json!({
            "format": self.format.name(), "outputs": self.outputs, "inputs": self.inputs, "rows": self.rows,
            "seconds": self.ours, "percent": self.percent(self.ours),
            "ggml_seconds": self.theirs(), "ggml_percent": self.percent(self.theirs()), "ggml_buffers": buffers,
            "limit": self.limit, "disturbed": self.disturbed,
        })
    }
}

/// Everything as one JSON object; see the keys of a row in [`Row::json`].
pub fn document(isa: &str, ggml: &str, threads: usize, comparable: bool, rows: &[Row]) -> Value {
    let limit = |single: bool| {
        let mut limits: Vec<_> =
            rows.iter().filter(|r| (r.rows == 1) == single).map(|r| r.limit / 1e9).collect();
        median(&mut limits)
    };
    json!({
        "isa": isa, "ggml_features": ggml, "threads": threads, "comparable": comparable,
        "read_limit_gb_per_second": limit(true), "multiply_limit_gop_per_second": limit(false),
        "layers": rows.iter().map(Row::json).collect::<Vec<_>>(),
    })
}
