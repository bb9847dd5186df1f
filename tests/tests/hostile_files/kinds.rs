//! Every kind of adapter, with its golden files damaged in every way that leaves the container whole: the error says
//! which field or tensor.

use graftwork::{Engine, EngineOptions};
use graftwork_adapters::file::{Dtype, Safetensors, Source, TensorInfo, TensorView, write_safetensors};
use graftwork_adapters::{Activation, Adapter, Change, Error};
use graftwork_kernels::Bytes;
use graftwork_tests::reference::{ADAPTERS, golden};
use serde_json::{Value as Json, json};

use crate::parsers::{Parser, safetensors_header};

/// An adapter's configuration and tensors.
#[derive(Clone)]
struct Peft {
    config: Json,
    tensors: Vec<Tensor>,
}

#[derive(Clone)]
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

impl Peft {
    fn golden(name: &str) -> Self {
        let folder = golden(&format!("adapters/{name}"));
        let config = std::fs::read(folder.join("adapter_config.json")).unwrap();
        let file = Safetensors::open(folder.join(weights_of(name))).unwrap();
        let tensors = file.tensors().iter().map(|(name, info)| Tensor {
            name: name.to_owned(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            bytes: info.bytes.to_vec(),
        });
        Self { config: serde_json::from_slice(&config).unwrap(), tensors: tensors.collect() }
    }

    fn weights(&self) -> Vec<u8> {
        let view = |t| {
            let &Tensor { ref name, dtype, ref shape, ref bytes } = t;
            TensorView { name, dtype, shape, bytes }
        };
        let mut out = Vec::new();
        write_safetensors(&mut out, &self.tensors.iter().map(view).collect::<Vec<_>>(), &[]).unwrap();
        out
    }

    fn open(&self) -> Result<Adapter, Error> {
        Adapter::from_peft(self.config.to_string().as_bytes(), Bytes::new(self.weights()))
    }

    fn source(&self) -> Source {
        let config = self.config.to_string().into_bytes();
        let name = if self.config.get("config").is_some() { "adapter" } else { "adapter_model" };
        let files = [("adapter_config.json", config), (&format!("{name}.safetensors")[..], self.weights())];
        Source::files(files.map(|(name, bytes)| (name.to_owned(), Bytes::new(bytes))).into()).unwrap()
    }
}

/// AdapterHub's files have a name of their own.
pub fn weights_of(name: &str) -> &'static str {
    if name.starts_with("hub_") { "adapter.safetensors" } else { "adapter_model.safetensors" }
}

