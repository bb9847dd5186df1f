//! Text: `run -p`, `run -i` and `demo` on SmolLM2.

use std::fs;

use serde_json::{Value, json};

use crate::{TOOLS, command, fetch_smollm2, graftwork, json_lines, results, text, with_input};

/// The chat of a golden file that contains `words`: system message, user message, answer.
fn golden_chat(file: &str, words: &str) -> [String; 3] {
    let path = format!("{}/../tests/golden/smollm2/{file}", env!("CARGO_MANIFEST_DIR"));
    let chats: Vec<Value> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let chat = chats.iter().find(|chat| chat["user"].as_str().unwrap().contains(words)).unwrap();
    let [system, user, text] = ["system", "user", "text"].map(|key| chat[key].as_str().unwrap().to_owned());
    [system, user, text.replace("<|im_end|>", "")]
}

#[test]
fn a_chat_with_an_adapter_answers_as_the_reference() {
    fetch_smollm2();
    let [system, user, expected] = golden_chat("tools.greedy.json", "weather");
    let run = |options: &[&str]| {
        let tools = format!("tools={TOOLS}");
        let run = ["run", "-m", "smollm2", "-a", &tools, "--system", &system, "-p", &user, "-n", "40"];
        command(run).args(options).output().unwrap()
    };
    let adapted = run(&["--use", "tools"]);
    assert_eq!(results(&adapted), format!("{expected}\n"));
    assert!(text(&adapted.stderr).contains(" tokens/s"));

    let answers = json_lines(results(&run(&["--use", "tools", "--json"])));
    let keys: Vec<&str> = answers[0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["id", "text", "tokens", "finish_reason"]);
    assert_eq!((&answers[0]["id"], &answers[0]["text"]), (&json!(1), &json!(expected)));
    assert_eq!(answers[0]["finish_reason"], "stop");

    // A weight of 0 is the base.
    let base = run(&[]);
    assert_ne!(results(&base), results(&adapted));
    assert_eq!(results(&run(&["--use", "tools:0"])), results(&base));

    // A stop text ends the answer before it.
    let before = expected.split("get_weather").next().unwrap();
    let stopped = run(&["--use", "tools", "--stop", "no such text", "--stop", "get_weather", "--json"]);
    let stopped = &json_lines(results(&stopped))[0];
    assert_eq!((&stopped["text"], &stopped["finish_reason"]), (&json!(before), &json!("stop")));
}

#[test]
fn a_seed_repeats_an_answer() {
    fetch_smollm2();
    let run = |options: &str| {
        let line = format!("run -m smollm2 -p Once -n 12 --json {options}");
        json_lines(results(&graftwork(&line))).remove(0)["tokens"].clone()
    };
    let greedy = run("");
    assert_eq!(run("--temp 1 --top-k 1 --seed 5"), greedy);
    assert_eq!(run("--temp 1 --top-p 1e-6"), greedy);
    assert_eq!(run("--temp 1 --min-p 1"), greedy);
    let drawn = run("--temp 1 --seed 1");
    assert_eq!(run("--temp 1 --seed 1"), drawn);
    assert_ne!(run("--temp 1 --seed 2"), drawn);
}

#[test]
fn a_conversation_loads_and_changes_adapters() {
    fetch_smollm2();
    let [system, user, expected] = golden_chat("tools.greedy.json", "weather");
    let script = [
        &format!("/load tools={TOOLS}"),
        "/adapters",
        "/use tools",
        &user,
        "/reset",
        "/use",
        "/use nobody",
        "/use tools:x",
        "/use tools:inf",
        "/load tools",
        "/load other=nope",
        "/unload other",
        "/bogus",
        "",
        &format!("/load  tools={TOOLS}.gguf"),
        "/use tools:1 ,",
        &user,
        "/unload tools",
        "still there?",
        "/quit",
        "not answered",
    ]
    .join("\n");
    let run = ["run", "-m", "smollm2", "--system", &system, "-n", "40", "-i", "--json"];
    let output = with_input(&mut command(run), &script);
    let answers = json_lines(results(&output));
    let texts: Vec<&str> = answers.iter().map(|answer| answer["text"].as_str().unwrap()).collect();
    assert_eq!(texts, [&expected, &expected]);
    let notes: Vec<&str> = text(&output.stderr).lines().filter(|line| !line.contains("tokens/s")).collect();
    assert_eq!(
        notes,
        [
            "/help for commands, end of input to quit",
            "tools",
            "no adapter named \"nobody\" is loaded",
            "no adapter named \"tools:x\" is loaded",
            "expected a finite weight, found inf",
            "expected NAME=PATH",
            "nope: No such file or directory (os error 2)",
            "no adapter named \"other\" is loaded",
            "/bogus: no such command; /help lists them",
            "no adapter named \"tools\" is loaded",
        ]
    );
}

#[test]
fn a_chat_knows_what_was_said() {
    fetch_smollm2();
    let chat = |script: &str| {
        let run = ["run", "-m", "smollm2", "--chat", "-n", "8", "--json"];
        json_lines(results(&with_input(&mut command(run), script)))
    };
    let two = chat("Name a color.\nName another one.\n");
    let messages = json!({"messages": [
        {"role": "user", "content": "Name a color."},
        {"role": "assistant", "content": two[0]["text"]},
        {"role": "user", "content": "Name another one."},
    ]});
    let run = ["run", "-m", "smollm2", "-n", "8", "--json", "-f", "-"];
    let at_once = json_lines(results(&with_input(&mut command(run), &messages.to_string())));
    assert_eq!(two[1]["tokens"], at_once[0]["tokens"]);
    let after_reset = chat("Name a color.\n/reset\nName another one.\n");
    assert_eq!(after_reset[1]["tokens"], chat("Name another one.")[0]["tokens"]);
}

#[test]
fn the_demo_shows_adapted_answers_beside_the_bases() {
    fetch_smollm2();
    let output = command(["demo"]).output().unwrap();
    let shown = results(&output);
    let row = shown.lines().find(|line| line.contains("get_weather")).unwrap();
    let (base, adapted) = row.split_once(" | ").unwrap();
    assert!(adapted.contains("get_weather") && !base.contains("get_weather"), "{row}");
    assert!(shown.contains("| negative\n") && shown.contains("| positive\n"), "{shown}");
    assert!(shown.contains("tokens/s"));
}
