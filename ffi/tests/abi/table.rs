//! Every function of the header with arguments that work, and the C program that spoils them one by one.

use std::fmt::Write;

use crate::header::{Function, Header, Item};

/// Arguments that work for each function, as C expressions over the fixture `f` of `table.h`.
const CALLS: &[(&str, &[&str])] = &[
    ("gw_error_code", &["f->failure"]),
    ("gw_error_message", &["f->failure", "&f->made.size"]),
    ("gw_error_detail", &["f->failure", "&f->made.size"]),
    ("gw_error_free", &["&f->failure"]),
    ("gw_status_name", &["GW_OK"]),
    ("gw_abi_version", &[]),
    ("gw_version", &[]),
    ("gw_has_feature", &["\"lora\"", "GW_NUL"]),
    ("gw_source_path", &["f->path", "GW_NUL", "0", "&f->made.source", "&error"]),
    ("gw_source_fd", &["f->fd", "0", "0", "0", "&f->made.source", "&error"]),
    (
        "gw_source_memory",
        &["bytes", "sizeof bytes", "0", "dropped", "&f->drops", "&f->made.source", "&error"],
    ),
    ("gw_source_reader", &["&f->reader.known", "&f->made.source", "&error"]),
    ("gw_source_directory", &["&f->made.source", "&error"]),
    ("gw_source_add", &["f->directory", "\"config.json\"", "GW_NUL", "f->file", "&error"]),
    ("gw_source_free", &["&f->file"]),
    ("gw_engine_options_init", &["&f->options.known", "sizeof f->options.known"]),
    ("gw_engine_plan", &["f->model", "&f->options.known", "&f->memory.known", "&error"]),
    ("gw_engine_open", &["f->model", "&f->options.known", "&f->made.engine", "&error"]),
    ("gw_engine_close", &["&f->engine"]),
    ("gw_engine_describe", &["f->engine", "&f->info.known", "&error"]),
    ("gw_engine_memory", &["f->engine", "&f->memory.known", "&error"]),
    ("gw_adapter_load", &["f->engine", "\"new\"", "GW_NUL", "f->lora", "&f->made.generation", "&error"]),
    (
        "gw_adapter_replace",
        &["f->engine", "\"lora\"", "GW_NUL", "f->lora", "0", "&f->made.generation", "&error"],
    ),
    ("gw_adapter_unload", &["f->engine", "\"lora\"", "GW_NUL", "&error"]),
    ("gw_adapter_pin", &["f->engine", "\"lora\"", "GW_NUL", "1", "&error"]),
    ("gw_adapter_list", &["f->engine", "&f->made.list", "&error"]),
    ("gw_adapter_describe", &["f->engine", "\"lora\"", "GW_NUL", "&f->made.list", "&error"]),
    ("gw_adapters_count", &["f->list"]),
    ("gw_adapters_get", &["f->list", "0", "&f->adapter.known"]),
    ("gw_adapters_free", &["&f->list"]),
    ("gw_request_init", &["&f->request.known", "sizeof f->request.known"]),
    ("gw_submit", &["f->engine", "&f->request.known", "&f->made.id", "&error"]),
    ("gw_cancel", &["f->engine", "f->running", "&error"]),
    ("gw_step", &["f->engine", "&f->made.live", "&error"]),
    ("gw_poll", &["f->engine", "f->running", "GW_FOREVER", "&f->made.event", "&error"]),
    ("gw_event_free", &["&f->event"]),
    ("gw_state_save", &["f->engine", "f->running", "&f->made.state", "&error"]),
    ("gw_state_data", &["f->state", "&f->made.size"]),
    ("gw_state_write", &["f->state", "f->target", "GW_NUL", "&error"]),
    ("gw_state_free", &["&f->state"]),
    ("gw_state_resume", &["f->engine", "f->saved", "heard", "&f->drops", "dropped", "&f->made.id", "&error"]),
    (
        "gw_prompt_tokens",
        &["f->engine", "&f->request.known", "f->made.tokens", "8", "&f->made.size", "&error"],
    ),
    (
        "gw_detokenize",
        &["f->engine", "f->tokens", "3", "f->made.text", "sizeof f->made.text", "&f->made.size", "&error"],
    ),
    ("gw_logits", &["f->engine", "f->tokens", "3", "f->uses", "1", "f->made.logits", "3 * VOCAB", "&error"]),
];

/// What calls with NULL give that have no status to return: the function's word for nothing.
const NOTHING: &[(&str, &str)] = &[
    ("gw_status", "GW_OK"),
    ("size_t", "0"),
    ("int32_t", "0"),
    ("const char *", "NULL"),
    ("const void *", "NULL"),
];

