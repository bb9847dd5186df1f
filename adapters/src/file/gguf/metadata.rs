//! GGUF metadata: keys and typed access to their values.

use super::{Array, Value};
use crate::file::{Error, Named};

/// The metadata of a GGUF file, in its order.
#[derive(Clone, Debug, Default)]
pub struct Metadata(Named<Value>);

impl Metadata {
    pub(super) fn new(items: Vec<(String, Value)>) -> Result<Self, Error> {
        Named::new(items).map(Self).map_err(|name| Error::Duplicate { what: "key", name })
    }

    /// The value of `key` as it is in the file.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// The value of `key` as a `T`, `None` if there is no such key.
    ///
    /// Any integer type serves any other in which the value fits, any float type or integer a float.
    ///
    /// ```
    /// # use graftwork_adapters::file::gguf::Metadata;
    /// # let metadata = Metadata::default();
    /// let base: Option<f32> = metadata.get("llama.rope.freq_base")?;
    /// let tokens: Option<&[String]> = metadata.get("tokenizer.ggml.tokens")?;
    /// # Ok::<(), graftwork_adapters::file::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Value`] with the key, the type expected and the type found.
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, Error> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        T::from_value(value).map(Some).ok_or_else(|| Error::Value {
            key: key.to_owned(),
            expected: T::EXPECTED.to_owned(),
            found: match value {
                Value::Str(_) | Value::Array(_) => value.type_name(),
                scalar => format!("{scalar:?}"),
            },
        })
    }

    /// [`Self::get`], where an absent key is an error.
    ///
    /// # Errors
    /// As [`Self::get`], and [`Error::Missing`] with the key.
    pub fn require<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, Error> {
        self.get(key)?.ok_or_else(|| Error::Missing { what: "key", name: key.to_owned() })
    }

    /// Keys and values, in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.0.iter()
    }
}

/// A Rust type that a metadata value can be read as.
pub trait FromValue<'a>: Sized {
    /// What the value must be, for messages.
    const EXPECTED: &'static str;
    /// The value as this type, or `None` if it is of another or does not fit.
    fn from_value(value: &'a Value) -> Option<Self>;
}

macro_rules! integers {
    ($($ty:ident),*) => {$(
        impl FromValue<'_> for $ty {
            const EXPECTED: &'static str = concat!("an integer that fits ", stringify!($ty));

            fn from_value(value: &Value) -> Option<Self> {
                match *value {
                    Value::U8(x) => x.try_into().ok(),
                    Value::I8(x) => x.try_into().ok(),
                    Value::U16(x) => x.try_into().ok(),
                    Value::I16(x) => x.try_into().ok(),
                    Value::U32(x) => x.try_into().ok(),
                    Value::I32(x) => x.try_into().ok(),
                    Value::U64(x) => x.try_into().ok(),
                    Value::I64(x) => x.try_into().ok(),
                    Value::F32(_) | Value::F64(_) | Value::Bool(_) | Value::Str(_) | Value::Array(_) => None,
                }
            }
        }

        impl FromValue<'_> for Vec<$ty> {
            const EXPECTED: &'static str = concat!("an array of integers that fit ", stringify!($ty));

            fn from_value(value: &Value) -> Option<Self> {
                let Value::Array(array) = value else {
                    return None;
                };
                fn all<T: Copy + TryInto<$ty>>(values: &[T]) -> Option<Vec<$ty>> {
                    values.iter().map(|&x| x.try_into().ok()).collect()
                }
                match array {
                    Array::U8(values) => all(values),
                    Array::I8(values) => all(values),
                    Array::U16(values) => all(values),
                    Array::I16(values) => all(values),
                    Array::U32(values) => all(values),
                    Array::I32(values) => all(values),
                    Array::U64(values) => all(values),
                    Array::I64(values) => all(values),
                    Array::F32(_) | Array::F64(_) | Array::Bool(_) | Array::Str(_) | Array::Array(_) => None,
                }
            }
        }
    )*};
}

integers!(u16, u32, i32, u64, i64, usize);

impl FromValue<'_> for f64 {
    const EXPECTED: &'static str = "a number";

    fn from_value(value: &Value) -> Option<Self> {
        match *value {
            Value::F32(x) => Some(x.into()),
            Value::F64(x) => Some(x),
            _ => i64::from_value(value).map(|x| x as f64),
        }
    }
}

impl FromValue<'_> for f32 {
    const EXPECTED: &'static str = "a number";

    fn from_value(value: &Value) -> Option<Self> {
        f64::from_value(value).map(|x| x as f32)
    }
}

impl FromValue<'_> for bool {
    const EXPECTED: &'static str = "a bool";

    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Bool(x) = *value { Some(x) } else { None }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const EXPECTED: &'static str = "text";

    fn from_value(value: &'a Value) -> Option<Self> {
        if let Value::Str(text) = value { Some(text) } else { None }
    }
}

impl<'a> FromValue<'a> for &'a [String] {
    const EXPECTED: &'static str = "an array of texts";

    fn from_value(value: &'a Value) -> Option<Self> {
        if let Value::Array(Array::Str(texts)) = value { Some(texts) } else { None }
    }
}

impl<'a> FromValue<'a> for &'a [f32] {
    const EXPECTED: &'static str = "an array of f32";

    fn from_value(value: &'a Value) -> Option<Self> {
        if let Value::Array(Array::F32(values)) = value { Some(values) } else { None }
    }
}

impl<'a> FromValue<'a> for &'a [bool] {
    const EXPECTED: &'static str = "an array of bools";

    fn from_value(value: &'a Value) -> Option<Self> {
        if let Value::Array(Array::Bool(values)) = value { Some(values) } else { None }
    }
}
