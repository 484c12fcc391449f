//! Options of the commands that talk to workers: those of `celery inspect`, `control`, `status` and
//! `events`.

use clap::Args;

use super::client::{CeleryCommand, flags, options};

/// What to ask nodes, and which.
#[derive(Debug, Args)]
pub(crate) struct RemoteArguments {
    /// The command.
    #[arg(required_unless_present = "list")]
    command: Option<String>,
    /// What the command is about.
    #[arg(value_name = "ARGUMENT", allow_negative_numbers = true)]
    arguments: Vec<String>,
    /// List the commands that there are.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    replies: ReplyArguments,
}

/// Whose replies are waited for.
#[derive(Debug, Args)]
pub(crate) struct ReplyArguments {
    /// Seconds without a reply after which no more is waited for [default: 1]
    #[arg(short, long, value_name = "SECONDS")]
    timeout: Option<String>,
    /// Only these nodes, with commas between.
    #[arg(short, long, value_name = "NODES")]
    destination: Option<String>,
    /// Write JSON.
    #[arg(short, long)]
    json: bool,
}

/// How to watch events.
#[derive(Debug, Args)]
pub(crate) struct EventsArguments {
    /// Write each event as a line, instead of showing tasks and workers in the terminal.
    #[arg(short, long)]
    dump: bool,
    /// Take snapshots with this class.
    #[arg(short, long, value_name = "CLASS")]
    camera: Option<String>,
    /// Take snapshots in the background.
    #[arg(long)]
    detach: bool,
    /// Seconds between two snapshots [default: 1]
    #[arg(short = 'F', long, visible_alias = "freq", value_name = "SECONDS")]
    frequency: Option<String>,
    /// The most snapshots in a time, such as 10/m.
    #[arg(short = 'r', long, value_name = "RATE")]
    maxrate: Option<String>,
    /// DEBUG, INFO, WARNING, ERROR, CRITICAL or FATAL.
    #[arg(short, long, value_name = "LEVEL")]
    loglevel: Option<String>,
    /// Write the log to this file [default: standard error]
    #[arg(short = 'f', long, value_name = "FILE")]
    logfile: Option<String>,
    /// Write the process id to this file.
    #[arg(long, value_name = "FILE")]
    pidfile: Option<String>,
    /// Become this user.
    #[arg(long, value_name = "USER")]
    uid: Option<String>,
    /// Become this group.
    #[arg(long, value_name = "GROUP")]
    gid: Option<String>,
    /// Mask for the permissions of new files, in octal.
    #[arg(long, value_name = "MASK")]
    umask: Option<String>,
}

/// `inspect` or `control`.
pub(crate) struct Remote<'r> {
    /// Which of them.
    pub(crate) name: &'static str,
    /// What was asked.
    pub(crate) arguments: &'r RemoteArguments,
}

impl CeleryCommand for Remote<'_> {
    fn words(&self) -> Vec<String> {
        let mut words = vec![self.name.to_owned()];
        if self.arguments.list {
            words.push("--list".to_owned());
        }
        self.arguments.replies.push(&mut words);
        words.push("--".to_owned());
        words.extend(self.arguments.command.clone());
        words.extend(self.arguments.arguments.iter().cloned());
        words
    }
}

impl ReplyArguments {
    fn push(&self, words: &mut Vec<String>) {
        let given = [
            ("timeout", &self.timeout),
            ("destination", &self.destination),
        ];
        options(words, given);
        flags(words, [("json", self.json)]);
    }
}

/// `status`.
impl CeleryCommand for ReplyArguments {
    fn words(&self) -> Vec<String> {
        let mut words = vec!["status".to_owned()];
        self.push(&mut words);
        words
    }
}

impl CeleryCommand for EventsArguments {
    fn words(&self) -> Vec<String> {
        let mut words = vec!["events".to_owned()];
        flags(&mut words, [("dump", self.dump), ("detach", self.detach)]);
        let given = [
            ("camera", &self.camera),
            ("frequency", &self.frequency),
            ("maxrate", &self.maxrate),
            ("loglevel", &self.loglevel),
            ("logfile", &self.logfile),
            ("pidfile", &self.pidfile),
            ("uid", &self.uid),
            ("gid", &self.gid),
            ("umask", &self.umask),
        ];
        options(&mut words, given);
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
                Command::Inspect(arguments) => {
                    let name = "inspect";
                    Remote {
                        name,
                        arguments: &arguments,
                    }
                    .words()
                }
                Command::Control(arguments) => {
                    let name = "control";
                    Remote {
                        name,
                        arguments: &arguments,
                    }
                    .words()
                }
                Command::Status(status) => status.words(),
                Command::Events(events) => events.words(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            words(&[
                "inspect",
                "-t",
                "3",
                "active",
                "-A",
                "proj",
                "-d",
                "w1@h,w2@h"
            ]),
            [
                "inspect",
                "--timeout=3",
                "--destination=w1@h,w2@h",
                "--",
                "active"
            ]
        );
        assert_eq!(
            words(&["control", "-j", "rate_limit", "proj.add", "10/m"]),
            ["control", "--json", "--", "rate_limit", "proj.add", "10/m"]
        );
        assert_eq!(
            words(&["control", "pool_grow", "-1"]),
            ["control", "--", "pool_grow", "-1"]
        );
        assert_eq!(words(&["inspect", "--list"]), ["inspect", "--list", "--"]);
        assert_eq!(words(&["status", "-t5"]), ["status", "--timeout=5"]);
        assert_eq!(words(&["events", "-d"]), ["events", "--dump"]);
        assert_eq!(
            words(&[
                "events",
                "-c",
                "m.Cam",
                "--detach",
                "-F",
                "2",
                "--pidfile=x"
            ]),
            [
                "events",
                "--detach",
                "--camera=m.Cam",
                "--frequency=2",
                "--pidfile=x"
            ]
        );
    }

    #[test]
    fn a_command_is_required_unless_they_are_listed() {
        assert!(Arguments::try_parse_from(["celeriac", "inspect"]).is_err());
        assert!(Arguments::try_parse_from(["celeriac", "control", "--list"]).is_ok());
    }
}
