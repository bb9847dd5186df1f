//! Files of `torch.save`: those that torch wrote, every kind of adapter, and those that somebody made to do harm.

use graftwork_adapters::file::{Dtype, Error, Safetensors, Source, TensorFile, TensorInfo, Torch};
use graftwork_adapters::{Adapter, file::torch::ALONE};
use graftwork_kernels::Bytes;
use graftwork_tests::reference::{ADAPTERS, golden};
use graftwork_tests::torch::{Pickle, archive, write};

use crate::allocation::peak;
use crate::kinds::weights_of;
use crate::mutation::Random;
use crate::parsers::{Parser, owned, parsed, read_all};
use crate::{CONSTANT, FACTOR};

/// A file with tensors of several types, shared storages and a transposed matrix.
pub fn parser() -> Parser {
    let floats: Vec<u8> = Random(3).values(24).iter().flat_map(|x| x.to_le_bytes()).collect();
    let storage = ("FloatStorage", "0", 24);
    let pickle = (Pickle::new().raw(b"}q\0("))
        .text("a")
        .tensor(storage, 0, &[2, 3], &[3, 1])
        .text("b")
        .tensor(storage, 4, &[5], &[1])
        .text("transposed")
        .tensor(storage, 8, &[4, 3], &[1, 4])
        .text("indices")
        .tensor(("IntStorage", "1", 3), 0, &[3], &[1])
        .raw(b"u");
    let file = pickle.file(&[("0", &floats), ("1", &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0])]);
    Parser {
        name: "torch",
        headers: vec![file.len()],
        files: vec![("adapter_model.bin", file)],
        parse: |files| {
            let parse = |mut files: Vec<(String, Bytes)>| Torch::parse(files.remove(0).1);
            parsed(files, CONSTANT, parse, |file| read_all(&file))
        },
    }
}

fn same(a: &TensorInfo, b: &TensorInfo) -> bool {
    (a.dtype, &a.shape) == (b.dtype, &b.shape) && *a.bytes == *b.bytes
}

