//! How every result backend keeps results.

use std::sync::Arc;
use std::time::Duration;

use celeriac_core::Backend;
use celeriac_core::backend::{ChordPart, Chords, Claimed, Meta, Stored};
use celeriac_protocol::Exception;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A backend that is put to the test.
pub trait Fixture: Send + Sync {
    /// Another connection to the same store.
    fn open(&self) -> Arc<dyn Backend>;

    /// Whether a document keeps the group and the task that it belongs to.
    fn keeps_relations(&self) -> bool {
        true
    }

    /// Whether a moment keeps its fraction of a second.
    fn keeps_microseconds(&self) -> bool {
        true
    }

    /// Whether a result may be longer than 64 KiB.
    fn keeps_long_results(&self) -> bool {
        true
    }

    /// How many results are many: more than go into one command, where the server is a real one.
    fn many(&self) -> usize {
        1234
    }

    /// Whether `result_extended` is on and its members are kept.
    fn keeps_extended(&self) -> bool {
        true
    }
}

/// Runs the whole suite.
pub async fn run(fixture: &dyn Fixture) {
    the_url_is_shown(fixture);
    what_is_stored_is_found(fixture).await;
    any_value_comes_back(fixture).await;
    many_are_stored_in_one_go(fixture).await;
    states_follow_each_other(fixture).await;
    a_success_stays(fixture).await;
    one_of_two_at_once_wins(fixture).await;
    failures_carry_exceptions(fixture).await;
    relations_are_kept(fixture).await;
    what_is_forgotten_is_gone(fixture).await;
    who_waits_is_told(fixture).await;
    many_wait_at_once(fixture).await;
    who_waits_sees_progress(fixture).await;
    a_wait_may_be_given_up(fixture).await;
    groups_are_kept(fixture).await;
    if fixture.open().chords() == Chords::Counted {
        chords(fixture).await;
    }
    fixture.open().cleanup().await.unwrap();
}

/// An id that nobody has used.
pub fn id(kind: &str) -> String {
    format!("{kind}-{}", uuid::Uuid::new_v4())
}

/// A state of a task, as it is after a run.
pub fn meta(id: &str, status: &str, result: Value) -> Meta {
    Meta {
        task_id: id.to_owned(),
        status: status.to_owned(),
        result,
        // MariaDB's dates have no fractions.
        date_done: celeriac_core::backend::is_ready(status)
            .then(|| "2026-11-22T01:26:37Z".parse().unwrap()),
        ..Meta::default()
    }
}

/// That it is stored.
pub fn stored(meta: &Meta) -> Stored {
    Stored {
        meta: meta.clone(),
        reply_to: None,
        correlation_id: None,
        expires: None,
    }
}

async fn store(backend: &dyn Backend, meta: &Meta) {
    within(backend.store(&[stored(meta)])).await.unwrap();
}

async fn find(backend: &dyn Backend, id: &str) -> Option<Meta> {
    within(backend.get(&[id.to_owned()]))
        .await
        .unwrap()
        .pop()
        .unwrap()
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it takes too long")
}

fn the_url_is_shown(fixture: &dyn Fixture) {
    let backend = fixture.open();
    let shown = backend.display_url();
    assert!(shown.contains("://"), "{shown}");
    assert!(!format!("{backend:?}{shown}").contains("secret"), "{shown}");
}

async fn what_is_stored_is_found(fixture: &dyn Fixture) {
    let (one, two) = (fixture.open(), fixture.open());
    let id = id("found");
    assert_eq!(find(&*one, &id).await, None);
    let meta = meta(&id, "SUCCESS", json!({"a": [1, 2.5, null, true, "ü😀"]}));
    store(&*one, &meta).await;
    assert_eq!(find(&*two, &id).await, Some(meta.clone()));
    let ids = ["missing".to_owned(), id.clone(), id];
    let found = within(two.get(&ids)).await.unwrap();
    assert_eq!(found, [None, Some(meta.clone()), Some(meta)]);
    assert_eq!(within(two.get(&[])).await.unwrap(), []);
    within(two.store(&[])).await.unwrap();
}

