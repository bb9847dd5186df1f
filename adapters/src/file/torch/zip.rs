//! The zip archives that torch writes: every entry stored as it is, nothing compressed, below 4 GiB.
//!
//! At the end of the file lies the end record (22 bytes), before it the directory: for every entry 46 bytes and its name, which say
//! where its local header is; the data follow that. Nothing is copied. Checksums are not: torch can be told to write none.

use graftwork_kernels::Bytes;

use crate::file::{Error, Named};

const END: u32 = 0x0605_4b50;
const ENTRY: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;
const END_LEN: usize = 22;
const ENTRY_LEN: usize = 46;
const LOCAL_LEN: usize = 30;

/// The entries of an archive, by name.
pub(super) fn entries(bytes: &Bytes) -> Result<Named<Bytes>, Error> {
    let at = bytes.len().saturating_sub(END_LEN);
    let end = Record::at(bytes, "the end of the zip directory", at, END_LEN)?;
    end.signature(END)?;
    let count = end.short(10);
    let (size, start) = (end.long(12), end.long(16));
    if count == u16::MAX || size == u32::MAX || start == u32::MAX {
        return Err(wrong("the zip directory", "a file below 4 GiB", "zip64 sizes".to_owned()));
    }
    let (start, stop) = (start as usize, (start as usize).saturating_add(size as usize));
    if stop > at || end.short(8) != count || end.long(4) != 0 || end.short(20) != 0 {
        let found = format!("{count} entries in bytes {start} to {stop}");
        return Err(wrong("the zip directory", "one directory that ends before its end record", found));
    }
    let (mut entries, mut at) = (Vec::new(), start);
    for _ in 0..count {
        let entry = Record::at(bytes, "an entry of the zip directory", at, ENTRY_LEN)?;
        entry.signature(ENTRY)?;
        let name_len = entry.short(28) as usize;
        let name = Record::at(bytes, "the name of a zip entry", at + ENTRY_LEN, name_len)?;
        let what = "the name of a zip entry".to_owned();
        let text = std::str::from_utf8(name.bytes).map_err(|_| Error::NotUtf8 { what, at: name.at })?;
        entries.push((text.to_owned(), data(bytes, text, &entry)?));
        at += ENTRY_LEN + name_len + entry.short(30) as usize + entry.short(32) as usize;
    }
    if at != stop {
        return Err(wrong("the zip directory", "an end after its last entry", format!("byte {stop}")));
    }
    Named::new(entries).map_err(|name| Error::Duplicate { what: "zip entry", name })
}

/// The data of an entry.
fn data(bytes: &Bytes, name: &str, entry: &Record<'_>) -> Result<Bytes, Error> {
    let (packed, size, start) = (entry.long(20), entry.long(24), entry.long(42));
    let wrong = |expected, found| wrong(name, expected, found);
    if [packed, size, start].contains(&u32::MAX) {
        return Err(wrong("sizes below 4 GiB", "zip64 sizes".to_owned()));
    }
    let local = Record::at(bytes, name, start as usize, LOCAL_LEN)?;
    local.signature(LOCAL)?;
    for (flags, method) in [(entry.short(8), entry.short(10)), (local.short(6), local.short(8))] {
        if method != 0 || packed != size {
            return Err(wrong(
                "stored bytes",
                format!("compression method {method}, {packed} of {size} bytes"),
            ));
        }
        if flags & 1 != 0 {
            return Err(wrong("stored bytes", "encrypted ones".to_owned()));
        }
    }
    let name_len = local.short(26) as usize;
    let local_name = Record::at(bytes, name, start as usize + LOCAL_LEN, name_len)?;
    if local_name.bytes != name.as_bytes() {
        let found = String::from_utf8_lossy(local_name.bytes).chars().take(80).collect();
        return Err(wrong("its name in its local header", found));
    }
    let at = local_name.at + name_len + local.short(28) as usize;
    let missing = || Error::Truncated {
        what: format!("zip entry {name}"),
        at,
        expected: size.into(),
        found: bytes.len().saturating_sub(at) as u64,
    };
    bytes.slice(at..at + size as usize).ok_or_else(missing)
}

fn wrong(entry: &str, expected: &'static str, found: String) -> Error {
    Error::Entry { entry: entry.chars().take(80).collect(), expected, found }
}

/// Some bytes of the file, little-endian.
struct Record<'a> {
    what: &'a str,
    at: usize,
    bytes: &'a [u8],
}

impl<'a> Record<'a> {
    fn at(bytes: &'a [u8], what: &'a str, at: usize, len: usize) -> Result<Self, Error> {
        let found = bytes.get(at.min(bytes.len())..).unwrap_or_default();
        match found.get(..len) {
            Some(bytes) => Ok(Self { what, at, bytes }),
            None => Err(Error::Truncated {
                what: what.to_owned(),
                at,
                expected: len as u64,
                found: found.len() as u64,
            }),
        }
    }

    /// The two bytes at `offset`, which lies inside.
    fn short(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    fn long(&self, offset: usize) -> u32 {
        u32::from(self.short(offset)) | u32::from(self.short(offset + 2)) << 16
    }

    fn signature(&self, expected: u32) -> Result<(), Error> {
        match self.long(0) {
            found if found == expected => Ok(()),
            found => Err(wrong(self.what, "its zip signature", format!("{found:#010x} at byte {}", self.at))),
        }
    }
}
