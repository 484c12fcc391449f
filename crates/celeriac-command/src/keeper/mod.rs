//! The process between the worker and a command, which sees to it that nothing of the command
//! outlives its task.
//!
//! The worker starts its own program again, as a keeper. The keeper is told the command over a
//! socket, starts it as the leader of a process group, and inherits what the command leaves behind
//! (`PR_SET_CHILD_SUBREAPER`). When the command has ended, or when the socket closes because the
//! worker is gone, however that came about, it kills the group and then everything else that
//! descends from it, also what has made itself a daemon, until nothing is left.
//!
//! A parent-death signal would reach the command alone, not what it has started, is lost when a
//! program changes its user, and comes when the *thread* that started the command ends.

pub mod spec;

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Gid, Pid, Uid, initgroups, setgid, setgroups, setuid};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

use spec::{Exit, Identity, Order, Report, Spec};

/// The argument that makes a program a keeper.
pub const ARGUMENT: &str = "celeriac-keeper";

/// Whether this program becomes a keeper when it is started as one.
static CAN_KEEP: AtomicBool = AtomicBool::new(false);

/// Becomes a keeper if this process was started as one, and does not return then. Every program
/// that runs commands as tasks calls this first in its `main`, before there is a second thread.
pub fn enter() {
    CAN_KEEP.store(true, Ordering::Relaxed);
    if std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == ARGUMENT)
    {
        keep();
    }
}

/// Whether this program has called [`enter`].
pub fn is_entered() -> bool {
    CAN_KEEP.load(Ordering::Relaxed)
}

/// Runs the command that the worker tells, and ends.
#[expect(clippy::exit, reason = "the process is the keeper's own")]
fn keep() -> ! {
    let code = match serve() {
        Ok(()) => 0,
        // The worker is gone: nobody is left to be told.
        Err(_) => 1,
    };
    std::process::exit(code)
}

fn serve() -> io::Result<()> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut orders = BufReader::new(socket.try_clone()?);
    let mut line = String::new();
    orders.read_line(&mut line)?;
    let spec: Spec = serde_json::from_str(&line)?;
    // For whoever looks at processes: it was started as `/proc/self/exe`.
    let _ = nix::sys::prctl::set_name(c"celeriac:keeper");
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let mut child = match start(&spec) {
        Ok(child) => child,
        Err(error) => return tell(&socket, &Report::Failed(error)),
    };
    let leader = Pid::from_raw(child.id() as i32);
    let group = Group(Arc::new(Mutex::new(Some(leader))));
    // A worker that is gone is noticed by who reads its orders.
    let _ = tell(&socket, &Report::Started(child.id()));
    feed(&mut child, spec.stdin);
    let ordered = group.clone();
    thread::spawn(move || obey(orders, &ordered));
    let exit = wait_for(leader, &group)?;
    end_all();
    tell(&socket, &Report::Ended(exit))
}

fn tell(mut socket: &UnixStream, report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    socket.write_all(&line)
}

/// Starts the command. Answers why it can't be started in words for people.
fn start(spec: &Spec) -> Result<Child, String> {
    let [program, arguments @ ..] = spec.argv.as_slice() else {
        return Err("the command is empty".to_owned());
    };
    if let Some(identity) = &spec.identity {
        assume(identity).map_err(|error| {
            format!(
                "it can't run as user {} and group {}: {error} (only root may change the user)",
                identity.uid, identity.gid
            )
        })?;
    }
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(&spec.env)
        .process_group(0);
    if let Some(cwd) = &spec.cwd {
        let is_folder = fs::metadata(cwd).map(|found| found.is_dir());
        match is_folder {
            Ok(true) => {}
            Ok(false) => return Err(format!("the working directory {} is none", cwd.display())),
            Err(error) => return Err(format!("the working directory {}: {error}", cwd.display())),
        }
        command.current_dir(cwd);
    }
    command.stdin(if spec.stdin.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    });
    let own = getrlimit(Resource::Data);
    if let Some(memory) = spec.memory {
        let limit = Rlimit {
            current: Some(memory),
            maximum: own.maximum,
        };
        prlimit(None, Resource::Data, limit)
            .map_err(|error| format!("its memory can't be limited to {memory} bytes: {error}"))?;
    }
    let child = command.spawn();
    if let Some(memory) = spec.memory {
        // The keeper itself goes on unlimited.
        let _ = prlimit(None, Resource::Data, own);
        if let Ok(child) = &child {
            let limit = Rlimit {
                current: Some(memory),
                maximum: Some(memory),
            };
            // A command that has ended already needs none.
            let _ = prlimit(
                rustix::process::Pid::from_raw(child.id() as i32),
                Resource::Data,
                limit,
            );
        }
    }
    child.map_err(|error| format!("{program}: {error}"))
}

/// Becomes another user for good.
fn assume(identity: &Identity) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let (own_uid, own_gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if (uid, gid) == (own_uid, own_gid) && !own_uid.is_root() {
        return Ok(());
    }
    match identity.name.as_deref().map(std::ffi::CString::new) {
        Some(Ok(name)) => initgroups(&name, gid)?,
        _ => setgroups(&[gid])?,
    }
    setgid(gid)?;
    setuid(uid)
}

/// Hands the command what it reads, beside everything else: it may never read it.
fn feed(child: &mut Child, text: Option<String>) {
    if let (Some(mut stdin), Some(text)) = (child.stdin.take(), text) {
        thread::spawn(move || {
            // A command that closes its input has read what it wanted.
            let _ = stdin.write_all(text.as_bytes());
        });
    }
}

/// Carries out what the worker orders, until the worker is gone.
fn obey(mut orders: BufReader<UnixStream>, group: &Group) {
    let mut line = String::new();
    loop {
        line.clear();
        let order = match orders.read_line(&mut line) {
            Ok(0) | Err(_) => Order::Kill,
            Ok(_) => serde_json::from_str(&line).unwrap_or(Order::Kill),
        };
        match order {
            Order::Terminate => group.signal(Signal::SIGTERM),
            // Who waits for the leader ends all the rest.
            Order::Kill => {
                group.signal(Signal::SIGKILL);
                return;
            }
        }
    }
}

/// Waits until the leader has ended, and kills its group before its number can come to mean another.
fn wait_for(leader: Pid, group: &Group) -> io::Result<Exit> {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    let exit = loop {
        match waitid(Id::Pid(leader), look) {
            Ok(WaitStatus::Exited(_, code)) => break Exit::Code(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => break Exit::Signal(signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    group.end();
    Ok(exit)
}

/// The command's process group, as long as its number is known to mean it.
#[derive(Clone)]
struct Group(Arc<Mutex<Option<Pid>>>);

impl Group {
    fn signal(&self, signal: Signal) {
        let leader = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leader) = *leader {
            let _ = killpg(leader, signal);
        }
    }

    /// Kills it; it gets no signal from now on.
    fn end(&self) {
        self.signal(Signal::SIGKILL);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Kills and collects all that descends from this process. A child's own children become this
/// process's when it has ended, so that each death shows who is next.
fn end_all() {
    loop {
        for child in children() {
            let _ = kill(child, Signal::SIGKILL);
        }
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// The processes whose parent this one is.
fn children() -> Vec<Pid> {
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid: &u32| parent_of(pid) == Some(own))
        .map(|pid| Pid::from_raw(pid as i32))
        .collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let (_, behind_name) = stat.rsplit_once(')')?;
    behind_name.split_whitespace().nth(1)?.parse().ok()
}
