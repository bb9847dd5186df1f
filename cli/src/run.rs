//! `run`: answers one prompt, a file of requests in one batch, or what is typed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::time::Instant;

use graftwork::chat::Message;
use graftwork::{Engine, EngineOptions, Event, Prompt, Request};

use crate::arguments::{Run, Weighted};
use crate::requests::{self, Answer, Named};
use crate::{Failure, open};

/// Runs the command.
pub fn run(arguments: &Run) -> Result<(), Failure> {
    let requests = match &arguments.file {
        Some(path) => read_requests(&path.to_string_lossy(), arguments)?,
        None => Vec::new(),
    };
    let options = EngineOptions {
        threads: arguments.threads,
        max_batch: arguments.batch,
        ..EngineOptions::default()
    };
    let engine = open::engine(&arguments.model, options)?;
    for adapter in &arguments.adapters {
        engine.load_adapter(&adapter.name, adapter.path.as_path())?;
    }
    if arguments.file.is_some() {
        return batch(&engine, requests, arguments.json);
    }
    if let Some(prompt) = &arguments.prompt {
        let prompt = requests::from_text(prompt.clone(), arguments);
        return answer(&engine, requests::from_defaults(prompt, arguments), arguments.json).map(|_| ());
    }
    interactive(&engine, arguments)
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
    let mut out = stdout().lock();
    let mut print = |line: String| writeln!(out, "{line}").map_err(Failure::io("stdout"));
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
    eprintln!("{count} requests, {tokens} tokens in {seconds:.2} s, {:.1} tokens/s", tokens as f64 / seconds);
    match failed {
        0 => Ok(()),
        _ => Err(Failure::Other(format!("{failed} of {count} requests failed"))),
    }
}

/// What stands where an answer would.
fn refusal(id: &serde_json::Value, why: &str, json: bool) -> String {
    if json { serde_json::json!({"id": id, "error": why}).to_string() } else { format!("{id}: failed: {why}") }
}

/// Answers one request, streaming its text; gives the text.
fn answer(engine: &Engine, request: Request, json: bool) -> Result<String, Failure> {
    let start = Instant::now();
    let mut first = None;
    let mut answer = Answer { id: 1.into(), ..Answer::default() };
    let mut out = stdout().lock();
    for event in engine.generate(request)? {
        let event = event?;
        answer.text.push_str(event.text());
        if !json {
            out.write_all(event.text().as_bytes()).and_then(|()| out.flush()).map_err(Failure::io("stdout"))?;
        }
        match event {
            Event::Token { token, .. } => {
                first.get_or_insert_with(Instant::now);
                answer.tokens.push(token);
            }
            Event::Finished { reason, .. } => {
                let line = if json { answer.json(reason.name()).to_string() } else { String::new() };
                writeln!(out, "{line}").map_err(Failure::io("stdout"))?;
            }
            Event::Failed { error, .. } => return Err(Failure::Other(error.to_string())),
        }
    }
    if let Some(first) = first {
        let decoded = answer.tokens.len() - 1;
        let speed = decoded as f64 / first.elapsed().as_secs_f64().max(1e-9);
        let wait = (first - start).as_secs_f64() * 1e3;
        eprintln!("{} tokens, first after {wait:.0} ms, then {speed:.1} tokens/s", answer.tokens.len());
    }
    Ok(answer.text)
}

const HELP: &str = "/use NAME[:WEIGHT],...  answer with these adapters (none: the base)
/load NAME=PATH         load an adapter
/unload NAME            unload one
/adapters               list them
/reset                  forget the conversation
/quit                   end";

/// Answers what is typed. In a chat the conversation goes on from line to line.
fn interactive(engine: &Engine, arguments: &Run) -> Result<(), Failure> {
    eprintln!("/help for commands, end of input to quit");
    let chat = arguments.chat || arguments.system.is_some();
    let mut stack = arguments.stack.clone();
    let mut history: Vec<Message> = Vec::new();
    loop {
        eprint!("> ");
        let mut line = String::new();
        if stdin().lock().read_line(&mut line).map_err(Failure::io("stdin"))? == 0 {
            return Ok(());
        }
        let line = line.trim();
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let done = match command {
            "" => Ok(()),
            "/quit" => return Ok(()),
            "/help" => {
                eprintln!("{HELP}");
                Ok(())
            }
            "/reset" => {
                history.clear();
                Ok(())
            }
            "/adapters" => {
                engine.adapters().iter().for_each(|adapter| eprintln!("{}", adapter.name));
                Ok(())
            }
            "/use" => change_stack(engine, rest, &mut stack),
            "/load" => load(engine, rest),
            "/unload" => engine.unload_adapter(rest.trim()).map(|_| ()).map_err(Failure::from),
            _ => {
                let prompt = if chat {
                    if history.is_empty() {
                        history = requests::messages(arguments, line.to_owned());
                    } else {
                        history.push(Message::new("user", line));
                    }
                    history.clone().into()
                } else {
                    Prompt::Text(line.to_owned())
                };
                let mut request = requests::from_defaults(prompt, arguments);
                request.adapters = stack.iter().map(|a| (a.name.clone(), a.weight)).collect();
                let text = answer(engine, request, arguments.json);
                text.map(|text| history.push(Message::new("assistant", text)))
            }
        };
        if let Err(failure) = done {
            eprintln!("{failure}");
        }
    }
}

fn change_stack(engine: &Engine, names: &str, stack: &mut Vec<Weighted>) -> Result<(), Failure> {
    let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
    let new: Vec<Weighted> = names.map(str::parse).collect::<Result<_, _>>().map_err(Failure::Other)?;
    let loaded = engine.adapters();
    for adapter in &new {
        if !loaded.iter().any(|known| known.name == adapter.name) {
            return Err(Failure::Other(format!("no adapter named \"{}\" is loaded", adapter.name)));
        }
    }
    *stack = new;
    Ok(())
}

fn load(engine: &Engine, named: &str) -> Result<(), Failure> {
    let named: crate::arguments::NamedPath = named.trim().parse().map_err(Failure::Other)?;
    if engine.adapters().iter().any(|known| known.name == named.name) {
        engine.replace_adapter(&named.name, named.path.as_path(), None)?;
    } else {
        engine.load_adapter(&named.name, named.path.as_path())?;
    }
    Ok(())
}
