//! Several adapters become one as in peft: every method against what `add_weighted_adapter` made (`tests/golden/combine`).

use std::path::PathBuf;

use graftwork_adapters::combine::{Error, MajoritySign, Method, Options, combine};
use graftwork_adapters::file::{Safetensors, TensorFile};
use graftwork_adapters::{Adapter, Change, Edit, Kind, Module, RowOrder, Site, expand, rows};
use graftwork_kernels::{Format, Tensor};

const WEIGHTS: [f32; 3] = [0.7, -0.4, 1.1];
const LORAS: &[&str] = &["first", "second", "third"];

fn golden(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "golden", "combine", name].iter().collect()
}

fn open(name: &str) -> Adapter {
    Adapter::open(golden(name)).unwrap()
}

fn combined(names: &[&str], options: &Options) -> Result<Adapter, Error> {
    let adapters: Vec<Adapter> = names.iter().map(|name| open(name)).collect();
    let weighted: Vec<(&Adapter, f32)> = adapters.iter().zip(WEIGHTS).collect();
    combine(&weighted, options)
}

/// A file of make.py.
struct Golden(Safetensors);

impl Golden {
    fn open(name: &str) -> Self {
        let bytes = std::fs::read(golden(&format!("{name}.safetensors"))).unwrap();
        Self(Safetensors::parse(bytes.into()).unwrap())
    }

    fn get(&self, name: &str) -> Tensor {
        self.0.require(name).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn len(&self) -> usize {
        self.0.tensors().len()
    }
}

fn close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!((found.rows(), found.cols()), (expected.rows(), expected.cols()), "{what}");
    let pairs = found.decode().unwrap().into_iter().zip(expected.decode().unwrap());
    let most = pairs.map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max);
    assert!(most <= tolerance, "{what}: {most} apart, at most {tolerance}");
}

fn norm(tensor: &Tensor) -> f32 {
    tensor.decode().unwrap().iter().map(|x| x * x).sum::<f32>().sqrt()
}

fn greatest(tensor: &Tensor) -> f32 {
    tensor.decode().unwrap().iter().fold(0.0, |most, x| most.max(x.abs()))
}

/// The first `rows` rows; the others must be zero.
fn rows_of(tensor: &Tensor, rows: usize) -> Tensor {
    let values = tensor.decode().unwrap();
    let (first, rest) = values.split_at(rows * tensor.cols());
    assert!(rest.iter().all(|&x| x == 0.0));
    Tensor::encode(Format::F32, rows, tensor.cols(), first).unwrap()
}

fn check(file: &str, names: &[&str], options: &Options) {
    let golden = Golden::open(file);
    let adapter = combined(names, options).unwrap_or_else(|error| panic!("{file}: {error}"));
    assert_eq!(golden.len(), 2 * adapter.edits.len(), "{file}");
    let decomposes = options.method.decomposes() && names.len() > 1;
    for edit in &adapter.edits {
        let Change::LowRank { a, b, scale, bias: None, magnitude: None } = &edit.change else {
            panic!("{edit:?}")
        };
        let path = edit.site.hf_path().unwrap();
        let what = format!("{file}, {path}");
        let (theirs_a, theirs_b) = (golden.get(&format!("{path}.A")), golden.get(&format!("{path}.B")));
        assert_eq!(*scale, 1.0);
        if decomposes {
            // Singular vectors have no signs, so the products are compared. torch decomposes in singles: each entry of U and V is off by
            // some n EPSILON, n the sizes, 48 at most; that of entries of the product, relative to its norm, is less than twice that.
            let product = expand::product(&theirs_b, &theirs_a).unwrap();
            let tolerance = 100.0 * f32::EPSILON * norm(&product);
            close(&what, &expand::product(b, a).unwrap(), &product, tolerance);
            assert!(b.cols() <= theirs_b.cols(), "{what}: rank {}", b.cols());
        } else {
            // Sums of three products, each of values with a rounded weight, perhaps divided: eight roundings of the greatest.
            let theirs_a = rows_of(&theirs_a, a.rows());
            close(&what, a, &theirs_a, 8.0 * f32::EPSILON * greatest(&theirs_a));
            let values = theirs_b.decode().unwrap();
            let cut: Vec<f32> =
                values.chunks(theirs_b.cols()).flat_map(|row| &row[..b.cols()]).copied().collect();
            let theirs_b = Tensor::encode(Format::F32, b.rows(), b.cols(), &cut).unwrap();
            close(&what, b, &theirs_b, 8.0 * f32::EPSILON * greatest(&theirs_b));
        }
    }
}

