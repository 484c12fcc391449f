//! Connections to Redis and servers that speak its protocol.
//!
//! Celery's counterpart: `kombu.transport.redis.Channel._connparams`.

use std::path::PathBuf;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _,
    ProtocolVersion, PushInfo, RedisConnectionInfo,
};
use serde_json::Value;

use crate::ServerUrl;
use crate::sentinel::Sentinels;

/// How long a command may take before the connection counts as dead. A closed connection is
/// noticed at once; this is for one that died without a word (kombu: `health_check_interval`).
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(25);

/// How to reach one Redis server.
#[derive(Debug, Clone)]
pub struct RedisAddress {
    info: ConnectionInfo,
    certificates: Option<redis::TlsCertificates>,
    connect_timeout: Duration,
}

/// What in a URL or in the options makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum InvalidAddress {
    /// The database is no number.
    #[error("the database is a number from 0, not {0:?}")]
    Database(String),
    /// A certificate or key can't be read.
    #[error("{option} = {path:?} can't be read: {error}")]
    Certificate {
        /// The option that names the file.
        option: &'static str,
        /// The file.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Only one of the client's certificate and key is given.
    #[error("ssl_certfile and ssl_keyfile belong together: one of them is missing")]
    HalfCertificate,
    /// Sentinels are named, but not what they watch.
    #[error(
        "broker_transport_options: master_name is missing: the sentinels watch several masters"
    )]
    NoMasterName,
    /// TLS is asked of a build without it.
    #[error("this build of celeriac has no TLS (cargo feature `tls`)")]
    NoTls,
    /// The client library refuses the parts together.
    #[error("{0}")]
    Refused(String),
}

