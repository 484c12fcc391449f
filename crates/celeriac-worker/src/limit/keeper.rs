//! Asks the store of limits, and shows it that the holders of slots live.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use celeriac_core::broker::{Error, ErrorKind};
use celeriac_core::journal::{Journal, Level};
use celeriac_core::limit::{Answer, Asked, Holding, LEASE, LimitSession, Order, SharedLimitStore};
use celeriac_core::pool::RequestKey;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::happening::Happening;

/// Orders in one exchange at most.
const AT_ONCE: usize = 256;
/// Between two signs of life: three may be missed.
const RENEWAL: Duration = LEASE.checked_div(4).unwrap();
/// How long the store may take for an exchange, or to connect.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two attempts to reach the store.
const RETRY: Duration = Duration::from_secs(1);

/// What the worker is told: the answer to a request, or that the store can't be reached.
pub type Told = (RequestKey, Option<Answer>);

/// What the worker wants.
enum Command {
    Acquire(RequestKey, Asked),
    Release(RequestKey, Holding, Duration),
}

/// The worker's end. What waits here belongs to requests that the worker has, whose number is
/// bounded.
pub struct Handle {
    commands: Option<mpsc::UnboundedSender<Command>>,
    told: mpsc::UnboundedReceiver<Told>,
}

impl Handle {
    /// Starts a keeper; it connects at once. Without a store it keeps nothing.
    #[expect(
        clippy::disallowed_methods,
        reason = "what waits belongs to requests, whose number is bounded"
    )]
    pub fn start(store: Option<SharedLimitStore>, journal: Arc<dyn Journal>) -> Self {
        let (commands, from_worker) = mpsc::unbounded_channel();
        let (to_worker, told) = mpsc::unbounded_channel();
        let commands = store.map(|store| {
            let keeper = Keeper {
                link: Link::Opening(open(Arc::clone(&store))),
                store,
                journal,
                commands: from_worker,
                told: to_worker,
                held: HashMap::new(),
                waiting: Vec::new(),
                is_missed: false,
                next_renewal: Instant::now() + RENEWAL,
            };
            tokio::spawn(keeper.run());
            commands
        });
        Self { commands, told }
    }

    /// Asks for a request.
    pub fn acquire(&self, key: RequestKey, asked: Asked) {
        self.send(Command::Acquire(key, asked));
    }

    /// Gives back what a request holds, or a part of it, after so long.
    pub fn release(&self, key: RequestKey, holding: Holding, held: Duration) {
        self.send(Command::Release(key, holding, held));
    }

    fn send(&self, command: Command) {
        // The keeper ends after this handle.
        if let Some(commands) = &self.commands {
            drop(commands.send(command));
        }
    }

    /// The next answer; never where there is no store. Safe to cancel.
    pub async fn next(&mut self) -> Told {
        match self.told.recv().await {
            Some(told) => told,
            None => std::future::pending().await,
        }
    }

    /// Has it give back what is left, and returns when it has.
    pub async fn stop(&mut self) {
        if self.commands.take().is_some() {
            while self.told.recv().await.is_some() {}
        }
    }
}

type Opened = Result<Box<dyn LimitSession>, Error>;

