//! `celeriac worker`: puts the parts of a worker together, and runs it.

mod banner;
mod detach;
mod hooks;
mod meter;
mod pidfile;
mod privileges;
mod settings;
mod signals;

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use celeriac_config::Description;
use celeriac_core::clock::{Clock, SystemClock};
use celeriac_core::journal::{Journal, Level, Record};
use celeriac_pool::prefork::{PoolKind, PreforkOptions, PreforkPool};
use celeriac_pool::python::host::Becomes;
use celeriac_pool::python::zygote::Zygote;
use celeriac_pool::python::{Host, Main, StartOptions};
use celeriac_worker::Worker;
use celeriac_worker::parts::{End, Parts};
use celeriac_worker::vitals;
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus};

use crate::arguments::Global;
use crate::arguments::worker::{LogFormat, WorkerArguments};
use crate::console;
use crate::failure::Failure;
use crate::health::server::Server;
use crate::interpreter::interpreter;
use crate::journal;
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
    let python = interpreter(global.python.as_deref().or(arguments.executable.as_deref()))?;
    if let Some(folder) = &global.workdir {
        std::env::set_current_dir(folder).map_err(|error| {
            Failure::new(format!("--workdir {}: {error}", folder.display()))
                .with_hint("name a folder that exists")
        })?;
    }
    let mut options = arguments.options(user_words);
    options.insert("no_color".to_owned(), global.no_color().into());
    options.insert("quiet".to_owned(), global.quiet.into());
    let start = StartOptions {
        python,
        app: global.app(),
        argv: argv(),
        environment: global.environment(),
        options,
        json_logs: arguments.log_format == LogFormat::Json,
        detaches: global.detached,
    };
    celeriac_net::install_tls_provider();
    // One thread: what children say and what their ends say must be read in one place.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .thread_stack_size(STACK)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("The worker can't start: {error}")))?;
    let end = runtime.block_on(start_and_run(global, arguments, start))?;
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

async fn start_and_run(
    global: &Global,
    arguments: &WorkerArguments,
    start: StartOptions,
) -> Result<End, Failure> {
    let (description, host) = Host::start(&start, Becomes::MainAndZygote).await?;
    let consumer = settings::consumer(&description, arguments.purge)?;
    let outlive = consumer
        .brokers
        .iter()
        .all(|broker| broker.capabilities().tags_outlive_connections);
    let environment = Environment::read();
    let delays = description.settings.celeriac_delay_store.unwrap_or(true)
        && consumer
            .brokers
            .iter()
            .all(|broker| broker.capabilities().delays);
    let limited = settings::limits::limits(&description, &consumer.brokers)?;
    let options = settings::worker(
        &description,
        &environment,
        arguments.shutdown_deadline,
        outlive,
        delays,
        &limited,
    )?;
    let limits = settings::pool(&description)?;
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

    let host_pid = host.pid();
    let (control, zygote) = host.split().await?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let (main, service, from_main) = Main::new(control);
    let journal = journal::open(
        &description.logging,
        arguments.log_format,
        Arc::clone(&clock),
        &main,
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
        console::print(&banner::banner(&description, clock.now()));
    }
    if global.detached {
        detach::started().map_err(failed)?;
    }
    write_notices(&description, arguments, &*journal);
    for warning in limited.warnings {
        journal.write(Record::new(Level::Warning, "celery.worker", warning));
    }
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
    let kind = settings::pool_kind(&description)?;
    let size = match kind {
        // Whatever --concurrency says, as in Celery.
        PoolKind::Solo => 1,
        _ => description.worker.pool_size().0,
    };
    let pool_options = PreforkOptions {
        kind,
        processes: 1,
        size,
        limits,
        watch: settings::watch(&description),
        start,
    };
    let (pool, main_forks) =
        PreforkPool::new(pool_options, Zygote::new(zygote), Arc::clone(&clock)).map_err(failed)?;
    let serving = tokio::spawn(service.run(move || {
        let main_forks = main_forks.clone();
        async move { main_forks.fork().await }
    }));
    let remote = &description.remote;
    let heartbeat = remote.heartbeat.then(|| settings::heartbeat(&description));
    let bus = settings::bus(&description, consumer.brokers.clone());
    let end = Worker::run(Parts {
        options,
        consumer,
        bus,
        limit_store: limited.store,
        pool: Box::new(pool),
        hooks: Arc::new(hooks::MainHooks(main.clone())),
        asked: from_main.asked,
        main_died: from_main.died,
        journal,
        clock,
        orders,
        probes,
        console: Box::new(console::print),
        revoked: description.revoked.clone(),
        keeps_state: description.worker.statedb.is_some(),
        heartbeat,
        signals_heartbeat: description.has_receivers("heartbeat_sent"),
        meter: Box::new(meter::Linux),
        has_worker_steps: description.has_worker_steps,
        has_consumer_steps: description.has_consumer_steps,
    })
    .await;
    if !end.at_once {
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
fn write_notices(description: &Description, arguments: &WorkerArguments, journal: &dyn Journal) {
    let threads = description.threads.iter().map(|thread| {
        format!(
            "The app started the thread {thread:?} while it was loaded. It lives on in the main \
             process; the processes that run tasks do not have it."
        )
    });
    let all = description.warnings.iter().cloned().chain(threads);
    for notice in all.chain(arguments.notices()) {
        journal.write(Record::new(Level::Warning, "celery.worker", notice));
    }
}

/// A word of the command line, any password of a URL in it masked.
fn without_password(word: &str) -> String {
    let mut shown = String::with_capacity(word.len());
    let mut rest = word;
    while let Some(at) = rest.find("://") {
        let (scheme, after) = rest.split_at(at + "://".len());
        shown.push_str(scheme);
        // A list of URLs is separated by semicolons. A password may hold an `@` that is not
        // quoted: everything up to the last one is masked.
        let end = after.find(';').unwrap_or(after.len());
        let (url, next) = after.split_at(end);
        match url.rsplit_once('@') {
            Some((credentials, address)) => {
                let user = credentials.split_once(':').map_or("", |(user, _)| user);
                let _ = write!(shown, "{user}:**@{address}");
            }
            None => shown.push_str(url),
        }
        rest = next;
    }
    shown.push_str(rest);
    shown
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
        .map(|word| without_password(&word.to_string_lossy()))
        .collect();
    console::print(&format!("Restarting celery worker ({})\n", shown.join(" ")));
    let program = std::env::current_exe().unwrap_or_else(|_| "celeriac".into());
    let error = Command::new(program).args(arguments).exec();
    Failure::new(format!("The worker can't be started again: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_masked() {
        for (word, shown) in [
            ("-b", "-b"),
            ("redis://:secret@host/0", "redis://:**@host/0"),
            (
                "--broker=redis://u:se@cret@host",
                "--broker=redis://u:**@host",
            ),
            ("redis://h/0;redis://:b@c/1", "redis://h/0;redis://:**@c/1"),
            ("sqla+sqlite:///file.db", "sqla+sqlite:///file.db"),
        ] {
            assert_eq!(without_password(word), shown);
        }
    }
}
