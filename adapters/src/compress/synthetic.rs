//! Deltas with a long-tailed spectrum, as full fine-tunes have, to try methods on.

/// Singular values of a synthetic delta.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spectrum {
    /// `|D|_F`.
    pub norm: f32,
    /// How many singular values fall as `(k + 1)^-exponent`; at most as many as the matrix has.
    pub rank: usize,
    /// How fast they fall.
    pub exponent: f32,
    /// Share of the sum of squares that lies in entries independent of each other.
    pub tail: f32,
}

impl Default for Spectrum {
    fn default() -> Self {
        Self { norm: 1.0, rank: 512, exponent: 0.6, tail: 0.1 }
    }
}

/// `D = U diag((k + 1)^-a) V + G`, row after row, `[outputs, inputs]`: `U` and `V` random with orthonormal columns and rows, `G` of
/// independent entries, near normal; scaled to the norms of `spectrum`. The same bits on every
/// machine whose `powf` gives the same.
pub fn delta(outputs: usize, inputs: usize, spectrum: &Spectrum, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let rank = spectrum.rank.min(outputs).min(inputs);
    let u = orthonormal(rank, outputs, &mut random);
    let mut v = orthonormal(rank, inputs, &mut random);
    for (k, v) in v.chunks_exact_mut(inputs.max(1)).enumerate() {
        let s = sigma(k, spectrum.exponent);
        v.iter_mut().for_each(|v| *v *= s);
    }
    let mut delta = vec![0.0f32; outputs * inputs];
    for (o, row) in delta.chunks_exact_mut(inputs.max(1)).enumerate() {
        for (k, v) in v.chunks_exact(inputs).enumerate() {
            let u = u[k * outputs + o];
            row.iter_mut().zip(v).for_each(|(x, v)| *x += u * v);
        }
    }
    let squares: f32 = (0..rank).map(|k| sigma(k, spectrum.exponent).powi(2)).sum();
    let scale = if rank > 0 { spectrum.norm * ((1.0 - spectrum.tail) / squares).sqrt() } else { 0.0 };
    let tail = spectrum.norm * (spectrum.tail / (outputs * inputs) as f32).sqrt();
    delta.iter_mut().for_each(|x| *x = scale * *x + tail * random.normal());
    delta
}

/// `(k + 1)^-exponent`.
fn sigma(k: usize, exponent: f32) -> f32 {
    ((k + 1) as f32).powf(-exponent)
}

/// Orthonormal rows `[rank, n]`, by Gram and Schmidt, twice against rounding.
fn orthonormal(rank: usize, n: usize, random: &mut Random) -> Vec<f32> {
    let mut rows: Vec<f32> = (0..rank * n).map(|_| random.normal()).collect();
    for k in 0..rank {
        let (before, row) = rows.split_at_mut(k * n);
        let row = &mut row[..n];
        for _ in 0..2 {
            for earlier in before.chunks_exact(n) {
                let share = dot(earlier, row);
                row.iter_mut().zip(earlier).for_each(|(x, y)| *x -= share * y);
            }
            let norm = dot(row, row).sqrt();
            row.iter_mut().for_each(|x| *x /= norm);
        }
    }
    rows
}

/// `sum x y`, over sixteen sums, so that vectors compute it and every machine in the same order.
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let (x, x_rest) = x.as_chunks::<16>();
    let (y, y_rest) = y.as_chunks::<16>();
    let mut sums = [0.0f32; 16];
    for (x, y) in x.iter().zip(y) {
        (0..16).for_each(|i| sums[i] += x[i] * y[i]);
    }
    sums.iter().sum::<f32>() + x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum::<f32>()
}

/// SplitMix64 (Steele, Lea, Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// Mean 0, variance 1, from -6 to 6: the sum of twelve uniform numbers, 16 bits each.
    fn normal(&mut self) -> f32 {
        let sum: u64 =
            (0..3).map(|_| self.next()).map(|x| (0..4).map(|i| x >> (16 * i) & 0xffff).sum::<u64>()).sum();
        (sum as f32 - 12.0 * 32767.5) / 65536.0
    }
}
