//! What the databases have in common beyond the suite: the tables beside kombu's.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use celeriac_core::Broker;
use celeriac_core::broker::{Delay, Delivery, Fate, Session, Settlement, Want};
use celeriac_core::dead_letter::{Bounds, Cause, Content, DeadLetter, Remains};
use celeriac_core::queue::Queue;
use celeriac_protocol::Marks;
use celeriac_testing::conformance::broker::{Fixture, message};
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, timeout};

/// Longer than any step takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many messages come at once.
const AT_ONCE: u64 = 500;

/// A database with default names.
pub(crate) trait Database: Fixture {
    /// Executes SQL, and answers with what it finds: columns are not looked at but the first.
    fn execute(&self, sql: &str) -> String;

    /// SQL of a trigger `cut` that ends a transaction, or its connection, before it has done `event`
    /// to a row of a table.
    fn cut(&self, event: &str, table: &str) -> String;

    /// SQL that removes it.
    fn mend(&self, table: &str) -> String {
        let _ = table;
        "DROP TRIGGER cut".to_owned()
    }
}

pub(crate) async fn run(database: &dyn Database) {
    what_is_cut_short_leaves_one_message(database).await;
    messages_are_moved_once_whoever_moves_them(database).await;
    so_many_come_at_once(database).await;
    what_was_purged_is_forgotten(database).await;
    another_message_with_its_id_is_let_alone(database).await;
    any_id_can_be_buried(database).await;
}

fn want(count: usize) -> Want {
    Want {
        runnable: count,
        total: count,
    }
}

async fn consumer(broker: &Arc<dyn Broker>) -> Box<dyn Session> {
    let mut session = broker.connect().await.unwrap();
    session.subscribe(&Queue::direct("q")).await.unwrap();
    session
}

fn delay(deliveries: &[Delivery], until: Timestamp) -> Vec<Settlement> {
    let marks = Marks {
        told: true,
        ..Marks::default()
    };
    let fate = Fate::Delay(Delay {
        until: Some(until),
        marks,
    });
    let tags = deliveries.iter().map(|delivery| delivery.tag);
    tags.map(|tag| Settlement { tag, fate }).collect()
}

fn acks(deliveries: &[Delivery]) -> Vec<Settlement> {
    let fate = Fate::Ack;
    let tags = deliveries.iter().map(|delivery| delivery.tag);
    tags.map(|tag| Settlement { tag, fate }).collect()
}

/// SQL after which what is in the delay store comes.
pub(crate) const ALL_ARE_DUE: &str = "UPDATE celeriac_delayed SET due = 0";

/// Rows of messages that wait and that do not, of leases, and of the delay store.
fn rows(database: &dyn Database) -> [String; 4] {
    [
        "kombu_message WHERE visible",
        "kombu_message WHERE NOT visible",
        "celeriac_lease",
        "celeriac_delayed",
    ]
    .map(|table| database.execute(&format!("SELECT count(*) FROM {table}")))
}

async fn what_is_cut_short_leaves_one_message(database: &dyn Database) {
    let broker = database.broker();
    let mut session = consumer(&broker).await;
    session.publish("q", &message(1)).await.unwrap();
    let taken = session.exchange(&[], want(1)).await.unwrap();
    let later = delay(&taken, Timestamp::UNIX_EPOCH);

    database.execute(&database.cut("INSERT", "celeriac_delayed"));
    session.exchange(&later, Want::NONE).await.unwrap_err();
    database.execute(&database.mend("celeriac_delayed"));
    assert_eq!(rows(database), ["0", "1", "1", "0"], "it is still taken");
    session = consumer(&broker).await;
    let soonest = Timestamp::now() + SignedDuration::from_secs(1);
    session.exchange(&later, Want::NONE).await.unwrap();
    assert_eq!(rows(database), ["0", "1", "0", "1"], "it is delayed");
    // A worker whose clock is behind would have it back at once, and delay it again.
    let later = format!(
        "SELECT count(*) FROM celeriac_delayed WHERE due >= {}",
        soonest.as_microsecond()
    );
    assert_eq!(database.execute(&later), "1", "for a second at least");
    database.execute(ALL_ARE_DUE);

    database.execute(&database.cut("UPDATE", "kombu_message"));
    session.maintain().await.unwrap_err();
    database.execute(&database.mend("kombu_message"));
    assert_eq!(rows(database), ["0", "1", "0", "1"], "it is still delayed");
    session = consumer(&broker).await;
    assert_eq!(session.maintain().await.unwrap().restored, 1);
    assert_eq!(rows(database), ["1", "0", "0", "0"], "it waits");

    let came = session.exchange(&[], want(9)).await.unwrap();
    assert_eq!(came.len(), 1);
    session.exchange(&acks(&came), Want::NONE).await.unwrap();
    session.close().await.unwrap();
}

