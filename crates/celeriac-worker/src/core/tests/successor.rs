//! Main dies, and its successor is told what it knew.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::life::late;
use super::remote::ask;
use super::scene::{Scene, options};
use crate::core::{Effect, Options};
use crate::hooks::HookCall;
use crate::shutdown::Signal;

/// What main knows, as far as the parent changes it.
#[derive(Debug, Clone, Default, PartialEq)]
struct Known {
    /// Queues with what they were made of.
    queues: BTreeMap<String, Value>,
    consumed: BTreeSet<String>,
    attributes: BTreeMap<String, Map<String, Value>>,
    revoked: BTreeSet<String>,
    stamps: Map<String, Value>,
    groups: Option<bool>,
    pool_size: usize,
    is_cold: bool,
}

impl Known {
    /// That of an app as it is loaded.
    fn loaded() -> Self {
        Self {
            queues: [("celery".to_owned(), Value::Null)].into(),
            consumed: ["celery".to_owned()].into(),
            groups: Some(true),
            pool_size: 2,
            ..Self::default()
        }
    }

    /// What `celeriac.host` makes of a call.
    fn hear(&mut self, call: &HookCall) {
        match call {
            HookCall::SelectQueue { queue, options, .. } => {
                let made = || Value::Object(options.clone());
                self.queues.entry(queue.clone()).or_insert_with(made);
                self.consumed.insert(queue.clone());
            }
            HookCall::DeselectQueue { queue } => drop(self.consumed.remove(queue)),
            HookCall::SetTaskAttributes { task, attributes } => {
                let known = self.attributes.entry(task.clone()).or_default();
                known.extend(attributes.clone());
            }
            HookCall::AddRevoked { ids, headers } => {
                self.revoked.extend(ids.iter().cloned());
                for (name, values) in headers {
                    let known = self.stamps.entry(name).or_insert_with(|| json!([]));
                    let known = known.as_array_mut().unwrap();
                    known.extend(values.as_array().unwrap().clone());
                }
            }
            HookCall::SetEventGroups { all } => self.groups = Some(*all),
            HookCall::SetPoolSize { limit } => self.pool_size = *limit,
            HookCall::Terminating => self.is_cold = true,
            _ => {}
        }
    }
}

/// A scene, and the main in it.
struct Stage {
    scene: Scene,
    main: Known,
}

impl Stage {
    fn new(options: Options) -> Self {
        Self {
            scene: Scene::new(options, 2),
            main: Known::loaded(),
        }
    }

    /// Main hears what it is told, and makes the queues that it is asked for.
    fn play(&mut self) {
        self.scene.look();
        while let Some((_, call)) = self.scene.awaited.first() {
            self.main.hear(call);
            let queue = match call {
                HookCall::SelectQueue { queue, .. } => queue.clone(),
                _ => String::new(),
            };
            let exchange = json!({"name": queue, "type": "direct"});
            self.scene.answer(Ok(json!({
                "name": queue, "exchange": exchange, "info": {"name": queue},
            })));
        }
        for effect in std::mem::take(&mut self.scene.others) {
            if matches!(effect, Effect::Scale(..)) {
                // As the worker does it.
                self.scene.core.pool_resized(0, 7);
                self.main.hear(&HookCall::SetPoolSize { limit: 7 });
            }
        }
        for call in std::mem::take(&mut self.scene.told) {
            self.main.hear(&call);
        }
    }

    fn ask(&mut self, method: &str, arguments: &Value) {
        ask(&mut self.scene, method, arguments);
        self.play();
    }

    /// What the successor of main knows that is told what the core has it told.
    fn successor(&mut self) -> Known {
        self.scene.core.main_died();
        self.scene.look();
        let mut successor = Known::loaded();
        for call in std::mem::take(&mut self.scene.told) {
            successor.hear(&call);
        }
        assert!(self.scene.awaited.is_empty(), "nothing waits for it");
        successor
    }
}

