//! Commands that need no Python where the app has none: `call`, `result` and `purge`, with Celery's
//! words. Celery's counterparts: `celery.bin.call`, `celery.bin.result` and `celery.bin.purge`.

use std::collections::BTreeSet;
use std::future::Future;
use std::io::{BufRead as _, IsTerminal as _};

use celeriac_client::{Apply, Client, Error, TaskError};
use celeriac_protocol::Signature;
use serde_json::{Map, Value};

use super::NativeApp;
use crate::app_broker::AppBroker;
use crate::arguments::Global;
use crate::arguments::client::{CallArguments, PurgeArguments, ResultArguments};
use crate::console;
use crate::failure::Failure;

/// What `celery` exits with for a wrong command line.
const EX_USAGE: u8 = 2;

/// Sends a call, and shows its id.
pub(crate) fn call(
    global: &Global,
    app: &NativeApp,
    arguments: &CallArguments,
) -> Result<(), Failure> {
    let apply = Apply {
        args: json(arguments.args.as_deref(), "args", "an array")?,
        kwargs: json(arguments.kwargs.as_deref(), "kwargs", "an object")?,
        options: options(arguments)?,
    };
    block_on(async {
        let signature = Signature::new(&*arguments.name);
        let sent = client(global, app)?.apply(&signature, apply).await;
        let result = sent.map_err(|error| Failure::new(error.to_string()))?;
        console::print(&format!("{}\n", result.id()));
        Ok(())
    })
}

/// Waits for a result, and shows it.
pub(crate) fn result(
    global: &Global,
    app: &NativeApp,
    arguments: &ResultArguments,
) -> Result<(), Failure> {
    block_on(async {
        let result = client(global, app)?.result(&*arguments.task_id);
        let refused = |error: Error| Failure::new(error.to_string());
        if arguments.traceback {
            let meta = result.meta().await.map_err(refused)?;
            let traceback = meta.and_then(|meta| meta.traceback);
            console::print(&format!("{}\n", traceback.as_deref().unwrap_or("None")));
            return Ok(());
        }
        match result.get::<Value>().await {
            Ok(Value::String(text)) => console::print(&format!("{text}\n")),
            Ok(value) => console::print(&format!("{value}\n")),
            Err(Error::Task(TaskError::Failure { id, exception, .. })) => {
                let hint = format!("`result --traceback {id}` shows where");
                return Err(Failure::new(exception.to_string()).with_hint(hint));
            }
            Err(error) => return Err(refused(error)),
        }
        Ok(())
    })
}

/// Deletes the messages that wait in the queues that the app knows.
pub(crate) fn purge(
    global: &Global,
    app: &NativeApp,
    arguments: &PurgeArguments,
) -> Result<(), Failure> {
    let broker = AppBroker::of_native(global, app)?;
    let mut queues: BTreeSet<String> = match &arguments.queues {
        Some(names) => listed(names).collect(),
        None => app.queues(global).into_iter().collect(),
    };
    for excluded in listed(arguments.exclude_queues.as_deref().unwrap_or_default()) {
        queues.remove(&excluded);
    }
    if queues.is_empty() {
        return Ok(());
    }
    if !arguments.force {
        confirm(&queues)?;
    }
    let known = counted(queues.len() as u64, "queue");
    block_on(async {
        let mut session = broker.session().await?;
        let mut count = 0;
        for queue in &queues {
            let purged = session.purge(queue).await;
            count += purged.map_err(|error| Failure::new(error.in_full()))?;
        }
        // The messages are gone whatever becomes of the connection.
        drop(session.close().await);
        console::print(&if count == 0 {
            format!("No messages purged from {known}.\n")
        } else {
            let (number, noun) = known.split_once(' ').unwrap_or_default();
            format!(
                "Purged {} from {number} known task {noun}.\n",
                counted(count, "message")
            )
        });
        Ok(())
    })
}

