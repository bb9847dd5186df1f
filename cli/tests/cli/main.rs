//! The command line as scripts see it: exit status, stdout, stderr.

mod algebra;
mod chats;
mod compress;
mod figures;
mod logits;
mod quantize;
mod requests;
mod usage;
mod verify;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A random model without a tokenizer: 3 layers, context 512, vocabulary 512.
const BASE: &str = "tests/golden/adapters/base";
const LORA: &str = "tests/golden/adapters/lora";
const LORA_ALL: &str = "tests/golden/adapters/lora_all";
const PROMPT: &str = "tests/golden/adapters/prompt_tuning";
const PREFIX: &str = "tests/golden/adapters/prefix_tuning";
const TOOLS: &str = "examples/adapters/tools-lora";

/// The command in the root of the project, where the paths above are.
fn command(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graftwork"));
    command.args(arguments).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).stdin(Stdio::null());
    command
}

fn start(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs the command with words between spaces as arguments.
fn graftwork(line: &str) -> Output {
    command(line.split_whitespace()).output().unwrap()
}

/// Runs the command and types `input`.
fn with_input(command: &mut Command, input: &str) -> Output {
    let mut child = start(command);
    // One that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What was printed by a command that must have succeeded.
fn results(output: &Output) -> &str {
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout)
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Status 1, nothing on stdout, and one line that contains `message`.
fn assert_fails(output: &Output, message: &str) {
    let stderr = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), ""), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("graftwork: ") && stderr.contains(message), "{stderr}");
}

/// A folder that is removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Fetches the model once, for commands with `-m smollm2`.
fn fetch_smollm2() {
    graftwork_cli::pull::pull("smollm2").unwrap();
}
