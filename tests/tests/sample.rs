//! Sampling against its definitions: sets by full sorts, penalties by formula, draws by a chi-square test.

use graftwork::sample::{Error, Options, Sampler, random};

/// Logits that are roughly normal, with a few ties.
fn logits(seed: u64, vocab: usize) -> Vec<f32> {
    (0..vocab as u64)
        .map(|token| {
            let sum: f64 = (0..6).map(|i| random::uniform(seed, 8 * token + i)).sum();
            ((sum - 3.0) * 2.5 * 64.0).round() as f32 / 64.0
        })
        .collect()
}

/// Probabilities of the tokens that the options leave, by full sorts: the definitions, written down again.
fn definition(logits: &[f32], options: &Options) -> Vec<(u32, f64)> {
    let mut ranked: Vec<u32> = (0..logits.len() as u32).collect();
    ranked.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    let highest = f64::from(logits[ranked[0] as usize]);
    let weight =
        |token: u32| ((f64::from(logits[token as usize]) - highest) / f64::from(options.temperature)).exp();
    if options.top_k > 0 {
        ranked.truncate(options.top_k);
    }
    let total: f64 = ranked.iter().map(|&token| weight(token)).sum();
    let mut before = 0.0;
    let mut kept = Vec::new();
    for token in ranked {
        let p = weight(token) / total;
        if before < f64::from(options.top_p) && weight(token) >= f64::from(options.min_p) {
            kept.push((token, p));
        }
        before += p;
    }
    let mass: f64 = kept.iter().map(|(_, p)| p).sum();
    kept.into_iter().map(|(token, p)| (token, p / mass)).collect()
}

/// `sum (observed - expected)^2 / expected`, tokens expected fewer than ten times put together.
fn chi_square(expected: &[(u32, f64)], draws: &[u32]) -> (f64, usize) {
    let n = draws.len() as f64;
    let count = |token: u32| draws.iter().filter(|&&draw| draw == token).count() as f64;
    let (mut sum, mut cells, mut rest) = (0.0, 0, (0.0, 0.0));
    for &(token, p) in expected {
        let (want, got) = (n * p, count(token));
        if want < 10.0 {
            rest = (rest.0 + want, rest.1 + got);
        } else {
            sum += (got - want).powi(2) / want;
            cells += 1;
        }
    }
    if rest.0 >= 10.0 {
        sum += (rest.1 - rest.0).powi(2) / rest.0;
        cells += 1;
    }
    (sum, cells - 1)
}

#[test]
fn draws_follow_the_distribution() {
    let logits = logits(1, 40);
    for options in [
        Options { temperature: 1.0, ..Options::default() },
        Options { temperature: 0.7, top_k: 12, seed: 3, ..Options::default() },
        Options { temperature: 1.5, top_p: 0.8, seed: u64::MAX, ..Options::default() },
        Options { temperature: 2.0, min_p: 0.05, seed: 1 << 63, ..Options::default() },
        Options { temperature: 1.1, top_k: 30, top_p: 0.95, min_p: 0.01, seed: 5, ..Options::default() },
    ] {
        let expected = definition(&logits, &options);
        let mut sampler = Sampler::new(options.clone()).unwrap();
        let steps: Vec<u32> = (0..100_000).map(|_| sampler.sample(&logits, &[]).unwrap()).collect();
        let seeds: Vec<u32> = (0..100_000)
            .map(|seed| {
                Sampler::new(Options { seed, ..options.clone() }).unwrap().sample(&logits, &[]).unwrap()
            })
            .collect();
        for draws in [&steps, &seeds] {
            assert!(draws.iter().all(|token| expected.iter().any(|(kept, _)| kept == token)));
            let (sum, freedom) = chi_square(&expected, draws);
            // The statistic has mean `f` and variance `2 f`; above `f + 5 sqrt(2 f)` + 10 fewer than one in 10^5 are.
            let bound = freedom as f64 + 5.0 * (2.0 * freedom as f64).sqrt() + 10.0;
            assert!(freedom >= 3 && sum < bound, "{options:?}: {sum} of {freedom}, bound {bound}");
        }
    }
}

