//! How ggml's reference quantizers choose scales. Bit-exactness is the aim, so the order of every f32 operation counts.

/// Below this a group counts as zeros.
pub(super) const TINY: f32 = 1e-15;

/// To the nearest integer, ties to even, for magnitudes below `2^22`. What it makes of others, and of NaN, shows in ggml's blocks:
/// the lower bits of the sum.
pub(super) fn nearest(x: f32) -> i32 {
    // Singles from 2^23 to 2^24 are the integers, so the mantissa of this sum is the integer plus 2^22.
    let sum = x + 12_582_912.0;
    (sum.to_bits() & 0x7f_ffff).cast_signed() - 0x40_0000
}

/// The least and the greatest value: of zeros of either sign the first, which [`f32::min`] leaves open.
pub(super) fn range(x: &[f32]) -> (f32, f32) {
    let min = x.iter().fold(f32::MAX, |min, &x| if x < min { x } else { min });
    let max = x.iter().fold(f32::MIN, |max, &x| if x > max { x } else { max });
    (min, max)
}

/// Which scales [`affine`] tries: those for which the range of the values spans `most + first + step i` codes, `i <= steps`.
pub(super) struct Tries {
    /// The largest code.
    pub most: i32,
    /// The first offset of the number of codes.
    pub first: f32,
    /// How far tries are apart.
    pub step: f32,
    /// How many there are beside the first.
    pub steps: usize,
    /// Whether errors count by their magnitude, not their square.
    pub absolute: bool,
}

/// `(s, m)` with `m >= 0` that make `sum_i w[i] |s q[i] - m - x[i]|^2` small over codes `q` of `0..=most`: for each try, codes are
/// rounded and `s`, `m` fitted to them by least squares. The codes of the best go to `codes`.
pub(super) fn affine(x: &[f32], weights: &[f32], tries: &Tries, codes: &mut [u8]) -> (f32, f32) {
    let mut min = x.iter().copied().fold(x[0], |a, b| if b < a { b } else { a });
    let max = x.iter().copied().fold(x[0], |a, b| if b > a { b } else { a });
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for (w, x) in weights.iter().zip(x).skip(1) {
        sum_w += w;
        sum_x += w * x;
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max == min {
        codes.fill(0);
        return (0.0, -min);
    }
    let most = tries.most;
    let code = |inverse: f32, min: f32, x: f32| nearest(inverse * (x - min)).clamp(0, most);
    let error_of = |s: f32, m: f32, code: &dyn Fn(f32) -> i32| {
        let mut sum = 0.0;
        for (w, &x) in weights.iter().zip(x) {
            let difference = s * code(x) as f32 + m - x;
            let error = if tries.absolute { difference.abs() } else { difference * difference };
            sum += w * error;
        }
        sum
    };
    let inverse = most as f32 / (max - min);
    // The scale and minimum so far, and what codes were rounded with.
    let (mut scale, mut rounded) = (1.0 / inverse, (inverse, min));
    let mut best = error_of(scale, min, &|x| code(inverse, min, x));
    for i in 0..=tries.steps {
        // From the best minimum so far.
        let inverse = (tries.first + tries.step * i as f32 + most as f32) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for (&w, &x) in weights.iter().zip(x) {
            let l = code(inverse, min, x) as f32;
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut s = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut m = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if m > 0.0 {
                m = 0.0;
                s = sum_xl / sum_l2;
            }
            let error = error_of(s, m, &|x| code(inverse, min, x));
            if error < best {
                rounded = (inverse, min);
                (best, scale, min) = (error, s, m);
            }
        }
    }
    let (inverse, from) = rounded;
    for (to, &x) in codes.iter_mut().zip(x) {
        *to = code(inverse, from, x) as u8;
    }
    (scale, -min)
}

/// The value of largest magnitude, the first of several.
pub(super) fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0f32, |most, &x| if x.abs() > most.abs() { x } else { most })
}

