//! `rust-quickstart worker` runs these tasks; `rust-quickstart ask` calls them, and one in Python.

use std::error::Error;
use std::process::ExitCode;

use celeriac::{App, Call};

#[celeriac::task]
async fn add(x: i64, y: i64) -> i64 {
    x + y
}

#[celeriac::task(retry, max_retries = 2, default_retry_delay = "100ms")]
async fn parse(text: String) -> celeriac::Result<i64> {
    Ok(text.trim().parse()?)
}

fn app() -> App {
    let app = App::new("quickstart").set("task_default_queue", "rust");
    app.task(add).task(parse)
}

#[tokio::main]
async fn ask(app: App) -> Result<ExitCode, Box<dyn Error>> {
    let sum: i64 = app.send(add::s(2, 3)).await?.get().await?;
    let python = Call::<i64>::named("basic.add").arg(40).arg(sum);
    let more: i64 = app.send(python.queue("celery")).await?.get().await?;
    println!("2 + 3 = {sum}, and in Python 40 + {sum} = {more}");
    Ok(ExitCode::SUCCESS)
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("ask") => ask(app()),
        _ => Ok(celeriac::run(app())), // The whole command line.
    }
}