/// How the store is reached.
enum Link {
    Open(Box<dyn LimitSession>),
    Opening(BoxFuture<'static, Opened>),
    Lost { retry_at: Instant },
}

struct Keeper {
    store: SharedLimitStore,
    journal: Arc<dyn Journal>,
    commands: mpsc::UnboundedReceiver<Command>,
    told: mpsc::UnboundedSender<Told>,
    link: Link,
    /// What is to be renewed.
    held: HashMap<RequestKey, Holding>,
    /// What came before the first connection.
    waiting: Vec<Command>,
    /// Whether it was told that the store can't be reached.
    is_missed: bool,
    next_renewal: Instant,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            let is_opening = matches!(self.link, Link::Opening(_));
            let retry_at = match self.link {
                Link::Lost { retry_at } => Some(retry_at),
                _ => None,
            };
            tokio::select! {
                biased;
                opened = opening(&mut self.link), if is_opening => self.opened(opened).await,
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                    self.link = Link::Opening(open(Arc::clone(&self.store)));
                }
                () = sleep_until(self.next_renewal) => self.renew().await,
                command = self.commands.recv() => {
                    let Some(command) = command else {
                        break;
                    };
                    let mut commands = vec![command];
                    while commands.len() < AT_ONCE
                        && let Ok(command) = self.commands.try_recv()
                    {
                        commands.push(command);
                    }
                    self.serve(commands).await;
                }
            }
        }
    }

    async fn opened(&mut self, opened: Opened) {
        match opened {
            Ok(session) => {
                if std::mem::take(&mut self.is_missed) {
                    let url = self.store.display_url();
                    self.notice(&format!("The limit store {url} is reached again."));
                }
                self.link = Link::Open(session);
                self.renew().await;
                let waiting = std::mem::take(&mut self.waiting);
                if !waiting.is_empty() {
                    self.serve(waiting).await;
                }
            }
            Err(error) => self.lost(&error),
        }
    }

    /// Shows that what is held is still in use.
    async fn renew(&mut self) {
        self.next_renewal = Instant::now() + RENEWAL;
        let orders: Vec<Order> = self.held.values().cloned().map(Order::Renew).collect();
        for orders in orders.chunks(AT_ONCE) {
            if let Err(error) = exchange(&mut self.link, orders).await {
                self.lost(&error);
                break;
            }
        }
    }

    async fn serve(&mut self, commands: Vec<Command>) {
        if !matches!(self.link, Link::Open(_)) && !self.is_missed {
            // It has not connected yet, and may at any moment.
            self.waiting.extend(commands);
            return;
        }
        let orders: Vec<Order> = commands.iter().map(order).collect();
        let answers = match &self.link {
            Link::Open(_) => exchange(&mut self.link, &orders).await,
            _ => Ok(None),
        };
        let answers = answers.unwrap_or_else(|error| {
            self.lost(&error);
            None
        });
        let mut answers = answers.map(Vec::into_iter);
        for command in commands {
            match command {
                Command::Acquire(key, asked) => {
                    let answer = answers.as_mut().and_then(Iterator::next);
                    let holding = asked.holding();
                    if answer == Some(Answer::Granted) && !holding.is_empty() {
                        self.held.insert(key, holding);
                    }
                    // A worker that is gone needs no answer.
                    drop(self.told.send((key, answer)));
                }
                // Where the store is not reached, what is not renewed comes free by itself.
                Command::Release(key, holding, _) => self.forget(key, &holding),
            }
        }
    }

    fn forget(&mut self, key: RequestKey, given_back: &Holding) {
        let Some(held) = self.held.get_mut(&key) else {
            return;
        };
        held.slots.retain(|slot| !given_back.slots.contains(slot));
        if given_back.claim.is_some() {
            held.claim = None;
        }
        if held.is_empty() {
            self.held.remove(&key);
        }
    }

    fn lost(&mut self, error: &Error) {
        self.link = Link::Lost {
            retry_at: Instant::now() + RETRY,
        };
        if !std::mem::replace(&mut self.is_missed, true) {
            let (url, error) = (self.store.display_url(), error.in_full());
            self.notice(&format!(
                "The limit store {url} can't be reached, so that tasks under limits wait: {error}"
            ));
        }
        for command in std::mem::take(&mut self.waiting) {
            if let Command::Acquire(key, _) = command {
                drop(self.told.send((key, None)));
            }
        }
    }

    fn notice(&self, text: &str) {
        if self.journal.writes(Level::Warning) {
            self.journal.write(Happening::Notice { text }.record());
        }
    }
}

fn order(command: &Command) -> Order {
    match command {
        Command::Acquire(_, asked) => Order::Acquire(asked.clone()),
        Command::Release(_, holding, held) => Order::Release(holding.clone(), *held),
    }
}

fn open(store: SharedLimitStore) -> BoxFuture<'static, Opened> {
    Box::pin(async move {
        let connected = timeout(PATIENCE, store.connect()).await;
        connected.unwrap_or_else(|_| Err(silent()))
    })
}

/// The end of an attempt to connect.
async fn opening(link: &mut Link) -> Opened {
    match link {
        Link::Opening(opening) => opening.await,
        _ => std::future::pending().await,
    }
}

