//! The consumer: owns the connection to the broker, and always comes back to it.
//!
//! Celery's counterpart: `celery.worker.consumer.consumer.Consumer` with its `Connection` and
//! `Tasks` steps.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use celeriac_core::broker::{
    Broker, Delayed, Delivery, DeliveryTag, Error, ErrorKind, Fate, Retry, Session, Settlement,
    Want,
};
use celeriac_core::dead_letter::{Bounds, DeadLetter};
use celeriac_core::journal::{Journal, Level};
use celeriac_core::queue::Queue;
use celeriac_core::revokes::KeptRevokes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

pub use super::burials::Burial;
use super::burials::{Burials, Verdict};
use super::failover::{Failover, Next, RetryPolicy, Strategy};
pub use super::handle::Handle;
use super::handle::{Change, Shared};
use super::tags::{Epoch, Epochs, Unsettled};
use crate::happening::Happening;

/// Events that wait to be taken. One batch of messages is under way at a time.
const QUEUED_EVENTS: usize = 16;
/// How long acknowledgements wait for a claim to go along with. A worker that is killed meanwhile
/// has those tasks run again, as it would while they are on their way.
const ACKS_WAIT: Duration = Duration::from_millis(5);
/// How long leaving the broker in order may take.
const LEAVING: Duration = Duration::from_secs(10);

/// What a consumer is made of.
pub struct Options {
    /// Brokers in the order in which they are tried, at least one.
    pub brokers: Vec<Arc<dyn Broker>>,
    /// How they take turns.
    pub strategy: Strategy,
    /// What to do about attempts that fail.
    pub policy: RetryPolicy,
    /// What to consume.
    pub queues: Vec<Queue>,
    /// Whether to delete all messages that wait at the start.
    pub purge: bool,
    /// How many dead letters are kept, and for how long.
    pub dead_letters: Bounds,
}

/// What a consumer tells.
#[derive(Debug)]
pub enum Event {
    /// It consumes, from the broker of this number.
    Connected(usize),
    /// Messages that waited at the start were deleted.
    Purged(u64),
    /// Messages came: the batch of this number, from 1.
    Delivered(u64, Vec<Delivery>),
    /// Until then nobody else is given what is fetched; `None` for as long as the connection lasts.
    Leased(Option<Instant>),
    /// These messages are no longer this worker's.
    LeasesLost(Vec<DeliveryTag>),
    /// The queue of this name was added and can't be had: it is not consumed.
    QueueRefused(String),
    /// The first messages in the delay store, or why it can't be read, for this question.
    Delayed(u64, Result<Vec<Delayed>, Error>),
    /// What the broker keeps of revokes, or why it can't be read.
    Revokes(Result<KeptRevokes, Error>),
    /// The connection is lost; it connects again.
    Lost,
    /// It can't connect, and won't try again.
    GaveUp,
    /// It has left the broker, as it was told to.
    Closed,
}

impl Handle {
    /// Starts the consumer of a lane; it connects at once.
    pub fn start(options: Options, lane: usize, journal: Arc<dyn Journal>) -> Self {
        let shared = Arc::new(Shared::default());
        let (to_events, events) = mpsc::channel(QUEUED_EVENTS);
        let consumer = Consumer {
            failover: Failover::new(options.brokers.len(), options.strategy, options.policy),
            epochs: Epochs::new(lane, options.brokers.len()),
            max_retries: options.policy.max_retries,
            purges: options.purge,
            brokers: options.brokers,
            queues: options.queues,
            added: HashSet::new(),
            journal,
            shared: Arc::clone(&shared),
            events: to_events,
            burials: Burials::default(),
            bounds: options.dead_letters,
            unsettled: Unsettled::default(),
            batches: 0,
            missed_revokes: false,
            was_leased: false,
        };
        tokio::spawn(consumer.run());
        Self::new(shared, events)
    }
}

