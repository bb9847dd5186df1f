//! `graftwork`: one base model, many adapters, from the command line.
//!
//! Results go to stdout, progress and notes to stderr. Exits 0 on success, 2 on bad usage, 1 on any other
//! error with one line that says what and where.

mod arguments;
mod bench;
mod chart;
mod compress;
mod demo;
mod diff;
mod inspect;
mod logits;
mod merge;
mod open;
mod output;
mod port;
mod quantize;
mod random_adapter;
mod random_model;
mod requests;
mod restore;
mod run;
mod texts;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};

/// Why a command failed. One line, for people.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Engine(#[from] graftwork::Error),
    #[error(transparent)]
    Adapter(#[from] graftwork_adapters::Error),
    #[error(transparent)]
    File(#[from] graftwork_adapters::file::Error),
    #[error(transparent)]
    Compress(#[from] graftwork::compress::Error),
    #[error(transparent)]
    Quantize(#[from] graftwork::quantize::Error),
    #[error(transparent)]
    Place(#[from] graftwork::place::Taken),
    #[error(transparent)]
    Combine(#[from] graftwork_adapters::combine::Error),
    #[error(transparent)]
    Port(#[from] graftwork::port::Error),
    #[error(transparent)]
    Pull(#[from] graftwork_cli::pull::Error),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{0}")]
    Other(String),
}

impl Failure {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        |source| Self::Io { what, source }
    }

    /// The message, on one line.
    fn line(&self) -> String {
        output::one_line(&self.to_string())
    }
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Demo(arguments) => demo::demo(&arguments),
        Command::Pull { name } => pull(&name),
        Command::Run(arguments) => run::run(&arguments),
        Command::Logits(arguments) => logits::logits(&arguments),
        Command::Verify(arguments) => verify::verify(&arguments),
        Command::Bench(arguments) => bench::bench(&arguments),
        Command::Compress(arguments) => compress::compress(&arguments),
        Command::Diff(arguments) => diff::diff(&arguments),
        Command::Restore(arguments) => restore::restore(&arguments),
        Command::Port(arguments) => port::port(&arguments),
        Command::Merge(arguments) => merge::merge(&arguments),
        Command::Quantize(arguments) => quantize::quantize(&arguments),
        Command::Inspect(arguments) => inspect::inspect(&arguments),
        Command::RandomModel(arguments) => random_model::random_model(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe has seen enough.
        Err(Failure::Io { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            output::note(&format!("graftwork: {}", failure.line()));
            ExitCode::FAILURE
        }
    }
}

fn pull(name: &str) -> Result<(), Failure> {
    let path = graftwork_cli::pull::pull(name)?;
    graftwork_cli::pull::verify(name, &path)?;
    output::result(&format!("{}\n", path.display()))
}
