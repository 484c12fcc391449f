use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use celeriac_broker::memory::MemoryBroker;
use celeriac_client::config::PublishRetry;
use celeriac_client::{Apply, Canvas as _, Client, Config, Error, Signature, chain, chord, group};
use celeriac_core::broker::{self, Broker as _, ErrorKind, Want};
use celeriac_core::publisher::{Published, Publisher};
use celeriac_core::queue::Queue;
use serde_json::Value;

/// What a worker would get from a queue, as headers and bodies.
async fn received(broker: &MemoryBroker, queue: &str) -> Vec<(Value, Value)> {
    let mut session = broker.connect().await.unwrap();
    let queue = Queue::direct(queue);
    session.declare(&queue).await.unwrap();
    session.subscribe(&queue).await.unwrap();
    let want = Want {
        runnable: 100,
        total: 100,
    };
    let deliveries = session.exchange(&[], want).await.unwrap();
    let opened = deliveries.into_iter().map(|delivery| {
        let message = delivery.message.unwrap();
        (
            serde_json::from_str(&message.headers).unwrap(),
            serde_json::from_slice(&message.body).unwrap(),
        )
    });
    opened.collect()
}

fn client(broker: &MemoryBroker) -> Client {
    Client::over(Config::default(), broker.publisher().unwrap(), None).unwrap()
}

#[tokio::test]
async fn a_call_is_a_message_in_its_queue() {
    let broker = MemoryBroker::new();
    let client = client(&broker);
    let add = Signature::new("proj.add").arg(2).set("queue", "math");
    let with = Apply::default().arg(1).option("priority", 3);
    let result = client.apply(&add, with).await.unwrap();
    let all = received(&broker, "math").await;
    let [(headers, body)] = &all[..] else {
        panic!("{all:?}");
    };
    assert_eq!(headers["id"], result.id());
    assert_eq!(headers["task"], "proj.add");
    assert_eq!(body[0], serde_json::json!([1, 2]));
}

#[tokio::test]
async fn what_all_began_with_is_told_to_all() {
    let broker = MemoryBroker::new();
    let client = client(&broker);
    let tasks = ["a", "b"].map(Signature::new);
    let canvas = group([chain(tasks.clone()).unwrap(), Signature::new("c")]).unwrap();
    let with = Apply::default()
        .option("root_id", "root")
        .option("parent_id", "parent");
    let result = client.apply(&canvas, with).await.unwrap();
    assert_eq!(result.members().unwrap().len(), 2);
    let all = received(&broker, "celery").await;
    assert_eq!(all.len(), 2);
    for (headers, _) in all {
        assert_eq!(headers["root_id"], "root");
        assert_eq!(headers["parent_id"], "parent");
    }
}

#[tokio::test]
async fn nothing_is_sent_of_what_makes_no_sense() {
    let broker = MemoryBroker::new();
    let client = client(&broker);
    let good = Signature::new("good");
    let late = Signature::new("late").set("eta", "tomorrow");
    for canvas in [
        group([good.clone(), late]).unwrap(),
        chord([good.clone()], good.clone()).unwrap(),
        chain([]).unwrap(),
    ] {
        let error = client.apply(&canvas, Apply::default()).await.unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }
    assert!(received(&broker, "celery").await.is_empty());
}

/// Loses its connection some times.
#[derive(Debug)]
struct Flaky {
    failures: AtomicU32,
    kind: ErrorKind,
}

#[async_trait]
impl Publisher for Flaky {
    async fn declare(&self, _: &Queue) -> Result<(), broker::Error> {
        Ok(())
    }

    async fn publish(&self, _: &[Published]) -> Result<(), broker::Error> {
        let left = self.failures.load(Ordering::Relaxed);
        if left == 0 {
            return Ok(());
        }
        self.failures.store(left - 1, Ordering::Relaxed);
        Err(broker::Error::new(self.kind, "gone"))
    }

    async fn close(&self) -> Result<(), broker::Error> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn publishing_is_retried_as_the_policy_says() {
    let retry = |max_retries| {
        Some(PublishRetry {
            max_retries,
            interval_max: Duration::from_secs(1),
            ..PublishRetry::default()
        })
    };
    for (failures, kind, policy, succeeds) in [
        (0, ErrorKind::Connection, None, true),
        (1, ErrorKind::Connection, None, false),
        (3, ErrorKind::Connection, retry(Some(3)), true),
        (4, ErrorKind::Connection, retry(Some(3)), false),
        (50, ErrorKind::Connection, retry(None), true),
        (1, ErrorKind::Refused, retry(None), false),
    ] {
        let publisher = Arc::new(Flaky {
            failures: AtomicU32::new(failures),
            kind,
        });
        let config = Config {
            task_publish_retry: policy,
            ..Config::default()
        };
        let client = Client::over(config, publisher, None).unwrap();
        let sent = client.apply(&Signature::new("t"), Apply::default()).await;
        assert_eq!(sent.is_ok(), succeeds, "{failures} {kind:?} {policy:?}");
    }
}
