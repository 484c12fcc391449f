//! The task that runs a command.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use celeriac_core::journal::Level;
use celeriac_native::error::{Error as Ending, Failure, Result};
use celeriac_native::{Arguments, Cause, Context, Options, Task};
use celeriac_protocol::Exception;
use nix::unistd::{Gid, Group, Uid, User};
use serde_json::{Map, Value, json};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::Receiver;
use tokio::time::Instant;

use crate::call::Call;
use crate::capture::Capture;
use crate::keeper::spec::{Exit, Identity, Order};
use crate::lines::Lines;
use crate::options::{CommandOptions, LogLevel};
use crate::process::{self, Keeper, Running};
use crate::template::{self, Template};

/// How long the end of everything takes after SIGKILL, on a machine that is busy.
pub(crate) const END: Duration = Duration::from_secs(5);
/// The longest line in the log, in bytes.
const LINE: usize = 4096;
/// How much is read at once.
const CHUNK: usize = 64 << 10;
/// How many of the last lines a failure shows.
const LAST_LINES: usize = 10;

/// Why a command is no task.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It has no name.
    #[error("a command has no name")]
    NoName,
    /// It says both what is run and what callers may run, or what goes with the other only.
    #[error("command {0}: {1} is for commands that {2}")]
    Contradiction(String, &'static str, &'static str),
    /// A placeholder is wrong.
    #[error("command {0}: {1}")]
    Template(String, template::Error),
    /// The name of a file has a placeholder that it can't have.
    #[error(
        "command {0}: the file name `{1}` has the placeholder `{{{2}}}`; there are \
         {{task_id}}, {{task}} and {{retries}}"
    )]
    FileName(String, String, String),
    /// A default for an argument that nothing stands for.
    #[error("command {0}: there is a default for `{1}`, but no placeholder {{{1}}}")]
    NoSuchArgument(String, String),
    /// A user or a group does not exist.
    #[error("command {0}: there is no {1} `{2}` on this machine")]
    Unknown(String, &'static str, String),
    /// This program can't be a keeper.
    #[error(
        "command {0}: this program has not called celeriac_command::keeper::enter() at the \
         beginning of its main, which commands need"
    )]
    NoKeeper(String),
}

/// A task that runs a command.
///
/// # Errors
/// When the options contradict each other or name what is not there, and in a program that has not
/// called [`crate::keeper::enter`].
pub fn command(options: CommandOptions) -> Result<Arc<dyn Task>, Error> {
    match Keeper::own() {
        Some(keeper) => command_with(keeper, options),
        None => Err(Error::NoKeeper(options.name)),
    }
}

/// A task that runs a command under a keeper of another program.
///
/// # Errors
/// As [`command`], but for the last.
pub fn command_with(keeper: Keeper, options: CommandOptions) -> Result<Arc<dyn Task>, Error> {
    let name = options.name.clone();
    if name.is_empty() {
        return Err(Error::NoName);
    }
    let contradiction = |what, kind| Err(Error::Contradiction(name.clone(), what, kind));
    let declared = "are declared by `argv`";
    let named = "callers name, which have no `argv`";
    if options.argv.is_empty() {
        if options.shell || !options.defaults.is_empty() {
            return contradiction("`shell` or `defaults`", declared);
        }
        if options.cwd.is_some() || options.stdin.is_some() {
            return contradiction("`cwd` or `stdin`", declared);
        }
    } else if !(options.programs.is_empty()
        && options.caller_env.is_empty()
        && options.caller_cwd.is_empty())
    {
        return contradiction("`programs`, `caller_env` or `caller_cwd`", named);
    }
    let wrong = |error| Error::Template(name.clone(), error);
    let identity = identity(&options)?;
    let call = Call::new(&options, identity).map_err(wrong)?;
    if options.argv.is_empty() && !call.parameters().is_empty() {
        return contradiction("a placeholder in `env`", declared);
    }
    if let Some(unknown) = options
        .defaults
        .keys()
        .find(|name| !call.parameters().contains(name))
    {
        return Err(Error::NoSuchArgument(name, unknown.clone()));
    }
    let file = |written: &Option<String>| {
        let Some(written) = written else {
            return Ok(None);
        };
        let template = Template::parse(written).map_err(wrong)?;
        let known = ["task_id", "task", "retries"];
        if let Some(other) = template.names().find(|name| !known.contains(name)) {
            return Err(Error::FileName(
                name.clone(),
                written.clone(),
                other.to_owned(),
            ));
        }
        Ok(Some(template))
    };
    Ok(Arc::new(CommandTask {
        stdout_file: file(&options.stdout_file)?,
        stderr_file: file(&options.stderr_file)?,
        task_options: options.task_options(),
        options,
        call,
        keeper,
    }))
}