/// Whether the server can be reached, and says no to something.
fn is_refused(error: &Error) -> bool {
    use ErrorKind::{Configuration, Denied, Refused};
    matches!(error.kind, Denied | Configuration | Refused)
}

struct Consumer {
    brokers: Vec<Arc<dyn Broker>>,
    queues: Vec<Queue>,
    /// Names of those that the app does not consume by itself.
    added: HashSet<String>,
    failover: Failover,
    max_retries: Option<u32>,
    epochs: Epochs,
    purges: bool,
    journal: Arc<dyn Journal>,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
    /// Dead letters that the broker does not keep yet.
    burials: Burials,
    bounds: Bounds,
    unsettled: Unsettled,
    /// How many batches of messages were delivered.
    batches: u64,
    /// Whether the connection was lost over reading what the broker keeps of revokes.
    missed_revokes: bool,
    /// Whether the last connection had leases.
    was_leased: bool,
}

/// Why there is no connection to consume over.
struct Unconnected {
    error: Error,
    /// Whether a queue exists otherwise than the app declares it: no time and no other server of
    /// the same app helps, whether it is noticed at the start or after a connection was lost.
    is_misdeclared: bool,
}

impl From<Error> for Unconnected {
    fn from(error: Error) -> Self {
        Self {
            error,
            is_misdeclared: false,
        }
    }
}

/// Why consuming ended.
enum Ended {
    Stopped,
    Lost {
        error: Error,
        /// Whether it did anything for us: then trying again at once is worth it.
        worked: bool,
    },
}

impl Consumer {
    async fn run(mut self) {
        loop {
            let broker = Arc::clone(&self.brokers[self.failover.current()]);
            let shared = Arc::clone(&self.shared);
            let connected = tokio::select! {
                biased;
                connected = self.connect(&*broker) => connected,
                () = stopped(&shared) => break,
            };
            let Unconnected {
                error,
                is_misdeclared,
            } = match connected {
                Ok((session, epoch)) => {
                    self.tell(Event::Connected(self.failover.current())).await;
                    match self.consume(session, epoch).await {
                        Ended::Stopped => break,
                        Ended::Lost { error, worked } => {
                            self.unsettled.forget_lost(&self.epochs);
                            self.burials.connection_lost();
                            self.tell(Event::Lost).await;
                            if worked {
                                let error = error.in_full();
                                self.write(&Happening::ConnectionLost { error: &error });
                                continue;
                            }
                            error.into()
                        }
                    }
                }
                Err(unconnected) => unconnected,
            };
            if is_misdeclared {
                self.give_up(&*broker, &error.in_full()).await;
                break;
            }
            if !self.failed(&*broker, &error).await {
                break;
            }
        }
        self.settle_the_rest().await;
        self.tell(Event::Closed).await;
    }

    /// Connects, and consumes from all queues.
    async fn connect(
        &mut self,
        broker: &dyn Broker,
    ) -> Result<(Box<dyn Session>, Epoch), Unconnected> {
        let mut session = broker.connect().await?;
        // All queues are declared below.
        let _ = self.take_changes();
        let declared = self.queues.iter().filter(|queue| !queue.no_declare);
        for queue in declared.cloned().collect::<Vec<_>>() {
            let Err(error) = session.declare(&queue).await else {
                continue;
            };
            if is_refused(&error) && self.added.contains(&queue.name) {
                // A slip of whoever added it must not end the worker.
                return Err(self.refuse(&queue, error).await.into());
            }
            let is_misdeclared = error.kind == ErrorKind::Configuration;
            return Err(Unconnected {
                error,
                is_misdeclared,
            });
        }
        if self.purges {
            let mut purged = 0;
            for queue in &self.queues {
                purged += session.purge(&queue.name).await?;
            }
            self.purges = false;
            self.tell(Event::Purged(purged)).await;
        }
        for queue in &self.queues {
            session.subscribe(queue).await?;
        }
        let url = broker.display_url();
        self.write(&Happening::Connected { url: &url });
        let outlive = broker.capabilities().tags_outlive_connections;
        Ok((session, self.epochs.begin(self.failover.current(), outlive)))
    }

