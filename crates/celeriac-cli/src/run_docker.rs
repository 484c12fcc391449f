//! `celeriac run-docker`: sends the task that has a worker run a container.
//!
//! Counterpart: the command line of celery-docker's `tasks.py`, which takes `--inputpath`,
//! `--outputpath`, `--out` and `IMAGE -- COMMAND…`.

use std::path::{Path, PathBuf, absolute};
use std::pin::pin;
use std::process::ExitCode;

use celeriac_client::{Apply, AsyncResult, Client, Config, Signature};
use celeriac_core::backend::Meta;
use clap::Args;
use futures_util::StreamExt as _;
use serde_json::{Map, Value};

use crate::app_broker;
use crate::arguments::Global;
use crate::console;
use crate::failure::Failure;

/// What is run, and how.
#[derive(Debug, Args)]
pub(crate) struct RunDockerArguments {
    /// A file or folder of the worker's machine, which is at /input for reading.
    #[arg(long, value_name = "PATH")]
    inputpath: Option<PathBuf>,
    /// A folder of the worker's machine, which is at /output for writing.
    #[arg(long, value_name = "FOLDER")]
    outputpath: Option<PathBuf>,
    /// A file of the worker's machine for the output: both kinds, unless --err is given.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// A file of the worker's machine for standard error.
    #[arg(long, value_name = "FILE")]
    err: Option<PathBuf>,
    /// As whom it runs: a user of the worker's machine, or a number [default: the image's]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// At most so much memory: bytes, or a number with K, M, G.
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// At most so many processors.
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<f64>,
    /// At most so many processes.
    #[arg(long, value_name = "NUMBER")]
    pids_limit: Option<u32>,
    /// The network: `none`, or the one that the worker is configured for.
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// A variable of its environment. May be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Its working directory [default: the image's]
    #[arg(long, value_name = "FOLDER")]
    container_workdir: Option<String>,
    /// When the image is pulled.
    #[arg(long, value_parser = ["missing", "always", "never"])]
    pull: Option<String>,
    /// The task's name.
    #[arg(long, value_name = "NAME", default_value = "tasks.run_docker")]
    task: String,
    /// The queue [default: the one that the task is routed to]
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// Wait for its end: its states and what goes wrong are shown on standard error, what is kept of
    /// its output on standard output. The exit status is 1 unless it ends well.
    #[arg(long)]
    wait: bool,
    /// The image.
    image: String,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// A path counts from the folder in which the command is called: the worker is in another one.
fn from_here(path: &Path) -> String {
    let path = absolute(path).unwrap_or_else(|_| path.to_owned());
    path.to_string_lossy().into_owned()
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it has to be NAME=VALUE".to_owned()),
    }
}

impl RunDockerArguments {
    /// The call's arguments: those that are given.
    fn kwargs(&self) -> Map<String, Value> {
        let path = |path: &Option<PathBuf>| path.as_deref().map(from_here).map(Value::from);
        let text = |text: &Option<String>| text.clone().map(Value::from);
        let env: Map<String, Value> = self
            .env
            .iter()
            .map(|(name, value)| (name.clone(), value.clone().into()))
            .collect();
        [
            ("image", Some(self.image.clone().into())),
            ("command", Some(self.command.clone().into())),
            ("user", text(&self.user)),
            ("logoutfile", path(&self.out)),
            ("logerrfile", path(&self.err)),
            ("inputpath", path(&self.inputpath)),
            ("outputpath", path(&self.outputpath)),
            ("memory", text(&self.memory)),
            ("cpus", self.cpus.map(Value::from)),
            ("pids_limit", self.pids_limit.map(Value::from)),
            ("network", text(&self.network)),
            ("env", (!env.is_empty()).then_some(Value::Object(env))),
            ("workdir", text(&self.container_workdir)),
            ("pull", text(&self.pull)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
    }
}

/// Carries out the command.
pub(crate) fn run(global: &Global, arguments: &RunDockerArguments) -> Result<ExitCode, Failure> {
    let configured = || global.configuration.all_settings();
    let settings = match &global.native {
        Some(app) => app.settings_under(configured()),
        // An app knows its broker and its routes itself.
        None if global.app().is_some() => app_broker::client_settings(global)?,
        None => configured(),
    };
    if !["broker_url", "broker_write_url"]
        .iter()
        .any(|name| settings.contains_key(*name))
    {
        return Err(Failure::new("Nobody says where the broker is")
            .with_hint("give its URL by --broker or in celeriac.toml, or an app by -A"));
    }
    let config = match &global.native {
        Some(app) => app.client_config(&settings),
        None => Config::from_settings(&settings),
    };
    let config =
        config.map_err(|error| Failure::new(format!("A setting can't be used: {error}")))?;
    celeriac_net::install_tls_provider();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("The task can't be sent: {error}")))?;
    runtime.block_on(send(config, arguments))
}

async fn send(config: Config, arguments: &RunDockerArguments) -> Result<ExitCode, Failure> {
    let unsent = |error| Failure::new(format!("The task was not sent: {error}"));
    if arguments.wait && config.result_backend.is_none() {
        return Err(unsent(celeriac_client::Error::NoBackend).with_hint(
            "name the workers' result backend with --result-backend, or leave out --wait",
        ));
    }
    let client = Client::new(config).map_err(unsent)?;
    let mut with = Apply {
        kwargs: arguments.kwargs(),
        ..Apply::default()
    };
    if let Some(queue) = &arguments.queue {
        with = with.option("queue", queue.as_str());
    }
    let signature = Signature::new(&arguments.task);
    let result = client.apply(&signature, with).await.map_err(unsent)?;
    console::print(&format!("{}\n", result.id()));
    let status = if arguments.wait {
        follow(&result).await?
    } else {
        ExitCode::SUCCESS
    };
    client
        .close()
        .await
        .map_err(|error| Failure::new(format!("The connection was not closed well: {error}")))?;
    Ok(status)
}

