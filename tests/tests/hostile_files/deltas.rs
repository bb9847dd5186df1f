//! Compressed deltas, ours and those of other programs. A digest of its header protects ours, so that most damage ends there; a second
//! parser is given files whose digests are right again.

use graftwork_adapters::check::Shape;
use graftwork_adapters::delta::{self, DIGEST, Delta, Layer, Part};
use graftwork_adapters::file::Source;
use graftwork_adapters::{Adapter, Change, Edit, Module, RowOrder, Site};
use graftwork_kernels::{Bytes, Format};
use graftwork_tests::reference::golden;
use sha2::{Digest, Sha256};

use crate::allocation::peak;
use crate::parsers::{Files, Parser, parsed, read_adapter, safetensors_header, tensor};
use crate::{CONSTANT, FACTOR};

fn linear(layer: usize, module: Module) -> Site {
    Site::Linear { layer, module }
}

fn whole(format: Format, outputs: usize, inputs: usize) -> Part {
    Part::Whole { matrix: tensor(format, outputs, inputs).into(), scale: 0.5 }
}

fn layer(site: Site, outputs: usize, inputs: usize, parts: Vec<Part>) -> Layer {
    Layer { site, shape: Shape { outputs, inputs }, parts }
}

fn file(layers: Vec<Layer>, carried: Vec<Edit>) -> Vec<u8> {
    let delta = Delta {
        method: "test".to_owned(),
        architecture: Some("llama".to_owned()),
        base_model: None,
        bases: vec!["0123456789abcdef".repeat(4).parse().unwrap()],
        row_order: RowOrder::Gguf,
        layers,
        carried,
    };
    let path = std::env::temp_dir().join(format!("graftwork-hostile-{}", std::process::id()));
    let path = path.with_extension(format!("{:?}", std::thread::current().id()));
    delta.write(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    bytes
}

/// Every form once, small.
fn sample() -> Vec<u8> {
    let factors = |format, rank| Part::Factors {
        v: tensor(format, rank, 32).into(),
        s: vec![0.5; rank],
        u: tensor(format, 16, rank).into(),
    };
    let sparse = Part::Sparse {
        starts: [0, 2, 2, 3].into(),
        columns: [1, 30, 0].into(),
        values: tensor(Format::F16, 1, 3),
    };
    let overwrite = Part::Overwrite {
        starts: [0, 1, 1, 2].into(),
        columns: [31, 2].into(),
        values: tensor(Format::F32, 1, 2),
        before: tensor(Format::F32, 1, 2),
    };
    let layers = vec![
        layer(linear(0, Module::Q), 16, 32, vec![factors(Format::I8, 2), factors(Format::W2G32, 32)]),
        layer(linear(0, Module::Up), 3, 32, vec![sparse, overwrite, whole(Format::Sign, 3, 32)]),
        layer(Site::Head, 17, 32, vec![whole(Format::W3G32, 17, 32)]),
    ];
    let norm = Edit { site: Site::Norm, change: Change::Replace { weight: tensor(Format::F32, 1, 32) } };
    file(layers, vec![norm])
}

/// Puts the digests that belong to the bytes where the file has digests.
fn redigest(bytes: &mut [u8]) {
    let Some(&len) = bytes.first_chunk() else { return };
    let end = u64::from_le_bytes(len).saturating_add(8).min(bytes.len() as u64) as usize;
    let hex =
        |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let place = |bytes: &[u8], before: &str| {
        let at = bytes[..end].windows(before.len()).position(|window| window == before.as_bytes())?;
        Some(at + before.len()..at + before.len() + 64).filter(|range| range.end <= end)
    };
    let data = hex(&bytes[end..]);
    if let Some(range) = place(bytes, "data_sha256\\\":\\\"") {
        bytes[range].copy_from_slice(data.as_bytes());
    }
    if let Some(range) = place(bytes, &format!("\"{DIGEST}\":\"")) {
        bytes[range.clone()].fill(b'0');
        let head = hex(&bytes[..end]);
        bytes[range].copy_from_slice(head.as_bytes());
    }
}

fn open(files: Files) -> Result<(), String> {
    let open = |mut files: Vec<(String, Bytes)>| {
        let bytes = files.remove(0).1;
        // With nothing beside it, what is no delta any more is refused for that.
        Adapter::open(bytes.clone()).map(|adapter| (adapter, bytes))
    };
    parsed(files, CONSTANT, open, |(adapter, bytes)| {
        // Codes are looked at by `verify` alone; whatever they are, they decode.
        if delta::verify(bytes).is_ok() {
            read_adapter(&adapter);
        }
        for edit in &adapter.edits {
            match &edit.change {
                Change::Factors { v, u, .. } => {
                    [v, u].iter().for_each(|m| drop(m.to_rows().unwrap().decode()))
                }
                Change::Whole { matrix, .. } => drop(matrix.to_rows().unwrap().decode()),
                change => change.tensors().iter().for_each(|tensor| drop(tensor.decode())),
            }
        }
    })
}

pub fn parsers() -> Vec<Parser> {
    let delta = sample();
    let headers = vec![safetensors_header(&delta)];
    let ours = |name, parse| Parser {
        name,
        files: vec![("delta.safetensors", delta.clone())],
        headers: headers.clone(),
        parse,
    };
    let read = |name: &str| std::fs::read(golden(&format!("deltas/{name}"))).unwrap();
    let in_directory: fn(Files) -> Result<(), String> = |files| {
        let open = |files| Adapter::open(Source::files(files)?);
        parsed(files, CONSTANT, open, |adapter| read_adapter(&adapter))
    };
    let (bitdelta, deltazip) = (read("diff.pt"), read("deltazip_3bit/deltazip-compressed.safetensors"));
    let config = read("deltazip_3bit/delta_config.json").trim_ascii_end().to_vec();
    vec![
        ours("delta", open),
        ours("delta, digests made right", |mut files: Files| {
            redigest(&mut files[0].1);
            open(files)
        }),
        Parser {
            name: "bitdelta",
            headers: vec![bitdelta.len()],
            files: vec![("diff.pt", bitdelta)],
            parse: in_directory,
        },
        Parser {
            name: "deltazip",
            headers: vec![safetensors_header(&deltazip), config.len()],
            files: vec![("deltazip-compressed.safetensors", deltazip), ("delta_config.json", config)],
            parse: in_directory,
        },
    ]
}

/// Digests that were made right by the test are those of the writer.
#[test]
fn digests_are_made_right() {
    let whole = sample();
    let mut bytes = whole.clone();
    let at = |bytes: &[u8], text: &str| {
        bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap()
    };
    for text in ["data_sha256\\\":\\\"", "graftwork.delta.sha256\":\""] {
        let at = at(&bytes, text) + text.len();
        bytes[at..at + 64].fill(b'1');
    }
    assert!(Adapter::open(Bytes::new(bytes.clone())).is_err());
    redigest(&mut bytes);
    assert!(bytes == whole);
}

/// Damage that says where it is, though the header's digest is right: the file and the key.
#[test]
fn the_file_and_the_key_are_named() {
    let folder = std::env::temp_dir().join(format!("graftwork-hostile-named-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("damaged.safetensors");
    let cases: &[(&str, &str, &[&str])] = &[
        ("\\\"version\\\":1", "\\\"version\\\":7", &["version", "expected 1", "found 7"]),
        ("\\\"ranks\\\":[2,34]", "\\\"ranks\\\":[2,32]", &["q_proj.1.s", "[30]", "[32]"]),
        (
            "\\\"ranks\\\":[2,34]",
            "\\\"ranks\\\":[1,33]",
            &["layers.0.self_attn.q_proj", "parts[1].ranks", "starts at 2"],
        ),
        ("\\\"W2G32\\\"", "\\\"W3G32\\\"", &["q_proj.1.v", "expected shape"]),
        (
            "\\\"module\\\":\\\"lm_head\\\"",
            "\\\"module\\\":\\\"lm_hood\\\"",
            &["layers[2].module", "lm_hood"],
        ),
    ];
    for (from, to, expected) in cases {
        let mut bytes = sample();
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        redigest(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let message = Adapter::open(&path).unwrap_err().to_string();
        assert!(message.contains("damaged.safetensors"), "{message}");
        assert!(expected.iter().all(|text| message.contains(text)), "{from} -> {to}: {message}");
    }
    let whole = sample();
    for len in [whole.len() - 1, whole.len() / 2, 40] {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert!(Adapter::open(&path).unwrap_err().to_string().contains("damaged.safetensors"));
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// A delta of many layers of the smallest size.
pub fn many_small_things(check: impl Fn(&str, (usize, usize), usize, usize)) {
    let layers = (0..3000).flat_map(|n| Module::ALL.iter().map(move |&module| linear(n, module)));
    let bytes =
        file(layers.map(|site| layer(site, 1, 1, vec![whole(Format::I8, 1, 1)])).collect(), Vec::new());
    let size = bytes.len();
    let (answer, held) = peak(|| Adapter::open(Bytes::new(bytes)));
    check("delta of many layers", (FACTOR, CONSTANT), size, held);
    assert_eq!(answer.unwrap().edits.len(), 3000 * Module::ALL.len());
}
