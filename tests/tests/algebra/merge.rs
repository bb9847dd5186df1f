//! A merged model gives the logits of the base with its adapters.

use std::fs;
use std::path::{Path, PathBuf};

use graftwork::merge::{Error, FileType, Form, Grafted, Options, Report, merge as run};
use graftwork::quantize::quantize;
use graftwork::{Engine, Source};
use graftwork_adapters::delta::Delta;
use graftwork_adapters::file::{Dtype, Gguf, HfModel, Safetensors, TensorView, write_safetensors};
use graftwork_adapters::{Adapter, Change, Edit, Module, RowOrder, Site, TensorFile};
use graftwork_kernels::{Format, Tensor};
use graftwork_tests::reference::{ADAPTERS, Closeness, Expected, golden};

use crate::{fresh, open};

const FORMS: [Form; 2] = [Form::HuggingFace, Form::Gguf];

/// Those that are no change of weights, and why.
const REFUSED: &[(&str, &str)] = &[
    ("alora", "merging lora is not supported: it acts on some tokens only"),
    ("prompt_tuning", "merging prompt_tuning at prompt is not supported: what comes before the prompt"),
    ("p_tuning", "merging p_tuning at prompt is not supported: what comes before the prompt"),
    ("prefix_tuning", "merging prefix_tuning at prefix is not supported: what comes before the prompt"),
    (
        "prefix_tuning_projected",
        "merging prefix_tuning at prefix is not supported: what comes before the prompt",
    ),
    ("bottleneck", "merging bottleneck at layer 0 gate is not supported: a network with a function"),
    ("bottleneck_adapterp", "merging bottleneck at layer 0 down is not supported: a network with a function"),
    ("bottleneck_parallel", "merging bottleneck at layer 0 q is not supported: a network with a function"),
    ("hub_seq_bn", "merging bottleneck at layer 0 stream after feed-forward is not supported: a network"),
    ("hub_double_seq_bn", "merging bottleneck at layer 0 o is not supported: a network"),
    ("hub_par_bn", "merging bottleneck at layer 0 stream after feed-forward is not supported: a network"),
    ("hub_scaled_par_bn", "merging bottleneck at layer 0 stream after attention is not supported: a network"),
    (
        "control_vector",
        "merging control_vector at layer 1 stream after feed-forward is not supported: it changes the residual",
    ),
    (
        "ablation",
        "merging ablation at layer 0 stream after feed-forward is not supported: it changes the residual",
    ),
];

fn path(name: &str) -> PathBuf {
    golden(&format!("adapters/{name}"))
}

fn merge(
    base: &Path,
    adapters: &[(&str, f32)],
    out: &str,
    form: Form,
    to: Option<&str>,
) -> Result<(PathBuf, Report), Error> {
    let loaded: Vec<Adapter> = adapters.iter().map(|(name, _)| Adapter::open(path(name)).unwrap()).collect();
    let grafted = |(&(name, weight), adapter)| Grafted { name, adapter, weight };
    let grafted: Vec<_> = adapters.iter().zip(&loaded).map(grafted).collect();
    let out = fresh(out);
    let options = Options { form, to: to.map(|to| to.parse().unwrap()), threads: 2 };
    let merged = run(&Source::from(base), &grafted, &out, &options, &|_, _| true);
    assert_eq!(out.exists(), merged.is_ok(), "{adapters:?}");
    Ok((out, merged?))
}

/// The base as a GGUF file in a format.
fn gguf(format: &str) -> PathBuf {
    let out = fresh(&format!("base-{format}.gguf"));
    let options =
        graftwork::quantize::Options { file_type: format.parse().unwrap(), calibration: None, threads: 2 };
    quantize(&Source::from(path("base")), &out, &options, &|_, _, _| true).unwrap();
    out
}

