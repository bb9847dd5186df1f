//! Ranges of open files: the bytes that were asked for, wherever they start, or an error that says what there is.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::PathBuf;

use graftwork_adapters::file::{map_range, open_bytes};

/// A file of `bytes`, gone when this is.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("graftwork-map-{}-{name}", std::process::id()));
        fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Bytes that differ from their neighbours and from those a page further.
fn bytes(count: usize) -> Vec<u8> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn ranges_are_what_was_asked_for_and_outlive_their_file() {
    let content = bytes(20_000);
    let file = Temporary::new("ranges", &content);
    for copy in [false, true] {
        for offset in [0, 1, 7, 512, 4095, 4096, 4097, 8193, 16_384, 19_999, 20_000] {
            for length in [0, 1, 3, 4096, 4097, 20_000 - offset] {
                if offset + length > content.len() {
                    continue;
                }
                let open = File::open(&file.0).unwrap();
                let range = map_range(&open, offset as u64, length as u64, copy).unwrap();
                drop(open);
                let end = if length == 0 { content.len() } else { offset + length };
                assert_eq!(range[..], content[offset..end], "{length} bytes from {offset}, copied: {copy}");
            }
        }
    }
    assert_eq!(open_bytes(&file.0, 0).unwrap()[..], content);
    assert_eq!(open_bytes(&file.0, u64::MAX).unwrap()[..], content);
}

/// What is unloaded is read again where it is mapped, and stays where it is copied; neighbours too.
#[test]
fn unloaded_bytes_come_back() {
    let content = bytes(50_000);
    let file = Temporary::new("unload", &content);
    for copy in [false, true] {
        for offset in [0, 7, 4096] {
            let all = map_range(&File::open(&file.0).unwrap(), offset, 0, copy).unwrap();
            let content = &content[offset as usize..];
            for range in [0..all.len(), 0..0, 1..4095, 4000..20_000, all.len() - 1..all.len()] {
                let part = all.slice(range.clone()).unwrap();
                part.unload();
                assert_eq!(part[..], content[range]);
                assert_eq!(all[..], *content);
            }
        }
    }
}

#[test]
fn ranges_beyond_their_file_are_refused() {
    let file = Temporary::new("beyond", &bytes(100));
    let open = File::open(&file.0).unwrap();
    for copy in [false, true] {
        for (offset, length, message) in [
            (0, 101, "expected 101 bytes from byte 0 on, found a file of 100 bytes"),
            (100, 1, "expected 1 bytes from byte 100 on, found a file of 100 bytes"),
            (37, 64, "expected 64 bytes from byte 37 on, found a file of 100 bytes"),
            (101, 0, "expected bytes from byte 101 on, found a file of 100 bytes"),
            (u64::MAX, 0, "expected bytes from byte 18446744073709551615 on, found a file of 100 bytes"),
            (
                50,
                u64::MAX - 10,
                "expected 18446744073709551605 bytes from byte 50 on, found a file of 100 bytes",
            ),
            (
                u64::MAX,
                u64::MAX,
                "expected 18446744073709551615 bytes from byte 18446744073709551615 on, found a file of 100 bytes",
            ),
        ] {
            let error = map_range(&open, offset, length, copy).unwrap_err();
            assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::InvalidInput, message));
        }
        assert_eq!(map_range(&open, 36, 64, copy).unwrap().len(), 64, "the file can be used on");
    }
}

#[test]
fn empty_files_are_empty_and_directories_are_refused() {
    let file = Temporary::new("empty", &[]);
    let open = File::open(&file.0).unwrap();
    for copy in [false, true] {
        assert_eq!(map_range(&open, 0, 0, copy).unwrap().len(), 0);
        assert!(map_range(&open, 0, 1, copy).is_err());
    }
    // Some systems do not even open a directory.
    if let Ok(directory) = File::open(std::env::temp_dir()) {
        let error = map_range(&directory, 0, 0, false).unwrap_err();
        assert_eq!(error.to_string(), "expected a regular file");
    }
}