async fn messages_are_moved_once_whoever_moves_them(database: &dyn Database) {
    const MESSAGES: usize = 120;
    let broker = database.broker();
    let mut session = consumer(&broker).await;
    for id in 0..MESSAGES {
        session.publish("q", &message(id as u32)).await.unwrap();
    }
    let taken = session.exchange(&[], want(MESSAGES)).await.unwrap();
    let soon = Timestamp::now() + SignedDuration::from_millis(1500);
    let later = delay(&taken, soon);
    session.exchange(&later, Want::NONE).await.unwrap();
    let mut movers = Vec::new();
    for _ in 0..4 {
        let broker = database.broker();
        movers.push(tokio::spawn(async move {
            let mut session = consumer(&broker).await;
            let deadline = Instant::now() + PATIENCE;
            let (mut moved, mut seen) = (0, Vec::new());
            loop {
                assert!(Instant::now() < deadline, "all come");
                moved += session.maintain().await.unwrap().restored;
                let came = session.exchange(&[], want(3)).await.unwrap();
                seen.extend(came.iter().map(|delivery| delivery.tag.0));
                session.exchange(&acks(&came), Want::NONE).await.unwrap();
                if came.is_empty() && Timestamp::now() > soon {
                    // Nothing is left, not even with the others.
                    if session.return_delayed().await.unwrap() == 0 {
                        session.close().await.unwrap();
                        return (moved, seen);
                    }
                }
            }
        }));
    }
    let (mut moved, mut seen) = (0, Vec::new());
    for mover in movers {
        let (count, tags) = timeout(PATIENCE, mover).await.unwrap().unwrap();
        moved += count;
        seen.extend(tags);
    }
    let last = session.exchange(&[], want(MESSAGES)).await.unwrap();
    seen.extend(last.iter().map(|delivery| delivery.tag.0));
    session.exchange(&acks(&last), Want::NONE).await.unwrap();
    assert!(moved <= MESSAGES as u64, "{moved}");
    assert_eq!(seen.len(), MESSAGES);
    assert_eq!(BTreeSet::from_iter(seen).len(), MESSAGES);
    assert_eq!(rows(database), ["0", "0", "0", "0"]);
    session.close().await.unwrap();
}

async fn so_many_come_at_once(database: &dyn Database) {
    let mut session = consumer(&database.broker()).await;
    let numbers = format!(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i <= {AT_ONCE})"
    );
    database.execute(&format!(
        "INSERT INTO kombu_message (id, visible, payload, version, queue_id)
         {numbers}
         SELECT 100000 + i, false, 'x', 1, (SELECT id FROM kombu_queue WHERE name = 'q') FROM n"
    ));
    database.execute(&format!(
        "INSERT INTO celeriac_delayed (message_id, queue_id, due)
         {numbers} SELECT 100000 + i, 0, i FROM n"
    ));
    for (restored, next) in [(AT_ONCE, 0), (1, 1), (0, 1)] {
        let maintained = session.maintain().await.unwrap();
        let next = Duration::from_secs(next);
        assert_eq!((maintained.restored, maintained.next), (restored, next));
    }
    assert_eq!(session.purge("q").await.unwrap(), AT_ONCE + 1);
    session.close().await.unwrap();
}

async fn what_was_purged_is_forgotten(database: &dyn Database) {
    let mut session = consumer(&database.broker()).await;
    for id in 0..2 {
        session.publish("q", &message(id)).await.unwrap();
    }
    let taken = session.exchange(&[], want(2)).await.unwrap();
    let now = Timestamp::now();
    let hour = SignedDuration::from_hours(1);
    for (delivery, until) in taken.iter().zip([now - hour, now + hour]) {
        let later = delay(std::slice::from_ref(delivery), until);
        session.exchange(&later, Want::NONE).await.unwrap();
    }
    // Ours purges what waits alone, as on other brokers; kombu's purges all.
    assert_eq!(session.purge("q").await.unwrap(), 0);
    database.execute("DELETE FROM kombu_message");
    let soon = (now + SignedDuration::from_mins(30)).as_microsecond();
    database.execute(&format!("{ALL_ARE_DUE} WHERE due < {soon}"));
    assert_eq!(session.delayed(9).await.unwrap(), []);
    assert_eq!(session.maintain().await.unwrap().restored, 0);
    assert_eq!(rows(database), ["0", "0", "0", "1"]);
    assert_eq!(session.return_delayed().await.unwrap(), 0);
    assert_eq!(rows(database), ["0", "0", "0", "0"]);
    session.close().await.unwrap();
}

async fn another_message_with_its_id_is_let_alone(database: &dyn Database) {
    let mut session = consumer(&database.broker()).await;
    session.publish("q", &message(1)).await.unwrap();
    let taken = session.exchange(&[], want(1)).await.unwrap();
    let id = taken[0].tag.0;
    database.execute(&format!(
        "INSERT INTO celeriac_delayed (message_id, queue_id, due) VALUES ({id}, 0, 0)"
    ));
    let maintained = session.maintain().await.unwrap();
    assert_eq!((maintained.restored, maintained.lost), (0, vec![]));
    assert_eq!(rows(database), ["0", "1", "1", "0"], "it is still taken");
    session.exchange(&acks(&taken), Want::NONE).await.unwrap();
    session.close().await.unwrap();
}

async fn any_id_can_be_buried(database: &dyn Database) {
    let mut session = consumer(&database.broker()).await;
    let ids = ["\0 ünïcode \u{1f600}", &"x".repeat(10_000), ""].map(str::to_owned);
    for id in &ids {
        let letter = DeadLetter {
            id: id.clone(),
            queue: "q".to_owned(),
            task: Some("\0".to_owned()),
            cause: Cause::Invalid,
            reason: "\0 \u{1f600}".to_owned(),
            remains: Remains::default(),
            attempts: 1,
            hostname: "w@h".to_owned(),
            died_at: Timestamp::now(),
            message: Content::message(&message(1)),
        };
        session.bury(&letter, Bounds::default()).await.unwrap();
        let letters = session.dead_letters().await.unwrap();
        assert_eq!(letters[0], letter);
    }
    assert_eq!(session.replay(&ids[..2]).await.unwrap(), 2);
    assert_eq!(session.forget(&ids).await.unwrap(), 1);
    assert_eq!(session.dead_letters().await.unwrap(), []);
    assert_eq!(session.purge("q").await.unwrap(), 2);
    session.close().await.unwrap();
}
