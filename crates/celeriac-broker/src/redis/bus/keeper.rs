//! The bus's errands beside listening: asking whether the server is still there, and collecting
//! the replies to commands of this node.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use celeriac_core::broker::Error;
use celeriac_core::bus::{BusSettings, Kind};
use redis::aio::MultiplexedConnection;
use redis::{Script, cmd, pipe};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::pushes::Pushes;
use crate::redis::error::broker_error;
use crate::redis::keys::Keys;
use crate::redis::scripts::{BIND, SWEEP, UNBIND};

/// kombu's default `health_check_interval`.
const HEALTH_CHECK: Duration = Duration::from_secs(25);
/// Without `control_queue_ttl`, replies are of no use after this.
const REPLY_TTL: Duration = Duration::from_hours(1);
/// kombu keeps no table of bindings for less.
const LEAST_DEADLINE: Duration = Duration::from_hours(1);
/// Between two looks for tables of bindings that were left behind, and how many are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_mins(1);
const SWEEP_LIMIT: usize = 100;
/// How often to look for replies although the server told of none.
const POLL: Duration = Duration::from_secs(1);
/// The same for a server that can't tell, while replies are likely.
const POLL_UNTOLD: Duration = Duration::from_millis(50);
/// For so long after a command replies are likely.
const LIKELY: Duration = Duration::from_secs(5);
/// How many replies are taken at once.
const REPLIES_PER_CALL: usize = 100;

/// How long a reply is of use.
pub(super) fn reply_ttl(settings: &BusSettings) -> Duration {
    BusSettings::span(settings.control_queue_ttl)
        .filter(|ttl| !ttl.is_zero())
        .unwrap_or(REPLY_TTL)
}

/// The queue of replies to this node, as it stands in Redis.
pub(super) struct ReplyQueue {
    pub(super) list: String,
    table: String,
    deadlines: String,
    member: String,
    exchange: String,
    ttl: Duration,
    deadline: Duration,
}

impl ReplyQueue {
    pub(super) fn new(keys: &Keys, settings: &BusSettings, key: &str) -> Self {
        let exchange = settings.reply_exchange();
        let queue = settings.reply_queue(key);
        let separator = keys.separator();
        let ttl = reply_ttl(settings);
        let expires = BusSettings::span(settings.control_queue_expires).unwrap_or_default();
        Self {
            list: keys.list(&queue, 0),
            table: keys.binding_table(&exchange),
            deadlines: keys.binding_deadlines.clone(),
            member: format!("{key}{separator}{separator}{queue}"),
            exchange,
            ttl,
            // Never bound for longer than the replies are of use, so that nothing has to be renewed.
            deadline: LEAST_DEADLINE.max(2 * expires).max(2 * ttl),
        }
    }
}

/// A task of its own, so that nothing that was taken from the server is lost with a cancelled wait.
pub(super) struct Keeper {
    pub(super) connection: MultiplexedConnection,
    pub(super) pushes: Arc<Pushes>,
    pub(super) queue: ReplyQueue,
    /// How the server is asked to delete tables of bindings that were left behind.
    pub(super) sweep: [String; 2],
    pub(super) health_check: Option<Duration>,
    /// Whether the server tells of replies.
    pub(super) is_told: bool,
}

/// Somebody is about to send a command: the queue of replies has to be bound.
pub(super) type Collect = oneshot::Sender<Result<(), Error>>;

impl Keeper {
    /// The transport option `health_check_interval`.
    pub(super) fn health_check(configured: Option<Duration>) -> Option<Duration> {
        let interval = configured.unwrap_or(HEALTH_CHECK);
        (!interval.is_zero()).then_some(interval)
    }

    /// Runs until the connection is lost or `collect` is closed; deletes what it has made.
    pub(super) async fn run(mut self, mut collect: mpsc::Receiver<Collect>) {
        if let Err(error) = self.keep(&mut collect).await {
            self.pushes.inbox.lose(&error.message);
        }
    }