/// Arguments of a function that work.
pub fn arguments(function: &Function) -> Vec<String> {
    let found = CALLS.iter().find(|(name, _)| *name == function.name);
    let found = found.unwrap_or_else(|| panic!("{}: expected arguments in the table", function.name)).1;
    assert_eq!(found.len(), function.parameters.len(), "{}: arguments in the table", function.name);
    found.iter().map(|&argument| argument.to_owned()).collect()
}

/// Fails if the table has functions that the header does not have (any more).
pub fn check(header: &Header) {
    for (name, _) in CALLS {
        assert!(header.functions.iter().any(|function| function.name == *name), "{name} is in no header");
    }
}

/// A C program of independent cases.
pub struct Cases {
    bodies: String,
    names: Vec<String>,
}

impl Cases {
    pub fn new() -> Self {
        Self { bodies: "#include \"table.h\"\n\n".to_owned(), names: Vec::new() }
    }

    /// Adds a case, which finds its fixture in `f`.
    pub fn add(&mut self, name: &str, body: &str) {
        writeln!(self.bodies, "static void {name}(fixture *f) {{\n    (void)f;\n{body}}}\n").unwrap();
        self.names.push(name.to_owned());
    }

    /// The program. Its second argument, if there is one, is the only case to run.
    pub fn program(self) -> String {
        let mut text = self.bodies;
        let list: String = self.names.iter().map(|name| format!("    {{\"{name}\", {name}}},\n")).collect();
        write!(
            text,
            "static const struct {{\n    const char *name;\n    void (*run)(fixture *);\n}} cases[] = {{\n{list}}};\n\n\
             int main(int count, char **arguments) {{\n    begin(count, arguments);\n    \
             for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {{\n        \
             if (count > 2 && strcmp(arguments[2], cases[i].name)) continue;\n        \
             static fixture f;\n        set_up(&f);\n        cases[i].run(&f);\n        tear_down(&f);\n    }}\n    \
             return 0;\n}}\n"
        )
        .unwrap();
        text
    }
}

/// A call as C writes it.
pub fn call(function: &Function, arguments: &[String]) -> String {
    format!("{}({})", function.name, arguments.join(", "))
}

/// A statement that makes a call, which must work.
pub fn works(function: &Function, arguments: &[String]) -> String {
    let call = call(function, arguments);
    match (function.can_fail, function.returns.as_str()) {
        (true, _) => format!("    WORKS({call});\n"),
        (false, "void") => format!("    {call};\n"),
        (false, _) => format!("    (void){call};\n"),
    }
}

/// Statements that make a call which fails with `status`, about `word`.
#[cfg_attr(not(feature = "inject-panics"), expect(dead_code))]
pub fn refused_once(function: &Function, arguments: &[String], status: &str, word: &str) -> String {
    let call = call(function, arguments);
    match function.error() {
        Some(_) => format!("    FAILS({status}, \"{word}\", {call});\n    check_untouched(f);\n"),
        None => format!("    EQUAL({status}, {call});\n    check_untouched(f);\n"),
    }
}

/// Statements that make a call which must be refused with `status`, about `word`.
pub fn refused(function: &Function, arguments: &[String], status: &str, word: &str) -> String {
    let made = call(function, arguments);
    if !function.can_fail {
        if function.returns == "void" {
            return format!("    {made};\n");
        }
        let nothing = NOTHING.iter().find(|(of, _)| *of == function.returns);
        let nothing = nothing.unwrap_or_else(|| panic!("{}: an unknown type", function.returns)).1;
        return format!("    CHECK({made} == {nothing});\n    check_untouched(f);\n");
    }
    let Some(place) = function.error() else {
        return format!("    EQUAL({status}, {made});\n    check_untouched(f);\n");
    };
    let mut silent = arguments.to_vec();
    silent[place] = "NULL".to_owned();
    format!(
        "    FAILS({status}, \"{word}\", {made});\n    check_untouched(f);\n    EQUAL({status}, {});\n    \
         check_untouched(f);\n",
        call(function, &silent)
    )
}

/// `arguments` with one of them another.
fn with(arguments: &[String], place: usize, value: &str) -> Vec<String> {
    let mut changed = arguments.to_vec();
    changed[place] = value.to_owned();
    changed
}

/// The size that says how long what a pointer points to is: the parameter or field after it.
fn size_after(items: &[Item], place: usize) -> Option<usize> {
    items.get(place + 1).filter(|next| next.of == "size_t").map(|_| place + 1)
}

