//! Opening models and adapters for the commands.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use graftwork::merge::Grafted;
use graftwork::{Engine, EngineOptions};
use graftwork_adapters::Adapter;
use graftwork_cli::pull;
use indicatif::{ProgressBar, ProgressStyle};

use crate::Failure;
use crate::arguments::Weighted;

/// The path that `-m MODEL` means: a known name is fetched if need be, unless a file has that name.
pub fn model_path(model: &str) -> Result<PathBuf, Failure> {
    let path = Path::new(model);
    if pull::known(model).is_some() && !path.exists() {
        return Ok(pull::pull(model)?);
    }
    match path.exists() {
        true => Ok(path.to_owned()),
        false => Err(Failure::Other(format!("{model}: no such file, directory or known model (smollm2)"))),
    }
}

/// Opens a model with a progress bar on stderr. `GRAFTWORK_ISA` names the instruction set, for comparisons.
pub fn engine(model: &str, options: EngineOptions) -> Result<Engine, Failure> {
    let path = model_path(model)?;
    let options = EngineOptions { isa: std::env::var("GRAFTWORK_ISA").ok(), ..options };
    let bar = loading_bar(model);
    let engine = Engine::open_with(path.as_path(), options, &|done, all| show(&bar, done, all))?;
    bar.finish_and_clear();
    Ok(engine)
}

/// Loads an adapter with a progress bar on stderr: a seed patch may take minutes.
pub fn adapter(engine: &Engine, name: &str, path: &Path) -> Result<(), Failure> {
    let bar = loading_bar(&path.display().to_string());
    engine.load_adapter_with(name, path, &|done, all| show(&bar, done, all))?;
    bar.finish_and_clear();
    Ok(())
}

/// Opens a model and loads adapters on it, a stack in order.
pub fn stack(
    model: &str,
    adapters: &[Weighted],
    threads: usize,
) -> Result<(Engine, Vec<(String, f32)>), Failure> {
    let engine = engine(model, EngineOptions { threads, ..EngineOptions::default() })?;
    let mut stack = Vec::new();
    for (i, given) in adapters.iter().enumerate() {
        let name = i.to_string();
        adapter(&engine, &name, Path::new(&given.name))?;
        stack.push((name, given.weight));
    }
    Ok((engine, stack))
}

/// Opens adapters, on no model.
pub fn adapters(given: &[Weighted]) -> Result<Vec<Adapter>, Failure> {
    Ok(given.iter().map(|given| Adapter::open(Path::new(&given.name))).collect::<Result<_, _>>()?)
}

/// Adapters to merge.
pub fn grafted<'a>(given: &'a [Weighted], adapters: &'a [Adapter]) -> Vec<Grafted<'a>> {
    let pairs = given.iter().zip(adapters);
    pairs.map(|(given, adapter)| Grafted { name: &given.name, adapter, weight: given.weight }).collect()
}

/// Whether two paths are one place.
pub fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The threads that `--threads` means.
pub fn threads(given: usize) -> usize {
    match given {
        0 => std::thread::available_parallelism().map_or(1, |threads| threads.get()),
        given => given,
    }
}

fn loading_bar(what: &str) -> ProgressBar {
    let bar = progress_bar("{msg} {wide_bar} {pos}/{len}");
    bar.set_message(format!("loading {what}"));
    bar
}

/// Shows how much is done; goes on.
pub fn show(bar: &ProgressBar, done: usize, all: usize) -> bool {
    bar.set_length(all as u64);
    bar.set_position(done as u64);
    true
}

/// A progress bar on stderr, if that is a terminal.
pub fn progress_bar(template: &str) -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template(template);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// One of the adapters that come with the project: beside the current folder or above it, or above the program.
pub fn example_adapter(name: &str) -> Result<PathBuf, Failure> {
    let places = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    places
        .iter()
        .flatten()
        .flat_map(|place| place.ancestors())
        .map(|folder| folder.join("examples").join("adapters").join(name))
        .find(|path| path.exists())
        .ok_or_else(|| {
            Failure::Other(format!(
                "examples/adapters/{name} is not in this folder, one above it, or above the program: \
                 run the demo inside a checkout of the project"
            ))
        })
}