/// Every kind that is a change of weights, from a directory and from a GGUF file, to both: peft's logits, to the 2e-3 that f32
/// arithmetic in another order may differ. The others are refused by name.
#[test]
fn merged_models_give_the_logits_of_peft() {
    let file = gguf("F32");
    let mut merged = 0;
    for &name in ["resized"].iter().chain(ADAPTERS) {
        let expected = Expected::read(&format!("adapters/{name}/expected.safetensors"), "logits");
        let cases = [(path("base"), FORMS[0]), (path("base"), FORMS[1]), (file.clone(), FORMS[1])];
        for (i, (base, form)) in cases.iter().enumerate() {
            let out = format!("kinds-{i}-{name}");
            let found = merge(base, &[(name, 1.0)], &out, *form, Some("F32"));
            if let Some((_, reason)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
                let error = found.expect_err(name).to_string();
                assert!(error.starts_with(&format!("{name}: {reason}")), "{error}");
                continue;
            }
            if name == "resized" && i == 2 {
                let error = found.expect_err(name).to_string();
                assert!(error.contains("vocabulary of a GGUF file: expected its 512 tokens"), "{error}");
                continue;
            }
            let (out, report) = found.unwrap_or_else(|error| panic!("{name} {i}: {error}"));
            let closeness = expected.compare(|tokens| open(&out).logits(tokens, &[]).unwrap());
            println!("{name} {i}: {closeness:?}");
            assert!(closeness.max_difference <= 2e-3, "{name} {i}: {closeness:?}");
            assert!(report.tensors.iter().any(|tensor| tensor.change.is_some_and(|change| change > 0.0)));
            merged += 1;
        }
    }
    assert_eq!(merged, 3 * (ADAPTERS.len() - REFUSED.len()) + 2);
}

fn worst(a: &Engine, b: &Engine, stack: &[(String, f32)]) -> f32 {
    let expected = Expected::read("adapters/lora/expected.safetensors", "logits");
    let pairs = expected.tokens.iter().map(|tokens| [a.logits(tokens, &[]), b.logits(tokens, stack)]);
    pairs.fold(0.0, |worst, [a, b]| Closeness::of(&a.unwrap(), &b.unwrap()).max_difference.max(worst))
}

/// Stacks with weights: what the engine computes with the adapters beside the base. Merged into F32 weights, what differs is the
/// order of sums.
#[test]
fn stacks_are_merged_in_their_order() {
    let base = open(path("base"));
    for &name in ADAPTERS {
        base.load_adapter(name, path(name)).unwrap();
    }
    let stacks: [&[(&str, f32)]; 7] = [
        &[("lora_all", 0.5), ("dora", -0.75)],
        &[("ia3", 1.5), ("lora_bias", 0.5), ("ia3", -0.5)],
        &[("lora_bias", 2.0), ("dora", 0.5), ("ia3", 0.25)],
        &[("oft", 1.0), ("lora_all", 0.3), ("oft_exact", 1.0)],
        &[("lora_trainable_tokens", 1.0), ("lora_embed_head", 0.5)],
        &[("lora_modules_to_save", 1.0), ("loha", -1.0), ("lokr", 2.0), ("shira", 0.5), ("vera", 0.5)],
        &[("lora_modules_to_save", 0.0), ("oft", 0.0), ("adalora", 0.125)],
    ];
    for (i, stack) in stacks.iter().enumerate() {
        let named: Vec<_> = stack.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
        // An engine names each adapter once, as a request does.
        let repeats = (1..stack.len()).any(|i| stack[..i].iter().any(|(name, _)| *name == stack[i].0));
        for form in FORMS {
            let (out, _) = merge(&path("base"), stack, &format!("stack-{i}"), form, None).unwrap();
            if !repeats {
                let difference = worst(&open(&out), &base, &named);
                println!("{stack:?}: {difference}");
                assert!(difference <= 2e-4, "{stack:?}: {difference}");
            }
        }
    }
}

/// A quantized base keeps the formats of its tensors, and the bytes of those that do not change; with a file type, the merged
/// model is the one that `quantize` makes of it.
#[test]
fn formats_are_kept_or_chosen() {
    let base = gguf("Q4_K_M");
    let (out, report) = merge(&base, &[("lora", 1.0)], "kept", Form::Gguf, None).unwrap();
    let [before, after] = [Gguf::open(&base).unwrap(), Gguf::open(&out).unwrap()];
    assert_eq!(before.names(), after.names());
    for (name, tensor) in before.names().into_iter().zip(&report.tensors) {
        let [before, after] = [before.require(name).unwrap(), after.require(name).unwrap()];
        let changes = name.contains("attn_q") || name.contains("attn_v");
        assert_eq!((before.format(), before.rows()), (after.format(), after.rows()), "{name}");
        assert_eq!((&*tensor.name, tensor.change.is_some()), (name, changes));
        assert_eq!(**before.bytes() == **after.bytes(), !changes, "{name}");
    }
    assert_eq!(before.metadata().value("general.file_type"), after.metadata().value("general.file_type"));

    let (floats, _) = merge(&path("base"), &[("dora", 1.0)], "floats", Form::HuggingFace, None).unwrap();
    let (direct, _) =
        merge(&path("base"), &[("dora", 1.0)], "direct.gguf", Form::Gguf, Some("Q5_K_M")).unwrap();
    let later = fresh("later.gguf");
    let file_type: FileType = "Q5_K_M".parse().unwrap();
    let options = graftwork::quantize::Options { file_type, calibration: None, threads: 2 };
    quantize(&Source::from(&floats), &later, &options, &|_, _, _| true).unwrap();
    let [direct, later] = [direct, later].map(|path| Gguf::open(path).unwrap());
    for name in direct.names() {
        assert!(**direct.require(name).unwrap().bytes() == **later.require(name).unwrap().bytes(), "{name}");
    }
}

