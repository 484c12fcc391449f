//! A task for each way in which one can end. The tests with Celery on the other side call them.

use std::time::Duration;

use celeriac::{App, Context, Error, Exception, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    item: String,
    price: f64,
    count: u32,
}

#[celeriac::task]
async fn total(order: Order, #[default = 0.0] discount: f64, note: Option<String>) -> String {
    let sum = order.price * f64::from(order.count) - discount;
    format!("{} {sum}{}", order.item, note.unwrap_or_default())
}

/// A thread's: it does not await.
#[celeriac::task]
fn divide(x: i64, y: i64) -> i64 {
    x / y
}

#[celeriac::task]
async fn panics(text: String) -> i64 {
    panic!("{text}")
}

#[celeriac::task]
async fn parse(text: String) -> Result<i64> {
    Ok(text.parse()?)
}

/// An exception that Python knows.
#[celeriac::task]
async fn refuse(key: String) -> Result<()> {
    Err(Error::failure(Exception::builtin("KeyError", key)))
}

#[celeriac::task(retry, max_retries = 3, default_retry_delay = "100ms")]
async fn stumble(context: Context, times: u32) -> Result<u32> {
    if context.retries() < times {
        Err(Exception::builtin(
            "OSError",
            format!("stumbled {}", context.retries()),
        ))?;
    }
    Ok(context.retries())
}

#[celeriac::task(track_started)]
async fn sleep(seconds: f64) -> &'static str {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    "slept"
}

#[celeriac::task(soft_time_limit = "500ms", cancel_grace = "20s")]
async fn tidy(context: Context) -> Result<&'static str> {
    context.cancellation().cancelled().await;
    Ok("tidied")
}

#[celeriac::task]
async fn about(context: Context) -> Value {
    let request = context.request();
    json!({"id": request.id, "task": request.task, "headers": request.headers,
        "hostname": request.hostname, "root_id": request.root_id})
}

#[celeriac::task]
async fn ignored() -> Result<()> {
    Err(Error::ignore())
}

#[celeriac::main]
fn app() -> App {
    let app = App::new("outcomes").set("task_default_queue", "rust");
    let app = app
        .task(total)
        .task(divide)
        .task(panics)
        .task(parse)
        .task(refuse);
    app.task(stumble)
        .task(sleep)
        .task(tidy)
        .task(about)
        .task(ignored)
}