/// Shows the states of a task until it has ended.
async fn follow(result: &AsyncResult) -> Result<ExitCode, Failure> {
    let mut changes = pin!(result.changes());
    while let Some(meta) = changes.next().await {
        let meta = meta.map_err(|error| {
            Failure::new(format!("How the task fares is not known: {error}"))
                .with_hint("the task goes on: its id stands above")
        })?;
        if meta.is_ready() {
            return ended(&meta);
        }
        console::error(&format!("{}\n", state(&meta)));
    }
    Err(Failure::new("How the task fares is not known"))
}

/// A state in a line.
fn state(meta: &Meta) -> String {
    if let Some(exception) = meta.exception() {
        return format!("{}: {exception}", meta.status);
    }
    let number = |name: &str| meta.result.get(name).and_then(Value::as_i64);
    match (
        meta.result.get("pulling").and_then(Value::as_str),
        number("current"),
        number("total"),
    ) {
        (Some(image), Some(current), Some(total)) if total > 0 => {
            format!("pulling {image}: {current} of {total} bytes")
        }
        (Some(image), ..) => format!("pulling {image}"),
        (None, ..) => meta.status.clone(),
    }
}

/// Shows what a task has ended with.
fn ended(meta: &Meta) -> Result<ExitCode, Failure> {
    if meta.status != "SUCCESS" {
        let why = match meta.exception() {
            Some(exception) => exception.to_string(),
            None => meta.result.to_string(),
        };
        return Err(Failure::new(format!("{}: {why}", meta.status)));
    }
    match meta.result.get("output").and_then(Value::as_str) {
        Some(output) => console::print(output),
        None => console::print(&format!("{}\n", meta.result)),
    }
    if meta.result.get("truncated") == Some(&Value::Bool(true)) {
        console::error("This is the end of the output; the file of --out has all of it.\n");
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::json;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn parse(line: &[&str]) -> Result<RunDockerArguments, String> {
        let words = ["celeriac", "run-docker"].iter().chain(line);
        match Arguments::try_parse_from(words).map(|arguments| arguments.command) {
            Ok(Command::RunDocker(arguments)) => Ok(arguments),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn celery_docker_s_own_line_is_read() {
        let line = [
            "--inputpath",
            "/in",
            "--outputpath",
            "/out",
            "--out",
            "log",
            "busybox",
            "--",
            "sh",
            "-c",
            "md5sum /input > /output/o && echo Done",
        ];
        assert_eq!(
            Value::from(parse(&line).unwrap().kwargs()),
            json!({
                "image": "busybox",
                "command": ["sh", "-c", "md5sum /input > /output/o && echo Done"],
                "inputpath": "/in", "outputpath": "/out", "logoutfile": from_here(Path::new("log")),
            })
        );
    }

    #[test]
    fn only_what_is_given_is_sent() {
        let call = parse(&["i", "ls", "-l", "--wait"]).unwrap();
        assert!(!call.wait);
        let expected = json!({"image": "i", "command": ["ls", "-l", "--wait"]});
        assert_eq!(Value::from(call.kwargs()), expected);
        let line = [
            "--err",
            "/e",
            "--user",
            "nobody",
            "--memory",
            "64M",
            "--cpus",
            "0.5",
            "--network",
            "none",
            "--env",
            "A=b=c",
            "--pull",
            "never",
            "--pids-limit",
            "9",
            "i",
            "--",
            "c",
        ];
        assert_eq!(
            Value::from(parse(&line).unwrap().kwargs()),
            json!({
                "image": "i", "command": ["c"], "logerrfile": "/e", "user": "nobody",
                "memory": "64M", "cpus": 0.5, "network": "none", "env": {"A": "b=c"},
                "pull": "never", "pids_limit": 9,
            })
        );
    }

    #[test]
    fn slips_are_told() {
        for (line, expected) in [
            (&["--env", "A", "i", "c"][..], "NAME=VALUE"),
            (&["i"], "<COMMAND>"),
            (&["--pull", "often", "i", "c"], "possible values"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    fn meta(status: &str, result: Value) -> Meta {
        Meta {
            task_id: "t".to_owned(),
            status: status.to_owned(),
            result,
            traceback: None,
            children: Value::Null,
            date_done: None,
            group_id: None,
            parent_id: None,
            extended: Map::new(),
        }
    }

    #[test]
    fn states_are_lines() {
        let exception = json!({
            "exc_type": "E", "exc_message": ["m"], "exc_module": "x",
        });
        for (status, result, expected) in [
            ("STARTED", json!({"pid": 1}), "STARTED"),
            ("RETRY", exception, "RETRY: E: m"),
            (
                "PROGRESS",
                json!({"pulling": "i", "current": 1, "total": 2}),
                "pulling i: 1 of 2 bytes",
            ),
            (
                "PROGRESS",
                json!({"pulling": "i", "current": 0, "total": 0}),
                "pulling i",
            ),
        ] {
            assert_eq!(state(&meta(status, result)), expected);
        }
    }

    #[test]
    fn an_end_that_is_none_well_is_a_failure() {
        let exception =
            json!({"exc_type": "ValueError", "exc_message": ["m"], "exc_module": "builtins"});
        let failure = ended(&meta("FAILURE", exception)).unwrap_err();
        assert_eq!(failure.to_string(), "FAILURE: ValueError: m");
        assert!(
            ended(&meta(
                "SUCCESS",
                json!({"id": "t", "output": "", "truncated": false})
            ))
            .is_ok()
        );
    }
}
