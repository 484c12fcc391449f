//! Requests under limits that all workers keep together.

use std::sync::Arc;
use std::time::Duration;

use celeriac_config::TaskOptions;
use celeriac_core::broker::{Delay, Fate};
use celeriac_core::limit::{Answer, Holding};
use celeriac_core::pool::{Failure, Outcome};
use celeriac_protocol::Marks;
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::scene::{START, Scene, message, options};
use crate::core::{Options, StoreOptions};
use crate::hooks::HookCall;
use crate::limit::config;
use crate::shutdown::Signal;

const STORE: StoreOptions = StoreOptions {
    max_deaths: None,
    unknown_grace: Duration::from_mins(1),
};

pub(super) fn under(limits: &Value, unique: &Value, task: TaskOptions) -> Options {
    let (limits, warnings) = config::parse(limits, unique, &["t"].into_iter()).unwrap();
    assert!(warnings.is_empty());
    Options {
        limits: Arc::new(limits),
        store: Some(STORE),
        ..options([("t", task)])
    }
}

fn limited() -> Options {
    let limits = json!({
        "t": {"rate": "20/s", "concurrency": 10, "key": "kwargs.user"},
        "queue:celery": {"concurrency": 100},
    });
    under(&limits, &Value::Null, TaskOptions::default())
}

fn unique(how: &Value) -> Options {
    under(&Value::Null, &json!({"t": how}), TaskOptions::default())
}

fn success() -> Outcome {
    Outcome::Success {
        runtime: None,
        result: String::new(),
    }
}

fn claim(holding: &Holding) -> (&str, Duration) {
    let claim = holding.claim.as_ref().expect("a claim");
    (&claim.owner, claim.lasts)
}

#[expect(clippy::unnecessary_wraps, reason = "as the store tells it")]
fn denied(milliseconds: u64, turn: Option<i64>) -> Option<Answer> {
    Some(Answer::Denied {
        wait: Duration::from_millis(milliseconds),
        turn,
    })
}

#[test]
fn a_request_begins_when_it_is_granted_and_gives_its_slots_back() {
    let mut scene = Scene::new(limited(), 1);
    scene.deliver(1, json!({}));
    assert_eq!((scene.jobs.len(), scene.asked.len()), (0, 1));
    // It counts as one that runs: nothing is fetched in its place.
    assert!(scene.core.want(0, scene.free).is_none());
    let names: Vec<String> = scene.asked[0]
        .1
        .permits
        .iter()
        .map(|it| it.name.clone())
        .collect();
    assert!(
        names[0].starts_with("task:t:") && names[1] == "queue:celery",
        "{names:?}"
    );
    scene.answer_limits(Some(Answer::Granted));
    let key = scene.begin();
    scene.pass(Duration::from_secs(3));
    assert!(scene.given_back.is_empty());
    scene.finish(key, success());
    let (of, holding, held) = scene.given_back.remove(0);
    assert_eq!(
        (of, holding.slots, held),
        (key, names, Duration::from_secs(3))
    );
}

