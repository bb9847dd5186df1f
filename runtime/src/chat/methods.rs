//! The methods of Python's strings, dictionaries and lists that templates call.

use super::python;
use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{Error, ErrorKind, FormatStyle, State, Value, format_filter};

/// Calls a method of a value by name.
pub(super) fn call(_: &State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => of_string(value.as_str().unwrap_or_default(), method, args),
        ValueKind::Map => of_map(value, method, args),
        ValueKind::Seq => of_list(value, method, args),
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

/// What Python's `str.isspace` and `str.strip` take for white space.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Whether there is a character, and the test holds for all.
fn all(text: &str, test: impl Fn(char) -> bool) -> Value {
    Value::from(!text.is_empty() && text.chars().all(test))
}

/// Whether there is a cased character, and none of the other case.
fn cased(text: &str, this: impl Fn(char) -> bool, other: impl Fn(char) -> bool) -> Value {
    Value::from(text.chars().any(this) && !text.chars().any(other))
}

fn of_string(s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let none = || from_args::<()>(args);
    Ok(match method {
        "upper" => none().map(|()| Value::from(s.to_uppercase()))?,
        "lower" => none().map(|()| Value::from(s.to_lowercase()))?,
        "title" => none().map(|()| Value::from(title(s)))?,
        "capitalize" => none().map(|()| Value::from(capitalize(s)))?,
        "isspace" => none().map(|()| all(s, is_space))?,
        "isdigit" | "isdecimal" | "isnumeric" => none().map(|()| all(s, char::is_numeric))?,
        "isalpha" => none().map(|()| all(s, char::is_alphabetic))?,
        "isalnum" => none().map(|()| all(s, char::is_alphanumeric))?,
        "isascii" => none().map(|()| Value::from(s.is_ascii()))?,
        "islower" => none().map(|()| cased(s, char::is_lowercase, char::is_uppercase))?,
        "isupper" => none().map(|()| cased(s, char::is_uppercase, char::is_lowercase))?,
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            let strip = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
            Value::from(match method {
                "lstrip" => s.trim_start_matches(strip),
                "rstrip" => s.trim_end_matches(strip),
                _ => s.trim_matches(strip),
            })
        }
        "startswith" | "endswith" => {
            let (affix,): (&Value,) = from_args(args)?;
            let affixes: Vec<Value> = match affix.kind() {
                ValueKind::String => vec![affix.clone()],
                _ => affix.try_iter()?.collect(),
            };
            Value::from(affixes.iter().filter_map(Value::as_str).any(|affix| match method {
                "startswith" => s.starts_with(affix),
                _ => s.ends_with(affix),
            }))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(s.strip_prefix(prefix).unwrap_or(s))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(s.strip_suffix(suffix).unwrap_or(s))
        }
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            let count = count.and_then(|count| usize::try_from(count).ok());
            Value::from(count.map_or_else(|| s.replace(old, new), |count| s.replacen(old, new, count)))
        }
        "split" | "rsplit" => split(s, method == "rsplit", args)?,
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            split_lines(s, keep.unwrap_or(false)).into_iter().collect()
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let found =
                if method == "partition" { s.split_once(separator) } else { s.rsplit_once(separator) };
            let parts = match found {
                Some((before, after)) => [before, separator, after],
                None if method == "partition" => [s, "", ""],
                None => ["", "", s],
            };
            parts.into_iter().collect()
        }
        "count" => {
            let (what,): (&str,) = from_args(args)?;
            Value::from(s.matches(what).count())
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let found = if method.starts_with('r') { s.rfind(what) } else { s.find(what) };
            match found {
                Some(at) => Value::from(s[..at].chars().count()),
                None if method.ends_with("find") => Value::from(-1),
                None => return Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
            }
        }
        "join" => {
            let (values,): (&Value,) = from_args(args)?;
            let texts: Vec<String> = values.try_iter()?.map(|value| python::str(&value)).collect();
            Value::from(texts.join(s))
        }
        "format" => Value::from(format_filter(FormatStyle::StrFormat, s, args)?),
        _ => return Err(ErrorKind::UnknownMethod.into()),
    })
}

