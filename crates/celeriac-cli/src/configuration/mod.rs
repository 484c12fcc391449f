//! The command line with the layers of the configuration below it: [`celeriac_config::layers`].

pub(crate) mod report;

use std::ffi::OsString;
use std::sync::Arc;

use celeriac_config::layers::{self, Known, WORKER_OPTIONS};
use clap::CommandFactory as _;
use clap::error::{ContextKind, ContextValue};
use serde_json::{Map, Value};

use crate::arguments::{self, Arguments, Command};
use crate::failure::Failure;

/// What `celery` exits with for a wrong command line.
const EX_USAGE: u8 = 2;

/// Why there is no command to be carried out.
pub(crate) enum Stop {
    /// The command line says so: also help and versions.
    Words(clap::Error),
    /// The configuration can't be used.
    Failure(Failure),
}

/// Reads the command line and the configuration below it. The words are given back that only the app
/// knows: see [`arguments::parse`].
pub(crate) fn command_line(words: &[OsString]) -> Result<(Arguments, Vec<String>), Stop> {
    let (arguments, unknown) = arguments::parse(words, &[]).map_err(Stop::Words)?;
    if !is_configured(&arguments.command) {
        return Ok((arguments, unknown));
    }
    let folder = arguments.global.workdir.as_deref();
    let mut configuration = layers::read(folder, variables()).map_err(|misconfigured| {
        let text = format!("The configuration can't be used:\n{misconfigured}");
        let hint = "mend these places: docs/configuration.md says what may stand where";
        Stop::Failure(Failure::new(text).with_hint(hint).with_status(EX_USAGE))
    })?;
    let options = configuration.worker_options();
    let defaults: Vec<_> = options
        .iter()
        .map(|(name, word, _)| (*name, &**word))
        .collect();
    let (mut arguments, unknown) = arguments::parse(words, &defaults).map_err(|error| {
        // Without the configuration there was none.
        let place = place_of(&error, &options);
        let text = error.to_string();
        let reason = text.lines().next().unwrap_or_default();
        let reason = reason.strip_prefix("error: ").unwrap_or(reason);
        Stop::Failure(Failure::new(format!("{place}{reason}")).with_status(EX_USAGE))
    })?;
    arguments.global.give_to(&mut configuration);
    let names_interpreter =
        matches!(&arguments.command, Command::Worker(worker) if worker.executable.is_some());
    if !names_interpreter && arguments.global.python.is_none() {
        arguments.global.python = configuration.text(&["python"]).map(Into::into);
    }
    arguments.global.configuration = Arc::new(configuration);
    Ok((arguments, unknown))
}

/// The settings that are configured here, for a program that sends calls itself.
///
/// # Errors
/// What is wrong, and where.
pub(crate) fn settings() -> Result<Map<String, Value>, String> {
    layers::read(None, variables())
        .map(|configuration| configuration.all_settings())
        .map_err(|misconfigured| misconfigured.to_string())
}

/// Whether a command has to do with an app.
fn is_configured(command: &Command) -> bool {
    !matches!(
        command,
        Command::Demo(_) | Command::Health(_) | Command::Completions { .. }
    )
}

/// Where the option stands that an error is about.
fn place_of(error: &clap::Error, options: &[(&str, String, &layers::Source)]) -> String {
    let Some(ContextValue::String(named)) = error.get(ContextKind::InvalidArg) else {
        return String::new();
    };
    // As `--time-limit <SECONDS>`.
    let option = named.split([' ', '=']).next().unwrap_or_default();
    let option = option.trim_start_matches('-').replace('-', "_");
    let mut options = options.iter();
    match options.find(|(name, ..)| *name == option) {
        Some((_, _, source)) => format!("{source}: "),
        None => String::new(),
    }
}

/// Variables that stand for options of the worker.
fn variables() -> Vec<Known> {
    let command = Arguments::command();
    let worker = command.find_subcommand("worker");
    let options = worker.into_iter().flat_map(clap::Command::get_arguments);
    let mut variables = Vec::new();
    for option in options {
        let name = option.get_id().as_str();
        let is_option = WORKER_OPTIONS.iter().any(|(known, _)| *known == name);
        if let Some(variable) = option.get_env().filter(|_| is_option) {
            variables.push(Known::option(&variable.to_string_lossy(), name));
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_worker_are_its_options() {
        let command = Arguments::command();
        let worker = command.find_subcommand("worker").unwrap();
        let global: Vec<_> = command.get_arguments().map(clap::Arg::get_id).collect();
        let mut options: Vec<_> = worker
            .get_arguments()
            .filter(|option| !global.contains(&option.get_id()))
            .map(|option| option.get_id().as_str())
            .filter(|name| !["extra", "help"].contains(name))
            .collect();
        options.sort_unstable();
        let keys: Vec<_> = WORKER_OPTIONS.iter().map(|(name, _)| *name).collect();
        assert_eq!(keys, options);
    }

    #[test]
    fn every_option_has_its_variable() {
        let known = variables();
        for (name, _) in WORKER_OPTIONS {
            let mut paths = known.iter().map(|known| &known.path);
            assert!(paths.any(|path| path[1..] == [*name]), "{name}");
        }
    }

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn options_of(
        line: &str,
        defaults: &[(&str, &str)],
    ) -> serde_json::Map<String, serde_json::Value> {
        let (arguments, user) = arguments::parse(&words(line), defaults).unwrap();
        match arguments.command {
            Command::Worker(worker) => worker.options(&user),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_configured_counts_below_the_command_line() {
        let defaults = [
            ("concurrency", "4"),
            ("queues", "a,b"),
            ("task_events", "true"),
            ("without_mingle", "off"),
            ("autoscale", "10,3"),
            ("loglevel", "info"),
            ("time_limit", "5"),
            ("pool", "processes"),
            ("umask", "022"),
        ];
        let options = options_of("celeriac worker -c 2", &defaults);
        assert_eq!(options["concurrency"], "2");
        assert_eq!(options["queues"], serde_json::json!(["a", "b"]));
        assert_eq!(options["task_events"], true);
        assert_eq!(options["without_mingle"], false);
        assert_eq!(options["autoscale"], serde_json::json!([10, 3]));
        assert_eq!(options["loglevel"], "INFO");
        assert_eq!(options["time_limit"], 5.0);
        assert_eq!(options["pool"], "processes");
        assert_eq!(options["umask"], "022");
        let options = options_of("celeriac worker", &defaults);
        assert_eq!(options["concurrency"], "4");
    }
}
