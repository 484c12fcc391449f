//! The connections of one bus.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use celeriac_core::bus::Kind;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, timeout_at};

use super::frame::{Frame, Hello, MOST_BYTES};
use crate::inbox::Inbox;

/// So many frames may wait for a client to read them.
const QUEUED_FRAMES: usize = 1000;
/// So many commands of one connection may be open.
const REPLY_KEYS: usize = 100;

/// What the tasks of one bus share.
pub(super) struct Hub {
    pub(super) hello: Hello,
    /// The key of replies to this bus itself.
    pub(super) reply_key: String,
    pub(super) inbox: Inbox,
    links: Mutex<Links>,
    /// Somebody said hello, or is gone.
    changed: Notify,
    /// A node is gone.
    pub(super) node_lost: Notify,
}

#[derive(Default)]
struct Links {
    next: u64,
    open: BTreeMap<u64, Link>,
}

/// One connection.
struct Link {
    /// What waits to be written; `None` once it is to end.
    frames: Option<mpsc::Sender<Bytes>>,
    /// How many bytes wait.
    queued: Arc<AtomicUsize>,
    reader: AbortHandle,
    writer: JoinHandle<()>,
    /// Whether this side made the connection.
    is_own: bool,
    /// The path of the other side's socket, if it is a node.
    socket: Option<String>,
    has_greeted: bool,
    takes_commands: bool,
    /// The routing key of the events that it wants.
    events: Option<String>,
    reply_keys: VecDeque<String>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}

impl Link {
    fn expect_replies(&mut self, key: String) {
        self.reply_keys.retain(|known| *known != key);
        self.reply_keys.push_back(key);
        if self.reply_keys.len() > REPLY_KEYS {
            self.reply_keys.pop_front();
        }
    }

    /// Whether the frame is on its way; `false` when nobody reads.
    fn send(&self, frame: Bytes) -> bool {
        let length = frame.len();
        let before = self.queued.fetch_add(length, Ordering::Relaxed);
        let has_room = before == 0 || before + length <= MOST_BYTES;
        let frames = self.frames.as_ref();
        has_room && frames.is_some_and(|frames| frames.try_send(frame).is_ok())
    }
}

