//! A child in the world: its channel, its control page and its process.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use celeriac_core::pool::{Job, RequestKey};
use nix::sys::signal::Signal;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::frame::{self, ChildMessage, JobMessage};
use super::last_words;
use super::machine::{Kill, SoftLimit};
use crate::sys::memory_file::{self, ControlPage};
use crate::sys::process::ProcessHandle;
use crate::sys::seqpacket::{self, SeqPacket};

/// A child.
pub(super) struct Child {
    pub(super) channel: Arc<SeqPacket>,
    /// The child's own end, to take back what it has not read.
    pub(super) their_end: OwnedFd,
    pub(super) page: ControlPage,
    pub(super) process: Option<ProcessHandle>,
    pub(super) reader: AbortHandle,
    /// Whether it runs many jobs at once, and reads messages while it does.
    pub(super) is_shared: bool,
    /// What its channel had no room for.
    pub(super) unsent: VecDeque<[u8; 16]>,
}

/// A message that a child has not read.
pub(super) struct Unread {
    /// Its job; `None` for the order to leave.
    pub(super) key: Option<RequestKey>,
    pub(super) message: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Drop for Child {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Child {
    /// Sends a job.
    pub(super) fn send(&self, job: &Job, after: frame::AfterJob) -> io::Result<()> {
        let message = JobMessage::new(job, after);
        match message.parts_for_file() {
            None => self.channel.try_send(&message.parts(), &[]),
            Some(parts) => {
                let file = memory_file::with_content(&parts)?;
                self.channel.try_send(&message.parts(), &[file.as_fd()])
            }
        }
    }

    /// Takes what the child has not read out of its channel.
    pub(super) fn unread(&self) -> Vec<Unread> {
        let mut unread = Vec::new();
        let mut buffer = vec![0; frame::RECEIVE_BYTES];
        while let Ok((length @ 1.., descriptors)) =
            seqpacket::take_back(self.their_end.as_fd(), &mut buffer)
        {
            let message = buffer[..length].to_vec();
            unread.push(Unread {
                key: frame::job_number(&message).map(RequestKey),
                message,
                descriptors,
            });
        }
        unread
    }

    /// Raises the exception of a soft limit in a job.
    pub(super) fn raise(&mut self, job: RequestKey, limit: SoftLimit) {
        let number = match limit {
            SoftLimit::Time => 0,
            SoftLimit::Memory => 1,
            SoftLimit::Shutdown => 2,
        };
        if self.is_shared {
            return self.order(frame::soft_limit(job.0, number));
        }
        match self.page.set_soft_limit_target(job.0, number) {
            Ok(()) => self.signal(Kill::Signal(Signal::SIGUSR1 as i32)),
            Err(error) => tracing::error!(%error, "a soft limit could not be raised"),
        }
    }

    /// Ends one job of many.
    pub(super) fn terminate(&mut self, job: RequestKey) {
        self.order(frame::terminate(job.0));
    }

    /// Sends an order about a job, as soon as there is room for it. There are as many as jobs at
    /// most, but for those of an operator, who can wait.
    fn order(&mut self, order: [u8; 16]) {
        self.unsent.push_back(order);
        self.flush();
    }

    /// Sends what there was no room for.
    pub(super) fn flush(&mut self) {
        while let Some(order) = self.unsent.front() {
            match self.channel.try_send(&[order], &[]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // One that can't be told is gone.
                _ => drop(self.unsent.pop_front()),
            }
        }
    }

    /// The last lines that a job wrote.
    pub(super) fn last_words(&self, job: RequestKey) -> Vec<String> {
        let written = self.page.last_words();
        written.map_or_else(|_| Vec::new(), |bytes| last_words::lines(&bytes, job))
    }

    pub(super) fn signal(&self, kill: Kill) {
        let Some(process) = &self.process else { return };
        match kill {
            Kill::TerminateGroup => process.signal_group(Signal::SIGTERM),
            Kill::KillGroup => {
                process.signal_group(Signal::SIGKILL);
                process.signal(Signal::SIGKILL);
            }
            Kill::Kill => process.signal(Signal::SIGKILL),
            Kill::Signal(number) => match Signal::try_from(number) {
                Ok(signal) => process.signal(signal),
                Err(error) => tracing::error!(%error, "{number} is no signal"),
            },
        }
    }
}

/// Whether a message could not be sent because nobody will ever read it.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

/// Reads a child's messages. One is taken only when there is room for it, so that ending this task
/// loses none.
pub(super) async fn read_messages(
    number: u32,
    channel: Arc<SeqPacket>,
    messages: mpsc::Sender<(u32, ChildMessage)>,
) {
    let mut buffer = vec![0; frame::RECEIVE_BYTES];
    while channel.readable().await.is_ok() {
        let Ok(room) = messages.reserve().await else {
            return;
        };
        match channel.try_receive(&mut buffer) {
            Ok(length @ 1..) => room.send((number, frame::read(&buffer[..length]))),
            Ok(_) => return,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::error!(%error, "a child can't be heard");
                room.send((number, ChildMessage::Nonsense));
                return;
            }
        }
    }
}