#[test]
fn limits_count_by_arguments() {
    let mut scene = Scene::new(limited(), 3);
    for (tag, user) in [(1, "a"), (2, "b"), (3, "a")] {
        let headers = format!(r#"{{"task": "t", "id": "{tag}"}}"#);
        let body = format!(r#"[[], {{"user": "{user}"}}, {{}}]"#);
        scene.deliver_message(tag, message(&headers, &body));
    }
    let name = |at: usize| scene.asked[at].1.permits[0].name.clone();
    assert_eq!(name(0), name(2));
    assert_ne!(name(0), name(1));
}

#[test]
fn who_waits_for_long_goes_to_the_delay_store_with_its_turn() {
    let mut scene = Scene::new(limited(), 1);
    scene.deliver(1, json!({}));
    scene.answer_limits(denied(60_000, Some(77)));
    let start: jiff::Timestamp = START.parse().unwrap();
    let marks = Marks {
        told: true,
        turn: Some(77),
        ..Marks::default()
    };
    // A little earlier, to be here in time.
    let until = Some(start + SignedDuration::from_secs(59));
    assert_eq!(scene.settled, [(1, Fate::Delay(Delay { until, marks }))]);
    assert_eq!(scene.given_back.len(), 0, "it held nothing");
    // It comes again, and tells its turn.
    scene.deliver(2, json!({"celeriac": {"told": true, "turn": 77}}));
    assert_eq!(scene.asked[0].1.turn, Some(77));
    // Who waits for a slot has none, and comes when it is to look.
    scene.answer_limits(denied(60_000, None));
    let marks = Marks {
        turn: None,
        ..marks
    };
    let until = Some(start + SignedDuration::from_secs(60));
    assert_eq!(scene.settled[1], (2, Fate::Delay(Delay { until, marks })));
}

#[test]
fn who_waits_for_a_moment_asks_again() {
    let mut scene = Scene::new(limited(), 1);
    scene.deliver(1, json!({}));
    scene.answer_limits(denied(1500, Some(77)));
    assert!(scene.asked.is_empty() && scene.settled.is_empty());
    assert!(
        !scene.core.want(0, scene.free).is_none(),
        "others may come meanwhile"
    );
    scene.pass(Duration::from_millis(1499));
    assert!(scene.asked.is_empty());
    assert_eq!(
        scene.core.next_tick(scene.now),
        Some(Duration::from_millis(1))
    );
    scene.pass(Duration::from_millis(1));
    assert_eq!(scene.asked[0].1.turn, Some(77));
    scene.answer_limits(Some(Answer::Granted));
    assert_eq!(scene.jobs.len(), 1);
}

#[test]
fn without_a_delay_store_they_wait_here_and_no_more_are_fetched_then() {
    let plain = limited();
    let mut scene = Scene::new(
        Options {
            store: None,
            ..plain
        },
        4,
    );
    for tag in 1..=1000 {
        assert!(!scene.core.want(0, scene.free).is_none());
        scene.deliver(tag, json!({}));
        scene.answer_limits(denied(3_600_000, Some(77)));
    }
    assert!(scene.settled.is_empty() && scene.core.want(0, scene.free).is_none());
    scene.core.signalled(Signal::Terminate, scene.now);
    scene.look();
    assert_eq!(scene.settled.len(), 1000);
    assert!(scene.settled.iter().all(|(_, fate)| *fate == Fate::Release));
}

#[test]
fn without_their_store_requests_under_limits_wait() {
    let mut scene = Scene::new(limited(), 1);
    scene.deliver(1, json!({}));
    scene.answer_limits(None);
    let Some((1, Fate::Delay(delay))) = scene.settled.first() else {
        panic!("{:?}", scene.settled);
    };
    let start: jiff::Timestamp = START.parse().unwrap();
    assert_eq!(delay.until, Some(start + SignedDuration::from_secs(3)));
}

#[test]
fn a_duplicate_is_dropped_and_known_to_be() {
    let mut scene = Scene::new(unique(&json!({"until": "done"})), 2);
    scene.deliver(1, json!({}));
    scene.deliver(2, json!({}));
    let claims: Vec<&str> = scene
        .asked
        .iter()
        .map(|(_, asked)| &*asked.claim.as_ref().unwrap().name)
        .collect();
    assert_eq!(claims[0], claims[1]);
    scene.answer_limits(Some(Answer::Granted));
    scene.answer_limits(Some(Answer::Duplicate {
        of: "id-1".to_owned(),
    }));
    assert_eq!((scene.jobs.len(), scene.given_back.len()), (1, 0));
    let Some((
        _,
        HookCall::TaskRevoked {
            reason,
            expired: false,
            ..
        },
    )) = scene.awaited.first()
    else {
        panic!("{:?}", scene.awaited);
    };
    assert_eq!(*reason, "duplicate");
    scene.answer(Ok(Value::Null));
    assert_eq!(scene.settled, [(2, Fate::Ack)]);
    let line = "Discarding duplicate task: t[id-2] is as id-1";
    assert!(scene.log().iter().any(|it| it == line), "{:?}", scene.log());
    // It is not revoked: a retry of the same id may run.
    scene.deliver(3, json!({"id": "id-2"}));
    assert_eq!(scene.asked.len(), 1);
}

#[test]
fn unique_tasks_are_so_for_as_long_as_they_should_be() {
    let mut scene = Scene::new(unique(&json!({"until": "start"})), 1);
    scene.deliver(1, json!({}));
    scene.answer_limits(Some(Answer::Granted));
    let key = scene.begin();
    assert_eq!(claim(&scene.given_back[0].1), ("id-1", Duration::ZERO));
    scene.finish(key, success());
    assert_eq!(scene.given_back.len(), 1);

    let mut scene = Scene::new(unique(&json!({"until": "done", "expires": 90})), 1);
    let retry = Outcome::Retry(Failure::default());
    for (outcome, lasts) in [(retry, 90), (success(), 0)] {
        scene.deliver(1, json!({}));
        scene.answer_limits(Some(Answer::Granted));
        let key = scene.begin();
        scene.finish(key, outcome);
        let (_, holding, _) = scene.given_back.remove(0);
        assert_eq!(claim(&holding), ("id-1", Duration::from_secs(lasts)));
    }
}

#[test]
fn what_was_granted_too_late_is_given_back() {
    let mut scene = Scene::new(limited(), 1);
    scene.deliver(1, json!({}));
    scene
        .core
        .leases_lost(&[celeriac_core::broker::DeliveryTag(1)]);
    scene.look();
    // After the question, in the same line.
    assert_eq!(scene.given_back.len(), 1);
    scene.answer_limits(Some(Answer::Granted));
    assert_eq!((scene.jobs.len(), scene.given_back.len()), (0, 1));
}

#[test]
fn what_is_too_much_for_a_tasks_own_rate_comes_back_one_by_one() {
    let plain = super::scene::limited("1/s");
    let options = Options {
        lanes: super::scene::lane(|lane| lane.throttled_limit = 2),
        spills_throttled: true,
        store: Some(STORE),
        ..plain
    };
    let mut scene = Scene::new(options, 9);
    for tag in 1..=5 {
        assert!(!scene.core.want(0, scene.free).is_none());
        scene.deliver(tag, json!({}));
    }
    let start: jiff::Timestamp = START.parse().unwrap();
    let waits: Vec<(u64, i64)> = scene
        .settled
        .iter()
        .map(|(tag, fate)| match fate {
            Fate::Delay(Delay {
                until: Some(until), ..
            }) => (*tag, until.duration_since(start).as_secs()),
            other => panic!("{other:?}"),
        })
        .collect();
    // One has begun, two wait here.
    assert_eq!((scene.jobs.len(), waits), (1, vec![(4, 2), (5, 3)]));
}
