//! Several adapters become one as in peft: every method against what `add_weighted_adapter` made (`tests/golden/combine`).

use std::path::PathBuf;

use graftwork_adapters::combine::{Error, MajoritySign, Method, Options, combine};
use graftwork_adapters::file::{Safetensors, TensorFile};
use graftwork_adapters::{Adapter, Change, Edit, Kind, RowOrder, Site, expand, rows};
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
