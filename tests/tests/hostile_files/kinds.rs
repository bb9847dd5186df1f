//! Every kind of adapter, with its golden files damaged in every way that leaves the container whole: the error says
//! which field or tensor.

use graftwork::{Engine, EngineOptions};
use graftwork_adapters::file::{Dtype, Safetensors, Source, TensorView, write_safetensors};
use graftwork_adapters::{Adapter, Error};
use graftwork_kernels::Bytes;
use graftwork_tests::reference::{ADAPTERS, golden};
use serde_json::{Value as Json, json};

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
fn weights_of(name: &str) -> &'static str {
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
                Ok(adapter) => assert!(adapter.edits.len() < edits, "{name}: {} was not missed", tensor.name),
                Err(error) => assert!(error.to_string().contains(&tensor.name), "{name}: {error}"),
            }
        }
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
                    let error = engine.load_adapter("damaged", damaged.source()).err();
                    assert!(
                        error.is_some(),
                        "{name}: {} of shape {:?}",
                        tensor.name,
                        damaged.tensors[i].shape
                    );
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
