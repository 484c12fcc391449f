//! `celeriac worker`: puts the parts of a worker together, and runs it.

mod assembly;
mod banner;
mod detach;
pub mod embed;
mod hooks;
mod lanes;
mod meter;
mod native;
mod pidfile;
mod pool;
mod pools;
mod privileges;
mod rust;
mod settings;
mod signals;

use std::io::IsTerminal as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use celeriac_config::Description;
use celeriac_config::layers::without_passwords;
use celeriac_config::pools::Plan;
use celeriac_core::clock::{Clock, SystemClock};
use celeriac_core::journal::{Journal, Level, Record};
use celeriac_pool::python::host::Becomes;
use celeriac_pool::python::main::Service;
use celeriac_pool::python::{Host, Main, StartOptions};
use celeriac_pool::sys::seqpacket::SeqPacket;
use celeriac_worker::Worker;
use celeriac_worker::hooks::Hooks;
use celeriac_worker::parts::End;
use celeriac_worker::vitals;
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus};
use serde_json::{Map, Value};
use tokio::sync::{Notify, mpsc};

use crate::arguments::Global;
use crate::arguments::worker::{LogFormat, WorkerArguments};
use crate::console;
use crate::failure::Failure;
use crate::health::server::Server;
use crate::interpreter::interpreter;
use crate::journal;
use assembly::{Assembly, Surroundings};
use pidfile::{Pidfile, Refused};
use settings::Environment;

/// What `celery` exits with when the pidfile is taken (`EX_CANTCREAT`).
const EX_CANTCREAT: u8 = 73;
/// What threads for blocking calls get, in bytes.
const STACK: usize = 2 * 1024 * 1024;
/// How long the app's exit handlers may take at the end.
const EXIT_HANDLERS: Duration = Duration::from_secs(10);

/// Between two looks for processes that have ended.
const REAPING: Duration = Duration::from_millis(10);

/// Runs a worker to its end.
pub(crate) fn run(
    global: &Global,
    arguments: &WorkerArguments,
    user_words: &[String],
) -> Result<ExitCode, Failure> {
    if arguments.detach && !global.detached {
        return detach::start_in_background()
            .map_err(|error| Failure::new(format!("The worker can't be started: {error}")));
    }
    if global.detached {
        detach::leave_session();
    }
    // A program with tasks in Rust takes no Python unless it is asked for a Python app as well.
    let python = match (&global.native, global.app()) {
        (Some(_), None) => None,
        _ => Some(interpreter(
            global.python.as_deref().or(arguments.executable.as_deref()),
        )?),
    };
    if let Some(folder) = &global.workdir {
        std::env::set_current_dir(folder).map_err(|error| {
            Failure::new(format!("--workdir {}: {error}", folder.display()))
                .with_hint("name a folder that exists")
        })?;
    }
    let mut options = arguments.options(user_words);
    let plan = pools::plan(&global.configuration, arguments, &mut options)?;
    options.insert("no_color".to_owned(), global.no_color().into());
    options.insert("quiet".to_owned(), global.quiet.into());
    let start = python.map(|python| StartOptions {
        python,
        app: global.app(),
        argv: argv(),
        environment: global.environment(),
        options: options.clone(),
        settings: global.configuration.settings(),
        json_logs: arguments.log_format == LogFormat::Json,
        detaches: global.detached,
    });
    celeriac_net::install_tls_provider();
    // One thread: what children say and what their ends say must be read in one place.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .thread_stack_size(STACK)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("The worker can't start: {error}")))?;
    let end = runtime.block_on(start_and_run(global, arguments, options, plan, start))?;
    drop(runtime);
    if end.restarts {
        return Err(restart());
    }
    Ok(ExitCode::from(u8::try_from(end.status).unwrap_or(1)))
}

/// What the app finds in `sys.argv`: the command line, as `celery` would have it.
fn argv() -> Vec<String> {
    let words = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned());
    let own = words.filter(|word| word != "--detached");
    std::iter::once("celery".to_owned()).chain(own).collect()
}

