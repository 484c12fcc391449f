//! URLs of brokers and result backends, in kombu's notation.
//!
//! Celery's counterpart: `kombu.utils.url`. The type shows itself without its password; the only
//! way to the password is [`ServerUrl::password`].

use std::fmt;

use percent_encoding::percent_decode_str;
use url::Url;

/// Where a server is, and as whom to talk to it.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl {
    scheme: String,
    host: Option<String>,
    port: Option<u16>,
    username: String,
    password: Option<String>,
    path: String,
    query: Vec<(String, String)>,
}

/// Why a URL can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUrl {
    /// It is no URL. The text itself is not told: it may hold a password.
    #[error("the URL can't be read: {0}")]
    Syntax(String),
}

impl ServerUrl {
    /// Reads a URL such as `redis://:password@host:6379/0` or `sqla+sqlite:///file.db`.
    ///
    /// # Errors
    /// When it is no URL.
    pub fn parse(text: &str) -> Result<Self, InvalidUrl> {
        // A socket's URL may name a user and no host, which the URL standard does not know.
        let hostless = with_host(text);
        let is_hostless = hostless.is_some();
        let url = Url::parse(hostless.as_deref().unwrap_or(text))
            .map_err(|error| InvalidUrl::Syntax(error.to_string()))?;
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        Ok(Self {
            scheme: url.scheme().to_owned(),
            host: url
                .host_str()
                .filter(|host| !host.is_empty() && !is_hostless)
                .map(decode),
            port: url.port(),
            username: decode(url.username()),
            password: url.password().map(decode),
            path: decode(url.path()),
            query: url
                .query_pairs()
                .map(|(name, value)| (name.into_owned(), value.into_owned()))
                .collect(),
        })
    }

    /// The scheme, such as `redis`, `redis+socket` or `sqla+sqlite`.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The host, brackets and all for an IPv6 address.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The port, if one is named.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The user name, if one is named.
    pub fn username(&self) -> Option<&str> {
        Some(self.username.as_str()).filter(|name| !name.is_empty())
    }

    /// The password, if one is named.
    pub fn password(&self) -> Option<&str> {
        self.password
            .as_deref()
            .filter(|password| !password.is_empty())
    }

    /// The path with its slashes.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A parameter of the query.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// The URL with a host, if it names a user and none: `scheme://user@/path`.
fn with_host(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let (user, path) = rest.split_at(rest.find(['/', '?', '#'])?);
    user.ends_with('@')
        .then(|| format!("{scheme}://{user}socket{path}"))
}

impl fmt::Display for ServerUrl {
    /// kombu's `as_uri`: the password as `**`, whether there is one or not.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme)?;
        if let Some(host) = &self.host {
            write!(f, "{}:**@{host}", self.username)?;
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.path)
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_and_decoded() {
        let url = ServerUrl::parse("redis://user:p%40ss%2F@host:6380/3").unwrap();
        assert_eq!(url.scheme(), "redis");
        assert_eq!((url.host(), url.port()), (Some("host"), Some(6380)));
        assert_eq!(
            (url.username(), url.password()),
            (Some("user"), Some("p@ss/"))
        );
        assert_eq!(url.path(), "/3");

        let url = ServerUrl::parse("redis+socket:///tmp/x.sock?virtual_host=3").unwrap();
        assert_eq!((url.host(), url.path()), (None, "/tmp/x.sock"));
        assert_eq!(url.query("virtual_host"), Some("3"));

        let url = ServerUrl::parse("sqla+sqlite:////abs/x.db").unwrap();
        assert_eq!((url.host(), url.path()), (None, "//abs/x.db"));

        let url = ServerUrl::parse("redis+socket://:pw@/tmp/x.sock").unwrap();
        assert_eq!(
            (url.host(), url.password(), url.path()),
            (None, Some("pw"), "/tmp/x.sock")
        );

        let url = ServerUrl::parse("sqla+postgresql://me@/db?host=/run/pg").unwrap();
        assert_eq!(
            (url.host(), url.username(), url.path(), url.query("host")),
            (None, Some("me"), "/db", Some("/run/pg"))
        );
    }

    #[test]
    fn the_password_is_never_shown() {
        let url = ServerUrl::parse("redis://user:secret@host:6379/0").unwrap();
        assert_eq!(url.to_string(), "redis://user:**@host:6379/0");
        assert!(!format!("{url:?}").contains("secret"));
        let error = ServerUrl::parse("redis://user:secret@host:notaport/0").unwrap_err();
        assert!(!error.to_string().contains("secret"));
    }
}