/// Whom a command runs as.
fn identity(options: &CommandOptions) -> Result<Option<Identity>, Error> {
    let unknown = |kind, who: &str| Error::Unknown(options.name.clone(), kind, who.to_owned());
    let user = match &options.user {
        None => None,
        Some(user) => Some(match (User::from_name(user), user.parse::<u32>()) {
            (Ok(Some(found)), _) => (found.uid.as_raw(), found.gid.as_raw(), Some(found.name)),
            (_, Ok(number)) => match User::from_uid(Uid::from_raw(number)) {
                Ok(Some(found)) => (number, found.gid.as_raw(), Some(found.name)),
                _ => (number, number, None),
            },
            _ => return Err(unknown("user", user)),
        }),
    };
    let group = match &options.group {
        None => None,
        Some(group) => Some(match (Group::from_name(group), group.parse::<u32>()) {
            (Ok(Some(found)), _) => found.gid,
            (_, Ok(number)) => Gid::from_raw(number),
            _ => return Err(unknown("group", group)),
        }),
    };
    if user.is_none() && group.is_none() {
        return Ok(None);
    }
    let (uid, own_group, name) = user.unwrap_or_else(|| (nix::unistd::geteuid().as_raw(), 0, None));
    Ok(Some(Identity {
        uid,
        gid: group.map_or(own_group, Gid::as_raw),
        name,
    }))
}

struct CommandTask {
    options: CommandOptions,
    task_options: Options,
    call: Call,
    keeper: Keeper,
    stdout_file: Option<Template>,
    stderr_file: Option<Template>,
}

#[async_trait]
impl Task for CommandTask {
    fn name(&self) -> &str {
        &self.options.name
    }

    fn options(&self) -> &Options {
        &self.task_options
    }

    async fn run(&self, context: Context, arguments: Arguments) -> Result<Value> {
        let worker = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        let mut spec = self.call.spec(arguments, worker)?;
        if let Some(name) = spec.identity.as_ref().and_then(|who| who.name.clone())
            && let Ok(Some(user)) = User::from_name(&name)
        {
            let home = user.dir.to_string_lossy().into_owned();
            for (variable, value) in [("HOME", home), ("USER", name.clone()), ("LOGNAME", name)] {
                if !self.options.env.contains_key(variable) {
                    spec.env.insert(variable.to_owned(), value);
                }
            }
        }
        let stdout_file = open(self.stdout_file.as_ref(), &context).await?;
        let stderr_file = open(self.stderr_file.as_ref(), &context).await?;
        let began = Instant::now();
        let started = self.keeper.start(&spec).await;
        let (mut running, stdout, stderr) = started.map_err(|error| self.failure(&error))?;
        let (ended, stdout, stderr) = tokio::join!(
            self.supervise(&mut running, &context),
            self.follow(stdout, stdout_file, &context),
            self.follow(stderr, stderr_file, &context),
        );
        let (exit, cause) = ended.map_err(|error| self.failure(&error))?;
        let (stdout, stderr) = (stdout?, stderr?);
        if let Some(Cause::SoftTimeLimit(_)) = cause {
            let exception = Exception {
                exc_message: Vec::new(),
                ..Exception::new("billiard.exceptions", "SoftTimeLimitExceeded", "")
            };
            return Err(exception.into());
        }
        match exit {
            Exit::Code(code) if self.options.success_codes.0.contains(&code) => Ok(json!({
                "exit_code": code,
                "stdout": stdout.text(),
                "stderr": stderr.text(),
                "truncated": stdout.is_truncated() || stderr.is_truncated(),
                "runtime": began.elapsed().as_secs_f64(),
            })),
            exit => {
                let failure = Self::failed(exit, &stdout, &stderr);
                match exit {
                    Exit::Code(code) if self.options.retry_codes.contains(&code) => {
                        Err(failure.retried())
                    }
                    _ => Err(failure),
                }
            }
        }
    }
}

