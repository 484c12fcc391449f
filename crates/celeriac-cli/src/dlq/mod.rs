//! `celeriac dlq`: the dead letters of the app's broker.

mod shown;

use std::io::{BufRead as _, IsTerminal as _};
use std::process::ExitCode;

use celeriac_core::broker::Session;
use celeriac_core::dead_letter::{Cause, DeadLetter};
use clap::{Args, Subcommand};

use crate::app_broker::AppBroker;
use crate::arguments::Global;
use crate::console;
use crate::failure::Failure;

/// How many letters a table has, unless more are asked for.
const LISTED: usize = 100;

/// What to do with dead letters.
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct DlqArguments {
    #[command(subcommand)]
    command: DlqCommand,
}

#[derive(Debug, Subcommand)]
enum DlqCommand {
    /// List dead letters, the latest first.
    List {
        #[command(flatten)]
        filter: Filter,
        /// At most so many [default: 100, with --json all]
        #[arg(short = 'n', long, value_name = "NUMBER")]
        limit: Option<usize>,
        /// As JSON, a letter a line, in full.
        #[arg(long)]
        json: bool,
    },
    /// Show all that is known of one.
    Show {
        /// The task's id.
        id: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Put them back into their queues: with the same ids, and their attempts begin anew.
    Replay(Choice),
    /// Forget them. There is no undo.
    Purge {
        #[command(flatten)]
        choice: Choice,
        /// Don't ask.
        #[arg(short, long)]
        force: bool,
    },
}

/// Which of them.
#[derive(Debug, Args, Default)]
struct Filter {
    /// Those of this task.
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// Those of this queue.
    #[arg(short = 'Q', long, value_name = "NAME")]
    queue: Option<String>,
    /// Those that died of this: undecodable, unknown-task, invalid, killed, out-of-memory, exited,
    /// time-limit, worker-lost or rejected.
    #[arg(long, value_name = "CAUSE", value_parser = cause)]
    cause: Option<Cause>,
}

/// Which of them, of those that are there.
#[derive(Debug, Args)]
struct Choice {
    /// The tasks' ids.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<String>,
    /// All of them, or all of one task, queue or cause.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: Filter,
}

fn cause(name: &str) -> Result<Cause, String> {
    let quoted = format!("\"{name}\"");
    serde_json::from_str(&quoted).map_err(|_| "there is no such cause: see --help".to_owned())
}

impl Filter {
    fn passes(&self, letter: &DeadLetter) -> bool {
        let is_task = |task: &String| letter.task.as_ref() == Some(task);
        self.task.as_ref().is_none_or(is_task)
            && self
                .queue
                .as_ref()
                .is_none_or(|queue| letter.queue == *queue)
            && self.cause.is_none_or(|cause| letter.cause == cause)
    }
}

impl Choice {
    /// The ids of those that are meant, and those that are not there.
    fn of(&self, letters: &[DeadLetter]) -> (Vec<String>, Vec<String>) {
        let there = letters.iter().filter(|letter| self.filter.passes(letter));
        let there: Vec<&String> = there.map(|letter| &letter.id).collect();
        if self.all {
            return (there.into_iter().cloned().collect(), Vec::new());
        }
        self.ids.iter().cloned().partition(|id| there.contains(&id))
    }
}

/// Carries out a command.
pub(crate) fn run(global: &Global, arguments: &DlqArguments) -> Result<ExitCode, Failure> {
    let app = AppBroker::of(global)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("There is no runtime: {error}")))?;
    runtime.block_on(async {
        let mut session = app.connect().await?;
        let status = carry_out(&mut *session, &arguments.command).await;
        // What it was to do is done, or told of.
        drop(session.close().await);
        status
    })
}

async fn carry_out(session: &mut dyn Session, command: &DlqCommand) -> Result<ExitCode, Failure> {
    let letters = session.dead_letters().await.map_err(refused)?;
    match command {
        DlqCommand::List {
            filter,
            limit,
            json,
        } => {
            let chosen = letters.iter().filter(|letter| filter.passes(letter));
            let chosen: Vec<&DeadLetter> = chosen.collect();
            let limit = limit.unwrap_or(if *json { usize::MAX } else { LISTED });
            let beyond = chosen.len().saturating_sub(limit);
            let listed = &chosen[..chosen.len() - beyond];
            if *json {
                for letter in listed {
                    console::print(&format!("{}\n", letter.to_json()));
                }
            } else {
                console::print(&shown::list(listed, beyond));
            }
        }
        DlqCommand::Show { id, json } => {
            let letter = letters.iter().find(|letter| letter.id == *id);
            let Some(letter) = letter else {
                return Err(missing(std::slice::from_ref(id)));
            };
            if *json {
                console::print(&format!("{}\n", letter.to_json()));
            } else {
                console::print(&shown::in_full(letter));
            }
        }
        DlqCommand::Replay(choice) => {
            let (ids, absent) = choice.of(&letters);
            let count = session.replay(&ids).await.map_err(refused)?;
            console::print(&format!("{} back in their queues.\n", shown::count(count)));
            if !absent.is_empty() {
                return Err(missing(&absent));
            }
        }
        DlqCommand::Purge { choice, force } => {
            let (ids, absent) = choice.of(&letters);
            if !ids.is_empty() && !force && !is_sure(ids.len()) {
                return Err(Failure::new("Nothing was forgotten").with_hint("say yes, or use -f"));
            }
            let count = session.forget(&ids).await.map_err(refused)?;
            console::print(&format!("{} forgotten.\n", shown::count(count)));
            if !absent.is_empty() {
                return Err(missing(&absent));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn is_sure(count: usize) -> bool {
    if !std::io::stdin().is_terminal() {
        return false;
    }
    let count = shown::count(count as u64);
    console::print(&format!(
        "{count} will be forgotten for ever. Are you sure? [yes/no] "
    ));
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim(), "y" | "yes")
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn refused(error: celeriac_core::broker::Error) -> Failure {
    Failure::new(error.in_full())
}

fn missing(ids: &[String]) -> Failure {
    Failure::new(format!("There is no dead letter {}", ids.join(", ")))
        .with_hint("`celeriac dlq list` shows those that there are")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_among_those_that_are_there() {
        let letters = [
            shown::tests::letter("1", "a"),
            shown::tests::letter("2", "b"),
        ];
        let texts = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let choice = |ids: &[&str], all, task: Option<&str>| Choice {
            ids: texts(ids),
            all,
            filter: Filter {
                task: task.map(str::to_owned),
                ..Filter::default()
            },
        };
        for (chosen, there, absent) in [
            (choice(&["1", "3"], false, None), vec!["1"], vec!["3"]),
            (choice(&["1"], false, Some("b")), vec![], vec!["1"]),
            (choice(&[], true, None), vec!["1", "2"], vec![]),
            (choice(&[], true, Some("b")), vec!["2"], vec![]),
        ] {
            assert_eq!(chosen.of(&letters), (texts(&there), texts(&absent)));
        }
    }

    #[test]
    fn causes_are_read_as_they_are_shown() {
        assert_eq!(cause("out-of-memory"), Ok(Cause::OutOfMemory));
        assert!(cause("boredom").is_err());
    }
}
