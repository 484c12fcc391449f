//! The command line: Celery's, with the global options before the command or after it.

pub(crate) mod client;
pub(crate) mod remote;
pub(crate) mod worker;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use crate::native::NativeApp;
use celeriac_config::Configuration;
use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

/// Runs your Celery app on a worker written in Rust.
#[derive(Debug, Parser)]
#[command(name = "celeriac", version, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a worker.
    Worker(Box<worker::WorkerArguments>),
    /// Call a task by name.
    Call(client::CallArguments),
    /// Show the result of a task.
    Result(client::ResultArguments),
    /// Delete all messages that wait in queues. There is no undo.
    Purge(client::PurgeArguments),
    /// Show what the broker has (bindings: only brokers with exchanges).
    List(client::ListArguments),
    /// Ask workers about themselves and their tasks.
    Inspect(remote::RemoteArguments),
    /// Tell workers what to do. What is revoked is kept for workers that start later.
    Control(remote::RemoteArguments),
    /// List the workers that are online.
    Status(remote::ReplyArguments),
    /// Ask the workers of this host how they are, for probes: takes no Python and no broker.
    Health(crate::health::command::HealthArguments),
    /// Watch workers and tasks.
    Events(remote::EventsArguments),
    /// Move tasks from one broker to another.
    Migrate(client::MigrateArguments),
    /// Speak to a broker in AMQP.
    Amqp(client::AmqpArguments),
    /// Have a container run by a worker that runs containers; prints the task's id.
    RunDocker(crate::run_docker::RunDockerArguments),
    /// Look at messages that nothing could be done with, and have them run again.
    Dlq(crate::dlq::DlqArguments),
    /// Read documents with an example app, on a broker that needs no server.
    Demo(crate::demo::DemoArguments),
    /// Show what belongs in a bug report.
    Report,
    /// Write a completion script for your shell to standard output.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global Options")]
pub(crate) struct Global {
    /// The Celery app: a module, or module:attribute.  [env: CELERY_APP, APP]
    #[arg(short = 'A', long, global = true, value_name = "APPLICATION")]
    app: Option<String>,
    /// URL of the broker, before the app's own.  [env: CELERY_BROKER, BROKER_URL]
    #[arg(short, long, global = true, value_name = "URL")]
    broker: Option<String>,
    /// URL of the result backend, before the app's own.  [env: CELERY_RESULT_BACKEND,
    /// RESULT_BACKEND]
    #[arg(long, global = true, value_name = "URL")]
    result_backend: Option<String>,
    /// The app's loader.  [env: CELERY_LOADER, LOADER]
    #[arg(long, global = true)]
    loader: Option<String>,
    /// The module with the app's settings.  [env: CELERY_CONFIG, CONFIG_MODULE]
    #[arg(long, global = true, value_name = "MODULE")]
    config: Option<String>,
    /// Change to this folder first.
    #[arg(long, global = true, env = "CELERY_WORKDIR", value_name = "FOLDER")]
    pub(crate) workdir: Option<PathBuf>,
    /// No colours.  [env: CELERY_NO_COLOR, NO_COLOR]
    #[arg(short = 'C', long, global = true)]
    no_color: bool,
    /// Say less: no banner.
    #[arg(short, long, global = true, env = "CELERY_QUIET", value_parser = truth())]
    pub(crate) quiet: bool,
    /// Leave out Django's system checks.  [env: CELERY_SKIP_CHECKS, SKIP_CHECKS]
    #[arg(long, global = true)]
    skip_checks: bool,
    /// The Python interpreter that has the app's packages [default: that of the active virtual
    /// environment, then python3]
    #[arg(long, global = true, env = "CELERIAC_PYTHON", value_name = "PROGRAM")]
    pub(crate) python: Option<PathBuf>,
    /// This process was started by another one for `--detach`; its standard input takes the news.
    #[arg(long, global = true, hide = true)]
    pub(crate) detached: bool,
    /// What is configured, with what is given here over it.
    #[arg(skip)]
    pub(crate) configuration: Arc<Configuration>,
    /// The app in Rust that the program is.
    #[arg(skip)]
    pub(crate) native: Option<Arc<NativeApp>>,
}

/// Reads the command line.
///
/// An app may add options to `worker` (`app.user_options`), which only the app knows: words that
/// nobody here knows are given back, for the app to read or to refuse. `defaults` are options of
/// `worker` that are configured, by their names.
///
/// # Errors
/// What clap says: also for help and versions.
pub(crate) fn parse(
    words: &[OsString],
    defaults: &[(&str, &str)],
) -> Result<(Arguments, Vec<String>), clap::Error> {
    let mut words = words.to_vec();
    if words.len() == 1 {
        let mut command = Arguments::command();
        let help = command.render_help();
        return Err(command.error(ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand, help));
    }
    let mut unknown = Vec::new();
    let mut first = None;
    loop {
        let parsed = as_click_reads(with_defaults(Arguments::command(), defaults))
            .try_get_matches_from(&words)
            .and_then(|matches| Arguments::from_arg_matches(&matches));
        let error = match parsed {
            Ok(arguments) => match (&arguments.command, first) {
                (Command::Worker(_), _) | (_, None) => return Ok((arguments, unknown)),
                (_, Some(error)) => return Err(error),
            },
            Err(error) => error,
        };
        match position_of_unknown(&words, &error) {
            Some(at) => {
                unknown.push(words.remove(at).to_string_lossy().into_owned());
                first.get_or_insert(error);
            }
            None => return Err(first.unwrap_or(error)),
        }
    }
}

