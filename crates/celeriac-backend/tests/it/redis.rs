//! Results in Redis.

use std::sync::Arc;
use std::time::Duration;

use celeriac_core::Backend;
use celeriac_core::backend::{ChordPart, ErrorKind, Settings};
use celeriac_testing::conformance::backend::{self, Fixture, meta, stored};
use celeriac_testing::server::RedisServer;
use serde_json::{Value, json};
use tokio::time::timeout;

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(20);

struct Redis {
    server: RedisServer,
    settings: Settings,
}

impl Redis {
    fn start(options: Value) -> Self {
        let Value::Object(options) = options else {
            unreachable!()
        };
        Self {
            server: RedisServer::start(),
            settings: Settings {
                options,
                ..Settings::default()
            },
        }
    }

    fn ask(&self, command: &[&str]) -> String {
        let parts: Vec<&[u8]> = command.iter().map(|part| part.as_bytes()).collect();
        String::from_utf8_lossy(&self.server.command(&parts)).into_owned()
    }
}

impl Fixture for Redis {
    fn open(&self) -> Arc<dyn Backend> {
        celeriac_backend::open(&self.server.url(0), self.settings.clone()).unwrap()
    }
}

#[tokio::test]
async fn it_behaves_as_every_backend_does() {
    backend::run(&Redis::start(json!({}))).await;
}

#[tokio::test]
async fn parts_without_an_order_are_counted_as_well() {
    let redis = Redis::start(json!({"result_chord_ordered": false, "global_keyprefix": "p"}));
    let backend = redis.open();
    backend.open_chord("g", 2).await.unwrap();
    for (index, is_last) in [(1, false), (0, true)] {
        let part = ChordPart {
            group_id: "g".to_owned(),
            task_id: format!("t{index}"),
            group_index: Some(index),
            status: "SUCCESS".to_owned(),
            result: json!(index),
        };
        let claim = backend.chord_part(&part).await.unwrap();
        assert_eq!(claim.is_some(), is_last);
        if let Some(claim) = claim {
            assert_eq!(claim.results, Ok(vec![json!(1), json!(0)]));
        }
    }
    assert_eq!(redis.ask(&["LLEN", "p_celery-taskset-meta-g.j"]), ":2\r\n");
}

#[tokio::test]
async fn documents_expire_as_the_settings_say() {
    let mut redis = Redis::start(json!({}));
    redis.settings.expires = Some(Duration::from_secs(1000));
    redis.settings.failure_expires = Some(Duration::from_secs(50));
    let backend = redis.open();
    let all =
        ["SUCCESS", "FAILURE", "REVOKED"].map(|status| stored(&meta(status, status, json!(1))));
    backend.store(&all).await.unwrap();
    for (id, seconds) in [("SUCCESS", 1000), ("FAILURE", 50), ("REVOKED", 1000)] {
        let left = redis.ask(&["TTL", &format!("celery-task-meta-{id}")]);
        let left: u64 = left.trim_start_matches(':').trim().parse().unwrap();
        assert!((seconds - 40..=seconds).contains(&left), "{id}: {left}");
    }
    redis.settings.expires = None;
    let backend = redis.open();
    backend
        .store(&[stored(&meta("ever", "SUCCESS", json!(1)))])
        .await
        .unwrap();
    assert_eq!(redis.ask(&["TTL", "celery-task-meta-ever"]), ":-1\r\n");
}

