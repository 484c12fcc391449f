//! Two Redis servers, one the other's replica, and a sentinel that watches them.

use std::process::Child;
use std::time::Duration;

use tempfile::TempDir;

use super::redis::{RedisServer, send, wait_for_answer};
use super::{free_port, spawn};

/// The name that the sentinel gives the master.
pub const MASTER_NAME: &str = "celeriac-test";
/// Longer than a promotion takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A master with a replica, and a sentinel that promotes the replica when the master was silent for
/// a second.
pub struct WatchedRedis {
    servers: [RedisServer; 2],
    sentinel: Child,
    port: u16,
    password: Option<String>,
    _folder: TempDir,
}

impl WatchedRedis {
    /// Starts all three and waits until the replica could be promoted.
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// Starts all three with a password that the servers and the sentinel ask for.
    pub fn start_with(password: Option<&str>) -> Self {
        let mut options = Vec::new();
        if let Some(password) = password {
            options.extend(["--requirepass", password, "--masterauth", password]);
        }
        let master = RedisServer::start_with(&options);
        let port = master.port().to_string();
        options.extend([
            "--replicaof",
            "127.0.0.1",
            &port,
            "--repl-diskless-sync-delay",
            "0",
        ]);
        let replica = RedisServer::start_with(&options);

        let folder = tempfile::tempdir().unwrap();
        let (sentinel, port) = Self::start_sentinel(&folder, master.port(), password);
        let watched = Self {
            servers: [master, replica],
            sentinel,
            port,
            password: password.map(str::to_owned),
            _folder: folder,
        };
        watched.wait(|watched| {
            let replicas = watched.ask(&[b"SENTINEL", b"REPLICAS", MASTER_NAME.as_bytes()]);
            replicas.contains("master-link-status") && replicas.contains("\nok\r\n")
        });
        watched
    }

    fn start_sentinel(folder: &TempDir, master: u16, password: Option<&str>) -> (Child, u16) {
        let path = folder.path().join("sentinel.conf");
        // Somebody else may take the port first: then another is tried.
        for _ in 0..10 {
            let port = free_port();
            let login = password.map_or_else(String::new, |password| {
                format!("requirepass {password}\nsentinel auth-pass {MASTER_NAME} {password}\n")
            });
            let configuration = format!(
                "bind 127.0.0.1\nport {port}\ndir {}\n\
                 sentinel monitor {MASTER_NAME} 127.0.0.1 {master} 1\n\
                 sentinel down-after-milliseconds {MASTER_NAME} 1000\n\
                 sentinel failover-timeout {MASTER_NAME} 5000\n{login}",
                folder.path().display()
            );
            std::fs::write(&path, configuration).unwrap();
            let arguments = [path.to_str().unwrap(), "--sentinel"].map(str::to_owned);
            let mut process = spawn("redis-server", &arguments);
            if wait_for_answer(port, &mut process) {
                return (process, port);
            }
            drop(process.kill());
            drop(process.wait());
        }
        panic!("the sentinel did not start");
    }

    /// The URLs of two sentinels, of which one is not there.
    pub fn url(&self, database: u8) -> String {
        let login = match &self.password {
            Some(password) => format!(":{password}@"),
            None => String::new(),
        };
        let port = self.port;
        format!("sentinel://{login}127.0.0.1:1/{database};sentinel://127.0.0.1:{port}/{database}")
    }

    /// Which server the sentinel takes for the master.
    pub fn master(&self) -> &RedisServer {
        &self.servers[self.master_index()]
    }

    fn master_index(&self) -> usize {
        let command = [
            &b"SENTINEL"[..],
            b"GET-MASTER-ADDR-BY-NAME",
            MASTER_NAME.as_bytes(),
        ];
        let answer = self.ask(&command);
        let is_at = |server: &RedisServer| answer.contains(&format!("\n{}\r\n", server.port()));
        self.servers.iter().position(is_at).unwrap()
    }

    /// Waits until the replica has everything.
    pub fn replicate(&self) {
        self.wait(|watched| {
            watched.send_to(watched.master(), &[b"WAIT", b"1", b"1000"]) == ":1\r\n"
        });
    }

    /// Has the sentinel promote the replica, and waits until it has.
    pub fn promote(&self) {
        let before = self.master_index();
        let answer = self.ask(&[b"SENTINEL", b"FAILOVER", MASTER_NAME.as_bytes()]);
        assert_eq!(answer, "+OK\r\n");
        self.wait(|watched| watched.master_index() != before);
    }

    /// Ends the master at once, as a crash does. The sentinel notices by itself.
    pub fn kill_master(&mut self) {
        let at = self.master_index();
        self.servers[at].kill();
    }

    fn ask(&self, parts: &[&[u8]]) -> String {
        self.send(self.port, parts)
    }

    fn send_to(&self, server: &RedisServer, parts: &[&[u8]]) -> String {
        self.send(server.port(), parts)
    }

    /// Sends a command to a server or the sentinel and returns the raw answer.
    fn send(&self, port: u16, parts: &[&[u8]]) -> String {
        let answer = send(port, self.password.as_deref(), parts);
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a deadline for a promotion that never comes"
    )]
    fn wait(&self, is_done: impl Fn(&Self) -> bool) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while !is_done(self) {
            assert!(std::time::Instant::now() < deadline, "no promotion");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for WatchedRedis {
    fn drop(&mut self) {
        drop(self.sentinel.kill());
        drop(self.sentinel.wait());
    }
}
