//! A command that runs, as the worker sees it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::keeper::spec::{Exit, Order, Report, Spec};
use crate::keeper::{ARGUMENT, is_entered};

/// Why a command has no exit status.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("{0}")]
    NotStarted(String),
    /// The process that it ran under was killed; the command was killed then.
    #[error("the process that kept it was killed, so the command was killed as well")]
    KeeperLost,
    /// The machine would not.
    #[error("the process that keeps it can't be started: {0}")]
    Io(#[from] io::Error),
}

/// What is started as a keeper.
#[derive(Debug, Clone)]
pub struct Keeper(PathBuf);

impl Keeper {
    /// This program, if it has called [`crate::keeper::enter`].
    pub fn own() -> Option<Self> {
        // What is mounted there is this very program, even when its file was replaced meanwhile.
        is_entered().then(|| Self("/proc/self/exe".into()))
    }

    /// Another program that calls [`crate::keeper::enter`], such as `celeriac-keeper`.
    pub fn at(program: impl Into<PathBuf>) -> Self {
        Self(program.into())
    }

    /// Starts a command. To be called within tokio's runtime.
    ///
    /// Its end is that of the value returned, at the latest: when that is dropped, everything that
    /// the command has started is killed.
    ///
    /// # Errors
    /// When the keeper can't be started, or goes at once.
    pub async fn start(&self, spec: &Spec) -> Result<(Running, Receiver, Receiver), Error> {
        let (own, its) = StdUnixStream::pair()?;
        let (stdout, its_stdout) = io::pipe()?;
        let (stderr, its_stderr) = io::pipe()?;
        let mut command = Command::new(&self.0);
        command
            .arg0("celeriac:keeper")
            .arg(ARGUMENT)
            .stdin(Stdio::from(OwnedFd::from(its)))
            .stdout(its_stdout)
            .stderr(its_stderr)
            .process_group(0);
        let keeper = command.spawn()?.id();
        // Keeps its ends of the pipes until it is dropped.
        drop(command);
        // It waits for its orders: its number still means it.
        let keeper = rustix::process::Pid::from_raw(keeper as i32);
        let keeper = keeper.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        own.set_nonblocking(true)?;
        let (reports, orders) = UnixStream::from_std(own)?.into_split();
        let mut running = Running {
            orders,
            reports: BufReader::new(reports).lines(),
            leader: None,
            _collected: Collected(keeper),
        };
        running.send(spec).await?;
        let stdout = Receiver::from_owned_fd(stdout.into())?;
        let stderr = Receiver::from_owned_fd(stderr.into())?;
        Ok((running, stdout, stderr))
    }
}

/// A command that runs. Dropping it kills the command.
#[derive(Debug)]
pub struct Running {
    orders: OwnedWriteHalf,
    reports: Lines<BufReader<OwnedReadHalf>>,
    leader: Option<Pid>,
    /// Behind the socket, whose end the keeper ends by.
    _collected: Collected,
}

/// A keeper that is about to end when this is dropped, and is collected then, unless who collects
/// all children of the worker is faster.
#[derive(Debug)]
struct Collected(Option<OwnedFd>);

impl Drop for Collected {
    fn drop(&mut self) {
        let Some(keeper) = self.0.take() else {
            return;
        };
        let wait = move || waitid(WaitId::PidFd(keeper.as_fd()), WaitIdOptions::EXITED);
        // A machine without room for a thread keeps a zombie.
        let _ = thread::Builder::new()
            .name("keeper's end".to_owned())
            .spawn(wait);
    }
}

impl Running {
    /// Sends SIGTERM or SIGKILL to the command's process group.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub async fn signal(&mut self, order: Order) -> io::Result<()> {
        self.send(&order).await
    }

    async fn send(&mut self, what: &impl serde::Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(what)?;
        line.push(b'\n');
        self.orders.write_all(&line).await
    }

    /// Waits until the command has ended and everything that it had started is gone. Safe to cancel.
    ///
    /// # Errors
    /// When it could not be started, or was killed with its keeper.
    pub async fn ended(&mut self) -> Result<Exit, Error> {
        loop {
            let line = self.reports.next_line().await.unwrap_or_default();
            match line.and_then(|line| serde_json::from_str(&line).ok()) {
                Some(Report::Started(pid)) => self.leader = Some(Pid::from_raw(pid as i32)),
                Some(Report::Failed(why)) => return Err(Error::NotStarted(why)),
                Some(Report::Ended(exit)) => return Ok(exit),
                None => {
                    if let Some(leader) = self.leader {
                        let _ = killpg(leader, Signal::SIGKILL);
                    }
                    return Err(Error::KeeperLost);
                }
            }
        }
    }
}
