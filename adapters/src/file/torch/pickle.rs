//! Pickles of tensors, read without running anything.
//!
//! A pickle is a program for a stack machine that can call any Python function. This machine knows what a dictionary of tensors
//! needs: dictionaries, tuples, texts, integers, the names of torch's storages, and the three functions of [`Global`], which it takes
//! for the data that they stand for. Every other name and instruction is refused by name. A value is two or three words, there are
//! at most [`MAX_VALUES`] of each sort, and none is ever taken apart twice, so a pickle costs no more than a multiple of its bytes.

use crate::file::{Dtype, Error};

/// Values of each sort (on the stack, remembered, in tuples, in dictionaries): a tensor takes about 20.
const MAX_VALUES: usize = 1 << 18;
/// Dimensions of a tensor.
const MAX_DIMS: usize = 8;

/// A tensor as a pickle describes it.
pub(super) struct View<'a> {
    /// Which storage it lies in.
    pub storage: Storage<'a>,
    /// Its first element there.
    pub offset: u64,
    /// Its shape, slowest dimension first.
    pub shape: Vec<u64>,
    /// Elements from one index of a dimension to the next.
    pub strides: Vec<u64>,
}

/// A run of elements.
#[derive(Clone, Copy)]
pub(super) struct Storage<'a> {
    pub dtype: Dtype,
    /// The name of its entry in the archive.
    pub key: &'a str,
    /// How many elements.
    pub elements: u64,
}