impl CommandTask {
    /// Waits for the command's end, which it brings about when the task is to end.
    async fn supervise(
        &self,
        running: &mut Running,
        context: &Context,
    ) -> Result<(Exit, Option<Cause>), process::Error> {
        let mut cancellation = context.cancellation();
        let cause = tokio::select! {
            exit = running.ended() => return Ok((exit?, None)),
            cause = cancellation.cancelled() => cause,
        };
        // A keeper that is gone is noticed below.
        let _ = running.signal(Order::Terminate).await;
        tokio::select! {
            exit = running.ended() => return Ok((exit?, Some(cause))),
            () = tokio::time::sleep(self.options.grace()) => {}
            // A hard limit after the soft one; nothing is given more time twice.
            Cause::TimeLimit(_) = cancellation.cancelled_beyond(cause) => {}
        }
        let _ = running.signal(Order::Kill).await;
        Ok((running.ended().await?, Some(cause)))
    }

    /// Takes an output to its end: to the log, to its file, and to what the result shows of it.
    async fn follow(
        &self,
        mut output: Receiver,
        mut file: Option<(PathBuf, File)>,
        context: &Context,
    ) -> Result<Capture> {
        let level = match self.options.log {
            LogLevel::Off => None,
            LogLevel::Debug => Some(Level::Debug),
            LogLevel::Info => Some(Level::Info),
            LogLevel::Warning => Some(Level::Warning),
        };
        let kept = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut capture = Capture::new(
            kept(self.options.output_head.0.0),
            kept(self.options.output_tail.0.0),
        );
        let mut lines = Lines::new(LINE);
        let mut chunk = vec![0; CHUNK];
        let mut unwritten = None;
        loop {
            let count = output.read(&mut chunk).await.unwrap_or(0);
            if count == 0 {
                break;
            }
            let bytes = &chunk[..count];
            capture.push(bytes);
            if let Some(level) = level {
                lines.push(bytes, |line| context.log(level, line));
            }
            if let Some((path, open)) = &mut file
                && let Err(error) = open.write_all(bytes).await
            {
                // The command goes on: its output must not fill the pipe.
                unwritten = Some(file_error(path, &error));
                file = None;
            }
        }
        if let Some(level) = level {
            lines.finish(|line| context.log(level, line));
        }
        if let Some((path, open)) = &mut file
            && let Err(error) = open.flush().await
        {
            unwritten = Some(file_error(path, &error));
        }
        match unwritten {
            Some(error) => Err(error.into()),
            None => Ok(capture),
        }
    }

    fn failure(&self, error: &process::Error) -> Ending {
        let text = format!("{}: {error}", self.options.name);
        Exception::new("celeriac.exceptions", "CommandFailed", text).into()
    }

    fn failed(exit: Exit, stdout: &Capture, stderr: &Capture) -> Ending {
        let how = match exit {
            Exit::Code(code) => format!("exit code {code}"),
            Exit::Signal(number) => match nix::sys::signal::Signal::try_from(number) {
                Ok(signal) => format!("signal {number} ({signal})"),
                Err(_) => format!("signal {number}"),
            },
        };
        let last = [stderr, stdout]
            .map(|output| output.last_lines(LAST_LINES))
            .into_iter()
            .find(|lines| !lines.is_empty());
        let text = match last {
            Some(lines) => format!("{how}\n{lines}"),
            None => how,
        };
        Ending::new(celeriac_native::error::Ending::Failure(Failure {
            exception: Exception::new("celeriac.exceptions", "CommandFailed", text),
            traceback: None,
        }))
    }
}

/// Opens a file for an output, whose folder it makes.
async fn open(name: Option<&Template>, context: &Context) -> Result<Option<(PathBuf, File)>> {
    let Some(name) = name else {
        return Ok(None);
    };
    let request = context.request();
    let mut known = Map::new();
    known.insert("task_id".to_owned(), request.id.replace('/', "_").into());
    known.insert("task".to_owned(), request.task.replace('/', "_").into());
    known.insert("retries".to_owned(), request.retries.into());
    let path = PathBuf::from(name.text(&known)?);
    let opened = async {
        if let Some(folder) = path.parent() {
            tokio::fs::create_dir_all(folder).await?;
        }
        let mut options = OpenOptions::new();
        options.append(true).create(true).open(&path).await
    };
    match opened.await {
        Ok(file) => Ok(Some((path, file))),
        Err(error) => Err(file_error(&path, &error).into()),
    }
}

fn file_error(path: &std::path::Path, error: &io::Error) -> Exception {
    Exception::builtin("OSError", format!("{}: {error}", path.display()))
}
