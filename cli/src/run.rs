//! `run`: answers one prompt, a file of requests in one batch, or what is typed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, stdin};
use std::ops::ControlFlow;
use std::time::Instant;

use graftwork::chat::Message;
use graftwork::{Engine, EngineOptions, Event, Prompt, Request};

use crate::arguments::{NamedPath, Run, Weighted};
use crate::requests::{self, Answer, Named};
use crate::{Failure, open, output};

/// Runs the command.
pub fn run(arguments: &Run) -> Result<(), Failure> {
    let requests = match &arguments.file {
        Some(path) => read_requests(&path.to_string_lossy(), arguments)?,
        None => Vec::new(),
    };
    let options = EngineOptions {
        threads: arguments.threads,
        kv_format: arguments.cache_type,
        max_batch: arguments.batch,
        ..EngineOptions::default()
    };
    let engine = open::engine(&arguments.model, options)?;
    for adapter in &arguments.adapters {
        open::adapter(&engine, &adapter.name, &adapter.path)?;
    }
    if arguments.file.is_some() {
        return batch(&engine, requests, arguments.json);
    }
    if let Some(prompt) = &arguments.prompt {
        let prompt = requests::from_text(prompt.clone(), arguments);
        return answer(&engine, requests::from_defaults(prompt, arguments), arguments.json).map(drop);
    }
    Conversation { engine: &engine, arguments, stack: arguments.stack.clone(), history: Vec::new() }.run()
}

fn read_requests(path: &str, arguments: &Run) -> Result<Vec<Named>, Failure> {
    let input: Box<dyn BufRead> = match path {
        "-" => Box::new(stdin().lock()),
        path => Box::new(BufReader::new(File::open(path).map_err(Failure::io(path))?)),
    };
    let mut requests = Vec::new();
    for (index, line) in input.lines().enumerate() {
        let line = line.map_err(Failure::io(path))?;
        if line.trim().is_empty() {
            continue;
        }
        let request = requests::parse(&line, index + 1, arguments);
        requests.push(request.map_err(|why| Failure::Other(format!("{path}:{}: {why}", index + 1)))?);
    }
    Ok(requests)
}

