//! Hostile files: truncated everywhere, mutated at random, built to amplify. Every parser answers with an error or
//! with a value that can be used: it never panics and never allocates what the file does not justify.
//!
//! `GRAFTWORK_MUTATIONS=1000000 cargo test --release --test hostile_files` runs more than the usual 10,000 per parser.

mod allocation;
mod deltas;
mod kinds;
mod mutation;
mod parsers;
mod pickles;

use std::panic::{AssertUnwindSafe, catch_unwind};

use graftwork_adapters::Adapter;
use graftwork_adapters::file::gguf::{Array, Value};
use graftwork_adapters::file::{Gguf, GgufWriter, Safetensors, Source};
use graftwork_kernels::{Bytes, Format};

use allocation::peak;
use mutation::{Random, mutate};
use parsers::{owned, parsers, peft, tensor, write_gguf};

/// Parsing may take this many times the bytes of the files: an entry of a header is a few words longer in memory.
const FACTOR: usize = 12;
/// And this much whatever their size: messages, first allocations of growing lists.
const CONSTANT: usize = 16 << 10;
/// Compiling one pattern of a PEFT configuration.
const PATTERN: usize = 2 << 20;

#[test]
fn the_files_to_be_damaged_are_valid() {
    for parser in parsers() {
        (parser.parse)(parser.files).unwrap_or_else(|error| panic!("{}: {error}", parser.name));
    }
}

#[test]
fn every_truncation_is_an_error() {
    for parser in parsers() {
        for (i, (name, file)) in parser.files.iter().enumerate() {
            // Every byte of small files; of golden ones every byte of the structure, and some of the data.
            let data = |len: usize| len - parser.headers[i];
            let is_tried = |&len: &usize| file.len() < 4096 || len < parser.headers[i] || data(len) % 997 < 2;
            for len in (0..file.len()).filter(is_tried) {
                let mut files = parser.files.clone();
                files[i].1.truncate(len);
                let answer = (parser.parse)(files);
                // The writer pads after the last tensor of a GGUF file; without this padding it is still whole.
                let padding =
                    name.ends_with(".gguf") && len + 32 > file.len() && file[len..].iter().all(|&b| b == 0);
                assert!(
                    answer.is_err() || padding,
                    "{}: {name} cut to {len} bytes of {}",
                    parser.name,
                    file.len()
                );
            }
        }
    }
}

#[test]
fn mutations_never_panic() {
    let count = std::env::var("GRAFTWORK_MUTATIONS").map_or(10_000, |count| count.parse().expect("a number"));
    for (p, parser) in parsers().into_iter().enumerate() {
        // Larger ones are damaged less often.
        let size: usize = parser.files.iter().map(|(_, file)| file.len()).sum();
        let count = if size < 1 << 14 { count } else { count / 5 };
        let mut refused = 0;
        for seed in 0..count {
            let mut random = Random((p as u64) << 56 | seed);
            let mut files = parser.files.clone();
            for _ in 0..=random.below(2) {
                let i = random.below(files.len());
                mutate(&mut random, &mut files[i].1, parser.headers[i]);
            }
            let answer = catch_unwind(AssertUnwindSafe(|| (parser.parse)(files)));
            refused += u64::from(answer.unwrap_or_else(|_| panic!("{}: seed {seed}", parser.name)).is_err());
        }
        println!("{}: {refused} of {count} mutations refused", parser.name);
        assert!(refused > count / 3, "{}: only {refused} of {count} mutations are noticed", parser.name);
    }
}

/// Files of many of the smallest things that they can hold: where memory is largest in proportion to bytes.
#[test]
fn many_small_things_take_a_bounded_amount_of_memory() {
    let count = 50_000;
    let check = |what: &str, (factor, constant), size: usize, held: usize| {
        println!("{what}: {size} bytes of file, {held} held, factor {:.1}", held as f64 / size as f64);
        assert!(held <= factor * size + constant, "{what}: {held} bytes held for {size}");
    };
    let list = |array: Array| write_gguf(&[("list", Value::Array(array))], &[]);
    let row = tensor(Format::F32, 1, 8);
    let mut writer = GgufWriter::new();
    (0..count).for_each(|i| _ = writer.tensor(format!("{i}"), row.clone()));
    let mut tensors = Vec::new();
    writer.write(&mut tensors).unwrap();
    let mut writer = GgufWriter::new();
    (0..count).for_each(|i| _ = writer.key(format!("{i}"), Value::U8(1)));
    let mut keys = Vec::new();
    writer.write(&mut keys).unwrap();
    for (what, file) in [
        ("gguf tensors", tensors),
        ("gguf keys", keys),
        ("gguf empty texts", list(Array::Str(vec![String::new(); count]))),
        ("gguf empty arrays", list(Array::Array(vec![Array::U8(vec![]); count]))),
        ("gguf bytes", list(Array::U8(vec![1; count]))),
    ] {
        let size = file.len();
        let (answer, held) = peak(|| Gguf::parse(Bytes::new(file)));
        check(what, (FACTOR, CONSTANT), size, held);
        answer.unwrap();
    }

    let safetensors = |header: String| {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.bytes());
        file
    };
    let entries = |entry: &dyn Fn(usize) -> String| (0..count).map(entry).collect::<Vec<_>>().join(",");
    let tensor = |i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let dims = format!(
        r#"{{"t":{{"dtype":"U8","shape":[{}],"data_offsets":[0,0]}}}}"#,
        entries(&|_| "0".to_owned())
    );
    for (what, header) in [
        ("safetensors tensors", format!("{{{}}}", entries(&tensor))),
        (
            "safetensors metadata",
            format!(r#"{{"__metadata__":{{{}}}}}"#, entries(&|i| format!(r#""{i}":"""#))),
        ),
        ("safetensors dimensions", dims),
    ] {
        let file = safetensors(header);
        let size = file.len();
        let (answer, held) = peak(|| Safetensors::parse(Bytes::new(file)));
        check(what, (FACTOR, CONSTANT), size, held);
        answer.unwrap();
    }

    pickles::many_small_things(count, check);
    deltas::many_small_things(check);

    // A JSON value takes many times its text, which is why configurations may have one MiB at most.
    let config = format!("{{\"x\":[{}]}}", entries(&|_| "0".to_owned()));
    let size = config.len();
    let files = vec![("adapter_config.json", config.into_bytes()), ("adapter_model.safetensors", vec![])];
    let source = Source::files(owned(files)).unwrap();
    let (answer, held) = peak(|| Adapter::open(source));
    check("adapter_config.json", (128, CONSTANT), size, held);
    assert!(answer.is_err());
    let patterns = entries(&|i| format!(r#""{i}":1"#));
    let config = format!(r#"{{"peft_type":"LORA","r":2,"alpha_pattern":{{{patterns}}}}}"#);
    let mut files = peft().files;
    files[0].1 = config.into_bytes();
    let size = files.iter().map(|(_, file)| file.len()).sum();
    let (_, held) = peak(|| Adapter::open(Source::files(owned(files)).unwrap()));
    check("patterns", (32, PATTERN), size, held);
}
