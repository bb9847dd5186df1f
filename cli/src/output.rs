//! Where words go: results to stdout, notes to stderr.

use std::io::{Write, stderr, stdout};

use crate::Failure;

/// Writes a result to stdout, at once.
pub fn result(text: &str) -> Result<(), Failure> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::io("stdout"))
}

/// Writes a line to stderr.
pub fn note(line: &str) {
    // That nobody reads the notes is no reason to stop.
    let _ = writeln!(stderr(), "{line}");
}

/// Asks for a line on stderr.
pub fn ask(question: &str) {
    let _ = write!(stderr(), "{question}");
}

/// Text from a file as one line that cannot move the cursor.
pub fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}