/// `split(sep=None, maxsplit=-1)`, from either end.
fn split(s: &str, from_end: bool, args: &[Value]) -> Result<Value, Error> {
    let (positional, options): (Rest<Value>, Kwargs) = from_args(args)?;
    let option = |at: usize, name: &str| -> Result<Option<Value>, Error> {
        let value = match positional.get(at) {
            Some(value) => Some(value.clone()),
            None => options.get::<Option<Value>>(name)?,
        };
        Ok(value.filter(|value| !value.is_none()))
    };
    let separator = option(0, "sep")?;
    let most = option(1, "maxsplit")?.map(i64::try_from).transpose()?;
    options.assert_all_used()?;
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX - 1) + 1;
    let mut parts: Vec<&str> = match separator.as_ref().map(|value| value.as_str().unwrap_or_default()) {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        Some(separator) if from_end => s.rsplitn(most, separator).collect(),
        Some(separator) => s.splitn(most, separator).collect(),
        None => words(s, most, from_end),
    };
    if from_end {
        parts.reverse();
    }
    Ok(parts.into_iter().collect())
}

/// At most so many parts between runs of white space, the last one with all that is left.
fn words(s: &str, most: usize, from_end: bool) -> Vec<&str> {
    let mut rest = s.trim_matches(is_space);
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let cut = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = cut.filter(|_| parts.len() + 1 < most) else {
            parts.push(rest);
            break;
        };
        let after = at + rest[at..].chars().next().map_or(0, char::len_utf8);
        if from_end {
            parts.push(&rest[after..]);
            rest = rest[..at].trim_end_matches(is_space);
        } else {
            parts.push(&rest[..at]);
            rest = rest[after..].trim_start_matches(is_space);
        }
    }
    parts
}

/// The lines, by all the line ends that Python knows.
fn split_lines(s: &str, keep: bool) -> Vec<&str> {
    let is_end = |c: char| {
        matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut lines = Vec::new();
    let mut rest = s;
    while !rest.is_empty() {
        let Some(at) = rest.find(is_end) else {
            lines.push(rest);
            break;
        };
        let length = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(1, char::len_utf8)
        };
        lines.push(&rest[..if keep { at + length } else { at }]);
        rest = &rest[at + length..];
    }
    lines
}

/// Every run of letters starts with a capital.
fn title(s: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}

/// The first character a capital, the others small.
fn capitalize(s: &str) -> String {
    let mut chars = s.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().collect::<String>() + &chars.as_str().to_lowercase()
    })
}

fn of_map(map: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let pairs = || -> Result<Vec<(Value, Value)>, Error> {
        from_args::<()>(args)?;
        map.try_iter()?.map(|key| map.get_item(&key).map(|item| (key, item))).collect()
    };
    Ok(match method {
        "keys" => pairs()?.into_iter().map(|(key, _)| key).collect(),
        "values" => pairs()?.into_iter().map(|(_, item)| item).collect(),
        "items" => pairs()?.into_iter().map(|(key, item)| Value::from(vec![key, item])).collect(),
        "get" => {
            let (key, default): (&Value, Option<Value>) = from_args(args)?;
            let found = map.get_item(key).ok().filter(|item| !item.is_undefined());
            found.or(default).unwrap_or_else(|| Value::from(()))
        }
        _ => return Err(ErrorKind::UnknownMethod.into()),
    })
}

fn of_list(list: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (what,): (&Value,) = match method {
        "count" | "index" => from_args(args)?,
        _ => return Err(ErrorKind::UnknownMethod.into()),
    };
    let mut items = list.try_iter()?;
    match method {
        "count" => Ok(Value::from(items.filter(|item| item == what).count())),
        _ => match items.position(|item| item == *what) {
            Some(at) => Ok(Value::from(at)),
            None => Err(Error::new(ErrorKind::InvalidOperation, "value is not in the list")),
        },
    }
}