/// The command with other defaults for options of `worker`.
fn with_defaults(command: clap::Command, defaults: &[(&str, &str)]) -> clap::Command {
    command.mut_subcommand("worker", |worker| {
        worker.mut_args(|arg| {
            let mut defaults = defaults.iter();
            match defaults.find(|(name, _)| arg.get_id() == *name) {
                Some((_, word)) => arg.default_value((*word).to_owned()),
                None => arg,
            }
        })
    })
}

/// Click takes the last of an option that is given twice, and no notice of an environment variable
/// that is empty.
fn as_click_reads(command: clap::Command) -> clap::Command {
    let is_empty = |arg: &Arg| {
        let name = arg.get_env();
        name.is_some_and(|name| std::env::var_os(name).is_some_and(|value| value.is_empty()))
    };
    command
        .args_override_self(true)
        .mut_args(|arg| {
            if is_empty(&arg) {
                arg.env(Resettable::Reset)
            } else {
                arg
            }
        })
        .mut_subcommands(as_click_reads)
}

/// The commands and options as users are to know them, for completions.
pub(crate) fn visible() -> clap::Command {
    without_hidden(&Arguments::command())
}

/// A copy without what is hidden: clap completes that as well.
fn without_hidden(command: &clap::Command) -> clap::Command {
    let args = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let commands = command.get_subcommands().map(without_hidden);
    clap::Command::new(command.get_name().to_owned())
        .about(command.get_about().cloned().unwrap_or_default())
        .args(args.cloned())
        .subcommands(commands)
}

