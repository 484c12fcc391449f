//! Connections: where the server is, and what is said to it first.
//!
//! Celery's counterpart: `kombu.transport.pyamqp.Transport.establish_connection`.

use std::time::Duration;

use celeriac_core::broker::{Error, ErrorKind};
use celeriac_net::ServerUrl;
use serde_json::Value;
use tokio::net::TcpStream;

use super::error::{broker_error, unsayable};
use super::table::Unsayable;
use super::wire::connection::{Channel, Connection, Login};
use super::wire::failure::Failure;
use crate::open::Options;

/// Celery's default `broker_connection_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Celery's default `broker_heartbeat`.
const HEARTBEAT: Duration = Duration::from_mins(2);
/// How long leaving in order may take.
const LEAVING: Duration = Duration::from_secs(5);

/// How to reach one server.
#[derive(Clone)]
pub(super) struct Address {
    host: String,
    port: u16,
    login: Login,
    timeout: Duration,
    tls: Option<Tls>,
}

/// How to talk to a server in secret.
#[cfg(feature = "tls")]
#[derive(Clone)]
struct Tls {
    connector: tokio_rustls::TlsConnector,
    server_name: rustls::pki_types::ServerName<'static>,
}

#[cfg(feature = "tls")]
impl Tls {
    fn new(host: &str, options: Option<&Value>) -> Result<Self, Error> {
        let invalid = |error: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Configuration, format!("broker_use_ssl: {error}"))
        };
        let config = celeriac_net::tls::client_config(options).map_err(|error| invalid(&error))?;
        let named = options.and_then(|options| options.get("server_hostname")?.as_str());
        let name = named.unwrap_or(host).to_owned();
        Ok(Self {
            connector: std::sync::Arc::new(config).into(),
            server_name: name.try_into().map_err(|error| invalid(&error))?,
        })
    }

    async fn log_in(&self, stream: TcpStream, login: &Login) -> Result<Connection, Failure> {
        let name = self.server_name.clone();
        let stream = self.connector.connect(name, stream).await?;
        Connection::open(stream, login).await
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
    async fn log_in(&self, _: TcpStream, _: &Login) -> Result<Connection, Failure> {
        match *self {}
    }
}

/// One connection.
pub(super) struct Link(Connection);

impl Address {
    /// The server that `url` names.
    ///
    /// # Errors
    /// When the vhost is no name, or TLS is asked of a build without it.
    pub(super) fn new(url: &ServerUrl, options: &Options) -> Result<Self, Error> {
        let is_tls = url.scheme() == "amqps" || options.ssl.is_some();
        let vhost = vhost(url.path());
        if vhost.len() > usize::from(u8::MAX) {
            return Err(unsayable(
                "the vhost in broker_url",
                &Unsayable::TooLong(vhost),
            ));
        }
        let named = url.host().unwrap_or("localhost").trim_matches(['[', ']']);
        let tls = is_tls
            .then(|| Tls::new(named, options.ssl.as_ref()))
            .transpose()?;
        let host = match named {
            "localhost" => "127.0.0.1",
            host => host,
        };
        let heartbeat = options.heartbeat.unwrap_or(HEARTBEAT).as_secs();
        Ok(Self {
            host: host.to_owned(),
            port: url.port().unwrap_or(if is_tls { 5671 } else { 5672 }),
            login: Login {
                username: url.username().unwrap_or("guest").to_owned(),
                password: url.password().unwrap_or("guest").to_owned(),
                method: options.login_method.clone(),
                vhost,
                heartbeat: u16::try_from(heartbeat).unwrap_or(u16::MAX),
                name: options.node.clone(),
            },
            timeout: options.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            tls,
        })
    }

    /// Connects and logs in.
    pub(super) async fn connect(&self) -> Result<Link, Error> {
        match tokio::time::timeout(self.timeout, self.open()).await {
            Ok(Ok(connection)) => Ok(Link(connection)),
            Ok(Err(failure)) => {
                let error = broker_error(&failure);
                let is_about_the_name = error.message.contains("not valid for name");
                Err(if is_about_the_name {
                    error.with_hint(
                        "set server_hostname in broker_use_ssl to a name in its certificate",
                    )
                } else {
                    error
                })
            }
            Err(_) => {
                let text = format!(
                    "the server does not answer within {} s",
                    self.timeout.as_secs_f64()
                );
                Err(Error::new(ErrorKind::Connection, text))
            }
        }
    }

    async fn open(&self) -> Result<Connection, Failure> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        // Acknowledgements are small, and wait for nothing.
        stream.set_nodelay(true)?;
        match &self.tls {
            Some(tls) => tls.log_in(stream, &self.login).await,
            None => Connection::open(stream, &self.login).await,
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
        self.0.is_alive()
    }

    /// Whether the server takes nothing that is published.
    pub(super) fn is_blocked(&self) -> bool {
        self.0.is_blocked()
    }

    /// A new channel.
    pub(super) async fn channel(&self) -> Result<Channel, Error> {
        let opened = self.0.channel().await;
        opened.map_err(|failure| broker_error(&failure))
    }

    /// Leaves in order.
    pub(super) async fn close(&self) -> Result<(), Error> {
        let closing = tokio::time::timeout(LEAVING, self.0.close());
        closing.await.map_err(|_| {
            let text = "the server does not answer";
            Error::new(ErrorKind::Connection, text)
        })
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
            assert_eq!(
                (&*address.host, address.port, &*address.login.vhost),
                (host, port, vhost),
                "{url}"
            );
            assert_eq!(address.login.username, "guest");
        }
        let url = ServerUrl::parse(&format!("amqp://h/{}", "x".repeat(256))).unwrap();
        assert!(Address::new(&url, &Options::default()).is_err());
    }
}