    /// Waits before the next attempt; false when there is to be none.
    async fn failed(&mut self, broker: &dyn Broker, error: &Error) -> bool {
        let url = broker.display_url();
        let text = error.in_full();
        let random = RandomState::new().build_hasher().finish();
        let next = self.failover.failed(error.retry() == Retry::Never, random);
        match next {
            Next::Failover => {
                let next = "Will retry using next failover.\n";
                self.write(&Happening::CannotConnect {
                    url: &url,
                    error: &text,
                    next,
                });
                true
            }
            Next::Wait(wait) => {
                let max = self
                    .max_retries
                    .map_or_else(|| "None".to_owned(), |max| max.to_string());
                let next = format!(
                    "Trying again in {:.2} seconds... ({}/{max})",
                    wait.as_secs_f64(),
                    self.failover.failures()
                );
                self.write(&Happening::CannotConnect {
                    url: &url,
                    error: &text,
                    next: &next,
                });
                let shared = Arc::clone(&self.shared);
                tokio::select! {
                    biased;
                    () = sleep(wait) => true,
                    () = stopped(&shared) => false,
                }
            }
            Next::GiveUp => {
                self.give_up(broker, &text).await;
                false
            }
        }
    }

    /// Says that there is no use in trying again, and waits for the worker to end.
    async fn give_up(&self, broker: &dyn Broker, text: &str) {
        let url = broker.display_url();
        let reason = format!("consumer: Cannot connect to {url}: {text}. Giving up.");
        self.write(&Happening::GaveUp { reason: &reason });
        self.tell(Event::GaveUp).await;
        stopped(&self.shared).await;
    }

    /// Consumes over one connection.
    async fn consume(&mut self, mut session: Box<dyn Session>, epoch: Epoch) -> Ended {
        let mut next_maintenance = Instant::now();
        // Whether the queues were seen to be empty, and nothing was told since.
        let mut is_dry = false;
        let mut worked = false;
        let mut acks_by = None;
        loop {
            let now = Instant::now();
            if next_maintenance <= now {
                match self.shared.owed(session.maintain()).await {
                    Ok(maintained) => {
                        self.burials.connection_holds();
                        next_maintenance = Instant::now() + maintained.next;
                        is_dry = is_dry && maintained.restored == 0;
                        self.leases_lost(&maintained.lost, epoch).await;
                        self.leased(maintained.leased.map(|leased| now + leased))
                            .await;
                    }
                    Err(error) => return Ended::Lost { error, worked },
                }
            }
            for change in self.take_changes() {
                // A new queue may have messages.
                is_dry = false;
                if let Err(error) = self.apply(&mut *session, change).await {
                    return Ended::Lost { error, worked };
                }
            }
            if let Err(error) = self.read_revokes(&mut *session).await {
                return Ended::Lost { error, worked };
            }
            if let Err(error) = self.read_delayed(&mut *session).await {
                return Ended::Lost { error, worked };
            }
            let (want, stops) = self.take_wishes();
            if stops {
                self.burials.hurry();
            }
            self.bury(&mut *session).await;
            if stops {
                self.give_up_burials();
            }
            let claims = !(want.is_none() || is_dry);
            // Acknowledgements go along with the next claim, if there is one soon.
            let holds = self.unsettled.len() > 0 && self.unsettled.are_acks() && !claims && !stops;
            acks_by = holds.then(|| acks_by.unwrap_or_else(|| Instant::now() + ACKS_WAIT));
            if let Some(by) = acks_by
                && self.holds_acks(by)
            {
                match self.rest(&mut *session, want, by).await {
                    Ok(woken) => is_dry = is_dry && !woken,
                    Err(error) => return Ended::Lost { error, worked },
                }
                continue;
            }
            acks_by = None;
            let settlements = self.unsettled.take(epoch);
            // The worker may have learnt too late that a connection was lost.
            self.unsettled.forget_lost(&self.epochs);
            if stops {
                return self.leave(session, epoch, &settlements).await;
            }
            if !settlements.is_empty() || claims {
                let exchange = session.exchange(&settlements, want);
                match self.shared.owed(exchange).await {
                    Ok(deliveries) => {
                        worked = true;
                        self.failover.succeeded();
                        self.burials.connection_holds();
                        // What goes back to a queue may be this worker's to take again.
                        let gave_back = |settlement: &Settlement| {
                            !matches!(settlement.fate, Fate::Ack | Fate::Reject)
                        };
                        if !want.is_none() {
                            is_dry = deliveries.len() < want.runnable;
                        }
                        is_dry = is_dry && !settlements.iter().any(gave_back);
                        self.deliver(deliveries, epoch).await;
                    }
                    Err(error) => {
                        self.unsettled.put_back(epoch, &settlements);
                        return Ended::Lost { error, worked };
                    }
                }
                continue;
            }
            let retry_at = self.burials.retry_at().unwrap_or(next_maintenance);
            let until = next_maintenance.min(retry_at);
            match self.rest(&mut *session, want, until).await {
                Ok(woken) => is_dry = is_dry && !woken,
                Err(error) => return Ended::Lost { error, worked },
            }
        }
    }

