//! The command line, for the binary `celeriac` and for programs whose tasks are in Rust.

mod app_broker;
mod arguments;
mod celery;
mod configuration;
mod console;
mod demo;
mod dlq;
mod failure;
mod health;
mod interpreter;
mod journal;
pub mod native;
mod run_docker;
mod worker;

pub use worker::embed;

use std::process::ExitCode;
use std::sync::Arc;

use arguments::Command;
use arguments::remote::Remote;
use configuration::Stop;
use native::NativeApp;

/// Carries out the command line, with the tasks of `app` if there is one: its commands need no Python
/// unless the command line names a Python app as well (`-A`).
pub fn main(app: Option<NativeApp>) -> ExitCode {
    // Before there is a second thread: this process may be the keeper of a command.
    celeriac_command::keeper::enter();
    let words: Vec<_> = std::env::args_os().collect();
    let (arguments, user_words) = match configuration::command_line(&words) {
        Ok(parsed) => parsed,
        Err(Stop::Failure(failure)) => return failure.report(),
        Err(Stop::Words(error)) => {
            // Help and versions are no errors: clap knows where each belongs.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let mut arguments = arguments;
    arguments.global.native = app.map(Arc::new);
    let global = &arguments.global;
    if let Some(app) = global.only_native() {
        let done = match &arguments.command {
            Command::Call(call) => Some(native::command::call(global, app, call)),
            Command::Result(result) => Some(native::command::result(global, app, result)),
            Command::Purge(purge) => Some(native::command::purge(global, app, purge)),
            _ => None,
        };
        if let Some(done) = done {
            return done.map_or_else(|failure| failure.report(), |()| ExitCode::SUCCESS);
        }
    }
    let failure = match &arguments.command {
        Command::Worker(options) => match worker::run(global, options, &user_words) {
            Ok(status) => return status,
            Err(failure) => failure,
        },
        Command::Demo(options) => match demo::run(global, options) {
            Ok(status) => return status,
            Err(failure) => failure,
        },
        Command::Dlq(options) => match dlq::run(global, options) {
            Ok(status) => return status,
            Err(failure) => failure,
        },
        Command::RunDocker(options) => match run_docker::run(global, options) {
            Ok(status) => return status,
            Err(failure) => failure,
        },
        Command::Call(call) => celery::become_celery(global, call),
        Command::Result(result) => celery::become_celery(global, result),
        Command::Purge(purge) => celery::become_celery(global, purge),
        Command::List(list) => celery::become_celery(global, list),
        Command::Inspect(arguments) => {
            let name = "inspect";
            celery::become_celery(global, &Remote { name, arguments })
        }
        Command::Control(arguments) => {
            let name = "control";
            celery::become_celery(global, &Remote { name, arguments })
        }
        Command::Status(status) => celery::become_celery(global, status),
        Command::Health(health) => match health::command::run(health) {
            Ok(status) => return status,
            Err(failure) => failure,
        },
        Command::Events(events) => celery::become_celery(global, events),
        Command::Migrate(migrate) => celery::become_celery(global, migrate),
        Command::Amqp(amqp) => celery::become_celery(global, amqp),
        Command::Report => match configuration::report::run(global) {
            Ok(status) => return status,
            Err(failure) => failure,
        },
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut arguments::visible(), "celeriac", &mut script);
            // Whoever reads it may have seen enough.
            console::print(&String::from_utf8_lossy(&script));
            return ExitCode::SUCCESS;
        }
    };
    failure.report()
}
