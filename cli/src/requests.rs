//! Requests in JSON, one a line, and their answers.

use graftwork::chat::Message;
use graftwork::{Prompt, Request, sample};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::arguments::Run;

/// A line of requests.jsonl.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: Option<Value>,
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
    tools: Option<Vec<Value>>,
    tokens: Option<Vec<u32>>,
    adapters: Option<Vec<(String, f32)>>,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    seed: Option<u64>,
    stop: Option<Vec<String>>,
}

/// A request with the name that its answer carries.
pub struct Named {
    /// `id` of the line, or its number from 1.
    pub id: Value,
    /// The request.
    pub request: Request,
}

/// Reads a line; what it leaves out is as the command line says.
pub fn parse(line: &str, number: usize, defaults: &Run) -> Result<Named, String> {
    let line: Line = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let mut prompt = match (line.prompt, line.messages, line.tokens) {
        (Some(prompt), None, None) => from_text(prompt, defaults),
        (None, Some(messages), None) => messages.into(),
        (None, None, Some(tokens)) => tokens.into(),
        _ => return Err("expected exactly one of `prompt`, `messages` and `tokens`".to_owned()),
    };
    match (&mut prompt, line.tools) {
        (_, None) => {}
        (Prompt::Chat(chat), tools) => chat.tools = tools,
        _ => return Err("`tools` go with `messages`".to_owned()),
    }
    let mut request = from_defaults(prompt, defaults);
    if let Some(adapters) = line.adapters {
        request.adapters = adapters;
    }
    request.max_tokens = line.max_tokens.or(request.max_tokens);
    request.stop = line.stop.unwrap_or(request.stop);
    let sampling = &mut request.sampling;
    sampling.temperature = line.temperature.unwrap_or(sampling.temperature);
    sampling.top_k = line.top_k.unwrap_or(sampling.top_k);
    sampling.top_p = line.top_p.unwrap_or(sampling.top_p);
    sampling.min_p = line.min_p.unwrap_or(sampling.min_p);
    sampling.seed = line.seed.unwrap_or(sampling.seed);
    Ok(Named { id: line.id.unwrap_or_else(|| number.into()), request })
}

/// A request as the command line describes it.
pub fn from_defaults(prompt: Prompt, arguments: &Run) -> Request {
    let s = arguments.sampling;
    Request {
        adapters: arguments.stack.iter().map(|a| (a.name.clone(), a.weight)).collect(),
        max_tokens: Some(arguments.tokens),
        stop: arguments.stop.clone(),
        sampling: sample::Options {
            temperature: s.temp,
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            seed: s.seed,
            ..sample::Options::default()
        },
        ..Request::new(prompt)
    }
}

/// A prompt: a conversation if the command line says so, else text.
pub fn from_text(text: String, arguments: &Run) -> Prompt {
    if arguments.chat || arguments.system.is_some() {
        messages(arguments, text).into()
    } else {
        Prompt::Text(text)
    }
}

/// A conversation that starts with the command line's system message, if there is one.
pub fn messages(arguments: &Run, user: String) -> Vec<Message> {
    let system = arguments.system.iter().map(|text| Message::new("system", text.as_str()));
    system.chain([Message::new("user", user)]).collect()
}

/// An answer in the making.
#[derive(Default)]
pub struct Answer {
    /// The name of its request.
    pub id: Value,
    /// What became certain of the text.
    pub text: String,
    /// The tokens.
    pub tokens: Vec<u32>,
}

impl Answer {
    /// The answer as one line of JSON.
    pub fn json(&self, reason: &str) -> Value {
        json!({"id": self.id, "text": self.text, "tokens": self.tokens, "finish_reason": reason})
    }
}
