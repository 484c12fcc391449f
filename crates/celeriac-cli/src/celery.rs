//! Commands that Celery itself carries out, in the app's interpreter.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use celeriac_pool::python::client;

use crate::arguments::Global;
use crate::arguments::client::CeleryCommand;
use crate::failure::Failure;
use crate::interpreter::interpreter;
use crate::native;

/// Becomes `celery` with the given words; returns only what went wrong.
pub(crate) fn become_celery(global: &Global, command: &dyn CeleryCommand) -> Failure {
    let words = command.words();
    if global.only_native().is_some() {
        let name = words.first().map(String::as_str);
        return native::command::needs_python(name.unwrap_or_default());
    }
    let (mut celery, _sources) = match program(global) {
        Ok(program) => program,
        Err(failure) => return failure,
    };
    let error = celery.args(words).exec();
    not_run(&celery, &error)
}

/// Has a command carried out that `celeriac.host.client` adds to Celery's; gives what was printed,
/// and its answer, which is printed last in a line behind the command's name.
pub(crate) fn ask(global: &Global, command: &str) -> Result<(String, String), Failure> {
    let (mut celery, _sources) = program(global)?;
    let output = celery
        .arg(command)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| not_run(&celery, &error))?;
    // What went wrong stands on standard error already.
    let silent = || Failure::new("The app did not tell of itself");
    if !output.status.success() {
        return Err(silent());
    }
    // The app may have something to say while it is imported, and when it ends.
    let said = String::from_utf8_lossy(&output.stdout);
    let mark = format!("\n{command}: ");
    let (before, rest) = said.split_once(&mark).ok_or_else(silent)?;
    let (answer, after) = rest.split_once('\n').unwrap_or((rest, ""));
    Ok((format!("{before}{after}"), answer.to_owned()))
}

/// Celery in the app's interpreter, with the global options, and what it reads its sources from.
fn program(global: &Global) -> Result<(Command, OwnedFd), Failure> {
    let python = interpreter(global.python.as_deref())?;
    let sources = client::sources(&global.configuration.settings())
        .map_err(|error| Failure::new(format!("There is no memory for a program: {error}")))?;
    let mut celery = Command::new(&python);
    celery
        .args(["-c", client::LOADER, &sources.as_raw_fd().to_string()])
        .args(global.words())
        .envs(global.environment());
    Ok((celery, sources))
}

fn not_run(celery: &Command, error: &io::Error) -> Failure {
    let python = Path::new(celery.get_program()).display();
    Failure::new(format!("{python} can't be run: {error}"))
}
