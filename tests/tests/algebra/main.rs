//! Adapters made part of models, taken out of them, and moved between them.

mod diff;
mod merge;
mod port;
mod restore;

use std::fs;
use std::path::{Path, PathBuf};

use graftwork::{Engine, EngineOptions};
use graftwork_adapters::Source;

/// A path in a folder of its own that nothing is at.
fn fresh(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("algebra");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    let _ = fs::remove_file(&path);
    let _ = fs::remove_dir_all(&path);
    path
}

fn open(source: impl Into<Source>) -> Engine {
    let source = source.into();
    let options = EngineOptions { threads: 2, ..EngineOptions::default() };
    Engine::open(source.clone(), options).unwrap_or_else(|error| panic!("{source:?}: {error}"))
}

/// Values near a normal distribution of variance 1, the same bits on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        let mut sum = 0;
        for _ in 0..3 {
            self.0 = self.0.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            sum += (self.0 >> 33) & 0xffff_ffff_u64 >> 1;
        }
        (sum as f64 / f64::from(1u32 << 30) - 3.0) as f32
    }
}
