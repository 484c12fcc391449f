//! Connections: where the server is, and what is said to it first.
//!
//! Celery's counterpart: `kombu.transport.pyamqp.Transport.establish_connection`.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use celeriac_core::broker::{Error, ErrorKind};
use celeriac_net::ServerUrl;
use futures_util::{AsyncRead, AsyncWrite};
use lapin::tcp::{AMQPUriTcpExt as _, TLSConfig};
use lapin::types::ShortString;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties};

use serde_json::Value;

use super::error::broker_error;
use crate::open::Options;

/// Celery's default `broker_connection_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Celery's default `broker_heartbeat`.
const HEARTBEAT: Duration = Duration::from_mins(2);
/// How long leaving in order may take.
const LEAVING: Duration = Duration::from_secs(5);
/// AMQP's code for leaving in order.
const SUCCESS: u16 = 200;

/// How to reach one server.
#[derive(Clone)]
pub(super) struct Address {
    uri: AMQPUri,
    timeout: Duration,
    node: Option<String>,
    tls: Option<Tls>,
}

/// How to talk to a server in secret.
#[cfg(feature = "tls")]
#[derive(Clone)]
struct Tls {
    connector: lapin::tcp::RustlsConnector,
    server_name: String,
}

#[cfg(feature = "tls")]
impl Tls {
    fn new(host: &str, options: Option<&Value>) -> Result<Self, Error> {
        let config = celeriac_net::tls::client_config(options).map_err(|error| {
            Error::new(ErrorKind::Configuration, format!("broker_use_ssl: {error}"))
        })?;
        let named = options.and_then(|options| options.get("server_hostname")?.as_str());
        Ok(Self {
            connector: config.into(),
            server_name: named.unwrap_or(host).to_owned(),
        })
    }

    async fn wrap<S>(&self, stream: AsyncTcpStream<S>) -> std::io::Result<AsyncTcpStream<S>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        stream.into_rustls(&self.connector, &self.server_name).await
    }
}

/// There is none in this build.
#[cfg(not(feature = "tls"))]
#[derive(Clone)]
enum Tls {}

#[cfg(not(feature = "tls"))]
impl Tls {
    fn new(_: &str, _: Option<&Value>) -> Result<Self, Error> {
        let text = "broker_url: this build of celeriac has no TLS (cargo feature `tls`)";
        Err(Error::new(ErrorKind::Configuration, text))
    }

    #[expect(clippy::unused_async, reason = "with TLS it waits")]
    async fn wrap<S>(&self, _: AsyncTcpStream<S>) -> std::io::Result<AsyncTcpStream<S>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        match *self {}
    }
}

/// One connection.
pub(super) struct Link {
    connection: Connection,
    socket: Socket,
}

/// The socket below a connection, to be cut when the client library would wait for ever.
#[derive(Clone, Default)]
struct Socket(Arc<Mutex<Option<TcpStream>>>);

