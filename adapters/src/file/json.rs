//! JSON from files: like `serde_json::Value`, but a key that occurs twice is an error.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::Error;

/// Parses JSON text of at most `limit` bytes: a value in memory takes many times its text.
pub(crate) fn parse(bytes: &[u8], limit: usize) -> Result<Value, Error> {
    if bytes.len() > limit {
        let what = "bytes of JSON".to_owned();
        return Err(Error::TooMany { what, limit: limit as u64, found: bytes.len() as u64 });
    }
    let Unique(value) = serde_json::from_slice(bytes).map_err(Error::json)?;
    Ok(value)
}

impl Error {
    pub(crate) fn json(error: serde_json::Error) -> Self {
        Self::Json { reason: error.to_string() }
    }
}

/// A value without duplicate keys anywhere in it.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Unique(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if values.contains_key(&key) {
                return Err(A::Error::custom(format_args!("key {key} occurs twice")));
            }
            let Unique(value) = map.next_value()?;
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_serde_json_where_keys_are_unique() {
        let text = r#"{"b": [1, -2, 0.5, true, null, "x\n"], "a": {"c": {}, "d": []}}"#;
        let expected: Value = serde_json::from_str(text).unwrap();
        assert_eq!(parse(text.as_bytes(), 1000).unwrap(), expected);
    }

    #[test]
    fn refuses_duplicates_depth_and_size() {
        let error = |text: &str| parse(text.as_bytes(), 1000).unwrap_err().to_string();
        assert!(error(r#"{"a": {"k": 1, "k": 2}}"#).contains("key k occurs twice"));
        assert!(error(&"[".repeat(500)).contains("recursion limit"));
        assert!(error(&" ".repeat(1001)).contains("at most 1000, found 1001"));
    }
}
