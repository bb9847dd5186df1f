//! `run -f`: files of requests, as token ids.

use serde_json::{Value, json};

use crate::{
    BASE, Folder, LORA, LORA_ALL, PROMPT, assert_fails, command, json_lines, results, text, with_input,
};

#[test]
fn requests_are_answered_in_order_of_finish() {
    let folder = Folder::new("requests");
    let requests = r#"{"id": "long", "tokens": [1, 2, 3], "max_tokens": 9, "adapters": [["l", 0.5], ["all", 1]]}
{"id": {"any": 1}, "tokens": [1, 2, 3], "max_tokens": 3}

{"tokens": [4, 5], "max_tokens": 6}
"#;
    let file = folder.file("requests.jsonl", requests);
    let run =
        ["run", "-m", BASE, "-a", &format!("l={LORA}"), "-a", &format!("all={LORA_ALL}"), "--json", "-f"];
    let from_file = command(run).arg(&file).output().unwrap();
    let answers = json_lines(results(&from_file));
    let keys = |answer: &Value| answer.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert!(answers.iter().all(|answer| keys(answer) == ["id", "text", "tokens", "finish_reason"]));
    let ids: Vec<&Value> = answers.iter().map(|answer| &answer["id"]).collect();
    // A line without an id has its number.
    assert_eq!(ids, [&json!({"any": 1}), &json!(4), &json!("long")]);
    for (answer, length) in answers.iter().zip([3, 6, 9]) {
        assert_eq!(answer["tokens"].as_array().unwrap().len(), length);
        assert_eq!(answer["finish_reason"], "length");
    }
    assert_ne!(answers[0]["tokens"][0], answers[2]["tokens"][0], "the adapters change nothing");
    let from_stdin = with_input(command(run).arg("-"), requests);
    assert_eq!(results(&from_stdin), results(&from_file));
}

#[test]
fn the_size_of_the_batch_changes_no_answer() {
    let stacks = [json!([]), json!([["l", 1]]), json!([["l", 0.5], ["all", -0.25]])];
    let requests: String = (0..12u64)
        .map(|i| {
            let tokens: Vec<u64> = (0..1 + 7 * i).map(|j| (i * 131 + j * 37 + 5) % 512).collect();
            let request = json!({"id": i, "tokens": tokens, "adapters": stacks[i as usize % 3],
                "max_tokens": 4 + i % 5, "temperature": i % 2, "seed": i});
            format!("{request}\n")
        })
        .collect();
    let answers = |batch: &str, threads: &str| {
        let adapters = [format!("l={LORA}"), format!("all={LORA_ALL}")];
        let mut run =
            command(["run", "-m", BASE, "-a", &adapters[0], "-a", &adapters[1], "--json", "-f", "-"]);
        let output = with_input(run.args(["--batch", batch, "--threads", threads]), &requests);
        let mut lines: Vec<String> = results(&output).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let alone = answers("1", "1");
    assert_eq!(alone.len(), 12);
    assert_eq!(alone, answers("8", "2"));
}

#[test]
fn requests_that_cannot_run_do_not_stop_the_others() {
    let long = vec![1; 512];
    let requests = [
        json!({"id": "long", "tokens": long}),
        json!({"id": "adapter", "tokens": [1], "adapters": [["nobody", 1]]}),
        json!({"id": "token", "tokens": [1, 600]}),
        json!({"id": "none", "tokens": []}),
        json!({"id": "text", "prompt": "x"}),
        json!({"id": "temperature", "tokens": [1], "temperature": -1}),
        json!({"id": "good", "tokens": [1, 2], "max_tokens": 2}),
    ];
    let requests: String = requests.iter().map(|request| format!("{request}\n")).collect();
    let output = with_input(&mut command(["run", "-m", BASE, "--json", "-f", "-"]), &requests);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).ends_with("graftwork: 6 of 7 requests failed\n"));
    let answers = json_lines(text(&output.stdout));
    assert_eq!(answers.len(), 7);
    for (id, message) in [
        ("long", "fewer than 512 tokens, the model's context; found 512"),
        ("adapter", "no adapter named \"nobody\" is loaded"),
        ("token", "token 1: expected an id below 512, found 600"),
        ("none", "at least one token"),
        ("text", "without a tokenizer"),
        ("temperature", "temperature: expected"),
    ] {
        let answer = answers.iter().find(|answer| answer["id"] == id).unwrap();
        assert!(answer["error"].as_str().unwrap().contains(message), "{answer}");
    }
    assert_eq!(answers[6]["tokens"].as_array().unwrap().len(), 2);
    let plain = with_input(&mut command(["run", "-m", BASE, "-f", "-"]), &requests);
    assert!(text(&plain.stdout).starts_with("\"long\": failed: "));
}

