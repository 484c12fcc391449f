//! What the worker shows of itself at its start, in the sections that Celery's banner has.
//!
//! Celery's counterpart: `celery.apps.worker.Worker.startup_info`.

use std::fmt::Write as _;

use celeriac_config::Description;
use celeriac_core::journal::Level;
use celeriac_core::queue::Queue;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::lanes::LaneOf;

/// How many tasks run at once in a pool, and its kind: `4 (prefork)`, with a name `cpu=4 (prefork)`.
fn concurrency(lane: &LaneOf) -> String {
    let number = match lane.worker.autoscale {
        Some((max, min)) => format!("{{min={min}, max={max}}}"),
        None => lane.worker.concurrency.to_string(),
    };
    let name = lane.options.name.as_ref();
    let name = name.map_or_else(String::new, |name| format!("{name}="));
    format!("{name}{number} ({})", lane.kind.name())
}

/// The banner, to be followed by nothing.
pub(super) fn banner(description: &Description, lanes: &[LaneOf], now: Timestamp) -> String {
    let versions = &description.versions;
    let worker = &description.worker;
    let app = &description.app;
    let loader = app
        .loader
        .as_ref()
        .map_or_else(String::new, |loader| format!(" ({loader})"));
    let concurrency: Vec<String> = lanes.iter().map(concurrency).collect();
    let concurrency = concurrency.join(", ");
    let events = if worker.task_events {
        "ON "
    } else {
        "OFF (enable -E to monitor tasks in this worker)"
    };
    let time = now
        .to_zoned(TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string();
    let mut banner = format!(
        " \n celeriac {} -- {} v{} ({})\n {} {time}\n\n\
         [config]\n\
         .> app:         {}:{}{loader}\n\
         .> transport:   {}\n\
         .> results:     {}\n\
         .> concurrency: {concurrency}\n\
         .> task events: {events}\n\n\
         [queues]\n",
        env!("CARGO_PKG_VERSION"),
        worker.hostname,
        versions.celery,
        versions.celery_series,
        description.platform,
        app.main,
        app.id,
        description.broker.display,
        description.result_backend,
    );
    let mut queues: Vec<&Queue> = description
        .queues
        .iter()
        .map(|described| &described.queue)
        .collect();
    queues.sort_by(|a, b| a.name.cmp(&b.name));
    for queue in queues {
        // Writing to a `String` can't fail.
        let _ = writeln!(
            banner,
            ".> {:<16} exchange={}({}) key={}",
            queue.name, queue.exchange.name, queue.exchange.kind, queue.routing_key
        );
    }
    let level = Level::from_number(description.worker.loglevel);
    if level <= Level::Info {
        banner.push_str("\n[tasks]\n");
        let is_shown = |name: &&String| level == Level::Debug || !name.starts_with("celery.");
        for task in app.task_names.iter().filter(is_shown) {
            let _ = writeln!(banner, "  . {task}");
        }
    }
    banner.push('\n');
    banner
}
