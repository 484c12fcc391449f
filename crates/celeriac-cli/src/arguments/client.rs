//! Options of the commands that talk to the broker and the result backend.
//!
//! They are Celery's own; it is told of them in the app's interpreter.

use clap::{Args, Subcommand};

/// What to call, and how.
#[derive(Debug, Args)]
pub(crate) struct CallArguments {
    /// The task's name.
    pub(crate) name: String,
    /// Positional arguments, as a JSON array.
    #[arg(short, long, value_name = "JSON", allow_hyphen_values = true)]
    pub(crate) args: Option<String>,
    /// Keyword arguments, as a JSON object.
    #[arg(short, long, value_name = "JSON", allow_hyphen_values = true)]
    pub(crate) kwargs: Option<String>,
    /// Not before this moment.
    #[arg(long, value_name = "ISO 8601")]
    pub(crate) eta: Option<String>,
    /// Not before so many seconds from now.
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub(crate) countdown: Option<String>,
    /// Not after this moment, or so many seconds from now.
    #[arg(long, value_name = "ISO 8601 OR SECONDS", allow_hyphen_values = true)]
    pub(crate) expires: Option<String>,
    /// The serializer of the message.
    #[arg(long, value_name = "NAME")]
    pub(crate) serializer: Option<String>,
    /// The queue.
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: Option<String>,
    /// The exchange.
    #[arg(long, value_name = "NAME")]
    pub(crate) exchange: Option<String>,
    /// The routing key.
    #[arg(long, value_name = "KEY")]
    pub(crate) routing_key: Option<String>,
}

/// Whose result.
#[derive(Debug, Args)]
pub(crate) struct ResultArguments {
    /// The task's id.
    pub(crate) task_id: String,
    /// The task's name, where it has a backend of its own.
    #[arg(short, long, value_name = "NAME")]
    task: Option<String>,
    /// Show the traceback instead.
    #[arg(long)]
    pub(crate) traceback: bool,
}

/// Which queues.
#[derive(Debug, Args)]
pub(crate) struct PurgeArguments {
    /// Don't ask.
    #[arg(short, long)]
    pub(crate) force: bool,
    /// These queues, with commas between [default: all that the app knows]
    #[arg(short = 'Q', long, value_name = "NAMES")]
    pub(crate) queues: Option<String>,
    /// All but these queues.
    #[arg(short = 'X', long, value_name = "NAMES")]
    pub(crate) exclude_queues: Option<String>,
}

/// What to move, and where.
#[derive(Debug, Args)]
pub(crate) struct MigrateArguments {
    /// URL of the broker that has the tasks.
    source: String,
    /// URL of the broker that gets them.
    destination: String,
    /// At most so many tasks.
    #[arg(short = 'n', long, value_name = "NUMBER")]
    limit: Option<String>,
    /// Seconds without a task after which no more is waited for.
    #[arg(short, long, value_name = "SECONDS")]
    timeout: Option<String>,
    /// Remove what was moved from its source.
    #[arg(short, long)]
    ack_messages: bool,
    /// Only these tasks, with commas between.
    #[arg(short = 'T', long, value_name = "NAMES")]
    tasks: Option<String>,
    /// Only these queues, with commas between.
    #[arg(short = 'Q', long, value_name = "NAMES")]
    queues: Option<String>,
    /// Go on until stopped.
    #[arg(short = 'F', long)]
    forever: bool,
}

/// A command of AMQP, such as queue.declare; without one it asks for them.
#[derive(Debug, Args)]
pub(crate) struct AmqpArguments {
    /// The command and what it is about.
    #[arg(value_name = "WORD", allow_negative_numbers = true)]
    words: Vec<String>,
}

/// What to list.
#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    #[command(subcommand)]
    command: ListCommand,
}

#[derive(Debug, Subcommand)]
enum ListCommand {
    /// Bindings of exchanges to queues.
    Bindings,
}

/// A command as `celery` has it.
pub(crate) trait CeleryCommand {
    /// Its words: the name and the options.
    fn words(&self) -> Vec<String>;
}

pub(super) fn options<'o>(
    words: &mut Vec<String>,
    given: impl IntoIterator<Item = (&'o str, &'o Option<String>)>,
) {
    for (name, value) in given {
        words.extend(value.as_ref().map(|value| format!("--{name}={value}")));
    }
}

