//! Adapters made part of models, taken out of them, and moved between them.

mod merge;

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
