//! `bench` and `inspect`: what programs read.

use graftwork_adapters::Module;
use graftwork_adapters::delta::Fingerprint;
use graftwork_adapters::file::Safetensors;
use graftwork_adapters::seed::{SeedPatch, Settings};
use serde_json::json;

use crate::{
    BASE, Folder, LORA, PREFIX, PROMPT, TOOLS, assert_fails, fetch_smollm2, graftwork, json_lines, results,
    text,
};

#[test]
fn bench_has_the_keys_that_scripts_rely_on() {
    let line = format!(
        "bench -m {BASE} -a {LORA} --pp 40 --tg 6 --batch 3 --random-adapters 2:4 --threads 2 --repeat 2 --json"
    );
    let output = graftwork(&line);
    let lines = json_lines(results(&output));
    assert_eq!(lines.len(), 1);
    let keys: Vec<&str> = lines[0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "model",
            "threads",
            "isa",
            "prefill_tokens",
            "prefill_tokens_per_second",
            "decode_tokens",
            "decode_tokens_per_second",
            "decode_gb_per_second",
            "prefill_gop_per_second",
            "read_limit_gb_per_second",
            "multiply_limit_gop_per_second",
            "load_seconds",
            "peak_memory_bytes",
            "adapters_prefill_cost",
            "adapters_decode_cost",
            "adapters_bytes",
            "adapters_prefill_speed",
            "adapters_decode_limit_ratio"
        ]
    );
    let number = |key: &str| lines[0][key].as_f64().unwrap();
    assert_eq!((&lines[0]["model"], number("threads")), (&json!(BASE), 2.0));
    assert_eq!((number("prefill_tokens"), number("decode_tokens")), (40.0, 6.0));
    assert!(keys.iter().filter(|key| key.ends_with("_per_second")).all(|key| number(key) > 0.0));
    assert!(number("load_seconds") > 0.0);
    if cfg!(target_os = "linux") {
        // The model has 2.6 MB; measuring the machine takes 256 MB, which are not the model's.
        assert!((1e6..2e8).contains(&number("peak_memory_bytes")), "{}", lines[0]);
    }
    // Nothing takes less time than none.
    assert!(number("adapters_prefill_cost") > -1.0 && number("adapters_decode_cost") > -1.0);
    let plain = json_lines(results(&graftwork(&format!("bench -m {BASE} --pp 8 --tg 2 --repeat 1 --json"))));
    assert!(plain[0].get("adapters_prefill_cost").is_none(), "{}", plain[0]);
    assert!(
        results(&graftwork(&format!("bench -m {BASE} --pp 8 --tg 2 --repeat 1"))).contains("prefill 1 x 8")
    );
}

/// Deltas of as many bits as asked for, and each counted once.
#[test]
fn bench_makes_deltas() {
    let bench = |deltas: &str| {
        let line =
            format!("bench -m {BASE} --pp 8 --tg 2 --batch 3 --repeat 1 --random-deltas {deltas} --json");
        json_lines(results(&graftwork(&line))).remove(0)
    };
    let bytes = |deltas: &str| bench(deltas)["adapters_bytes"].as_f64().unwrap();
    let (one, two, more) = (bytes("1:4"), bytes("2:4"), bytes("1:8"));
    assert!(two == 2.0 * one && more > one, "{one}, {two}, {more} bytes");
    let result = bench("3:4");
    let number = |key: &str| result[key].as_f64().unwrap();
    assert!((number("adapters_prefill_speed") * (1.0 + number("adapters_prefill_cost")) - 1.0).abs() < 1e-9);
    // Time to read them is counted beside the base's.
    let limit = number("adapters_decode_limit_ratio");
    assert!(0.0 < limit && limit < 1.0 + number("adapters_decode_cost"), "{result}");
    let plain = graftwork(&format!("bench -m {BASE} --pp 8 --tg 2 --repeat 1 --random-deltas 1:4"));
    assert!(results(&plain).contains("of the base's speed"), "{plain:?}");
    assert_fails(
        &graftwork(&format!("bench -m {BASE} --pp 8 --tg 2 --random-deltas 1:0.01")),
        "expected at least 32 singular vectors",
    );
}

