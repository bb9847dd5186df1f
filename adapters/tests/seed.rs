//! Seed patches: equal to the document and to its reference in Python; damaged files are refused by name.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use graftwork_adapters::check::{self, Shape};
use graftwork_adapters::delta::Fingerprint;
use graftwork_adapters::file::{Dtype, TensorView, write_safetensors};
use graftwork_adapters::seed::{
    CHECKSUM, GENERATOR, KEY, SeedPatch, Settings, Update, candidate_seed, normals, tensor_hash,
};
use graftwork_adapters::{Adapter, Change, Kind, Module, Site};
use graftwork_kernels::{Bytes, Format, Tensor};

/// A fingerprint of four digits again and again.
fn base(digits: &str) -> Fingerprint {
    digits.repeat(16).parse().unwrap()
}

fn settings(base_seed: u64, scale: f32) -> Settings {
    Settings { bases: vec![base("5b1d")], base_seed, scale, modules: Module::ALL.to_vec() }
}

/// The patch of the document's vectors.
fn documented() -> SeedPatch {
    SeedPatch::new(settings(42, -0.001), vec![0.5, -0.25, 0.0, 3.0]).unwrap()
}

/// Coefficients as training leaves them, some of them zero.
fn trained(count: usize) -> SeedPatch {
    let mut coefficients = vec![0.0; count];
    normals(1, tensor_hash("coefficients"), 0, &mut coefficients);
    coefficients.iter_mut().step_by(5).for_each(|c| *c = 0.0);
    SeedPatch::new(settings(7, 3e-4), coefficients).unwrap()
}

fn written(patch: &SeedPatch) -> Vec<u8> {
    let mut out = Vec::new();
    patch.write(&mut out).unwrap();
    out
}

fn document() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/seed-patches.md");
    std::fs::read_to_string(path).unwrap()
}

/// The rows of the tables of vectors, those with four cells and those with three.
fn vectors(cells: usize) -> Vec<Vec<String>> {
    let text = document();
    let rows = text.lines().filter(|line| line.contains("weight`")).map(|line| {
        line.trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().trim_matches('`').to_owned())
            .collect::<Vec<_>>()
    });
    rows.filter(|row| row.len() == cells).collect()
}

fn bits(values: &[f32]) -> String {
    values.iter().map(|x| format!("{:08x}", x.to_bits())).collect::<Vec<_>>().join(" ")
}

fn site_of(tensor: &str) -> Site {
    let all =
        (0..100).flat_map(|layer| Module::ALL.iter().map(move |&module| Site::Linear { layer, module }));
    let names =
        ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"];
    let name = |site: &Site| match *site {
        Site::Linear { layer, module } => {
            let name = names[Module::ALL.iter().position(|&m| m == module).unwrap()];
            format!("model.layers.{layer}.{name}_proj.weight")
        }
        _ => unreachable!(),
    };
    all.into_iter().find(|site| name(site) == tensor).unwrap()
}

/// Elements of an update, by way of the rows that hold them.
fn elements(patch: &SeedPatch, tensor: &str, first: usize, count: usize) -> Vec<f32> {
    let inputs = 64;
    let shape = Shape { outputs: usize::MAX / inputs, inputs };
    let row = first / inputs;
    let mut out = vec![0.0; ((first + count).div_ceil(inputs) - row) * inputs];
    patch.update(site_of(tensor), shape).unwrap().rows(row, &mut out).unwrap();
    out[first - row * inputs..][..count].to_vec()
}

#[test]
fn the_documents_vectors_are_these() {
    let rows = vectors(4);
    assert_eq!(rows.len(), 5);
    for row in rows {
        let mut out = vec![0.0; row[3].split(' ').count()];
        normals(row[0].parse().unwrap(), tensor_hash(&row[1]), row[2].parse().unwrap(), &mut out);
        assert_eq!(bits(&out), row[3], "{row:?}");
    }
    let rows = vectors(3);
    assert_eq!(rows.len(), 3);
    for row in rows {
        let count = row[2].split(' ').count();
        let out = elements(&documented(), &row[0], row[1].parse().unwrap(), count);
        assert_eq!(bits(&out), row[2], "{row:?}");
    }
}

