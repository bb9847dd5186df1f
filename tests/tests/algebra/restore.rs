//! Chosen weights get the values of an aligned model, and those that they had.

use std::fs;
use std::path::{Path, PathBuf};

use graftwork::Source;
use graftwork::merge::{Form, Grafted, merge};
use graftwork::restore::{Choice, Mask, Options, Report, restore as run, rollback};
use graftwork_adapters::delta::{Delta, Part};
use graftwork_adapters::file::{Dtype, Gguf, Safetensors, TensorView, write_safetensors};
use graftwork_adapters::{Adapter, TensorFile};
use graftwork_kernels::Format;
use graftwork_tests::reference::{Closeness, Expected, golden};

use crate::{Random, fresh, open};

fn path(name: &str) -> PathBuf {
    golden(&format!("adapters/{name}"))
}

/// `model` with an adapter made part of it, in a float format.
fn merged(model: &Path, adapter: &Path, out: &str, form: Form, to: Option<&str>) -> PathBuf {
    let adapter = Adapter::open(adapter).unwrap();
    let out = fresh(out);
    let grafted = [Grafted { name: "adapter", adapter: &adapter, weight: 1.0 }];
    let options = graftwork::merge::Options { form, to: to.map(|to| to.parse().unwrap()), threads: 2 };
    merge(&Source::from(model), &grafted, &out, &options, &|_, _| true).unwrap();
    out
}