    /// Takes the changes of what is to be consumed, and keeps them for the next connection.
    fn take_changes(&mut self) -> Vec<Change> {
        let changes = std::mem::take(&mut self.shared.wishes().changes);
        for change in &changes {
            let name = match change {
                Change::Add(queue) => &queue.name,
                Change::Cancel(name) => name,
            };
            let is_known = self.queues.iter().any(|queue| queue.name == *name);
            self.queues.retain(|queue| queue.name != *name);
            match change {
                Change::Add(queue) => {
                    if !is_known {
                        self.added.insert(name.clone());
                    }
                    self.queues.push(Queue::clone(queue));
                }
                Change::Cancel(_) => drop(self.added.remove(name)),
            }
        }
        changes
    }

    /// Consumes from a further queue, or from one no more. A queue that can't be had is told of,
    /// and the others are consumed on.
    async fn apply(&mut self, session: &mut dyn Session, change: Change) -> Result<(), Error> {
        let queue = match change {
            Change::Cancel(name) => return self.shared.owed(session.cancel(&name)).await,
            Change::Add(queue) => queue,
        };
        let adding = async {
            if !queue.no_declare {
                session.declare(&queue).await?;
            }
            session.subscribe(&queue).await
        };
        match self.shared.owed(adding).await {
            Ok(()) => {
                let queue = &queue.name;
                self.write(&Happening::StartedConsuming { queue });
                Ok(())
            }
            Err(error) if is_refused(&error) => Err(self.refuse(&queue, error).await),
            Err(error) => Err(error),
        }
    }

    /// Reads what the broker keeps of revokes, if the worker asks for it. A connection that is lost
    /// over it is made again once: the next one may know more.
    async fn read_revokes(&mut self, session: &mut dyn Session) -> Result<(), Error> {
        let Some(since) = self.shared.wishes().revokes.take() else {
            return Ok(());
        };
        let read = self.shared.owed(session.revokes(since)).await;
        match read {
            Err(error) if error.kind == ErrorKind::Connection && !self.missed_revokes => {
                self.missed_revokes = true;
                self.shared.wishes().revokes.get_or_insert(since);
                Err(error)
            }
            read => {
                self.missed_revokes = false;
                self.tell(Event::Revokes(read)).await;
                Ok(())
            }
        }
    }

