//! A bus between the processes of one user on one machine, for brokers without fanout.
//!
//! Every node listens on a Unix socket; whoever wants something connects to all of them. This is
//! the whole protocol, for clients in other languages as well:
//!
//! # Where the sockets are
//!
//! `<base>/<broker>/<node>.sock`
//!
//! `<base>` is, for a node, the first of these that there is; whoever looks for nodes looks into
//! all of them (a node that systemd has started may have no `XDG_RUNTIME_DIR`):
//!
//! 1. `$XDG_RUNTIME_DIR/celeriac`, where that is an absolute path of a folder of the effective user
//! 2. `/run/user/<euid>/celeriac`, where `/run/user/<euid>` is a folder of the effective user
//! 3. `/tmp/celeriac-<euid>`
//!
//! A base is a folder, no link, of the effective user, with mode 0700; another is refused.
//!
//! `<broker>` is the first 16 hex digits of the UUID version 5, in the namespace of URLs, of
//! `<identity>#<control_exchange>`. `sql/identity.rs` tells what the identity of a broker is, such as
//! `sqlite:///var/lib/q.db` or `postgresql://db.example:5432/q`.
//!
//! `<node>` is the same of the node's name, with `.2`, `.3` and so on where a live node of that name
//! is there already. Clients take every file that ends in `.sock`.
//!
//! A socket that refuses is a dead node's. It is removed under an exclusive `flock` of
//! `<base>/<broker>/lock`, after another try. Clients need not remove any.
//!
//! # Frames
//!
//! Both ways: four bytes of length, big-endian, at most 16 MiB, and so many bytes of a JSON object
//! with the member `kind`. Other kinds and members than these are left alone. Each side may send
//! any of them at any time.
//!
//! | frame | meaning |
//! |---|---|
//! | `{"kind":"command", "reply_key":"k", "message":M}` | A command. Replies to the routing key `k` come back over this connection; without a key there are none. |
//! | `{"kind":"reply", "message":M}` | A reply. |
//! | `{"kind":"events", "routing_key":"#"}` | From now on events are wanted whose routing key begins so: `#`, `worker.#`, `task.#`. The last wish counts. |
//! | `{"kind":"event", "message":M}` | An event. |
//! | `{"kind":"hello", "node":"w1@h", "socket":"<path>", "commands":true, "events":"worker.#", "reply_key":"k"}` | Who connects: for a node, the absolute path of its socket; whether commands are taken; which events and replies are wanted. `socket`, `events` and `reply_key` may be null. Answered by the same, after all that was sent before it has taken effect. |
//!
//! Clients need not say hello. `M` is kombu's envelope, as it stands in Redis: the body in base64 or,
//! with the property `body_encoding` absent or `utf-8`, as it is. A node closes the connection of
//! whoever does not read (1,000 frames or 16 MiB wait) or sends what is no frame.

mod folder;
mod frame;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod hub;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use celeriac_core::broker::Error;
use celeriac_core::bus::{Bus, BusOptions, BusSettings, Destination, Heard, Outgoing};
use celeriac_protocol::Message;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::addressed::addressed;
pub use folder::Place;
use folder::{Folder, Listening, Reached, reach};
use frame::Hello;
use hub::Hub;

/// How long to wait for the nodes' hello: one that hangs shall not hold up another's start.
const GREETING: Duration = Duration::from_secs(1);
/// How long after a node was lost to look whether it is there.
const SEARCH: Duration = Duration::from_secs(1);
/// How long those that read may take for what was sent last.
const FAREWELL: Duration = Duration::from_secs(1);

/// A bus over Unix sockets.
pub struct LocalBus {
    hub: Arc<Hub>,
    settings: BusSettings,
    nodes: Nodes,
    own: Option<Own>,
    notice: Option<String>,
}

/// The socket that this bus listens on.
struct Own {
    folder: Folder,
    /// `None` once it was removed: the name may be another node's by then.
    path: Option<PathBuf>,
    task: JoinHandle<()>,
}

impl Drop for Own {
    fn drop(&mut self) {
        // While it listens, nobody takes the file for a dead node's.
        if let Some(path) = &self.path {
            drop(std::fs::remove_file(path));
        }
        self.task.abort();
    }
}

impl Own {
    async fn leave(mut self) -> Result<(), Error> {
        let left = match self.path.take() {
            Some(path) => self.folder.leave(&path).await,
            None => Ok(()),
        };
        self.task.abort();
        drop((&mut self.task).await);
        left
    }
}