async fn any_value_comes_back(fixture: &dyn Fixture) {
    let backend = fixture.open();
    let length = if fixture.keeps_long_results() {
        2000
    } else {
        500
    };
    for value in [
        json!(null),
        json!(0),
        json!(-1.5),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(""),
        json!("\0\n\"\\/'%?:$1 Größe 😀"),
        json!([]),
        json!({}),
        json!({"__type__": "datetime", "__value__": "2026-11-22T00:00:00"}),
        json!({"exc_type": "no exception"}),
        json!(vec![json!({"k": "v".repeat(50)}); length]),
    ] {
        let meta = meta(&id("value"), "SUCCESS", value);
        store(&*backend, &meta).await;
        assert_eq!(find(&*backend, &meta.task_id).await, Some(meta));
    }
}

async fn many_are_stored_in_one_go(fixture: &dyn Fixture) {
    let backend = fixture.open();
    let metas: Vec<Meta> = (0..fixture.many())
        .map(|number| meta(&id("many"), "SUCCESS", json!(number)))
        .collect();
    let all: Vec<Stored> = metas.iter().map(stored).collect();
    within(backend.store(&all)).await.unwrap();
    let ids: Vec<String> = metas.iter().map(|meta| meta.task_id.clone()).collect();
    let found = within(backend.get(&ids)).await.unwrap();
    assert_eq!(found, metas.into_iter().map(Some).collect::<Vec<_>>());
    within(backend.forget(&ids)).await.unwrap();
    let found = within(backend.get(&ids)).await.unwrap();
    assert!(found.iter().all(Option::is_none));
}

async fn states_follow_each_other(fixture: &dyn Fixture) {
    let backend = fixture.open();
    let id = id("states");
    let started = json!({"pid": 1, "hostname": "w@h"});
    for meta in [
        meta(&id, "STARTED", started),
        meta(&id, "PROGRESS", json!({"done": 1, "total": 3})),
        meta(&id, "RETRY", exception("again")),
        meta(&id, "FAILURE", exception("boom")),
        meta(&id, "SUCCESS", json!(1)),
    ] {
        store(&*backend, &meta).await;
        assert_eq!(find(&*backend, &id).await, Some(meta));
    }
    // All in one go: the last but what comes after a success.
    let id = self::id("states");
    let all =
        ["STARTED", "SUCCESS", "FAILURE"].map(|status| stored(&meta(&id, status, json!(status))));
    within(backend.store(&all)).await.unwrap();
    assert_eq!(find(&*backend, &id).await.unwrap().status, "SUCCESS");
}

fn exception(message: &str) -> Value {
    serde_json::to_value(Exception::builtin("ValueError", message)).unwrap()
}

async fn a_success_stays(fixture: &dyn Fixture) {
    let (one, two) = (fixture.open(), fixture.open());
    let first = meta(&id("success"), "SUCCESS", json!("first"));
    store(&*one, &first).await;
    for status in ["SUCCESS", "FAILURE", "REVOKED", "STARTED"] {
        let late = meta(&first.task_id, status, json!("late"));
        store(&*two, &late).await;
        assert_eq!(find(&*one, &first.task_id).await, Some(first.clone()));
    }
    // Others in the same go are stored all the same.
    let other = meta(&id("success"), "SUCCESS", json!("other"));
    let late = meta(&first.task_id, "FAILURE", exception("late"));
    within(one.store(&[stored(&late), stored(&other)]))
        .await
        .unwrap();
    assert_eq!(find(&*one, &first.task_id).await, Some(first));
    assert_eq!(find(&*one, &other.task_id).await, Some(other));
}

async fn one_of_two_at_once_wins(fixture: &dyn Fixture) {
    let backends = [fixture.open(), fixture.open()];
    for _ in 0..20 {
        let id = id("race");
        let results = ["a", "b"].map(|name| [stored(&meta(&id, "SUCCESS", json!(name)))]);
        let [one, two] = &backends;
        let both = async { tokio::join!(one.store(&results[0]), two.store(&results[1])) };
        let (one_stored, two_stored) = within(both).await;
        one_stored.unwrap();
        two_stored.unwrap();
        let won = find(&**one, &id).await.unwrap();
        store(&**two, &meta(&id, "SUCCESS", json!("late"))).await;
        assert_eq!(find(&**two, &id).await, Some(won));
    }
}