/// What make.py made by a method, with the options.
fn cases() -> Vec<(&'static str, Options)> {
    let mut cases: Vec<(&str, Options)> = Method::ALL
        .iter()
        .map(|&(method, name)| {
            let density = method.prunes().then_some(0.3);
            let rank = (method == Method::DareTiesSvd).then_some(6);
            (name, Options { density, rank, seed: 7, ..Options::new(method) })
        })
        .collect();
    cases.push(("svd_3", Options { rank: Some(3), ..Options::new(Method::Svd) }));
    for (file, method) in [("ties_frequency", Method::Ties), ("dare_ties_frequency", Method::DareTies)] {
        let sign = MajoritySign::Frequency;
        cases.push((file, Options { density: Some(0.3), sign, seed: 7, ..Options::new(method) }));
    }
    cases
}

#[test]
fn every_method_gives_what_peft_gives() {
    for (file, options) in cases() {
        check(file, LORAS, &options);
    }
}

#[test]
fn unequal_ranks_are_combined_where_peft_does() {
    for (file, options) in cases() {
        if options.method == Method::Cat || options.method.decomposes() {
            check(&format!("unequal_{file}"), &["first", "unequal"], &options);
        } else {
            let error = combined(&["first", "unequal"], &options).unwrap_err().to_string();
            assert_eq!(error, "adapter 2 at embedding, rank: expected 4 as of the first there, found 5");
        }
    }
}

#[test]
fn one_adapter_alone_is_linear() {
    check("one", &["third"], &Options::new(Method::Svd));
}

#[test]
fn factors_are_summed() {
    let golden = Golden::open("ia3");
    let adapter = combined(&["ia3_first", "ia3_second"], &Options::new(Method::Linear)).unwrap();
    assert_eq!((adapter.kind, adapter.edits.len()), (Kind::Ia3, golden.len()));
    for edit in &adapter.edits {
        let (Change::OutputScale { values } | Change::InputScale { values }) = &edit.change else {
            panic!("{edit:?}")
        };
        let path = edit.site.hf_path().unwrap();
        let expected = golden.get(&path).decode().unwrap();
        let expected = Tensor::encode(Format::F32, 1, expected.len(), &expected).unwrap();
        // Two products and a sum.
        close(&path, values, &expected, 3.0 * f32::EPSILON * greatest(&expected));
    }
}

fn of_kind(kind: Kind, edits: Vec<Edit>) -> Adapter {
    Adapter { kind, edits, ..open("first") }
}

fn tensor(seed: usize, rows: usize, cols: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 7 + seed * 13 + 1) as f32).sin()).collect();
    Tensor::encode(Format::F32, rows, cols, &values).unwrap()
}

#[test]
fn prompts_and_prefixes_are_summed() {
    let prompt = |seed| Change::VirtualTokens { rows: tensor(seed, 5, 8) };
    let prefix = |seed| Change::Prefix { rows: tensor(seed, 5, 8), layers: 2 };
    for kind in [Kind::PromptTuning, Kind::PTuning, Kind::PrefixTuning] {
        let is_prefix = kind == Kind::PrefixTuning;
        let site = if is_prefix { Site::Prefix } else { Site::Prompt };
        let change = |seed| if is_prefix { prefix(seed) } else { prompt(seed) };
        let adapters = [1, 2, 3].map(|seed| of_kind(kind, vec![Edit { site, change: change(seed) }]));
        let weighted: Vec<(&Adapter, f32)> = adapters.iter().zip(WEIGHTS).collect();
        let sum = combine(&weighted, &Options::new(Method::Linear)).unwrap();
        let values = sum.edits[0].change.tensors()[0].decode().unwrap();
        let tasks = [1, 2, 3].map(|seed| tensor(seed, 5, 8).decode().unwrap());
        for (i, value) in values.iter().enumerate() {
            let terms =
                tasks.iter().zip(WEIGHTS).map(|(task, weight)| f64::from(task[i]) * f64::from(weight));
            // Three products below 1.1, three sums.
            assert!(
                (f64::from(*value) - terms.sum::<f64>()).abs() <= 7.0 * f64::from(f32::EPSILON),
                "{kind:?}"
            );
        }
        let error = combine(&weighted, &Options::new(Method::Svd)).unwrap_err().to_string();
        assert_eq!(error, format!("expected method linear for adapters of kind {}, found svd", kind.name()));
        let other =
            of_kind(kind, vec![Edit { site, change: Change::VirtualTokens { rows: tensor(1, 4, 8) } }]);
        let error = combine(&[(&adapters[0], 1.0), (&other, 1.0)], &Options::new(Method::Linear));
        assert!(matches!(error, Err(Error::Shape { adapter: 2, .. })), "{kind:?}: {error:?}");
    }
}