#[test]
fn files_that_torch_wrote_hold_what_safetensors_hold() {
    for name in ["lora", "shira"] {
        let torch = Torch::open(golden(&format!("torch/{name}.bin"))).unwrap();
        let expected =
            Safetensors::open(golden(&format!("adapters/{name}/adapter_model.safetensors"))).unwrap();
        assert_eq!(torch.tensors().len(), expected.tensors().len());
        for (name, expected) in expected.tensors().iter() {
            assert!(same(torch.tensors().get(name).unwrap(), expected), "{name}");
        }
    }
    // `torch.arange(6).view(2, 3).T` in halves.
    let alone = Torch::open(golden("torch/alone.bin")).unwrap();
    let tensor = alone.require(ALONE).unwrap();
    assert_eq!((tensor.rows(), tensor.cols()), (3, 2));
    assert_eq!(tensor.decode().unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    let error = Torch::open(golden("torch/legacy.bin")).unwrap_err().to_string();
    assert!(error.ends_with(
        "expected a zip archive, as torch 1.6 and later write, found the format of older versions"
    ));
}

/// Every kind of adapter from a pickle is what it is from safetensors.
#[test]
fn every_kind_is_read() {
    for name in ADAPTERS {
        let folder = golden(&format!("adapters/{name}"));
        let (name_of_weights, pickle) = match weights_of(name) {
            "adapter.safetensors" => ("adapter.safetensors", "pytorch_adapter.bin"),
            name => (name, "adapter_model.bin"),
        };
        let weights = Safetensors::open(folder.join(name_of_weights)).unwrap();
        let file =
            write(weights.tensors().iter().map(|(name, t)| (name, t.dtype, &t.shape[..], &t.bytes[..])));
        let config = std::fs::read(folder.join("adapter_config.json")).unwrap();
        let files = vec![("adapter_config.json", config), (pickle, file)];
        let found =
            Adapter::open(Source::files(owned(files)).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected = Adapter::open(&folder).unwrap();
        assert_eq!(found.edits.len(), expected.edits.len());
        for (found, expected) in found.edits.iter().zip(&expected.edits) {
            assert_eq!(found.site, expected.site);
            let pairs = found.change.tensors().into_iter().zip(expected.change.tensors());
            for (found, expected) in pairs {
                assert_eq!((found.rows(), found.cols()), (expected.rows(), expected.cols()));
                assert!(**found.bytes() == **expected.bytes(), "{name}: {}", expected.rows());
            }
        }
    }
}

fn error(file: Vec<u8>) -> Error {
    match Torch::parse(Bytes::new(file)) {
        Ok(_) => panic!("it was read"),
        Err(error) => error,
    }
}

/// A pickle that runs something is refused by the name of that, before any of it.
#[test]
fn code_is_refused_by_name() {
    let evil = |pickle: Pickle| error(pickle.file(&[]));
    let command = |pickle: Pickle| pickle.text("echo pwned").raw(b"\x85R");
    for (pickle, what) in [
        (command(Pickle::new().raw(b"cos\nsystem\n")), "os.system"),
        (command(Pickle::new().raw(b"cposix\nsystem\n")), "posix.system"),
        (command(Pickle::new().raw(b"c__builtin__\neval\n")), "__builtin__.eval"),
        (command(Pickle::new().text("os").text("system").raw(b"\x93")), "os.system"),
        // Names of ours from elsewhere, and of others from where ours are.
        (Pickle::new().raw(b"cos\nOrderedDict\n)R"), "os.OrderedDict"),
        (Pickle::new().raw(b"ctorch._utils\n_rebuild_tensor\n)R"), "torch._utils._rebuild_tensor"),
        (Pickle::new().raw(b"ctorch\nload\n)R"), "torch.load"),
        (command(Pickle::new().raw(b"(ios\nsystem\n")), "instruction INST"),
        (Pickle::new().raw(b"(cos\nsystem\no"), "os.system"),
        (Pickle::new().raw(b"}(o"), "instruction OBJ"),
        (Pickle::new().raw(b"ccollections\nOrderedDict\n)\x81"), "instruction NEWOBJ"),
        (Pickle::new().raw(b"ccollections\nOrderedDict\n)}\x92"), "instruction NEWOBJ_EX"),
        (Pickle::new().raw(b"\x82\x01"), "instruction EXT1"),
        (Pickle::new().raw(b"Pos.system\n"), "instruction PERSID"),
        // State for what is no dictionary.
        (Pickle::new().raw(b"ccollections\nOrderedDict\n}b"), "instruction BUILD"),
        (Pickle::new().raw(b"}Nb"), "instruction BUILD"),
        // Functions of ours with arguments that they do not take.
        (Pickle::new().raw(b"ccollections\nOrderedDict\nN\x85R"), "OrderedDict with 1 arguments"),
        (Pickle::new().raw(b"ctorch\nFloatStorage\n)R"), "FloatStorage with 0 arguments"),
        (Pickle::new().raw(b"ctorch._utils\n_rebuild_parameter\n(}\x88}tR"), "_rebuild_parameter with 3"),
        (Pickle::new().text("os.system").raw(b")R"), "a call of a text"),
    ] {
        let error = evil(pickle);
        assert!(matches!(error, Error::Code { .. }), "{what}: {error}");
        assert!(error.to_string().contains(what), "{what}: {error}");
    }
}

/// What is no dictionary of tensors, in any way, is refused with what it is.
#[test]
fn other_pickles_are_refused() {
    let storage = ("FloatStorage", "0", 6);
    let data: &[(&str, &[u8])] = &[("0", &[0; 24])];
    let named = |pickle: fn(Pickle) -> Pickle| pickle(Pickle::new().raw(b"}").text("w")).raw(b"s").file(data);
    let tensor = |offset, shape: &[i64], strides: &[i64]| {
        Pickle::new().raw(b"}").text("w").tensor(storage, offset, shape, strides).raw(b"s").file(data)
    };
    let raw = |bytes: &[u8]| Pickle::new().raw(bytes).file(&[]);
    let huge = i64::MAX;
    for (file, expected) in [
        (tensor(1, &[2, 3], &[3, 1]), "tensor w: expected its elements within the 6 of data/0"),
        (tensor(-1, &[2], &[1]), "tensor w: expected an offset of 0 or more, found -1"),
        (tensor(0, &[2, 3], &[-3, 1]), "tensor w: expected strides of 0 or more, found -3"),
        (tensor(0, &[-2, -3], &[3, 1]), "tensor w: expected a shape of 0 or more, found -2"),
        (tensor(0, &[2, 3], &[0, 1]), "found shape [2, 3] with strides [0, 1]"),
        (tensor(0, &[2, 2], &[3, 1]), "expected a matrix in order or transposed"),
        (tensor(0, &[1, 2, 3], &[1, 1, 2]), "expected elements in order"),
        (tensor(0, &[2, 3], &[1]), "expected a stride for each of 2 dimensions, found 1 strides"),
        (tensor(huge, &[2], &[1]), "from element 9223372036854775807 on"),
        (tensor(0, &[huge, huge], &[1, 1]), "expected its elements within the 6"),
        (tensor(0, &[1 << 32, 1 << 32], &[1, 1]), "expected its elements within the 6"),
        (tensor(0, &[0, huge, huge], &[1, 1, 1]), "a vector or a matrix"),
        (tensor(0, &[1; 9], &[1; 9]), "expected at most 8 dimensions, found 9"),
        (
            named(|p| p.tensor(("FloatStorage", "0", 7), 0, &[2], &[1])),
            "7 elements of F32 in data/0, found 24 bytes",
        ),
        (
            named(|p| p.tensor(("FloatStorage", "0", -1), 0, &[2], &[1])),
            "number of elements of 0 or more, found -1",
        ),
        (named(|p| p.tensor(("FloatStorage", "0", i64::MAX), 0, &[2], &[1])), "found 24 bytes"),
        (
            named(|p| p.tensor(("HalfStorage", "0", 6), 0, &[2], &[1])),
            "6 elements of F16 in data/0, found 24 bytes",
        ),
        (named(|p| p.tensor(("FloatStorage", "../0", 6), 0, &[2], &[1])), "zip entry data/../0, found none"),
        (named(|p| p.tensor(("QUInt8Storage", "0", 24), 0, &[2], &[1])), "torch.QUInt8Storage"),
        (named(|p| p.int(5)), "tensor w: expected a tensor, found a number"),
        (named(|p| p.raw(b"}")), "tensor w: expected a tensor, found a dictionary"),
        (named(|p| p.raw(b"]")), "expected the instructions of a dictionary of tensors, found 0x5d"),
        (raw(b"}K\x01Ns"), "expected names of tensors, found a number"),
        (raw(b"N"), "expected a dictionary of tensors, found None"),
        (raw(b"}N"), "values or bytes that are left"),
        (raw(b"}.}"), "values or bytes that are left"),
        (raw(b"("), "expected values on the stack, found too few"),
        (raw(b"}NsN"), "expected values on the stack, found too few"),
        (raw(b"}N(s"), "expected values on the stack, found too few"),
        (raw(b"N(\x86"), "expected values on the stack, found too few"),
        (raw(b"N(Nu"), "expected a dictionary, found None"),
        (raw(b"}(Nu"), "a key without a value"),
        (raw(b"}q\x01"), "expected the next number to remember by, found 1 after 0"),
        (raw(b"}r\xff\xff\xff\xff"), "found 4294967295 after 0"),
        (raw(b"h\0"), "expected a number of something remembered, found 0"),
        (raw(b"NQ"), "('storage', type, key, device, number of elements), found None"),
        (raw(b"X\xff\xff\xff\xffabc"), "the pickle at byte 7: expected 4294967295 bytes, found 4"),
        (raw(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc"), "expected 18446744073709551615 bytes"),
        (raw(b"\x8a\x09123456789"), "expected a number of at most 8 bytes, found 9 bytes"),
        (raw(b"X\x01\0\0\0\xff"), "expected UTF-8 text"),
        (raw(b"ccollections"), "expected a line that ends, found none"),
    ] {
        let found = match Torch::parse(Bytes::new(file)) {
            Err(error) => error.to_string(),
            // Three dimensions are a tensor, but no matrix.
            Ok(file) => file.require("w").unwrap_err().to_string(),
        };
        assert!(found.contains(expected), "expected {expected}, found {found}");
    }
    let twice = Pickle::new().raw(b"}(").text("w").tensor(storage, 0, &[2], &[1]).text("w");
    let twice = twice.tensor(storage, 0, &[2], &[1]).raw(b"u").file(data);
    assert_eq!(error(twice).to_string(), "expected unique names, found two of tensor w");
    // A storage may be read transposed once; a hundred times is more than the file.
    let mut pickle = Pickle::new().raw(b"}(");
    for i in 0..100 {
        pickle = pickle.text(&i.to_string()).tensor(("FloatStorage", "0", 10_000), 0, &[100, 100], &[1, 100]);
    }
    let found = error(pickle.raw(b"u").file(&[("0", &[0; 40_000])])).to_string();
    assert!(found.starts_with("bytes of transposed tensors: expected at most "), "{found}");
}

/// A memo that doubles what it remembers, and everything that can be had many times for a byte or two.
#[test]
fn bombs_are_bounded() {
    let limit = 1 << 18;
    let doubling = (0..64)
        .fold(Pickle::new().raw(b")q\0"), |pickle, i| pickle.raw(&[b'h', i, b'h', i, 0x86, b'q', i + 1]));
    let many = |piece: &[u8]| Pickle::new().raw(&piece.repeat(limit + 2));
    for (what, pickle) in [
        ("doubling", doubling),
        ("stack", many(b"N")),
        ("marks", many(b"(")),
        ("memo", Pickle::new().raw(b"N").raw(&b"\x94".repeat(limit + 2))),
        ("tuples", many(b"N\x850")),
        ("dictionaries", many(b"}")),
        ("entries", Pickle::new().raw(b"}").raw(&b"NNs".repeat(limit + 2))),
    ] {
        let file = pickle.file(&[]);
        let size = file.len();
        let (answer, held) = peak(|| Torch::parse(Bytes::new(file)).map(|_| ()));
        println!("{what}: {size} bytes, {held} held");
        assert!(answer.is_err(), "{what}");
        // 2^18 values of 24 bytes or pairs of them, in a vector that is being moved to one twice as long.
        assert!(held <= 3 * 48 * limit + CONSTANT, "{what}: {held}");
    }
}

/// The most memory in proportion to bytes, of files that are valid.
pub fn many_small_things(count: usize, check: impl Fn(&str, (usize, usize), usize, usize)) {
    // As torch writes them: the names of functions remembered, a tensor in some 100 bytes and an entry of the archive.
    let mut pickle = Pickle::new();
    pickle = pickle.tensor(("FloatStorage", "0", 1), 0, &[], &[]).raw(b"q\0").raw(b"}(");
    for i in 0..count {
        pickle = pickle.text(&i.to_string()).raw(b"h\0");
    }
    let file = pickle.raw(b"u").raw(b"\x86").file(&[("0", &[0; 4])]);
    let size = file.len();
    let (_, held) = peak(|| Torch::parse(Bytes::new(file)).map(|_| ()));
    check("tensors of one storage", (16, CONSTANT), size, held);
    let names: Vec<_> = (0..count).map(|i| i.to_string()).collect();
    let entries: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &[][..])).collect();
    let file = archive(&entries);
    let size = file.len();
    let (answer, held) = peak(|| Torch::parse(Bytes::new(file)).map(|_| ()));
    check("zip entries", (FACTOR, CONSTANT), size, held);
    assert!(answer.is_err());
}

#[test]
fn archives_that_torch_does_not_write_are_refused() {
    let whole = Pickle::new().raw(b"}").text("w").tensor(("FloatStorage", "0", 2), 0, &[2], &[1]).raw(b"s");
    let whole = whole.file(&[("0", &[0; 8])]);
    Torch::parse(Bytes::new(whole.clone())).unwrap();
    let end = whole.len() - 22;
    let directory = u32::from_le_bytes(*whole[end + 16..].first_chunk().unwrap()) as usize;
    let damaged = |at: usize, bytes: &[u8]| {
        let mut file = whole.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        error(file).to_string()
    };
    let all = [0xff; 4];
    for (at, bytes, expected) in [
        (end, &b"XX"[..], "the end of the zip directory: expected its zip signature"),
        (end + 4, &[1, 0], "expected one directory that ends before its end record"),
        (end + 8, &[2, 0], "expected one directory that ends before its end record"),
        (end + 10, &all[..2], "the zip directory: expected a file below 4 GiB, found zip64 sizes"),
        (end + 12, &all, "the zip directory: expected a file below 4 GiB, found zip64 sizes"),
        (end + 16, &all, "the zip directory: expected a file below 4 GiB, found zip64 sizes"),
        (end + 16, &[0xfe, 0xff, 0xff, 0xff], "expected one directory that ends before its end record"),
        (end + 20, &[1, 0], "expected one directory that ends before its end record"),
        (directory, &[0], "an entry of the zip directory: expected its zip signature"),
        (directory + 8, &[1, 8], "zip entry x/data.pkl: expected stored bytes, found encrypted ones"),
        (directory + 10, &[8], "zip entry x/data.pkl: expected stored bytes, found compression method 8"),
        (8, &[8], "zip entry x/data.pkl: expected stored bytes, found compression method 8"),
        (directory + 20, &[1], "zip entry x/data.pkl: expected stored bytes"),
        (directory + 20, &all, "zip entry x/data.pkl: expected sizes below 4 GiB, found zip64 sizes"),
        (directory + 42, &all, "zip entry x/data.pkl: expected sizes below 4 GiB, found zip64 sizes"),
        (directory + 42, &[1], "zip entry x/data.pkl: expected its zip signature"),
        (directory + 42, &[0, 0, 0, 0x7f], "x/data.pkl at byte 2130706432: expected 30 bytes, found 0"),
        (
            directory + 46,
            b"X",
            "zip entry X/data.pkl: expected its name in its local header, found x/data.pkl",
        ),
        (directory + 46, &[0xff], "the name of a zip entry at byte"),
        (directory + 28, &all[..2], "the name of a zip entry at byte"),
        (directory + 30, &[200], "an entry of the zip directory at byte"),
        (30, b"X", "zip entry x/data.pkl: expected its name in its local header, found X/data.pkl"),
        (28, &all[..2], "zip entry x/data.pkl at byte"),
    ] {
        let found = damaged(at, bytes);
        assert!(found.contains(expected), "byte {at}: expected {expected}, found {found}");
    }
    for (entries, expected) in [
        (vec![], "expected a file"),
        (vec![("x/data", &b"}."[..])], "expected zip entry data.pkl, found none"),
        (vec![("x/data.pkl", b"}."), ("y/data.pkl", b"}.")], "found two of zip entry y/data.pkl"),
        (vec![("x/data.pkl", b"}."), ("x/data.pkl", b"}.")], "found two of zip entry x/data.pkl"),
        (
            vec![("x/data.pkl", b"}."), ("x/byteorder", b"big")],
            "zip entry byteorder: expected little, found big",
        ),
    ] {
        let found = error(archive(&entries)).to_string();
        let none = entries.is_empty() && found.contains("data.pkl, found none");
        assert!(none || found.contains(expected), "expected {expected}, found {found}");
    }
    assert!(error(vec![]).to_string().contains("expected 22 bytes, found 0"));
    // Data of the type that it has not.
    let bytes = write([("w", Dtype::I64, &[2u64][..], &[0u8; 16][..])].into_iter());
    let file = Torch::parse(Bytes::new(bytes)).unwrap();
    assert_eq!(file.tensors().get("w").unwrap().integers(), Some(vec![0, 0]));
    assert_eq!(file.require("w").unwrap_err().to_string(), "tensor w: type I64 is not supported");
}