    /// Reads the delay store for those who ask.
    async fn read_delayed(&mut self, session: &mut dyn Session) -> Result<(), Error> {
        let questions = std::mem::take(&mut self.shared.wishes().listings);
        let Some(most) = questions.iter().map(|(_, count)| *count).max() else {
            return Ok(());
        };
        // Once for all who ask: it keeps the loop from its work.
        let read = self.shared.owed(session.delayed(most)).await;
        let lost = read
            .as_ref()
            .is_err_and(|error| error.kind == ErrorKind::Connection);
        for (question, count) in questions {
            let mut answer = read.clone();
            if let Ok(first) = &mut answer {
                first.truncate(count);
            }
            self.tell(Event::Delayed(question, answer)).await;
        }
        if lost {
            let text = "it was lost over reading the delay store";
            return Err(Error::new(ErrorKind::Connection, text));
        }
        Ok(())
    }

    /// Has the broker keep the dead letters, each before its message is settled. Trouble with one
    /// does not end the connection: whether that is lost shows by itself.
    async fn bury(&mut self, session: &mut dyn Session) {
        while let Some(letter) = self.burials.next(Instant::now()) {
            let Err(error) = session.bury(&letter, self.bounds).await else {
                self.burials.kept();
                continue;
            };
            let id = letter.id.clone();
            let verdict = self.burials.failed(&error, Instant::now());
            let error = error.in_full();
            match verdict {
                Some(Verdict::Later) => self.error(&format!(
                    "The broker does not keep the dead letter of {id} yet, and its message is not \
                     settled before: {error}"
                )),
                Some(Verdict::Bare) => self.error(&format!(
                    "The broker does not keep the dead letter of {id}, which is tried without its \
                     message's body: {error}"
                )),
                Some(Verdict::Lost(letter)) => self.letter_lost(&letter, &error),
                None => {}
            }
        }
        let mut released = self.burials.take_released();
        self.unsettled.append(&mut released);
    }

    /// Gives back the messages whose letters are not kept, as the worker ends.
    fn give_up_burials(&mut self) {
        let (letters, mut released) = self.burials.give_up();
        for letter in letters {
            self.letter_lost(&letter, "the worker ends before there is room for it");
        }
        self.unsettled.append(&mut released);
    }

    /// Tells of a letter that is lost all that it says.
    fn letter_lost(&self, letter: &DeadLetter, error: &str) {
        self.error(&format!(
            "The broker does not keep a dead letter, which is lost: {error}: {}",
            letter.to_json()
        ));
    }

    fn error(&self, text: &str) {
        self.write(&Happening::Remote {
            level: Level::Error,
            logger: "celery.worker",
            text,
        });
    }

    /// Gives up a queue that was added and can't be had; what is left is to connect again, for the
    /// broker may have closed the channel over it.
    async fn refuse(&mut self, queue: &Queue, error: Error) -> Error {
        self.queues.retain(|known| known.name != queue.name);
        self.added.remove(&queue.name);
        let text = format!("Can't consume from {}: {}", queue.name, error.in_full());
        self.write(&Happening::Remote {
            level: Level::Error,
            logger: "celery.worker.control",
            text: &text,
        });
        self.tell(Event::QueueRefused(queue.name.clone())).await;
        Error::new(ErrorKind::Connection, error.message)
    }

    /// Rests until the worker wants something else, messages may have come (then it answers with
    /// true), or it is time.
    async fn rest(
        &self,
        session: &mut dyn Session,
        want: Want,
        until: Instant,
    ) -> Result<bool, Error> {
        tokio::select! {
            biased;
            () = self.shared.changed.notified() => Ok(false),
            waited = session.wait(), if !want.is_none() => waited.map(|()| true),
            () = sleep_until(until) => Ok(false),
        }
    }

    /// Whether acknowledgements may wait until `by`; the worker is not to tell of more of them then.
    fn holds_acks(&self, by: Instant) -> bool {
        let mut wishes = self.shared.wishes();
        wishes.holds_acks = Instant::now() < by;
        wishes.holds_acks
    }