/// A LoRA `[6, 8]` at a site, of rank 2 and scale 1.5.
fn lora(site: Site, seed: usize) -> Adapter {
    let (a, b) = (tensor(seed, 2, 8), tensor(seed + 1, 6, 2));
    of_kind(Kind::Lora, vec![Edit { site, change: low_rank(a, b) }])
}

fn low_rank(a: Tensor, b: Tensor) -> Change {
    Change::LowRank { a, b, scale: 1.5, bias: None, magnitude: None }
}

const Q: Site = Site::Linear { layer: 0, module: Module::Q };
const V: Site = Site::Linear { layer: 0, module: Module::V };

#[test]
fn what_peft_refuses_or_loses_is_refused_by_name() {
    let plain = lora(Q, 1);
    let with = |change| of_kind(Kind::Lora, vec![Edit { site: Q, change }]);
    let (a, b) = (tensor(1, 2, 8), tensor(2, 6, 2));
    let vector = || tensor(3, 1, 6);
    let dora =
        Change::LowRank { a: a.clone(), b: b.clone(), scale: 1.0, bias: None, magnitude: Some(vector()) };
    let bias =
        Change::LowRank { a: a.clone(), b: b.clone(), scale: 1.0, bias: Some(vector()), magnitude: None };
    let twice = Adapter { edits: [&plain.edits[..], &plain.edits[..]].concat(), ..plain.clone() };
    let nan = Tensor::encode(Format::F32, 6, 2, &[f32::NAN; 12]).unwrap();
    let cases = [
        (with(dora), "DoRA's magnitude at layer 0 q"),
        (with(bias), "the bias of B at layer 0 q"),
        (with(Change::Bias { values: vector() }), "the trained bias of layer 0 q"),
        (with(Change::Replace { weight: b.clone() }), "the replaced weight of layer 0 q"),
        (with(Change::Rows { tokens: vec![1].into(), rows: tensor(1, 1, 8) }), "the trained tokens of"),
        (with(low_rank(tensor(1, 3, 8), tensor(1, 6, 3))), "rank: expected 2 as of the first there, found 3"),
        (with(low_rank(tensor(1, 2, 9), b.clone())), "inputs of A: expected 8"),
        (with(low_rank(a.clone(), tensor(1, 7, 2))), "outputs of B: expected 6"),
        (with(low_rank(a.clone(), tensor(1, 6, 3))), "rank of B: expected 2"),
        (with(low_rank(a, nan)), "found NaN in row 0"),
        (twice, "a second change of layer 0 q"),
        (Adapter { invocation: vec![1], ..plain.clone() }, "an aLoRA"),
        (
            Adapter { row_order: RowOrder::Gguf, ..plain.clone() },
            "row order of adapter 2: expected HuggingFace",
        ),
        (
            Adapter { kind: Kind::Ia3, ..plain.clone() },
            "kind of adapter 2: expected lora as of the first, found ia3",
        ),
    ];
    for (other, expected) in cases {
        let error = combine(&[(&plain, 1.0), (&other, 1.0)], &Options::new(Method::Linear)).unwrap_err();
        assert!(error.to_string().contains(expected), "expected {expected} in: {error}");
        assert!(error.to_string().contains("adapter 2"), "{error}");
    }
    for kind in [Kind::AdaLora, Kind::LoHa, Kind::Shira, Kind::Delta] {
        let other = Adapter { kind, ..plain.clone() };
        let error = combine(&[(&other, 1.0)], &Options::new(Method::Linear)).unwrap_err().to_string();
        assert!(error.contains(&format!("the kind {} cannot be combined", kind.name())), "{error}");
    }
    assert!(matches!(combine(&[], &Options::new(Method::Linear)), Err(Error::None)));
    let empty = of_kind(Kind::Lora, Vec::new());
    assert!(combine(&[(&empty, 1.0)], &Options::new(Method::Svd)).is_err());
}

