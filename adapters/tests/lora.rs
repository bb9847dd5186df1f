//! LoRA: PEFT and GGUF files are read alike, scales are peft's, and what is not understood is refused by name.

use std::path::PathBuf;

use graftwork_adapters::check::{self, Shape};
use graftwork_adapters::file::gguf::{Array, Value};
use graftwork_adapters::file::{
    Dtype, Gguf, GgufWriter, HfModel, Named, TensorFile, TensorView, write_safetensors,
};
use graftwork_adapters::{Adapter, Change, Error, Kind, Module, RowOrder, Site, Source, lora_gguf};
use graftwork_kernels::{Bytes, Format, Tensor};
use serde_json::{Value as Json, json};

fn golden(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "golden", "adapters", name].iter().collect()
}

fn example(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "examples", "adapters", name].iter().collect()
}

/// Rank, scale and bias at a linear site.
fn low_rank(adapter: &Adapter, layer: usize, module: Module) -> (&Tensor, &Tensor, f32, Option<&Tensor>) {
    let edit = adapter.edits.iter().find(|edit| edit.site == Site::Linear { layer, module }).unwrap();
    match &edit.change {
        Change::LowRank { a, b, scale, bias, .. } => (a, b, *scale, bias.as_ref()),
        other => panic!("{other:?} at {}", edit.site),
    }
}

/// The base in tests/golden: hidden 128, 8 heads and 2 of k and v of 16, feed-forward 352, 3 layers.
fn base_shape(site: Site) -> Option<Shape> {
    let Site::Linear { layer: 0..=2, module } = site else {
        return None;
    };
    let (outputs, inputs) = match module {
        Module::Q | Module::O => (128, 128),
        Module::K | Module::V => (32, 128),
        Module::Gate | Module::Up => (352, 128),
        Module::Down => (128, 352),
    };
    Some(Shape { outputs, inputs })
}

#[test]
fn reads_every_golden_adapter_with_the_scale_of_peft() {
    // (name, edits, rank and scale at layer 2 q).
    let cases = [
        ("lora", 6, 4, 10.0 / 4.0),
        ("lora_all", 21, 5, 8.0 / 5.0),
        ("lora_rslora", 21, 6, 4.0 / 6f64.sqrt()),
        ("lora_patterns", 21, 4, 9.0 / 4.0),
        ("lora_bias", 9, 3, 6.0 / 3.0),
    ];
    for (name, edits, rank, scale) in cases {
        let adapter = Adapter::open(golden(name)).unwrap();
        assert_eq!((adapter.kind, adapter.row_order), (Kind::Lora, RowOrder::HuggingFace));
        assert_eq!(adapter.edits.len(), edits, "{name}");
        assert!(adapter.edits.is_sorted_by_key(|edit| edit.site), "{name}");
        let (a, b, found, bias) = low_rank(&adapter, 2, Module::Q);
        assert_eq!((a.rows(), a.cols(), b.rows(), b.cols()), (rank, 128, 128, rank), "{name}");
        assert_eq!(found, scale as f32, "{name}");
        assert_eq!(bias.is_some(), name == "lora_bias");
        check::fits(&adapter, base_shape).unwrap();
    }
}

#[test]
fn patterns_give_modules_their_own_rank_and_alpha() {
    // rank_pattern: down_proj 2, layers.1.*.q_proj 7; alpha_pattern: layers.2.*.q_proj 9, v_proj 3; r 4, alpha 6.
    let adapter = Adapter::open(golden("lora_patterns")).unwrap();
    let scale = |layer, module| low_rank(&adapter, layer, module).2;
    assert_eq!(scale(0, Module::Q), 6.0 / 4.0);
    assert_eq!(scale(1, Module::Q), 6.0 / 7.0);
    assert_eq!(scale(2, Module::Q), 9.0 / 4.0);
    for layer in 0..3 {
        assert_eq!(scale(layer, Module::V), 3.0 / 4.0);
        assert_eq!(scale(layer, Module::Down), 6.0 / 2.0);
        assert_eq!(scale(layer, Module::Up), 6.0 / 4.0);
    }
}

