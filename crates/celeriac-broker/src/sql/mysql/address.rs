//! Where the server is, from a URL of SQLAlchemy.
//!
//! Counterpart: `sqlalchemy.dialects.mysql`, and the arguments of mysqlclient and PyMySQL.

use std::time::Duration;

use celeriac_core::broker::Error;
use celeriac_net::ServerUrl;
use mysql_async::{Opts, OptsBuilder};

use super::connection::Connection;
use crate::open::Options;
use crate::sql::server::{Given, invalid};

const PORT: u16 = 3306;
/// Between two signs of life on a silent connection.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// What the server is told of a connection: not to lock what is only looked at; to end one that was
/// silent for so long, and with it the transaction; and to wait for a lock no longer than an answer
/// is waited for.
const SETUP: [&str; 2] = [
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET SESSION autocommit = 1, wait_timeout = 60, innodb_lock_wait_timeout = 10,
                 sql_mode = 'STRICT_TRANS_TABLES'",
];

/// A server and a database, and as whom to use it.
pub struct Address {
    options: Opts,
    connect_timeout: Duration,
}

impl Address {
    /// Reads the URL, and the options that are SQLAlchemy's `connect_args`.
    ///
    /// # Errors
    /// When one of them makes no sense.
    pub fn new(url: &ServerUrl, options: &Options) -> Result<Self, Error> {
        let given = Given { url, options };
        let option = |name: &str| given.text(name);

        let database = url.path().trim_start_matches('/');
        if database.is_empty() {
            return Err(invalid("the name of the database is missing")
                .with_hint("sqla+mysql://user:password@host/database"));
        }
        let host = given.host().unwrap_or("localhost");
        let port = given.port(PORT)?;
        let socket = option("unix_socket");
        let connect_timeout = given.connect_timeout()?;
        let builder = OptsBuilder::default()
            .ip_or_hostname(host)
            .tcp_port(port)
            .socket(socket)
            // Another way to the same server would surprise those who named one.
            .prefer_socket(false)
            .tcp_keepalive(Some(KEEPALIVE))
            .user(url.username().or_else(|| option("user")))
            .pass(url.password().or_else(|| option("password")))
            .db_name(Some(database))
            .setup(SETUP.map(str::to_owned).to_vec());
        Ok(Self {
            options: with_tls(builder, option).map_err(invalid)?.into(),
            connect_timeout,
        })
    }

    /// Connects.
    ///
    /// # Errors
    /// When the server can't be reached, or refuses.
    pub async fn connect(&self) -> Result<Connection, Error> {
        Connection::open(self.options.clone(), self.connect_timeout).await
    }
}

/// The options that ask for TLS, as SQLAlchemy hands them to the drivers.
#[cfg(feature = "tls")]
fn with_tls<'o>(
    builder: OptsBuilder,
    option: impl Fn(&str) -> Option<&'o str>,
) -> Result<OptsBuilder, &'static str> {
    use std::path::PathBuf;

    use mysql_async::{ClientIdentity, SslOpts};

    let authority = option("ssl_ca");
    let identity = match (option("ssl_cert"), option("ssl_key")) {
        (Some(certificate), Some(key)) => Some(ClientIdentity::new(
            PathBuf::from(certificate).into(),
            PathBuf::from(key).into(),
        )),
        (None, None) => None,
        _ => return Err("ssl_cert and ssl_key go together"),
    };
    if authority.is_none() && identity.is_none() && !asks_for_tls(&option) {
        return Ok(builder);
    }
    let checks_name = match option("ssl_check_hostname").or_else(|| option("ssl_verify_identity")) {
        Some(text) => !matches!(text.to_lowercase().as_str(), "false" | "0"),
        None => option("ssl_mode").is_none_or(|mode| mode.eq_ignore_ascii_case("VERIFY_IDENTITY")),
    };
    let roots = authority.map(|path| PathBuf::from(path).into());
    Ok(builder.ssl_opts(
        SslOpts::default()
            // Without an authority there is nothing to verify, as for the drivers of Python.
            .with_danger_accept_invalid_certs(roots.is_none())
            .with_disable_built_in_roots(roots.is_some())
            .with_root_certs(roots.into_iter().collect())
            .with_danger_skip_domain_validation(!checks_name)
            .with_client_identity(identity),
    ))
}

