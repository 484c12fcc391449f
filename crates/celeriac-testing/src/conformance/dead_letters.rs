//! How every broker keeps dead letters.

use std::time::Duration;

use celeriac_core::broker::{Fate, Session, Want};
use celeriac_core::dead_letter::{Bounds, Cause, Content, DeadLetter, Remains};
use celeriac_protocol::Marks;
use jiff::{SignedDuration, Timestamp};

use super::broker::{Fixture, fetch, message, numbers, settle, subscribe};

/// Runs the whole suite. What others have buried is left alone.
pub async fn run(fixture: &dyn Fixture) {
    let mut session = fixture.broker().connect().await.unwrap();
    what_is_buried_is_found_by_others(fixture, &mut *session).await;
    one_that_is_buried_again_is_replaced(&mut *session).await;
    what_is_replayed_is_as_it_first_was(fixture, &mut *session).await;
    bytes_of_any_kind_go_back_as_they_came(fixture, &mut *session).await;
    what_is_beyond_the_bounds_goes(&mut *session).await;
    session.close().await.unwrap();
}

fn letter(queue: &str, content: Content) -> DeadLetter {
    DeadLetter {
        id: uuid::Uuid::new_v4().to_string(),
        queue: queue.to_owned(),
        task: Some("proj.\"tâche\"".to_owned()),
        cause: Cause::Killed,
        reason: "Worker exited prematurely: signal 11 (SIGSEGV) Job: 1.".to_owned(),
        remains: Remains {
            signal: Some(11),
            peak_memory: Some(123_456),
            run_time: Some(0.25),
            log: vec!["one".to_owned(), "two 'quoted' \\ \u{1f600}".to_owned()],
            ..Remains::default()
        },
        attempts: 3,
        hostname: "w@h".to_owned(),
        died_at: Timestamp::now(),
        message: content,
    }
}

async fn find(session: &mut dyn Session, letter: &DeadLetter) -> Option<DeadLetter> {
    let mut letters = session.dead_letters().await.unwrap();
    letters.retain(|other| other.id == letter.id);
    assert!(letters.len() < 2, "an id is there once");
    letters.pop()
}

async fn bury(session: &mut dyn Session, letter: &DeadLetter) {
    session.bury(letter, Bounds::default()).await.unwrap();
}

async fn what_is_buried_is_found_by_others(fixture: &dyn Fixture, session: &mut dyn Session) {
    let dead = letter("q", Content::message(&message(1)));
    bury(session, &dead).await;
    let mut other = fixture.broker().connect().await.unwrap();
    assert_eq!(find(&mut *other, &dead).await, Some(dead.clone()));
    assert_eq!(find(session, &dead).await, Some(dead.clone()));
    let ids = [dead.id.clone(), "unknown".to_owned()];
    assert_eq!(other.forget(&ids).await.unwrap(), 1);
    assert_eq!(find(session, &dead).await, None);
    other.close().await.unwrap();
}

async fn one_that_is_buried_again_is_replaced(session: &mut dyn Session) {
    let mut dead = letter("q", Content::message(&message(1)));
    bury(session, &dead).await;
    dead.attempts = 4;
    bury(session, &dead).await;
    assert_eq!(find(session, &dead).await, Some(dead.clone()));
    assert_eq!(
        session
            .forget(std::slice::from_ref(&dead.id))
            .await
            .unwrap(),
        1
    );
}

async fn what_is_replayed_is_as_it_first_was(fixture: &dyn Fixture, session: &mut dyn Session) {
    let queue = format!("q-{}", uuid::Uuid::new_v4().simple());
    let mut consumer = fixture.broker().connect().await.unwrap();
    subscribe(&mut *consumer, &fixture.queue(&queue)).await;
    let sent = message(5);
    let mut marked = sent.clone();
    let marks = Marks {
        deaths: 3,
        ..Marks::default()
    };
    marked.headers = marks.write(&marked.headers).into_owned().into();
    let dead = letter(&queue, Content::message(&marked));
    bury(session, &dead).await;
    let ids = [dead.id.clone()];
    assert_eq!(session.replay(&ids).await.unwrap(), 1);
    assert_eq!(session.replay(&ids).await.unwrap(), 0);
    assert_eq!(find(session, &dead).await, None);
    let deliveries = fetch(&mut *consumer, 1).await;
    assert_eq!(numbers(&deliveries), [5]);
    let back = deliveries[0].message.as_ref().unwrap();
    assert_eq!(back.body, sent.body);
    // But for a mark that it was replayed, which no task sees, and none of those that it had.
    assert_eq!(Marks::of(back).deaths, 0);
    assert_eq!(Marks::default().write(&back.headers), &*sent.headers);
    assert_eq!(back.content_type, sent.content_type);
    assert!(!back.delivery_info.redelivered);
    consumer
        .exchange(&settle(&deliveries, Fate::Ack), Want::NONE)
        .await
        .unwrap();
    consumer.close().await.unwrap();
}

async fn bytes_of_any_kind_go_back_as_they_came(fixture: &dyn Fixture, session: &mut dyn Session) {
    let queue = format!("q-{}", uuid::Uuid::new_v4().simple());
    let mut consumer = fixture.broker().connect().await.unwrap();
    subscribe(&mut *consumer, &fixture.queue(&queue)).await;
    if fixture
        .publish_rubbish(&queue, b"no message")
        .await
        .is_none()
    {
        return;
    }
    let deliveries = fetch(&mut *consumer, 1).await;
    let unreadable = deliveries[0].message.as_ref().unwrap_err();
    let dead = letter(&queue, Content::raw(&unreadable.raw));
    bury(session, &dead).await;
    consumer
        .exchange(&settle(&deliveries, Fate::Ack), Want::NONE)
        .await
        .unwrap();
    assert_eq!(
        session
            .replay(std::slice::from_ref(&dead.id))
            .await
            .unwrap(),
        1
    );
    let deliveries = fetch(&mut *consumer, 1).await;
    let again = deliveries[0].message.as_ref().unwrap_err();
    assert_eq!(&again.raw[..], b"no message");
    consumer
        .exchange(&settle(&deliveries, Fate::Ack), Want::NONE)
        .await
        .unwrap();
    consumer.close().await.unwrap();
}

async fn what_is_beyond_the_bounds_goes(session: &mut dyn Session) {
    let all: Vec<String> = session
        .dead_letters()
        .await
        .unwrap()
        .into_iter()
        .map(|it| it.id)
        .collect();
    session.forget(&all).await.unwrap();
    let bounds = Bounds {
        number: 3,
        age: Duration::from_hours(1),
    };
    let mut ids = Vec::new();
    for hours_ago in [2, 0, 0, 0, 0] {
        let mut dead = letter("q", Content::message(&message(1)));
        dead.died_at -= SignedDuration::from_hours(hours_ago);
        session.bury(&dead, bounds).await.unwrap();
        ids.push(dead.id);
    }
    let kept = session.dead_letters().await.unwrap();
    let kept: Vec<String> = kept.into_iter().map(|it| it.id).collect();
    ids.reverse();
    assert_eq!(kept, ids[..3], "the latest, the last first");
    session.forget(&kept).await.unwrap();
}
