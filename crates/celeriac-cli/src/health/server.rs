//! Answers probes while a worker lives, however many ask and whatever they send.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use celeriac_worker::vitals::{Health, Probe};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::http::{self, MAX_HEAD};
use super::place;
use super::report::Report;

/// Connections that are served at a time; others wait in the kernel.
const CONNECTIONS: usize = 16;
/// How long a client may take for its request, and for reading the answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(2);
/// How long the worker's wheel may take; whoever asks has a shorter patience of their own.
const WHEEL_PATIENCE: Duration = Duration::from_secs(10);
/// Before the next connection is taken when one could not be.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers for one worker.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    hostname: Arc<str>,
    probe: Probe,
    connections: Arc<Semaphore>,
}

/// The file of a socket, which is removed with the value.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // What somebody removed before us is as gone.
        drop(std::fs::remove_file(&self.0));
    }
}

impl Server {
    pub(crate) fn new(hostname: &str, probe: Probe) -> Self {
        Self {
            hostname: hostname.into(),
            probe,
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
        }
    }

    /// Answers `celeriac health`, and removes what dead workers have left.
    ///
    /// # Errors
    /// When there can be no socket.
    pub(crate) async fn answer_locally(&self) -> io::Result<SocketFile> {
        let path = place::for_worker(&self.hostname, std::process::id())?;
        if let Some(folder) = path.parent() {
            for socket in place::within(folder) {
                let reached = UnixStream::connect(&socket.path).await;
                let is_dead =
                    reached.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
                // In a container a new worker often has the number of the one before.
                if is_dead || socket.path == path {
                    drop(std::fs::remove_file(&socket.path));
                }
            }
        }
        let listener = UnixListener::bind(&path)?;
        let server = self.clone();
        tokio::spawn(async move {
            loop {
                let accepted = listener.accept().await.map(|(stream, _)| stream);
                server.take(accepted).await;
            }
        });
        Ok(SocketFile(path))
    }

    /// Answers HTTP probes at an address, such as `127.0.0.1:8080` or `:8080`.
    ///
    /// # Errors
    /// When nothing can listen there.
    pub(crate) async fn answer_at(&self, address: &str) -> io::Result<()> {
        let listener = match address.strip_prefix(':') {
            Some(port) => {
                // One socket for both families, but where there is no IPv6.
                match TcpListener::bind(format!("[::]:{port}")).await {
                    Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                        TcpListener::bind(format!("0.0.0.0:{port}")).await?
                    }
                    bound => bound?,
                }
            }
            None => TcpListener::bind(address).await?,
        };
        let server = self.clone();
        tokio::spawn(async move {
            loop {
                let accepted = listener.accept().await.map(|(stream, _)| stream);
                server.take(accepted).await;
            }
        });
        Ok(())
    }

    /// Serves a connection as soon as there is room for it.
    async fn take<S>(&self, accepted: io::Result<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match accepted {
            Ok(stream) => {
                let Ok(room) = Arc::clone(&self.connections).acquire_owned().await else {
                    return;
                };
                let server = self.clone();
                tokio::spawn(async move {
                    if let Err(error) = server.serve(stream).await {
                        tracing::debug!(%error, "a probe got no answer");
                    }
                    drop(room);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a probe can't be heard");
                sleep(PAUSE).await;
            }
        }
    }

    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let mut head = Vec::new();
        let reading = async {
            loop {
                if let Some(request) = http::read(&head) {
                    return Ok::<_, io::Error>(Some(request));
                }
                let room = (MAX_HEAD - head.len()) as u64;
                if (&mut stream).take(room).read_buf(&mut head).await? == 0 {
                    return Ok(None);
                }
            }
        };
        let Some(request) = timeout(CLIENT_PATIENCE, reading).await?? else {
            return Ok(());
        };
        let report = match request.wanted {
            http::Wanted::Refused(_) => None,
            http::Wanted::Answer(_) | http::Wanted::Report => {
                match timeout(WHEEL_PATIENCE, self.probe.health()).await {
                    Ok(health) => {
                        let health = health.unwrap_or_else(Health::leaving);
                        Some(Report::new(&self.hostname, health))
                    }
                    Err(_) => None,
                }
            }
        };
        let response = http::response(request, report.as_ref());
        let writing = async {
            stream.write_all(&response).await?;
            stream.shutdown().await
        };
        timeout(CLIENT_PATIENCE, writing).await?
    }
}

#[cfg(test)]
mod tests {
    use celeriac_worker::vitals::probes;

    use super::*;

    async fn answer_to(request: &[u8]) -> String {
        let (probe, probes) = probes();
        // Its worker has ended.
        drop(probes);
        let server = Server::new("w1@here", probe);
        let (mut client, served) = tokio::io::duplex(64 * 1024);
        let serving = tokio::spawn(async move { server.serve(served).await });
        // A server that has seen enough may not read the rest.
        drop(client.write_all(request).await);
        drop(client.shutdown().await);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        serving.await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn a_request_that_comes_in_pieces_is_answered() {
        let (probe, probes) = probes();
        drop(probes);
        let server = Server::new("w1@here", probe);
        let (mut client, served) = tokio::io::duplex(1024);
        let serving = tokio::spawn(async move { server.serve(served).await });
        for piece in ["GET /re", "adyz HTTP/1.1\r\nHo", "st: x\r\n\r", "\n"] {
            client.write_all(piece.as_bytes()).await.unwrap();
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        serving.await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("not ready: it has shut down, and leaves\n"));
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused_or_ended() {
        let endless = vec![b'x'; 3 * MAX_HEAD];
        for (request, expected) in [
            (&b"\x16\x03\x01\r\n\r\n"[..], "HTTP/1.1 400 "),
            (&endless, "HTTP/1.1 431 "),
            (b"GET /livez HTTP/1.1\r\n", ""),
            (b"", ""),
        ] {
            let answer = answer_to(request).await;
            assert!(answer.starts_with(expected), "{answer}");
            assert_eq!(answer.is_empty(), expected.is_empty(), "{answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_not_waited_for() {
        let (probe, _probes) = probes();
        let server = Server::new("w1@here", probe);
        let (mut client, served) = tokio::io::duplex(1024);
        client.write_all(b"GET /livez").await.unwrap();
        assert!(server.serve(served).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wheel_that_does_not_turn_is_dead() {
        let (probe, _probes) = probes();
        let server = Server::new("w1@here", probe);
        let (mut client, served) = tokio::io::duplex(1024);
        client
            .write_all(b"GET /livez HTTP/1.1\r\n\r\n")
            .await
            .unwrap();
        server.serve(served).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    }
}
