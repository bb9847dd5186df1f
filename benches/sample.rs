//! One token chosen from the logits of a large vocabulary, by everything that an application may ask for. The sum of the tokens
//! chosen tells whether a change of the code has changed what is chosen.

use graftwork::sample::{Options, Sampler};
use graftwork_benches::{median, random_values};
use std::time::Instant;

/// The vocabulary of Qwen2.
const VOCAB: usize = 151_936;

/// Tokens of each kind.
const TOKENS: usize = 200;

fn main() {
    // Roughly normal with deviation 2.5, like the logits of a model, and a few that stand out.
    let logits: Vec<Vec<f32>> = (0..8)
        .map(|seed| {
            let mut logits = vec![0.0; VOCAB];
            for part in 0..6 {
                let values = random_values(VOCAB, 100 * seed + part);
                logits.iter_mut().zip(values).for_each(|(logit, value)| *logit += 1.8 * value);
            }
            (0..20).for_each(|i| logits[(7919 * (i + seed as usize)) % VOCAB] += 8.0 + 0.4 * i as f32);
            logits
        })
        .collect();
    let history: Vec<u32> = (0..256).map(|i| i * 379 % VOCAB as u32).collect();
    let warm = Options { temperature: 0.8, ..Options::default() };
    let all = [
        ("greedy", Options::default()),
        ("greedy, repetition", Options { repetition_penalty: 1.1, ..Options::default() }),
        ("temperature", warm.clone()),
        ("top-k 40", Options { top_k: 40, ..warm.clone() }),
        ("top-p 0.95", Options { top_p: 0.95, ..warm.clone() }),
        ("top-p 0.95 at 2", Options { top_p: 0.95, temperature: 2.0, ..warm.clone() }),
        ("min-p 0.05", Options { min_p: 0.05, ..warm.clone() }),
        ("top-k, top-p, min-p", Options { top_k: 40, top_p: 0.95, min_p: 0.05, ..warm.clone() }),
        ("all, repetition", Options { top_k: 40, top_p: 0.95, min_p: 0.05, repetition_penalty: 1.1, ..warm }),
    ];
    for (name, options) in all {
        let mut sampler = Sampler::new(options).expect("options");
        let (mut times, mut sum) = (Vec::new(), 0);
        for i in 0..TOKENS {
            let start = Instant::now();
            let token = sampler.sample(&logits[i % 8], &history).expect("a token");
            times.push(start.elapsed().as_secs_f64());
            assert!((token as usize) < VOCAB);
            sum += u64::from(token) * (i as u64 + 1);
        }
        println!("{name:>20}: {:7.1} us, sum of tokens {sum}", median(&mut times) * 1e6);
    }
}