impl RedisAddress {
    /// The server that `url` names, with the TLS options that kombu takes from `broker_use_ssl` or
    /// the URL's query.
    ///
    /// # Errors
    /// When the database is no number or a certificate can't be read.
    pub fn new(
        url: &ServerUrl,
        ssl: Option<&Value>,
        connect_timeout: Duration,
    ) -> Result<Self, InvalidAddress> {
        let is_socket = url.scheme().ends_with("+socket") || url.scheme() == "unix";
        let database = if is_socket {
            url.query("virtual_host").unwrap_or("0")
        } else {
            Some(url.path().trim_matches('/'))
                .filter(|path| !path.is_empty())
                .unwrap_or("0")
        };
        let database = database
            .trim_matches('/')
            .parse::<u32>()
            .map_err(|_| InvalidAddress::Database(database.to_owned()))?;

        let mut settings = RedisConnectionInfo::default().set_db(i64::from(database));
        if let Some(username) = url.username() {
            settings = settings.set_username(username);
        }
        if let Some(password) = url.password() {
            settings = settings.set_password(password);
        }

        let host = url
            .host()
            .unwrap_or("127.0.0.1")
            .trim_matches(['[', ']'])
            .to_owned();
        let port = url.port().unwrap_or(6379);
        let mut certificates = None;
        let address = if is_socket {
            ConnectionAddr::Unix(PathBuf::from(url.path()))
        } else if url.scheme() == "rediss" || ssl.is_some() {
            let tls = TlsOptions { ssl, url };
            certificates = tls.certificates()?;
            tls.address(host, port)?
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        let info = address
            .into_connection_info()
            .map_err(|error| InvalidAddress::Refused(error.to_string()))?
            .set_redis_settings(settings);
        Ok(Self {
            info,
            certificates,
            connect_timeout,
        })
    }

    /// The same on another host.
    #[must_use]
    pub fn at(&self, host: &str, port: u16) -> Self {
        let host = host.trim_matches(['[', ']']).to_owned();
        let address = match self.info.addr().clone() {
            #[cfg(feature = "tls")]
            ConnectionAddr::TcpTls {
                insecure,
                tls_params,
                ..
            } => ConnectionAddr::TcpTls {
                host,
                port,
                insecure,
                tls_params,
            },
            _ => ConnectionAddr::Tcp(host, port),
        };
        Self {
            info: self.info.clone().set_addr(address),
            ..self.clone()
        }
    }

    /// The same as another user, on the first database.
    #[must_use]
    pub fn as_user(&self, username: Option<&str>, password: Option<&str>) -> Self {
        let mut settings = RedisConnectionInfo::default();
        if let Some(username) = username {
            settings = settings.set_username(username);
        }
        if let Some(password) = password {
            settings = settings.set_password(password);
        }
        Self {
            info: self.info.clone().set_redis_settings(settings),
            ..self.clone()
        }
    }

    /// User, password and database.
    #[cfg(test)]
    pub(crate) fn login(&self) -> (Option<&str>, Option<&str>, i64) {
        let settings = self.info.redis_settings();
        (settings.username(), settings.password(), settings.db())
    }

    /// Connects with RESP3, so that the server can push; `on_push` is given what it pushes.
    ///
    /// # Errors
    /// Whatever the client library says; a server older than Redis 6 refuses RESP3.
    pub async fn connect_with_pushes(
        &self,
        on_push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<MultiplexedConnection, redis::RedisError> {
        let settings = self
            .info
            .redis_settings()
            .clone()
            .set_protocol(ProtocolVersion::RESP3);
        let sender = move |push| {
            on_push(push);
            Ok::<(), redis::aio::SendError>(())
        };
        self.client(settings)?
            .get_multiplexed_async_connection_with_config(&self.config().set_push_sender(sender))
            .await
    }

    /// Connects with RESP2, which every server speaks.
    ///
    /// # Errors
    /// Whatever the client library says.
    pub async fn connect(&self) -> Result<MultiplexedConnection, redis::RedisError> {
        self.client(self.info.redis_settings().clone())?
            .get_multiplexed_async_connection_with_config(&self.config())
            .await
    }

    fn config(&self) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
    }

    fn client(&self, settings: RedisConnectionInfo) -> Result<Client, redis::RedisError> {
        let info = self.info.clone().set_redis_settings(settings);
        #[cfg(feature = "tls")]
        if let Some(certificates) = &self.certificates {
            return Client::build_with_tls(info, certificates.clone());
        }
        Client::open(info)
    }
}

/// A Redis server, or whoever knows where it is.
#[derive(Debug, Clone)]
pub enum RedisServer {
    /// Always there.
    At(RedisAddress),
    /// The master that sentinels watch: asked for with each connection.
    Watched(Sentinels),
}

impl RedisServer {
    /// See [`RedisAddress::connect_with_pushes`].
    ///
    /// # Errors
    /// Whatever the client library says.
    pub async fn connect_with_pushes(
        &self,
        on_push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<MultiplexedConnection, redis::RedisError> {
        match self {
            Self::At(address) => address.connect_with_pushes(on_push).await,
            Self::Watched(sentinels) => sentinels.connect_with_pushes(on_push).await,
        }
    }

    /// See [`RedisAddress::connect`].
    ///
    /// # Errors
    /// Whatever the client library says.
    pub async fn connect(&self) -> Result<MultiplexedConnection, redis::RedisError> {
        match self {
            Self::At(address) => address.connect().await,
            Self::Watched(sentinels) => sentinels.connect().await,
        }
    }
}

impl std::fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.info.addr())
    }
}

/// The options of TLS, from `broker_use_ssl` or from the URL.
struct TlsOptions<'a> {
    ssl: Option<&'a Value>,
    url: &'a ServerUrl,
}

