//! Starting the interpreter, and the first conversation with it.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use bytes::Bytes;
use celeriac_config::Description;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use super::frame::Frame;
use super::shim;
use crate::sys::process;
use crate::sys::seqpacket::{self, SeqPacket};

/// What the host is to load, and how.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// The interpreter.
    pub python: PathBuf,
    /// The app, as `-A` names it.
    pub app: Option<String>,
    /// `sys.argv` for the app's code: what `celery` would have been called with.
    pub argv: Vec<String>,
    /// Environment variables to set.
    pub environment: Vec<(String, OsString)>,
    /// The worker's options by their names on Celery's command line.
    pub options: Map<String, Value>,
    /// Settings that count over the app's own, by their names: [`celeriac_config::layers`].
    pub settings: Map<String, Value>,
    /// Whether log records are to be JSON.
    pub json_logs: bool,
    /// Whether to leave the terminal alone once the start is done.
    pub detaches: bool,
}

/// Why a host did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The interpreter could not be run.
    #[error("{} can't be run: {error}", python.display())]
    Spawn {
        /// The interpreter.
        python: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The app refuses, or something in it failed.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// The interpreter ended without a word.
    #[error("{}, which is to be a Python interpreter, ended while it loaded the app", python.display())]
    Died {
        /// The interpreter.
        python: PathBuf,
    },
    /// What the app says of itself makes no sense.
    #[error("{0}")]
    Protocol(String),
}

/// What the host said when it could not start.
#[derive(Debug, Clone, Deserialize)]
pub struct Refusal {
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The app's traceback.
    pub traceback: Option<String>,
    /// What the command is to exit with.
    pub exit_status: i32,
}

/// Whether a host is to stay as main.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Becomes {
    /// It becomes main, and a copy of it the zygote.
    MainAndZygote,
    /// It becomes the zygote: main lives on from before.
    Zygote,
}

/// A loaded app that waits to be split.
#[derive(Debug)]
pub struct Host {
    control: UnixStream,
    zygote: SeqPacket,
    pid: u32,
    python: PathBuf,
}

impl Host {
    /// Starts the interpreter and waits until the app is loaded.
    ///
    /// To be called on a thread that lives as long as the worker: the host is killed with the
    /// thread that started it.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        options: &StartOptions,
        becomes: Becomes,
    ) -> Result<(Description, Self), StartError> {
        let spawn_error = |error| StartError::Spawn {
            python: options.python.clone(),
            error,
        };
        // The zygote is a grandchild that comes to this process.
        process::become_subreaper().map_err(spawn_error)?;
        let (control, host_control) = seqpacket::stream_pair().map_err(spawn_error)?;
        let (zygote, host_zygote) = seqpacket::pair().map_err(spawn_error)?;
        let pid = spawn(options, &host_control, &host_zygote).map_err(spawn_error)?;
        // The host's ends must be its alone: the end of file tells of its death.
        drop((host_control, host_zygote));

        let mut control = UnixStream::from_std(control).map_err(spawn_error)?;
        let start = json!({
            "modules": shim::modules(),
            "app": options.app,
            "argv": options.argv,
            "options": options.options,
            "settings": options.settings,
            "log_format": if options.json_logs { "json" } else { "celery" },
            "only_zygote": becomes == Becomes::Zygote,
            "detaches": options.detaches,
        });
        let started = async {
            control.write_all(shim::BOOTSTRAP.as_bytes()).await?;
            control.write_all(&[0]).await?;
            Frame::text(start.to_string()).write(&mut control).await
        };
        let started = started.await;
        // A host that is gone already has said why, perhaps.
        let answer = match Frame::read(&mut control).await {
            Ok(Some(frame)) => frame.text,
            Ok(None) | Err(_) => {
                drop(started);
                return Err(StartError::Died {
                    python: options.python.clone(),
                });
            }
        };
        Ok((
            read_answer(&answer)?,
            Self {
                control,
                zygote,
                pid,
                python: options.python.clone(),
            },
        ))
    }

    /// The host's process id, which is main's after the split.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Has the host split into main and zygote, and gives the channels to both.
    ///
    /// # Errors
    /// When the host is gone.
    pub async fn split(mut self) -> Result<(UnixStream, SeqPacket), StartError> {
        Frame::text("{\"split\": true}")
            .write(&mut self.control)
            .await
            .map_err(|_| StartError::Died {
                python: self.python,
            })?;
        Ok((self.control, self.zygote))
    }
}

fn read_answer(answer: &Bytes) -> Result<Description, StartError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Answer {
        Ready(Box<Description>),
        Failed(Refusal),
    }
    match celeriac_config::read(answer) {
        Ok(Answer::Ready(description)) => Ok(*description),
        Ok(Answer::Failed(refusal)) => Err(StartError::Refused(refusal)),
        Err(error) => Err(StartError::Protocol(error.to_string())),
    }
}

/// Starts the interpreter with the two descriptors open, in a process group of its own: what a
/// terminal sends to the worker is the worker's to pass on.
#[expect(
    unsafe_code,
    reason = "two descriptors must stay open, and the kernel be told"
)]
fn spawn(options: &StartOptions, control: &OwnedFd, zygote: &OwnedFd) -> io::Result<u32> {
    let (control, zygote) = (control.as_raw_fd(), zygote.as_raw_fd());
    let mut command = Command::new(&options.python);
    command
        .args([
            "-c",
            shim::LOADER,
            &control.to_string(),
            &zygote.to_string(),
            "celeriac",
        ])
        .args(options.argv.iter().skip(1))
        .envs(
            options
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        )
        .stdin(Stdio::null())
        .process_group(0);
    // SAFETY: between fork and exec only async-signal-safe calls are made: fcntl and prctl.
    unsafe {
        command.pre_exec(move || {
            for fd in [control, zygote] {
                let fd = std::os::fd::BorrowedFd::borrow_raw(fd);
                rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
            }
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            Ok(())
        });
    }
    // The reaper collects it with all other children.
    Ok(command.spawn()?.id())
}
