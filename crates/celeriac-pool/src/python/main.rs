//! Main's channel: calls into the app's interpreter, one at a time and in order.
//!
//! Counterpart: `python/celeriac/host/main.py`.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use celeriac_protocol::{Message, json};
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, oneshot};

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

/// In which order the successor of a main that died gets the calls that wait for it; those of one
/// rank in the order in which they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// What it has to know before it does anything. Such calls are never left out.
    Knowledge,
    /// What is done with what it knows, and changes it.
    Change,
    /// The app's own steps of the worker.
    WorkerSteps,
    /// The app's own steps of the consumer, which may need those of the worker.
    ConsumerSteps,
    /// All else.
    Last,
}

/// A call into main.
#[derive(Debug, Clone)]
pub struct Call {
    name: &'static str,
    members: String,
    blob: Bytes,
    rank: Rank,
    is_aside: bool,
}

impl Call {
    /// A call without arguments.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            members: String::new(),
            blob: Bytes::new(),
            rank: Rank::Last,
            is_aside: false,
        }
    }

    /// The same, as one that a new main is to get before others: see [`Rank`].
    #[must_use]
    pub fn ranked(mut self, rank: Rank) -> Self {
        self.rank = rank;
        self
    }

    /// The same, as one that main works on while it takes others: it leaves without an answer.
    #[must_use]
    pub fn aside(mut self) -> Self {
        self.is_aside = true;
        self
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

/// What comes from main without a call.
#[derive(Debug)]
pub struct FromMain {
    /// What the app asks of the worker: commands of the remote control and their arguments.
    pub asked: mpsc::Receiver<Asked>,
    /// Main has died. What is called from now on is called in its successor, which is a copy of the
    /// app as it was loaded; all answers that its predecessor gave are given.
    pub died: Arc<Notify>,
}

/// Main could not be kept: it is gone, and no new one was to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

impl Main {
    /// A main over `control`. The returned [`Service`] has to be run.
    pub fn new(control: UnixStream) -> (Self, Service, FromMain) {
        let (calls, queue) = mpsc::channel(QUEUED_CALLS);
        let (to_asked, asked) = mpsc::channel(QUEUED_COMMANDS);
        let died = Arc::new(Notify::new());
        let service = Service {
            queue,
            connection: Some(control),
            pending: VecDeque::new(),
            leaves: false,
            asked: to_asked,
            died: Arc::clone(&died),
        };
        (Self { calls }, service, FromMain { asked, died })
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

    /// Has main leave, after all calls made before but those that it works on aside: the app's exit
    /// handlers run. Calls made later are not made.
    pub fn leave(&self) {
        self.queue(Call::new(LEAVE), None);
    }

    fn queue(&self, call: Call, answer: Option<oneshot::Sender<Answer>>) {
        let name = call.name;
        let may_be_left_out = answer.is_none() && name != LEAVE && call.rank != Rank::Knowledge;
        if may_be_left_out && self.calls.capacity() <= KEPT_FOR_ANSWERS {
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
    /// Main is to leave when all is answered.
    leaves: bool,
    asked: mpsc::Sender<Asked>,
    died: Arc<Notify>,
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
            if number > 0 {
                again = self.for_a_successor(again);
            }
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
            self.died.notify_one();
        }
    }

    /// All calls that wait, `again` and those behind it, in the order in which a new main is to get
    /// them.
    fn for_a_successor(&mut self, again: VecDeque<Queued>) -> VecDeque<Queued> {
        let mut waiting = Vec::from(again);
        while !self.leaves
            && let Ok(queued) = self.queue.try_recv()
        {
            waiting.extend(self.unless_it_leaves(queued));
        }
        waiting.sort_by_key(|queued| queued.call.rank);
        waiting.into()
    }

    /// A call that was taken, but for the last: after it there are none.
    fn unless_it_leaves(&mut self, queued: Queued) -> Option<Queued> {
        if queued.call.name != LEAVE {
            return Some(queued);
        }
        self.leaves = true;
        self.queue.close();
        None
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
        let served = loop {
            let queued = if let Some(queued) = again.pop_front() {
                queued
            } else if self.leaves && self.pending.iter().all(|(_, queued)| queued.call.is_aside) {
                drop(Call::new(LEAVE).frame(None).write(&mut writer).await);
                drop(writer.shutdown().await);
                // The end of its side is the end of the process.
                while let Some(text) = answered.recv().await {
                    self.answer(&text);
                }
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
                    queued = self.queue.recv(), if !self.leaves => {
                        let Some(queued) = queued else {
                            self.leaves = true;
                            continue;
                        };
                        match self.unless_it_leaves(queued) {
                            Some(queued) => queued,
                            None => continue,
                        }
                    }
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
                // What it has answered before is done, and need not be asked again.
                while let Some(text) = answered.recv().await {
                    self.answer(&text);
                }
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
                    let asked = self.asked.try_send((told.command, told.arguments));
                    // A worker that has ended is asked for nothing.
                    if let Err(mpsc::error::TrySendError::Full(_)) = asked {
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn next(stream: &mut UnixStream) -> String {
        let frame = Frame::read(stream).await.unwrap().expect("a call");
        let call: serde_json::Value = serde_json::from_slice(&frame.text).unwrap();
        call["call"].as_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_successor_is_told_first_what_it_has_to_know() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (main, service, from_main) = Main::new(ours);
        let (ours, mut successors) = UnixStream::pair().unwrap();
        let (gives, given) = oneshot::channel();
        let mut given = Some(given);
        let serving = tokio::spawn(service.run(move || {
            let given = given.take();
            async { given.ok_or(Lost)?.await.map_err(|_| Lost) }
        }));
        let unanswered = main.call(Call::new("unanswered"));
        assert_eq!(next(&mut theirs).await, "unanswered");
        main.tell(Call::new("known before").ranked(Rank::Knowledge));
        assert_eq!(next(&mut theirs).await, "known before");
        drop(theirs);
        from_main.died.notified().await;
        main.tell(Call::new("later"));
        main.tell(Call::new("consumer steps").ranked(Rank::ConsumerSteps));
        main.tell(Call::new("change").ranked(Rank::Change));
        main.tell(Call::new("known").ranked(Rank::Knowledge));
        main.tell(Call::new("worker steps").ranked(Rank::WorkerSteps));
        gives.send(ours).unwrap();
        for expected in [
            "known",
            "change",
            "worker steps",
            "consumer steps",
            "unanswered",
            "later",
        ] {
            assert_eq!(next(&mut successors).await, expected);
        }
        drop(successors);
        assert_eq!(unanswered.await, Err(CallError::Gone));
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn main_leaves_while_it_works_on_something_aside() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (main, service, _from_main) = Main::new(ours);
        let serving = tokio::spawn(service.run(|| async { Err(Lost) }));
        let endless = main.call(Call::new("endless").aside());
        let stored = main.call(Call::new("stored").aside());
        let done = main.call(Call::new("done"));
        main.leave();
        for expected in ["endless", "stored", "done"] {
            assert_eq!(next(&mut theirs).await, expected);
        }
        Frame::text(r#"{"id": 3, "ok": 1}"#)
            .write(&mut theirs)
            .await
            .unwrap();
        assert_eq!(next(&mut theirs).await, LEAVE);
        assert_eq!(done.await, Ok(1.into()));
        Frame::text(r#"{"id": 2, "ok": 2}"#)
            .write(&mut theirs)
            .await
            .unwrap();
        drop(theirs);
        assert_eq!(stored.await, Ok(2.into()));
        serving.await.unwrap();
        assert_eq!(endless.await, Err(CallError::Gone));
    }
}