/// What a directory holds beside weights comes along, and says what changed.
#[test]
fn directories_stay_whole() {
    let base = fresh("with-more");
    fs::create_dir(&base).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(path("base").join(name), base.join(name)).unwrap();
    }
    fs::write(base.join("LICENSE"), "free").unwrap();
    fs::write(base.join("pytorch_model.bin"), "weights").unwrap();
    let (out, _) = merge(&base, &[("lora_bias", 1.0)], "whole", Form::HuggingFace, Some("BF16")).unwrap();
    let mut names: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["LICENSE", "config.json", "model.safetensors"]);
    let model = HfModel::load(&Source::from(&out)).unwrap();
    assert_eq!(model.config["attention_bias"], true);
    let dtype = model.config.get("dtype").or(model.config.get("torch_dtype"));
    assert_eq!(dtype.and_then(|dtype| dtype.as_str()), Some("bfloat16"));
    let weights = Safetensors::open(out.join("model.safetensors")).unwrap();
    assert!(weights.tensors().iter().all(|(_, info)| info.dtype.name() == "BF16"));
    assert_eq!(weights.tensors().get("model.norm.weight").unwrap().shape, [128]);

    // Nothing is written over, and nothing is left behind.
    let refused = |base: &Path, out: &Path, form, to: Option<&str>| {
        let options = Options { form, to: to.map(|to| to.parse().unwrap()), threads: 1 };
        run(&Source::from(base), &[], out, &options, &|_, _| true).unwrap_err().to_string()
    };
    let error = refused(&base, &out, Form::HuggingFace, None);
    assert!(error.ends_with("expected a new directory, found something of that name"), "{error}");
    let error = refused(&base, &fresh("q"), Form::HuggingFace, Some("Q4_0"));
    assert_eq!(error, "a Hugging Face directory: expected F32, F16 or BF16, found Q4_0");
    let error = refused(&gguf("Q8_0"), &fresh("g"), Form::HuggingFace, None);
    assert!(error.contains("expected a base that is one"), "{error}");
    let stopped = fresh("stopped");
    let options = Options { form: Form::HuggingFace, to: None, threads: 2 };
    run(&Source::from(&base), &[], &stopped, &options, &|done, _| done == 0).unwrap_err();
    assert!(!stopped.exists() && !stopped.with_extension("partial").exists());
}