impl Hub {
    pub(super) fn new(mut hello: Hello, reply_key: String) -> Self {
        hello.reply_key = hello.commands.then(|| reply_key.clone());
        Self {
            hello,
            reply_key,
            inbox: Inbox::default(),
            links: Mutex::default(),
            changed: Notify::new(),
            node_lost: Notify::new(),
        }
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        // Nothing panics while it is held.
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over a connection that somebody made.
    pub(super) fn accept(self: &Arc<Self>, stream: UnixStream) {
        self.add(stream, None);
    }

    /// Takes over a connection to the node with this socket, and says hello to it.
    pub(super) fn meet(self: &Arc<Self>, stream: UnixStream, socket: String) -> u64 {
        let id = self.add(stream, Some(socket));
        self.send_to(id, Frame::Hello(self.hello.clone()).encode());
        id
    }

    fn add(self: &Arc<Self>, stream: UnixStream, socket: Option<String>) -> u64 {
        let (read, write) = stream.into_split();
        let (frames, waiting) = mpsc::channel(QUEUED_FRAMES);
        let queued = Arc::new(AtomicUsize::new(0));
        let mut links = self.links();
        let id = links.next;
        links.next += 1;
        let link = Link {
            frames: Some(frames),
            reader: tokio::spawn(Arc::clone(self).listen(id, read)).abort_handle(),
            writer: tokio::spawn(write_all(write, waiting, Arc::clone(&queued))),
            queued,
            is_own: socket.is_some(),
            socket,
            has_greeted: false,
            takes_commands: false,
            events: None,
            reply_keys: VecDeque::new(),
        };
        links.open.insert(id, link);
        id
    }

    /// Reads a connection to its end.
    async fn listen(self: Arc<Self>, id: u64, mut reader: OwnedReadHalf) {
        while let Some(frame) = Frame::read(&mut reader).await {
            self.hear(id, frame);
        }
        self.remove(id);
    }

    fn hear(&self, id: u64, frame: Frame) {
        match frame {
            Frame::Hello(hello) => {
                let mut links = self.links();
                let Some(link) = links.open.get_mut(&id) else {
                    return;
                };
                link.has_greeted = true;
                link.takes_commands = hello.commands;
                // A hello without a wish takes none back.
                link.events = hello.events.or_else(|| link.events.take());
                if let Some(key) = hello.reply_key {
                    link.expect_replies(key);
                }
                let is_answer = link.is_own;
                if !is_answer {
                    link.socket = hello.socket;
                }
                drop(links);
                if !is_answer {
                    self.send_to(id, Frame::Hello(self.hello.clone()).encode());
                }
                self.changed.notify_waiters();
            }
            Frame::Command { reply_key, message } => {
                if let Some(key) = reply_key
                    && let Some(link) = self.links().open.get_mut(&id)
                {
                    link.expect_replies(key);
                }
                if self.hello.commands {
                    self.inbox.put(Kind::Command, message);
                }
            }
            Frame::Reply(message) if self.hello.commands => self.inbox.put(Kind::Reply, message),
            Frame::Event(message) if self.hello.events.is_some() => {
                self.inbox.put(Kind::Event, message);
            }
            Frame::Events(routing_key) => {
                if let Some(link) = self.links().open.get_mut(&id) {
                    link.events = Some(routing_key);
                }
            }
            Frame::Reply(_) | Frame::Event(_) | Frame::Unknown => {}
        }
    }

    fn remove(&self, id: u64) {
        let removed = self.links().open.remove(&id);
        if removed.is_some_and(|link| link.socket.is_some()) {
            self.node_lost.notify_one();
        }
        self.changed.notify_waiters();
    }

    fn send_to(&self, id: u64, frame: Bytes) {
        let is_read = match self.links().open.get(&id) {
            Some(link) => link.send(frame),
            None => true,
        };
        if !is_read {
            self.remove(id);
        }
    }

    /// The connections that `wanted` chooses, one for each node and the newest.
    fn choose(&self, wanted: impl Fn(&Link) -> bool) -> Vec<u64> {
        let links = self.links();
        let mut nodes = HashSet::new();
        let mut chosen = Vec::new();
        for (id, link) in links.open.iter().rev() {
            let is_first = link
                .socket
                .as_ref()
                .is_none_or(|socket| nodes.insert(socket));
            if wanted(link) && is_first {
                chosen.push(*id);
            }
        }
        chosen
    }

    /// Sends an event to all who want it.
    pub(super) fn send_event(&self, routing_key: &str, message: Bytes) {
        let wants = |events: &Option<String>| {
            events
                .as_deref()
                .is_some_and(|key| begins(key, routing_key))
        };
        let chosen = self.choose(|link| wants(&link.events));
        if wants(&self.hello.events) {
            self.inbox.put(Kind::Event, message.clone());
        }
        if chosen.is_empty() {
            return;
        }
        let frame = Frame::Event(message).encode();
        for id in chosen {
            self.send_to(id, frame.clone());
        }
    }

    /// Sends a reply to whoever named its key last.
    pub(super) fn send_reply(&self, key: &str, message: Bytes) {
        if key == self.reply_key {
            if self.hello.commands {
                self.inbox.put(Kind::Reply, message);
            }
            return;
        }
        let asks = |link: &Link| link.reply_keys.iter().any(|known| known == key);
        if let Some(id) = self.choose(asks).first() {
            self.send_to(*id, Frame::Reply(message).encode());
        }
    }

    /// Sends a command to all nodes, this one included; answers with how many take commands.
    pub(super) fn send_command(&self, message: Bytes) -> usize {
        let frame = Frame::Command {
            reply_key: Some(self.reply_key.clone()),
            message: message.clone(),
        };
        let frame = frame.encode();
        for id in self.choose(|link| link.socket.is_some()) {
            self.send_to(id, frame.clone());
        }
        let mut count = self
            .choose(|link| link.socket.is_some() && link.takes_commands)
            .len();
        if self.hello.commands {
            self.inbox.put(Kind::Command, message);
            count += 1;
        }
        count
    }

    /// The sockets of the nodes that are connected.
    pub(super) fn known(&self) -> HashSet<String> {
        let links = self.links();
        let sockets = links.open.values().filter_map(|link| link.socket.clone());
        sockets.collect()
    }

    /// Waits until these connections have said hello or are gone.
    pub(super) async fn greeted(&self, ids: &[u64], patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let is_open = |id| {
                let links = self.links();
                links.open.get(id).is_some_and(|link| !link.has_greeted)
            };
            if !ids.iter().any(is_open) || timeout_at(deadline, changed).await.is_err() {
                return;
            }
        }
    }

    /// Ends all connections at once.
    pub(super) fn clear(&self) {
        self.links().open.clear();
    }

    /// Ends all connections; what was sent is read by those that read.
    pub(super) async fn end(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut open = std::mem::take(&mut self.links().open);
        for link in open.values_mut() {
            link.frames = None;
        }
        for link in open.values_mut() {
            drop(timeout_at(deadline, &mut link.writer).await);
        }
    }
}

/// Whether a routing key fits a binding's: `#` at its end stands for anything.
fn begins(binding: &str, routing_key: &str) -> bool {
    match binding.strip_suffix('#') {
        Some(beginning) => routing_key.starts_with(beginning),
        None => routing_key == binding,
    }
}

/// Writes what comes until there is no more or nobody reads.
async fn write_all(
    mut writer: OwnedWriteHalf,
    mut waiting: mpsc::Receiver<Bytes>,
    queued: Arc<AtomicUsize>,
) {
    while let Some(frame) = waiting.recv().await {
        if writer.write_all(&frame).await.is_err() {
            return;
        }
        queued.fetch_sub(frame.len(), Ordering::Relaxed);
    }
}