#[tokio::test]
async fn a_success_stays_however_it_was_written() {
    let redis = Redis::start(json!({}));
    let backend = redis.open();
    // Compressed as Celery does: zlib of {"status": "SUCCESS", "result": 1}, and of STARTED.
    let compress = |text: &str| {
        use std::io::Write as _;
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        zlib.write_all(text.as_bytes()).unwrap();
        [
            b"\0celery-compressed\0application/x-gzip\0".as_slice(),
            &zlib.finish().unwrap(),
        ]
        .concat()
    };
    for (id, document, stays) in [
        ("a", br#"{"status":"SUCCESS","result":1}"#.to_vec(), true),
        ("b", br#"{"result": 1, "status": "SUCCESS"}"#.to_vec(), true),
        ("c", compress(r#"{"status": "SUCCESS", "result": 1}"#), true),
        (
            "d",
            compress(r#"{"status": "STARTED", "result": 1}"#),
            false,
        ),
        (
            "e",
            br#"{"result": 1, "status": "STARTED"}"#.to_vec(),
            false,
        ),
        (
            "f",
            br#"{"status": "SUCCESSFUL?", "result": 1}"#.to_vec(),
            false,
        ),
    ] {
        let key = format!("celery-task-meta-{id}");
        redis.server.command(&[b"SET", key.as_bytes(), &document]);
        backend
            .store(&[stored(&meta(id, "FAILURE", json!({"exc_type": "E"})))])
            .await
            .unwrap();
        let found = backend.get(&[id.to_owned()]).await.unwrap();
        let status = &found[0].as_ref().unwrap().status;
        assert_eq!(status == "SUCCESS", stays, "{id}: {status}");
    }
}

#[tokio::test]
async fn a_pickle_is_refused_with_a_remedy() {
    let redis = Redis::start(json!({}));
    redis
        .server
        .command(&[b"SET", b"celery-task-meta-p", b"\x80\x04\x95\x10"]);
    let backend = redis.open();
    let error = backend.get(&["p".to_owned()]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreadable);
    assert!(error.hint.unwrap().contains("result_serializer = 'json'"));
    let error = backend.changed("p", None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreadable);
}

#[tokio::test]
async fn a_server_that_comes_back_is_found_again() {
    let mut redis = Redis::start(json!({}));
    let backend = redis.open();
    backend
        .store(&[stored(&meta("a", "SUCCESS", json!(1)))])
        .await
        .unwrap();
    let started = meta("b", "STARTED", json!({}));
    backend.store(&[stored(&started)]).await.unwrap();
    let waits = Arc::clone(&backend);
    let known = started.clone();
    let waiting = tokio::spawn(async move { waits.changed("b", Some(&known)).await });
    // It listens.
    timeout(PATIENCE, async {
        while !redis
            .ask(&["PUBSUB", "NUMSUB", "celery-task-meta-b"])
            .contains(":1")
        {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    redis.server.kill();
    let storing = {
        let backend = Arc::clone(&backend);
        tokio::spawn(async move {
            backend
                .store(&[stored(&meta("b", "SUCCESS", json!(2)))])
                .await
        })
    };
    redis.server.restart();
    timeout(PATIENCE, storing).await.unwrap().unwrap().unwrap();
    let told = timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(told.result, json!(2));
    // The script was forgotten as well; and what somebody else stores is heard of.
    let other = redis.open();
    let result = [stored(&meta("c", "SUCCESS", json!(3)))];
    let both = async { tokio::join!(backend.changed("c", None), other.store(&result)) };
    let (told, stored) = timeout(PATIENCE, both).await.unwrap();
    stored.unwrap();
    assert_eq!(told.unwrap().result, json!(3));
}

#[tokio::test]
async fn what_can_not_be_reached_is_given_up_in_the_end() {
    let mut redis = Redis::start(json!({"retry_policy": {"max_retries": 1, "interval_max": 0}}));
    redis.server.kill();
    let backend = redis.open();
    let error = backend.get(&["a".to_owned()]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Connection);
    let error = backend.changed("a", None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Connection);
}

#[tokio::test]
async fn a_wrong_password_is_told_at_once() {
    let server = RedisServer::start_with(&["--requirepass", "right"]);
    let url = format!("redis://:secret@127.0.0.1:{}/0", server.port());
    let backend = celeriac_backend::open(&url, Settings::default()).unwrap();
    let error = backend.get(&["a".to_owned()]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Configuration);
    assert!(!format!("{error:?}{backend:?}").contains("secret"));
}
