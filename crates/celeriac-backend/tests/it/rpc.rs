//! Results as messages.

use std::sync::Arc;
use std::time::Duration;

use celeriac_core::backend::{Chords, ErrorKind, Meta, Settings, Stored};
use celeriac_core::{Backend, Broker};
use celeriac_testing::conformance::backend::{id, meta};
use celeriac_testing::server::{RabbitMqServer, RedisServer};
use serde_json::json;
use tokio::time::timeout;

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn broker(url: &str) -> Arc<dyn Broker> {
    celeriac_broker::open(url, &celeriac_broker::Options::default()).unwrap()
}

fn open(url: &str) -> Arc<dyn Backend> {
    celeriac_backend::open_beside("rpc://", Settings::default(), &broker(url)).unwrap()
}

fn to(reply_to: Option<&str>, meta: &Meta) -> Stored {
    Stored {
        meta: meta.clone(),
        reply_to: reply_to.map(str::to_owned),
        correlation_id: None,
        expires: None,
    }
}

async fn changed(backend: &dyn Backend, id: &str, known: Option<&Meta>) -> Meta {
    let told = timeout(PATIENCE, backend.changed(id, known)).await;
    told.unwrap().unwrap()
}

async fn results_come_to_whoever_asked(url: &str) {
    let (asks, also_asks, answers) = (open(url), open(url), open(url));
    assert_eq!(asks.chords(), Chords::None);
    let queue = asks.reply_to().unwrap();
    assert_ne!(Some(&queue), also_asks.reply_to().as_ref());
    let task = id("rpc");
    asks.expect(&task).await.unwrap();
    let missing = asks.get(std::slice::from_ref(&task)).await.unwrap();
    assert_eq!(missing, [None]);

    let progress = meta(&task, "PROGRESS", json!({"done": 1}));
    let ended = meta(&task, "SUCCESS", json!("ü"));
    let late = meta(&task, "FAILURE", json!({"exc_type": "E"}));
    answers.store(&[to(Some(&queue), &progress)]).await.unwrap();
    assert_eq!(changed(&*asks, &task, None).await, progress);
    // Nobody is told of what nobody has asked for, or is gone.
    let all = [
        to(None, &late),
        to(Some(""), &late),
        to(Some("nobody's"), &late),
        to(Some(&queue), &ended),
        to(Some(&queue), &late),
    ];
    answers.store(&all).await.unwrap();
    assert_eq!(changed(&*asks, &task, Some(&progress)).await, ended);
    // The first success stays, also when all have come.
    let last = meta(&id("rpc"), "SUCCESS", json!(2));
    answers.store(&[to(Some(&queue), &last)]).await.unwrap();
    assert_eq!(changed(&*asks, &last.task_id, None).await, last);
    let ids = [task.clone(), last.task_id.clone()];
    let found = asks.get(&ids).await.unwrap();
    assert_eq!(found, [Some(ended), Some(last)]);
    asks.forget(&ids).await.unwrap();
    assert_eq!(asks.get(&ids).await.unwrap(), [None, None]);

    for backend in [asks, also_asks, answers] {
        backend.close().await.unwrap();
    }
}

#[tokio::test]
async fn over_redis() {
    let server = RedisServer::start();
    results_come_to_whoever_asked(&server.url(0)).await;
}

#[tokio::test]
async fn over_rabbitmq() {
    let server = RabbitMqServer::shared();
    let vhost = server.vhost();
    results_come_to_whoever_asked(&server.url(&vhost)).await;
}

#[tokio::test]
async fn a_server_that_comes_back_is_heard_again() {
    let mut server = RedisServer::start();
    let url = server.url(0);
    let (asks, answers) = (open(&url), open(&url));
    let queue = asks.reply_to().unwrap();
    let first = meta(&id("rpc"), "SUCCESS", json!(1));
    asks.expect(&first.task_id).await.unwrap();
    answers.store(&[to(Some(&queue), &first)]).await.unwrap();
    assert_eq!(changed(&*asks, &first.task_id, None).await, first);
    server.kill();
    server.restart();
    let second = meta(&id("rpc"), "SUCCESS", json!(2));
    answers.store(&[to(Some(&queue), &second)]).await.unwrap();
    assert_eq!(changed(&*asks, &second.task_id, None).await, second);
}

#[tokio::test]
async fn it_needs_a_broker_and_keeps_no_groups() {
    let error = celeriac_backend::open("rpc://", Settings::default()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Configuration);
    let server = RedisServer::start();
    let backend = open(&server.url(0));
    for error in [
        backend.save_group("g", &json!([])).await.unwrap_err(),
        backend.group("g").await.unwrap_err(),
        backend.open_chord("g", 1).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Unsupported);
    }
}
