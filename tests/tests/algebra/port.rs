//! Adapters moved to a base that came of theirs.

use std::fs;
use std::path::{Path, PathBuf};

use graftwork::merge::{Form, Grafted, merge};
use graftwork::port::{Error, FAR, Options, Report, port as run};
use graftwork::restore::{Choice, restore};
use graftwork::{Request, Source};
use graftwork_adapters::delta::{Delta, Fingerprint};
use graftwork_adapters::file::{Dtype, HfModel, Safetensors, TensorView, write_safetensors};
use graftwork_adapters::seed::{SeedPatch, Settings};
use graftwork_adapters::{Adapter, Change, Module, TensorFile, write_peft};
use graftwork_kernels::{Format, Tensor};
use graftwork_tests::reference::{ADAPTERS, Closeness, Expected, example, golden, smollm2};

use crate::{Random, fresh, open};

fn path(name: &str) -> PathBuf {
    golden(&format!("adapters/{name}"))
}

/// `model` with `adapters` made part of it.
fn merged(model: &Path, adapters: &[&Path], out: &str, form: Form, to: Option<&str>) -> PathBuf {
    let loaded: Vec<Adapter> = adapters.iter().map(|path| Adapter::open(*path).unwrap()).collect();
    let grafted: Vec<_> =
        loaded.iter().map(|adapter| Grafted { name: "drift", adapter, weight: 1.0 }).collect();
    let out = fresh(out);
    let options = graftwork::merge::Options { form, to: to.map(|to| to.parse().unwrap()), threads: 2 };
    merge(&Source::from(model), &grafted, &out, &options, &|_, _| true).unwrap();
    out
}

fn port(old: &Path, new: &Path, adapter: &Path, out: &Path) -> Result<Report, Error> {
    let options = Options { base_model: Some("the-new-base"), threads: 2 };
    let found = run((&Source::from(old), &Source::from(new)), adapter, out, &options, &|_, _| true);
    assert_eq!(out.exists(), found.is_ok());
    found
}

/// A LoRA of this rank with random values at some layers, which moves weights by about `size` of theirs.
fn random_lora(out: &str, shapes: &[(String, [u64; 2])], rank: u64, size: f32) -> PathBuf {
    let mut random = Random(23);
    let mut tensors = Vec::new();
    for (module, [outputs, inputs]) in shapes {
        for (part, shape) in [("lora_A", [rank, *inputs]), ("lora_B", [*outputs, rank])] {
            let values: Vec<u8> =
                (0..shape[0] * shape[1]).flat_map(|_| random.next().to_le_bytes()).collect();
            tensors.push((format!("base_model.model.{module}.{part}.weight"), shape, values));
        }
    }
    let out = fresh(out);
    fs::create_dir(&out).unwrap();
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, shape, bytes)| TensorView { name, dtype: Dtype::F32, shape, bytes })
        .collect();
    let mut file = fs::File::create(out.join("adapter_model.safetensors")).unwrap();
    write_safetensors(&mut file, &views, &[]).unwrap();
    let alpha = f64::from(size) * rank as f64;
    let config = serde_json::json!({"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": "all-linear"});
    fs::write(out.join("adapter_config.json"), config.to_string()).unwrap();
    out
}