/// Answers all requests in one continuously refilled batch, and prints each answer as it ends.
fn batch(engine: &Engine, requests: Vec<Named>, json: bool) -> Result<(), Failure> {
    let start = Instant::now();
    let (count, mut tokens, mut failed) = (requests.len(), 0, 0);
    let mut answers = HashMap::new();
    let print = |line: String| output::result(&format!("{line}\n"));
    for Named { id, request } in requests {
        match engine.submit(request) {
            Ok(number) => {
                answers.insert(number, Answer { id, ..Answer::default() });
            }
            // The others are answered all the same.
            Err(error) => {
                failed += 1;
                print(refusal(&id, &error.to_string(), json))?;
            }
        }
    }
    while !answers.is_empty() {
        for event in engine.step()? {
            let Some(answer) = answers.get_mut(&event.id()) else { continue };
            answer.text.push_str(event.text());
            match event {
                Event::Token { token, .. } => answer.tokens.push(token),
                Event::Finished { id, reason, .. } => {
                    tokens += answer.tokens.len();
                    let text = format!("{}: {}", answer.id, answer.text);
                    print(if json { answer.json(reason.name()).to_string() } else { text })?;
                    answers.remove(&id);
                }
                Event::Failed { id, error } => {
                    failed += 1;
                    print(refusal(&answer.id, &error.to_string(), json))?;
                    answers.remove(&id);
                }
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let speed = tokens as f64 / seconds.max(1e-9);
    output::note(&format!("{count} requests, {tokens} tokens in {seconds:.2} s, {speed:.1} tokens/s"));
    match failed {
        0 => Ok(()),
        _ => Err(Failure::Other(format!("{failed} of {count} requests failed"))),
    }
}

/// What stands where an answer would.
fn refusal(id: &serde_json::Value, why: &str, json: bool) -> String {
    if json {
        serde_json::json!({"id": id, "error": why}).to_string()
    } else {
        format!("{id}: failed: {why}")
    }
}

/// Answers one request, streaming its text; gives the text.
fn answer(engine: &Engine, request: Request, json: bool) -> Result<String, Failure> {
    let start = Instant::now();
    let mut first = None;
    let mut answer = Answer { id: 1.into(), ..Answer::default() };
    for event in engine.generate(request)? {
        let event = event?;
        answer.text.push_str(event.text());
        if !json {
            output::result(event.text())?;
        }
        match event {
            Event::Token { token, .. } => {
                first.get_or_insert_with(Instant::now);
                answer.tokens.push(token);
            }
            Event::Finished { reason, .. } => {
                let line = if json { answer.json(reason.name()).to_string() } else { String::new() };
                output::result(&format!("{line}\n"))?;
            }
            Event::Failed { error, .. } => return Err(Failure::Other(error.to_string())),
        }
    }
    if let Some(first) = first {
        let (count, wait) = (answer.tokens.len(), (first - start).as_secs_f64() * 1e3);
        let speed = (count - 1) as f64 / first.elapsed().as_secs_f64().max(1e-9);
        let then = if count > 1 { format!(", then {speed:.1} tokens/s") } else { String::new() };
        output::note(&format!("{count} tokens, first after {wait:.0} ms{then}"));
    }
    Ok(answer.text)
}

const HELP: &str = "/use NAME[:WEIGHT],...  answer with these adapters (none: the base)
/load NAME=PATH         load an adapter, in place of the one of that name
/unload NAME            unload one
/adapters               list them
/reset                  forget the conversation
/quit                   end";

/// What is typed and answered. In a chat each answer knows what was said before.
struct Conversation<'a> {
    engine: &'a Engine,
    arguments: &'a Run,
    stack: Vec<Weighted>,
    history: Vec<Message>,
}

impl Conversation<'_> {
    /// Goes on to the end of the input. What fails is told, and the conversation goes on.
    fn run(mut self) -> Result<(), Failure> {
        output::note("/help for commands, end of input to quit");
        let mut line = String::new();
        loop {
            if stdin().is_terminal() {
                output::ask("> ");
            }
            line.clear();
            if stdin().lock().read_line(&mut line).map_err(Failure::io("stdin"))? == 0 {
                return Ok(());
            }
            match self.line(line.trim()) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return Ok(()),
                Err(failure @ Failure::Io { .. }) => return Err(failure),
                Err(failure) => output::note(&failure.line()),
            }
        }
    }

    fn line(&mut self, line: &str) -> Result<ControlFlow<()>, Failure> {
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match command {
            "" => {}
            "/quit" => return Ok(ControlFlow::Break(())),
            "/help" => output::note(HELP),
            "/reset" => self.history.clear(),
            "/adapters" => {
                for adapter in self.engine.adapters() {
                    output::note(&adapter.name);
                }
            }
            "/use" => self.choose(rest)?,
            "/load" => load(self.engine, rest)?,
            "/unload" => self.engine.unload_adapter(rest).map(drop)?,
            _ if command.starts_with('/') => {
                return Err(Failure::Other(format!("{command}: no such command; /help lists them")));
            }
            _ => self.answer(line)?,
        }
        Ok(ControlFlow::Continue(()))
    }

    fn answer(&mut self, line: &str) -> Result<(), Failure> {
        let mut prompt = requests::from_text(line.to_owned(), self.arguments);
        if let Prompt::Chat(chat) = &mut prompt
            && !self.history.is_empty()
        {
            chat.messages = self.history.clone();
            chat.messages.push(Message::new("user", line));
        }
        let said = match &prompt {
            Prompt::Chat(chat) => chat.messages.clone(),
            _ => Vec::new(),
        };
        let mut request = requests::from_defaults(prompt, self.arguments);
        request.adapters = self.stack.iter().map(|a| (a.name.clone(), a.weight)).collect();
        // What was not answered was not said.
        let text = answer(self.engine, request, self.arguments.json)?;
        self.history = said;
        self.history.push(Message::new("assistant", text));
        Ok(())
    }

    fn choose(&mut self, names: &str) -> Result<(), Failure> {
        let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
        let stack: Vec<Weighted> = names.map(str::parse).collect::<Result<_, _>>().map_err(Failure::Other)?;
        let loaded = self.engine.adapters();
        for Weighted { name, .. } in &stack {
            if !loaded.iter().any(|known| known.name == *name) {
                return Err(graftwork::Error::NoAdapter { name: name.clone() }.into());
            }
        }
        self.stack = stack;
        Ok(())
    }
}

fn load(engine: &Engine, named: &str) -> Result<(), Failure> {
    let NamedPath { name, path } = named.parse().map_err(Failure::Other)?;
    if engine.adapters().iter().any(|known| known.name == name) {
        engine.replace_adapter(&name, path.as_path(), None)?;
    } else {
        open::adapter(engine, &name, &path)?;
    }
    Ok(())
}