fn restore(
    aligned: &Path,
    model: &Path,
    adapters: &[Grafted<'_>],
    choice: Choice<'_>,
    out: &str,
) -> (PathBuf, Report) {
    let out = fresh(out);
    let options = Options { adapters, choice, layers: Some(2), base_model: Some("tuned"), threads: 2 };
    let sources = [Source::from(aligned), Source::from(model)];
    let report = run((&sources[0], &sources[1]), &out, &options, &|_, _| true).unwrap();
    (out, report)
}

/// All weights of a model by name, in the bits of its file.
fn bits(model: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |file: &dyn TensorFile| {
        let names = file.names().into_iter().map(str::to_owned).collect::<Vec<_>>();
        names.into_iter().map(|name| (name.clone(), file.require(&name).unwrap().bytes().to_vec())).collect()
    };
    match model.is_dir() {
        true => read(&Safetensors::open(model.join("model.safetensors")).unwrap()),
        false => read(&Gguf::open(model).unwrap()),
    }
}

/// A tuned model, restored in files and back: bit for bit what it was, in every float format and container. In between, the
/// chosen entries and no others are the aligned model's.
#[test]
fn what_is_restored_can_be_rolled_back() {
    for (format, form) in
        [("F32", Form::HuggingFace), ("BF16", Form::HuggingFace), ("F16", Form::Gguf), ("F32", Form::Gguf)]
    {
        let name = |what: &str| match form {
            Form::HuggingFace => format!("{what}-{format}"),
            Form::Gguf => format!("{what}-{format}.gguf"),
        };
        let aligned = merged(&path("base"), &path("lora"), &name("aligned"), form, Some(format));
        let tuned = merged(&path("base"), &path("dora"), &name("tuned"), form, Some(format));
        let (patch, report) = restore(&aligned, &tuned, &[], Choice::Magnitude(0.01), &name("patch"));
        let restored = merged(&tuned, &patch, &name("restored"), form, None);
        let back = fresh(&name("back-patch"));
        rollback(&patch, &back).unwrap();
        let rolled_back = merged(&restored, &back, &name("back"), form, None);
        let [aligned_bits, tuned_bits, restored_bits, back_bits] =
            [&aligned, &tuned, &restored, &rolled_back].map(|model| bits(model));
        assert!(tuned_bits == back_bits, "{format} {form:?}");

        let size = Format::ALL.iter().find(|known| known.name() == format).unwrap().block_bytes();
        let mut entries = 0;
        for ((name, tuned), ((_, restored), (_, aligned))) in
            tuned_bits.iter().zip(restored_bits.iter().zip(&aligned_bits))
        {
            let parts = tuned.chunks(size).zip(restored.chunks(size)).zip(aligned.chunks(size));
            let changed = parts.filter(|((tuned, restored), aligned)| {
                assert!(restored == tuned || restored == aligned, "{name}");
                restored != tuned
            });
            entries += changed.count();
        }
        assert_eq!(entries, report.matrices.iter().map(|matrix| matrix.entries).sum::<usize>());
        for matrix in &report.matrices {
            let most = (matrix.shape[0] * matrix.shape[1]).div_ceil(100);
            assert!(matrix.entries <= most && matrix.distance[1] <= matrix.distance[0], "{matrix:?}");
            assert_eq!(matrix.entries == most, matrix.distance[0] > 0.0, "{matrix:?}");
        }

        // A patch that does not belong to the model is refused: by its fingerprint, and a rollback by the values.
        for (model, patch, expected) in [
            (&aligned, &patch, "the adapter is for the base of fingerprint"),
            (&tuned, &back, "an entry to overwrite: the base expects"),
        ] {
            let adapter = Adapter::open(&**patch).unwrap();
            let grafted = [Grafted { name: "patch", adapter: &adapter, weight: 1.0 }];
            let options = graftwork::merge::Options { form, to: None, threads: 2 };
            let error = merge(&Source::from(model), &grafted, &fresh(&name("never")), &options, &|_, _| true);
            let error = error.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }

        // As an adapter: the logits of the restored files, and without it those of before.
        let (engine, restored) = (open(&tuned), open(&restored));
        let tokens = &Expected::read("adapters/base/expected.safetensors", "logits").tokens[0];
        let before = engine.logits(tokens, &[]).unwrap();
        engine.load_adapter("restore", &*patch).unwrap();
        let stack = [("restore".to_owned(), 1.0)];
        let found = engine.logits(tokens, &stack).unwrap();
        let closeness = Closeness::of(&restored.logits(tokens, &[]).unwrap(), &found);
        assert!(closeness.max_difference <= 2e-4, "{closeness:?}");
        assert!(Closeness::of(&before, &found).max_difference > 1e-2);
        assert_eq!(before, engine.logits(tokens, &[]).unwrap());
        engine.unload_adapter("restore").unwrap();
        assert_eq!(before, engine.logits(tokens, &[]).unwrap());
    }
}

/// On an adapter: the chosen weights are the base's again, whatever the adapter did to them. On a base with pairs of rotated rows as
/// on one with halves.
#[test]
fn adapters_are_restored_in_part() {
    let mut random = Random(11);
    // Names of a Hugging Face directory, rows in its order.
    let mut masks = Vec::new();
    for (name, shape) in [
        ("model.layers.0.self_attn.q_proj.weight", [128, 128]),
        ("model.layers.1.self_attn.k_proj.weight", [32, 128]),
        ("model.layers.1.mlp.down_proj.weight", [128, 352]),
    ] {
        let values: Vec<u8> = (0..shape[0] * shape[1]).map(|_| u8::from(random.next() > 1.0)).collect();
        masks.push((name, shape, values));
    }
    let views: Vec<_> = masks
        .iter()
        .map(|(name, shape, bytes)| TensorView { name, dtype: Dtype::U8, shape, bytes })
        .collect();
    let mask_path = fresh("mask.safetensors");
    write_safetensors(&mut fs::File::create(&mask_path).unwrap(), &views, &[]).unwrap();
    let mask = Mask::open(&mask_path).unwrap();
    let adapter = Adapter::open(path("lora_all")).unwrap();
    let gguf = {
        let out = fresh("restore-base.gguf");
        let options = graftwork::merge::Options { form: Form::Gguf, to: None, threads: 2 };
        merge(&Source::from(path("base")), &[], &out, &options, &|_, _| true).unwrap();
        out
    };
    let weights = Safetensors::open(path("base").join("model.safetensors")).unwrap();
    let tokens = &Expected::read("adapters/base/expected.safetensors", "logits").tokens[0];
    let mut logits = Vec::new();
    for base in [path("base"), gguf] {
        let grafted = [Grafted { name: "lora_all", adapter: &adapter, weight: 1.0 }];
        let (patch, report) = restore(&base, &base, &grafted, Choice::Mask(&mask), "part.delta");
        for matrix in &report.matrices {
            let name = format!("{}.weight", matrix.name);
            let chosen = masks.iter().find(|(other, ..)| *other == name);
            let expected =
                chosen.map_or(0, |(_, _, values)| values.iter().filter(|&&value| value != 0).count());
            assert_eq!(matrix.entries, expected, "{}", matrix.name);
        }
        let delta = Delta::open(&patch).unwrap();
        assert_eq!(delta.base_model.as_deref(), Some("tuned + lora_all:1"));
        // Merged together, the chosen entries are the base's to the bit.
        let patch_adapter = Adapter::open(&*patch).unwrap();
        let stack = [grafted[0], Grafted { name: "patch", adapter: &patch_adapter, weight: 1.0 }];
        if base.is_dir() {
            let out = fresh("part-merged");
            let options = graftwork::merge::Options { form: Form::HuggingFace, to: None, threads: 2 };
            merge(&Source::from(&base), &stack, &out, &options, &|_, _| true).unwrap();
            let merged = Safetensors::open(out.join("model.safetensors")).unwrap();
            for (name, _, chosen) in &masks {
                let [before, after] =
                    [&weights, &merged].map(|file| file.require(name).unwrap().decode().unwrap());
                for ((before, after), &chosen) in before.iter().zip(&after).zip(chosen) {
                    assert_eq!(before.to_bits() == after.to_bits(), chosen != 0, "{name}");
                }
            }
        }
        for layer in &delta.layers {
            assert!(matches!(&layer.parts[..], [Part::Overwrite { .. }]));
        }
        let engine = open(&base);
        engine.load_adapter("lora_all", path("lora_all")).unwrap();
        engine.load_adapter("patch", &*patch).unwrap();
        let stack = [("lora_all".to_owned(), 1.0), ("patch".to_owned(), 1.0)];
        logits.push(engine.logits(tokens, &stack).unwrap());
        let unpatched = engine.logits(tokens, &stack[..1]).unwrap();
        assert!(Closeness::of(&unpatched, logits.last().unwrap()).max_difference > 1e-2);
    }
    let closeness = Closeness::of(&logits[0], &logits[1]);
    assert!(closeness.max_difference <= 2e-4, "{closeness:?}");
}

#[test]
fn choices_that_mean_nothing_are_refused() {
    let refused = |choice: Choice<'_>| {
        let options = Options { adapters: &[], choice, layers: None, base_model: None, threads: 1 };
        let base = Source::from(path("base"));
        run((&base, &base), &fresh("never"), &options, &|_, _| true).unwrap_err().to_string()
    };
    for rate in [0.0, -0.5, 1.5, f64::NAN] {
        let error = refused(Choice::Magnitude(rate));
        assert!(error.starts_with("rate: expected a number above 0"), "{error}");
    }
    assert!(refused(Choice::Magnitude(0.5)).contains("expected weights other than the base's"));
    for (name, dtype, shape, expected) in [
        ("model.layers.0.self_attn.q_proj", Dtype::U8, [128, 128], "is not understood"),
        ("model.layers.9.self_attn.q_proj.weight", Dtype::U8, [128, 128], "is not understood"),
        (
            "model.layers.0.self_attn.q_proj.weight",
            Dtype::U8,
            [128, 64],
            "expected shape U8 or BOOL [128, 128]",
        ),
        ("model.layers.0.self_attn.q_proj.weight", Dtype::F16, [128, 128], "expected shape U8 or BOOL"),
    ] {
        let bytes = vec![1; (shape[0] * shape[1] * dtype.bits() / 8) as usize];
        let mask = fresh("bad.safetensors");
        let view = TensorView { name, dtype, shape: &shape, bytes: &bytes };
        write_safetensors(&mut fs::File::create(&mask).unwrap(), &[view], &[]).unwrap();
        let error = refused(Choice::Mask(&Mask::open(&mask).unwrap()));
        assert!(error.contains(expected), "{error}");
    }
    let error = rollback(&path("lora"), &fresh("never")).unwrap_err().to_string();
    assert!(!error.is_empty());
}