/// Every kind, to a base with other weights, norms, embedding and head: what the adapter adds is added to what the new base has, so
/// the logits are those of the base with both, up to what rounding costs; and moved back it is what it was.
#[test]
fn every_kind_is_what_it_adds() {
    let drift = [path("lora_modules_to_save"), path("lora_all"), path("lora_embed_head")];
    let new =
        merged(&path("base"), &drift.each_ref().map(|path| &**path), "evolved", Form::HuggingFace, None);
    let [old_engine, new_engine] = [open(path("base")), open(&new)];
    let tokens = &Expected::read("adapters/base/expected.safetensors", "logits").tokens[0];
    for &name in ADAPTERS {
        let out = fresh(&format!("ported-{name}"));
        let report =
            port(&path("base"), &new, &path(name), &out).unwrap_or_else(|error| panic!("{name}: {error}"));
        let moves = ["dora", "lora_modules_to_save", "lora_trainable_tokens", "lora_embed_head"];
        assert_eq!(report.rebased > 0, moves.contains(&name) || name == "ln_tuning", "{name}");
        new_engine.load_adapter(name, &*out).unwrap_or_else(|error| panic!("{name}: {error}"));
        let stack = [(name.to_owned(), 1.0)];
        let found = new_engine.logits(tokens, &stack).unwrap();
        let back = fresh(&format!("back-{name}"));
        port(&new, &path("base"), &out, &back).unwrap_or_else(|error| panic!("{name}: {error}"));
        old_engine.load_adapter(name, path(name)).unwrap();
        let expected = old_engine.logits(tokens, &stack).unwrap();
        old_engine.replace_adapter(name, &*back, None).unwrap();
        let again = old_engine.logits(tokens, &stack).unwrap();
        let closeness = Closeness::of(&expected, &again);
        println!("{name}: {} rebased, {closeness:?}", report.rebased);
        assert!(closeness.max_difference <= 2e-4, "{name}: {closeness:?}");
        assert!(found.iter().all(|logit| logit.is_finite()));
    }
    // Additive: a stack of the drift and the adapter, whose order does not matter.
    for name in ["loha", "shira", "vera"] {
        let drift = path("lora_all");
        let new = merged(&path("base"), &[&drift], "added", Form::Gguf, Some("F32"));
        let out = fresh("added-ported");
        let report = port(&path("base"), &new, &path(name), &out).unwrap();
        assert!(report.drifts.iter().all(|drift| (drift.drift > 0.0) == drift.name.contains("_proj")));
        let engine = open(&new);
        engine.load_adapter(name, &*out).unwrap();
        let found = engine.logits(tokens, &[(name.to_owned(), 1.0)]).unwrap();
        let base = open(path("base"));
        let mut stack = Vec::new();
        for name in ["lora_all", name] {
            base.load_adapter(name, path(name)).unwrap();
            stack.push((name.to_owned(), 1.0));
        }
        let closeness = Closeness::of(&base.logits(tokens, &stack).unwrap(), &found);
        assert!(closeness.max_difference <= 2e-4, "{name}: {closeness:?}");
    }
}

/// What names its base by a fingerprint names the new one then: deltas, restore patches, seed patches; and is refused where it was
/// for another.
#[test]
fn fingerprints_move() {
    let drift = path("lora_all");
    let new = merged(&path("base"), &[&drift], "moved", Form::HuggingFace, None);
    let fingerprint = |model: &Path| {
        let model = HfModel::load(&Source::from(model)).unwrap();
        Fingerprint::of("llama", &model.weights as &dyn TensorFile)
    };
    let tuned = merged(&path("base"), &[&path("dora")], "moved-tuned", Form::HuggingFace, None);
    let patch = fresh("moved.delta");
    let options = graftwork::restore::Options {
        adapters: &[],
        choice: Choice::Magnitude(0.01),
        layers: None,
        base_model: None,
        threads: 2,
    };
    restore((&Source::from(&tuned), &Source::from(path("base"))), &patch, &options, &|_, _| true).unwrap();
    let seeds = fresh("moved.seed");
    let settings = Settings {
        bases: vec![fingerprint(&path("base"))],
        base_seed: 7,
        scale: 0.01,
        modules: vec![Module::Q, Module::Down],
    };
    let seed_patch = SeedPatch::new(settings, vec![1.0, -0.5]).unwrap();
    seed_patch.write(&mut fs::File::create(&seeds).unwrap()).unwrap();
    for (adapter, rebased) in [(&patch, true), (&seeds, false)] {
        let out = fresh("moved-out");
        let report = port(&path("base"), &new, adapter, &out).unwrap();
        assert_eq!(report.rebased > 0, rebased);
        assert_eq!(Adapter::open(&*out).unwrap().bases, [fingerprint(&new)]);
        open(&new).load_adapter("moved", &*out).unwrap();
        let error = port(&new, &path("base"), adapter, &fresh("never")).unwrap_err().to_string();
        assert!(error.contains("fingerprint"), "{error}");
    }
    let delta = Delta::open(&patch).unwrap();
    assert_eq!(delta.layers.len(), 21);
}