#[test]
fn a_successor_of_main_knows_what_commands_have_changed() {
    let mut stage = Stage::new(options([("t", late()), ("u", late())]));
    assert_eq!(stage.successor(), Known::loaded());
    for (method, arguments) in [
        ("rate_limit", json!({"task_name": "t", "rate_limit": "5/m"})),
        (
            "time_limit",
            json!({"task_name": "t", "soft": 5, "hard": 9}),
        ),
        ("rate_limit", json!({"task_name": "u", "rate_limit": "1/s"})),
        ("rate_limit", json!({"task_name": "u", "rate_limit": null})),
        ("add_consumer", json!({"queue": "q", "expires": 9})),
        ("disable_events", json!({})),
        ("pool_grow", json!({"n": 5})),
        ("revoke", json!({"task_id": ["a", "b"]})),
        (
            "revoke_by_stamped_headers",
            json!({"headers": {"st": ["x", "y"]}}),
        ),
    ] {
        stage.ask(method, &arguments);
        let main = stage.main.clone();
        assert_ne!(main, Known::loaded(), "{method}");
        assert_eq!(stage.successor(), main, "{method}");
        // Neither may the next one be told of less.
        assert_eq!(stage.successor(), main, "{method}");
    }
    stage.ask("enable_events", &json!({}));
    assert_eq!(stage.successor().groups, Some(true));
    stage.scene.core.signalled(Signal::Quit, stage.scene.now);
    stage.play();
    assert!(stage.main.is_cold);
    assert_eq!(stage.successor(), stage.main);
}

#[test]
fn a_successor_of_main_knows_the_queues_whatever_became_of_them() {
    let commands = [
        ("add_consumer", json!({"queue": "q", "expires": 1})),
        ("add_consumer", json!({"queue": "q", "expires": 2})),
        ("cancel_consumer", json!({"queue": "q"})),
        ("cancel_consumer", json!({"queue": "celery"})),
        ("add_consumer", json!({"queue": "celery"})),
    ];
    let length = 4;
    for number in 0..commands.len().pow(length) {
        let mut stage = Stage::new(options([("t", late())]));
        let mut rest = number;
        for _ in 0..length {
            let (method, arguments) = &commands[rest % commands.len()];
            rest /= commands.len();
            stage.ask(method, arguments);
        }
        assert_eq!(stage.successor(), stage.main, "{number}");
    }
}

#[test]
fn a_queue_that_main_can_not_make_is_not_asked_of_its_successor() {
    let mut stage = Stage::new(options([("t", late())]));
    ask(&mut stage.scene, "add_consumer", &json!({"queue": "q"}));
    stage.scene.answer(Err("TypeError()".to_owned()));
    assert_eq!(stage.successor(), Known::loaded());
}

#[test]
fn a_queue_that_the_broker_refuses_is_forgotten_by_all() {
    let mut stage = Stage::new(options([("t", late())]));
    let loaded = ask(&mut stage.scene, "active_queues", &json!({}));
    stage.ask("add_consumer", &json!({"queue": "q"}));
    assert!(stage.main.consumed.contains("q"));
    stage.scene.core.queue_refused("q");
    stage.play();
    assert!(!stage.main.consumed.contains("q"));
    assert_eq!(stage.successor(), stage.main);
    let left = ask(&mut stage.scene, "active_queues", &json!({}));
    assert_eq!(left, loaded);
}

#[test]
fn a_revoke_that_is_not_stored_is_told_of() {
    let mut scene = Scene::with(late());
    ask(&mut scene, "revoke", &json!({"task_id": "a"}));
    let awaited: Vec<_> = scene.awaited.iter().map(|(_, call)| call).collect();
    assert!(matches!(
        awaited[..],
        [HookCall::MarkRevoked { .. }, HookCall::KeepRevoked { .. }]
    ));
    scene.answer(Ok(Value::Null));
    scene.answer(Err("the main process is gone".to_owned()));
    let text = "That tasks are revoked could not be stored: the main process is gone";
    assert_eq!(scene.log().last().map(String::as_str), Some(text));
}
