//! C programs: compiled with the system's compiler against the header and the shared library, and run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::model;

/// The checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Where this run keeps what it makes.
pub fn work() -> PathBuf {
    let work = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("abi");
    fs::create_dir_all(&work).unwrap();
    work
}

/// The shared library that Cargo built with these tests: beside the executable, or one folder up.
pub fn library() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    let file = format!("{}graftwork_ffi{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let found =
        executable.ancestors().skip(1).take(2).map(|folder| folder.join(&file)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("expected {file} near {}", executable.display()))
}

/// A folder with the library under the names that it is linked and loaded by.
fn library_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = work().join("lib");
        fs::create_dir_all(&folder).unwrap();
        for name in ["libgraftwork.so", "libgraftwork.so.1"] {
            let _ = fs::remove_file(folder.join(name));
            std::os::unix::fs::symlink(library(), folder.join(name)).unwrap();
        }
        folder
    })
}

/// The folder of models and adapters that every program gets as its first argument.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = work().join("models");
        model::write(&folder, &root().join("tests/golden/adapters"));
        folder
    })
}

/// A C compiler (`CC`, or `cc`) with all warnings as errors; `extra` are further arguments.
pub fn compile(sources: &[&Path], to: &Path, extra: &[&str]) {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    run_compiler(&compiler, "-std=c11", sources, to, extra);
}

/// Compiles as C++; returns whether there is a compiler (`CXX`, or `c++`).
pub fn compile_cpp(sources: &[&Path], to: &Path, extra: &[&str]) -> bool {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let exists = Command::new(&compiler).arg("--version").output().is_ok();
    if exists {
        run_compiler(&compiler, "-std=c++17", sources, to, extra);
    }
    exists
}

fn run_compiler(compiler: &str, standard: &str, sources: &[&Path], to: &Path, extra: &[&str]) {
    let mut command = Command::new(compiler);
    command.args([standard, "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pedantic", "-D_GNU_SOURCE"]);
    command.arg("-I").arg(root().join("include")).arg("-I").arg(root().join("ffi/tests/c"));
    command.args(sources).arg("-o").arg(to).args(extra);
    let output = command.output().unwrap_or_else(|error| panic!("{compiler}: {error}"));
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Links with the library.
fn with_library() -> Vec<String> {
    let folder = library_folder().display();
    ["-rdynamic", "-L", &folder.to_string(), &format!("-Wl,-rpath,{folder}"), "-lgraftwork"]
        .map(str::to_owned)
        .into()
}

/// A C file as a program or, by its name, a library, with these linker arguments beside the system's libraries.
fn link(source: &Path, to: &str, arguments: &[String]) -> PathBuf {
    let made = work().join(to);
    let arguments: Vec<_> =
        arguments.iter().map(String::as_str).chain(["-lm", "-lpthread", "-ldl"]).collect();
    compile(&[source], &made, &arguments);
    made
}

fn source(name: &str) -> PathBuf {
    root().join("ffi/tests/c").join(name).with_extension("c")
}

/// A program of `tests/c` that is linked with the library.
pub fn build(name: &str) -> PathBuf {
    link(&source(name), name, &with_library())
}

/// A program of `tests/c` that is not.
pub fn build_alone(name: &str) -> PathBuf {
    link(&source(name), name, &[])
}

/// A file of `tests/c` as a library that is linked with the library.
pub fn build_shared(name: &str) -> PathBuf {
    let shared = ["-shared", "-fPIC"].map(str::to_owned);
    link(&source(name), &format!("{name}.so"), &[&shared[..], &with_library()].concat())
}

/// A C++ program of `tests/c` that is linked with the library, if there is a compiler.
pub fn build_cpp(name: &str) -> Option<PathBuf> {
    let made = work().join(name);
    let library = with_library();
    let arguments: Vec<_> = library.iter().map(String::as_str).chain(["-lm", "-lpthread"]).collect();
    let source = source(name).with_extension("cpp");
    compile_cpp(&[&source], &made, &arguments).then_some(made)
}

/// A program that a test made.
pub fn build_text(name: &str, text: &str) -> PathBuf {
    let source = work().join(name).with_extension("c");
    fs::write(&source, text).unwrap();
    link(&source, name, &with_library())
}

/// Runs a program, which must end with 0 and print nothing.
pub fn run(program: &Path, arguments: &[&str]) {
    let output = Command::new(program).arg(folder()).args(arguments).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {}\n{printed}", program.display(), output.status);
    assert_eq!(printed, "", "{}", program.display());
}
