//! Texts that a model reads, from a file.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use graftwork::chat::{ChatInput, Message};
use graftwork::{Engine, Prompt};
use serde::Deserialize;
use serde_json::Value;

use crate::Failure;

/// A line of texts.jsonl.
#[derive(Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "expected an object with `text`, `messages` (and perhaps `tools`) or `tokens`"
)]
enum Line {
    Text { text: String },
    Messages { messages: Vec<Message>, tools: Option<Vec<Value>> },
    Tokens { tokens: Vec<u32> },
}

/// The texts in a file, in tokens of the model.
pub fn read(path: &Path, engine: &Engine) -> Result<Vec<Vec<u32>>, Failure> {
    let name = path.display();
    let content = fs::read_to_string(path).map_err(Failure::io(name.to_string()))?;
    let encoded = |prompt, place: &dyn Fn(String) -> String| {
        engine.prompt_tokens(prompt).map_err(|error| Failure::Other(place(error.to_string())))
    };
    let mut texts = Vec::new();
    if path.extension().is_some_and(|extension| extension == "jsonl") {
        for (number, line) in content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let place = |why: String| format!("{name}: line {}: {why}", number + 1);
            let line =
                serde_json::from_str(line).map_err(|error| Failure::Other(place(error.to_string())))?;
            let prompt = match line {
                Line::Text { text } => Prompt::Text(text),
                Line::Tokens { tokens } => Prompt::Tokens(tokens),
                // The same tokens on every day: what is half done goes on with the same texts only.
                Line::Messages { messages, tools } => Prompt::Chat(Box::new(ChatInput {
                    tools,
                    add_generation_prompt: false,
                    now: SystemTime::UNIX_EPOCH,
                    ..ChatInput::new(messages)
                })),
            };
            texts.push(encoded(prompt, &place)?);
        }
    } else {
        texts.push(encoded(Prompt::Text(content), &|why| format!("{name}: {why}"))?);
    }
    texts.retain(|text| !text.is_empty());
    match texts.is_empty() {
        true => Err(Failure::Other(format!("{name}: expected a text, found none"))),
        false => Ok(texts),
    }
}