#[test]
fn weights_that_mean_nothing_are_refused() {
    for (name, weight, expected) in [
        ("lora", f32::NAN, "expected a finite weight"),
        ("oft", 0.5, "its weight is 0 or 1, found 0.5"),
        ("lora_modules_to_save", -1.0, "its weight is 0 or 1, found -1"),
    ] {
        let error =
            merge(&path("base"), &[(name, weight)], "never", Form::Gguf, None).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error =
        merge(&path("base"), &[("resized", 1.0), ("lora_embed_head", 1.0)], "never", Form::HuggingFace, None);
    assert!(error.unwrap_err().to_string().contains("tokens of its own"));
}

/// Where embedding and head are one matrix, they become two as soon as an adapter changes one of them alone.
#[test]
fn a_tied_head_is_untied_when_it_must_be() {
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(path("base").join("config.json")).unwrap()).unwrap();
    config["tie_word_embeddings"] = true.into();
    let base = fresh("tied");
    fs::create_dir(&base).unwrap();
    fs::write(base.join("config.json"), config.to_string()).unwrap();
    // Its own head stays in the file: who reads it by its configuration leaves that alone.
    fs::copy(path("base").join("model.safetensors"), base.join("model.safetensors")).unwrap();
    let file = fresh("tied.gguf");
    let file_type = "F32".parse().unwrap();
    let options = graftwork::quantize::Options { file_type, calibration: None, threads: 2 };
    quantize(&Source::from(&base), &file, &options, &|_, _, _| true).unwrap();
    for (stack, tied) in [
        (vec![("lora", 1.0)], true),
        (vec![("lora_trainable_tokens", 1.0)], true),
        (vec![("lora_embed_head", 1.0)], false),
        (vec![("lora_modules_to_save", 1.0), ("lora_trainable_tokens", 1.0)], false),
    ] {
        let named: Vec<_> = stack.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
        for (from, form) in [(&base, FORMS[0]), (&base, FORMS[1]), (&file, FORMS[1])] {
            let (out, report) = merge(from, &stack, "untied", form, None).unwrap();
            let engine = open(from);
            for (name, _) in &stack {
                engine.load_adapter(name, path(name)).unwrap();
            }
            let difference = worst(&open(&out), &engine, &named);
            println!("{stack:?} {form:?}: {difference}");
            assert!(difference <= 2e-4, "{stack:?} {form:?}: {difference}");
            let heads = ["lm_head.weight", "output.weight"];
            assert_eq!(
                !report.tensors.iter().any(|tensor| heads.contains(&&*tensor.name)),
                tied,
                "{stack:?}"
            );
        }
    }
}

/// A bias at one layer alone makes the model one with biases: zeros at the other layers that its description means too.
#[test]
fn one_bias_makes_a_model_with_biases() {
    for (module, outputs, inputs) in
        [("self_attn.q_proj", 128, 128), ("self_attn.o_proj", 128, 128), ("mlp.up_proj", 352, 128)]
    {
        let part = |name: &str, shape: Vec<u64>, seed: u64| {
            let mut random = crate::Random(seed);
            let count = shape.iter().product::<u64>();
            let values: Vec<u8> = (0..count).flat_map(|_| (0.1 * random.next()).to_le_bytes()).collect();
            (format!("base_model.model.model.layers.1.{module}.{name}"), shape, values)
        };
        let tensors = [
            part("lora_A.weight", vec![2, inputs], 1),
            part("lora_B.weight", vec![outputs, 2], 2),
            part("lora_B.bias", vec![outputs], 3),
        ];
        let views: Vec<_> = tensors
            .iter()
            .map(|(name, shape, bytes)| TensorView { name, dtype: Dtype::F32, shape, bytes })
            .collect();
        let mut weights = Vec::new();
        write_safetensors(&mut weights, &views, &[]).unwrap();
        let config = br#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_bias": true, "target_modules": "all-linear"}"#;
        let adapter = Adapter::from_peft(config, weights.clone().into()).unwrap();
        let source = [("adapter_config.json", config.to_vec()), ("adapter_model.safetensors", weights)];
        let source = source.map(|(name, bytes)| (name.to_owned(), bytes.into()));
        let engine = open(path("base"));
        engine.load_adapter("one", Source::files(source.into()).unwrap()).unwrap();
        for form in FORMS {
            let out = fresh("one-bias");
            let options = Options { form, to: None, threads: 2 };
            let grafted = [Grafted { name: "one", adapter: &adapter, weight: 1.0 }];
            run(&Source::from(path("base")), &grafted, &out, &options, &|_, _| true).unwrap();
            let difference = worst(&open(&out), &engine, &[("one".to_owned(), 1.0)]);
            assert!(difference <= 2e-4, "{module} {form:?}: {difference}");
        }
    }
}

