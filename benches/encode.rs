//! What encoding loses beside `ggml_quantize_chunk` without importances, and how long both take on one thread.
//!
//! `cargo bench -p graftwork-benches --features ggml --bench encode -- [MODEL.gguf] [FORMAT]...`: over Gaussian values, and over up to
//! 64 rows of each matrix of the model. Panics if ours is further off.

use std::time::Instant;

use ggml_sys as g;
use graftwork_adapters::file::Gguf;
use graftwork_benches::gaussian;
use graftwork_kernels::{Format, Tensor};

/// Columns: whole blocks of every format.
const COLS: usize = 1024;

/// Rows of Gaussian values.
const ROWS: usize = 256;

/// Rows of each matrix of a model.
const SOME: usize = 64;

/// How much more our error may be: both round to the same codes but for formats with grids.
const MOST: f64 = 1.000_001;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let (formats, models): (Vec<_>, Vec<_>) = words.iter().partition(|w| Format::from_name(w).is_some());
    let mut sources = vec![("Gaussian".to_string(), gaussian(ROWS * COLS, 3))];
    for model in models {
        sources.push((model.clone(), matrices(model)));
    }
    for (name, values) in sources {
        println!("{name}: {} values", values.len());
        println!(
            "{:>8} {:>12} {:>12} {:>7} {:>10} {:>10}",
            "format", "RMS", "ggml's", "ratio", "Mvalues/s", "ggml's"
        );
        for &format in Format::ALL {
            let named = formats.is_empty() || formats.iter().any(|f| f.eq_ignore_ascii_case(format.name()));
            if named && format.block_len() > 1 && format.ggml_id().is_some() {
                compare(format, &values);
            }
        }
    }
}

/// Rows of the model's matrices, cut into [`COLS`].
fn matrices(path: &str) -> Vec<f32> {
    let file = Gguf::open(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut values = Vec::new();
    for (_, info) in file.tensors().iter() {
        let (Some(format), Some(bytes), &[cols, rows]) = (info.format(), info.bytes(), info.dims()) else {
            continue;
        };
        let tensor =
            Tensor::new(format, rows as usize, cols as usize, bytes.clone()).expect("checked by the file");
        let mut row = vec![0.0; cols as usize];
        for r in (0..tensor.rows()).step_by(tensor.rows().div_ceil(SOME)) {
            tensor.decode_row(r, &mut row);
            values.extend_from_slice(&row);
        }
    }
    values.truncate(values.len() / COLS * COLS);
    values
}

fn compare(format: Format, values: &[f32]) {
    let rows = values.len() / COLS;
    let mut blocks = vec![0; values.len() / format.block_len() * format.block_bytes()];
    let mut timed = |encode: &dyn Fn(&mut [u8])| {
        let start = Instant::now();
        encode(&mut blocks);
        let speed = values.len() as f64 / start.elapsed().as_secs_f64() / 1e6;
        (error(format, values, &blocks), speed)
    };
    let (ours, speed) = timed(&|blocks| format.encode(values, blocks));
    // Its tables are made at the first call.
    quantize_chunk(
        format,
        &values[..COLS],
        1,
        &mut vec![0; COLS / format.block_len() * format.block_bytes()],
    );
    let (theirs, their_speed) = timed(&|blocks| quantize_chunk(format, values, rows, blocks));
    println!(
        "{:>8} {:>12.4e} {:>12.4e} {:>7.4} {speed:>10.1} {their_speed:>10.1}",
        format.name(),
        ours,
        theirs,
        ours / theirs
    );
    assert!(ours <= MOST * theirs, "{format}: {ours} is more than {theirs}");
}

/// RMS of what the blocks are off by.
fn error(format: Format, values: &[f32], blocks: &[u8]) -> f64 {
    let mut decoded = vec![0.0; values.len()];
    format.decode(blocks, &mut decoded);
    let squares = values.iter().zip(&decoded).map(|(x, y)| f64::from(x - y).powi(2));
    (squares.sum::<f64>() / values.len() as f64).sqrt()
}

/// ggml's, with the same importance of all values where it asks for one.
fn quantize_chunk(format: Format, values: &[f32], rows: usize, blocks: &mut [u8]) {
    let id = format.ggml_id().expect("a format of ggml");
    let ones = vec![1.0f32; COLS];
    // SAFETY: `values` holds `rows` rows of `COLS` values, `ones` one, and `blocks` has the bytes of them all in this format.
    let written = unsafe {
        let importance = if g::ggml_quantize_requires_imatrix(id) { ones.as_ptr() } else { std::ptr::null() };
        g::ggml_quantize_chunk(
            id,
            values.as_ptr(),
            blocks.as_mut_ptr().cast(),
            0,
            rows as i64,
            COLS as i64,
            importance,
        )
    };
    assert_eq!(written, blocks.len(), "{format}");
}
