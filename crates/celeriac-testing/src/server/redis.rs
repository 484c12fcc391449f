//! A Redis server of the test's own.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use tempfile::TempDir;

use super::{free_port, spawn};

/// A running `redis-server`.
pub struct RedisServer {
    process: Child,
    folder: TempDir,
    port: u16,
    options: Vec<String>,
}

impl RedisServer {
    /// Starts a server and waits until it answers.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with more options, such as `["--requirepass", "secret"]`.
    pub fn start_with(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        // Somebody else may take the port first: then another is tried.
        for _ in 0..10 {
            let port = free_port();
            let mut process = Self::spawn(port, &folder, &options);
            if wait_for_answer(port, &mut process) {
                return Self {
                    process,
                    folder,
                    port,
                    options,
                };
            }
            drop(process.kill());
            drop(process.wait());
        }
        panic!("redis-server did not start");
    }

    fn spawn(port: u16, folder: &TempDir, options: &[String]) -> Child {
        let path = folder.path();
        let mut arguments: Vec<String> = [
            "--bind",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            path.to_str().unwrap(),
            "--unixsocket",
            path.join("redis.sock").to_str().unwrap(),
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.extend_from_slice(options);
        spawn("redis-server", &arguments)
    }

    /// `redis://127.0.0.1:port/database`
    pub fn url(&self, database: u8) -> String {
        format!("redis://127.0.0.1:{}/{database}", self.port)
    }

    /// The port of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    /// Ends the server at once, as a crash does.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Stops the server without a word, as a machine that hangs does.
    pub fn stop(&self) {
        super::signal(&self.process, "STOP");
    }

    /// Has it go on after [`RedisServer::stop`].
    pub fn resume(&self) {
        super::signal(&self.process, "CONT");
    }

    /// Starts the server again after [`RedisServer::kill`], on the same port, with what it kept.
    pub fn restart(&mut self) {
        self.process = Self::spawn(self.port, &self.folder, &self.options);
        assert!(
            wait_for_answer(self.port, &mut self.process),
            "redis-server did not start again"
        );
    }

    /// Sends a command and returns the raw answer.
    pub fn command(&self, parts: &[&[u8]]) -> Vec<u8> {
        send(self.port, None, parts)
    }
}

/// Sends a command and returns the raw answer.
pub(super) fn send(port: u16, password: Option<&str>, parts: &[&[u8]]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    if let Some(password) = password {
        ask(&mut stream, &[b"AUTH", password.as_bytes()]);
    }
    ask(&mut stream, parts)
}

fn ask(stream: &mut TcpStream, parts: &[&[u8]]) -> Vec<u8> {
    let mut request = format!("*{}\r\n", parts.len()).into_bytes();
    for part in parts {
        request.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        request.extend_from_slice(part);
        request.extend_from_slice(b"\r\n");
    }
    stream.write_all(&request).unwrap();
    let mut answer = vec![0; 65536];
    let length = stream.read(&mut answer).unwrap();
    answer.truncate(length);
    answer
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Waits until the server answers; `false` when it ends instead.
#[expect(
    clippy::disallowed_methods,
    reason = "a deadline for a server that never answers"
)]
pub(super) fn wait_for_answer(port: u16, process: &mut Child) -> bool {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while std::time::Instant::now() < deadline {
        if process.try_wait().unwrap().is_some() {
            return false;
        }
        let answered = TcpStream::connect(("127.0.0.1", port)).is_ok_and(|mut stream| {
            let mut answer = [0; 1];
            stream
                .set_read_timeout(Some(Duration::from_secs(1)))
                .unwrap();
            // -NOAUTH is an answer, -LOADING is none.
            stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut answer).is_ok()
        });
        if answered {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}
