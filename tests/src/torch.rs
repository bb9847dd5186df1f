//! Writing what `torch.save` writes, well or badly: the archive and the pickle in it.

use graftwork_adapters::file::Dtype;

/// An archive of stored entries, as torch lays it out but for the padding.
pub fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let (at, size, len) = (out.len() as u32, data.len() as u32, name.len() as u16);
        let common = |out: &mut Vec<u8>| {
            // Version, flags, method, time, checksum, both sizes, length of the name, of the extra field.
            out.extend([0; 2]);
            out.extend(0x0800u16.to_le_bytes());
            out.extend([0; 10]);
            out.extend([size.to_le_bytes(), size.to_le_bytes()].concat());
            out.extend(len.to_le_bytes());
            out.extend([0; 2]);
        };
        out.extend(b"PK\x03\x04");
        common(&mut out);
        out.extend(name.bytes());
        out.extend(*data);
        directory.extend(b"PK\x01\x02\0\0");
        common(&mut directory);
        directory.extend([0; 10]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.bytes());
    }
    let (start, size, count) = (out.len() as u32, directory.len() as u32, entries.len() as u16);
    out.extend(directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    out.extend([size.to_le_bytes(), start.to_le_bytes()].concat());
    out.extend([0; 2]);
    out
}

/// A pickle in the making: instructions that torch writes, and any others.
#[derive(Clone, Default)]
pub struct Pickle(pub Vec<u8>);

impl Pickle {
    /// Protocol 2.
    pub fn new() -> Self {
        Self(b"\x80\x02".to_vec())
    }

    /// Any instructions.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// A text.
    #[must_use]
    pub fn text(self, text: &str) -> Self {
        self.raw(b"X").raw(&(text.len() as u32).to_le_bytes()).raw(text.as_bytes())
    }

    /// A number.
    #[must_use]
    pub fn int(self, number: i64) -> Self {
        self.raw(b"\x8a\x08").raw(&number.to_le_bytes())
    }

    /// A tuple of numbers.
    #[must_use]
    pub fn tuple(self, numbers: &[i64]) -> Self {
        numbers.iter().fold(self.raw(b"("), |pickle, &number| pickle.int(number)).raw(b"t")
    }

    /// A tensor in the entry `data/<key>`.
    #[must_use]
    pub fn tensor(
        self,
        (storage, key, elements): (&str, &str, i64),
        offset: i64,
        shape: &[i64],
        strides: &[i64],
    ) -> Self {
        self.raw(b"ctorch._utils\n_rebuild_tensor_v2\n((")
            .text("storage")
            .raw(format!("ctorch\n{storage}\n").as_bytes())
            .text(key)
            .text("cpu")
            .int(elements)
            .raw(b"tQ")
            .int(offset)
            .tuple(shape)
            .tuple(strides)
            .raw(b"\x89ccollections\nOrderedDict\n)RtR")
    }

    /// The file with this pickle, ended, and these data.
    pub fn file(self, data: &[(&str, &[u8])]) -> Vec<u8> {
        let pickle = self.raw(b".").0;
        let names: Vec<_> = data.iter().map(|(key, _)| format!("x/data/{key}")).collect();
        let data = names.iter().zip(data).map(|(name, (_, data))| (name.as_str(), *data));
        let entries: Vec<(&str, &[u8])> =
            [("x/data.pkl", &pickle[..]), ("x/byteorder", b"little")].into_iter().chain(data).collect();
        archive(&entries)
    }
}

/// A file with these tensors: names, types, shapes, elements.
pub fn write<'a>(tensors: impl Iterator<Item = (&'a str, Dtype, &'a [u64], &'a [u8])>) -> Vec<u8> {
    let mut pickle = Pickle::new().raw(b"}(");
    let mut data = Vec::new();
    for (index, (name, dtype, shape, bytes)) in tensors.enumerate() {
        let storage = match dtype {
            Dtype::F32 => "FloatStorage",
            Dtype::F16 => "HalfStorage",
            Dtype::I32 => "IntStorage",
            Dtype::I64 => "LongStorage",
            other => panic!("{other}"),
        };
        let shape: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
        let strides: Vec<i64> = (1..=shape.len()).map(|i| shape[i..].iter().product()).collect();
        let (key, elements) = (index.to_string(), shape.iter().product());
        pickle = pickle.text(name).tensor((storage, &key, elements), 0, &shape, &strides);
        data.push((key, bytes));
    }
    let data: Vec<_> = data.iter().map(|(key, bytes)| (key.as_str(), *bytes)).collect();
    pickle.raw(b"u").file(&data)
}
