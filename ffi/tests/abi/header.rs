//! What `graftwork.h` declares. Whatever this does not understand is a panic, so nothing escapes the tests that are
//! made from it.

/// A parameter of a function or a field of a struct.
#[derive(Clone, Debug)]
pub struct Item {
    /// As C writes it, such as `const gw_engine *`.
    pub of: String,
    pub name: String,
    /// Marked with `GW_OPTIONAL`: may be NULL.
    pub optional: bool,
}

impl Item {
    /// `const uint32_t *tokens GW_OPTIONAL`, `uint8_t reserved[6]`
    fn parse(text: &str) -> Self {
        let (text, optional) = match text.trim().strip_suffix("GW_OPTIONAL") {
            Some(text) => (text.trim(), true),
            None => (text.trim(), false),
        };
        let (text, array) = text.split_once('[').map_or((text, ""), |(text, _)| (text, "[]"));
        let at =
            text.rfind(|c: char| !is_word(c)).unwrap_or_else(|| panic!("expected a type and a name: {text}"));
        let (of, name) = text.split_at(at + 1);
        Self { of: format!("{}{array}", words(of)), name: name.to_owned(), optional }
    }
}

/// A function.
#[derive(Clone, Debug)]
pub struct Function {
    pub returns: String,
    pub name: String,
    pub parameters: Vec<Item>,
    /// Whether it can fail, and returns a status that must not be ignored.
    pub can_fail: bool,
}

impl Function {
    /// The place of its `gw_error **`.
    pub fn error(&self) -> Option<usize> {
        self.parameters.iter().position(|parameter| parameter.of == "gw_error **")
    }

    #[cfg_attr(not(feature = "inject-panics"), expect(dead_code))]
    /// The place of the engine that it works with (not of one that it makes).
    pub fn engine(&self) -> Option<usize> {
        self.parameters.iter().position(|parameter| parameter.of == "const gw_engine *")
    }
}

/// A struct with fields.
#[derive(Clone, Debug)]
pub struct Struct {
    pub name: String,
    pub fields: Vec<Item>,
}

impl Struct {
    /// Whether the struct carries its own size.
    pub fn is_sized(&self) -> bool {
        self.fields[0].name == "struct_size"
    }
}

/// All of it.
#[derive(Debug, Default)]
pub struct Header {
    pub functions: Vec<Function>,
    pub structs: Vec<Struct>,
    /// Types that are pointers to functions.
    pub callbacks: Vec<String>,
}

impl Header {
    /// The header of this checkout.
    pub fn read() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../include/graftwork.h");
        Self::parse(&std::fs::read_to_string(path).unwrap())
    }

    fn parse(text: &str) -> Self {
        let text = without_directives(&without_comments(text)).replacen("extern \"C\" {", "", 1);
        let mut header = Self::default();
        for statement in statements(&text) {
            header.add(&words(&statement));
        }
        header
    }

    fn add(&mut self, statement: &str) {
        if let Some(prototype) = statement.strip_prefix("GW_API ") {
            self.functions.push(function(prototype));
        } else if let Some(definition) = statement.strip_prefix("typedef struct ") {
            if let Some((name, fields)) = definition.split_once(" {") {
                let fields = fields.split_once('}').expect("}").0;
                let fields = fields.split(';').filter(|field| !field.trim().is_empty());
                self.structs
                    .push(Struct { name: name.to_owned(), fields: fields.map(Item::parse).collect() });
            } else {
                let (name, again) = definition.split_once(' ').expect("a struct and its name");
                assert_eq!(name, again, "{statement}");
            }
        } else if let Some((_, rest)) = statement.split_once(" (*") {
            assert!(statement.starts_with("typedef "), "{statement}");
            self.callbacks.push(rest.split_once(')').expect(")").0.to_owned());
        } else {
            let known = statement == "typedef int32_t gw_status" || statement.starts_with("enum {");
            assert!(known, "an unknown kind of declaration: {statement}");
        }
    }

    /// Whether NULL can be given there.
    pub fn is_pointer(&self, item: &Item) -> bool {
        item.of.ends_with('*') || self.callbacks.contains(&item.of)
    }

    /// The struct with a size of its own that a parameter points to.
    pub fn sized(&self, parameter: &Item) -> Option<&Struct> {
        let name = parameter.of.strip_suffix(" *")?;
        let name = name.strip_prefix("const ").unwrap_or(name);
        self.structs.iter().find(|known| known.name == name && known.is_sized())
    }
}

/// `GW_MUST_USE gw_status gw_step(const gw_engine *engine, ...)`
fn function(prototype: &str) -> Function {
    let (head, parameters) = prototype.split_once('(').expect("(");
    let parameters = parameters.strip_suffix(')').expect(")");
    let (can_fail, head) = match head.strip_prefix("GW_MUST_USE ") {
        Some(head) => (true, head),
        None => (false, head),
    };
    let Item { of: returns, name, .. } = Item::parse(head);
    assert!(name.starts_with("gw_"), "{name}");
    assert_eq!(can_fail, returns == "gw_status" && name != "gw_error_code", "GW_MUST_USE of {name}");
    let parameters: Vec<_> = match parameters {
        "void" => Vec::new(),
        parameters => parameters.split(',').map(Item::parse).collect(),
    };
    Function { returns, name, parameters, can_fail }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// With single spaces.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn without_comments(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some((before, comment)) = rest.split_once("/*") {
        kept.push_str(before);
        kept.push(' ');
        rest = comment.split_once("*/").expect("an end of each comment").1;
    }
    kept + rest
}

fn without_directives(text: &str) -> String {
    let text = text.replace("\\\n", " ");
    text.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n")
}

/// What semicolons outside of braces separate.
fn statements(text: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut depth = 0;
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            // What closes `extern "C"` is the last of all.
            '}' if depth == 0 => continue,
            '}' => depth -= 1,
            ';' if depth == 0 => {
                found.push(String::new());
                continue;
            }
            _ => {}
        }
        found.last_mut().expect("one at least").push(c);
    }
    assert_eq!(depth, 0);
    found.retain(|statement| !statement.trim().is_empty());
    found
}