/// Behind other adapters, and with other weights than it was made for, what is merged is what is applied; on an adapter in a base of
/// halves files go back to the bit; in blocks, where they cannot, the way back is refused.
#[test]
fn patches_are_merged_as_they_are_applied() {
    let adapter = Adapter::open(path("lora_all")).unwrap();
    let grafted = [Grafted { name: "lora_all", adapter: &adapter, weight: 1.0 }];
    let aligned = merged(&path("base"), &path("lora"), "as-aligned", Form::HuggingFace, None);
    let (patch, _) = restore(&aligned, &path("base"), &grafted, Choice::Magnitude(0.5), "as-applied.delta");
    let patch_adapter = Adapter::open(&*patch).unwrap();
    let lora = Adapter::open(path("lora")).unwrap();
    let engine = open(path("base"));
    for (name, file) in [("lora_all", path("lora_all")), ("lora", path("lora")), ("patch", patch.clone())] {
        engine.load_adapter(name, file).unwrap();
    }
    let tokens = &Expected::read("adapters/base/expected.safetensors", "logits").tokens[0];
    for (name, adapter, weight) in
        [("lora_all", &adapter, 1.0), ("lora_all", &adapter, 0.5), ("lora", &lora, 1.0)]
    {
        let stack = [
            Grafted { name, adapter, weight },
            Grafted { name: "patch", adapter: &patch_adapter, weight: 1.0 },
        ];
        let out = fresh("as-merged");
        let options = graftwork::merge::Options { form: Form::HuggingFace, to: None, threads: 2 };
        let found = merge(&Source::from(path("base")), &stack, &out, &options, &|_, _| true);
        if name == "lora" {
            // It leaves layers alone that the patch is for, which are then not what they were.
            let error = found.unwrap_err().to_string();
            assert!(error.contains("layer 0 k, an entry to overwrite"), "{error}");
            continue;
        }
        found.unwrap();
        let named = stack.map(|own| (own.name.to_owned(), own.weight));
        let applied = engine.logits(tokens, &named).unwrap();
        let closeness = Closeness::of(&applied, &open(&out).logits(tokens, &[]).unwrap());
        assert!(closeness.max_difference <= 2e-4, "{name} {weight}: {closeness:?}");
    }

    let halves = {
        let out = fresh("halves");
        let to = Some("BF16".parse().unwrap());
        let options = graftwork::merge::Options { form: Form::HuggingFace, to, threads: 2 };
        merge(&Source::from(path("base")), &[], &out, &options, &|_, _| true).unwrap();
        out
    };
    let (patch, _) = restore(&aligned, &halves, &grafted, Choice::Magnitude(0.01), "halves.delta");
    let patch_adapter = Adapter::open(&*patch).unwrap();
    let options = graftwork::merge::Options { form: Form::HuggingFace, to: None, threads: 2 };
    let stack = [grafted[0], Grafted { name: "patch", adapter: &patch_adapter, weight: 1.0 }];
    let [tuned, restored] = ["halves-tuned", "halves-restored"].map(fresh);
    merge(&Source::from(&halves), &stack[..1], &tuned, &options, &|_, _| true).unwrap();
    merge(&Source::from(&halves), &stack, &restored, &options, &|_, _| true).unwrap();
    let back = fresh("halves-back.delta");
    rollback(&patch, &back).unwrap();
    let rolled_back = merged(&restored, &back, "halves-rolled-back", Form::HuggingFace, None);
    assert!(bits(&tuned) == bits(&rolled_back) && bits(&tuned) != bits(&restored));

    let blocks = {
        let out = fresh("blocks.gguf");
        let to = Some("Q4_0".parse().unwrap());
        let options = graftwork::merge::Options { form: Form::Gguf, to, threads: 2 };
        merge(&Source::from(path("base")), &[], &out, &options, &|_, _| true).unwrap();
        out
    };
    let (patch, _) = restore(&aligned, &blocks, &[], Choice::Magnitude(0.01), "blocks.delta");
    let restored = merged(&blocks, &patch, "blocks-restored.gguf", Form::Gguf, None);
    let back = fresh("blocks-back.delta");
    rollback(&patch, &back).unwrap();
    let adapter = Adapter::open(&*back).unwrap();
    let grafted = [Grafted { name: "back", adapter: &adapter, weight: 1.0 }];
    let options = graftwork::merge::Options { form: Form::Gguf, to: None, threads: 2 };
    let error =
        merge(&Source::from(&restored), &grafted, &fresh("never"), &options, &|_, _| true).unwrap_err();
    assert!(error.to_string().contains("an entry to overwrite"), "{error}");
}
