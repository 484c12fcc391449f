//! `rust-quickstart worker` runs these tasks; `rust-quickstart ask` calls them, and one in Python.

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
async fn ask(app: App) -> Result<(), Box<dyn std::error::Error>> {
    println!(
        "2 + 3 = {}",
        app.send(add::s(2, 3)).await?.get::<i64>().await?
    );
    let python = Call::<i64>::named("basic.add")
        .arg(40)
        .arg(2)
        .queue("celery");
    println!(
        "40 + 2 = {}, says Python",
        app.send(python).await?.get::<i64>().await?
    );
    Ok(())
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() != Some("ask") {
        return celeriac::run(app()); // The whole command line.
    }
    ask(app()).map_or_else(
        |error| {
            eprintln!("{error}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}