/// What the program's own app tells of itself to commands that are no workers.
pub(crate) fn describe_native(global: &Global) -> Result<Description, Failure> {
    native::describe(global, &native::tasks(global)?, &Map::new())
}

async fn start_and_run(
    global: &Global,
    arguments: &WorkerArguments,
    options: Map<String, Value>,
    plan: Plan,
    start: Option<StartOptions>,
) -> Result<End, Failure> {
    let native = native::tasks(global)?;
    let (mut description, host) = match &start {
        Some(start) => {
            let (description, host) = Host::start(start, Becomes::MainAndZygote).await?;
            (description, Some(host))
        }
        None => (native::describe(global, &native, &options)?, None),
    };
    native.add_to(&mut description)?;
    let pools = pools::assign(plan, arguments, &description)?;
    let environment = Environment::read(global);
    let names = native.names();
    let deadline = arguments.shutdown_deadline;
    let mut assembly = Assembly::new(&description, &pools, &environment, &names, deadline)?;
    let daemon = &description.daemon;
    privileges::become_user(daemon.uid, daemon.gid).map_err(|error| {
        Failure::new(format!("The user can't be changed: {error}"))
            .with_hint("start as root to use --uid and --gid")
    })?;
    if let Some(mask) = daemon.umask {
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
    }
    let pidfile = daemon
        .pidfile
        .as_deref()
        .map(|path| lock(Path::new(path)))
        .transpose()?;
    let failed = |error: std::io::Error| Failure::new(format!("The worker can't start: {error}"));
    let has_terminal = std::io::stdout().is_terminal();
    let orders = signals::watch(has_terminal).map_err(failed)?;

    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let python = match host {
        Some(host) => Some(Python::split(host).await?),
        None => None,
    };
    let journal = journal::open(
        &description.logging,
        arguments.log_format,
        Arc::clone(&clock),
        python.as_ref().map(|python| &python.main),
    )
    .map_err(|error| {
        let file = description
            .logging
            .file
            .as_deref()
            .unwrap_or("standard error");
        Failure::new(format!("The log file {file} can't be opened: {error}"))
    })?;
    if !global.quiet {
        console::print(&banner::banner(&description, &assembly.lanes, clock.now()));
    }
    if global.detached {
        detach::started().map_err(failed)?;
    }
    write_notices(&description, global, arguments, &*journal);
    assembly.write_warnings(&*journal);
    let (probe, probes) = vitals::probes();
    let server = Server::new(&description.worker.hostname, probe);
    let _socket = match server.answer_locally().await {
        Ok(socket) => Some(socket),
        Err(error) => {
            let text = format!("`celeriac health` can't reach this worker: {error}");
            journal.write(Record::new(Level::Warning, "celery.worker", text));
            None
        }
    };
    let address = arguments.health_address.as_deref();
    if let Some(address) = address.or(description.settings.celeriac_health_address.as_deref()) {
        server.answer_at(address).await.map_err(|error| {
            Failure::new(format!("Probes can't be answered at {address}: {error}"))
                .with_hint("name a free address: --health-address HOST:PORT")
        })?;
    }
    let engine = native.engine(&description, &clock, &journal)?;
    let (python, zygote) = match python {
        Some(Python {
            zygote,
            main,
            pid,
            service,
            asked,
            died,
        }) => (Some((main, pid, service, asked, died)), Some(zygote)),
        None => (None, None),
    };
    let (made, forks) = pool::pools(
        &assembly.lanes,
        &description,
        engine.as_ref(),
        start.zip(zygote),
        &clock,
    )
    .await?;
    let mut parting = None;
    let (mut asked, mut main_died, mut main_hooks) = (None, None, None);
    if let (Some((main, pid, service, of_main, died)), Some(forks)) = (python, forks) {
        let run = service.run(move || {
            let forks = forks.clone();
            async move { forks.fork().await }
        });
        (asked, main_died) = (Some(of_main), Some(died));
        main_hooks = Some(hooks::MainHooks(main.clone()));
        parting = Some((main, pid, tokio::spawn(run)));
    }
    let hooks = match (&engine, main_hooks) {
        (Some(engine), main) => engine.hooks(main),
        (None, Some(main)) => Arc::new(main) as Arc<dyn Hooks>,
        (None, None) => {
            return Err(Failure::new("The app has no tasks").with_hint("add some: App::task(…)"));
        }
    };
    let surroundings = Surroundings {
        hooks,
        // Without main nothing is asked.
        asked: asked.unwrap_or_else(|| mpsc::channel(1).1),
        main_died: main_died.unwrap_or_default(),
        journal,
        clock,
        orders,
        probes,
        console: Box::new(console::print),
    };
    let parts = assembly.parts(&description, made, arguments.purge, surroundings)?;
    let end = Worker::run(parts).await;
    if let (false, Some((main, host_pid, serving))) = (end.at_once, parting) {
        main.leave();
        if tokio::time::timeout(EXIT_HANDLERS, serving).await.is_err() {
            console::error(&format!(
                "The app's exit handlers take too long: process {host_pid} is killed.\n"
            ));
        }
    }
    drop(pidfile);
    if end.restarts {
        wait_for_processes().await;
    }
    Ok(end)
}