/// The answers of the tools LoRA outlive a drift of low rank; the report names what drifted most; a base of another lineage is refused.
#[test]
fn the_tools_lora_outlives_a_drift() {
    let base = smollm2();
    let shapes: Vec<(String, [u64; 2])> =
        [(3, "mlp.down_proj", [576, 1536]), (17, "self_attn.o_proj", [576, 576])]
            .into_iter()
            .chain((0..30).flat_map(|layer| {
                [(layer, "mlp.up_proj", [1536, 576]), (layer, "self_attn.v_proj", [192, 576])]
            }))
            .map(|(layer, module, shape)| (format!("model.layers.{layer}.{module}"), shape))
            .collect();
    let drift = random_lora("drift", &shapes, 4, 0.004);
    let new = merged(&base, &[&drift], "drifted.gguf", Form::Gguf, Some("Q8_0"));
    let out = fresh("tools-ported");
    let report = port(&base, &new, &example("tools-lora"), &out).unwrap();
    let mut drifts = report.drifts.clone();
    drifts.sort_by(|a, b| b.drift.total_cmp(&a.drift));
    for drift in drifts[..3].iter().chain(&drifts[60..64]) {
        println!("{}: {}", drift.name, drift.drift);
    }
    println!("cosine {}", report.cosine);
    // Those that the script moved, and no others, beyond what Q8_0 rounds.
    let moved = shapes.len();
    let expected: Vec<String> = shapes.iter().map(|(name, _)| format!("{name}.weight")).collect();
    assert!(drifts[..moved].iter().all(|drift| expected.contains(&drift.name)));
    assert!(drifts[moved - 1].drift > 1.5 * drifts[moved].drift);
    let far: Vec<&str> = report.far(FAR).iter().map(|drift| &*drift.name).collect();
    assert_eq!(far, ["model.layers.0.self_attn.v_proj.weight"]);
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["base_model_name_or_path"], "the-new-base");

    let chats: serde_json::Value =
        serde_json::from_slice(&fs::read(golden("smollm2/tools.greedy.json")).unwrap()).unwrap();
    let engine = open(&new);
    engine.load_adapter("tools", &*out).unwrap();
    let mut equal = 0;
    for chat in chats.as_array().unwrap() {
        let expected = chat["text"].as_str().unwrap().trim_end_matches("<|im_end|>");
        let request =
            Request::new(chat["prompt"].as_str().unwrap().to_owned()).adapter("tools").max_tokens(96);
        let events = engine.generate(request).unwrap();
        let answer: String = events.map(|event| event.unwrap().text().to_owned()).collect();
        println!("{answer:?}");
        // The prompts with functions are answered as on the old base; the others may take another path.
        let is_call = expected.starts_with("{\"name\"");
        assert!(!is_call || answer == expected, "{answer:?}, not {expected:?}");
        equal += usize::from(answer == expected);
    }
    println!("{equal} answers are as on the old base");
    assert!(equal >= 5, "{equal}");

    // The same names, shapes and tokens, and weights that have nothing in common.
    let shapes: Vec<(String, [u64; 2])> = (0..30)
        .flat_map(|layer| Module::ALL.iter().map(move |&module| (layer, module)))
        .map(|(layer, module)| {
            let site = graftwork_adapters::Site::Linear { layer, module };
            let (q, kv, hidden, ffn) = (576, 192, 576, 1536);
            let shape = match module {
                Module::Q => [q, hidden],
                Module::K | Module::V => [kv, hidden],
                Module::O => [hidden, q],
                Module::Gate | Module::Up => [ffn, hidden],
                Module::Down => [hidden, ffn],
            };
            (site.hf_path().unwrap(), shape)
        })
        .collect();
    let other =
        merged(&base, &[&random_lora("far", &shapes, 8, 1.0)], "other.gguf", Form::Gguf, Some("Q8_0"));
    let error = port(&base, &other, &example("tools-lora"), &fresh("never")).unwrap_err().to_string();
    assert!(error.starts_with("new base: weights of linear layers: expected a cosine of 0.5"), "{error}");
}

