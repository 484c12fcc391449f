//! A PostgreSQL server of the test's own.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tempfile::TempDir;

use super::free_port;
use super::unprivileged::{Kept, command, folder};

/// A running `postgres`, whose superuser `postgres` needs no password.
pub struct PostgresServer {
    process: Kept,
    programs: PathBuf,
    folder: TempDir,
    port: u16,
    databases: AtomicU32,
}

static SHARED: Mutex<Weak<PostgresServer>> = Mutex::new(Weak::new());

impl PostgresServer {
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
        let programs = programs();
        let folder = folder();
        let data = folder.path().join("data");
        let mut initdb = command(&programs.join("initdb"), folder.path());
        initdb.args(["--no-sync", "--auth", "trust", "--username", "postgres"]);
        initdb.args(["--encoding", "UTF8", "--locale", "C", "--pgdata"]);
        let status = initdb.arg(&data).status().unwrap();
        assert!(status.success(), "initdb failed");
        // The role `locked` needs its password, all others none.
        std::fs::write(
            data.join("pg_hba.conf"),
            "host all locked 127.0.0.1/32 scram-sha-256\n\
             host all all 127.0.0.1/32 trust\nlocal all all trust\n",
        )
        .unwrap();
        // Somebody else may take the port first: then another is tried.
        for _ in 0..10 {
            let port = free_port();
            let mut process = spawn(&programs, folder.path(), port);
            if wait_for_answer(&programs, port, &mut process) {
                return Self {
                    process,
                    programs,
                    folder,
                    port,
                    databases: AtomicU32::new(0),
                };
            }
        }
        panic!("postgres did not start");
    }

    /// Makes an empty database and answers with its name.
    pub fn create_database(&self) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("test{number}");
        self.execute("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    /// `postgresql://postgres@127.0.0.1:port/database`
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The port of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the server's Unix socket.
    pub fn socket_folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs SQL with `psql`, and answers with what it prints: rows in lines, columns by `|`.
    pub fn execute(&self, database: &str, sql: &str) -> String {
        let output = std::process::Command::new(self.programs.join("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .arg(self.url(database))
            .output()
            .unwrap();
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

    /// Starts the server again after [`PostgresServer::kill`], on the same port.
    pub fn restart(&mut self) {
        self.process = spawn(&self.programs, self.folder.path(), self.port);
        assert!(
            wait_for_answer(&self.programs, self.port, &mut self.process),
            "postgres did not start again"
        );
    }
}

/// The folder with the programs of the newest version that is installed.
fn programs() -> PathBuf {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .map(|version| version.unwrap().path().join("bin"))
        .filter(|programs| programs.join("postgres").exists())
        .collect();
    versions.sort();
    versions
        .pop()
        .expect("postgres is not there: is it installed?")
}

fn spawn(programs: &Path, folder: &Path, port: u16) -> Kept {
    // A crash is one of the processes alone: what is written stays written without a sync.
    let settings = [
        "listen_addresses=127.0.0.1".to_owned(),
        format!("port={port}"),
        format!("unix_socket_directories={}", folder.display()),
        "fsync=off".to_owned(),
        "shared_buffers=16MB".to_owned(),
        "max_connections=200".to_owned(),
    ];
    let mut server = command(&programs.join("postgres"), folder);
    server.arg("-D").arg(folder.join("data"));
    for setting in &settings {
        server.args(["-c", setting]);
    }
    Kept::spawn(server)
}

/// Waits until the server answers; `false` when it ends instead.
#[expect(
    clippy::disallowed_methods,
    reason = "a deadline for a server that never answers"
)]
fn wait_for_answer(programs: &Path, port: u16, server: &mut Kept) -> bool {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while std::time::Instant::now() < deadline {
        if server.process.try_wait().unwrap().is_some() {
            return false;
        }
        let answer = std::process::Command::new(programs.join("pg_isready"))
            .args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()])
            .status()
            .unwrap();
        if answer.success() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}