/// The processes of a Python app, and what main tells.
struct Python {
    pid: u32,
    main: Main,
    service: Service,
    zygote: SeqPacket,
    asked: mpsc::Receiver<(String, Map<String, Value>)>,
    died: Arc<Notify>,
}

impl Python {
    async fn split(host: Host) -> Result<Self, Failure> {
        let pid = host.pid();
        let (control, zygote) = host.split().await?;
        let (main, service, from_main) = Main::new(control);
        Ok(Self {
            pid,
            main,
            service,
            zygote,
            asked: from_main.asked,
            died: from_main.died,
        })
    }
}

/// Whether log lines are coloured: on a terminal, unless nobody wants it.
fn has_colors(global: &Global) -> bool {
    global.no_color() != Some(true) && std::io::stderr().is_terminal()
}

fn lock(path: &Path) -> Result<Pidfile, Failure> {
    let report = |text: &str| console::error(&format!("{text}\n"));
    Pidfile::create(path, report).map_err(|refused| match refused {
        Refused::Running { pid } => Failure::new(format!(
            "Pidfile ({}) already exists.\nSeems we're already running? (pid: {pid})",
            path.display()
        ))
        .with_status(EX_CANTCREAT),
        Refused::Unwritable(error) => Failure::new(format!(
            "The pidfile {} can't be written: {error}",
            path.display()
        ))
        .with_hint("check that its folder exists and may be written to (--pidfile)"),
    })
}

/// Says what the operator should know about the app and the options.
fn write_notices(
    description: &Description,
    global: &Global,
    arguments: &WorkerArguments,
    journal: &dyn Journal,
) {
    let threads = description.threads.iter().map(|thread| {
        format!(
            "The app started the thread {thread:?} while it was loaded. It lives on in the main \
             process; the processes that run tasks do not have it."
        )
    });
    let configured = global.configuration.warnings().iter();
    let configured = configured
        .map(ToString::to_string)
        .chain(description.own_settings.slips());
    let all = description.warnings.iter().cloned().chain(threads);
    for notice in all.chain(configured).chain(arguments.notices()) {
        journal.write(Record::new(Level::Warning, "celery.worker", notice));
    }
}

/// Waits for what is left of the processes below this one: they would be nobody's after `exec`.
async fn wait_for_processes() {
    let none_is_left = async {
        loop {
            match nix::sys::wait::waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => tokio::time::sleep(REAPING).await,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
    };
    // What does not end in time is collected later, by its successor.
    drop(tokio::time::timeout(EXIT_HANDLERS, none_is_left).await);
}

/// Begins anew, as the same process; returns only what went wrong.
fn restart() -> Failure {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let shown: Vec<_> = arguments
        .iter()
        .map(|word| without_passwords(&word.to_string_lossy()))
        .collect();
    console::print(&format!("Restarting celery worker ({})\n", shown.join(" ")));
    let program = std::env::current_exe().unwrap_or_else(|_| "celeriac".into());
    let error = Command::new(program).args(arguments).exec();
    Failure::new(format!("The worker can't be started again: {error}"))
}
