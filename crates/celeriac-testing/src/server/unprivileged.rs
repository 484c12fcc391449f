//! Servers of databases, which refuse to run as root: they run as `nobody` then.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};

use tempfile::TempDir;

/// Who runs the servers when the tests run as root.
const NOBODY: &str = "nobody";

/// A folder that whoever runs a server can write to.
pub(super) fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    if is_root() {
        let status = Command::new("chown")
            .arg(NOBODY)
            .arg(folder.path())
            .status()
            .unwrap();
        assert!(status.success(), "the folder can't be given to {NOBODY}");
    }
    folder
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// `program` as somebody other than root, ending when the thread that starts it does.
pub(super) fn command(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if is_root() {
        command.args(["--reuid", NOBODY, "--regid", "nogroup", "--clear-groups"]);
    }
    command
        .arg("--")
        .arg(program)
        .current_dir(folder)
        .env("LC_ALL", "C")
        // Two servers that share one make temporary files of the same names there.
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// A process that ends with this value. The kernel ends a child with the *thread* that started it,
/// and a server may be shared by tests, each in its own: a thread of its own starts it and stays.
pub(super) struct Kept {
    pub(super) process: Child,
    _keeper: Sender<()>,
}

impl Kept {
    pub(super) fn spawn(mut command: Command) -> Self {
        let (started, is_started) = channel();
        let (keeper, kept) = channel::<()>();
        std::thread::spawn(move || {
            started.send(command.spawn()).unwrap();
            // Until the sender is gone: nobody sends.
            let _ = kept.recv();
        });
        let process = is_started
            .recv()
            .unwrap()
            .unwrap_or_else(|error| panic!("setpriv can't be started: {error}"));
        Self {
            process,
            _keeper: keeper,
        }
    }

    /// Ends the process at once, as a crash does.
    pub(super) fn kill(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.kill();
    }
}