/// The reference in the document, run where there is a Python: on the document's vectors and on other files and
/// elements.
#[test]
fn the_documents_reference_agrees() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("no python3: the reference was not run");
        return;
    }
    let folder = std::env::temp_dir().join(format!("graftwork-seed-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let text = document();
    let (_, code) = text.split_once("```python\n").unwrap();
    let (code, _) = code.split_once("```").unwrap();
    std::fs::write(folder.join("seed.py"), code).unwrap();
    let python = |arguments: &[&str]| {
        let output =
            Command::new("python3").arg("seed.py").args(arguments).current_dir(&folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    for row in vectors(4) {
        let count = row[3].split(' ').count().to_string();
        assert_eq!(python(&["normals", &row[0], &row[1], &row[2], &count]), row[3], "{row:?}");
    }
    let name = "model.layers.11.mlp.gate_proj.weight";
    for (seed, first) in [(0, 12_345), (candidate_seed(3, 9), u64::MAX - 600)] {
        let mut out = [0.0; 500];
        normals(seed, tensor_hash(name), first, &mut out);
        assert_eq!(python(&["normals", &seed.to_string(), name, &first.to_string(), "500"]), bits(&out));
    }
    std::fs::write(folder.join("documented"), written(&documented())).unwrap();
    for row in vectors(3) {
        let count = row[2].split(' ').count().to_string();
        assert_eq!(python(&["update", "documented", &row[0], &row[1], &count]), row[2], "{row:?}");
    }
    let patch = trained(300);
    std::fs::write(folder.join("trained"), written(&patch)).unwrap();
    let expected = bits(&elements(&patch, name, 1001, 7));
    assert_eq!(python(&["update", "trained", name, "1001", "7"]), expected);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn files_hold_what_was_written_and_4096_coefficients_stay_under_18_kb() {
    let settings = Settings {
        bases: vec![base("9f9f"), base("0a0a")],
        base_seed: u64::MAX,
        scale: -1.234_567_8e-7,
        modules: Module::ALL.to_vec(),
    };
    let mut coefficients = vec![0.0; 4096];
    normals(5, 6, 0, &mut coefficients);
    coefficients[1] = f32::MIN_POSITIVE / 8.0;
    let patch = SeedPatch::new(settings.clone(), coefficients.clone()).unwrap();
    let file = written(&patch);
    println!("{} bytes", file.len());
    assert!(file.len() < 18_000, "{}", file.len());
    let back = SeedPatch::parse(Bytes::new(file.clone())).unwrap();
    assert_eq!(back.settings(), &settings);
    assert_eq!(bits(back.coefficients()), bits(&coefficients));
    assert_eq!(written(&back), file);
    // Other readers of safetensors read it.
    let theirs = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(theirs.tensor("coefficients").unwrap().shape(), [4096]);
}

#[test]
fn scales_survive_the_header() {
    for i in 0..20_000u64 {
        let scale = f32::from_bits((candidate_seed(1, i) as u32) & 0x9fff_ffff | 0x2000_0000);
        let patch = SeedPatch::new(settings(i, scale), vec![1e-9]).unwrap();
        let back = SeedPatch::parse(Bytes::new(written(&patch))).unwrap();
        assert_eq!(back.settings().scale.to_bits(), scale.to_bits(), "{scale:e}");
    }
}

/// `D` is what the equation says, in doubles, up to the rounding of sums; and sparse where coefficients are zero.
#[test]
fn updates_are_sums_of_directions() {
    let patch = trained(40);
    assert_eq!(patch.directions(), 32);
    let (shape, site) = (Shape { outputs: 9, inputs: 30 }, Site::Linear { layer: 2, module: Module::Down });
    let name = "model.layers.2.mlp.down_proj.weight";
    let mut expected = vec![(0.0f64, 0.0f64); 270];
    for (k, &c) in (0..).zip(patch.coefficients()) {
        let mut z = [0.0; 270];
        normals(candidate_seed(7, k), tensor_hash(name), 0, &mut z);
        for ((sum, magnitude), z) in expected.iter_mut().zip(z) {
            *sum += f64::from(c) * f64::from(z) * f64::from(3e-4f32);
            *magnitude += f64::from((c * z * 3e-4).abs());
        }
    }
    let update = patch.update(site, shape).unwrap();
    let mut out = vec![0.0; 270];
    update.rows(0, &mut out).unwrap();
    for (x, (sum, magnitude)) in out.iter().zip(&expected) {
        assert!((f64::from(*x) - sum).abs() <= magnitude * 42.0 / 2f64.powi(24), "{x} {sum}");
    }
    for (first, rows) in [(0, 1), (1, 1), (3, 5), (8, 1), (9, 0)] {
        let mut some = vec![0.0; rows * 30];
        update.rows(first, &mut some).unwrap();
        assert_eq!(bits(&some), bits(&out[first * 30..][..rows * 30]), "{rows} rows from {first}");
    }
    // Another layer, and another module, have other numbers.
    for site in
        [Site::Linear { layer: 3, module: Module::Down }, Site::Linear { layer: 2, module: Module::Up }]
    {
        let mut other = vec![0.0; 270];
        patch.update(site, shape).unwrap().rows(0, &mut other).unwrap();
        assert!(out.iter().zip(&other).all(|(x, y)| x != y));
    }
}

#[test]
fn the_whole_is_its_rows_on_any_number_of_threads() {
    let patch = trained(3);
    // Pieces of 8,192 elements end within rows.
    for (outputs, inputs) in [(1, 1), (3, 5), (100, 333), (64, 1024)] {
        let update =
            patch.update(Site::Linear { layer: 0, module: Module::Q }, Shape { outputs, inputs }).unwrap();
        let mut rows = vec![0.0; outputs * inputs];
        update.rows(0, &mut rows).unwrap();
        for threads in [0, 1, 2, 7] {
            let seen = Mutex::new(Vec::new());
            let progress = |done, all| {
                assert_eq!(all, outputs * inputs);
                seen.lock().unwrap().push(done);
                true
            };
            let tensor = update.materialize(Format::F32, threads, &progress).unwrap().unwrap();
            assert_eq!((tensor.rows(), tensor.cols()), (outputs, inputs));
            assert_eq!(bits(&tensor.decode().unwrap()), bits(&rows), "{threads} threads");
            let mut seen = seen.into_inner().unwrap();
            seen.sort_unstable();
            assert_eq!(seen.len(), (outputs * inputs).div_ceil(8192));
            assert_eq!(seen.last(), Some(&(outputs * inputs)));
        }
    }
}

/// In another format it is what encoding the whole gives, threads or not; and a matrix of variance 1 times a number, however small that
/// is.
#[test]
fn the_whole_in_other_formats_is_the_whole() {
    let patch = trained(20);
    let site = Site::Linear { layer: 1, module: Module::K };
    let update = patch.update(site, Shape { outputs: 130, inputs: 96 }).unwrap();
    let whole = |update: &Update, format, threads| {
        update.materialize(format, threads, &|_, _| true).unwrap().unwrap()
    };
    let exact = whole(&update, Format::F32, 1).decode().unwrap();
    for format in [Format::F16, Format::BF16, Format::Q8_0, Format::W2G32] {
        let expected = Tensor::encode(format, 130, 96, &exact).unwrap();
        for threads in [1, 3] {
            assert_eq!(**whole(&update, format, threads).bytes(), **expected.bytes(), "{format}");
        }
    }
    let error = update.materialize(Format::Q4K, 1, &|_, _| true).unwrap_err().to_string();
    assert!(error.contains("layer 1 k") && error.contains("96"), "{error}");

    for scale in [1e-12f32, 3e-4, -5.0, -1e20, 0.0] {
        let patch = SeedPatch::new(settings(7, scale), patch.coefficients().to_vec()).unwrap();
        let update = patch.update(site, Shape { outputs: 130, inputs: 96 }).unwrap();
        let exact = whole(&update, Format::F32, 1).decode().unwrap();
        let (normal, by) = update.normalized();
        let values = whole(&normal, Format::F32, 1).decode().unwrap();
        let variance = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / values.len() as f64;
        // Five standard deviations of the variance of as many normal numbers.
        assert!((variance - 1.0).abs() < 5.0 * (2.0 / values.len() as f64).sqrt(), "{variance}");
        for (x, exact) in values.iter().zip(&exact) {
            assert!((x * by - exact).abs() <= exact.abs() * 4.0 * f32::EPSILON, "{x} * {by} for {exact}");
        }
        // Scales of blocks are halves: their rounding, 2^-12 of the largest, is less than that of codes, 1 / 254. (The largest
        // normal number is below 6.56.)
        let rounded = whole(&normal, Format::Q8_0, 2).decode().unwrap();
        for (x, rounded) in values.chunks(32).zip(rounded.chunks(32)) {
            let largest = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let bound = largest * (1.0 / 254.0 + 1.0 / 2048.0);
            assert!(x.iter().zip(rounded).all(|(x, y)| (x - y).abs() <= bound));
        }
    }
    // So small that the inverse of their norm would be infinite.
    let patch = SeedPatch::new(settings(7, 1.0), vec![1e-44; 3]).unwrap();
    let (normal, by) = patch.update(site, Shape { outputs: 2, inputs: 3 }).unwrap().normalized();
    assert!(by.is_finite() && whole(&normal, Format::F32, 1).decode().unwrap().iter().all(|x| x.is_finite()));
}

/// What is no seed patch any more stays one for whoever opens it; a whole one is an edit at each of its layers, of every block.
#[test]
fn a_file_opens_as_an_adapter() {
    let folder = std::env::temp_dir().join(format!("graftwork-seed-open-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = written(&documented());
    // Beside the configuration of another adapter, too.
    std::fs::write(folder.join("other.safetensors"), &file).unwrap();
    std::fs::write(folder.join("adapter_config.json"), r#"{"peft_type": "LORA"}"#).unwrap();
    let in_folder = folder.join("in");
    std::fs::create_dir_all(&in_folder).unwrap();
    std::fs::write(in_folder.join("seed.safetensors"), &file).unwrap();
    let adapters = [
        Adapter::open(Bytes::new(file.clone())),
        Adapter::open(folder.join("other.safetensors").as_path()),
        Adapter::open(in_folder.as_path()),
    ];
    for adapter in adapters {
        let adapter = adapter.unwrap();
        assert_eq!((adapter.kind, &adapter.bases[..]), (Kind::SeedPatch, &[base("5b1d")][..]));
        let sites: Vec<Site> = adapter.edits.iter().map(|edit| edit.site).collect();
        let all: Vec<Site> = Module::ALL.iter().map(|&module| Site::EveryLinear { module }).collect();
        assert_eq!(sites, all);
        for edit in &adapter.edits {
            let Change::Seeded { patch } = &edit.change else { panic!("{:?}", edit.change) };
            assert_eq!(patch.coefficients(), documented().coefficients());
            let places: Vec<Site> = edit.site.in_blocks(3).collect();
            let Site::EveryLinear { module } = edit.site else { unreachable!() };
            assert_eq!(places, [0, 1, 2].map(|layer| Site::Linear { layer, module }));
        }
    }
    std::fs::write(in_folder.join("seed.safetensors"), &file[..file.len() - 3]).unwrap();
    let error = Adapter::open(in_folder.as_path()).unwrap_err().to_string();
    assert!(error.contains("seed.safetensors") && error.contains("coefficients"), "{error}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn stopping_stops() {
    let patch = trained(2);
    let shape = Shape { outputs: 1000, inputs: 1024 };
    let update = patch.update(Site::Linear { layer: 0, module: Module::O }, shape).unwrap();
    for threads in [1, 4] {
        let calls = AtomicUsize::new(0);
        let progress = |_, _| calls.fetch_add(1, Ordering::Relaxed) < 2;
        assert!(update.materialize(Format::F32, threads, &progress).unwrap().is_none());
        // The third call says no; each thread may be in a piece of its own by then.
        assert!((3..3 + threads).contains(&calls.into_inner()));
    }
}

#[test]
fn rows_that_are_not_there_are_refused() {
    let patch = trained(2);
    let site = Site::Linear { layer: 4, module: Module::K };
    let update = |outputs, inputs| patch.update(site, Shape { outputs, inputs }).unwrap();
    for (outputs, inputs, first, len) in [
        (4, 8, 0, 7),
        (4, 8, 0, 40),
        (4, 8, 4, 8),
        (4, 8, usize::MAX, 8),
        (4, 8, 5, 0),
        (4, 0, 0, 1),
        (0, 8, 0, 8),
    ] {
        let error = update(outputs, inputs).rows(first, &mut vec![0.0; len]).unwrap_err().to_string();
        assert!(error.contains("layer 4 k, rows of the update"), "{error}");
    }
    update(4, 8).rows(4, &mut []).unwrap();
    update(usize::MAX, 64).rows(usize::MAX, &mut []).unwrap();
    assert_eq!(update(0, 8).materialize(Format::F32, 2, &|_, _| true).unwrap().unwrap().rows(), 0);
    assert_eq!(update(4, 0).materialize(Format::F32, 2, &|_, _| true).unwrap().unwrap().cols(), 0);
    let error = update(usize::MAX, 2).materialize(Format::F32, 1, &|_, _| true).unwrap_err().to_string();
    assert!(error.contains("layer 4 k"), "{error}");
}

#[test]
fn only_the_listed_layers_change() {
    let modules = vec![Module::V, Module::Up];
    let patch = SeedPatch::new(Settings { modules, ..settings(1, 1.0) }, vec![1.0]).unwrap();
    let back = SeedPatch::parse(Bytes::new(written(&patch))).unwrap();
    let shape = Shape { outputs: 2, inputs: 2 };
    for &module in Module::ALL {
        let changes = back.update(Site::Linear { layer: 0, module }, shape).is_some();
        assert_eq!(changes, [Module::V, Module::Up].contains(&module), "{module:?}");
    }
    for site in [Site::Embedding, Site::Head, Site::Norm, Site::AttentionNorm { layer: 0 }] {
        assert!(back.update(site, shape).is_none());
    }
}

#[test]
fn other_bases_are_refused() {
    let bases = vec![base("5b1d"), base("7777")];
    let patch = SeedPatch::new(Settings { bases: bases.clone(), ..settings(1, 1.0) }, vec![1.0]).unwrap();
    let adapter = patch.into_adapter().unwrap();
    check::base(&adapter, || bases[1]).unwrap();
    let error = check::base(&adapter, || base("5b1e")).unwrap_err().to_string();
    assert!(
        [bases[0], bases[1], base("5b1e")].iter().all(|base| error.contains(&base.to_string())),
        "{error}"
    );
}

#[test]
fn what_is_no_patch_is_not_made() {
    let error = |settings: Settings, coefficients: &[f32]| {
        SeedPatch::new(settings, coefficients.to_vec()).unwrap_err().to_string()
    };
    let with = |change: fn(&mut Settings)| {
        let mut settings = settings(1, 1.0);
        change(&mut settings);
        settings
    };
    for (settings, coefficients, expected) in [
        (with(|s| s.bases.clear()), &[1.0][..], "field bases: expected"),
        (with(|s| s.modules.clear()), &[1.0], "field modules: expected"),
        (
            with(|s| s.modules.push(Module::K)),
            &[1.0],
            "field modules: expected layers, each once, found q, k",
        ),
        (with(|_| ()), &[], "field count: expected a coefficient at least, found 0"),
        (
            with(|_| ()),
            &[1.0, f32::NAN],
            "coefficients: expected finite values, found NaN in row 0, column 1",
        ),
        (with(|_| ()), &[f32::NEG_INFINITY], "coefficients: expected finite values, found -inf"),
        (with(|_| ()), &[1e29, -1e29], "field scale: expected"),
        (with(|s| s.scale = f32::NAN), &[1.0], "field scale: expected"),
        (with(|s| s.scale = -1e30), &[1.0], "field scale: expected"),
    ] {
        let message = error(settings, coefficients);
        assert!(message.contains(expected), "{message}");
    }
}

fn header(json: &str, tensors: &[TensorView<'_>], more: &[(&str, &str)]) -> Vec<u8> {
    let data: Vec<u8> = tensors.iter().flat_map(|tensor| tensor.bytes).copied().collect();
    let checksum = [json.as_bytes(), &data].concat().iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let checksum = format!("{checksum:016x}");
    let mut out = Vec::new();
    write_safetensors(&mut out, tensors, &[&[(KEY, json), (CHECKSUM, &checksum)], more].concat()).unwrap();
    out
}

const JSON: &str = concat!(
    r#"{"version":1,"generator":"philox4x32-10/box-muller/1","bases":[""#,
    "5b1d5b1d5b1d5b1d5b1d5b1d5b1d5b1d5b1d5b1d5b1d5b1d5b1d5b1d5b1d5b1d",
    r#""],"base_seed":9,"scale":-3e-7,"#,
    r#""count":2,"modules":["mlp.up_proj","self_attn.q_proj"]}"#,
);

fn two<'a>() -> TensorView<'a> {
    TensorView { name: "coefficients", dtype: Dtype::F32, shape: &[2], bytes: &[0, 0, 128, 63, 0, 0, 0, 64] }
}

#[test]
fn damaged_files_are_refused_by_name() {
    let parse = |file: Vec<u8>| SeedPatch::parse(Bytes::new(file)).map_err(|error| error.to_string());
    let patch = parse(header(JSON, &[two()], &[])).unwrap();
    assert_eq!((patch.coefficients(), patch.settings().scale), (&[1.0, 2.0][..], -3e-7));
    assert_eq!(patch.settings().modules, [Module::Up, Module::Q]);

    let refused = |file: Vec<u8>, expected: &str| {
        let message = parse(file).expect_err(expected);
        assert!(message.contains(expected), "{message} for {expected}");
    };
    let json = |from: &str, to: &str| {
        assert!(JSON.contains(from));
        header(&JSON.replace(from, to), &[two()], &[])
    };
    refused(json("\"version\":1", "\"version\":2"), "field version: expected 1, found 2");
    refused(
        json(GENERATOR, "mt19937"),
        "field generator: expected philox4x32-10/box-muller/1, found mt19937",
    );
    let bases = format!("[\"{}\"]", base("5b1d"));
    refused(json(&bases, "[]"), "field bases");
    for found in ["5B1D".repeat(16), "5b1d".repeat(15), "5b1d".repeat(17), "xb1d".repeat(16), String::new()] {
        let expected = format!("field bases[0]: expected 64 hexadecimal digits in lower case, found {found}");
        refused(json(&base("5b1d").to_string(), &found), &expected);
    }
    refused(
        json("\"count\":2", "\"count\":3"),
        "tensor coefficients: expected F32 [3], as many as count says, found F32 [2]",
    );
    refused(json("\"count\":2,", ""), "missing field `count`");
    refused(json("\"base_seed\":9", "\"base_seed\":-9"), "graftwork.seed");
    refused(json("\"base_seed\":9", "\"base_seed\":18446744073709551616"), "graftwork.seed");
    refused(json("-3e-7", "1e99"), "field scale");
    refused(json("-3e-7", "1e999"), "graftwork.seed");
    refused(json("mlp.up_proj", "mlp.up"), "field modules: expected some of self_attn.q_proj, ");
    refused(json("mlp.up_proj", "lm_head"), "field modules");
    refused(json("mlp.up_proj", "self_attn.q_proj"), "field modules: expected layers, each once, found q, q");
    refused(json("\"scale\"", "\"dtype\":0,\"scale\""), "unknown field `dtype`");
    refused(json("\"scale\"", "\"count\":2,\"scale\""), "duplicate field `count`");
    refused(json("}", ""), "graftwork.seed");
    refused(header(&format!("{JSON}{}", " ".repeat(1 << 16)), &[two()], &[]), "bytes of graftwork.seed");

    refused(header(JSON, &[TensorView { name: "c", ..two() }], &[]), "tensor c is not understood");
    refused(header(JSON, &[two(), TensorView { name: "d", ..two() }], &[]), "tensor d is not understood");
    refused(header(JSON, &[], &[]), "tensor coefficients");
    refused(header(JSON, &[TensorView { shape: &[1, 2], ..two() }], &[]), "found F32 [1, 2]");
    refused(header(JSON, &[TensorView { dtype: Dtype::I32, ..two() }], &[]), "found I32 [2]");
    let nan = [0, 0, 128, 63, 0, 0, 192, 127];
    refused(
        header(JSON, &[TensorView { bytes: &nan, ..two() }], &[]),
        "coefficients: expected finite values",
    );
    refused(header(JSON, &[two()], &[("format", "pt")]), "field format = pt is not understood");

    let mut out = Vec::new();
    write_safetensors(&mut out, &[two()], &[(CHECKSUM, "0")]).unwrap();
    refused(out, "expected key graftwork.seed, found none");
    let mut out = Vec::new();
    write_safetensors(&mut out, &[two()], &[(KEY, JSON)]).unwrap();
    refused(out, "expected key graftwork.seed.fnv1a, found none");
    let mut out = Vec::new();
    write_safetensors(&mut out, &[two()], &[(KEY, JSON), (CHECKSUM, "0")]).unwrap();
    refused(out, "field graftwork.seed.fnv1a: expected");

    let path = std::env::temp_dir().join(format!("graftwork-cut-{}.seed", std::process::id()));
    std::fs::write(&path, &written(&documented())[..300]).unwrap();
    let message = SeedPatch::open(&path).unwrap_err().to_string();
    assert!(message.contains(&path.display().to_string()) && message.contains("expected"), "{message}");
    std::fs::remove_file(&path).unwrap();
    let message = SeedPatch::open(&path).unwrap_err().to_string();
    assert!(message.contains(&path.display().to_string()), "{message}");
}

/// No changed byte goes unnoticed but by being white space for white space.
#[test]
fn every_truncation_and_every_changed_byte_is_noticed() {
    let file = written(&documented());
    for len in 0..file.len() {
        assert!(SeedPatch::parse(Bytes::new(file[..len].to_vec())).is_err(), "cut to {len}");
    }
    for at in 0..file.len() {
        for flip in [1, 2, 16, 32, 128, 255] {
            let mut damaged = file.clone();
            damaged[at] ^= flip;
            let is_space = file[at] == b' ';
            let answer = SeedPatch::parse(Bytes::new(damaged));
            assert!(answer.is_err() || is_space, "byte {at} ^ {flip}");
        }
    }
}

/// Headers changed at random under a checksum that fits: an error, or a patch that can be used.
#[test]
fn random_headers_never_panic() {
    let count = std::env::var("GRAFTWORK_MUTATIONS").map_or(10_000, |count| count.parse().expect("a number"));
    let pieces =
        ["1e999", "-1", "18446744073709551615", "null", "[]", "{}", "\"", "\\u0000", "1e-40", ",", "0"];
    let mut refused = 0;
    for seed in 0..count {
        let mut calls = 0;
        let mut below = |n: usize| {
            calls += 1;
            (candidate_seed(seed, calls) % n as u64) as usize
        };
        let mut json = JSON.as_bytes().to_vec();
        for _ in 0..=below(3) {
            let at = below(json.len());
            let end = (at + below(12)).min(json.len());
            match below(4) {
                0 => json[at] = 32 + below(95) as u8,
                1 => _ = json.drain(at..end),
                2 => _ = json.splice(at..end, pieces[below(pieces.len())].bytes()),
                _ => _ = json.splice(at..at, json[at..end].to_vec()),
            }
            if json.is_empty() {
                break;
            }
        }
        let json = String::from_utf8(json).unwrap();
        let mut coefficients = [0, 0, 128, 63, 0, 0, 0, 64];
        coefficients[below(8)] = below(256) as u8;
        let file = header(&json, &[TensorView { bytes: &coefficients, ..two() }], &[]);
        match SeedPatch::parse(Bytes::new(file)) {
            Err(error) => {
                refused += 1;
                assert!(error.to_string().len() < 1000, "{error}");
            }
            Ok(patch) => {
                let shape = Shape { outputs: 3, inputs: 7 };
                let site = Site::Linear { layer: below(1000), module: patch.settings().modules[0] };
                let tensor = patch
                    .update(site, shape)
                    .unwrap()
                    .materialize(Format::F32, 1, &|_, _| true)
                    .unwrap()
                    .unwrap();
                assert!(tensor.decode().unwrap().iter().all(|x| x.is_finite()));
            }
        }
    }
    println!("{refused} of {count} refused");
    assert!(refused > count / 3 && refused < count);
}