/// That a command is Celery's own, and how to have it carried out.
pub(crate) fn needs_python(command: &str) -> Failure {
    let text =
        format!("`{command}` is carried out by Celery in Python, which this app has none of");
    Failure::new(text).with_hint(format!(
        "install Python and Celery, and run `celeriac -b BROKER_URL {command} …`"
    ))
}

fn client(global: &Global, app: &NativeApp) -> Result<Client, Failure> {
    celeriac_net::install_tls_provider();
    let settings = app.settings_under(global.configuration.all_settings());
    let client = app.client_config(&settings).and_then(Client::new);
    client.map_err(|error| Failure::new(format!("A setting can't be used: {error}")))
}

fn options(arguments: &CallArguments) -> Result<Map<String, Value>, Failure> {
    let number = |name: &str, text: &str| -> Result<Value, Failure> {
        let seconds = text
            .parse::<f64>()
            .ok()
            .and_then(serde_json::Number::from_f64);
        seconds.map(Value::Number).ok_or_else(|| {
            Failure::new(format!("--{name} {text} is no number of seconds")).with_status(EX_USAGE)
        })
    };
    let mut options = Map::new();
    if let Some(countdown) = &arguments.countdown {
        options.insert("countdown".to_owned(), number("countdown", countdown)?);
    }
    if let Some(expires) = &arguments.expires {
        let value = number("expires", expires).unwrap_or_else(|_| expires.as_str().into());
        options.insert("expires".to_owned(), value);
    }
    let texts = [
        ("eta", &arguments.eta),
        ("serializer", &arguments.serializer),
        ("queue", &arguments.queue),
        ("exchange", &arguments.exchange),
        ("routing_key", &arguments.routing_key),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            options.insert(name.to_owned(), text.as_str().into());
        }
    }
    Ok(options)
}

/// An option that is JSON.
fn json<T: serde::de::DeserializeOwned + Default>(
    text: Option<&str>,
    name: &str,
    kind: &str,
) -> Result<T, Failure> {
    let Some(text) = text else {
        return Ok(T::default());
    };
    serde_json::from_str(text).map_err(|error| {
        Failure::new(format!("--{name} {text} is not {kind} as JSON: {error}"))
            .with_status(EX_USAGE)
    })
}

fn listed(names: &str) -> impl Iterator<Item = String> {
    let names = names.split(',').map(str::trim);
    names.filter(|name| !name.is_empty()).map(str::to_owned)
}

fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// Asks whether the messages are to be deleted.
fn confirm(queues: &BTreeSet<String>) -> Result<(), Failure> {
    let names: Vec<&str> = queues.iter().map(String::as_str).collect();
    console::error(&format!(
        "WARNING: This will remove all tasks from queues: {}.\n         \
         There is no undo for this operation!\n\n(to skip this prompt use the -f option)\n\
         Are you sure you want to delete all tasks? [y/N]: ",
        names.join(", ")
    ));
    let mut answer = String::new();
    // Nobody may be there to answer; that is no yes.
    let is_read = std::io::stdin().is_terminal() && {
        let read = std::io::stdin().lock().read_line(&mut answer);
        read.is_ok()
    };
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" if is_read => Ok(()),
        _ => Err(Failure::new("Aborted")),
    }
}

fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("There is no runtime: {error}")))?;
    runtime.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_things_have_celerys_words() {
        assert_eq!(counted(1, "queue"), "1 queue");
        assert_eq!(counted(2, "queue"), "2 queues");
        assert_eq!(counted(0, "message"), "0 messages");
    }

    #[test]
    fn what_is_no_json_is_told_with_its_option() {
        let error = json::<Vec<Value>>(Some("{}"), "args", "an array").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("--args {} is not an array as JSON")
        );
        assert_eq!(
            json::<Vec<Value>>(None, "args", "an array").unwrap(),
            Vec::<Value>::new()
        );
    }
}
