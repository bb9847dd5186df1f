//! Marks that follow the strings of a conversation through a template.

use super::ChatInput;
use serde_json::{Map, Value};
use std::ops::Range;

/// Keys whose strings are text, and marked. Other strings (names, types, ids) are compared by templates, so they are
/// left as they are.
const TEXT: [&str; 6] = ["content", "text", "reasoning_content", "reasoning", "thinking", "description"];
/// The key whose strings are text at every depth: the arguments of a tool call.
const ARGUMENTS: &str = "arguments";
/// The roles that templates themselves write.
const ROLES: [&str; 7] = ["system", "user", "assistant", "tool", "developer", "ipython", "function"];

/// Two characters that do not occur otherwise.
pub(super) struct Marks {
    start: char,
    end: char,
}

/// The strings of a conversation.
#[derive(Default)]
pub(super) struct Strings {
    marked: Vec<String>,
    pub(super) unmarked: Vec<String>,
}

impl Strings {
    /// All of them.
    pub(super) fn all(self) -> Vec<String> {
        let mut all = self.unmarked;
        all.extend(self.marked);
        all
    }
}

impl Marks {
    /// Two private-use characters that are in none of the texts; none if the texts hold all of them.
    pub(super) fn unused_in(texts: [&str; 2]) -> Option<Self> {
        let mut unused =
            ('\u{100000}'..='\u{10fffd}').filter(|&c| !texts.iter().any(|text| text.contains(c)));
        Some(Self { start: unused.next()?, end: unused.next()? })
    }

    /// The conversation with marks around its text, and its strings.
    pub(super) fn mark(&self, mut input: ChatInput) -> (ChatInput, Strings) {
        let mut strings = Strings::default();
        for message in &mut input.messages {
            self.mark_map(&mut message.0, "", &mut strings);
        }
        for value in input.tools.iter_mut().chain(&mut input.documents).flatten() {
            self.mark_value(value, "", &mut strings);
        }
        for (key, value) in &mut input.variables {
            strings.unmarked.push(key.clone());
            self.mark_value(value, key, &mut strings);
        }
        (input, strings)
    }

    fn mark_map(&self, map: &mut Map<String, Value>, key: &str, strings: &mut Strings) {
        for (inner, value) in map {
            strings.unmarked.push(inner.clone());
            self.mark_value(value, if key == ARGUMENTS { ARGUMENTS } else { inner }, strings);
        }
    }

    fn mark_value(&self, value: &mut Value, key: &str, strings: &mut Strings) {
        match value {
            Value::String(text) if TEXT.contains(&key) || key == ARGUMENTS => {
                strings.marked.push(text.clone());
                self.mark_text(text);
            }
            Value::String(text) if key == "role" && ROLES.contains(&text.as_str()) => {}
            Value::String(text) => strings.unmarked.push(text.clone()),
            Value::Array(values) => values.iter_mut().for_each(|value| self.mark_value(value, key, strings)),
            Value::Object(map) => self.mark_map(map, key, strings),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Puts the marks inside of the white space at either end; an empty text stays empty, for templates ask.
    fn mark_text(&self, text: &mut String) {
        let core = text.trim();
        if core.is_empty() {
            return;
        }
        let start = text.len() - text.trim_start().len();
        let end = start + core.len();
        text.insert(end, self.end);
        text.insert(start, self.start);
    }

    /// A text without its marks, and the spans that were between them; none if they do not come in pairs.
    pub(super) fn spans(&self, text: &str) -> Option<(String, Vec<Range<usize>>)> {
        let mut plain = String::with_capacity(text.len());
        let mut spans: Vec<Range<usize>> = Vec::new();
        let mut open = None;
        for c in text.chars() {
            if c == self.start {
                if open.replace(plain.len()).is_some() {
                    return None;
                }
            } else if c == self.end {
                let span = open.take()?..plain.len();
                match spans.last_mut() {
                    Some(last) if last.end == span.start => last.end = span.end,
                    _ => spans.push(span),
                }
            } else {
                plain.push(c);
            }
        }
        open.is_none().then_some((plain, spans))
    }
}
