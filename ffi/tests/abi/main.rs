//! The C interface, from C: what every function does with arguments that it should refuse, where the fields of structs
//! lie, and programs that live with the library as an application would. Needs a C compiler; a C++ compiler is used if
//! there is one. What needs more (valgrind, cbindgen, llama.cpp) is in `scripts/test-abi.sh`.
#![cfg(target_os = "linux")]

mod header;
#[cfg(feature = "inject-panics")]
mod inject;
mod layout;
mod model;
mod program;
mod table;

use header::Header;

#[test]
fn every_function_refuses_null_and_what_is_no_text() {
    let header = Header::read();
    table::check(&header);
    program::run(&program::build_text("arguments", &table::arguments_program(&header)), &[]);
}

#[test]
fn structs_may_be_older_or_newer() {
    program::run(&program::build_text("sizes", &table::sizes_program(&Header::read())), &[]);
}

#[test]
fn requests_refuse_null_and_what_is_no_text() {
    program::run(&program::build_text("fields", &table::fields_program(&Header::read())), &[]);
}

#[test]
fn structs_lie_where_they_always_did() {
    let header = Header::read();
    let assertions = layout::assertions(&header, &layout::read());
    let source = program::work().join("layout.c");
    std::fs::write(&source, &assertions).unwrap();
    program::compile(&[&source], &program::work().join("layout.o"), &["-c"]);
    program::compile_cpp(&[&source], &program::work().join("layout.o"), &["-x", "c++", "-c"]);
}

/// Prints the lines of `layout.txt`: `cargo test -p graftwork-ffi --test abi -- --ignored --nocapture layout`.
#[test]
#[ignore = "for whoever adds a field"]
fn print_the_layout() {
    let source = program::work().join("print_layout.c");
    std::fs::write(&source, layout::printer(&Header::read())).unwrap();
    program::compile(&[&source], &program::work().join("print_layout"), &[]);
    let printed = std::process::Command::new(program::work().join("print_layout")).output().unwrap();
    println!("{}", String::from_utf8_lossy(&printed.stdout));
}

#[test]
fn the_wrapper_keeps_its_promises() {
    if let Some(wrapper) = program::build_cpp("wrapper") {
        program::run(&wrapper, &[]);
    }
}

#[test]
fn the_library_can_be_closed_and_opened_again() {
    let client = program::build_shared("client");
    program::run(&program::build_alone("reload"), &[client.to_str().unwrap()]);
}

/// A test for each program of `tests/c`.
macro_rules! programs {
    ($($name:ident($($argument:literal),*);)*) => {$(
        #[test]
        fn $name() {
            program::run(&program::build(stringify!($name)), &[$($argument),*]);
        }
    )*};
}

programs! {
    life();
    sources();
    states();
    killed();
    options();
    silence();
    cycles();
    engines();
    executor();
    reentry();
    stress("5");
}