/// The message with which a damaged file is refused.
fn refused(name: &str, damage: &str, damaged: &Peft) -> String {
    match damaged.open() {
        Ok(_) => panic!("{name}: {damage} was not noticed"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn fields_and_tensors_that_nobody_knows_are_refused_by_name() {
    for name in ADAPTERS {
        let whole = Peft::golden(name);
        whole.open().unwrap();
        let mut damaged = whole.clone();
        damaged.config["surprise"] = json!(3);
        let message = refused(name, "a field", &damaged);
        assert!(message.contains("surprise"), "{name}: {message}");
        for path in ["base_model.model.model.layers.0.self_attn.q_proj.surprise", "surprise"] {
            let mut damaged = whole.clone();
            let tensor = Tensor { name: path.to_owned(), ..damaged.tensors[0].clone() };
            damaged.tensors.push(tensor);
            let message = refused(name, "a tensor", &damaged);
            assert!(message.contains(path), "{name}: {message}");
        }
        damaged = whole.clone();
        damaged.tensors.clear();
        assert_eq!(refused(name, "an empty file", &damaged), "the adapter holds no tensors");
    }
}

#[test]
fn values_that_are_no_numbers_are_refused_by_name() {
    for name in ADAPTERS {
        let whole = Peft::golden(name);
        for (i, tensor) in whole.tensors.iter().enumerate() {
            let mut damaged = whole.clone();
            match tensor.dtype {
                Dtype::F32 => damaged.tensors[i].bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes()),
                Dtype::I32 => damaged.tensors[i].bytes[..4].copy_from_slice(&(-1i32).to_le_bytes()),
                other => panic!("{name}: {other}"),
            }
            let message = refused(name, "a NaN", &damaged);
            assert!(message.contains(&tensor.name), "{name}: {message}");
            // Floats where integers should be, and the reverse.
            let mut damaged = whole.clone();
            damaged.tensors[i].dtype = if tensor.dtype == Dtype::F32 { Dtype::I32 } else { Dtype::F32 };
            let message = refused(name, "another type", &damaged);
            assert!(message.contains(&tensor.name), "{name}: {message}");
        }
    }
}

/// What a file lacks is named where something needs it; what stands alone is missed by nobody.
#[test]
fn missing_tensors_are_named() {
    for name in ADAPTERS {
        let whole = Peft::golden(name);
        let edits = whole.open().unwrap().edits.len();
        for (i, tensor) in whole.tensors.iter().enumerate() {
            let mut damaged = whole.clone();
            damaged.tensors.remove(i);
            match damaged.open() {
                Err(error) if damaged.tensors.is_empty() => {
                    assert!(matches!(error, Error::Empty), "{name}: {error}")
                }
                Ok(adapter) => assert!(adapter.edits.len() < edits, "{name}: {} was not missed", tensor.name),
                Err(error) => assert!(error.to_string().contains(&tensor.name), "{name}: {error}"),
            }
        }
    }
}

/// What a configuration says of a prompt that we cannot compute.
#[test]
fn prompts_of_other_models_are_refused_by_name() {
    let table = [
        ("prompt_tuning", "num_transformer_submodules", json!(2), "num_transformer_submodules = 2"),
        ("p_tuning", "num_transformer_submodules", json!(0), "num_transformer_submodules = 0"),
        ("prefix_tuning", "num_transformer_submodules", json!(2), "num_transformer_submodules = 2"),
        (
            "prompt_tuning",
            "num_virtual_tokens",
            json!(7),
            "tensor prompt_embeddings: expected shape [7, 128]",
        ),
        ("p_tuning", "token_dim", json!(64), "tensor prompt_embeddings: expected shape [5, 64]"),
        (
            "prefix_tuning",
            "num_layers",
            json!(null),
            "num_layers: expected a whole number above 0, found null",
        ),
        ("prefix_tuning", "num_layers", json!(2), "tensor prompt_embeddings: expected shape [7, 128]"),
        ("prefix_tuning", "num_layers", json!(u64::MAX), "token_dim: expected a size"),
        ("prefix_tuning_projected", "prefix_projection", json!("x"), "prefix_projection"),
    ];
    for (name, field, value, part) in table {
        let mut damaged = Peft::golden(name);
        damaged.config[field] = value;
        let message = refused(name, field, &damaged);
        assert!(message.contains(part), "{name}: expected {part:?} in {message:?}");
    }
    // Whole in itself, but of another model: without sizes in the configuration, the base says so.
    let engine =
        Engine::open(golden("adapters/base"), EngineOptions { threads: 1, ..Default::default() }).unwrap();
    for (name, layers, shape, part) in [
        ("p_tuning", 3, [5, 64], "virtual tokens: the base expects [5, 128], found [5, 64]"),
        (
            "prefix_tuning",
            2,
            [7, 128],
            "keys and values: the base expects 3 layers of [_, 64], found 2 layers",
        ),
        ("prefix_tuning", 6, [7, 192], "expects 3 layers of [_, 64], found 6 layers in [7, 192]"),
        ("prefix_tuning", 3, [7, 96], "expects 3 layers of [_, 64], found 3 layers in [7, 96]"),
    ] {
        let mut damaged = Peft::golden(name);
        damaged.config["token_dim"] = json!(null);
        damaged.config["num_layers"] = json!(layers);
        damaged.tensors[0].shape = shape.to_vec();
        damaged.tensors[0].bytes.truncate(4 * shape.iter().product::<u64>() as usize);
        let message = engine.load_adapter("damaged", damaged.source()).unwrap_err().to_string();
        assert!(message.contains(part), "{name}: expected {part:?} in {message:?}");
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let options = EngineOptions { threads: 1, ..EngineOptions::default() };
    let engine = Engine::open(golden("adapters/base"), options).unwrap();
    for name in ADAPTERS {
        let whole = Peft::golden(name);
        for (i, tensor) in whole.tensors.iter().enumerate() {
            for dim in 0..tensor.shape.len() {
                // One more and one less of whatever the dimension counts, all values in place.
                for shape in [tensor.shape[dim] + 1, tensor.shape[dim] - 1] {
                    // Shared projections may be larger than any module needs.
                    if tensor.name.starts_with("base_model.vera_") && shape > tensor.shape[dim] {
                        continue;
                    }
                    let mut damaged = whole.clone();
                    let damaged_tensor = &mut damaged.tensors[i];
                    damaged_tensor.shape[dim] = shape;
                    let size = damaged_tensor.shape.iter().product::<u64>() as usize * 4;
                    damaged_tensor.bytes.resize(size, 0);
                    let Err(error) = engine.load_adapter("damaged", damaged.source()) else {
                        panic!("{name}: {} of shape {:?}", tensor.name, damaged.tensors[i].shape)
                    };
                    // It, or what it does not fit to, by the key in the file.
                    let message = error.to_string();
                    let path = [".weight", ".bias", ".0"]
                        .iter()
                        .fold(&*tensor.name, |name, end| name.trim_end_matches(end));
                    let module = path.rsplit_once('.').map_or(path, |(module, _)| module);
                    let module = if module == "base_model" { path } else { module };
                    assert!(message.contains(module), "{name}: {}: {message}", tensor.name);
                }
            }
            let mut damaged = whole.clone();
            damaged.tensors[i].shape.insert(0, 1);
            damaged.tensors[i].shape.insert(0, 1);
            let message = refused(name, "four dimensions", &damaged);
            assert!(message.contains(&tensor.name), "{name}: {message}");
        }
    }
}

/// A base as a directory in memory, with one tensor changed.
fn base_with(name: &str, change: impl Fn(&mut [u8])) -> Source {
    let file = Safetensors::open(golden("adapters/base/model.safetensors")).unwrap();
    let mut tensors: Vec<_> =
        (file.tensors().iter()).map(|(name, info)| (name, info, info.bytes.to_vec())).collect();
    change(&mut tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap().2);
    let view = |(name, info, bytes): &'_ (&str, &TensorInfo, Vec<u8>)| {
        (name.to_string(), info.dtype, info.shape.clone(), bytes.clone())
    };
    let tensors: Vec<Tensor> = tensors
        .iter()
        .map(view)
        .map(|(name, dtype, shape, bytes)| Tensor { name, dtype, shape, bytes })
        .collect();
    let weights = Peft { config: Json::Null, tensors }.weights();
    let config = std::fs::read(golden("adapters/base/config.json")).unwrap();
    let files = [("config.json", config), ("model.safetensors", weights)];
    Source::files(files.map(|(name, bytes)| (name.to_owned(), Bytes::new(bytes))).into()).unwrap()
}

/// peft divides by the norm of a row of zeros and gives no numbers; here the adapter is refused, with the row.
#[test]
fn a_row_without_norm_refuses_dora() {
    let mut dora = Peft::golden("dora");
    let b = dora.tensors.iter_mut().find(|tensor| tensor.name.ends_with("lora_B.weight")).unwrap();
    let row = b.shape[1] as usize * 4;
    b.bytes[3 * row..4 * row].fill(0);
    let module =
        b.name.strip_prefix("base_model.model.").unwrap().strip_suffix(".lora_B.weight").unwrap().to_owned();
    let options = || EngineOptions { threads: 2, ..EngineOptions::default() };
    let weight = format!("{module}.weight");
    let whole = Engine::open(base_with(&weight, |_| {}), options()).unwrap();
    whole.load_adapter("dora", dora.source()).unwrap();
    let inputs = |bytes: &[u8]| bytes.len() / b_rows(&dora, &module);
    let zero = base_with(&weight, |bytes| {
        let row = inputs(bytes);
        bytes[3 * row..4 * row].fill(0);
    });
    let error =
        Engine::open(zero, options()).unwrap().load_adapter("dora", dora.source()).unwrap_err().to_string();
    let expected = "expected a finite factor magnitude / norm of W + s B A, found inf in row 3 of the base";
    assert!(error.contains(expected), "{error}");
}

/// Rows of `B` of a module.
fn b_rows(peft: &Peft, module: &str) -> usize {
    let name = format!("base_model.model.{module}.lora_B.weight");
    peft.tensors.iter().find(|tensor| tensor.name == name).unwrap().shape[0] as usize
}

/// A base that was copied is not kept twice: DoRA, which needs it, is refused by name.
#[test]
fn a_copied_base_refuses_dora() {
    let options = EngineOptions { threads: 1, ..EngineOptions::default() };
    let engine = Engine::open(Source::copied(golden("adapters/base")), options).unwrap();
    let error = engine.load_adapter("dora", golden("adapters/dora")).unwrap_err().to_string();
    assert!(error.contains("it depends on the base's weights, but these were copied"), "{error}");
    engine.load_adapter("lora", golden("adapters/lora")).unwrap();
}

/// Every kind as a parser to be damaged: its golden files, with the tensors of layers above the first left out.
pub fn parsers() -> impl Iterator<Item = Parser> {
    ADAPTERS.iter().map(|&name| {
        let mut peft = Peft::golden(name);
        peft.tensors.retain(|tensor| !tensor.name.contains(".layers.") || tensor.name.contains(".layers.0."));
        let (config, weights) = (peft.config.to_string().into_bytes(), peft.weights());
        let headers = vec![config.len(), safetensors_header(&weights)];
        Parser {
            headers,
            files: vec![("adapter_config.json", config), (weights_of(name), weights)],
            ..crate::parsers::peft_as(name)
        }
    })
}

/// Cut anywhere, and with fields of any type: an error or an adapter, no panic.
#[test]
fn damaged_files_never_panic() {
    for name in ADAPTERS {
        let whole = Peft::golden(name);
        let (config, weights) = (whole.config.to_string().into_bytes(), whole.weights());
        for part in 0..97 {
            let cut = weights[..weights.len() * part / 97].to_vec();
            assert!(Adapter::from_peft(&config, Bytes::new(cut)).is_err(), "{name}: cut at {part}/97");
        }
        let fields: Vec<String> = whole.config.as_object().unwrap().keys().cloned().collect();
        let values =
            [json!(null), json!(-1), json!(0), json!(1e300), json!("x"), json!([1]), json!({"q_proj": 2})];
        for field in fields {
            for value in &values {
                let mut damaged = whole.clone();
                damaged.config[&field] = value.clone();
                // Whatever may be said of the field is said by its name.
                if let Err(error) = damaged.open() {
                    let message = error.to_string();
                    assert!(
                        message.contains(&field) || message.contains("adapter tensor"),
                        "{name}: {message}"
                    );
                }
            }
        }
    }
}

/// Options that would change the arithmetic, one by one: the message says which.
#[test]
fn options_that_are_not_applied_are_refused_by_name() {
    let cases: Vec<(&str, Vec<&str>, Json, &str)> = vec![
        ("hub_seq_bn", vec!["config", "surprise"], json!(3), "config.surprise"),
        ("hub_seq_bn", vec!["config", "inv_adapter"], json!("nice"), "inv_adapter"),
        ("hub_seq_bn", vec!["config", "ln_before"], json!(true), "ln_before"),
        ("hub_seq_bn", vec!["config", "ln_after"], json!(true), "ln_after"),
        ("hub_seq_bn", vec!["config", "use_gating"], json!(true), "use_gating"),
        ("hub_seq_bn", vec!["config", "phm_layer"], json!(true), "phm_layer"),
        ("hub_seq_bn", vec!["config", "original_ln_after"], json!(false), "original_ln_after"),
        ("hub_seq_bn", vec!["config", "residual_before_ln"], json!(false), "residual_before_ln"),
        ("hub_double_seq_bn", vec!["config", "residual_before_ln"], json!("post_add"), "residual_before_ln"),
        ("hub_seq_bn", vec!["config", "non_linearity"], json!("mish"), "config.non_linearity"),
        ("hub_seq_bn", vec!["config", "scaling"], json!("x"), "config.scaling"),
        ("hub_seq_bn", vec!["config", "scaling"], json!("learned"), ".scaling"),
        ("hub_scaled_par_bn", vec!["config", "scaling"], json!(1.0), ".scaling"),
        ("hub_seq_bn", vec!["config", "architecture"], json!("prefix_tuning"), "config.architecture"),
        ("hub_seq_bn", vec!["config"], json!({"architecture": "union"}), "config.architecture"),
        ("hub_seq_bn", vec!["model_type"], json!("bert"), "model_type"),
        ("hub_seq_bn", vec!["name"], json!("other"), "adapters.task."),
        ("hub_lora", vec!["config", "composition_mode"], json!("x"), "config.composition_mode"),
        ("hub_lora", vec!["config", "r"], json!(5), "lora_A"),
        ("hub_lora", vec!["version"], json!("adapters.new"), "version"),
        ("bottleneck", vec!["bias"], json!("all"), "bias"),
        ("bottleneck", vec!["non_linearity"], json!("prelu"), "non_linearity"),
        ("bottleneck", vec!["scaling"], json!("channel"), "scaling"),
        ("bottleneck", vec!["bottleneck_size"], json!(13), "adapter_down"),
        ("bottleneck_adapterp", vec!["scaling"], json!(1.0), "adapter_scaling"),
        ("bottleneck_parallel", vec!["use_parallel_adapter"], json!(false), "self_attn.q_proj"),
        ("bottleneck", vec!["modules_to_save"], json!(["lm_head"]), "modules_to_save"),
        ("oft", vec!["bias"], json!("oft_only"), "bias"),
        ("oft", vec!["num_cayley_neumann_terms"], json!(1u64 << 40), "num_cayley_neumann_terms"),
        ("oft", vec!["block_share"], json!(true), "oft_R"),
        ("control_vector", vec!["layers"], json!([2, 1]), "layers"),
        ("control_vector", vec!["layers"], json!([3, 9]), "layers"),
        ("control_vector", vec!["layers"], json!([1]), "layers"),
        ("ablation", vec!["dict", "0"], json!([5]), "components.0"),
        ("ablation", vec!["dict", "0"], json!([1, 1]), "dict.0"),
        ("ablation", vec!["dict", "0"], json!([]), "dict.0"),
        ("ablation", vec!["dict", "00"], json!([1]), "dict"),
        ("ablation", vec!["dict", "1"], json!([1]), "components.1"),
    ];
    for (name, path, value, expected) in cases {
        let mut damaged = Peft::golden(name);
        damaged.open().unwrap();
        let place = path.iter().fold(&mut damaged.config, |place, key| &mut place[*key]);
        *place = value.clone();
        let message = refused(name, &format!("{path:?} = {value}"), &damaged);
        assert!(message.contains(expected), "{name}, {path:?} = {value}: {message}");
    }
}

/// Components that are not orthonormal, and files of NumPy that are missing, cut or of other types.
#[test]
fn components_are_checked() {
    let mut damaged = Peft::golden("ablation");
    let values = &mut damaged.tensors[0].bytes;
    values.chunks_exact_mut(20).for_each(|row| row[..4].copy_from_slice(&0.1f32.to_le_bytes()));
    let message = refused("ablation", "a column", &damaged);
    assert!(message.contains("components.0") && message.contains("columns 0 and 0"), "{message}");

    let folder = golden("adapters/ablation_npy");
    let names = ["adapter_config.json", "components_layer_0.npy", "components_layer_2.npy"];
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let open = |change: fn(&str, Vec<u8>) -> Option<Vec<u8>>| {
        let files = names.iter().filter_map(|&name| change(name, read(name)).map(|bytes| (name, bytes)));
        let files = files.map(|(name, bytes)| (name.to_owned(), Bytes::new(bytes))).collect();
        Adapter::open(Source::files(files).unwrap()).map_err(|error| error.to_string())
    };
    const LAST: &str = "components_layer_2.npy";
    assert_eq!(open(|_, bytes| Some(bytes)).unwrap().edits.len(), 2);
    for error in [
        open(|name, bytes| (name != LAST).then_some(bytes)),
        open(|name, bytes| Some(if name == LAST { bytes[..bytes.len() - 1].to_vec() } else { bytes })),
        open(|name, bytes| Some(if name == LAST { bytes[1..].to_vec() } else { bytes })),
        open(|name, mut bytes| {
            if name != LAST {
                return Some(bytes);
            }
            let end = bytes.len();
            bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
            Some(bytes)
        }),
    ] {
        let message = error.expect_err("a damaged file");
        assert!(message.contains(LAST), "{message}");
    }
    let without = open(|name, bytes| {
        let config = br#"{"peft_type": "ABLATION"}"#.to_vec();
        Some(if name == "adapter_config.json" { config } else { bytes })
    });
    assert!(without.unwrap_err().contains("dict"));
}

/// AdapterHub's older versions meant other things by the same fields.
#[test]
fn versions_of_adapterhub_are_told_apart() {
    let open = |name, version: Json, non_linearity: &str| {
        let mut peft = Peft::golden(name);
        peft.config["version"] = version;
        peft.config["config"]["non_linearity"] = json!(non_linearity);
        if name == "hub_lora" {
            peft.config["config"].as_object_mut().unwrap().remove("non_linearity");
        }
        peft.open().unwrap().edits[0].change.clone()
    };
    for (version, expected) in [("adapters.1.0.1", 1.0), ("adapters.1.1.0", 4.0), ("adapters.1.2.0", 4.0)] {
        let change = open("hub_lora", json!(version), "");
        assert!(
            matches!(change, Change::LowRank { scale, .. } if scale == expected),
            "{version}: {change:?}"
        );
    }
    for (version, name, expected) in [
        (json!(null), "gelu", Activation::GeluTanh),
        (json!(null), "gelu_orig", Activation::Gelu),
        (json!("adapters.1.0.1"), "GELU", Activation::Gelu),
        (json!("0.1.0"), "gelu_new", Activation::GeluTanh),
    ] {
        let change = open("hub_seq_bn", version, name);
        assert!(
            matches!(change, Change::Bottleneck { activation, .. } if activation == expected),
            "{name}: {change:?}"
        );
    }
}
