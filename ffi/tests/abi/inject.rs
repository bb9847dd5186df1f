//! Panics within the library, which only a build with the feature `inject-panics` can have: each becomes a status, and
//! costs the engine that it happened in.

use std::fmt::Write;

use crate::header::{Function, Header};
use crate::{program, table};

/// They write zeros, and have nothing that could panic.
const UNGUARDED: [&str; 2] = ["gw_engine_options_init", "gw_request_init"];

/// What an engine still does after a panic.
const AFTER: &str = "gw_engine_memory";

#[test]
fn panics_are_statuses() {
    let header = Header::read();
    let mut cases = table::Cases::new();
    let guarded = |function: &&Function| function.can_fail && !UNGUARDED.contains(&function.name.as_str());
    let functions: Vec<_> = header.functions.iter().filter(guarded).collect();
    for function in &functions {
        cases.add(&format!("{}_panics", function.name), &panics(function, &functions));
    }
    cases.add("a_panic_wakes_whoever_waits", "    alarm(60);\n    wakes_whoever_waits(f);\n    alarm(0);\n");
    let text = cases.program().replacen(
        "#include \"table.h\"\n",
        &format!(
            "#include \"table.h\"\n\nvoid gw_inject_panic(const char *function, size_t size);\n{SLEEPER}"
        ),
        1,
    );
    // Also asserts that nothing is printed.
    program::run(&program::build_text("panics", &text), &[]);
}

/// A thread that waits for events learns of a panic in another.
const SLEEPER: &str = r#"
static void *sleep_in_poll(void *user) {
    gw_event *event = NULL;
    FAILS(GW_ERR_INTERNAL, "panicked", gw_poll(user, 0, GW_FOREVER, &event, &error));
    CHECK(!event);
    return NULL;
}

static void wakes_whoever_waits(fixture *f) {
    (void)f;
    gw_engine *engine = open_small();
    pthread_t sleeper;
    CHECK(pthread_create(&sleeper, NULL, sleep_in_poll, engine) == 0);
    usleep(20000);
    gw_inject_panic("gw_submit", 9);
    FAILS(GW_ERR_INTERNAL, "gw_submit", gw_submit(engine, &f->request.known, NULL, &error));
    CHECK(pthread_join(sleeper, NULL) == 0);
    gw_engine_close(&engine);
}
"#;

fn panics(function: &Function, all: &[&Function]) -> String {
    let good = table::arguments(function);
    let name = &function.name;
    let inject = format!("    gw_inject_panic(\"{name}\", {});\n", name.len());
    let mut body = "    gw_engine *other = open_small();\n".to_owned() + &inject;
    body += &table::refused_once(function, &good, "GW_ERR_INTERNAL", "");
    if let Some(place) = function.engine() {
        for other in all.iter().filter(|other| other.engine().is_some()) {
            let arguments = table::arguments(other);
            if other.name == AFTER {
                body += &table::works(other, &arguments);
            } else {
                // Whatever it is asked: also what it would have refused anyway.
                body += &table::refused_once(other, &arguments, "GW_ERR_INTERNAL", "");
            }
        }
        assert_eq!(good[place], "f->engine");
        write!(body, "    gw_engine_close(&f->engine);\n    CHECK(!f->engine);\n").unwrap();
    } else {
        body += "    check_whole(f->engine);\n";
        body += &table::works(function, &good);
    }
    body + "    check_whole(other);\n    gw_engine_close(&other);\n"
}
