//! Main's channel: calls into the app's interpreter, one at a time and in order.
//!
//! Counterpart: `python/celeriac/host/main.py`.

use std::collections::VecDeque;
use std::fmt::Write as _;

use bytes::Bytes;
use celeriac_protocol::{Message, json};
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::frame::Frame;

/// Calls that wait to be written. The worker stops fetching long before so many wait.
const QUEUED_CALLS: usize = 8192;
/// Of these, how many are kept for calls whose answers matter: what is only told is left out before.
const KEPT_FOR_ANSWERS: usize = 1024;
/// Commands of the app that wait for the worker.
const QUEUED_COMMANDS: usize = 64;
/// The call that ends main.
const LEAVE: &str = "leave";
/// How often a call is made that main did not survive.
const ATTEMPTS: u8 = 2;

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The hook raised.
    #[error("{0}")]
    Raised(String),
    /// Main did not survive the call, or the worker is ending.
    #[error("the main process is gone")]
    Gone,
}

/// A call into main.
#[derive(Debug, Clone)]
pub struct Call {
    name: &'static str,
    members: String,
    blob: Bytes,
}

impl Call {
    /// A call without arguments.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            members: String::new(),
            blob: Bytes::new(),
        }
    }

    /// The same with an argument.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        let value: serde_json::Value = value.into();
        // Writing to a `String` can't fail.
        let _ = write!(self.members, ", {}: {value}", json::quote(name));
        self
    }

    /// The same about a message, whose body goes along as it is.
    #[must_use]
    pub fn about(mut self, message: &Message) -> Self {
        let text = |text: Option<&bytestring::ByteString>| {
            text.map_or_else(|| "null".to_owned(), |text| json::quote(text))
        };
        let info = &message.delivery_info;
        let _ = write!(
            self.members,
            r#", "message": {{"headers": {}, "properties": {}, "content_type": {}, "content_encoding": {}, "delivery_info": {{"exchange": {}, "routing_key": {}, "redelivered": {}}}}}"#,
            message.headers,
            message.properties,
            text(message.content_type.as_ref()),
            text(message.content_encoding.as_ref()),
            text(info.exchange.as_ref()),
            text(info.routing_key.as_ref()),
            info.redelivered,
        );
        self.blob = message.body.clone();
        self
    }

    fn frame(&self, number: Option<u64>) -> Frame {
        let id = number.map_or_else(String::new, |number| format!(r#""id": {number}, "#));
        let text = format!(r#"{{{id}"call": "{}"{}}}"#, self.name, self.members);
        Frame {
            text: text.into(),
            blob: self.blob.clone(),
        }
    }
}

/// A command that the app asks of the worker, and its arguments.
pub type Asked = (String, serde_json::Map<String, serde_json::Value>);

type Answer = Result<serde_json::Value, CallError>;

struct Queued {
    call: Call,
    answer: Option<oneshot::Sender<Answer>>,
    attempts: u8,
}

/// A handle on main. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Main {
    calls: mpsc::Sender<Queued>,
}

/// Main could not be kept: it is gone, and no new one was to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

impl Main {
    /// A main over `control`. The returned [`Service`] has to be run.
    ///
    /// What the app asks of the worker, without having been called, comes out of the receiver: a
    /// command of the remote control and its arguments.
    pub fn new(control: UnixStream) -> (Self, Service, mpsc::Receiver<Asked>) {
        let (calls, queue) = mpsc::channel(QUEUED_CALLS);
        let (to_asked, asked) = mpsc::channel(QUEUED_COMMANDS);
        let service = Service {
            queue,
            connection: Some(control),
            pending: VecDeque::new(),
            asked: to_asked,
        };
        (Self { calls }, service, asked)
    }

    /// Makes a call after those made before. It is made at once; the future waits for the answer.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call(&self, call: Call) -> impl Future<Output = Answer> + Send + use<> {
        let (answer, result) = oneshot::channel();
        self.queue(call, Some(answer));
        async { result.await.unwrap_or(Err(CallError::Gone)) }
    }

    /// Makes a call whose answer nobody needs, after those made before.
    pub fn tell(&self, call: Call) {
        self.queue(call, None);
    }

    /// Has main leave, after all calls made before: the app's exit handlers run. Calls made later
    /// are not made.
    pub fn leave(&self) {
        self.queue(Call::new(LEAVE), None);
    }

    fn queue(&self, call: Call, answer: Option<oneshot::Sender<Answer>>) {
        let name = call.name;
        if answer.is_none() && name != LEAVE && self.calls.capacity() <= KEPT_FOR_ANSWERS {
            tracing::error!("the main process is too slow: {name} is left out");
            return;
        }
        // Where nobody serves any more, the dropped sender tells who asked.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.calls.try_send(Queued {
            call,
            answer,
            attempts: 0,
        }) {
            tracing::error!("the main process is too slow: {name} is left out");
        }
    }
}

