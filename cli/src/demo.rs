//! `demo`: one base model answers several prompts at once, each through its own adapter.

use std::collections::HashMap;
use std::time::Instant;

use graftwork::chat::Message;
use graftwork::{Engine, EngineOptions, Event, Request};

use crate::arguments::Demo;
use crate::{Failure, chart, open};

const MODEL: &str = "smollm2";

/// Most tokens of an answer: the base has more to say than anybody wants to read.
const TOKENS: usize = 48;

/// Width of a column of answers.
const WIDTH: usize = 52;

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
        Chat(CLASSIFY.into(), "The battery died after two days and support never answered.", Some("sentiment")),
        Chat(CLASSIFY.into(), "The plot is thin, but the acting makes it a joy.", Some("sentiment")),
        Chat(ASSISTANT.into(), "What is the capital of France?", None),
    ]
}

/// What one batch gave.
struct Outcome {
    texts: Vec<String>,
    tokens: usize,
    seconds: f64,
}

/// Runs the command.
pub fn demo(arguments: &Demo) -> Result<(), Failure> {
    let adapters = [("tools", open::example_adapter("tools-lora")?), ("sentiment", open::example_adapter("sentiment-lora")?)];
    let options = EngineOptions { threads: arguments.threads, ..EngineOptions::default() };
    let start = Instant::now();
    let engine = open::engine(MODEL, options)?;
    let config = engine.config();
    println!(
        "{MODEL}: {} layers, {} wide, {} of weights, ready in {:.2} s",
        config.layers,
        config.hidden,
        chart::bytes(engine.memory().weights),
        start.elapsed().as_secs_f64()
    );
    for (name, path) in &adapters {
        let start = Instant::now();
        engine.load_adapter(name, path.as_path())?;
        println!("adapter {name} loaded in {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    }

    let chats = chats();
    let base = answer_all(&engine, &chats, false)?;
    let grafted = answer_all(&engine, &chats, true)?;
    for ((chat, base), grafted) in chats.iter().zip(&base.texts).zip(&grafted.texts) {
        println!("\n{}", chat.1);
        let name = chat.2.map_or("no adapter".to_owned(), |name| format!("with {name}"));
        chart::side_by_side(("base", base), (&name, grafted), WIDTH);
    }
    println!();
    for (name, outcome) in [("base only", &base), ("each its own adapter", &grafted)] {
        println!(
            "{} prompts in one batch, {name}: {} tokens in {:.2} s, {:.1} tokens/s",
            chats.len(),
            outcome.tokens,
            outcome.seconds,
            outcome.tokens as f64 / outcome.seconds
        );
    }
    Ok(())
}

/// Answers all chats in one batch, through their adapters or through none.
fn answer_all(engine: &Engine, chats: &[Chat], adapted: bool) -> Result<Outcome, Failure> {
    let start = Instant::now();
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
    let mut tokens = 0;
    while !engine.is_idle() {
        for event in engine.step()? {
            if let Some(&i) = order.get(&event.id()) {
                texts[i].push_str(event.text());
            }
            tokens += usize::from(matches!(event, Event::Token { .. }));
        }
    }
    Ok(Outcome { texts, tokens, seconds: start.elapsed().as_secs_f64() })
}
