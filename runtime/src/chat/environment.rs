//! The Jinja environment of chat templates, as transformers sets it up.

use super::methods;
use super::python::{self, Json};
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};

/// How many steps a rendering may take; a message takes about a hundred. Each step can nest a value one deeper, and
/// dropping it recurses, see [`super::guard`].
pub(super) const FUEL: u64 = 500_000;

/// What `raise_exception` says, carried inside of an error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// An environment with everything but the time.
pub(super) fn new() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_fuel(Some(FUEL));
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_formatter(|out, _, value| out.write_str(&python::str(value)).map_err(Error::from));
    env.set_unknown_method_callback(methods::call);
    env.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        let raised = Raised(python::str(message));
        Err(Error::new(ErrorKind::InvalidOperation, raised.0.clone()).with_source(raised))
    });
    env.add_filter("tojson", to_json);
    env.add_filter("string", python::str);
    env.add_filter("join", join);
    env.add_filter("trim", |state: &State, value: &Value, chars: Option<&str>| {
        let text = Value::from(python::str(value));
        methods::call(state, &text, "strip", &[Value::from(chars)])
    });
    let is = |value: &Value, kinds: &[ValueKind]| kinds.contains(&value.kind());
    env.add_test("sequence", move |v: &Value| is(v, &[ValueKind::String, ValueKind::Seq, ValueKind::Map]));
    env.add_test("iterable", move |v: &Value| {
        is(v, &[ValueKind::String, ValueKind::Seq, ValueKind::Map, ValueKind::Iterable])
    });
    env
}

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, without HTML escapes.
fn to_json(value: &Value, positional: Rest<Value>, options: Kwargs) -> Result<String, Error> {
    let option = |at: usize, name: &str| -> Result<Option<Value>, Error> {
        let value = match positional.get(at) {
            Some(value) => Some(value.clone()),
            None => options.get::<Option<Value>>(name)?,
        };
        Ok(value.filter(|value| !value.is_none()))
    };
    let ensure_ascii = option(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = option(1, "indent")?.map(usize::try_from).transpose()?;
    let separators: Option<Vec<String>> = match option(2, "separators")? {
        Some(list) => Some(list.try_iter()?.map(|separator| python::str(&separator)).collect()),
        None => None,
    };
    let sort_keys = option(3, "sort_keys")?.is_some_and(|value| value.is_true());
    options.assert_all_used()?;
    if indent.is_some_and(|indent| indent > 64) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "tojson: expected an indent of at most 64, found more",
        ));
    }
    let default = [if indent.is_some() { "," } else { ", " }, ": "].map(str::to_owned);
    let [item_separator, key_separator] = match separators.map(<[String; 2]>::try_from) {
        None => default,
        Some(Ok(pair)) => pair,
        Some(Err(list)) => {
            let message = format!("tojson: expected 2 separators, found {}", list.len());
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    };
    Json { ensure_ascii, indent, item_separator, key_separator, sort_keys }.dump(value)
}

/// `join(separator='', attribute=None)`, of values as Python writes them.
fn join(values: &Value, separator: Option<&str>, options: Kwargs) -> Result<String, Error> {
    let attribute = options.get::<Option<Value>>("attribute")?;
    options.assert_all_used()?;
    let mut texts = Vec::new();
    for value in values.try_iter()? {
        texts.push(match &attribute {
            Some(key) => python::str(&value.get_item(key)?),
            None => python::str(&value),
        });
    }
    Ok(texts.join(separator.unwrap_or_default()))
}

/// Turns `{% generation %}` blocks, which mark the assistant's tokens for training, into blocks without a meaning.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        let inner = tag.trim_start_matches(['-', '+']).trim_start();
        let word: String = inner.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let after = &inner[word.len()..];
        let closes = after.trim_start().trim_start_matches(['-', '+']).starts_with("%}");
        let replacement = match word.as_str() {
            "generation" if closes => "if true",
            "endgeneration" if closes => "endif",
            _ => {
                rest = tag;
                continue;
            }
        };
        out.push_str(&tag[..tag.len() - inner.len()]);
        out.push_str(replacement);
        rest = after;
    }
    out.push_str(rest);
    out
}
