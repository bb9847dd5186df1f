//! What keeps templates from hostile files from overflowing the stack, which would end the process.
//!
//! The template engine recurses over chains of operators and over nested values, without a limit. So a source has a
//! limit, of one operator per byte at worst, and runs on a stack that holds that many levels.

use super::Error;

/// The largest source. The largest templates of known models have 30 kB.
pub(super) const MAX_SOURCE: usize = 128 << 10;

/// Address space, of which only the touched pages become memory. Measured without optimization: an operator takes
/// 1.8 kB of stack, so `MAX_SOURCE` of them 230 MB; a level of nesting 0.4 kB, so those of `FUEL` steps 200 MB.
const STACK: usize = 320 << 20;

/// Runs this on a stack of its own.
pub(super) fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    let failed = |found: &str| Err(Error::Render { found: found.to_owned() });
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("graftwork-chat".to_owned()).stack_size(STACK);
        match thread.spawn_scoped(scope, work) {
            Ok(thread) => thread.join().unwrap_or_else(|_| failed("the template engine panicked")),
            Err(error) => Err(Error::Thread { kind: error.kind(), found: error.to_string() }),
        }
    })
}