/// Carries orders out if there is a connection.
async fn exchange(link: &mut Link, orders: &[Order]) -> Result<Option<Vec<Answer>>, Error> {
    let Link::Open(session) = link else {
        return Ok(None);
    };
    let answers = timeout(PATIENCE, session.exchange(orders)).await;
    answers.unwrap_or_else(|_| Err(silent())).map(Some)
}

fn silent() -> Error {
    let message = format!("it did not answer within {} s", PATIENCE.as_secs());
    Error::new(ErrorKind::Connection, message)
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use celeriac_core::journal::Record;
    use celeriac_core::limit::LimitStore;

    use super::*;

    /// A store that can be out of reach, and remembers what it was told.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        is_down: bool,
        orders: Vec<Order>,
        lines: Vec<String>,
    }

    impl fmt::Debug for Fake {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Fake")
        }
    }

    impl Fake {
        fn check(&self) -> Result<(), Error> {
            if self.0.lock().unwrap().is_down {
                return Err(Error::new(ErrorKind::Connection, "no route"));
            }
            Ok(())
        }
    }

    #[async_trait]
    impl LimitStore for Fake {
        fn display_url(&self) -> String {
            "fake://".to_owned()
        }

        async fn connect(&self) -> Result<Box<dyn LimitSession>, Error> {
            self.check()?;
            Ok(Box::new(self.clone()))
        }
    }

    #[async_trait]
    impl LimitSession for Fake {
        async fn exchange(&mut self, orders: &[Order]) -> Result<Vec<Answer>, Error> {
            self.check()?;
            let asks = orders.iter().filter(|it| matches!(it, Order::Acquire(_)));
            self.0.lock().unwrap().orders.extend_from_slice(orders);
            Ok(asks.map(|_| Answer::Granted).collect())
        }
    }

    impl Journal for Fake {
        fn writes(&self, _: Level) -> bool {
            true
        }

        fn write(&self, record: Record) {
            self.0.lock().unwrap().lines.push(record.message);
        }
    }

    fn asked(holder: &str) -> Asked {
        let permit = celeriac_core::limit::Permit {
            name: "limit".to_owned(),
            rate: None,
            slots: Some(3),
        };
        Asked {
            holder: holder.to_owned(),
            permits: vec![permit],
            ..Asked::default()
        }
    }

    fn start(fake: &Fake) -> Handle {
        Handle::start(Some(Arc::new(fake.clone())), Arc::new(fake.clone()))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_is_renewed_until_it_is_given_back() {
        let fake = Fake::default();
        let mut handle = start(&fake);
        for (key, holder) in [(1, "a"), (2, "b")] {
            handle.acquire(RequestKey(key), asked(holder));
            assert_eq!(
                handle.next().await,
                (RequestKey(key), Some(Answer::Granted))
            );
        }
        let holding = asked("a").holding();
        handle.release(RequestKey(1), holding.clone(), Duration::from_secs(2));
        tokio::time::sleep(RENEWAL + Duration::from_millis(1)).await;
        handle.stop().await;
        let expected = [
            Order::Acquire(asked("a")),
            Order::Acquire(asked("b")),
            Order::Release(holding, Duration::from_secs(2)),
            Order::Renew(asked("b").holding()),
        ];
        assert_eq!(fake.0.lock().unwrap().orders, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn without_its_store_nothing_is_granted_and_it_is_told_once() {
        let fake = Fake::default();
        fake.0.lock().unwrap().is_down = true;
        let mut handle = start(&fake);
        for key in 1..4 {
            handle.acquire(RequestKey(key), asked("a"));
            assert_eq!(handle.next().await, (RequestKey(key), None));
            tokio::time::sleep(2 * RETRY).await;
        }
        fake.0.lock().unwrap().is_down = false;
        tokio::time::sleep(2 * RETRY).await;
        handle.acquire(RequestKey(4), asked("a"));
        assert_eq!(handle.next().await, (RequestKey(4), Some(Answer::Granted)));
        handle.stop().await;
        let lines = &fake.0.lock().unwrap().lines;
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains("fake:// can't be reached") && lines[0].contains("no route"));
    }
}
