//! The task that moves bytes between a connection's socket and its state.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::failure::Failure;
use super::state::State;

/// Room for what comes at once.
const READ: usize = 64 * 1024;
/// How long the last words may take.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Ticks, each with a heartbeat, for each period in which both sides have agreed to hear of each
/// other.
const TICKS: u32 = 2;
/// The server is gone when nothing came for so many ticks, as AMQP has it: two periods.
const SILENT_TICKS: u32 = 2 * TICKS;

/// What the connection's handles and its driver share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// There is something to send, or to look at.
    pub(super) changed: Notify,
    /// Something was sent, or all is over.
    pub(super) sent: Notify,
}

impl Shared {
    pub(super) fn new(state: State) -> Self {
        Self {
            state: Mutex::new(state),
            changed: Notify::new(),
            sent: Notify::new(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, failure: &Failure) {
        self.state().end(failure);
        self.sent.notify_waiters();
    }
}

/// What a connection is driven with.
pub(super) struct Driver<S> {
    pub(super) stream: S,
    /// What came with the answer to the last words of the handshake.
    pub(super) input: BytesMut,
    /// How often both sides hear of each other; zero: never.
    pub(super) heartbeat: Duration,
    pub(super) shared: Arc<Shared>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Returns when the connection is over.
    pub(super) async fn run(self) {
        let shared = Arc::clone(&self.shared);
        let failure = match self.drive().await {
            Ok(()) => Failure::closed(),
            Err(error) => Failure::from(error),
        };
        shared.end(&failure);
    }

    async fn drive(mut self) -> io::Result<()> {
        let (mut reading, mut writing) = tokio::io::split(self.stream);
        let period = if self.heartbeat.is_zero() {
            Duration::from_hours(24)
        } else {
            self.heartbeat / TICKS
        };
        let mut ticks = interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent = 0;
        let mut out = BytesMut::new();
        let mut is_flushed = true;
        take_in(&self.shared, &mut self.input)?;
        loop {
            let (is_full, is_over) = {
                let mut state = self.shared.state();
                let is_over = state.ended.is_some();
                if out.is_empty() || is_over {
                    out.extend_from_slice(&state.out);
                    state.out.clear();
                }
                (state.is_full(), is_over)
            };
            if is_over {
                let last_words = async {
                    writing.write_all_buf(&mut out).await?;
                    writing.shutdown().await
                };
                return timeout(LAST_WORDS, last_words).await.unwrap_or(Ok(()));
            }
            if self.input.capacity() - self.input.len() < READ / 4 {
                self.input.reserve(READ);
            }
            tokio::select! {
                read = reading.read_buf(&mut self.input), if !is_full => {
                    if read? == 0 {
                        return Err(io::Error::new(
                            io::ErrorKind::UnexpectedEof,
                            "the server has closed the connection",
                        ));
                    }
                    silent = 0;
                    take_in(&self.shared, &mut self.input)?;
                }
                written = write(&mut writing, &mut out), if !out.is_empty() || !is_flushed => {
                    let written = written?;
                    // With nothing to write it was flushed.
                    is_flushed = written == 0;
                    self.shared.state().sent += written as u64;
                    self.shared.sent.notify_waiters();
                }
                () = self.shared.changed.notified() => {}
                _ = ticks.tick(), if !self.heartbeat.is_zero() => {
                    silent = if is_full { 0 } else { silent + 1 };
                    if silent > SILENT_TICKS {
                        return Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            "the server has sent no heartbeat",
                        ));
                    }
                    self.shared.state().put_heartbeat();
                }
            }
        }
    }
}

/// Writes some of `out`, or flushes where that is empty; says how many bytes it wrote. Safe to cancel.
async fn write(writing: &mut (impl AsyncWrite + Unpin), out: &mut BytesMut) -> io::Result<usize> {
    if out.is_empty() {
        writing.flush().await?;
        return Ok(0);
    }
    match writing.write_buf(out).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        written => Ok(written),
    }
}

/// Has the state take in all whole frames.
fn take_in(shared: &Shared, input: &mut BytesMut) -> io::Result<()> {
    let (was_blocked, taken, is_blocked) = {
        let mut state = shared.state();
        (state.is_blocked, state.receive(input), state.is_blocked)
    };
    if is_blocked && !was_blocked {
        // Who waits for something to be sent may wait long.
        shared.sent.notify_waiters();
    }
    let taken = taken.map_err(|malformed| io::Error::new(io::ErrorKind::InvalidData, malformed))?;
    drop(input.split_to(taken));
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::super::frame;
    use super::super::method;
    use super::*;

    const HEARTBEAT: Duration = Duration::from_secs(10);

    /// A connection, and the server's end of it.
    fn start() -> (Arc<Shared>, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1024);
        let shared = Arc::new(Shared::new(State::new(frame::FRAME_MAX, 10)));
        let driver = Driver {
            stream: ours,
            input: BytesMut::new(),
            heartbeat: HEARTBEAT,
            shared: Arc::clone(&shared),
        };
        tokio::spawn(driver.run());
        (shared, theirs)
    }

    async fn ended(shared: &Shared) -> String {
        loop {
            let told = shared.sent.notified();
            if let Some(failure) = &shared.state().ended {
                return failure.to_string();
            }
            told.await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeats_go_out_twice_in_each_period_and_a_silent_server_is_given_up() {
        let (shared, mut server) = start();
        let began = Instant::now();
        let mut heartbeat = [0; 8];
        for _ in 0..3 {
            server.read_exact(&mut heartbeat).await.unwrap();
            assert_eq!(heartbeat[0], frame::HEARTBEAT);
        }
        server.write_all(&heartbeat).await.unwrap();
        server.read_exact(&mut heartbeat).await.unwrap();
        assert_eq!(began.elapsed(), 2 * HEARTBEAT);
        assert_eq!(ended(&shared).await, "the server has sent no heartbeat");
        // Silence counts from what came last.
        assert!(began.elapsed() > 3 * HEARTBEAT, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_is_read_while_the_server_takes_nothing() {
        let (shared, mut server) = start();
        let (channel, answer) = shared.state().open_channel().unwrap();
        let publish = method::publish("", "q", false).unwrap();
        let body = vec![7; 100_000];
        let published = shared.state().publish(channel, &publish, &[0, 0], &body);
        published.unwrap();
        shared.changed.notify_one();
        let mut opened = Vec::new();
        frame::put(frame::METHOD, channel, &mut opened, |to| {
            to.extend_from_slice(b"\0\x14\0\x0b\0\0\0\0");
        });
        server.write_all(&opened).await.unwrap();
        assert!(answer.await.unwrap().is_ok(), "although writing is stuck");
        let mut sent = vec![0; usize::try_from(shared.state().put).unwrap()];
        server.read_exact(&mut sent).await.unwrap();
        assert!(sent.ends_with(&[7, 0xCE]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_leaves_or_talks_rubbish_ends_it() {
        let (shared, server) = start();
        drop(server);
        assert_eq!(ended(&shared).await, "the server has closed the connection");
        let (shared, mut server) = start();
        server.write_all(b"HTTP/1.1 400 Bad Request").await.unwrap();
        assert_eq!(ended(&shared).await, "malformed AMQP");
    }
}
