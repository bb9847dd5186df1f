//! Conversations to prompts, by the model's own Jinja template.
//!
//! A template is rendered as transformers renders it: `trim_blocks` and `lstrip_blocks`, `tojson` with Python's JSON,
//! Python's string and dictionary methods, `raise_exception`, `strftime_now`, `break` and `continue`, dictionaries in
//! the order in which they were written, `None` and `True` spelled as Python does. Templates come in files that
//! nobody has read, so each rendering may take a limited number of steps, on a stack of its own. What is not limited is
//! memory: a template can double a string in every step.
//!
//! Known differences: `~` and `in` spell `None`, `True` and dictionaries as minijinja does; the time is UTC.
//!
//! # What users say stays text
//! The strings of a conversation are carried through the template between two private marks (see [`Rendered`]), so that
//! [`Tokenizer::encode_rendered`](crate::tokenize::Tokenizer::encode_rendered) recognises special tokens in the
//! template's own text alone.
//!
//! ```
//! use graftwork::chat::{ChatInput, ChatTemplate, Message};
//!
//! let source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>\n{% endfor %}\
//!               {% if add_generation_prompt %}<|assistant|>{% endif %}";
//! let template = ChatTemplate::new(source, None, None)?;
//! let input = ChatInput::new(vec![Message::new("user", " Hi <|end|> ")]);
//! let rendered = template.render(&input)?;
//! assert_eq!(rendered.text(), "<|user|>Hi <|end|><|end|>\n<|assistant|>");
//! assert_eq!(&rendered.text()[rendered.user_spans()[0].clone()], "Hi <|end|>");
//! # Ok::<(), graftwork::chat::Error>(())
//! ```

mod clock;
mod environment;
mod guard;
mod mark;
mod methods;
mod python;

use environment::Raised;
use mark::Marks;
use minijinja::{Environment, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::ops::Range;
use std::time::SystemTime;

/// Why a conversation could not be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The template is not valid Jinja.
    #[error("chat template: expected valid Jinja, found: {found}")]
    Syntax {
        /// What is wrong and where.
        found: String,
    },
    /// The template itself refused the conversation.
    #[error("chat template refused the conversation: {message}")]
    Refused {
        /// What it says.
        message: String,
    },
    /// The source is longer than any template has a reason to be.
    #[error("chat template: expected at most {limit} bytes, found {found}")]
    TooLarge {
        /// How long it may be.
        limit: usize,
        /// How long it is.
        found: usize,
    },
    /// The template takes too many steps.
    #[error("chat template: expected at most {limit} steps, found more")]
    TooLong {
        /// How many it may take.
        limit: u64,
    },
    /// A conversation in JSON is not what it should be.
    #[error("chat: expected an object with a list of messages, found: {found}")]
    Json {
        /// What is wrong and where.
        found: String,
    },
    /// The thread that templates are rendered in could not be started.
    #[error("chat template: no thread to render in: {found}")]
    Thread {
        /// What kind of failure it was.
        kind: std::io::ErrorKind,
        /// What the system says.
        found: String,
    },
    /// The template does something that is not possible.
    #[error("chat template: cannot be rendered: {found}")]
    Render {
        /// What is wrong and where.
        found: String,
    },
}

/// One message of a conversation: a JSON object with `role`, `content` and whatever else the template knows, such as
/// `tool_calls`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Message(pub Map<String, Value>);

impl Message {
    /// A message of plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let text = |text: String| Value::String(text);
        Self(Map::from_iter([("role".into(), text(role.into())), ("content".into(), text(content.into()))]))
    }
}

/// What a template is rendered from.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatInput {
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// The tools that may be called, as JSON schemas; none is not the same as an empty list.
    pub tools: Option<Vec<Value>>,
    /// Documents to answer from, for templates that know them.
    pub documents: Option<Vec<Value>>,
    /// Whether the prompt ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Further variables, such as `enable_thinking`.
    pub variables: Map<String, Value>,
    /// What `strftime_now` takes for now.
    pub now: SystemTime,
}

impl ChatInput {
    /// A conversation to be answered now, without tools.
    pub fn new(messages: Vec<Message>) -> Self {
        Self {
            messages,
            tools: None,
            documents: None,
            add_generation_prompt: true,
            variables: Map::new(),
            now: SystemTime::now(),
        }
    }

    /// A conversation as a JSON object: `messages`, and if wanted `tools`, `documents`, `add_generation_prompt`; whatever else it
    /// holds becomes a variable of the template.
    ///
    /// # Errors
    /// [`Error::Json`].
    pub fn from_json(json: &str) -> Result<Self, Error> {
        let wrong = |found: String| Error::Json { found };
        let mut all: Map<String, Value> = serde_json::from_str(json).map_err(|e| wrong(e.to_string()))?;
        let mut take = |key: &str| all.shift_remove(key).filter(|value| !value.is_null());
        let of_key = |key: &str, e: serde_json::Error| wrong(format!("{key}: {e}"));
        let messages = take("messages").ok_or_else(|| wrong("an object without messages".to_owned()))?;
        let mut input = Self::new(serde_json::from_value(messages).map_err(|e| of_key("messages", e))?);
        for (key, list) in [("tools", &mut input.tools), ("documents", &mut input.documents)] {
            if let Some(value) = take(key) {
                *list = Some(serde_json::from_value(value).map_err(|e| of_key(key, e))?);
            }
        }
        let key = "add_generation_prompt";
        if let Some(value) = take(key) {
            input.add_generation_prompt = serde_json::from_value(value).map_err(|e| of_key(key, e))?;
        }
        input.variables = all;
        Ok(input)
    }