#[cfg(not(feature = "tls"))]
fn with_tls<'o>(
    builder: OptsBuilder,
    option: impl Fn(&str) -> Option<&'o str>,
) -> Result<OptsBuilder, &'static str> {
    let named = ["ssl_ca", "ssl_cert", "ssl_key"];
    if named.iter().any(|name| option(name).is_some()) || asks_for_tls(&option) {
        return Err("the URL asks for TLS, and this build of celeriac has none");
    }
    Ok(builder)
}

/// Whether TLS is asked for without a certificate.
fn asks_for_tls<'o>(option: &impl Fn(&str) -> Option<&'o str>) -> bool {
    let mode = option("ssl_mode").unwrap_or_default().to_uppercase();
    matches!(mode.as_str(), "REQUIRED" | "VERIFY_CA" | "VERIFY_IDENTITY")
        || option("ssl").is_some_and(|text| matches!(text.to_lowercase().as_str(), "true" | "1"))
}

#[cfg(test)]
mod tests {
    use celeriac_core::broker::ErrorKind;

    use super::*;

    fn address(url: &str) -> Result<Address, Error> {
        Address::new(&ServerUrl::parse(url).unwrap(), &Options::default())
    }

    #[test]
    fn urls_of_sqlalchemy_are_understood() {
        for (url, host, port, socket) in [
            ("sqla+mysql://u:p@h:3307/db", "h", 3307, None),
            ("mysql+pymysql://u@h/db?charset=utf8mb4", "h", 3306, None),
            ("mysql+pymysql://u@/db?host=h&port=3307", "h", 3307, None),
            (
                "sqla+mariadb+mariadbconnector://u@[::1]/db",
                "::1",
                3306,
                None,
            ),
            (
                "sqla+mysql://u@/db?unix_socket=/run/m.sock",
                "localhost",
                3306,
                Some("/run/m.sock"),
            ),
        ] {
            let options = address(url).unwrap().options;
            assert_eq!(options.ip_or_hostname(), host, "{url}");
            assert_eq!(options.tcp_port(), port, "{url}");
            assert_eq!(options.socket(), socket, "{url}");
            assert_eq!(options.db_name(), Some("db"), "{url}");
        }
    }

    #[test]
    fn user_and_password_are_decoded() {
        let options = address("sqla+mysql://u%40x:p%2Fw@h/d%20b").unwrap().options;
        assert_eq!(options.user(), Some("u@x"));
        assert_eq!(options.pass(), Some("p/w"));
        assert_eq!(options.db_name(), Some("d b"));
        assert!(options.ssl_opts().is_none());
    }

    #[cfg(feature = "tls")]
    #[test]
    fn tls_is_used_when_it_is_asked_for() {
        let tls = |query: &str| {
            let options = address(&format!("mysql://u@h/db?{query}")).unwrap().options;
            let tls = options.ssl_opts().unwrap().clone();
            (tls.accept_invalid_certs(), tls.skip_domain_validation())
        };
        assert_eq!(tls("ssl_ca=/ca.pem"), (false, false));
        assert_eq!(
            tls("ssl_ca=/ca.pem&ssl_check_hostname=false"),
            (false, true)
        );
        assert_eq!(tls("ssl_ca=/ca.pem&ssl_mode=VERIFY_CA"), (false, true));
        assert_eq!(tls("ssl_mode=REQUIRED"), (true, true));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (path, query) in [
            ("", ""),
            ("db", "connect_timeout=soon"),
            ("db", "ssl_key=/k"),
            ("db", "port=x"),
        ] {
            let error = address(&format!("sqla+mysql://u:secret@h/{path}?{query}"))
                .err()
                .unwrap();
            assert_eq!(error.kind, ErrorKind::Configuration, "{query}");
            assert!(!error.to_string().contains("secret"));
        }
    }
}
