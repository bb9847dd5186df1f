//! The values of GGUF metadata: one table of scalar types, plus text and arrays.

/// Type id of text.
pub(super) const STR: u32 = 8;
/// Type id of arrays.
pub(super) const ARRAY: u32 = 9;

macro_rules! scalars {
    ($($variant:ident($ty:ident) = $id:literal;)*) => {
        /// A value of GGUF metadata.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Value {
            $(#[doc = concat!("A `", stringify!($ty), "`.")] $variant($ty),)*
            /// Text.
            Str(String),
            /// An array whose elements are of one type.
            Array(Array),
        }

        /// An array of GGUF metadata.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Array {
            $(#[doc = concat!("Elements of type `", stringify!($ty), "`.")] $variant(Vec<$ty>),)*
            /// Texts.
            Str(Vec<String>),
            /// Arrays, each with its own element type.
            Array(Vec<Array>),
        }

        impl Value {
            /// The id of the value's type.
            pub(super) fn type_id(&self) -> u32 {
                match self { $(Self::$variant(_) => $id,)* Self::Str(_) => STR, Self::Array(_) => ARRAY }
            }

            /// The value of scalar type `id` in its bytes.
            pub(super) fn scalar(id: u32, bytes: &[u8]) -> Option<Self> {
                match id {
                    $($id => scalars!(@read bytes, $ty).next().map(Self::$variant),)*
                    _ => None,
                }
            }

            /// Appends the value's bytes, without its type.
            pub(super) fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant(value) => out.extend(scalars!(@write value, $ty)),)*
                    Self::Str(text) => write_str(text, out),
                    Self::Array(array) => array.write(out),
                }
            }
        }

        impl Array {
            /// The id of the elements' type.
            pub(super) fn type_id(&self) -> u32 {
                match self { $(Self::$variant(_) => $id,)* Self::Str(_) => STR, Self::Array(_) => ARRAY }
            }

            /// How many elements there are.
            pub fn len(&self) -> usize {
                match self {
                    $(Self::$variant(values) => values.len(),)*
                    Self::Str(values) => values.len(),
                    Self::Array(values) => values.len(),
                }
            }

            /// The values of scalar type `id` in their bytes.
            pub(super) fn scalars(id: u32, bytes: &[u8]) -> Option<Self> {
                match id {
                    $($id => Some(Self::$variant(scalars!(@read bytes, $ty).collect())),)*
                    _ => None,
                }
            }

            fn write(&self, out: &mut Vec<u8>) {
                out.extend(self.type_id().to_le_bytes());
                out.extend((self.len() as u64).to_le_bytes());
                match self {
                    $(Self::$variant(values) => {
                        for value in values {
                            out.extend(scalars!(@write value, $ty));
                        }
                    })*
                    Self::Str(values) => values.iter().for_each(|text| write_str(text, out)),
                    Self::Array(values) => values.iter().for_each(|array| array.write(out)),
                }
            }
        }

        /// Bytes of a value of scalar type `id`.
        pub(super) fn scalar_size(id: u32) -> Option<usize> {
            match id { $($id => Some(size_of::<$ty>()),)* _ => None }
        }

        fn type_name(id: u32) -> &'static str {
            match id { $($id => stringify!($ty),)* STR => "str", ARRAY => "array", _ => "unknown" }
        }
    };
    (@read $bytes:ident, bool) => { $bytes.iter().map(|&byte| byte != 0) };
    (@read $bytes:ident, $ty:ident) => {
        $bytes.as_chunks().0.iter().map(|&bytes| $ty::from_le_bytes(bytes))
    };
    (@write $value:ident, bool) => { [u8::from(*$value)] };
    (@write $value:ident, $ty:ident) => { $value.to_le_bytes() };
}

scalars! {
    U8(u8) = 0;
    I8(i8) = 1;
    U16(u16) = 2;
    I16(i16) = 3;
    U32(u32) = 4;
    I32(i32) = 5;
    F32(f32) = 6;
    Bool(bool) = 7;
    U64(u64) = 10;
    I64(i64) = 11;
    F64(f64) = 12;
}

/// Type id of `bool`, the one scalar of which not every bit pattern is valid.
pub(super) const BOOL: u32 = 7;

impl Value {
    /// The name of the value's type, for messages: `u32`, `str`, `3 str[]`.
    pub fn type_name(&self) -> String {
        match self {
            Self::Array(array) => format!("{} {}[]", array.len(), type_name(array.type_id())),
            value => type_name(value.type_id()).to_owned(),
        }
    }
}

impl Array {
    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Appends text as GGUF stores it: a u64 length and the bytes.
pub(super) fn write_str(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
