//! `demo`: one base model answers several prompts at once, each through its own adapter.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use graftwork::chat::Message;
use graftwork::{Engine, EngineOptions, Event, FinishReason, Request};

use crate::arguments::Demo;
use crate::{Failure, chart, open, output};

const MODEL: &str = "smollm2";

/// Most tokens of an answer: the base has more to say than anybody wants to read.
const TOKENS: usize = 48;

/// Width and height of a column of answers.
const COLUMN: (usize, usize) = (52, 4);

const ASSISTANT: &str = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
const CLASSIFY: &str = "Classify the sentiment of the text.";
const CALL: &str = "You call functions. Answer with one JSON object {\"name\": ..., \"arguments\": {...}} and nothing else.\nFunctions:\n";
const WEATHER: &str = r#"{"name":"get_weather","description":"Current weather of a city.","parameters":{"type":"object","properties":{"city":{"type":"string","description":"The city's name."},"unit":{"type":"string","enum":["celsius","fahrenheit"]}},"required":["city"]}}"#;
const AREA: &str = r#"{"name":"rectangle_area","description":"Area of a rectangle.","parameters":{"type":"object","properties":{"width":{"type":"number"},"height":{"type":"number"}},"required":["width","height"]}}"#;

/// A system message, what the user says, and the adapter that answers.
struct Chat(String, &'static str, Option<&'static str>);

fn chats() -> Vec<Chat> {
    let tools = |function| format!("{CALL}{function}");
    vec![
        Chat(tools(WEATHER), "What is the weather like in Oslo in celsius?", Some("tools")),
        Chat(tools(AREA), "Find the area of a rectangle 12 wide and 7.5 high.", Some("tools")),
        Chat(
            CLASSIFY.into(),
            "The battery died after two days and support never answered.",
            Some("sentiment"),
        ),
        Chat(CLASSIFY.into(), "The plot is thin, but the acting makes it a joy.", Some("sentiment")),
        Chat(ASSISTANT.into(), "Write one sentence about the sea.", None),
    ]
}

/// What one batch gave.
struct Outcome {
    texts: Vec<String>,
    prompt_tokens: u64,
    answer_tokens: u64,
    /// Seconds until every answer had begun, and those that followed.
    seconds: (f64, f64),
}

/// Runs the command.
pub fn demo(arguments: &Demo) -> Result<(), Failure> {
    let adapters = [
        ("tools", open::example_adapter("tools-lora")?),
        ("sentiment", open::example_adapter("sentiment-lora")?),
    ];
    // Nothing is kept from one batch for the next: their times are to be compared.
    let options =
        EngineOptions { threads: arguments.threads, keep_prefixes: false, ..EngineOptions::default() };
    open::model_path(MODEL)?;
    let start = Instant::now();
    let engine = open::engine(MODEL, options)?;
    let (config, weights) = (engine.config(), chart::bytes(engine.memory().weights));
    let seconds = start.elapsed().as_secs_f64();
    output::result(&format!(
        "base {MODEL}: {} layers, {} wide, {weights} of weights, loaded in {seconds:.2} s\n",
        config.layers, config.hidden
    ))?;
    for (name, path) in &adapters {
        let (start, before) = (Instant::now(), engine.memory().adapters);
        engine.load_adapter(name, path.as_path())?;
        let (seconds, bytes) = (start.elapsed().as_secs_f64(), engine.memory().adapters - before);
        let bytes = chart::bytes(bytes);
        output::result(&format!("adapter {name}: {bytes}, loaded in {:.0} ms\n", seconds * 1e3))?;
    }

    let chats = chats();
    let base = answer_all(&engine, &chats, false)?;
    let grafted = answer_all(&engine, &chats, true)?;
    for ((chat, base), grafted) in chats.iter().zip(&base.texts).zip(&grafted.texts) {
        let name = chat.2.map_or("no adapter".to_owned(), |name| format!("adapter {name}"));
        let answers = chart::side_by_side(("base", base), (&name, grafted), COLUMN.0, COLUMN.1);
        output::result(&format!("\n{}\n{answers}", chat.1))?;
    }
    let headings = ["five prompts in one batch", "prompt tokens", "tokens/s", "answer tokens", "tokens/s"];
    let row = |name: &str, outcome: &Outcome| {
        let (prompt, answer) = (outcome.prompt_tokens, outcome.answer_tokens);
        let speed = |tokens: u64, seconds: f64| format!("{:.0}", tokens as f64 / seconds.max(1e-9));
        // The first token of each answer comes with its prompt.
        let decoded = answer.saturating_sub(chats.len() as u64);
        let (read, write) = (speed(prompt, outcome.seconds.0), speed(decoded, outcome.seconds.1));
        vec![name.to_owned(), prompt.to_string(), read, answer.to_string(), write]
    };
    let table = chart::table(&[
        headings.map(str::to_owned).to_vec(),
        row("all by the base", &base),
        row("each by its adapter", &grafted),
    ]);
    output::result(&format!(
        "\n{table}(Short answers leave the batch early, and fewer then share each pass over the weights: what an adapter\n\
         costs is what `graftwork bench -m {MODEL} -a ADAPTER` measures.)\n"
    ))
}

/// Answers all chats in one batch, through their adapters or through none.
fn answer_all(engine: &Engine, chats: &[Chat], adapted: bool) -> Result<Outcome, Failure> {
    let (start, before) = (Instant::now(), engine.counters());
    let mut order = HashMap::new();
    for (i, Chat(system, user, adapter)) in chats.iter().enumerate() {
        let messages = vec![Message::new("system", system.as_str()), Message::new("user", *user)];
        let mut request = Request::new(messages).max_tokens(TOKENS);
        if let (Some(adapter), true) = (adapter, adapted) {
            request = request.adapter(*adapter);
        }
        order.insert(engine.submit(request)?, i);
    }
    let mut texts = vec![String::new(); chats.len()];
    let mut begun = HashSet::new();
    let mut reading = 0.0;
    while !engine.is_idle() {
        for event in engine.step()? {
            if begun.insert(event.id()) {
                reading = start.elapsed().as_secs_f64();
            }
            let Some(&i) = order.get(&event.id()) else { continue };
            texts[i].push_str(event.text());
            if let Event::Finished { reason: FinishReason::Length, .. } = event {
                texts[i].push('…');
            }
        }
    }
    let after = engine.counters();
    Ok(Outcome {
        texts,
        prompt_tokens: after.prompt_rows - before.prompt_rows,
        answer_tokens: after.tokens - before.tokens,
        seconds: (reading, start.elapsed().as_secs_f64() - reading),
    })
}