    async fn keep(&mut self, collect: &mut mpsc::Receiver<Collect>) -> Result<(), Error> {
        let start = Instant::now();
        let mut health_check = self.health_check.map(|interval| start + interval);
        let mut next_sweep = start + SWEEP_INTERVAL;
        // When the queue was last asked for; `None` while it is not bound.
        let mut asked: Option<Instant> = None;
        let mut next_poll = start;
        loop {
            let end = asked.map(|at| at + self.queue.ttl);
            let due = [
                health_check,
                Some(next_sweep),
                asked.map(|_| next_poll),
                end,
            ]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(next_sweep);
            let told = tokio::select! {
                request = collect.recv() => match request {
                    Some(answer) => {
                        let bound = self.bind().await;
                        asked = Some(Instant::now());
                        drop(answer.send(bound));
                        true
                    }
                    None => {
                        return if asked.is_some() { self.unbind().await } else { Ok(()) };
                    }
                },
                () = self.pushes.replied.notified() => true,
                () = sleep_until(due) => false,
            };
            let now = Instant::now();
            if let (Some(at), Some(interval)) = (health_check, self.health_check)
                && now >= at
            {
                self.ping(interval).await?;
                health_check = Some(Instant::now() + interval);
            }
            if now >= next_sweep {
                self.sweep().await?;
                next_sweep = Instant::now() + SWEEP_INTERVAL;
            }
            if asked.is_some_and(|at| now >= at + self.queue.ttl) {
                asked = None;
                self.unbind().await?;
            }
            if let Some(at) = asked
                && (told || now >= next_poll)
            {
                self.collect().await?;
                let is_likely = now < at + LIKELY;
                let poll = if self.is_told || !is_likely {
                    POLL
                } else {
                    POLL_UNTOLD
                };
                next_poll = Instant::now() + poll;
            }
        }
    }

    /// A connection that died without a word is noticed by this alone.
    async fn ping(&mut self, patience: Duration) -> Result<(), Error> {
        let ping = cmd("PING");
        let answer = timeout(patience, ping.query_async::<()>(&mut self.connection)).await;
        answer
            .unwrap_or_else(|_| {
                let silent = std::io::Error::from(std::io::ErrorKind::TimedOut);
                Err(silent.into())
            })
            .map_err(|error| broker_error(&error))
    }

    async fn sweep(&mut self) -> Result<(), Error> {
        let [tables, permanent] = &self.sweep;
        let mut call = SWEEP.prepare_invoke();
        call.key(&self.queue.deadlines)
            .arg(tables)
            .arg(permanent)
            .arg(SWEEP_LIMIT);
        call.invoke_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))
    }

    async fn bind(&mut self) -> Result<(), Error> {
        let deadline = self.queue.deadline.as_millis().to_string();
        self.invoke(&BIND, &[&deadline]).await
    }

    async fn unbind(&mut self) -> Result<(), Error> {
        self.invoke(&UNBIND, &[]).await
    }

    async fn invoke(&mut self, script: &Script, arguments: &[&str]) -> Result<(), Error> {
        let queue = &self.queue;
        let mut call = script.prepare_invoke();
        call.key(&queue.table)
            .key(&queue.deadlines)
            .key(&queue.list);
        call.arg(&queue.member).arg(&queue.exchange);
        for argument in arguments {
            call.arg(*argument);
        }
        call.invoke_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))
    }

    /// Takes the replies that are there. Asking for the length has the server tell of the next.
    async fn collect(&mut self) -> Result<(), Error> {
        loop {
            let (_, replies): (u64, Option<Vec<Vec<u8>>>) = pipe()
                .llen(&self.queue.list)
                .cmd("RPOP")
                .arg(&self.queue.list)
                .arg(REPLIES_PER_CALL)
                .query_async(&mut self.connection)
                .await
                .map_err(|error| broker_error(&error))?;
            let Some(replies) = replies else {
                return Ok(());
            };
            let is_all = replies.len() < REPLIES_PER_CALL;
            for reply in replies {
                self.pushes.inbox.put(Kind::Reply, Bytes::from(reply));
            }
            if is_all {
                return Ok(());
            }
        }
    }
}