/// Where the word stands that an error calls unknown.
fn position_of_unknown(words: &[OsString], error: &clap::Error) -> Option<usize> {
    let Some(ContextValue::String(named)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let is_it = |word: &&OsString| {
        word.to_str().is_some_and(|word| {
            word == named
                || word
                    .strip_prefix(&**named)
                    .is_some_and(|rest| rest.starts_with('='))
        })
    };
    let end = words
        .iter()
        .position(|word| word == "--")
        .unwrap_or(words.len());
    words[..end].iter().position(|word| is_it(&word))
}

/// How Click reads flags in environment variables.
pub(crate) fn truth() -> clap::builder::FalseyValueParser {
    clap::builder::FalseyValueParser::new()
}

/// The first of these environment variables that says something.
fn variable<const N: usize>(names: [&str; N]) -> Option<String> {
    names
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

impl Global {
    /// The program's own app, where there is no Python app besides: it needs no Python.
    pub(crate) fn only_native(&self) -> Option<&NativeApp> {
        self.native.as_deref().filter(|_| self.app().is_none())
    }

    /// The app as `-A` names it.
    pub(crate) fn app(&self) -> Option<String> {
        let configured = || self.configuration.text(&["app"]).map(str::to_owned);
        let given = self.app.clone();
        given
            .or_else(|| variable(["APP", "CELERY_APP"]))
            .or_else(configured)
    }

    /// Puts what the command line says over the configuration.
    pub(crate) fn give_to(&self, configuration: &mut Configuration) {
        let given: [(&Option<String>, &[&str], &str); 3] = [
            (&self.app, &["app"], "--app"),
            (&self.broker, &["celery", "broker_url"], "--broker"),
            (
                &self.result_backend,
                &["celery", "result_backend"],
                "--result-backend",
            ),
        ];
        for (value, path, option) in given {
            if let Some(value) = value {
                configuration.give(path, value.as_str().into(), option);
            }
        }
    }

    /// The first of these environment variables that says something, exported or in `.env`.
    pub(crate) fn variable<const N: usize>(&self, names: [&str; N]) -> Option<String> {
        let of_file = |name: &&str| {
            let mut variables = self.configuration.variables();
            let (_, value) = variables.find(|(it, value)| it == name && !value.is_empty())?;
            Some(value.to_owned())
        };
        variable(names).or_else(|| names.iter().find_map(of_file))
    }

    /// Whether to do without colours; `None` where nobody said.
    pub(crate) fn no_color(&self) -> Option<bool> {
        (self.no_color || self.variable(["NO_COLOR", "CELERY_NO_COLOR"]).is_some()).then_some(true)
    }

    /// These options as words for `celery`.
    pub(crate) fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(app) = self.app() {
            words.extend(["-A".into(), app.into()]);
        }
        if let Some(workdir) = &self.workdir {
            words.extend(["--workdir".into(), workdir.into()]);
        }
        if self.no_color() == Some(true) {
            words.push("--no-color".into());
        }
        if self.quiet {
            words.push("--quiet".into());
        }
        words
    }

    /// What `celery` puts into the environment for these options, for the app to find, and before
    /// that the variables of `.env`.
    pub(crate) fn environment(&self) -> Vec<(String, OsString)> {
        let given = |value: &Option<String>, names| value.clone().or_else(|| self.variable(names));
        let skip_checks = self.skip_checks
            || self
                .variable(["SKIP_CHECKS", "CELERY_SKIP_CHECKS"])
                .is_some();
        let of_file = self.configuration.variables();
        let of_file = of_file.map(|(name, value)| (name.to_owned(), value.into()));
        let of_options = [
            (
                "CELERY_LOADER",
                given(&self.loader, ["LOADER", "CELERY_LOADER"]),
            ),
            (
                "CELERY_BROKER_URL",
                given(&self.broker, ["BROKER_URL", "CELERY_BROKER"]),
            ),
            (
                "CELERY_RESULT_BACKEND",
                given(
                    &self.result_backend,
                    ["RESULT_BACKEND", "CELERY_RESULT_BACKEND"],
                ),
            ),
            (
                "CELERY_CONFIG_MODULE",
                given(&self.config, ["CONFIG_MODULE", "CELERY_CONFIG"]),
            ),
            ("CELERY_SKIP_CHECKS", skip_checks.then(|| "true".to_owned())),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
        // Over the others: it is known which of all layers counts.
        let of_layers = self.configuration.pythons_variables();
        let of_layers = of_layers.map(|(name, value)| (name.to_owned(), value.into()));
        of_file.chain(of_options).chain(of_layers).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn global_options_stand_before_the_command_or_after_it() {
        for line in [
            &["celeriac", "-A", "proj", "worker", "-c", "2"][..],
            &["celeriac", "worker", "-A", "proj", "-c", "2"],
            &["celeriac", "worker", "-c2", "--app=proj"],
        ] {
            let arguments = Arguments::try_parse_from(line).unwrap();
            assert_eq!(arguments.global.app().as_deref(), Some("proj"), "{line:?}");
        }
    }

    #[test]
    fn words_that_only_the_app_knows_are_given_back() {
        let parsed = |line: &str| {
            let words: Vec<_> = line.split_whitespace().map(OsString::from).collect();
            parse(&words, &[])
                .map(|(_, unknown)| unknown)
                .map_err(|error| error.kind())
        };
        assert_eq!(parsed("celeriac worker -c 2"), Ok(vec![]));
        assert_eq!(
            parsed("celeriac -A p worker --tenant acme -c 2 --fast --depth=3 -- a.b=--c"),
            Ok(["--tenant", "acme", "--fast", "--depth=3"]
                .map(str::to_owned)
                .to_vec())
        );
        assert_eq!(
            parsed("celeriac purge --tenant"),
            Err(ErrorKind::UnknownArgument)
        );
        assert_eq!(parsed("celeriac worker -c"), Err(ErrorKind::InvalidValue));
        assert_eq!(parsed("celeriac wroker"), Err(ErrorKind::InvalidSubcommand));
    }

    #[test]
    fn the_last_of_an_option_counts() {
        let words = "celeriac worker -c 2 -l INFO -A one -c 3 -A two -l DEBUG";
        let words: Vec<_> = words.split(' ').map(OsString::from).collect();
        let (arguments, _) = parse(&words, &[]).unwrap();
        assert_eq!(arguments.global.app().as_deref(), Some("two"));
    }

    #[test]
    fn completions_offer_what_help_shows() {
        let shown = visible();
        let worker = shown.find_subcommand("worker").unwrap();
        assert!(
            worker
                .get_arguments()
                .any(|arg| arg.get_id() == "concurrency")
        );
        assert!(shown.get_arguments().all(|arg| arg.get_id() != "detached"));
    }

    #[test]
    fn options_reach_the_app_through_its_environment() {
        let line = [
            "celeriac",
            "-b",
            "redis://",
            "--skip-checks",
            "report",
            "--config=conf",
        ];
        let arguments = Arguments::try_parse_from(line).unwrap();
        let environment = arguments.global.environment();
        let value = |name| {
            environment
                .iter()
                .find(|(n, _)| n == name)
                .map(|(_, v)| v.to_str())
        };
        assert_eq!(value("CELERY_BROKER_URL"), Some(Some("redis://")));
        assert_eq!(value("CELERY_CONFIG_MODULE"), Some(Some("conf")));
        assert_eq!(value("CELERY_SKIP_CHECKS"), Some(Some("true")));
        assert_eq!(value("CELERY_LOADER"), None);
    }
}