    /// What the worker wants now, and whether it stops.
    fn take_wishes(&mut self) -> (Want, bool) {
        let mut wishes = self.shared.wishes();
        self.burials.extend(wishes.letters.drain(..));
        let settlements = wishes.settlements.drain(..);
        let mut ready = settlements
            .filter_map(|settlement| self.burials.hold(settlement))
            .collect();
        self.unsettled.append(&mut ready);
        wishes.holds_acks = false;
        // Said before the last batch was known of, it counts places that are taken.
        let want = if wishes.seen == self.batches && !self.burials.is_full() {
            wishes.want
        } else {
            Want::NONE
        };
        // The worker is to see all that came, so that it can give it back.
        (want, wishes.stops && wishes.seen == self.batches)
    }

    async fn deliver(&mut self, mut deliveries: Vec<Delivery>, epoch: Epoch) {
        if deliveries.is_empty() {
            return;
        }
        for delivery in &mut deliveries {
            delivery.tag = epoch.mark(delivery.tag);
        }
        self.batches += 1;
        self.tell(Event::Delivered(self.batches, deliveries)).await;
    }

    /// Tells how long the leases hold, if there are any, or were.
    async fn leased(&mut self, until: Option<Instant>) {
        if until.is_some() || self.was_leased {
            self.was_leased = until.is_some();
            self.tell(Event::Leased(until)).await;
        }
    }

    async fn leases_lost(&self, lost: &[DeliveryTag], epoch: Epoch) {
        if !lost.is_empty() {
            let lost = lost.iter().map(|tag| epoch.mark(*tag)).collect();
            self.tell(Event::LeasesLost(lost)).await;
        }
    }

    /// Settles the last messages and leaves in order.
    async fn leave(
        &mut self,
        mut session: Box<dyn Session>,
        epoch: Epoch,
        settlements: &[Settlement],
    ) -> Ended {
        let leaving = async {
            if !settlements.is_empty() {
                session.exchange(settlements, Want::NONE).await?;
            }
            session.close().await
        };
        match tokio::time::timeout(LEAVING, leaving).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "leaving the broker failed");
                self.unsettled.put_back(epoch, settlements);
            }
            Err(_) => self.unsettled.put_back(epoch, settlements),
        }
        Ended::Stopped
    }

    /// The worker ends without a connection: one more attempt, for what is not settled.
    async fn settle_the_rest(&mut self) {
        let (_, _) = self.take_wishes();
        self.unsettled.forget_lost(&self.epochs);
        if self.unsettled.len() == 0 && self.burials.is_empty() {
            return;
        }
        let at = self.failover.current();
        let broker = Arc::clone(&self.brokers[at]);
        let outlive = broker.capabilities().tags_outlive_connections;
        let epoch = self.epochs.begin(at, outlive);
        let mut settlements = self.unsettled.take(epoch);
        let settling = async {
            let mut session = broker.connect().await?;
            self.burials.hurry();
            self.bury(&mut *session).await;
            self.give_up_burials();
            let released = self.unsettled.take(epoch);
            settlements.extend(released);
            session.exchange(&settlements, Want::NONE).await?;
            session.close().await
        };
        let is_settled = matches!(tokio::time::timeout(LEAVING, settling).await, Ok(Ok(())));
        let left = self.unsettled.len() + if is_settled { 0 } else { settlements.len() };
        if left > 0 {
            let text = format!(
                "The broker can't be reached, so it was not told of {left} messages that are \
                 done with: it will deliver them again."
            );
            self.write(&Happening::Notice { text: &text });
        }
    }

    async fn tell(&self, event: Event) {
        // Without a worker there is nothing left to do: the loop ends by itself.
        drop(self.events.send(event).await);
    }

    fn write(&self, happening: &Happening<'_>) {
        if self.journal.writes(happening.level()) {
            self.journal.write(happening.record());
        }
    }
}

/// Returns when the worker wants its consumer to stop.
async fn stopped(shared: &Shared) {
    while !shared.wishes().stops {
        shared.changed.notified().await;
    }
    // Whoever asks next is to know as well.
    shared.changed.notify_one();
}
