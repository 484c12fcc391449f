//! `celeriac run-docker`: has a worker run a container, as the command line of celery-docker's
//! `tasks.py` does.

use std::path::{Path, PathBuf, absolute};
use std::process::ExitCode;

use celeriac_client::{Apply, Client, Config};
use celeriac_protocol::Signature;
use clap::Args;
use serde_json::{Map, Value};

use crate::arguments::Global;
use crate::arguments::client::CeleryCommand;
use crate::celery;
use crate::console;
use crate::failure::Failure;

/// Which container.
#[derive(Debug, Args)]
pub(crate) struct RunDockerArguments {
    /// A file or folder that the container finds at /input, read-only.
    #[arg(long, value_name = "PATH")]
    inputpath: Option<PathBuf>,
    /// A folder that the container finds at /output.
    #[arg(long, value_name = "FOLDER")]
    outputpath: Option<PathBuf>,
    /// The file for the output, on the worker's machine.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// A file for standard error alone.
    #[arg(long, value_name = "FILE")]
    err: Option<PathBuf>,
    /// As whom it runs: a name of the worker's machine, or a number.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// The task's name.
    #[arg(long, value_name = "NAME", default_value = "tasks.run_docker")]
    task: String,
    /// The queue.
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// The image.
    image: String,
    /// What runs in it.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Sends the call, and prints its id.
pub(crate) fn run(global: &Global, arguments: &RunDockerArguments) -> Result<ExitCode, Failure> {
    // An app knows its broker and its routes itself.
    if global.app().is_some() {
        return Err(celery::become_celery(global, arguments));
    }
    let id = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("There is no runtime: {error}")))?
        .block_on(arguments.send(&global.configuration.table(&["celery"])))?;
    console::print(&format!("{id}\n"));
    Ok(ExitCode::SUCCESS)
}

impl RunDockerArguments {
    async fn send(&self, settings: &Map<String, Value>) -> Result<String, Failure> {
        if !settings.contains_key("broker_url") {
            let text = "Nobody says where the broker is";
            return Err(Failure::new(text)
                .with_hint("give its URL by --broker or in celeriac.toml, or an app by -A"));
        }
        let failed = |error: &celeriac_client::Error| {
            Failure::new(format!("The call could not be sent: {error}"))
        };
        let config = Config::from_settings(settings).map_err(|error| failed(&error))?;
        let client = Client::new(config).map_err(|error| failed(&error))?;
        let with = Apply {
            kwargs: self.kwargs(),
            options: self
                .queue
                .iter()
                .map(|queue| ("queue".to_owned(), queue.as_str().into()))
                .collect(),
            ..Apply::default()
        };
        let sent = client.apply(&Signature::new(&*self.task), with).await;
        Ok(sent.map_err(|error| failed(&error))?.id().to_owned())
    }

    /// The arguments of the task. Paths count from this folder: the worker is in another one.
    fn kwargs(&self) -> Map<String, Value> {
        let path = |path: &Option<PathBuf>| path.as_deref().map(from_here);
        let given = [
            ("inputpath", path(&self.inputpath)),
            ("outputpath", path(&self.outputpath)),
            ("logoutfile", path(&self.out)),
            ("logerrfile", path(&self.err)),
            ("user", self.user.clone()),
        ];
        let mut kwargs = Map::new();
        kwargs.insert("image".to_owned(), self.image.clone().into());
        kwargs.insert("command".to_owned(), self.command.clone().into());
        for (name, value) in given {
            if let Some(value) = value {
                kwargs.insert(name.to_owned(), value.into());
            }
        }
        kwargs
    }
}

impl CeleryCommand for RunDockerArguments {
    /// Celery's `call` with the same task.
    fn words(&self) -> Vec<String> {
        let kwargs = Value::from(self.kwargs());
        let mut words = vec!["call".to_owned(), format!("--kwargs={kwargs}")];
        words.extend(self.queue.iter().map(|queue| format!("--queue={queue}")));
        words.extend(["--".to_owned(), self.task.clone()]);
        words
    }
}

fn from_here(path: &Path) -> String {
    let path = absolute(path).unwrap_or_else(|_| path.to_owned());
    path.to_string_lossy().into_owned()
}