#[test]
fn consecutive_draws_are_independent() {
    // Pairs of draws from four equal tokens: sixteen equal cells, fifteen degrees of freedom, bound as above.
    let mut sampler = Sampler::new(Options { temperature: 1.0, seed: 11, ..Options::default() }).unwrap();
    let draws: Vec<u32> = (0..100_001).map(|_| sampler.sample(&[1.0; 4], &[]).unwrap()).collect();
    let pairs: Vec<u32> = draws.windows(2).map(|pair| 4 * pair[0] + pair[1]).collect();
    let (sum, freedom) = chi_square(&(0..16).map(|cell| (cell, 1.0 / 16.0)).collect::<Vec<_>>(), &pairs);
    assert!(sum < freedom as f64 + 5.0 * (2.0 * freedom as f64).sqrt() + 10.0, "{sum}");
}

/// The tokens that can be drawn: those of many draws, and the least likely one that the definition keeps.
#[test]
fn truncations_keep_the_sets_of_their_definitions() {
    let mut checked = 0;
    for round in 0..150u64 {
        let pick = |i: u64| random::uniform(round, 1000 + i);
        let vocab = [1, 2, 5, 63, 64, 65, 700][(pick(0) * 7.0) as usize];
        let logits = logits(round, vocab);
        let options = Options {
            temperature: 0.3 + 3.0 * pick(1) as f32,
            top_k: if pick(2) < 0.5 { 0 } else { 1 + (pick(3) * vocab as f64 * 1.2) as usize },
            top_p: if pick(4) < 0.4 { 1.0 } else { 0.01 + 0.98 * pick(5) as f32 },
            min_p: if pick(6) < 0.4 { 0.0 } else { pick(7) as f32 },
            seed: round,
            ..Options::default()
        };
        let expected = definition(&logits, &options);
        let mut sampler = Sampler::new(options.clone()).unwrap();
        let mut drawn = vec![false; vocab];
        for _ in 0..2000 {
            drawn[sampler.sample(&logits, &[]).unwrap() as usize] = true;
        }
        for token in 0..vocab as u32 {
            let p = expected.iter().find(|(kept, _)| *kept == token).map_or(0.0, |(_, p)| *p);
            // A token of probability p is missed by 2000 draws with (1 - p)^2000: below 1e-8 from p = 0.01 on.
            assert!(!drawn[token as usize] || p > 0.0, "{options:?}: {token} of {vocab} drawn");
            assert!(drawn[token as usize] || p < 0.01, "{options:?}: {token} of {vocab} never drawn");
            checked += usize::from(p > 0.0);
        }
    }
    assert!(checked > 1500, "{checked}");
}

/// The token that the definition draws: the weights of what the options keep, laid end to end in the order in which they are kept,
/// by id where nothing ranks them. Sums may round otherwise: too little to choose another token but once in 10^10 draws.
fn drawn(logits: &[f32], options: &Options, step: u64) -> u32 {
    let mut kept = definition(logits, options);
    if options.top_p == 1.0 && !(1..logits.len()).contains(&options.top_k) {
        kept.sort_by_key(|(token, _)| *token);
    }
    let (target, mut passed) = (random::uniform(options.seed, step), 0.0);
    let found = kept.iter().find(|(_, p)| {
        passed += p;
        passed > target
    });
    found.or(kept.last()).unwrap().0
}

/// Vocabularies around the edges of chunks and sums, and large ones, with bans, for every kind of options.
#[test]
fn draws_are_those_of_the_definition() {
    for round in 0..240u64 {
        let pick = |i: u64| random::uniform(round, 2000 + i);
        let vocab = [2, 15, 64, 129, 1023, 1025, 3000, 20_000][round as usize % 8];
        let mut logits = logits(round, vocab);
        for i in 0..(vocab / 50) as u64 {
            logits[(pick(100 + i) * vocab as f64) as usize] = f32::NEG_INFINITY;
        }
        let allowed = logits.iter().filter(|logit| logit.is_finite()).count();
        let options = Options {
            temperature: [0.1, 0.8, 1.0, 4.0][(round / 8) as usize % 4],
            top_k: [0, 0, 1, 40, allowed - 1, allowed, vocab, usize::MAX][(pick(0) * 8.0) as usize],
            top_p: [1.0, 0.1, 0.9, 0.999][(pick(1) * 4.0) as usize],
            min_p: [0.0, 1e-30, 0.02, 1.0][(pick(2) * 4.0) as usize],
            seed: round,
            ..Options::default()
        };
        let top_k = if options.top_k >= allowed { 0 } else { options.top_k };
        let defined = Options { top_k, ..options.clone() };
        // Bans by bias leave the same.
        let bans = (0u32..).zip(&logits).filter(|(_, logit)| **logit == f32::NEG_INFINITY);
        let banning = Options {
            logit_bias: bans.map(|(token, _)| (token, f32::NEG_INFINITY)).collect(),
            ..options.clone()
        };
        let open: Vec<f32> =
            logits.iter().map(|&logit| if logit.is_finite() { logit } else { 50.0 }).collect();
        let (mut sampler, mut banning) =
            (Sampler::new(options.clone()).unwrap(), Sampler::new(banning).unwrap());
        for step in 0..10 {
            let expected = drawn(&logits, &defined, step);
            assert_eq!(
                sampler.sample(&logits, &[]).unwrap(),
                expected,
                "{options:?} of {vocab}, draw {step}"
            );
            assert_eq!(banning.sample(&open, &[]).unwrap(), expected, "{options:?} of {vocab}, draw {step}");
        }
    }
}