pub(super) fn flags<'f>(words: &mut Vec<String>, given: impl IntoIterator<Item = (&'f str, bool)>) {
    let given = given.into_iter().filter(|(_, is_set)| *is_set);
    words.extend(given.map(|(name, _)| format!("--{name}")));
}

impl CeleryCommand for CallArguments {
    fn words(&self) -> Vec<String> {
        let mut words = vec!["call".to_owned()];
        options(
            &mut words,
            [
                ("args", &self.args),
                ("kwargs", &self.kwargs),
                ("eta", &self.eta),
                ("countdown", &self.countdown),
                ("expires", &self.expires),
                ("serializer", &self.serializer),
                ("queue", &self.queue),
                ("exchange", &self.exchange),
                ("routing-key", &self.routing_key),
            ],
        );
        words.extend(["--".to_owned(), self.name.clone()]);
        words
    }
}

impl CeleryCommand for ResultArguments {
    fn words(&self) -> Vec<String> {
        let mut words = vec!["result".to_owned()];
        options(&mut words, [("task", &self.task)]);
        if self.traceback {
            words.push("--traceback".to_owned());
        }
        words.extend(["--".to_owned(), self.task_id.clone()]);
        words
    }
}

impl CeleryCommand for PurgeArguments {
    fn words(&self) -> Vec<String> {
        let mut words = vec!["purge".to_owned()];
        if self.force {
            words.push("--force".to_owned());
        }
        let queues = [
            ("queues", &self.queues),
            ("exclude-queues", &self.exclude_queues),
        ];
        options(&mut words, queues);
        words
    }
}

impl CeleryCommand for ListArguments {
    fn words(&self) -> Vec<String> {
        match self.command {
            ListCommand::Bindings => vec!["list".to_owned(), "bindings".to_owned()],
        }
    }
}

impl CeleryCommand for MigrateArguments {
    fn words(&self) -> Vec<String> {
        let mut words = vec!["migrate".to_owned()];
        // Without one Celery's command never ends; its function has this default.
        let timeout = self
            .timeout
            .clone()
            .or((!self.forever).then(|| "1.0".to_owned()));
        let given = [
            ("limit", &self.limit),
            ("timeout", &timeout),
            ("tasks", &self.tasks),
            ("queues", &self.queues),
        ];
        options(&mut words, given);
        flags(
            &mut words,
            [
                ("ack-messages", self.ack_messages),
                ("forever", self.forever),
            ],
        );
        words.extend([
            "--".to_owned(),
            self.source.clone(),
            self.destination.clone(),
        ]);
        words
    }
}

impl CeleryCommand for AmqpArguments {
    fn words(&self) -> Vec<String> {
        let mut words = vec!["amqp".to_owned()];
        words.extend(self.words.iter().cloned());
        words
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::arguments::{Arguments, Command};

    #[test]
    fn celery_is_told_what_was_asked() {
        let words = |line: &[&str]| {
            let line = ["celeriac"].iter().chain(line);
            match Arguments::try_parse_from(line).unwrap().command {
                Command::Call(call) => call.words(),
                Command::Result(result) => result.words(),
                Command::Purge(purge) => purge.words(),
                Command::List(list) => list.words(),
                Command::Migrate(migrate) => migrate.words(),
                Command::Amqp(amqp) => amqp.words(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            words(&["call", "proj.add", "-a", "[-1, 2]", "--countdown", "-1.5"]),
            [
                "call",
                "--args=[-1, 2]",
                "--countdown=-1.5",
                "--",
                "proj.add"
            ]
        );
        assert_eq!(
            words(&["result", "-t", "n", "an-id"]),
            ["result", "--task=n", "--", "an-id"]
        );
        assert_eq!(
            words(&["purge", "-fQ", "a,b"]),
            ["purge", "--force", "--queues=a,b"]
        );
        assert_eq!(words(&["list", "bindings"]), ["list", "bindings"]);
        assert_eq!(
            words(&["migrate", "-an", "3", "redis://a", "redis://b", "-Q", "q"]),
            [
                "migrate",
                "--limit=3",
                "--timeout=1.0",
                "--queues=q",
                "--ack-messages",
                "--",
                "redis://a",
                "redis://b"
            ]
        );
        assert_eq!(
            words(&["amqp", "queue.purge", "q"]),
            ["amqp", "queue.purge", "q"]
        );
    }
}
