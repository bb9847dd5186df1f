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
    parts: Option<Vec<Part>>,
    adapters: Option<Vec<(String, f32)>>,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    seed: Option<u64>,
    stop: Option<Vec<String>>,
}

/// A part of a prompt.
#[derive(Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "expected a part with `text`, `tokens`, or `virtual` and `first`"
)]
enum Part {
    Text { text: String },
    Tokens { tokens: Vec<u32> },
    Virtual { r#virtual: String, first: Option<usize> },
}

impl From<Part> for graftwork::Part {
    fn from(part: Part) -> Self {
        match part {
            Part::Text { text } => Self::Text(text),
            Part::Tokens { tokens } => Self::Tokens(tokens),
            Part::Virtual { r#virtual: adapter, first } => Self::Virtual { adapter, first },
        }
    }
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
    if !line.trim_start().starts_with('{') {
        return Err("expected a JSON object".to_owned());
    }
    let line: Line = serde_json::from_str(line).map_err(|error| {
        // Its line is always the first: that of the file is told by the caller.
        let (text, column) = (error.to_string(), error.column());
        let message =
            text.strip_suffix(&format!(" at line {} column {column}", error.line())).unwrap_or(&text);
        format!("{message} (column {column})")
    })?;
    let mut prompt = match (line.prompt, line.messages, line.tokens, line.parts) {
        (Some(prompt), None, None, None) => from_text(prompt, defaults),
        (None, Some(messages), None, None) => messages.into(),
        (None, None, Some(tokens), None) => tokens.into(),
        (None, None, None, Some(parts)) => Prompt::Parts(parts.into_iter().map(Into::into).collect()),
        _ => return Err("expected exactly one of `prompt`, `messages`, `tokens` and `parts`".to_owned()),
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn defaults(options: &str) -> Run {
        let line = format!("graftwork run -m model {options}");
        match Arguments::try_parse_from(line.split_whitespace()).expect("arguments").command {
            Command::Run(run) => run,
            _ => unreachable!("the command is run"),
        }
    }

    #[test]
    fn a_line_overrides_the_command_line() {
        let defaults = defaults("--use a:0.5,b -n 7 --temp 0.5 --top-k 3 --seed 9 --stop x --stop y");
        let Named { id, request } = parse(r#"{"prompt": "p"}"#, 4, &defaults).expect("a request");
        assert_eq!(id, 4);
        assert_eq!(request.adapters, [("a".to_owned(), 0.5), ("b".to_owned(), 1.0)]);
        assert_eq!((request.max_tokens, request.stop.len()), (Some(7), 2));
        let s = &request.sampling;
        assert_eq!((s.temperature, s.top_k, s.top_p, s.min_p, s.seed), (0.5, 3, 1.0, 0.0, 9));

        let line = r#"{"id": "q", "tokens": [1, 2], "adapters": [["c", -1]], "max_tokens": 2, "temperature": 0,
            "top_k": 1, "top_p": 0.5, "min_p": 0.25, "seed": 1, "stop": []}"#;
        let Named { id, request } = parse(line, 4, &defaults).expect("a request");
        assert_eq!(id, "q");
        assert!(matches!(request.prompt, Prompt::Tokens(tokens) if tokens == [1, 2]));
        assert_eq!(request.adapters, [("c".to_owned(), -1.0)]);
        assert_eq!((request.max_tokens, request.stop.len()), (Some(2), 0));
        let s = &request.sampling;
        assert_eq!((s.temperature, s.top_k, s.top_p, s.min_p, s.seed), (0.0, 1, 0.5, 0.25, 1));
    }

    #[test]
    fn parts_are_read_in_order() {
        let line =
            r#"{"parts": [{"text": "a"}, {"virtual": "s", "first": 3}, {"tokens": [5]}, {"virtual": "t"}]}"#;
        let Prompt::Parts(parts) = parse(line, 1, &defaults("")).expect("a request").request.prompt else {
            panic!("parts");
        };
        use graftwork::Part as P;
        assert!(matches!(
            &parts[..],
            [P::Text(a), P::Virtual { adapter: s, first: Some(3) }, P::Tokens(b), P::Virtual { adapter: t, first: None }]
                if (&a[..], &s[..], &b[..], &t[..]) == ("a", "s", &[5], "t")
        ));
    }

    #[test]
    fn a_prompt_is_a_chat_if_the_command_line_says_so() {
        let roles = |options: &str| match parse(r#"{"prompt": "p"}"#, 1, &defaults(options))
            .expect("a request")
            .request
            .prompt
        {
            Prompt::Chat(chat) => chat.messages.len(),
            _ => 0,
        };
        assert_eq!([roles(""), roles("--chat"), roles("--system s")], [0, 1, 2]);
    }

    #[test]
    fn malformed_lines_say_what_is_wrong() {
        let one = "expected exactly one of `prompt`, `messages`, `tokens` and `parts`";
        for (line, message) in [
            ("hello", "expected a JSON object"),
            ("[1]", "expected a JSON object"),
            (r#"{"prompt": "a""#, "EOF while parsing an object (column 14)"),
            (r#"{"id": 1}"#, one),
            (r#"{"prompt": "a", "tokens": [1]}"#, one),
            (r#"{"prompt": 1}"#, "invalid type: integer `1`, expected a string (column 12)"),
            (r#"{"tokens": [-1]}"#, "invalid value: integer `-1`, expected u32 (column 14)"),
            (r#"{"tokens": [1], "parts": []}"#, one),
            (
                r#"{"parts": [{"text": "a", "first": 1}]}"#,
                "expected a part with `text`, `tokens`, or `virtual` and `first` (column 37)",
            ),
            (r#"{"prompt": "a", "tools": []}"#, "`tools` go with `messages`"),
        ] {
            assert_eq!(parse(line, 1, &defaults("")).map(|_| ()), Err(message.to_owned()), "{line}");
        }
        let unknown = parse(r#"{"prompt": "a", "temp": 1}"#, 1, &defaults("")).map(|_| ());
        assert!(unknown.is_err_and(|why| why.starts_with("unknown field `temp`, expected one of `id`, ")));
    }
}