#[test]
fn options_and_weights_that_mean_nothing_are_refused() {
    let plain = lora(Q, 1);
    for &(method, name) in Method::ALL {
        assert_eq!((name.parse(), method.to_string()), (Ok(method), name.to_owned()));
        let kept = method.prunes().then_some(0.5);
        let options = |density, rank| Options { density, rank, ..Options::new(method) };
        let run = |options: &Options| combine(&[(&plain, 1.0), (&plain, -0.5)], options);
        run(&options(kept, None)).unwrap();
        let wrong = [0.0, -0.1, 1.1, f64::NAN, f64::INFINITY];
        let mut refused: Vec<Options> = wrong.map(|density| options(Some(density), None)).into();
        refused.push(options(kept, Some(0)));
        refused.push(options(kept, Some(usize::MAX)));
        refused.push(options(if method.prunes() { None } else { Some(0.5) }, None));
        if !method.decomposes() {
            refused.push(options(kept, Some(2)));
        }
        for options in refused {
            let error = run(&options);
            assert!(matches!(error, Err(Error::Option { .. })), "{options:?}: {error:?}");
        }
        for weight in [f32::NAN, f32::INFINITY] {
            let error = combine(&[(&plain, 1.0), (&plain, weight)], &options(kept, None));
            assert!(matches!(error, Err(Error::Weight { adapter: 2, .. })), "{error:?}");
        }
        // All weights 0 make zeros, of the shapes that there are; the greatest make values that are none.
        let zeros = combine(&[(&plain, 0.0), (&plain, 0.0)], &options(kept, None)).unwrap();
        let Change::LowRank { a, b, .. } = &zeros.edits[0].change else { panic!() };
        assert!(expand::product(b, a).unwrap().decode().unwrap().iter().all(|&x| x == 0.0), "{method}");
    }
    let most = combine(&[(&plain, f32::MAX), (&plain, f32::MAX)], &Options::new(Method::Cat));
    assert!(matches!(most, Err(Error::Adapter(_))), "{most:?}");
    for sign in MajoritySign::ALL {
        assert_eq!(sign.1.parse(), Ok(sign.0));
    }
    assert!("tie".parse::<Method>().unwrap_err().starts_with("expected one of linear, cat, svd"));
}

#[test]
fn sites_of_some_adapters_only_are_kept() {
    let sum = combine(&[(&lora(Q, 1), 2.0), (&lora(V, 4), 0.5)], &Options::new(Method::Svd)).unwrap();
    let sites: Vec<Site> = sum.edits.iter().map(|edit| edit.site).collect();
    assert_eq!(sites, [Q, V]);
}

#[test]
fn halves_stay_halves() {
    let site = lora(Q, 1);
    let Change::LowRank { a, b, .. } = &site.edits[0].change else { panic!() };
    let of = |format, m: &Tensor| Tensor::encode(format, m.rows(), m.cols(), &m.decode().unwrap()).unwrap();
    for (first, second, expected) in [
        (Format::F16, Format::F16, Format::F16),
        (Format::BF16, Format::BF16, Format::BF16),
        (Format::F16, Format::BF16, Format::F32),
        (Format::F16, Format::F32, Format::F32),
    ] {
        let adapters = [first, second].map(|format| {
            of_kind(Kind::Lora, vec![Edit { site: Q, change: low_rank(of(format, a), of(format, b)) }])
        });
        for method in [Method::Linear, Method::Cat, Method::Svd] {
            let sum = combine(&[(&adapters[0], 0.5), (&adapters[1], 0.5)], &Options::new(method)).unwrap();
            assert!(sum.edits[0].change.tensors().iter().all(|tensor| tensor.format() == expected));
        }
    }
}

#[test]
fn an_adapter_in_the_order_of_gguf_is_put_in_the_other() {
    // The same LoRA as PEFT's directory and as a GGUF file, heads of 64.
    let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/adapters");
    let ours = Adapter::open(examples.join("tools-lora")).unwrap();
    let theirs = Adapter::open(examples.join("tools-lora.gguf")).unwrap();
    let linear = Options::new(Method::Linear);
    let error = combine(&[(&ours, 0.5), (&theirs, 0.5)], &linear).unwrap_err().to_string();
    assert_eq!(error, "row order of adapter 2: expected HuggingFace as of the first, found Gguf");
    let back = rows::in_order(&theirs, RowOrder::HuggingFace, 64).unwrap();
    assert_eq!(back.row_order, RowOrder::HuggingFace);
    for (ours, back) in ours.edits.iter().zip(&back.edits) {
        for (ours, back) in ours.change.tensors().iter().zip(back.change.tensors()) {
            assert_eq!(**ours.bytes(), **back.bytes());
        }
    }
    assert!(rows::in_order(&theirs, RowOrder::HuggingFace, 63).is_err());
    combine(&[(&ours, 0.5), (&back, 0.5)], &linear).unwrap();
}
