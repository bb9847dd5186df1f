//! Compressed deltas on every base: the merged weights' logits, whichever the method.

use std::fs;

use graftwork::{Bytes, Format};
use graftwork_adapters::Source;
use graftwork_adapters::delta::{Delta, Fingerprint};
use graftwork_adapters::file::{Dtype, Gguf, Safetensors, TensorView, write_safetensors};
use graftwork_kernels::Tensor;
use graftwork_tests::deltas::{methods, tuned};
use graftwork_tests::reference::{Expected, golden};

use super::convert::model_in;
use super::open;

/// The small base with other weights.
fn with_weights(weights: &[(String, Tensor)]) -> Source {
    let shapes: Vec<[u64; 2]> = weights.iter().map(|(_, t)| [t.rows() as u64, t.cols() as u64]).collect();
    let views: Vec<_> = weights
        .iter()
        .zip(&shapes)
        .map(|((name, tensor), shape)| {
            let shape = if name.contains("norm") { &shape[1..] } else { &shape[..] };
            TensorView { name, dtype: Dtype::F32, shape, bytes: tensor.bytes() }
        })
        .collect();
    let mut file = Vec::new();
    write_safetensors(&mut file, &views, &[]).unwrap();
    let config = fs::read(golden("adapters/base/config.json")).unwrap();
    let files = [("config.json", Bytes::from(config)), ("model.safetensors", Bytes::from(file))];
    Source::files(files.map(|(name, bytes)| (name.to_owned(), bytes)).into()).unwrap()
}

/// The largest difference.
fn furthest(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// A delta in a file gives the logits of the merged weights on a base in F32, to 1e-3; on one in Q8_0 it changes them no further
/// than 1.5 times what rounding the base to it does. On another base than its own it is refused.
#[test]
fn applied_deltas_equal_merged_ones() {
    let expected = Expected::read("adapters/base/expected.safetensors", "logits");
    let sources = || {
        let gguf = |format| model_in(format, "adapters/base");
        [Source::from(golden("adapters/base")), gguf(Format::F32).into(), gguf(Format::Q8_0).into()]
    };
    let gguf = |format| Gguf::parse(model_in(format, "adapters/base")).unwrap();
    let weights = Safetensors::open(golden("adapters/base/model.safetensors")).unwrap();
    let bases = vec![
        Fingerprint::of("llama", &weights),
        Fingerprint::of("llama", &gguf(Format::F32)),
        Fingerprint::of("llama", &gguf(Format::Q8_0)),
    ];
    let engines = sources().map(open);
    let mut rounding = 0.0f32;
    for tokens in &expected.tokens {
        let [exact, _, rounded] = engines.each_ref().map(|engine| engine.logits(tokens, &[]).unwrap());
        rounding = rounding.max(furthest(&exact, &rounded));
    }
    let folder = std::env::temp_dir().join(format!("graftwork-deltas-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    for (name, method) in methods() {
        let (delta, merged) = tuned(name, &method, 1);
        let path = folder.join(format!("{name}.safetensors"));
        Delta { bases: bases.clone(), ..delta.clone() }.write(&path).unwrap();
        let reference = open(with_weights(&merged));
        for (engine, bound) in engines.iter().zip([1e-3, 1e-3, 1.5 * rounding]) {
            engine.load_adapter(name, path.as_path()).unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut off = 0.0f32;
            for tokens in &expected.tokens {
                let found = engine.logits(tokens, &[(name.to_owned(), 1.0)]).unwrap();
                let exact = reference.logits(tokens, &[]).unwrap();
                off = off.max(furthest(&exact, &found));
                let change = furthest(&exact, &engine.logits(tokens, &[]).unwrap());
                assert!(change > 0.1, "{name} changes next to nothing: {change}");
            }
            println!("{name}: {off} of {bound}");
            assert!(off <= bound, "{name}: {off} of {bound}");
        }
        let elsewhere = Delta { bases: bases[1..2].to_vec(), ..delta };
        elsewhere.write(&path).unwrap();
        let error = engines[0].load_adapter("elsewhere", path.as_path()).unwrap_err().to_string();
        assert!(error.contains(&bases[1].to_string()) && error.contains(&bases[0].to_string()), "{error}");
    }
    fs::remove_dir_all(folder).unwrap();
}
