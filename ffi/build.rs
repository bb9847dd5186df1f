//! The shared library stays in memory after `dlclose`: statics of dependencies, such as compiled regular expressions, are
//! never freed and would be lost, some 300 KB at each reload. The Makefile asks for the same.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