#[test]
fn values_are_those_of_the_file() {
    let path = golden("lora_bias").join("adapter_model.safetensors");
    let theirs = std::fs::read(&path).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&theirs).unwrap();
    let adapter = Adapter::open(path).unwrap();
    let (a, b, _, bias) = low_rank(&adapter, 1, Module::O);
    let name = "base_model.model.model.layers.1.self_attn.o_proj";
    for (suffix, tensor) in [("lora_A.weight", a), ("lora_B.weight", b), ("lora_B.bias", bias.unwrap())] {
        assert_eq!(**tensor.bytes(), *theirs.tensor(&format!("{name}.{suffix}")).unwrap().data());
    }
}

#[test]
fn peft_and_gguf_of_one_lora_are_equal_up_to_the_order_of_rows() {
    // SmolLM2-135M: 9 heads, 3 of k and v, all of 64; 30 layers of 7 linears.
    for (name, rank) in [("tools-lora", 8), ("sentiment-lora", 4)] {
        let peft = Adapter::open(example(name)).unwrap();
        let gguf = Adapter::open(example(&format!("{name}.gguf"))).unwrap();
        assert_eq!((gguf.row_order, gguf.architecture.as_deref()), (RowOrder::Gguf, Some("llama")));
        assert_eq!((peft.edits.len(), gguf.edits.len()), (210, 210));
        let mut permuted = 0;
        for (ours, theirs) in peft.edits.iter().zip(&gguf.edits) {
            assert_eq!(ours.site, theirs.site);
            let Site::Linear { layer, module } = ours.site else { panic!("{}", ours.site) };
            let (a, b, scale, _) = low_rank(&peft, layer, module);
            let (gguf_a, gguf_b, gguf_scale, _) = low_rank(&gguf, layer, module);
            assert_eq!((a.rows(), scale), (rank, gguf_scale));
            assert_eq!(**a.bytes(), **gguf_a.bytes());
            let reordered = if module.is_rotated() {
                permuted += usize::from(**b.bytes() != **gguf_b.bytes());
                let back = gguf.row_order.reorder(peft.row_order, gguf_b, 64).unwrap();
                assert_eq!(**back.bytes(), **b.bytes(), "{}", ours.site);
                peft.row_order.reorder(gguf.row_order, b, 64).unwrap()
            } else {
                b.clone()
            };
            assert_eq!(**reordered.bytes(), **gguf_b.bytes(), "{}", ours.site);
        }
        assert_eq!(permuted, 60, "q and k of every layer differ before they are reordered");
    }
}

/// A PEFT directory in memory. Values are distinct and deterministic.
struct Peft {
    config: Json,
    tensors: Vec<(String, Vec<u64>)>,
}

const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";