#[test]
fn inspect_tells_models_from_adapters() {
    let object = |line: &str| json_lines(results(&graftwork(line))).remove(0);
    let model = object(&format!("inspect {BASE} --json"));
    assert_eq!(
        (&model["container"], &model["model_type"]),
        (&json!("Hugging Face directory"), &json!("llama"))
    );
    assert_eq!((&model["tensors"], &model["formats"][0]["format"]), (&json!(30), &json!("F32")));
    let file = object(&format!("inspect {BASE}/model.safetensors --json"));
    assert_eq!((&file["container"], &file["formats"]), (&json!("safetensors"), &model["formats"]));

    for path in [LORA.to_owned(), format!("{LORA}/adapter_model.safetensors")] {
        let adapter = object(&format!("inspect {path} --base {BASE} --json"));
        assert_eq!((&adapter["kind"], &adapter["layers"]), (&json!("lora"), &json!(3)));
        assert_eq!((&adapter["base"], &adapter["fits"]), (&json!(BASE), &json!(true)));
        assert!(adapter["edits"].as_array().unwrap().iter().all(|edit| edit["count"].as_u64() > Some(0)));
    }
    let plain = graftwork(&format!("inspect {LORA} --base {BASE}"));
    assert!(
        results(&plain).contains("3 x q: rank 4, scale 2.5, F32")
            && results(&plain).ends_with("fits       yes\n"),
        "{plain:?}"
    );

    let folder = Folder::new("inspect");
    let bare = folder.path("spring.safetensors");
    std::fs::copy(format!("{}/../{PROMPT}/adapter_model.safetensors", env!("CARGO_MANIFEST_DIR")), &bare)
        .unwrap();
    for (path, kind, edit) in [
        (PROMPT, "prompt_tuning", "1 x prompt: 6 virtual tokens, F32"),
        (&bare, "prompt_tuning", "1 x prompt: 6 virtual tokens, F32"),
        (PREFIX, "prefix_tuning", "1 x prefix: keys and values of 7 positions, 3 layers, F32"),
    ] {
        let plain = graftwork(&format!("inspect {path} --base {BASE}"));
        let plain = results(&plain);
        assert!(
            plain.contains(edit) && plain.contains(kind) && plain.ends_with("fits       yes\n"),
            "{plain}"
        );
        let object = object(&format!("inspect {path} --json"));
        assert_eq!((&object["edits"][0]["count"], &object["layers"]), (&json!(1), &json!(0)));
    }

    // Whatever its file is called.
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../");
    let weights = Safetensors::open(format!("{root}{BASE}/model.safetensors")).unwrap();
    let settings = Settings {
        bases: vec![Fingerprint::of("llama", &weights)],
        base_seed: 1,
        scale: 1.0,
        modules: vec![Module::Q],
    };
    let patch = folder.path("federated.patch");
    let mut file = Vec::new();
    SeedPatch::new(settings, vec![0.01; 9]).unwrap().write(&mut file).unwrap();
    std::fs::write(&patch, file).unwrap();
    let plain = graftwork(&format!("inspect {patch} --base {BASE}"));
    assert!(
        results(&plain).contains("seed_patch") && results(&plain).ends_with("fits       yes\n"),
        "{plain:?}"
    );

    let misfit = graftwork(&format!("inspect {TOOLS}.gguf --base {BASE} --json"));
    assert_eq!(misfit.status.code(), Some(1));
    assert_eq!(json_lines(text(&misfit.stdout))[0]["fits"], false);
    assert!(text(&misfit.stderr).contains(&format!("{TOOLS}.gguf: ")), "{misfit:?}");
}

#[test]
fn inspect_reads_gguf_models_and_adapters() {
    fetch_smollm2();
    let model = results(&graftwork("inspect smollm2")).to_owned();
    assert!(model.contains("llama.block_count") && model.contains("210 x Q4_1 (66.4 MB)"), "{model}");
    for adapter in [TOOLS.to_owned(), format!("{TOOLS}.gguf")] {
        let output = graftwork(&format!("inspect {adapter} --base smollm2"));
        assert!(results(&output).contains("30 x q: rank 8, scale 1, F16"), "{output:?}");
    }
}

/// A model of random weights is one that can be opened, of the formats that were asked for, and answers.
#[test]
fn random_models_can_be_run() {
    let file = std::env::temp_dir().join(format!("graftwork-random-{}.gguf", std::process::id()));
    let path = file.to_str().unwrap();
    let shape = "--hidden 256 --layers 2 --ffn 512 --heads 4 --kv-heads 2 --vocab 300 --context 128";
    for (format, expected) in [("q4_k_m", ["Q4_K", "Q6_K"]), ("Q5_1", ["Q5_1", "Q6_K"])] {
        let written = graftwork(&format!("random-model {path} --format {format} {shape}"));
        assert_eq!(results(&written).trim_end(), path);
        let model = json_lines(results(&graftwork(&format!("inspect {path} --json")))).remove(0);
        let formats = model["formats"].to_string();
        assert!(expected.iter().all(|name| formats.contains(name)), "{formats}");
        let answer = graftwork(&format!("run -m {path} -p hello -n 4 --json"));
        assert!(json_lines(results(&answer))[0]["tokens"].as_array().is_some_and(|tokens| tokens.len() == 4));
    }
    std::fs::remove_file(&file).unwrap();
    for (line, part) in [
        ("random-model x.gguf --format Q9", "expected Q4_K_M or one of F32"),
        ("random-model x.gguf --heads 3", "--heads: expected a divisor"),
        ("random-model x.gguf --kv-heads 5", "--kv-heads: expected a divisor"),
        ("random-model x.gguf --vocab 10", "--vocab: expected at least 259"),
        (
            "random-model no/such/folder/x.gguf --hidden 256 --layers 1 --heads 4 --vocab 300",
            "no/such/folder",
        ),
    ] {
        let output = graftwork(line);
        assert!(!output.status.success() && text(&output.stderr).contains(part), "{line}: {output:?}");
    }
}