/// Other shapes, other numbers of layers, other tokens.
#[test]
fn other_lineages_are_refused() {
    let weights = Safetensors::open(path("base").join("model.safetensors")).unwrap();
    assert!(weights.tensors().get("lm_head.weight").is_some());
    let other = golden("architectures/llama_yarn");
    let error = port(&path("base"), &other, &path("lora"), &fresh("never")).unwrap_err().to_string();
    assert!(error.starts_with("new base: ") && error.contains("as the old base has"), "{error}");
    let tokens = |text: &str| {
        let folder = fresh(&format!("tokens-{text}"));
        fs::create_dir(&folder).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(path("base").join(name), folder.join(name)).unwrap();
        }
        let tokenizer = serde_json::json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "vocab": {"a": 0, text: 1}, "merges": []}});
        fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        folder
    };
    let error = port(&tokens("b"), &tokens("c"), &path("lora"), &fresh("never")).unwrap_err().to_string();
    assert_eq!(error, "new base: tokenizer: expected token 1 as in the old base, \"b\", found \"c\"");
    // Where one has none there is nothing to compare; and nothing is written over.
    let out = fresh("once");
    port(&tokens("b"), &path("base"), &path("lora"), &out).unwrap();
    let options = Options { base_model: None, threads: 1 };
    let base = Source::from(path("base"));
    let error = run((&base, &base), &path("lora"), &out, &options, &|_, _| true).unwrap_err().to_string();
    assert!(error.ends_with("expected nothing of that name, found something"), "{error}");
    let error = run((&base, &base), &path("lora"), &fresh("stopped"), &options, &|_, _| false);
    assert!(error.is_err());
}

/// Adapters in unusual places, and bases that an adapter of embedding or head cannot move between.
#[test]
fn what_is_written_is_what_was_opened() {
    let drift = path("lora_all");
    let new = merged(&path("base"), &[&drift], "unusual-new", Form::HuggingFace, None);
    // A directory with a delta in it that is a LoRA's all the same; a file whose configuration lies beside it.
    let both = fresh("unusual-both");
    fs::create_dir(&both).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(path("lora").join(name), both.join(name)).unwrap();
    }
    fs::write(both.join("delta.safetensors"), "something else").unwrap();
    for adapter in [
        both.clone(),
        path("dora").join("adapter_model.safetensors"),
        path("lora").join("adapter_model.safetensors"),
    ] {
        let out = fresh("unusual-out");
        port(&path("base"), &new, &adapter, &out).unwrap();
        assert!(out.is_dir());
        assert_eq!(Adapter::open(&*out).unwrap().kind.name(), "lora");
    }
    let slash = fresh("unusual-slash");
    port(&path("base"), &new, &both, &PathBuf::from(format!("{}/", slash.display()))).unwrap();

    // A magnitude of 0 stays 0.
    let dora = Adapter::open(path("dora")).unwrap();
    let zero = fresh("unusual-zero");
    let mut changed = dora.clone();
    for edit in &mut changed.edits {
        if let Change::LowRank { magnitude: Some(magnitude), .. } = &mut edit.change {
            let mut values = magnitude.decode().unwrap();
            values[3] = 0.0;
            *magnitude = Tensor::encode(Format::F32, 1, values.len(), &values).unwrap();
        }
    }
    write_peft(&changed, &zero).unwrap();
    let out = fresh("unusual-zero-out");
    port(&path("base"), &new, &zero, &out).unwrap();
    for edit in &Adapter::open(&*out).unwrap().edits {
        let Change::LowRank { magnitude: Some(magnitude), .. } = &edit.change else { panic!("{edit:?}") };
        let values = magnitude.decode().unwrap();
        assert!(values[3] == 0.0 && values[4] > 0.0);
    }

    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(path("base").join("config.json")).unwrap()).unwrap();
    config["tie_word_embeddings"] = true.into();
    let tied = fresh("unusual-tied");
    fs::create_dir(&tied).unwrap();
    fs::write(tied.join("config.json"), config.to_string()).unwrap();
    fs::copy(path("base").join("model.safetensors"), tied.join("model.safetensors")).unwrap();
    let error = port(&tied, &path("base"), &path("lora_trainable_tokens"), &fresh("never")).unwrap_err();
    let expected = "new base: embedding and head, which the adapter changes: expected one matrix, as the old base has, found two";
    assert_eq!(error.to_string(), expected);
    port(&tied, &path("base"), &path("lora"), &fresh("unusual-untied")).unwrap();
    // One with tokens of its own, to a base that has others there by now.
    let grown = merged(&path("base"), &[&path("resized")], "unusual-grown", Form::HuggingFace, None);
    let error = port(&path("base"), &grown, &path("resized"), &fresh("never")).unwrap_err().to_string();
    assert!(error.starts_with("new base: vocabulary: expected 512 tokens, after which"), "{error}");
}
