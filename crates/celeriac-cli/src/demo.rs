//! The demo: the example app on a worker of its own, with no server.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments::Global;
use crate::failure::Failure;
use crate::interpreter::interpreter;

/// The example and the pages that it reads, as in the repository.
const FILES: &[(&str, &str)] = &[
    ("README.md", include_str!("../../../README.md")),
    ("ARCHITECTURE.md", include_str!("../../../ARCHITECTURE.md")),
    ("CHANGELOG.md", include_str!("../../../CHANGELOG.md")),
    ("CONTRIBUTING.md", include_str!("../../../CONTRIBUTING.md")),
    (
        "docs/differences.md",
        include_str!("../../../docs/differences.md"),
    ),
    (
        "examples/documents/README.md",
        include_str!("../../../examples/documents/README.md"),
    ),
    (
        "examples/documents/app.py",
        include_str!("../../../examples/documents/app.py"),
    ),
    (
        "examples/documents/counting.py",
        include_str!("../../../examples/documents/counting.py"),
    ),
    (
        "examples/documents/reading.py",
        include_str!("../../../examples/documents/reading.py"),
    ),
    (
        "examples/documents/run.py",
        include_str!("../../../examples/documents/run.py"),
    ),
];
/// Where the example is among the files.
const EXAMPLE: &str = "examples/documents";
/// How much of the worker's log is shown when the worker fails.
const LINES_SHOWN: usize = 20;

/// Options of `celeriac demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    /// A folder of documents to read: text, HTML, PDF [default: the licences on this machine]
    #[arg(long, env = "DOCS", value_name = "FOLDER")]
    docs: Option<PathBuf>,
    /// Where the example's files, the broker and the results are put.
    #[arg(
        long,
        env = "DEMO_DATA",
        value_name = "FOLDER",
        default_value = "celeriac-demo"
    )]
    data: PathBuf,
    /// Number of processes [default: one per processor]
    #[arg(short, long, value_name = "NUMBER")]
    concurrency: Option<u32>,
}

/// Runs the demo; the exit status is its client's.
pub(crate) fn run(global: &Global, arguments: &DemoArguments) -> Result<ExitCode, Failure> {
    let python = interpreter(global.python.as_deref())?;
    let data = std::path::absolute(&arguments.data)
        .and_then(|data| unpack(&data).map(|()| data))
        .map_err(|error| {
            let folder = arguments.data.display();
            Failure::new(format!("The demo can't be written to {folder}: {error}"))
                .with_hint("name another folder with --data")
        })?;
    let demo = Demo {
        python,
        example: data.join(EXAMPLE),
        log: data.join("worker.log"),
        data,
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| cannot_run(&error))?
        .block_on(demo.run(arguments))
}

/// Writes the example's files below `folder`.
fn unpack(folder: &Path) -> io::Result<()> {
    for (name, text) in FILES {
        let file = folder.join(name);
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(file, text)?;
    }
    Ok(())
}

struct Demo {
    python: PathBuf,
    data: PathBuf,
    example: PathBuf,
    log: PathBuf,
}

impl Demo {
    async fn run(&self, arguments: &DemoArguments) -> Result<ExitCode, Failure> {
        // Ctrl+C reaches the client, which gives up, and the worker, which finishes its tasks.
        // This process stays to see them end.
        let _interrupts = signal(SignalKind::interrupt()).map_err(|error| cannot_run(&error))?;
        let mut terminations =
            signal(SignalKind::terminate()).map_err(|error| cannot_run(&error))?;
        self.check_packages().await?;
        let mut worker = self.worker(arguments).map_err(|error| cannot_run(&error))?;
        let mut client = self.client(arguments).map_err(|error| cannot_run(&error))?;
        let status = tokio::select! {
            status = client.wait() => status,
            _ = worker.wait() => {
                drop(client.kill().await);
                return Err(self.worker_ended());
            }
            _ = terminations.recv() => client.kill().await.and(client.wait().await),
        };
        if let Some(pid) = worker.id().and_then(|pid| i32::try_from(pid).ok()) {
            // One that is gone already need not be told.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        drop(worker.wait().await);
        let code = status.map_err(|error| cannot_run(&error))?.code();
        Ok(ExitCode::from(
            code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
        ))
    }

    async fn check_packages(&self) -> Result<(), Failure> {
        let check = Command::new(&self.python)
            .args(["-c", "import celery, sqlalchemy"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let is_well = check.await.map_err(|error| cannot_run(&error))?.success();
        if is_well {
            return Ok(());
        }
        let python = self.python.display();
        Err(Failure::new(format!(
            "The demo needs the packages celery and SQLAlchemy, and {python} does not have them."
        ))
        .with_hint(format!(
            "{python} -m pip install celery sqlalchemy, or name another interpreter with --python"
        )))
    }

    fn worker(&self, arguments: &DemoArguments) -> io::Result<Child> {
        let mut worker = Command::new(std::env::current_exe()?);
        worker
            .args(["--quiet", "--python"])
            .arg(&self.python)
            .args(["-A", "app", "--workdir"])
            .arg(&self.example)
            .args(["worker", "--loglevel", "INFO", "--logfile"])
            .arg(&self.log);
        if let Some(concurrency) = arguments.concurrency {
            worker.args(["--concurrency", &concurrency.to_string()]);
        }
        // Warnings of Python's belong to the log as well, and not into the middle of the demo.
        let log = File::options().create(true).append(true).open(&self.log)?;
        worker
            .env("DEMO_DATA", &self.data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
    }

    fn client(&self, arguments: &DemoArguments) -> io::Result<Child> {
        let mut client = Command::new(&self.python);
        if let Some(docs) = &arguments.docs {
            client.env("DOCS", std::path::absolute(docs)?);
        }
        client
            .arg("run.py")
            .current_dir(&self.example)
            .env("DEMO_DATA", &self.data)
            .env("DEMO_COMMAND", "celeriac demo")
            .kill_on_drop(true)
            .spawn()
    }

    fn worker_ended(&self) -> Failure {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
        let file = self.log.display();
        Failure::new(format!(
            "The demo's worker ended. The end of {file}:\n{last}"
        ))
    }
}

fn cannot_run(error: &io::Error) -> Failure {
    Failure::new(format!("The demo can't be run: {error}"))
}