async fn failures_carry_exceptions(fixture: &dyn Fixture) {
    let backend = fixture.open();
    let failed = Meta {
        traceback: Some("Traceback (most recent call last):\n  …\nValueError: böse\n".to_owned()),
        ..meta(&id("failure"), "FAILURE", exception("böse"))
    };
    store(&*backend, &failed).await;
    let found = find(&*backend, &failed.task_id).await.unwrap();
    assert_eq!(found, failed);
    assert_eq!(
        found.exception(),
        Some(Exception::builtin("ValueError", "böse"))
    );
}

async fn relations_are_kept(fixture: &dyn Fixture) {
    let backend = fixture.open();
    let mut related = meta(&id("related"), "SUCCESS", json!(1));
    if fixture.keeps_microseconds() {
        related.date_done = Some("2026-11-22T01:26:37.994086Z".parse().unwrap());
    }
    related.children = json!([
        [["child", null], null],
        [["g", null], [[["m", null], null]]]
    ]);
    if fixture.keeps_relations() {
        related.group_id = Some("group".to_owned());
        related.parent_id = Some("parent".to_owned());
    }
    if fixture.keeps_extended() {
        let Value::Object(extended) = json!({
            "name": "tasks.add", "args": [1, "ü"], "kwargs": {"x": [2]}, "worker": "w@h",
            "retries": 2, "queue": "celery",
        }) else {
            unreachable!()
        };
        related.extended = extended;
    }
    store(&*backend, &related).await;
    let found = find(&*backend, &related.task_id).await.unwrap();
    assert_eq!(
        Meta {
            extended: Map::new(),
            ..found.clone()
        },
        Meta {
            extended: Map::new(),
            ..related.clone()
        }
    );
    for (name, value) in &related.extended {
        assert_eq!(found.extended.get(name), Some(value), "{name}");
    }
}

async fn what_is_forgotten_is_gone(fixture: &dyn Fixture) {
    let backend = fixture.open();
    let [kept, gone] = [0, 1].map(|number| meta(&id("forgotten"), "SUCCESS", json!(number)));
    within(backend.store(&[stored(&kept), stored(&gone)]))
        .await
        .unwrap();
    let ids = [gone.task_id.clone(), "missing".to_owned()];
    within(backend.forget(&ids)).await.unwrap();
    assert_eq!(find(&*backend, &gone.task_id).await, None);
    assert_eq!(find(&*backend, &kept.task_id).await, Some(kept));
    // Afterwards it is a task like any other.
    let again = meta(&gone.task_id, "FAILURE", exception("again"));
    store(&*backend, &again).await;
    assert_eq!(find(&*backend, &gone.task_id).await, Some(again));
}

async fn who_waits_is_told(fixture: &dyn Fixture) {
    let (waits, stores) = (fixture.open(), fixture.open());
    // What is there already.
    let early = meta(&id("early"), "SUCCESS", json!(1));
    store(&*stores, &early).await;
    let told = within(waits.changed(&early.task_id, None)).await.unwrap();
    assert_eq!(told, early);
    // What comes later, after something that is known.
    let id = id("told");
    let started = meta(&id, "STARTED", json!({}));
    store(&*stores, &started).await;
    let ended = meta(&id, "SUCCESS", json!(2));
    let wait = waits.changed(&id, Some(&started));
    let later = async {
        // Until the other waits, or not: both must do.
        tokio::task::yield_now().await;
        store(&*stores, &ended).await;
    };
    let (told, ()) = within(async { tokio::join!(wait, later) }).await;
    assert_eq!(told.unwrap(), ended);
}

