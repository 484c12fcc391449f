//! Text for the terminal, which is not the log.

use std::io::Write as _;

/// Shows text on standard output. Nobody may be there to read it.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// Shows text on standard error.
pub(crate) fn error(text: &str) {
    drop(std::io::stderr().lock().write_all(text.as_bytes()));
}