/// Writes calls and reads answers.
#[derive(Debug)]
pub struct Service {
    queue: mpsc::Receiver<Queued>,
    connection: Option<UnixStream>,
    /// Written, not answered, in order.
    pending: VecDeque<(u64, Queued)>,
    asked: mpsc::Sender<Asked>,
}

impl std::fmt::Debug for Queued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queued({})", self.call.name)
    }
}

impl Service {
    /// Serves until main has left, see [`Main::leave`]; `reconnect` makes a new main when one dies.
    ///
    /// Calls that a main did not answer before it died are made again by the next one, once.
    pub async fn run<F, R>(mut self, mut reconnect: F)
    where
        F: FnMut() -> R,
        R: Future<Output = Result<UnixStream, Lost>>,
    {
        let mut number = 0;
        let mut again: VecDeque<Queued> = VecDeque::new();
        loop {
            let connection = match self.connection.take() {
                Some(connection) => connection,
                None => match reconnect().await {
                    Ok(connection) => connection,
                    Err(Lost) => return,
                },
            };
            let (reader, writer) = connection.into_split();
            if self.serve(reader, writer, &mut number, &mut again).await == Served::All {
                return;
            }
            for (_, mut queued) in self.pending.drain(..).rev() {
                queued.attempts += 1;
                if queued.attempts < ATTEMPTS {
                    again.push_front(queued);
                } else if let Some(answer) = queued.answer {
                    drop(answer.send(Err(CallError::Gone)));
                }
            }
        }
    }

    /// Serves over one connection.
    async fn serve(
        &mut self,
        mut reader: OwnedReadHalf,
        mut writer: OwnedWriteHalf,
        number: &mut u64,
        again: &mut VecDeque<Queued>,
    ) -> Served {
        // Answers are read by a task of their own, so that reading is never cut in two.
        let (answers, mut answered) = mpsc::channel(64);
        let reading = tokio::spawn(async move {
            while let Ok(Some(frame)) = Frame::read(&mut reader).await {
                if answers.send(frame.text).await.is_err() {
                    break;
                }
            }
        });
        let mut leaves = false;
        let served = loop {
            let queued = if let Some(queued) = again.pop_front() {
                queued
            } else if leaves && self.pending.is_empty() {
                drop(Call::new(LEAVE).frame(None).write(&mut writer).await);
                drop(writer.shutdown().await);
                // The end of its side is the end of the process.
                while answered.recv().await.is_some() {}
                break Served::All;
            } else {
                tokio::select! {
                    biased;
                    answer = answered.recv() => match answer {
                        Some(text) => {
                            self.answer(&text);
                            continue;
                        }
                        None => break Served::Died,
                    },
                    queued = self.queue.recv(), if !leaves => match queued {
                        Some(queued) if queued.call.name != LEAVE => queued,
                        _ => {
                            leaves = true;
                            self.queue.close();
                            continue;
                        }
                    },
                }
            };
            *number += 1;
            let id = queued.answer.is_some().then_some(*number);
            let frame = queued.call.frame(id);
            if queued.answer.is_some() {
                self.pending.push_back((*number, queued));
            }
            // Answers are taken while the call is written: main may be waiting to give them before
            // it reads on.
            let writing = frame.write(&mut writer);
            tokio::pin!(writing);
            let written = loop {
                tokio::select! {
                    biased;
                    written = &mut writing => break written,
                    Some(text) = answered.recv() => self.answer(&text),
                }
            };
            if written.is_err() {
                break Served::Died;
            }
        };
        reading.abort();
        served
    }

    fn answer(&mut self, text: &[u8]) {
        #[derive(Deserialize)]
        struct Answered {
            id: u64,
            #[serde(default)]
            ok: serde_json::Value,
            error: Option<String>,
        }
        #[derive(Deserialize)]
        struct Told {
            command: String,
            #[serde(default)]
            arguments: serde_json::Map<String, serde_json::Value>,
        }
        let Ok(answered) = serde_json::from_slice::<Answered>(text) else {
            match serde_json::from_slice::<Told>(text) {
                Ok(told) => {
                    if self.asked.try_send((told.command, told.arguments)).is_err() {
                        tracing::error!("the app asks too much at once: a command is left out");
                    }
                }
                Err(_) => tracing::error!("the main process said something unexpected"),
            }
            return;
        };
        let Some(at) = self
            .pending
            .iter()
            .position(|(number, _)| *number == answered.id)
        else {
            return;
        };
        if let Some((
            _,
            Queued {
                answer: Some(answer),
                ..
            },
        )) = self.pending.remove(at)
        {
            let result = match answered.error {
                Some(error) => Err(CallError::Raised(error)),
                None => Ok(answered.ok),
            };
            // Whoever asked may have stopped waiting.
            drop(answer.send(result));
        }
    }
}

/// How serving one connection ended.
#[derive(Debug, PartialEq, Eq)]
enum Served {
    /// All calls are answered, and main has left.
    All,
    /// Main is gone.
    Died,
}