/// NULL in every pointer, and what is no UTF-8 in every text.
pub fn arguments_program(header: &Header) -> String {
    let mut cases = Cases::new();
    for function in &header.functions {
        let good = arguments(function);
        let name = &function.name;
        cases.add(&format!("{name}_works"), &works(function, &good));
        for (place, parameter) in function.parameters.iter().enumerate() {
            if !header.is_pointer(parameter) {
                continue;
            }
            let word = &parameter.name;
            let null = with(&good, place, "NULL");
            let size = size_after(&function.parameters, place);
            let empty = size.map_or(null.clone(), |size| with(&null, size, "0"));
            let mut body = String::new();
            if parameter.optional {
                body += &works(function, &empty);
                if let Some(size) = size {
                    let mut body = refused(function, &with(&null, size, "3"), "GW_ERR_INVALID_ARG", word);
                    if parameter.of.starts_with("const ") {
                        body += "    check_whole(f->engine);\n";
                    } else {
                        // How much there would be is told in any case.
                        body = body.replace("    check_untouched(f);\n", "");
                    }
                    cases.add(&format!("{name}_null_{word}_of_some_size"), &body);
                }
            } else {
                body += &refused(function, &null, "GW_ERR_INVALID_ARG", word);
                if let Some(size) = size {
                    body += &refused(function, &with(&null, size, "3"), "GW_ERR_INVALID_ARG", word);
                    // An array of nothing needs no address; a text does.
                    if parameter.of == "const char *" {
                        body += &refused(function, &empty, "GW_ERR_INVALID_ARG", word);
                    }
                }
                body += "    check_whole(f->engine);\n";
            }
            cases.add(&format!("{name}_null_{word}"), &body);
            // Paths are whatever bytes the system takes.
            if parameter.of == "const char *" && word != "path" {
                let size = size.unwrap_or_else(|| panic!("{name}: expected a size of {word}"));
                let bad = with(&with(&good, place, "\"a\\xc3\""), size, "2");
                cases.add(
                    &format!("{name}_bytes_{word}"),
                    &refused(function, &bad, "GW_ERR_INVALID_ARG", word),
                );
                let unended = with(&bad, size, "GW_NUL");
                let body = refused(function, &unended, "GW_ERR_INVALID_ARG", word);
                cases.add(&format!("{name}_bytes_until_nul_{word}"), &body);
            }
        }
        if function.returns == "void" {
            cases.add(&format!("{name}_twice"), &twice(function, &good));
        }
    }
    cases.program()
}

/// What gives a handle back does so once.
fn twice(function: &Function, good: &[String]) -> String {
    let [argument] = good else {
        panic!("{}: expected one parameter, the address of a handle", function.name)
    };
    let handle = argument.strip_prefix('&').expect("an address");
    let call = call(function, good);
    format!(
        "    CHECK({handle} != NULL);\n    {call};\n    CHECK({handle} == NULL);\n    {call};\n    CHECK({handle} == NULL);\n"
    )
}

/// Wrong and other sizes of every struct that has one, in every function that takes it.
pub fn sizes_program(header: &Header) -> String {
    let mut cases = Cases::new();
    let mut taken = Vec::new();
    for function in &header.functions {
        for (place, parameter) in function.parameters.iter().enumerate() {
            let Some(known) = header.sized(parameter) else { continue };
            taken.push(&known.name);
            sizes(&mut cases, header, function, place);
        }
    }
    for known in header.structs.iter().filter(|known| known.is_sized()) {
        // Events are made by the library alone.
        let expected = known.name != "gw_event";
        assert_eq!(taken.contains(&&known.name), expected, "functions that take {}", known.name);
    }
    cases.program()
}