impl Peft {
    fn valid() -> Self {
        let tensors = [("lora_A.weight", vec![2, 8]), ("lora_B.weight", vec![6, 2])];
        Self {
            config: json!({"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["q_proj"]}),
            tensors: tensors.map(|(suffix, shape)| (format!("{Q}.{suffix}"), shape)).to_vec(),
        }
    }

    fn weights(&self) -> Bytes {
        let data: Vec<u8> = (0..4096).flat_map(|i| ((i as f32).sin()).to_le_bytes()).collect();
        let views: Vec<_> = self
            .tensors
            .iter()
            .map(|(name, shape)| {
                let size = 4 * shape.iter().product::<u64>() as usize;
                TensorView { name, dtype: Dtype::F32, shape, bytes: &data[..size] }
            })
            .collect();
        let mut out = Vec::new();
        write_safetensors(&mut out, &views, &[]).unwrap();
        Bytes::new(out)
    }

    fn open(&self) -> Result<Adapter, Error> {
        Adapter::from_peft(self.config.to_string().as_bytes(), self.weights())
    }
}

fn peft(change: impl FnOnce(&mut Peft)) -> Result<Adapter, Error> {
    let mut files = Peft::valid();
    change(&mut files);
    files.open()
}

fn refused(change: impl FnOnce(&mut Peft)) -> String {
    peft(change).expect_err("refused").to_string()
}

fn with_field(field: &str, value: Json) -> Result<Adapter, Error> {
    peft(|f| f.config[field] = value)
}

#[test]
fn fields_that_ask_for_nothing_pass_whatever_their_name() {
    for value in [json!(null), json!(false), json!(0), json!(0.0), json!(""), json!([]), json!({})] {
        with_field("some_option_of_2030", value).unwrap();
    }
    let harmless = json!({
        "auto_mapping": {"base_model_class": "LlamaForCausalLM"}, "base_model_name_or_path": "x/y", "inference_mode": true,
        "peft_version": "0.21.2", "revision": "main", "task_type": "CAUSAL_LM", "exclude_modules": ["lm_head"],
        "layers_pattern": "layers", "layers_to_transform": [0], "lora_dropout": 0.1, "qalora_group_size": 16,
        "megatron_core": "megatron.core", "loftq_config": {"loftq_bits": 4}, "fan_in_fan_out": true,
    });
    for (field, value) in harmless.as_object().unwrap() {
        with_field(field, value.clone()).unwrap();
    }
    for value in [json!(true), json!(false), json!("gaussian"), json!("eva"), json!("orthogonal")] {
        with_field("init_lora_weights", value).unwrap();
    }
    assert_eq!(
        with_field("base_model_name_or_path", json!("x/y")).unwrap().base_model.as_deref(),
        Some("x/y")
    );
}

#[test]
fn fields_that_are_not_understood_are_refused_by_name() {
    let message = |field: &str, value: Json| with_field(field, value).expect_err(field).to_string();
    assert_eq!(message("use_magic", json!(true)), "adapter field use_magic = true is not understood");
    assert_eq!(message("magic", json!({"a": 1})), "adapter field magic = an object of 1 is not understood");
    for (field, value) in
        [("layer_replication", json!([[0, 2]])), ("target_parameters", json!(["experts.gate_up_proj"]))]
    {
        let message = message(field, value);
        assert!(
            message.starts_with(&format!("adapter field {field} = ")) && message.contains("not supported"),
            "{message}"
        );
    }
    for field in
        ["use_qalora", "use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config"]
    {
        assert!(message(field, json!({"x": 1})).contains(&format!("adapter field {field} = ")));
    }
    for name in ["pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga", "something"] {
        assert!(
            message("init_lora_weights", json!(name)).contains(&format!("init_lora_weights = \"{name}\""))
        );
    }
    assert_eq!(message("r", json!(0)), "adapter field r: expected a whole number above 0, found 0");
    assert!(message("r", json!("8")).contains("adapter field r: "));
    assert!(message("r", json!(-1)).contains("adapter field r: "));
    assert!(
        message("lora_alpha", json!(1e300))
            .contains("adapter field lora_alpha: expected a number that fits f32")
    );
    assert!(message("use_rslora", json!("yes")).contains("adapter field use_rslora: expected true or false"));
    assert!(
        message("bias", json!("some"))
            .contains("adapter field bias: expected \"none\", \"lora_only\" or \"all\"")
    );
    assert!(message("rank_pattern", json!([1])).contains("adapter field rank_pattern: expected an object"));
    assert!(
        message("rank_pattern", json!({"q": 1.5}))
            .contains("adapter field rank_pattern.q: expected a whole number")
    );
    assert!(message("alpha_pattern", json!({"(": 1})).contains("adapter field alpha_pattern: pattern `(`"));
}

#[test]
fn tensors_that_are_not_understood_are_refused_by_name() {
    let add = |name: &str, shape: &[u64]| refused(|f| f.tensors.push((name.to_owned(), shape.to_vec())));
    for name in [
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.w_proj.lora_A.weight",
        "base_model.model.model.layers.01.self_attn.k_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias",
        "base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_embedding_A",
        "base_model.model.model.layers.0.self_attn.q_proj.weight",
        "base_model.model.model.norm.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_B.weight",
    ] {
        let message = add(name, &[2, 8]);
        assert!(message.starts_with(&format!("adapter tensor {name} is not understood")), "{message}");
    }
    let k = Q.replace("q_proj", "k_proj");
    assert_eq!(
        add(&format!("{k}.lora_A.weight"), &[2, 8]),
        format!("adapter tensor {k}.lora_A.weight needs {k}.lora_B.weight, which the file does not hold")
    );
    assert!(add(&format!("{k}.lora_B.weight"), &[6, 2]).contains(&format!("needs {k}.lora_A.weight")));
    assert_eq!(refused(|f| f.tensors.clear()), "the adapter holds no tensors");
}

#[test]
fn shapes_are_checked_against_the_configuration() {
    let shape = |i: usize, shape: &[u64]| refused(|f| f.tensors[i].1 = shape.to_vec());
    assert_eq!(
        shape(0, &[3, 8]),
        format!("adapter tensor {Q}.lora_A.weight: expected shape [2, _], found [3, 8]")
    );
    assert_eq!(
        shape(1, &[6, 3]),
        format!("adapter tensor {Q}.lora_B.weight: expected shape [_, 2], found [6, 3]")
    );
    assert!(shape(0, &[16]).contains("expected shape [2, _], found [16]"));
    assert!(shape(0, &[2, 0]).contains("expected shape [2, _], found [2, 0]"));
    assert!(shape(1, &[6, 2, 1]).contains("expected shape [_, 2], found [6, 2, 1]"));
    assert!(
        refused(|f| f.config["rank_pattern"] = json!({"q_proj": 5}))
            .contains("expected shape [5, _], found [2, 8]")
    );
    // PEFT's defaults, where the fields are left out: r = 8.
    assert!(refused(|f| _ = f.config.as_object_mut().unwrap().remove("r")).contains("expected shape [8, _]"));
}

#[test]
fn values_must_be_finite() {
    for (bits, format) in [(f32::NAN.to_bits(), "NaN"), (f32::NEG_INFINITY.to_bits(), "-inf")] {
        let files = Peft::valid();
        let mut weights = files.weights().to_vec();
        let at = weights.len() - 4 * 3;
        weights[at..][..4].copy_from_slice(&bits.to_le_bytes());
        let error = Adapter::from_peft(files.config.to_string().as_bytes(), Bytes::new(weights)).unwrap_err();
        let expected = format!(
            "adapter tensor {Q}.lora_B.weight: expected finite values, found {format} in row 4, column 1"
        );
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn biases_of_both_kinds() {
    let adapter = peft(|f| {
        f.config["lora_bias"] = json!(true);
        f.tensors.push((format!("{Q}.lora_B.bias"), vec![6]));
    })
    .unwrap();
    assert_eq!(low_rank(&adapter, 0, Module::Q).3.map(Tensor::cols), Some(6));
    assert!(refused(|f| f.config["lora_bias"] = json!(true)).contains(&format!("needs {Q}.lora_B.bias")));
    let short = refused(|f| {
        f.config["lora_bias"] = json!(true);
        f.tensors.push((format!("{Q}.lora_B.bias"), vec![5]));
    });
    assert!(short.contains("expected shape [6], found [5]"), "{short}");

    for (bias, suffix) in [("lora_only", "base_layer.bias"), ("all", "bias")] {
        let adapter = peft(|f| {
            f.config["bias"] = json!(bias);
            f.tensors.push((format!("{Q}.{suffix}"), vec![6]));
        })
        .unwrap();
        assert!(matches!(&adapter.edits[1].change, Change::Bias { values } if values.cols() == 6));
    }
    let both = refused(|f| {
        f.config["bias"] = json!("all");
        f.tensors.extend(["bias", "base_layer.bias"].map(|suffix| (format!("{Q}.{suffix}"), vec![6])));
    });
    assert!(both.ends_with("both set the bias of layer 0 q"), "{both}");
}

/// An adapter that starts at its invocation tokens is LoRA on linear layers and nothing else.
#[test]
fn invocation_tokens_go_with_plain_lora_only() {
    const FIELD: &str = "alora_invocation_tokens";
    assert_eq!(with_field(FIELD, json!([5, 6])).unwrap().invocation, [5, 6]);
    assert!(with_field(FIELD, json!(null)).unwrap().invocation.is_empty());
    assert!(with_field(FIELD, json!([])).unwrap().invocation.is_empty());
    for wrong in
        [json!("x"), json!([-1]), json!([0.5]), json!([1u64 << 32]), json!({"q_proj": [1]}), json!([[1]])]
    {
        let message = with_field(FIELD, wrong).unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("adapter field {FIELD}: expected a list of tokens, found ")),
            "{message}"
        );
    }
    type Change<'a> = &'a dyn Fn(&mut Peft);
    let beside: [Change<'_>; 3] = [
        &|f| {
            f.config["use_dora"] = json!(true);
            f.tensors.push((format!("{Q}.lora_magnitude_vector"), vec![6]));
        },
        &|f| {
            f.config["bias"] = json!("all");
            f.tensors.push((format!("{Q}.bias"), vec![6]));
        },
        &|f| f.tensors.push(("base_model.model.lm_head.weight".to_owned(), vec![9, 8])),
    ];
    for change in beside {
        peft(|f| change(f)).unwrap();
        let message = refused(|f| {
            change(f);
            f.config[FIELD] = json!([5, 6]);
        });
        assert!(
            message.ends_with("only LoRA on linear layers can start at an invocation sequence"),
            "{message}"
        );
    }
}

#[test]
fn sources_are_told_apart() {
    let files = Peft::valid();
    let config = Bytes::new(files.config.to_string().into_bytes());
    let memory = |files: Vec<(&str, Bytes)>| {
        Source::Files(
            Named::new(files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()).unwrap(),
        )
    };
    let both = [("adapter_config.json", config.clone()), ("adapter_model.safetensors", files.weights())];
    assert_eq!(Adapter::open(memory(both.to_vec())).unwrap().edits.len(), 1);
    let message = |source: Source| Adapter::open(source).unwrap_err().to_string();
    // Safetensors come first; what `torch.save` wrote is told by its first bytes.
    let bin = std::fs::read(golden("../torch/lora.bin")).unwrap();
    let lora = Bytes::new(std::fs::read(golden("lora").join("adapter_config.json")).unwrap());
    let bin = [("adapter_config.json", lora), ("adapter_model.bin", Bytes::new(bin))];
    assert_eq!(Adapter::open(memory(bin.to_vec())).unwrap().edits.len(), 6);
    let none = [("adapter_config.json", config), ("adapter_model.bin", Bytes::new(b"PK\x03\x04".to_vec()))];
    assert!(message(memory(none.to_vec())).contains("the end of the zip directory"));
    assert_eq!(Adapter::open(memory([&both[..], &none[1..]].concat())).unwrap().edits.len(), 1);
    assert!(message(memory(both[..1].to_vec())).contains("expected adapter_config.json beside it"));
    assert!(message(Source::Bytes(files.weights())).contains("expected adapter_config.json beside it"));
    assert!(message(golden("base").into()).contains("expected file adapter_config.json, found none"));
    assert!(
        message(golden("base").join("model.safetensors").into())
            .contains("expected adapter_config.json beside it")
    );
    assert!(message(golden("nothing").into()).contains("nothing"));
    assert_eq!(Adapter::open(golden("lora").join("adapter_model.safetensors")).unwrap().edits.len(), 6);
    let gguf = std::fs::read(example("sentiment-lora.gguf")).unwrap();
    assert_eq!(Adapter::open(Bytes::new(gguf)).unwrap().edits.len(), 210);
    let other = refused(|f| f.config["peft_type"] = json!("XLORA"));
    assert!(other.starts_with("adapter field peft_type = \"XLORA\" is not supported"), "{other}");
}

#[test]
fn misfits_name_the_site() {
    let adapter = Adapter::open(golden("lora_all")).unwrap();
    let message =
        |change: &dyn Fn(Site) -> Option<Shape>| check::fits(&adapter, change).unwrap_err().to_string();
    let key = |part| format!("(base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight)");
    let both = key("A").replace(')', ", ") + &key("B")[1..];
    assert_eq!(
        message(&|_| None),
        format!("the adapter changes layer 0 q, which the base does not have {both}")
    );
    let taller = |site| base_shape(site).map(|s| Shape { outputs: s.outputs + 1, ..s });
    let expected = format!("adapter at layer 0 q, B: the base expects [129, 5], found [128, 5] {}", key("B"));
    assert_eq!(message(&taller), expected);
    let wider = |site| base_shape(site).map(|s| Shape { inputs: s.inputs + 1, ..s });
    let expected = format!("adapter at layer 0 q, A: the base expects [5, 129], found [5, 128] {}", key("A"));
    assert_eq!(message(&wider), expected);
    let named = Adapter { base_model: Some("other/\nbase".to_owned()), ..adapter.clone() };
    assert_eq!(
        check::fits(&named, |_| None).unwrap_err().to_string(),
        format!(
            "the adapter changes layer 0 q, which the base does not have {both}; \
             the adapter says that it was trained on \"other/\\nbase\""
        )
    );
    // The shapes of the real base.
    let base = HfModel::load(&golden("base").as_path().into()).unwrap();
    assert_eq!(base.weights.shape("model.layers.0.mlp.down_proj.weight"), Some(vec![128, 352]));
}

#[test]
fn trained_tokens_are_listed_by_the_configuration() {
    const EMBEDDING: &str = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";
    let with = |list: Json, rows: u64| -> Result<Adapter, Error> {
        peft(|f| {
            f.config["trainable_token_indices"] = list;
            f.tensors.push((EMBEDDING.to_owned(), vec![rows, 8]));
        })
    };
    for list in [json!([7, 2]), json!({"lm_head": [1], "embed_tokens": [7, 2]})] {
        let adapter = with(list, 2).unwrap();
        let Change::Rows { tokens, rows } = &adapter.edits[0].change else {
            panic!("{:?}", adapter.edits[0])
        };
        assert_eq!(**tokens, [2, 7]);
        // Rows follow their tokens: the file's are `sin(0..8)` of token 7, then `sin(8..16)` of token 2.
        assert_eq!(rows.decode().unwrap()[..9], [8., 9., 10., 11., 12., 13., 14., 15., 0f32].map(f32::sin));
    }
    let message = |list, rows| with(list, rows).unwrap_err().to_string();
    assert!(message(json!([7, 2]), 3).contains("expected shape [2, _], found [3, 8]"));
    for list in [json!(null), json!(3), json!(["x"]), json!([-1]), json!({"lm_head": [1, 2]}), json!([2, 2])]
    {
        assert!(message(list, 2).starts_with("adapter field trainable_token_indices: expected"));
    }
    let tied = refused(|f| {
        f.config["ensure_weight_tying"] = json!(true);
        f.tensors.push(("base_model.model.lm_head.weight".to_owned(), vec![4, 8]));
    });
    assert!(tied.starts_with("adapter field ensure_weight_tying = true is not supported"), "{tied}");
}

/// A GGUF LoRA of rank 2 at layer 0 q.
fn gguf(keys: &[(&str, Value)], tensors: &[(&str, usize, usize)]) -> Result<Adapter, String> {
    let mut writer = GgufWriter::new();
    for (key, value) in keys {
        writer.key(*key, value.clone());
    }
    for &(name, rows, cols) in tensors {
        let values: Vec<f32> = (0..rows * cols).map(|i| (i as f32).cos()).collect();
        writer.tensor(name, Tensor::encode(Format::F32, rows, cols, &values).unwrap());
    }
    let mut out = Vec::new();
    writer.write(&mut out).unwrap();
    lora_gguf::from_gguf(Bytes::new(out)).map_err(|error| error.to_string())
}

#[test]
fn gguf_files_are_read_as_llama_cpp_reads_them() {
    let text = |text: &str| Value::Str(text.to_owned());
    let keys = [
        ("general.architecture", text("llama")),
        ("general.type", text("adapter")),
        ("adapter.type", text("lora")),
        ("adapter.lora.alpha", Value::F32(5.0)),
    ];
    let pair = [("blk.0.attn_q.weight.lora_a", 2, 8), ("blk.0.attn_q.weight.lora_b", 6, 2)];
    let scale = |keys: &[(&str, Value)]| low_rank(&gguf(keys, &pair).unwrap(), 0, Module::Q).2;
    assert_eq!(scale(&keys), 2.5);
    assert_eq!(scale(&keys[..3]), 1.0);
    assert_eq!(scale(&[&keys[..3], &[("adapter.lora.alpha", Value::F32(0.0))]].concat()), 1.0);

    let with_key = |key, value| gguf(&[&keys[..], &[(key, value)]].concat(), &pair).unwrap_err();
    assert_eq!(
        with_key("adapter.lora.magic", Value::U8(1)),
        "adapter field adapter.lora.magic = u8 is not understood"
    );
    const INVOCATION: &str = "adapter.alora.invocation_tokens";
    assert!(with_key(INVOCATION, Value::U8(1)).contains(INVOCATION));
    let alora = [&keys[..], &[(INVOCATION, Value::Array(Array::U32(vec![5, 6])))]].concat();
    assert_eq!(gguf(&alora, &pair).unwrap().invocation, [5, 6]);
    assert!(gguf(&keys, &pair).unwrap().invocation.is_empty());
    for (i, field) in [(1, "general.type"), (2, "adapter.type")] {
        let mut keys = keys.clone();
        keys[i].1 = text("other");
        assert!(gguf(&keys, &pair).unwrap_err().starts_with(&format!("adapter field {field}: expected")));
    }
    assert_eq!(gguf(&keys[1..], &pair).unwrap_err(), "expected key general.architecture, found none");

    let with = |tensors: &[(&str, usize, usize)]| gguf(&keys, tensors).unwrap_err();
    assert!(with(&pair[..1]).contains("needs blk.0.attn_q.weight.lora_b"));
    assert!(with(&pair[1..]).contains("needs blk.0.attn_q.weight.lora_a"));
    assert!(with(&[]).contains("the adapter holds no tensors"));
    assert_eq!(
        with(&[pair[0], (pair[1].0, 6, 3)]),
        "adapter tensor blk.0.attn_q.weight.lora_b: expected shape [_, 2], found [6, 3]"
    );
    for name in ["blk.0.attn_norm.weight", "blk.0.attn_norm.weight.lora_a", "blk.0.attn_q.weight", "x.lora_a"]
    {
        let message = with(&[pair[0], pair[1], (name, 2, 2)]);
        assert!(message.starts_with(&format!("adapter tensor {name} is not understood")), "{message}");
    }
    let name = "token_embd.weight.lora_a";
    assert!(with(&[(name, 2, 2)]).starts_with(&format!("adapter tensor {name} is not supported")));
    let head = [("output.weight.lora_a", 2, 8), ("output.weight.lora_b", 6, 2)];
    assert_eq!(gguf(&keys, &head).unwrap().edits[0].site, Site::Head);
    let adapter = gguf(&keys, &pair).unwrap();
    check::architecture(&adapter, "llama").unwrap();
    let message = check::architecture(&adapter, "qwen2").unwrap_err().to_string();
    assert_eq!(message, "the adapter is for architecture llama, the base is qwen2");
}

#[test]
fn the_example_files_are_what_the_converter_wrote() {
    let file = Gguf::open(example("tools-lora.gguf")).unwrap();
    assert_eq!(file.metadata().require::<f32>("adapter.lora.alpha").unwrap(), 8.0);
    assert_eq!(file.names().len(), 420);
    assert_eq!(file.shape("blk.0.ffn_down.weight.lora_a"), Some(vec![8, 1536]));
}