impl TlsOptions<'_> {
    fn text(&self, name: &str) -> Option<String> {
        match self.ssl.and_then(|ssl| ssl.get(name)) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Null) | None => self.url.query(name).map(str::to_owned),
            Some(other) => Some(other.to_string()),
        }
    }

    /// `ssl_cert_reqs` in any of its spellings: `CERT_NONE`, `none`, or Python's number 0.
    fn verifies(&self) -> bool {
        let requirement = self
            .text("ssl_cert_reqs")
            .unwrap_or_default()
            .to_lowercase();
        !matches!(requirement.as_str(), "cert_none" | "none" | "0")
    }

    #[cfg(feature = "tls")]
    #[expect(clippy::unnecessary_wraps, reason = "without TLS it fails")]
    fn address(&self, host: String, port: u16) -> Result<ConnectionAddr, InvalidAddress> {
        let mut address = ConnectionAddr::TcpTls {
            host,
            port,
            insecure: !self.verifies(),
            tls_params: None,
        };
        let checks_name = self
            .text("ssl_check_hostname")
            .is_none_or(|text| text != "false");
        address.set_danger_accept_invalid_hostnames(!checks_name);
        Ok(address)
    }

    #[cfg(not(feature = "tls"))]
    fn address(&self, _: String, _: u16) -> Result<ConnectionAddr, InvalidAddress> {
        let _ = self.verifies();
        Err(InvalidAddress::NoTls)
    }

    fn certificates(&self) -> Result<Option<redis::TlsCertificates>, InvalidAddress> {
        let read = |option: &'static str| match self.text(option) {
            None => Ok(None),
            Some(path) => {
                std::fs::read(&path)
                    .map(Some)
                    .map_err(|error| InvalidAddress::Certificate {
                        option,
                        path,
                        error,
                    })
            }
        };
        let root_cert = read("ssl_ca_certs")?;
        let client_tls = match (read("ssl_certfile")?, read("ssl_keyfile")?) {
            (Some(client_cert), Some(client_key)) => Some(redis::ClientTlsConfig {
                client_cert,
                client_key,
            }),
            (None, None) => None,
            _ => return Err(InvalidAddress::HalfCertificate),
        };
        Ok(
            (root_cert.is_some() || client_tls.is_some()).then_some(redis::TlsCertificates {
                client_tls,
                root_cert,
            }),
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn address(url: &str, ssl: Option<&Value>) -> Result<RedisAddress, InvalidAddress> {
        RedisAddress::new(&ServerUrl::parse(url).unwrap(), ssl, Duration::from_secs(4))
    }

    #[test]
    fn every_form_of_url_is_understood() {
        for (url, shown, database) in [
            ("redis://localhost", "localhost:6379", 0),
            ("redis://localhost:6380/3", "localhost:6380", 3),
            ("redis://:pw@127.0.0.1:6379//", "127.0.0.1:6379", 0),
            ("redis://[::1]:6379/1", "::1:6379", 1),
            (
                "redis+socket:///run/redis.sock?virtual_host=4",
                "/run/redis.sock",
                4,
            ),
        ] {
            let address = address(url, None).unwrap();
            assert_eq!(address.to_string(), shown, "{url}");
            assert_eq!(address.info.redis_settings().db(), database, "{url}");
        }
    }

    #[test]
    fn a_database_that_is_no_number_is_refused() {
        for url in [
            "redis://localhost/x",
            "redis://localhost/-1",
            "redis+socket:///s?virtual_host=q",
        ] {
            assert!(
                matches!(address(url, None), Err(InvalidAddress::Database(_))),
                "{url}"
            );
        }
    }

    #[test]
    #[cfg(feature = "tls")]
    fn tls_comes_from_the_scheme_or_the_options() {
        let insecure = |address: &RedisAddress| match address.info.addr() {
            ConnectionAddr::TcpTls { insecure, .. } => Some(*insecure),
            _ => None,
        };
        assert_eq!(insecure(&address("rediss://h", None).unwrap()), Some(false));
        assert_eq!(insecure(&address("redis://h", None).unwrap()), None);
        let none = json!({"ssl_cert_reqs": "CERT_NONE"});
        assert_eq!(
            insecure(&address("redis://h", Some(&none)).unwrap()),
            Some(true)
        );
        assert_eq!(
            insecure(&address("rediss://h/0?ssl_cert_reqs=none", None).unwrap()),
            Some(true)
        );

        let missing = json!({"ssl_ca_certs": "/does/not/exist.pem"});
        let error = address("rediss://h", Some(&missing)).unwrap_err();
        assert!(error.to_string().contains("ssl_ca_certs"), "{error}");
    }
}