impl Socket {
    fn keep(&self, stream: TcpStream) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
    }

    fn cut(&self) {
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(stream) = stream {
            // One that is closed already is as good.
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

impl Address {
    /// The server that `url` names.
    ///
    /// # Errors
    /// When the vhost is no name, or TLS is asked of a build without it.
    pub(super) fn new(url: &ServerUrl, options: &Options) -> Result<Self, Error> {
        let is_tls = url.scheme() == "amqps" || options.ssl.is_some();
        let vhost = vhost(url.path());
        if ShortString::try_new(vhost.as_str()).is_err() {
            let text = "broker_url: the vhost is longer than the 255 bytes that AMQP allows";
            return Err(Error::new(ErrorKind::Configuration, text));
        }
        let host = match url.host().unwrap_or("localhost") {
            "localhost" => "127.0.0.1",
            host => host.trim_matches(['[', ']']),
        };
        let tls = is_tls
            .then(|| Tls::new(host, options.ssl.as_ref()))
            .transpose()?;
        let heartbeat = options.heartbeat.unwrap_or(HEARTBEAT).as_secs();
        Ok(Self {
            uri: AMQPUri {
                scheme: AMQPScheme::AMQP,
                authority: AMQPAuthority {
                    userinfo: AMQPUserInfo {
                        username: url.username().unwrap_or("guest").to_owned(),
                        password: url.password().unwrap_or("guest").to_owned(),
                    },
                    host: host.to_owned(),
                    port: url.port().unwrap_or(if is_tls { 5671 } else { 5672 }),
                },
                vhost,
                query: AMQPQueryString {
                    heartbeat: Some(u16::try_from(heartbeat).unwrap_or(u16::MAX)),
                    ..AMQPQueryString::default()
                },
            },
            timeout: options.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            node: options.node.clone(),
            tls,
        })
    }

    /// Connects and logs in.
    pub(super) async fn connect(&self) -> Result<Link, Error> {
        let mut properties = ConnectionProperties::default()
            .with_client_property("product".into(), "celeriac".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        if let Some(node) = &self.node {
            properties = properties.with_connection_name(node.as_str().into());
        }
        let socket = Socket::default();
        let runtime = lapin::runtime::default_runtime().map_err(|error| broker_error(&error))?;
        let kept = socket.clone();
        let timeout = self.timeout;
        let tls = self.tls.clone();
        let connecting = Connection::connector(
            self.uri.clone(),
            runtime,
            async move |uri, runtime| {
                let connecting = uri.connect_with_config_async(TLSConfig::default(), &runtime);
                let stream = tokio::time::timeout(timeout, connecting)
                    .await
                    .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))?;
                if let AsyncTcpStream::Plain(stream) = &stream {
                    let stream = stream.get_ref();
                    // Acknowledgements are small, and wait for nothing.
                    stream.set_nodelay(true)?;
                    kept.keep(TcpStream::from(stream.as_fd().try_clone_to_owned()?));
                }
                match &tls {
                    Some(tls) => Ok(tokio::time::timeout(timeout, tls.wrap(stream))
                        .await
                        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))?),
                    None => Ok(stream),
                }
            },
            properties,
        );
        match tokio::time::timeout(self.timeout, connecting).await {
            Ok(Ok(connection)) => Ok(Link { connection, socket }),
            Ok(Err(error)) => {
                socket.cut();
                Err(broker_error(&error))
            }
            Err(_) => {
                socket.cut();
                let text = format!(
                    "the server does not answer within {} s",
                    self.timeout.as_secs_f64()
                );
                Err(Error::new(ErrorKind::Connection, text))
            }
        }
    }
}

/// kombu's reading of a URL's path: what follows the first slash, `/` where that is nothing.
fn vhost(path: &str) -> String {
    let name = path.strip_prefix('/').unwrap_or(path);
    if name.is_empty() { "/" } else { name }.to_owned()
}

impl Link {
    /// Whether it is still there, as far as is known.
    pub(super) fn is_alive(&self) -> bool {
        self.connection.status().connected()
    }

    /// Whether the server takes nothing that is published.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// A new channel.
    pub(super) async fn channel(&self) -> Result<Channel, Error> {
        self.connection
            .create_channel()
            .await
            .map_err(|error| broker_error(&error))
    }

    /// Leaves in order.
    pub(super) async fn close(&self) -> Result<(), Error> {
        let closing = self.connection.close(SUCCESS, "OK".into());
        match tokio::time::timeout(LEAVING, closing).await {
            Ok(closed) => closed.map_err(|error| broker_error(&error)),
            Err(_) => {
                self.socket.cut();
                let text = "the server does not answer";
                Err(Error::new(ErrorKind::Connection, text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_kombu_reads_them() {
        for (url, host, port, vhost) in [
            ("amqp://", "127.0.0.1", 5672, "/"),
            ("amqp://localhost/", "127.0.0.1", 5672, "/"),
            ("amqp://host:5673//", "host", 5673, "/"),
            ("amqp://host/%2f", "host", 5672, "/"),
            ("amqp://host/%2Fprod", "host", 5672, "/prod"),
            ("pyamqp://host/prod%20x", "host", 5672, "prod x"),
            ("amqp://[::1]/v", "::1", 5672, "v"),
        ] {
            let url = ServerUrl::parse(url).unwrap();
            let address = Address::new(&url, &Options::default()).unwrap();
            let authority = &address.uri.authority;
            assert_eq!(
                (
                    authority.host.as_str(),
                    authority.port,
                    address.uri.vhost.as_str()
                ),
                (host, port, vhost),
                "{url}"
            );
            assert_eq!(authority.userinfo.username, "guest");
        }
        let url = ServerUrl::parse(&format!("amqp://h/{}", "x".repeat(256))).unwrap();
        assert!(Address::new(&url, &Options::default()).is_err());
    }
}