fn sizes(cases: &mut Cases, header: &Header, function: &Function, place: usize) {
    let (good, name, parameter) = (arguments(function), &function.name, &function.parameters[place]);
    let known = header.sized(parameter).expect("a struct");
    let argument = &good[place];
    let held = argument.strip_prefix('&').and_then(|held| held.strip_suffix(".known")).expect("&f->….known");
    // The size is given in the struct, or beside it to what initializes one.
    let beside = size_after(&function.parameters, place);
    let sized = |size: &str| match beside {
        Some(place) => (String::new(), with(&good, place, size)),
        None => (format!("    {held}.known.struct_size = {size};\n"), good.clone()),
    };
    for size in ["0", "4", "7", "0xffffffff"] {
        let (mut body, arguments) = sized(size);
        body += &refused(function, &arguments, "GW_ERR_ABI", &parameter.name);
        cases.add(&format!("{name}_{size}_bytes_of_{}", parameter.name), &body);
    }
    // With more than this version knows: zeros there are fine, what is set is refused, and what is written is zero.
    let written = !parameter.of.starts_with("const ");
    let (set, arguments) = sized(&format!("sizeof {held}"));
    let mut body = set.clone();
    if written {
        body += &format!("    memset({held}.newer, 0xa5, sizeof {held}.newer);\n");
    }
    body += &works(function, &arguments);
    body += &format!("    for (size_t i = 0; i < sizeof {held}.newer; i++) CHECK({held}.newer[i] == 0);\n");
    cases.add(&format!("{name}_newer_{}", parameter.name), &body);
    if !written {
        let body = format!("{set}    {held}.newer[sizeof {held}.newer - 1] = 1;\n");
        let body = body + &refused(function, &arguments, "GW_ERR_ABI", &parameter.name);
        cases.add(&format!("{name}_set_newer_{}", parameter.name), &body);
    }

    if written {
        cases.add(
            &format!("{name}_older_{}", parameter.name),
            &older_out(function, held, &known.name, beside),
        );
        return;
    }
    // Structs that are read end at each of their fields from the first that says enough.
    let from = match known.name.as_str() {
        "gw_engine_options" => "threads",
        "gw_request" => "messages",
        "gw_reader" => return,
        other => panic!("{other}: expected the first field that need not be set"),
    };
    let mut body = String::from("    for (;;) {\n        static int at = 0;\n");
    body += "        static const size_t ends[] = {";
    for field in known.fields.iter().skip_while(|field| field.name != from) {
        write!(body, "offsetof({}, {}), ", known.name, field.name).unwrap();
    }
    body += "0};\n        const size_t end = ends[at++];\n        if (!end) break;\n        defaults(f);\n";
    write!(
        body,
        "        memset((char *)&{held} + end, 0xa5, sizeof {held} - end);\n        \
         {held}.known.struct_size = (uint32_t)end;\n    {}        gw_engine_close(&f->made.engine);\n    }}\n",
        works(function, &good)
    )
    .unwrap();
    cases.add(&format!("{name}_older_{}", parameter.name), &body);
}

/// A struct that is written, of every size: as much of it as there is, and nothing behind it.
fn older_out(function: &Function, held: &str, of: &str, beside: Option<usize>) -> String {
    let good = arguments(function);
    let sized = match beside {
        Some(place) => with(&good, place, "size"),
        None => good.clone(),
    };
    format!(
        "    unsigned char whole[sizeof({of})];\n{}    memcpy(whole, &{held}.known, sizeof whole);\n    \
         for (size_t size = 8; size < sizeof whole; size++) {{\n        memset(&{held}, 0, size);\n        \
         memset((char *)&{held} + size, 0xa5, sizeof {held} - size);\n        \
         {held}.known.struct_size = (uint32_t)size;\n    {}        \
         EQUAL(size, {held}.known.struct_size);\n        \
         CHECK(memcmp((char *)&{held} + 4, whole + 4, size - 4) == 0);\n        \
         for (size_t i = size; i < sizeof {held}; i++) CHECK(((unsigned char *)&{held})[i] == 0xa5);\n    }}\n",
        works(function, &good),
        works(function, &sized),
    )
}

/// In structs: NULL where there should be something, and what is no UTF-8 in text.
pub fn fields_program(header: &Header) -> String {
    let mut cases = Cases::new();
    let submit = header.functions.iter().find(|function| function.name == "gw_submit").expect("gw_submit");
    let good = arguments(submit);
    let request = header.structs.iter().find(|known| known.name == "gw_request").expect("gw_request");
    for (place, field) in request.fields.iter().enumerate() {
        let Some(size) = size_after(&request.fields, place) else { continue };
        let (name, size) = (&field.name, &request.fields[size].name);
        // Refused whatever it is.
        if name == "grammar" {
            continue;
        }
        let refuse = || refused(submit, &good, "GW_ERR_INVALID_ARG", name);
        let alone = if matches!(name.as_str(), "text" | "messages" | "chat_json") {
            "    f->request.known.tokens = NULL;\n    f->request.known.token_count = 0;\n"
        } else {
            ""
        };
        let set = format!("    f->request.known.{name} = NULL;\n    f->request.known.{size} = 1;\n");
        cases.add(&format!("request_null_{name}"), &(alone.to_owned() + &set + &refuse()));
        if field.of == "const char *" {
            let set =
                format!("    f->request.known.{name} = \"\\xff\\xfe\";\n    f->request.known.{size} = 2;\n");
            cases.add(&format!("request_bytes_{name}"), &(alone.to_owned() + &set + &refuse()));
        }
    }
    cases.program()
}
