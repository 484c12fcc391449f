//! What a URL of SQLAlchemy and its `connect_args` say of a server, whatever its dialect.

use std::time::Duration;

use celeriac_core::broker::{Error, ErrorKind};
use celeriac_net::ServerUrl;

use super::identity::argument;
use crate::open::Options;

/// Celery's default `broker_connection_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// The URL, and the options that go with it.
#[derive(Clone, Copy)]
pub(super) struct Given<'o> {
    pub(super) url: &'o ServerUrl,
    pub(super) options: &'o Options,
}

impl<'o> Given<'o> {
    /// An argument for the driver that is a text, from the URL's query or `connect_args`.
    pub(super) fn text(self, name: &str) -> Option<&'o str> {
        let arguments = self.options.transport.get("connect_args");
        self.url
            .query(name)
            .or_else(|| arguments?.get(name)?.as_str())
            .filter(|value| !value.is_empty())
    }

    /// The host, if one is named.
    pub(super) fn host(self) -> Option<&'o str> {
        let in_url = self.url.host().map(|host| host.trim_matches(['[', ']']));
        in_url.or_else(|| self.text("host"))
    }

    /// The port, or else `default`.
    ///
    /// # Errors
    /// When it is no number.
    pub(super) fn port(self, default: u16) -> Result<u16, Error> {
        match (self.url.port(), argument(self.url, self.options, "port")) {
            (Some(port), _) => Ok(port),
            (None, Some(text)) => text
                .parse()
                .map_err(|_| invalid(&format!("the port {text:?} is no number"))),
            (None, None) => Ok(default),
        }
    }

    /// How long connecting may take.
    ///
    /// # Errors
    /// When it is no number of seconds.
    pub(super) fn connect_timeout(self) -> Result<Duration, Error> {
        match argument(self.url, self.options, "connect_timeout") {
            // PyMySQL takes fractions as well.
            Some(text) => text
                .parse()
                .ok()
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                .ok_or_else(|| invalid(&format!("connect_timeout {text:?} is no number"))),
            None => Ok(self.options.connect_timeout.unwrap_or(CONNECT_TIMEOUT)),
        }
    }
}

/// Something in the URL makes no sense.
pub(super) fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::Configuration, format!("broker_url: {what}"))
}
