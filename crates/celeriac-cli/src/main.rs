//! celeriac: runs your Celery app on a worker written in Rust.

use std::process::ExitCode;

fn main() -> ExitCode {
    celeriac_cli::main(None)
}
