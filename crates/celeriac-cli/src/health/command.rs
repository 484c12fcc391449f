//! `celeriac health`: asks the workers of this host how they are, without Python and without the
//! broker.

use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use celeriac_net::runtime_folder;
use clap::Args;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::node;
use super::place::{self, Socket};
use super::report::{Question, Report};
use crate::console;
use crate::failure::Failure;

/// What `celery` exits with when no worker answers (`EX_UNAVAILABLE`).
const EX_UNAVAILABLE: u8 = 69;
/// Longer than any answer.
const MAX_ANSWER: u64 = 256 * 1024;

const REQUEST: &[u8] = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// Options of `celeriac health`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 when all workers that were asked are well, 1 when one is \
                        not or does not answer in time, 69 when there is none."
)]
pub(crate) struct HealthArguments {
    /// Ask this node, such as w1@%h [default: all workers of this user on this host]
    #[arg(short = 'n', long, env = "CELERY_WORKER_HOSTNAME")]
    hostname: Option<String>,
    /// Ask the worker whose process id is in this file, whoever its user is.
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// Does the worker run tasks that come? It is connected, consumes, has a process that is up, and
    /// does not shut down. This is asked for by default.
    #[arg(long, group = "question")]
    ready: bool,
    /// Does the worker live? No when its loop does not turn, or when only a restart can help. That
    /// the broker is down is no reason.
    #[arg(long, group = "question")]
    live: bool,
    /// Is the worker's start over?
    #[arg(long, group = "question")]
    started: bool,
    /// Seconds to wait for answers.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = patience)]
    timeout: Duration,
    /// Write a JSON object for each worker, with all answers.
    #[arg(long)]
    json: bool,
}

fn patience(text: &str) -> Result<Duration, String> {
    text.parse()
        .map_err(|_| "write a number of seconds, such as 0.5".to_owned())
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string()))
}

/// What asking a worker came to.
enum Heard {
    Report(Report),
    /// It is there, and says nothing that can be used.
    Silence(String),
    /// It has ended.
    Nobody,
}

/// Asks, shows the answers, and gives the exit status.
///
/// # Errors
/// When nobody can be asked.
pub(crate) fn run(arguments: &HealthArguments) -> Result<ExitCode, Failure> {
    let question = match arguments {
        HealthArguments { live: true, .. } => Question::Live,
        HealthArguments { started: true, .. } => Question::Started,
        _ => Question::Ready,
    };
    let sockets = chosen(arguments)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("Workers can't be asked: {error}")))?;
    let asked = runtime.block_on(ask_all(sockets, arguments.timeout));
    let mut is_well = true;
    let mut shown = String::new();
    for (socket, heard) in &asked {
        let pid = socket.pid;
        let line = match heard {
            Heard::Nobody => continue,
            Heard::Report(report) => {
                let answer = report.answer(question);
                is_well = is_well && answer.ok;
                if arguments.json {
                    json!(report).to_string()
                } else {
                    format!("{}: {}", report.hostname, answer.line(question))
                }
            }
            Heard::Silence(reason) => {
                is_well = false;
                if arguments.json {
                    let no = json!({"ok": false, "reasons": [reason]});
                    json!({"hostname": null, "pid": pid, "live": no, "ready": no, "started": no})
                        .to_string()
                } else {
                    format!("process {pid}: not {}: {reason}", question.word())
                }
            }
        };
        shown.push_str(&line);
        shown.push('\n');
    }
    if shown.is_empty() {
        return Err(none_found(arguments));
    }
    console::print(&shown);
    Ok(if is_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn none_found(arguments: &HealthArguments) -> Failure {
    let which = match (&arguments.pidfile, &arguments.hostname) {
        (Some(pidfile), _) => format!("No worker runs for {}.", pidfile.display()),
        (None, Some(name)) => format!("No worker {} runs here.", named(name)),
        (None, None) => "No worker of this user runs here.".to_owned(),
    };
    Failure::new(which).with_status(EX_UNAVAILABLE).with_hint(
        "start one, or ask as its user and with its XDG_RUNTIME_DIR (a worker can be asked once \
         its app is loaded)",
    )
}

fn named(given: &str) -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    node::name(given, &host.to_string_lossy())
}

/// The sockets of the workers that are meant.
fn chosen(arguments: &HealthArguments) -> Result<Vec<Socket>, Failure> {
    let own = runtime_folder::user();
    if let Some(pidfile) = &arguments.pidfile {
        let Some(pid) = running(pidfile).map_err(|error| {
            Failure::new(format!("{}: {error}", pidfile.display()))
                .with_status(EX_UNAVAILABLE)
                .with_hint("name the file that the worker's --pidfile names")
        })?
        else {
            return Ok(Vec::new());
        };
        // A probe is often somebody else's than the worker: root's.
        let user = std::fs::metadata(format!("/proc/{pid}")).map_or(own, |found| found.uid());
        let mut sockets = place::sockets(user);
        sockets.retain(|socket| socket.pid == pid);
        return Ok(sockets);
    }
    let mut sockets = place::sockets(own);
    if let Some(given) = &arguments.hostname {
        let hash = node::hash(&named(given));
        sockets.retain(|socket| socket.node == hash);
    }
    Ok(sockets)
}

/// The process that a pidfile names; `None` where it names none.
fn running(pidfile: &Path) -> io::Result<Option<u32>> {
    let mut text = String::new();
    std::fs::File::open(pidfile)?
        .take(32)
        .read_to_string(&mut text)?;
    Ok(text.trim().parse().ok())
}

/// Asks all at once.
async fn ask_all(sockets: Vec<Socket>, patience: Duration) -> Vec<(Socket, Heard)> {
    let asking: Vec<_> = sockets
        .into_iter()
        .map(|socket| tokio::spawn(async move { (ask(&socket, patience).await, socket) }))
        .collect();
    let mut asked = Vec::new();
    for one in asking {
        if let Ok((heard, socket)) = one.await {
            asked.push((socket, heard));
        }
    }
    asked
}

async fn ask(socket: &Socket, patience: Duration) -> Heard {
    let asking = async {
        let mut stream = match UnixStream::connect(&socket.path).await {
            Ok(stream) => stream,
            Err(error) => return Err(error),
        };
        stream.write_all(REQUEST).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        Ok(answer)
    };
    match tokio::time::timeout(patience, asking).await {
        Err(_) => Heard::Silence(format!(
            "it does not answer within {} s",
            patience.as_secs_f64()
        )),
        Ok(Err(error)) => match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Heard::Nobody,
            _ => Heard::Silence(format!("it can't be asked: {error}")),
        },
        Ok(Ok(answer)) => match read(&answer) {
            Ok(report) => Heard::Report(report),
            Err(words) => Heard::Silence(words),
        },
    }
}

/// The report in an HTTP response, or why there is none.
fn read(response: &[u8]) -> Result<Report, String> {
    let text = String::from_utf8_lossy(response);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).map_err(|_| match body.trim() {
        "" => "its answer was cut off".to_owned(),
        words => words.to_owned(),
    })
}
