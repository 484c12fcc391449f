//! A MariaDB server of the test's own.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tempfile::TempDir;

use super::free_port;
use super::unprivileged::{Kept, command, folder};

/// A running `mariadbd`, whose user `root` needs no password.
pub struct MariadbServer {
    process: Kept,
    folder: TempDir,
    port: u16,
    databases: AtomicU32,
}

static SHARED: Mutex<Weak<MariadbServer>> = Mutex::new(Weak::new());

impl MariadbServer {
    /// The server that the tests of this process share: it runs while one of them holds it.
    pub fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start());
            *shared = Arc::downgrade(&server);
            server
        })
    }

    /// Starts a server and waits until it answers.
    pub fn start() -> Self {
        let folder = folder();
        let mut install = command(Path::new("mariadb-install-db"), folder.path());
        install.args(["--no-defaults", "--auth-root-authentication-method=normal"]);
        install.args(["--skip-test-db", "--skip-name-resolve"]);
        install.arg(format!(
            "--datadir={}",
            folder.path().join("data").display()
        ));
        let status = install.status().unwrap();
        assert!(
            status.success(),
            "mariadb-install-db failed: is it installed?"
        );
        // Somebody else may take the port first: then another is tried.
        for _ in 0..10 {
            let port = free_port();
            let mut process = spawn(folder.path(), port);
            if wait_for_answer(folder.path(), &mut process) {
                return Self {
                    process,
                    folder,
                    port,
                    databases: AtomicU32::new(0),
                };
            }
        }
        panic!("mariadbd did not start");
    }

    /// Makes an empty database and answers with its name.
    pub fn create_database(&self) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("test{number}");
        self.execute("mysql", &format!("CREATE DATABASE {name}"));
        name
    }

    /// `mysql://root@127.0.0.1:port/database`
    pub fn url(&self, database: &str) -> String {
        format!("mysql://root@127.0.0.1:{}/{database}", self.port)
    }

    /// The port of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's Unix socket.
    pub fn socket(&self) -> PathBuf {
        socket(self.folder.path())
    }

    /// Runs SQL with the client, and answers with what it prints: rows in lines, columns by tabs.
    pub fn execute(&self, database: &str, sql: &str) -> String {
        let mut client = client(self.folder.path())
            .args(["--batch", "--skip-column-names", database])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = client.stdin.take().unwrap();
        input.write_all(sql.as_bytes()).unwrap();
        drop(input);
        let output = client.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{sql}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Ends the server at once, as a crash does.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the server again after [`MariadbServer::kill`], on the same port.
    pub fn restart(&mut self) {
        self.process = spawn(self.folder.path(), self.port);
        assert!(
            wait_for_answer(self.folder.path(), &mut self.process),
            "mariadbd did not start again"
        );
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("mariadb.sock")
}

fn client(folder: &Path) -> Command {
    let mut client = Command::new("mariadb");
    client.args(["--no-defaults", "--user=root"]);
    client.arg(format!("--socket={}", socket(folder).display()));
    client
}

fn spawn(folder: &Path, port: u16) -> Kept {
    let mut server = command(Path::new("mariadbd"), folder);
    server.args([
        "--no-defaults",
        "--bind-address=127.0.0.1",
        "--skip-name-resolve",
        "--innodb-buffer-pool-size=32M",
        "--innodb-log-file-size=16M",
        // A crash is one of the process alone: what is written stays written without a sync.
        "--innodb-flush-log-at-trx-commit=2",
        "--performance-schema=OFF",
        "--character-set-server=latin1",
    ]);
    server.arg(format!("--port={port}"));
    server.arg(format!("--socket={}", socket(folder).display()));
    server.arg(format!("--datadir={}", folder.join("data").display()));
    Kept::spawn(server)
}

/// Waits until the server answers; `false` when it ends instead.
#[expect(
    clippy::disallowed_methods,
    reason = "a deadline for a server that never answers"
)]
fn wait_for_answer(folder: &Path, server: &mut Kept) -> bool {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while std::time::Instant::now() < deadline {
        if server.process.try_wait().unwrap().is_some() {
            return false;
        }
        let answer = client(folder)
            .args(["--execute", "SELECT 1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        if answer.success() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}
