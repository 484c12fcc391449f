//! Where the server is, from a URL of SQLAlchemy.
//!
//! Counterpart: `sqlalchemy.dialects.postgresql` and the connection strings of libpq.

use std::path::Path;
use std::time::Duration;

use celeriac_core::broker::Error;
use celeriac_net::ServerUrl;
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

use super::connection::Connection;
use crate::open::Options;
use crate::sql::server::{Given, invalid};

const PORT: u16 = 5432;
/// A peer that acknowledges nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(30);
/// Where Debian's servers and clients meet.
const SOCKET_FOLDER: &str = "/var/run/postgresql";

/// A server and a database, and as whom to use it.
pub struct Address {
    config: Config,
    connect_timeout: Duration,
    #[cfg(feature = "tls")]
    tls: super::tls::Tls,
}

impl Address {
    /// Reads the URL, and the options that are SQLAlchemy's `connect_args`.
    ///
    /// # Errors
    /// When one of them makes no sense.
    pub fn new(url: &ServerUrl, options: &Options) -> Result<Self, Error> {
        let given = Given { url, options };
        let option = |name: &str| given.text(name);

        let mut config = Config::new();
        config.application_name(option("application_name").unwrap_or("celeriac"));
        if let Some(user) = url.username().or_else(|| option("user")) {
            config.user(user);
        }
        if let Some(password) = url.password().or_else(|| option("password")) {
            config.password(password);
        }
        let database = Some(url.path().trim_start_matches('/'))
            .filter(|name| !name.is_empty())
            .or_else(|| option("dbname"));
        if let Some(database) = database {
            config.dbname(database);
        }
        if let Some(options) = option("options") {
            config.options(options);
        }
        let default_host = if Path::new(SOCKET_FOLDER).is_dir() {
            SOCKET_FOLDER
        } else {
            "localhost"
        };
        let host = given.host().unwrap_or(default_host);
        let port = given.port(PORT)?;
        let connect_timeout = given.connect_timeout()?;
        config
            .host(host)
            .port(port)
            .connect_timeout(connect_timeout)
            .keepalives_idle(SILENCE)
            .tcp_user_timeout(SILENCE);

        let mode = option("sslmode").unwrap_or("prefer");
        config.ssl_mode(match mode {
            "disable" => SslMode::Disable,
            "allow" | "prefer" => SslMode::Prefer,
            "require" | "verify-ca" | "verify-full" => SslMode::Require,
            other => return Err(invalid(&format!("sslmode {other:?} is unknown"))),
        });
        #[cfg(not(feature = "tls"))]
        if config.get_ssl_mode() == SslMode::Require {
            return Err(invalid(&format!("sslmode is {mode}"))
                .with_hint("this build of celeriac has no TLS"));
        }
        Ok(Self {
            connect_timeout,
            #[cfg(feature = "tls")]
            tls: super::tls::Tls::new(mode, option)?,
            config,
        })
    }

    /// Connects.
    ///
    /// # Errors
    /// When the server can't be reached, or refuses.
    pub async fn connect(&self) -> Result<Connection, Error> {
        #[cfg(feature = "tls")]
        let tls = self.tls.clone();
        #[cfg(not(feature = "tls"))]
        let tls = tokio_postgres::NoTls;
        Connection::open(&self.config, tls, self.connect_timeout).await
    }
}

#[cfg(test)]
mod tests {
    use celeriac_core::broker::ErrorKind;
    use tokio_postgres::config::Host;

    use super::*;

    fn address(url: &str) -> Result<Address, Error> {
        Address::new(&ServerUrl::parse(url).unwrap(), &Options::default())
    }

    #[test]
    fn urls_of_sqlalchemy_are_understood() {
        let tcp = |host: &str| Host::Tcp(host.to_owned());
        for (url, host, port) in [
            ("sqla+postgresql://u:p@h:5433/db", tcp("h"), 5433),
            ("postgresql+psycopg2://u@h/db", tcp("h"), 5432),
            ("postgres://[::1]/db", tcp("::1"), 5432),
            (
                "sqla+postgresql://u@/db?host=/run/pg&port=6000",
                Host::Unix("/run/pg".into()),
                6000,
            ),
            (
                "sqla+postgresql:///db?host=h&sslmode=disable",
                tcp("h"),
                5432,
            ),
        ] {
            let config = address(url).unwrap().config;
            assert_eq!(config.get_hosts(), [host], "{url}");
            assert_eq!(config.get_ports(), [port], "{url}");
            assert_eq!(config.get_dbname(), Some("db"), "{url}");
        }
    }

    #[test]
    fn a_port_may_be_a_number_among_the_options() {
        let mut options = Options::default();
        let arguments = serde_json::json!({"host": "h", "port": 6000});
        options
            .transport
            .insert("connect_args".to_owned(), arguments);
        let url = ServerUrl::parse("sqla+postgresql:///db").unwrap();
        let config = Address::new(&url, &options).unwrap().config;
        assert_eq!(config.get_hosts(), [Host::Tcp("h".to_owned())]);
        assert_eq!(config.get_ports(), [6000]);
    }

    #[test]
    fn user_password_and_options_are_decoded() {
        let url = "sqla+postgresql://u%40x:p%2Fw@h/d%20b?options=-csearch_path%3Dapp";
        let config = address(url).unwrap().config;
        assert_eq!(config.get_user(), Some("u@x"));
        assert_eq!(config.get_password(), Some(&b"p/w"[..]));
        assert_eq!(config.get_dbname(), Some("d b"));
        assert_eq!(config.get_options(), Some("-csearch_path=app"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for query in ["sslmode=maybe", "port=x", "connect_timeout=soon"] {
            let error = address(&format!("sqla+postgresql://u:secret@/db?{query}"))
                .err()
                .unwrap();
            assert_eq!(error.kind, ErrorKind::Configuration, "{query}");
            assert!(!error.to_string().contains("secret"));
        }
    }
}