    /// The variables of the template, in the order in which transformers passes them.
    fn context(&self, template: &ChatTemplate) -> Value {
        let mut context = Map::new();
        context.insert("messages".into(), json!(self.messages));
        context.insert("tools".into(), json!(self.tools));
        context.insert("documents".into(), json!(self.documents));
        context.insert("add_generation_prompt".into(), json!(self.add_generation_prompt));
        for (name, token) in [("bos_token", &template.bos), ("eos_token", &template.eos)] {
            if let Some(token) = token {
                context.insert(name.into(), json!(token));
            }
        }
        context.extend(self.variables.clone());
        Value::Object(context)
    }
}

/// A rendered conversation: the text, and which of its spans come from the conversation's strings.
///
/// To find the spans, the conversation is rendered a second time with two private-use characters around every string,
/// characters that occur nowhere in it; white space at either end of a string stays outside, for templates trim it. If
/// that rendering without the marks is not the plain one, the template takes strings apart in a way that marks cannot
/// follow. Then there are no spans, and a conversation with the text of special tokens in it is refused when it is
/// encoded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    text: String,
    user: Vec<Range<usize>>,
    unmarked: Vec<String>,
}

impl Rendered {
    /// The prompt, as transformers renders it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The spans of the text that come from the conversation's strings, in order.
    pub fn user_spans(&self) -> &[Range<usize>] {
        &self.user
    }

    /// Strings of the conversation that may be anywhere in the text: names, roles, keys, settings.
    pub(crate) fn unmarked(&self) -> &[String] {
        &self.unmarked
    }
}

/// A model's chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    bos: Option<String>,
    eos: Option<String>,
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// A template from its Jinja source; `bos` and `eos` are the texts of the model's tokens, as templates use them.
    ///
    /// # Errors
    /// [`Error::Syntax`], with the line.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self, Error> {
        let (limit, found) = (guard::MAX_SOURCE, source.len());
        if found > limit {
            return Err(Error::TooLarge { limit, found });
        }
        let source = environment::without_generation_tags(source);
        let environment = environment::new();
        guard::on_own_stack(|| {
            let compiled = environment.template_from_named_str("chat_template", &source);
            compiled.map(drop).map_err(|error| Error::Syntax { found: error.to_string() })
        })?;
        Ok(Self { source, bos: bos.map(str::to_owned), eos: eos.map(str::to_owned), environment })
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// What the template raises, and what in it cannot be done or takes too long.
    pub fn render(&self, input: &ChatInput) -> Result<Rendered, Error> {
        guard::on_own_stack(|| self.render_twice(input))
    }

    fn render_twice(&self, input: &ChatInput) -> Result<Rendered, Error> {
        let plain = input.context(self);
        let text = self.render_context(&plain, input.now)?;
        let Some(marks) = Marks::unused_in([self.source.as_str(), &plain.to_string()]) else {
            // Every private-use character occurs: nothing can be told apart.
            let unmarked = vec![text.clone()];
            return Ok(Rendered { text, user: Vec::new(), unmarked });
        };
        let (marked, strings) = marks.mark(input.clone());
        let spans = (self.render_context(&marked.context(self), input.now).ok())
            .and_then(|with_marks| marks.spans(&with_marks))
            .filter(|(without_marks, _)| *without_marks == text);
        Ok(match spans {
            Some((_, user)) => Rendered { text, user, unmarked: strings.unmarked },
            None => Rendered { text, user: Vec::new(), unmarked: strings.all() },
        })
    }

    fn render_context(&self, context: &Value, now: SystemTime) -> Result<String, Error> {
        let mut environment = self.environment.clone();
        environment.add_function("strftime_now", move |format: &str| clock::format(now, format));
        let template = environment
            .template_from_named_str("chat_template", &self.source)
            .map_err(|error| Error::Syntax { found: error.to_string() })?;
        template.render(context).map_err(|error| {
            let mut source: Option<&dyn std::error::Error> = Some(&error);
            while let Some(inner) = source {
                if let Some(Raised(message)) = inner.downcast_ref() {
                    return Error::Refused { message: message.clone() };
                }
                source = inner.source();
            }
            match error.kind() {
                ErrorKind::OutOfFuel => Error::TooLong { limit: environment::FUEL },
                _ => Error::Render { found: error.to_string() },
            }
        })
    }
}