async fn many_wait_at_once(fixture: &dyn Fixture) {
    let (waits, stores) = (fixture.open(), fixture.open());
    let metas: Vec<Meta> = (0..100)
        .map(|number| meta(&id("waits"), "SUCCESS", json!(number)))
        .collect();
    let mut waiting = tokio::task::JoinSet::new();
    for meta in &metas {
        // Twice the same, which is told to both.
        for _ in 0..2 {
            let (waits, meta) = (Arc::clone(&waits), meta.clone());
            waiting.spawn(async move {
                let told = waits.changed(&meta.task_id, None).await.unwrap();
                assert_eq!(told, meta);
            });
        }
    }
    for metas in metas.chunks(7) {
        let some: Vec<Stored> = metas.iter().map(stored).collect();
        within(stores.store(&some)).await.unwrap();
    }
    while let Some(done) = within(waiting.join_next()).await {
        done.unwrap();
    }
}

async fn who_waits_sees_progress(fixture: &dyn Fixture) {
    let (waits, stores) = (fixture.open(), fixture.open());
    let id = id("progress");
    let mut known = None;
    for step in 0..5 {
        let progress = meta(&id, "PROGRESS", json!({ "done": step }));
        store(&*stores, &progress).await;
        let told = within(waits.changed(&id, known.as_ref())).await.unwrap();
        assert_eq!(told, progress);
        known = Some(told);
    }
}

async fn a_wait_may_be_given_up(fixture: &dyn Fixture) {
    let (waits, stores) = (fixture.open(), fixture.open());
    let ended = meta(&id("given up"), "SUCCESS", json!(1));
    for _ in 0..3 {
        let wait = waits.changed(&ended.task_id, None);
        assert!(timeout(Duration::from_millis(10), wait).await.is_err());
    }
    let wait = waits.changed(&ended.task_id, None);
    let (told, ()) = within(async { tokio::join!(wait, store(&*stores, &ended)) }).await;
    assert_eq!(told.unwrap(), ended);
}

async fn groups_are_kept(fixture: &dyn Fixture) {
    let (one, two) = (fixture.open(), fixture.open());
    let id = id("group");
    assert_eq!(within(one.group(&id)).await.unwrap(), None);
    let members = json!([[id, null], [[["a", null], null], [["b", null], null]]]);
    within(one.save_group(&id, &members)).await.unwrap();
    assert_eq!(within(two.group(&id)).await.unwrap(), Some(members));
    within(two.forget_group(&id)).await.unwrap();
    assert_eq!(within(one.group(&id)).await.unwrap(), None);
    within(two.forget_group(&id)).await.unwrap();
}

async fn chords(fixture: &dyn Fixture) {
    the_last_part_claims_the_chord(fixture).await;
    a_part_counts_once(fixture).await;
    parts_may_come_before_the_size(fixture).await;
    a_chord_may_grow(fixture).await;
    a_failed_part_fails_the_chord(fixture).await;
    groups_in_a_header_keep_their_structure(fixture).await;
    one_of_many_sends_the_body(fixture).await;
}

fn part(group: &str, index: u64, status: &str, result: Value) -> ChordPart {
    ChordPart {
        group_id: group.to_owned(),
        task_id: format!("{group}-{index}"),
        group_index: Some(index),
        status: status.to_owned(),
        result,
    }
}

async fn count(backend: &dyn Backend, part: &ChordPart) -> Option<Claimed> {
    within(backend.chord_part(part)).await.unwrap()
}

async fn the_last_part_claims_the_chord(fixture: &dyn Fixture) {
    let (one, two) = (fixture.open(), fixture.open());
    let group = id("chord");
    within(one.open_chord(&group, 12)).await.unwrap();
    // In any order: they come back in that of the header.
    for index in (1..12).rev() {
        let part = part(&group, index, "SUCCESS", json!(index));
        assert_eq!(count(&*two, &part).await, None);
    }
    let last = part(&group, 0, "SUCCESS", json!(0));
    let claim = count(&*one, &last).await.unwrap();
    let expected: Vec<Value> = (0..12).map(Value::from).collect();
    assert_eq!(claim.results, Ok(expected));
    // Nobody else, neither before the body is sent nor after it.
    assert_eq!(count(&*two, &last).await, None);
    within(one.close_chord(&group, &claim)).await.unwrap();
    assert_eq!(count(&*two, &last).await, None);
}