impl LocalBus {
    /// Listens at `place`, and meets the nodes that are there.
    ///
    /// # Errors
    /// When there is no folder to listen in that is this user's alone.
    pub async fn open(place: &Place, options: &BusOptions) -> Result<Self, Error> {
        let folders = place.folders(&options.settings.control_exchange);
        let mut listening = None;
        if (options.hears_commands || options.hears_workers)
            && let Some(folder) = folders.first()
        {
            listening = Some((folder.clone(), folder.listen(&options.node).await?));
        }
        let hello = Hello {
            node: options.node.clone(),
            socket: listening.as_ref().map(|(_, own)| text(&own.path)),
            commands: options.hears_commands,
            events: options.hears_workers.then(|| "worker.#".to_owned()),
            reply_key: None,
        };
        let hub = Arc::new(Hub::new(hello, uuid::Uuid::new_v4().to_string()));
        let nodes = Nodes {
            hub: Arc::clone(&hub),
            folders,
        };
        let mut notice = None;
        let own = listening.map(
            |(
                folder,
                Listening {
                    listener,
                    path,
                    is_namesake,
                },
            )| {
                notice = is_namesake.then(|| {
                    let node = &options.node;
                    format!("Another node is named {node}: commands for it reach both.")
                });
                let task = tokio::spawn(nodes.clone().serve(listener));
                let path = Some(path);
                Own { folder, path, task }
            },
        );
        nodes.meet().await;
        Ok(Self {
            hub,
            settings: options.settings.clone(),
            nodes,
            own,
            notice,
        })
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The other nodes.
#[derive(Clone)]
struct Nodes {
    hub: Arc<Hub>,
    folders: Vec<Folder>,
}

impl Nodes {
    /// Connects to the nodes that are not connected, and waits for their hello.
    async fn meet(&self) {
        let mut known = self.hub.known();
        known.extend(self.hub.hello.socket.clone());
        let mut met = Vec::new();
        for folder in &self.folders {
            let mut has_dead = false;
            for socket in folder.sockets() {
                if !known.insert(text(&socket)) {
                    continue;
                }
                match reach(&socket).await {
                    Reached::Node(stream) => met.push(self.hub.meet(stream, text(&socket))),
                    Reached::Busy => {}
                    Reached::Nobody => has_dead = true,
                }
            }
            if has_dead {
                folder.clean().await;
            }
        }
        self.hub.greeted(&met, GREETING).await;
    }

    /// Takes connections, and looks again for a node whose connection was lost: it may have been
    /// ended for not being read in time.
    async fn serve(self, listener: UnixListener) {
        let mut search: Option<Instant> = None;
        loop {
            let due = search.unwrap_or_else(|| Instant::now() + Duration::from_hours(1));
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.hub.accept(stream),
                    Err(error) => {
                        self.hub.inbox.lose(&format!("the local socket: {error}"));
                        return;
                    }
                },
                () = self.hub.node_lost.notified() => search = Some(Instant::now() + SEARCH),
                () = sleep_until(due) => {
                    search = None;
                    self.meet().await;
                }
            }
        }
    }
}

#[async_trait]
impl Bus for LocalBus {
    async fn next(&mut self) -> Result<Heard, Error> {
        self.hub.inbox.next().await
    }

    async fn send(&mut self, outgoing: &[Outgoing]) -> Result<(), Error> {
        for Outgoing { to, message } in outgoing {
            match to {
                Destination::Reply {
                    exchange,
                    routing_key,
                } => {
                    let envelope = addressed(message, exchange, routing_key);
                    self.hub.send_reply(routing_key, Bytes::from(envelope));
                }
                Destination::Event { routing_key } => {
                    let exchange = &self.settings.event_exchange;
                    let envelope = addressed(message, exchange, routing_key);
                    self.hub.send_event(routing_key, Bytes::from(envelope));
                }
            }
        }
        Ok(())
    }

    async fn broadcast(&mut self, command: &Message) -> Result<Option<usize>, Error> {
        self.nodes.meet().await;
        let exchange = self.settings.command_exchange();
        let envelope = addressed(command, &exchange, "");
        Ok(Some(self.hub.send_command(Bytes::from(envelope))))
    }

    fn reply_key(&self) -> &str {
        &self.hub.reply_key
    }

    fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    async fn close(mut self: Box<Self>) -> Result<(), Error> {
        let left = match self.own.take() {
            None => Ok(()),
            Some(own) => own.leave().await,
        };
        self.hub.end(FAREWELL).await;
        left
    }
}

impl Drop for LocalBus {
    fn drop(&mut self) {
        self.hub.clear();
    }
}