/// The scale `s` for codes of `-most..most` that makes `sum_i w[i] (s q[i] - x[i])^2` small: nineteen ways to round, each with
/// its least-squares scale. Also the codes, from 0.
pub(super) fn signed(x: &[f32], weights: &[f32], most: i32, codes: &mut [u8]) -> f32 {
    let extreme = extreme(x);
    if extreme.abs() < TINY {
        codes.fill(0);
        return 0.0;
    }
    let fit = |inverse: f32| {
        let (mut sum_lx, mut sum_l2) = (0.0f32, 0.0f32);
        for (&x, &w) in x.iter().zip(weights) {
            let l = nearest(inverse * x).clamp(-most, most - 1) as f32;
            sum_lx += w * x * l;
            sum_l2 += w * l * l;
        }
        (sum_lx, sum_l2)
    };
    let mut chosen = -(most as f32) / extreme;
    let (sum_lx, sum_l2) = fit(chosen);
    let mut scale = if sum_l2 != 0.0 { sum_lx / sum_l2 } else { 0.0 };
    let mut best = scale * sum_lx;
    for i in (-9..=9).filter(|&i| i != 0) {
        let inverse = -(most as f32 + 0.1 * i as f32) / extreme;
        let (sum_lx, sum_l2) = fit(inverse);
        if sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
            chosen = inverse;
            scale = sum_lx / sum_l2;
            best = scale * sum_lx;
        }
    }
    for (to, &x) in codes.iter_mut().zip(x) {
        *to = (nearest(chosen * x).clamp(-most, most - 1) + most) as u8;
    }
    scale
}

/// The same by turns: from plain rounding, one code after the other is moved while that makes the error smaller, five rounds at
/// most. Also the codes, from 0.
pub(super) fn by_turns(x: &[f32], most: i32, codes: &mut [u8]) -> f32 {
    let extreme = extreme(x);
    if extreme.abs() < TINY {
        codes.fill(0);
        return 0.0;
    }
    let inverse = -(most as f32) / extreme;
    let mut l: Vec<i32> = x.iter().map(|x| nearest(inverse * x).clamp(-most, most - 1)).collect();
    let (mut sum_lx, mut sum_l2) = (0.0f32, 0.0f32);
    for (&x, &l) in x.iter().zip(&l) {
        let (w, l) = (x * x, l as f32);
        sum_lx += w * x * l;
        sum_l2 += w * l * l;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (&x, code) in x.iter().zip(&mut l) {
            let (w, old) = (x * x, *code as f32);
            let mut without_lx = sum_lx - w * x * old;
            if without_lx <= 0.0 {
                continue;
            }
            let mut without_l2 = sum_l2 - w * old * old;
            let new = nearest(x * without_l2 / without_lx).clamp(-most, most - 1);
            if new == *code {
                continue;
            }
            without_lx += w * x * new as f32;
            without_l2 += w * new as f32 * new as f32;
            if without_l2 > 0.0 && without_lx * without_lx * sum_l2 > sum_lx * sum_lx * without_l2 {
                *code = new;
                (sum_lx, sum_l2) = (without_lx, without_l2);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    for (to, l) in codes.iter_mut().zip(l) {
        *to = (l + most) as u8;
    }
    sum_lx / sum_l2
}

/// The level that `x` is nearest to, the upper of two; levels grow.
pub(super) fn nearest_level(x: f32, levels: &[i8]) -> u8 {
    let above = levels.iter().filter(|&&level| f32::from(level) <= x).count();
    let upper = above.clamp(1, levels.len() - 1);
    let [low, high] = [upper - 1, upper].map(|i| f32::from(levels[i]));
    // Beyond either end this gives the end.
    (if x - low < high - x { upper - 1 } else { upper }) as u8
}

/// The scale `s` for codes of uneven levels that makes `sum_i x[i]^2 (s v[q[i]] - x[i])^2` small: those for which the extreme is at
/// the first level or up to seven beside it, each refined by least squares.
pub(super) fn levels(x: &[f32], levels: &[i8]) -> f32 {
    let extreme = extreme(x);
    if extreme.abs() < TINY {
        return 0.0;
    }
    let first = f32::from(levels[0]);
    let fit = |inverse: f32| {
        let (mut sum_lx, mut sum_l2) = (0.0f32, 0.0f32);
        for &x in x {
            let l = f32::from(levels[usize::from(nearest_level(inverse * x, levels))]);
            let w = x * x;
            sum_lx += w * l * x;
            sum_l2 += w * l * l;
        }
        (sum_lx, sum_l2)
    };
    let (sum_lx, sum_l2) = fit(1.0 / (-extreme / first));
    let mut scale = if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 };
    let mut best = scale * sum_lx;
    for i in -7..=7 {
        let (sum_lx, sum_l2) = fit((i as f32 + first) / extreme);
        if sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
            scale = sum_lx / sum_l2;
            best = scale * sum_lx;
        }
    }
    scale
}