async fn a_part_counts_once(fixture: &dyn Fixture) {
    let backend = fixture.open();
    let group = id("chord");
    within(backend.open_chord(&group, 2)).await.unwrap();
    for result in [1, 2] {
        let part = part(&group, 0, "SUCCESS", json!(result));
        assert_eq!(count(&*backend, &part).await, None);
    }
    let last = part(&group, 1, "SUCCESS", json!(3));
    let claim = count(&*backend, &last).await.unwrap();
    assert_eq!(claim.results, Ok(vec![json!(1), json!(3)]));
}

async fn parts_may_come_before_the_size(fixture: &dyn Fixture) {
    let backend = fixture.open();
    let group = id("chord");
    let first = part(&group, 0, "SUCCESS", json!(1));
    assert_eq!(count(&*backend, &first).await, None);
    within(backend.open_chord(&group, 2)).await.unwrap();
    let last = part(&group, 1, "SUCCESS", json!(2));
    let claim = count(&*backend, &last).await.unwrap();
    assert_eq!(claim.results, Ok(vec![json!(1), json!(2)]));
}

async fn a_chord_may_grow(fixture: &dyn Fixture) {
    let backend = fixture.open();
    let group = id("chord");
    within(backend.open_chord(&group, 1)).await.unwrap();
    within(backend.extend_chord(&group, 1)).await.unwrap();
    let added = ChordPart {
        group_index: None,
        ..part(&group, 1, "SUCCESS", json!("added"))
    };
    assert_eq!(count(&*backend, &added).await, None);
    let first = part(&group, 0, "SUCCESS", json!("first"));
    let claim = count(&*backend, &first).await.unwrap();
    // What has no place comes last.
    assert_eq!(claim.results, Ok(vec![json!("first"), json!("added")]));
}

async fn a_failed_part_fails_the_chord(fixture: &dyn Fixture) {
    let backend = fixture.open();
    let group = id("chord");
    within(backend.open_chord(&group, 3)).await.unwrap();
    for (index, status) in [(2, "REVOKED"), (0, "SUCCESS")] {
        let part = part(&group, index, status, exception("late"));
        assert_eq!(count(&*backend, &part).await, None);
    }
    let failed = part(&group, 1, "FAILURE", exception("boom"));
    let claim = count(&*backend, &failed).await.unwrap();
    let error = claim.results.clone().unwrap_err();
    assert_eq!(error.exc_type, "ChordError");
    assert_eq!(
        error.message(),
        format!("Dependency {group}-1 raised ValueError('boom')")
    );
    within(backend.close_chord(&group, &claim)).await.unwrap();
    assert_eq!(count(&*backend, &failed).await, None);
}

async fn groups_in_a_header_keep_their_structure(fixture: &dyn Fixture) {
    let backend = fixture.open();
    let group = id("chord");
    let member = |index: u64| json!([[format!("{group}-{index}"), null], null]);
    let inner = json!([[id("inner"), null], [member(1), member(2)]]);
    let tuple = json!([[group, null], [member(0), inner]]);
    within(backend.save_group(&group, &tuple)).await.unwrap();
    within(backend.open_chord(&group, 3)).await.unwrap();
    let mut claim = None;
    for index in 0..3 {
        let part = part(&group, index, "SUCCESS", json!(index));
        store(&*backend, &meta(&part.task_id, "SUCCESS", json!(index))).await;
        claim = count(&*backend, &part).await;
    }
    assert_eq!(claim.unwrap().results, Ok(vec![json!(0), json!([1, 2])]));
}

async fn one_of_many_sends_the_body(fixture: &dyn Fixture) {
    let backends: Vec<_> = (0..4).map(|_| fixture.open()).collect();
    let group = id("chord");
    within(backends[0].open_chord(&group, 40)).await.unwrap();
    let mut counting = tokio::task::JoinSet::new();
    for index in 0..40 {
        // Each from two workers, as after a redelivery.
        for turn in [0, 2] {
            let backend = Arc::clone(&backends[index as usize % 2 + turn]);
            let part = part(&group, index, "SUCCESS", json!(index));
            counting.spawn(async move { backend.chord_part(&part).await.unwrap() });
        }
    }
    let claims: Vec<Claimed> = within(counting.join_all())
        .await
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(claims.len(), 1);
}