#[test]
fn truncations_cut_at_the_edge() {
    // Probabilities 1/2, 1/4, 1/8, 1/8: exact in binary, so the edges are too.
    let ln = |p: f32| p.ln();
    let logits = [ln(0.125), ln(0.5), ln(0.125), ln(0.25)];
    let set = |options: Options| {
        let mut sampler = Sampler::new(Options { temperature: 1.0, ..options }).unwrap();
        let mut seen: Vec<u32> = (0..400).map(|_| sampler.sample(&logits, &[]).unwrap()).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    assert_eq!(set(Options { top_k: 3, ..Options::default() }), [0, 1, 3]);
    assert_eq!(set(Options { top_p: 0.49, ..Options::default() }), [1]);
    assert_eq!(set(Options { top_p: 0.51, ..Options::default() }), [1, 3]);
    assert_eq!(set(Options { top_p: 0.76, ..Options::default() }), [0, 1, 3]);
    assert_eq!(set(Options { top_p: 0.9, ..Options::default() }), [0, 1, 2, 3]);
    assert_eq!(set(Options { min_p: 0.26, ..Options::default() }), [1, 3]);
    assert_eq!(set(Options { min_p: 0.24, ..Options::default() }), [0, 1, 2, 3]);
    assert_eq!(set(Options { min_p: 1.0, ..Options::default() }), [1]);
    // Top-p is a share of what top-k left: 1/2 of 3/4 reaches 0.6.
    assert_eq!(set(Options { top_k: 2, top_p: 0.6, ..Options::default() }), [1]);
}

#[test]
fn penalties_are_those_of_the_formula() {
    let base = [3.0f32, 2.9, -1.0, 0.5, -0.2];
    let history = [9, 4, 0, 0, 1, 0, 2];
    let options = Options {
        repetition_penalty: 1.3,
        presence_penalty: 0.4,
        frequency_penalty: 0.25,
        penalty_last_n: 5,
        logit_bias: vec![(3, 0.75), (1, -0.5), (3, 0.25)],
        ..Options::default()
    };
    // The last five: 0, 0, 1, 0, 2. Token 4 and 9 are out of reach.
    let biased = [3.0f32, 2.4, -1.0, 1.5, -0.2];
    let counts = [3.0f32, 1.0, 1.0, 0.0, 0.0];
    let expected: Vec<f32> = (biased.iter().zip(counts))
        .map(|(&l, c)| if c == 0.0 { l } else { (if l > 0.0 { l / 1.3 } else { l * 1.3 }) - c * 0.25 - 0.4 })
        .collect();
    let order = |values: &[f32]| {
        let mut order: Vec<u32> = (0..values.len() as u32).collect();
        order.sort_by(|&a, &b| values[b as usize].total_cmp(&values[a as usize]));
        order
    };
    assert_ne!(order(&expected), order(&base));
    // Greedy choice after banning the likeliest ones shows the whole order.
    let mut sequence: Vec<u32> = Vec::new();
    for _ in 0..base.len() {
        let bans = sequence.iter().map(|&token| (token, f32::NEG_INFINITY));
        let logit_bias = options.logit_bias.iter().copied().chain(bans).collect();
        let mut sampler = Sampler::new(Options { logit_bias, ..options.clone() }).unwrap();
        sequence.push(sampler.sample(&base, &history).unwrap());
    }
    assert_eq!(sequence, order(&expected));
    // And draws follow them.
    let mut sampler = Sampler::new(Options { temperature: 1.0, ..options }).unwrap();
    let draws: Vec<u32> = (0..100_000).map(|_| sampler.sample(&base, &history).unwrap()).collect();
    let wanted = definition(&expected, &Options { temperature: 1.0, ..Options::default() });
    let (sum, freedom) = chi_square(&wanted, &draws);
    assert!(freedom == 4 && sum < 4.0 + 5.0 * 8f64.sqrt() + 10.0, "{sum}");
}

#[test]
fn seeds_repeat_and_differ() {
    let logits = logits(9, 1000);
    let run = |seed: u64| -> Vec<u32> {
        let mut sampler = Sampler::new(Options { temperature: 1.0, seed, ..Options::default() }).unwrap();
        (0..32).map(|_| sampler.sample(&logits, &[]).unwrap()).collect()
    };
    assert_eq!(run(42), run(42));
    assert_ne!(run(42), run(43));
    // Not shifted copies of each other.
    assert!(run(42)[1..] != run(43)[..31] && run(43)[1..] != run(42)[..31]);
    // Two requests in turn draw what each draws alone.
    let sampler = |seed| Sampler::new(Options { temperature: 1.0, seed, ..Options::default() }).unwrap();
    let (mut a, mut b) = (sampler(1), sampler(2));
    let mixed: Vec<(u32, u32)> =
        (0..32).map(|_| (a.sample(&logits, &[]).unwrap(), b.sample(&logits, &[]).unwrap())).collect();
    assert_eq!(mixed.into_iter().unzip::<u32, u32, Vec<_>, Vec<_>>(), (run(1), run(2)));
}

#[test]
fn greedy_takes_the_lowest_id_of_equals() {
    let mut sampler = Sampler::new(Options::default()).unwrap();
    assert_eq!(sampler.sample(&[f32::NEG_INFINITY, 1.0, 7.5, 7.5, -2.0], &[]).unwrap(), 2);
    let bias = Options { logit_bias: vec![(4, 9.5)], ..Options::default() };
    assert_eq!(Sampler::new(bias).unwrap().sample(&[0.0, 1.0, 7.5, 7.5, -2.0], &[]).unwrap(), 2);
    // Wherever it is.
    for vocab in [1, 63, 64, 65, 1000] {
        for best in (0..vocab).step_by(7) {
            let mut logits = vec![f32::NEG_INFINITY; vocab];
            logits[best..].fill(-3.5);
            assert_eq!(Sampler::new(Options::default()).unwrap().sample(&logits, &[]).unwrap(), best as u32);
            logits[best] = -3.0;
            assert_eq!(Sampler::new(Options::default()).unwrap().sample(&logits, &[]).unwrap(), best as u32);
            logits[vocab - 1] = f32::NAN;
            let error = Sampler::new(Options::default()).unwrap().sample(&logits, &[]).unwrap_err();
            assert!(matches!(error, Error::Logit { token, .. } if token == vocab - 1));
        }
    }
}

#[test]
fn what_has_no_meaning_is_an_error() {
    let named = |options: Options| match Sampler::new(options).unwrap_err() {
        Error::Option { option, .. } => option,
        other => panic!("{other}"),
    };
    for wrong in [f32::NAN, -0.1, f32::INFINITY] {
        assert_eq!(named(Options { temperature: wrong, ..Options::default() }), "temperature");
        assert_eq!(named(Options { repetition_penalty: wrong, ..Options::default() }), "repetition_penalty");
        assert_eq!(named(Options { min_p: wrong, ..Options::default() }), "min_p");
        assert_eq!(named(Options { top_p: wrong, ..Options::default() }), "top_p");
    }
    assert_eq!(named(Options { top_p: 0.0, ..Options::default() }), "top_p");
    assert_eq!(named(Options { presence_penalty: f32::NAN, ..Options::default() }), "presence_penalty");
    assert_eq!(
        named(Options { frequency_penalty: f32::INFINITY, ..Options::default() }),
        "frequency_penalty"
    );
    assert_eq!(named(Options { logit_bias: vec![(0, f32::NAN)], ..Options::default() }), "logit_bias");
    let message = Sampler::new(Options { top_p: 1.5, ..Options::default() }).unwrap_err().to_string();
    assert_eq!(message, "top_p: expected a number above 0 and at most 1, found 1.5");

    for temperature in [0.0, 1.0] {
        let with =
            |logit_bias| Sampler::new(Options { temperature, logit_bias, ..Options::default() }).unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(matches!(with(vec![]).sample(&[0.0, bad], &[]), Err(Error::Logit { token: 1, .. })));
        }
        for none in [&[][..], &[f32::NEG_INFINITY; 3]] {
            assert_eq!(with(vec![]).sample(none, &[]), Err(Error::NoToken { vocab: none.len() }));
        }
        assert!(matches!(
            with(vec![(2, 1.0)]).sample(&[0.0; 2], &[]),
            Err(Error::Option { option: "logit_bias", .. })
        ));
    }
}