#[test]
fn a_malformed_line_is_named_by_file_and_number() {
    let folder = Folder::new("malformed");
    for (line, message) in [
        ("{\"tokens\": [1], \"unknown\": 2}", "unknown field `unknown`, expected one of"),
        ("hello", "expected a JSON object"),
        ("{\"tokens\": [1], \"prompt\": \"x\"}", "exactly one of"),
        ("{\"tokens\": [1.5]}", "(column"),
    ] {
        let file = folder.file("requests.jsonl", &format!("{{\"tokens\": [1]}}\n\n{line}\n"));
        let output = command(["run", "-m", BASE, "-f", &file]).output().unwrap();
        assert_fails(&output, &format!("{file}:3: "));
        assert_fails(&output, message);
    }
}

/// Virtual tokens of an adapter among the parts of a prompt, from a PEFT directory and from its tensor alone.
#[test]
fn parts_place_virtual_tokens() {
    let folder = Folder::new("parts");
    let bare = folder.path("spring.safetensors");
    std::fs::copy(format!("{}/../{PROMPT}/adapter_model.safetensors", env!("CARGO_MANIFEST_DIR")), &bare)
        .unwrap();
    let part = |name: &str, first: Value| json!({"virtual": name, "first": first});
    let line =
        |id: &str, parts: Value, adapters: Value| json!({"id": id, "parts": parts, "adapters": adapters});
    let (before, after) = (json!({"tokens": [1, 2, 3]}), json!({"tokens": [4, 5]}));
    let requests = [
        line("some", json!([before, part("p", json!(3)), after]), json!([])),
        line("same", json!([before, part("s", json!(3)), after]), json!([])),
        line("all", json!([before, part("s", json!(null)), after]), json!([])),
        line("none", json!([before, part("s", json!(0)), after]), json!([])),
        json!({"id": "base", "tokens": [1, 2, 3, 4, 5]}),
        line("front", json!([before, after]), json!([["p", 1]])),
        line("too many", json!([before, part("s", json!(7))]), json!([])),
    ];
    let requests: String = requests.iter().map(|request| format!("{request}\n")).collect();
    let adapters = [format!("p={PROMPT}"), format!("s={bare}")];
    let mut run =
        command(["run", "-m", BASE, "-a", &adapters[0], "-a", &adapters[1], "-n", "8", "--json", "-f", "-"]);
    let output = with_input(&mut run, &requests);
    assert!(
        text(&output.stdout).contains("expected at most the first 6 of its virtual tokens, found 7"),
        "{output:?}"
    );
    let lines = json_lines(text(&output.stdout));
    let tokens = |id: &str| &lines.iter().find(|line| line["id"] == id).unwrap()["tokens"];
    assert_eq!((tokens("some"), tokens("none")), (tokens("same"), tokens("base")));
    let different = [tokens("some"), tokens("all"), tokens("base"), tokens("front")];
    assert!((1..4).all(|i| different[..i].iter().all(|other| *other != different[i])), "{different:?}");
}
