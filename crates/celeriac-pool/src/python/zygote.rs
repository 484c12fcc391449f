//! The zygote's channel: asking for forks, hearing of ends.
//!
//! Counterpart: `python/celeriac/host/zygote.py`.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use celeriac_core::pool::ExitStatus;
use serde::Deserialize;

use crate::sys::seqpacket::SeqPacket;

/// Longer than any message of the zygote.
const MESSAGE_BYTES: usize = 1024;

/// The channel to a zygote.
#[derive(Debug)]
pub struct Zygote {
    channel: SeqPacket,
}

/// What a zygote tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZygoteEvent {
    /// It is there.
    Hello {
        /// Its process id.
        pid: u32,
    },
    /// It forked.
    Forked {
        /// The number in the order to fork.
        number: u32,
        /// The new process.
        pid: u32,
    },
    /// A process that it forked has ended, and its process group with it.
    Exited {
        /// The process.
        pid: u32,
        /// How.
        status: ExitStatus,
        /// The most memory that it held, or one process that it waited for, in KiB.
        peak: Option<u64>,
    },
    /// It is gone.
    Gone,
}

impl Zygote {
    /// The zygote at the other end of `channel`.
    pub fn new(channel: SeqPacket) -> Self {
        Self { channel }
    }

    /// Orders a child of this kind of pool. Both descriptors are the child's from then on.
    ///
    /// # Errors
    /// When the zygote is gone.
    pub fn fork_child(
        &self,
        number: u32,
        index: usize,
        kind: &str,
        channel: &OwnedFd,
        page: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let order = format!(
            r#"{{"fork": "child", "number": {number}, "index": {index}, "pool": "{kind}"}}"#
        );
        self.channel
            .try_send(&[order.as_bytes()], &[channel.as_fd(), page])
    }

    /// Orders a new main. The descriptor is its control channel.
    ///
    /// # Errors
    /// When the zygote is gone.
    pub fn fork_main(&self, number: u32, control: &OwnedFd) -> io::Result<()> {
        let order = format!(r#"{{"fork": "main", "number": {number}}}"#);
        self.channel
            .try_send(&[order.as_bytes()], &[control.as_fd()])
    }

    /// The next that it tells. Safe to cancel.
    pub async fn next(&self) -> ZygoteEvent {
        let mut buffer = [0; MESSAGE_BYTES];
        loop {
            match self.channel.receive(&mut buffer).await {
                Ok(0) | Err(_) => return ZygoteEvent::Gone,
                Ok(length) => match read(&buffer[..length]) {
                    Some(event) => return event,
                    None => tracing::error!("the zygote said something unexpected"),
                },
            }
        }
    }
}

fn read(message: &[u8]) -> Option<ZygoteEvent> {
    #[derive(Deserialize)]
    struct Message {
        hello: Option<u32>,
        forked: Option<u32>,
        pid: Option<u32>,
        exited: Option<u32>,
        code: Option<i32>,
        signal: Option<i32>,
        peak: Option<u64>,
    }
    let message: Message = serde_json::from_slice(message).ok()?;
    match message {
        Message {
            hello: Some(pid), ..
        } => Some(ZygoteEvent::Hello { pid }),
        Message {
            forked: Some(number),
            pid: Some(pid),
            ..
        } => Some(ZygoteEvent::Forked { number, pid }),
        Message {
            exited: Some(pid),
            code: Some(code),
            peak,
            ..
        } => Some(ZygoteEvent::Exited {
            pid,
            status: ExitStatus::Code(code),
            peak,
        }),
        Message {
            exited: Some(pid),
            signal: Some(signal),
            peak,
            ..
        } => Some(ZygoteEvent::Exited {
            pid,
            status: ExitStatus::Signal(signal),
            peak,
        }),
        _ => None,
    }
}
