//! Commands that Celery itself carries out, in the app's interpreter.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::arguments::Global;
use crate::arguments::client::CeleryCommand;
use crate::failure::Failure;
use crate::interpreter::interpreter;

/// What the program `celery` does. Unlike `python -m celery` it keeps the working directory off the
/// path while Celery is imported, where a `struct.py` of the app's would be taken for Python's own.
const CELERY: &str = r"
import sys
sys.path[:] = [folder for folder in sys.path if folder]
sys.argv[0] = 'celery'
try:
    from celery.__main__ import main
except ModuleNotFoundError as exc:
    if exc.name != 'celery':
        raise
    sys.exit(
        f'Error: Celery is not installed for {sys.executable}.\n\n'
        'To mend this: install it there (`pip install celery`), or name the interpreter of your '
        'app with --python, CELERIAC_PYTHON or an activated virtual environment.'
    )
main()
";

/// Becomes `celery` with the given words; returns only what went wrong.
pub(crate) fn become_celery(global: &Global, command: &dyn CeleryCommand) -> Failure {
    let python = match interpreter(global.python.as_deref()) {
        Ok(python) => python,
        Err(failure) => return failure,
    };
    let mut celery = Command::new(&python);
    celery.args(["-c", CELERY]);
    if let Some(app) = global.app() {
        celery.args(["-A", &app]);
    }
    if let Some(workdir) = &global.workdir {
        celery.arg("--workdir").arg(workdir);
    }
    if global.no_color() == Some(true) {
        celery.arg("--no-color");
    }
    if global.quiet {
        celery.arg("--quiet");
    }
    let error = celery
        .args(command.words())
        .envs(global.environment())
        .exec();
    Failure::new(format!("{} can't be run: {error}", python.display()))
}