/// What is replaced whole, in a file with rows in another order than the base's, on a base with biases, which stay.
#[test]
fn replaced_layers_keep_their_order_and_bias() {
    let directory = golden("architectures/llama_linear_bias");
    let file = fresh("biased.gguf");
    let options = Options { form: Form::Gguf, to: None, threads: 2 };
    run(&Source::from(&directory), &[], &file, &options, &|_, _| true).unwrap();
    let weights = Safetensors::open(directory.join("model.safetensors")).unwrap();
    let mut random = crate::Random(5);
    let carried = [Module::Q, Module::K, Module::Up].map(|module| {
        let site = Site::Linear { layer: 1, module };
        let base = weights.require(&format!("{}.weight", site.hf_path().unwrap())).unwrap();
        let values: Vec<f32> = (0..base.rows() * base.cols()).map(|_| 0.1 * random.next()).collect();
        let weight = Tensor::encode(Format::F32, base.rows(), base.cols(), &values).unwrap();
        Edit { site, change: Change::Replace { weight } }
    });
    let delta = Delta {
        method: "whole".to_owned(),
        architecture: None,
        base_model: None,
        bases: Vec::new(),
        row_order: RowOrder::HuggingFace,
        layers: Vec::new(),
        carried: carried.into(),
    };
    let place = fresh("whole.delta");
    delta.write(&place).unwrap();
    let adapter = Adapter::open(&*place).unwrap();
    let tokens: Vec<u32> = (0..24).map(|t| (t * 37 + 5) % 300).collect();
    let mut all = Vec::new();
    for (base, form) in [(&directory, FORMS[0]), (&directory, FORMS[1]), (&file, FORMS[1])] {
        let out = fresh("whole-merged");
        let options = Options { form, to: None, threads: 2 };
        let grafted = [Grafted { name: "whole", adapter: &adapter, weight: 1.0 }];
        run(&Source::from(base), &grafted, &out, &options, &|_, _| true).unwrap();
        let engine = open(base);
        engine.load_adapter("whole", &*place).unwrap();
        all.push(engine.logits(&tokens, &[("whole".to_owned(), 1.0)]).unwrap());
        all.push(open(&out).logits(&tokens, &[]).unwrap());
    }
    for logits in &all[1..] {
        let difference = Closeness::of(&all[0], logits).max_difference;
        assert!(difference <= 2e-4, "{difference}");
    }
}

/// An adapter of weight 0 is not there; one that a model's description cannot hold is refused.
#[test]
fn nothing_is_merged_in_part() {
    let (out, report) =
        merge(&path("base"), &[("resized", 0.0), ("oft", 0.0)], "zero", FORMS[0], None).unwrap();
    assert!(report.tensors.iter().all(|tensor| tensor.change.is_none()));
    assert_eq!(fs::read(out.join("config.json")).unwrap().len(), {
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(path("base").join("config.json")).unwrap()).unwrap();
        format!("{config:#}\n").len()
    });
    let tensor = |name: &str, shape: [u64; 2]| {
        let count = shape[0] * shape[1];
        (format!("base_model.model.lm_head.{name}"), shape, [0, 0, 0, 63].repeat(count as usize))
    };
    let tensors = [
        tensor("lora_A.weight", [2, 128]),
        tensor("lora_B.weight", [512, 2]),
        tensor("lora_B.bias", [512, 1]),
    ];
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, shape, bytes)| TensorView {
            name,
            dtype: Dtype::F32,
            shape: if shape[1] == 1 { &shape[..1] } else { shape },
            bytes,
        })
        .collect();
    let mut weights = Vec::new();
    write_safetensors(&mut weights, &views, &[]).unwrap();
    let config = br#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_bias": true, "target_modules": ["lm_head"]}"#;
    let adapter = Adapter::from_peft(config, weights.into()).unwrap();
    let options = Options { form: Form::Gguf, to: None, threads: 1 };
    let grafted = [Grafted { name: "head", adapter: &adapter, weight: 1.0 }];
    let error =
        run(&Source::from(path("base")), &grafted, &fresh("never"), &options, &|_, _| true).unwrap_err();
    assert_eq!(
        error.to_string(),
        "head: merging a bias at head is not supported: a model's description has none there"
    );

    // What another left where the unfinished directory would be stays.
    let precious = fresh("taken.partial");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("file"), "precious").unwrap();
    let options = Options { form: Form::HuggingFace, to: None, threads: 1 };
    let error = run(&Source::from(path("base")), &[], &fresh("taken"), &options, &|_, _| true).unwrap_err();
    assert!(error.to_string().contains("taken.partial: expected nothing of that name"), "{error}");
    assert_eq!(fs::read(precious.join("file")).unwrap(), b"precious");
    // A slash at the end.
    let out = fresh("slash");
    let slash = PathBuf::from(format!("{}/", out.display()));
    run(&Source::from(path("base")), &[], &slash, &options, &|_, _| true).unwrap();
    assert!(out.join("model.safetensors").is_file());
}
