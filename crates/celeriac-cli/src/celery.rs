//! Commands that Celery itself carries out, in the app's interpreter.

use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use celeriac_pool::python::client;

use crate::arguments::Global;
use crate::arguments::client::CeleryCommand;
use crate::failure::Failure;
use crate::interpreter::interpreter;

/// Becomes `celery` with the given words; returns only what went wrong.
pub(crate) fn become_celery(global: &Global, command: &dyn CeleryCommand) -> Failure {
    let python = match interpreter(global.python.as_deref()) {
        Ok(python) => python,
        Err(failure) => return failure,
    };
    let sources = match client::sources() {
        Ok(sources) => sources,
        Err(error) => return Failure::new(format!("There is no memory for a program: {error}")),
    };
    let mut celery = Command::new(&python);
    celery.args(["-c", client::LOADER, &sources.as_raw_fd().to_string()]);
    celery.args(global.words());
    let error = celery
        .args(command.words())
        .envs(global.environment())
        .exec();
    Failure::new(format!("{} can't be run: {error}", python.display()))
}