/// The names that a pickle may mention.
#[derive(Clone, Copy)]
enum Global {
    /// `collections.OrderedDict`, of nothing: an empty dictionary.
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks[, metadata])`.
    Tensor,
    /// `torch._utils._rebuild_parameter(tensor, requires_grad, hooks)`: the tensor.
    Parameter,
    /// `torch.FloatStorage` and its like.
    Storage(Dtype),
}

/// (module, name, what it is).
const GLOBALS: &[(&str, &str, Global)] = &[
    ("collections", "OrderedDict", Global::OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2", Global::Tensor),
    ("torch._utils", "_rebuild_parameter", Global::Parameter),
    ("torch", "FloatStorage", Global::Storage(Dtype::F32)),
    ("torch", "HalfStorage", Global::Storage(Dtype::F16)),
    ("torch", "BFloat16Storage", Global::Storage(Dtype::BF16)),
    ("torch", "DoubleStorage", Global::Storage(Dtype::F64)),
    ("torch", "LongStorage", Global::Storage(Dtype::I64)),
    ("torch", "IntStorage", Global::Storage(Dtype::I32)),
    ("torch", "ShortStorage", Global::Storage(Dtype::I16)),
    ("torch", "CharStorage", Global::Storage(Dtype::I8)),
    ("torch", "ByteStorage", Global::Storage(Dtype::U8)),
    ("torch", "BoolStorage", Global::Storage(Dtype::Bool)),
];

/// Instructions that would run something.
const CODE: &[(u8, &str)] = &[
    (b'b', "BUILD"),
    (b'i', "INST"),
    (b'o', "OBJ"),
    (b'P', "PERSID"),
    (0x81, "NEWOBJ"),
    (0x82, "EXT1"),
    (0x83, "EXT2"),
    (0x84, "EXT4"),
    (0x92, "NEWOBJ_EX"),
];

#[derive(Clone, Copy)]
enum Value<'a> {
    None,
    Bool,
    Int(i64),
    Text(&'a str),
    /// Where its values start in [`Machine::tuples`], and how many they are.
    Tuple(u32, u32),
    /// Which of [`Machine::dicts`].
    Dict(u32),
    Global(Global),
    /// Which of [`Machine::storages`].
    Storage(u32),
    /// Which of [`Machine::tensors`].
    Tensor(u32),
}

impl Value<'_> {
    fn name(self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool => "a truth value",
            Value::Int(_) => "a number",
            Value::Text(_) => "a text",
            Value::Tuple(..) => "a tuple",
            Value::Dict(_) => "a dictionary",
            Value::Global(_) => "a function or type",
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a tensor",
        }
    }
}

/// A tensor whose parts are tuples of the machine.
#[derive(Clone, Copy)]
struct Parts {
    storage: u32,
    offset: i64,
    shape: (u32, u32),
    strides: (u32, u32),
}

/// The tensors of a pickle that is a dictionary of them by name, or that is one tensor, which then has the name `alone`.
pub(super) fn tensors<'a>(bytes: &'a [u8], alone: &'a str) -> Result<Vec<(&'a str, View<'a>)>, Error> {
    let mut machine = Machine::new(bytes);
    let top = machine.run()?;
    let entries = match top {
        Value::Tensor(_) => vec![(Value::Text(alone), top)],
        Value::Dict(dict) => std::mem::take(&mut machine.dicts[dict as usize]),
        other => return Err(machine.wrong("a dictionary of tensors", other.name())),
    };
    let mut named = Vec::new();
    for (key, value) in entries {
        let Value::Text(name) = key else {
            return Err(machine.wrong("names of tensors", key.name()));
        };
        let Value::Tensor(tensor) = value else {
            let (expected, found) = ("a tensor".to_owned(), value.name().to_owned());
            return Err(Error::Tensor { tensor: short(name), expected, found });
        };
        named.push((name, machine.tensors[tensor as usize]));
    }
    // Before shapes are made of them: equal names cost the file almost nothing.
    let mut names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::Duplicate { what: "tensor", name: short(pair[0]) });
    }
    named.into_iter().map(|(name, parts)| Ok((name, machine.view(name, parts)?))).collect()
}

fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

struct Machine<'a> {
    bytes: &'a [u8],
    /// Where the next instruction is, and where the one being run is.
    next: usize,
    at: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: Vec<Value<'a>>,
    tuples: Vec<Value<'a>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    /// Entries of all dictionaries.
    entries: usize,
    storages: Vec<Storage<'a>>,
    tensors: Vec<Parts>,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            next: 0,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            tuples: Vec::new(),
            dicts: Vec::new(),
            entries: 0,
            storages: Vec::new(),
            tensors: Vec::new(),
        }
    }

    fn wrong(&self, expected: &'static str, found: impl Into<String>) -> Error {
        Error::Pickle { at: self.at, expected, found: found.into() }
    }

    fn code(&self, what: String) -> Error {
        Error::Code { at: self.at, what }
    }

    /// Runs the program to its end; gives what it leaves.
    fn run(&mut self) -> Result<Value<'a>, Error> {
        loop {
            self.at = self.next;
            let op = self.take(1)?[0];
            match op {
                // PROTO and FRAME say nothing that matters.
                0x80 => _ = self.take(1)?,
                0x95 => _ = self.take(8)?,
                b'.' => {
                    let top = self.pop()?;
                    return match self.stack.len() + self.marks.len() + self.bytes.len() - self.next {
                        0 => Ok(top),
                        _ => Err(self.wrong("an end of the pickle", "values or bytes that are left")),
                    };
                }
                b'(' => {
                    check(self.marks.len(), "marks in the pickle")?;
                    self.marks.push(self.stack.len());
                }
                b'N' => self.push(Value::None)?,
                0x88 | 0x89 => self.push(Value::Bool)?,
                b'K' => self.int(1)?,
                b'M' => self.int(2)?,
                b'J' => {
                    let bytes = *self.take(4)?.first_chunk().unwrap_or(&[0; 4]);
                    self.push(Value::Int(i32::from_le_bytes(bytes).into()))?;
                }
                0x8a => self.long()?,
                0x8c => self.text(1)?,
                b'X' => self.text(4)?,
                0x8d => self.text(8)?,
                b')' => self.tuple(self.stack.len())?,
                0x85..=0x87 => {
                    let len = usize::from(op - 0x84);
                    let from = self.stack.len().checked_sub(len);
                    self.tuple(from.filter(|&from| from >= self.floor()).ok_or_else(|| self.empty())?)?;
                }
                b't' => {
                    let from = self.marks.pop().ok_or_else(|| self.empty())?;
                    self.tuple(from)?;
                }
                b'}' => self.dict()?,
                b's' => self.set_items(self.stack.len().saturating_sub(2))?,
                b'u' => {
                    let from = self.marks.pop().ok_or_else(|| self.empty())?;
                    self.set_items(from)?;
                }
                b'q' => {
                    let index = self.number(1)?;
                    self.remember(index)?;
                }
                b'r' => {
                    let index = self.number(4)?;
                    self.remember(index)?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                b'h' => self.recall(1)?,
                b'j' => self.recall(4)?,
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(module, name)?;
                }
                0x93 => match (self.pop()?, self.pop()?) {
                    (Value::Text(name), Value::Text(module)) => self.global(module, name)?,
                    (other, _) => return Err(self.wrong("the name of a function or type", other.name())),
                },
                b'Q' => self.persistent()?,
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                op => return Err(self.unknown(op)),
            }
        }
    }

    fn unknown(&self, op: u8) -> Error {
        match CODE.iter().find(|(code, _)| *code == op) {
            Some((_, name)) => self.code(format!("instruction {name}")),
            None => self.wrong("the instructions of a dictionary of tensors", format!("{op:#04x}")),
        }
    }

    fn empty(&self) -> Error {
        self.wrong("values on the stack", "too few")
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], Error> {
        let left = &self.bytes[self.next..];
        let taken = usize::try_from(len).ok().and_then(|len| left.get(..len));
        let taken = taken.ok_or_else(|| Error::Truncated {
            what: "the pickle".to_owned(),
            at: self.next,
            expected: len,
            found: left.len() as u64,
        })?;
        self.next += taken.len();
        Ok(taken)
    }

    /// A number of `len` bytes.
    fn number(&mut self, len: u64) -> Result<u64, Error> {
        let bytes = self.take(len)?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// The bytes up to the end of a line.
    fn line(&mut self) -> Result<&'a str, Error> {
        let len = self.bytes[self.next..].iter().position(|&byte| byte == b'\n');
        let len = len.ok_or_else(|| self.wrong("a line that ends", "none"))? as u64;
        let line = self.take(len + 1)?;
        self.utf8(&line[..line.len() - 1])
    }

    fn utf8(&self, bytes: &'a [u8]) -> Result<&'a str, Error> {
        let what = "a text of the pickle".to_owned();
        std::str::from_utf8(bytes).map_err(|_| Error::NotUtf8 { what, at: self.at })
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), Error> {
        check(self.stack.len(), "values on the stack of the pickle")?;
        self.stack.push(value);
        Ok(())
    }

    /// The height of the stack at the last mark: what lies below belongs to others.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Value<'a>, Error> {
        let value = (self.stack.len() > self.floor()).then(|| self.stack.pop()).flatten();
        value.ok_or_else(|| self.empty())
    }

    fn int(&mut self, len: u64) -> Result<(), Error> {
        let number = self.number(len)? as i64;
        self.push(Value::Int(number))
    }

    /// A number of any length, two's complement, of which those that fit 64 bits are taken.
    fn long(&mut self) -> Result<(), Error> {
        let len = self.number(1)?;
        if len > 8 {
            return Err(self.wrong("a number of at most 8 bytes", format!("{len} bytes")));
        }
        let number = self.number(len)?;
        // The sign is in the highest bit there is.
        let unused = 64 - 8 * len as u32;
        self.push(Value::Int(if len == 0 { 0 } else { (number << unused) as i64 >> unused }))
    }

    fn text(&mut self, len: u64) -> Result<(), Error> {
        let len = self.number(len)?;
        let bytes = self.take(len)?;
        let text = self.utf8(bytes)?;
        self.push(Value::Text(text))
    }

    /// The values of the stack from `from` on become a tuple.
    fn tuple(&mut self, from: usize) -> Result<(), Error> {
        let start = self.tuples.len();
        let len = self.stack.len().saturating_sub(from);
        check(start + len, "values in tuples of the pickle")?;
        self.tuples.extend(self.stack.drain(from..));
        self.push(Value::Tuple(start as u32, len as u32))
    }

    fn dict(&mut self) -> Result<(), Error> {
        check(self.dicts.len(), "dictionaries in the pickle")?;
        self.dicts.push(Vec::new());
        self.push(Value::Dict(self.dicts.len() as u32 - 1))
    }

    /// The values of the stack from `from` on, keys and values by turns, join the dictionary below.
    fn set_items(&mut self, from: usize) -> Result<(), Error> {
        let below = from.checked_sub(1).filter(|&below| below >= self.floor() && from <= self.stack.len());
        let below = below.ok_or_else(|| self.empty())?;
        let Value::Dict(dict) = self.stack[below] else {
            return Err(self.wrong("a dictionary", self.stack[below].name()));
        };
        let (pairs, rest) = self.stack[from..].as_chunks();
        if !rest.is_empty() {
            return Err(self.wrong("keys and values by turns", "a key without a value"));
        }
        self.entries += pairs.len();
        check(self.entries, "entries of dictionaries in the pickle")?;
        self.dicts[dict as usize].extend(pairs.iter().map(|&[key, value]| (key, value)));
        self.stack.truncate(from);
        Ok(())
    }

    /// Remembers the value on top. Picklers number what they remember in order.
    fn remember(&mut self, index: u64) -> Result<(), Error> {
        let top = self.pop()?;
        self.push(top)?;
        check(self.memo.len(), "values that the pickle remembers")?;
        match self.memo.len() as u64 {
            len if index == len => self.memo.push(top),
            len if index < len => self.memo[index as usize] = top,
            len => return Err(self.wrong("the next number to remember by", format!("{index} after {len}"))),
        }
        Ok(())
    }

    fn recall(&mut self, len: u64) -> Result<(), Error> {
        let index = self.number(len)?;
        let value = usize::try_from(index).ok().and_then(|index| self.memo.get(index).copied());
        let value = value.ok_or_else(|| self.wrong("a number of something remembered", index.to_string()))?;
        self.push(value)
    }

    fn global(&mut self, module: &'a str, name: &'a str) -> Result<(), Error> {
        match GLOBALS.iter().find(|global| (global.0, global.1) == (module, name)) {
            Some(&(_, _, global)) => self.push(Value::Global(global)),
            None => Err(self.code(short(&format!("{module}.{name}")))),
        }
    }

    fn values(&self, (start, len): (u32, u32)) -> &[Value<'a>] {
        &self.tuples[start as usize..][..len as usize]
    }

    /// `('storage', torch.FloatStorage, key, device, elements)`.
    fn persistent(&mut self) -> Result<(), Error> {
        let id = self.pop()?;
        let values = match id {
            Value::Tuple(start, len) => self.values((start, len)),
            _ => &[],
        };
        let &[
            Value::Text("storage"),
            Value::Global(Global::Storage(dtype)),
            Value::Text(key),
            Value::Text(_),
            Value::Int(elements),
        ] = values
        else {
            return Err(self.wrong("('storage', type, key, device, number of elements)", id.name()));
        };
        let elements = u64::try_from(elements)
            .map_err(|_| self.wrong("a number of elements of 0 or more", elements.to_string()))?;
        check(self.storages.len(), "storages in the pickle")?;
        self.storages.push(Storage { dtype, key, elements });
        self.push(Value::Storage(self.storages.len() as u32 - 1))
    }

    /// A call: of one of the three functions that stand for data.
    fn reduce(&mut self) -> Result<(), Error> {
        let arguments = self.pop()?;
        let (function, Value::Tuple(start, len)) = (self.pop()?, arguments) else {
            return Err(self.wrong("a tuple of arguments", arguments.name()));
        };
        let Value::Global(function) = function else {
            return Err(self.code(format!("a call of {}", function.name())));
        };
        let is_empty = |hooks: Value<'_>| match hooks {
            Value::None => true,
            Value::Dict(dict) => self.dicts[dict as usize].is_empty(),
            _ => false,
        };
        let values = self.values((start, len));
        match (function, values) {
            (Global::OrderedDict, []) => self.dict(),
            (Global::Parameter, &[Value::Tensor(tensor), Value::Bool, hooks]) if is_empty(hooks) => {
                self.push(Value::Tensor(tensor))
            }
            (
                Global::Tensor,
                &[
                    Value::Storage(storage),
                    Value::Int(offset),
                    Value::Tuple(shape, dims),
                    Value::Tuple(strides, stride_dims),
                    Value::Bool,
                    hooks,
                    ref metadata @ ..,
                ],
            ) if is_empty(hooks) && metadata.len() <= 1 && metadata.iter().all(|&x| is_empty(x)) => {
                check(self.tensors.len(), "tensors in the pickle")?;
                let (shape, strides) = ((shape, dims), (strides, stride_dims));
                self.tensors.push(Parts { storage, offset, shape, strides });
                self.push(Value::Tensor(self.tensors.len() as u32 - 1))
            }
            (function, _) => {
                let known = GLOBALS
                    .iter()
                    .find(|global| std::mem::discriminant(&global.2) == std::mem::discriminant(&function));
                let name = known.map_or("a function", |global| global.1);
                Err(self.code(format!("{name} with {len} arguments that it should not have")))
            }
        }
    }

    /// State for an object: torch notes versions of modules on a dictionary, which say nothing about tensors.
    fn build(&mut self) -> Result<(), Error> {
        match (self.pop()?, self.stack.last()) {
            (Value::Dict(_), Some(Value::Dict(_))) if self.stack.len() > self.floor() => Ok(()),
            _ => Err(self.unknown(b'b')),
        }
    }

    /// The tensor `name`, whose parts were there.
    fn view(&self, name: &str, parts: Parts) -> Result<View<'a>, Error> {
        let wrong = |expected: String, found: String| Error::Tensor { tensor: short(name), expected, found };
        let numbers = |tuple: (u32, u32), what: &str| {
            let values = self.values(tuple);
            if values.len() > MAX_DIMS {
                let found = format!("{} dimensions", values.len());
                return Err(wrong(format!("at most {MAX_DIMS} dimensions"), found));
            }
            let number = |value: &Value<'_>| match *value {
                Value::Int(number) if number >= 0 => Ok(number as u64),
                Value::Int(number) => Err(wrong(format!("{what} of 0 or more"), number.to_string())),
                other => Err(wrong(format!("{what} of numbers"), other.name().to_owned())),
            };
            values.iter().map(number).collect::<Result<Vec<_>, _>>()
        };
        let (shape, strides) = (numbers(parts.shape, "a shape")?, numbers(parts.strides, "strides")?);
        if shape.len() != strides.len() {
            let found = format!("{} strides", strides.len());
            return Err(wrong(format!("a stride for each of {} dimensions", shape.len()), found));
        }
        let offset = u64::try_from(parts.offset)
            .map_err(|_| wrong("an offset of 0 or more".to_owned(), parts.offset.to_string()))?;
        Ok(View { storage: self.storages[parts.storage as usize], offset, shape, strides })
    }
}

/// Refuses one more than [`MAX_VALUES`].
fn check(found: usize, what: &str) -> Result<(), Error> {
    match found < MAX_VALUES {
        true => Ok(()),
        false => {
            Err(Error::TooMany { what: what.to_owned(), limit: MAX_VALUES as u64, found: found as u64 + 1 })
        }
    }
}
