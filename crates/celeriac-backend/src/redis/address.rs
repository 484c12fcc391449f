//! Where the server is, from the setting `result_backend`.
//!
//! Celery's counterpart: `RedisBackend._params_from_url`.

use std::time::Duration;

use celeriac_core::backend::{Error, Settings};
use celeriac_net::ServerUrl;
use celeriac_net::redis::{InvalidAddress, RedisAddress, RedisServer};
use celeriac_net::sentinel::Sentinels;
use serde_json::Value;

use crate::options::{self, invalid};

/// How long a connection may take to be made, where `redis_socket_connect_timeout` does not say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// The options of TLS that a URL may have.
const TLS: [&str; 4] = [
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_cert_reqs",
];

/// A server, and how it may be shown.
pub(super) struct Address {
    pub(super) server: RedisServer,
    pub(super) display: String,
}

impl Address {
    pub(super) fn new(url: &str, settings: &Settings) -> Result<Self, Error> {
        let timeout = options::seconds(settings, "redis_socket_connect_timeout")
            .filter(|timeout| !timeout.is_zero())
            .unwrap_or(CONNECT_TIMEOUT);
        let ssl = settings
            .options
            .get("redis_backend_use_ssl")
            .filter(|ssl| ssl.is_object());
        let urls: Result<Vec<ServerUrl>, _> = url.split(';').map(parse).collect();
        let urls = urls.map_err(|error| invalid(&error))?;
        let Some(first) = urls.first() else {
            return Err(invalid(&"it is empty"));
        };
        check_tls(first, ssl)?;
        let server = if first.scheme() == "sentinel" {
            Sentinels::new(&urls, &settings.options, ssl, timeout).map(RedisServer::Watched)
        } else {
            RedisAddress::new(first, ssl, timeout).map(RedisServer::At)
        };
        let display: Vec<String> = urls.iter().map(ToString::to_string).collect();
        Ok(Self {
            server: server.map_err(|error| address_error(&error))?,
            display: display.join(";"),
        })
    }
}

/// kombu calls it `socket` as well.
fn parse(url: &str) -> Result<ServerUrl, celeriac_net::url::InvalidUrl> {
    match url.strip_prefix("socket://") {
        Some(rest) => ServerUrl::parse(&format!("redis+socket://{rest}")),
        None => ServerUrl::parse(url),
    }
}

/// Celery insists on `ssl_cert_reqs` for TLS, and on `rediss://` for the URL's options of TLS.
fn check_tls(url: &ServerUrl, ssl: Option<&Value>) -> Result<(), Error> {
    let named = TLS.iter().find(|name| url.query(name).is_some());
    if let ("redis", Some(name)) = (url.scheme(), named) {
        return Err(invalid(&format!("{name} is for rediss:// only"))
            .with_hint("write rediss:// for a connection with TLS"));
    }
    if url.scheme() != "rediss" && ssl.is_none() {
        return Ok(());
    }
    let requirement = match (url.query("ssl_cert_reqs"), ssl) {
        (Some(text), _) => text.to_owned(),
        (None, Some(ssl)) => match ssl.get("ssl_cert_reqs") {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        },
        (None, None) => String::new(),
    };
    let known = matches!(
        &*requirement,
        "CERT_REQUIRED" | "CERT_OPTIONAL" | "CERT_NONE" | "required" | "optional" | "none"
    );
    // Python's constants are 0, 1 and 2.
    if known || matches!(&*requirement, "0" | "1" | "2") {
        return Ok(());
    }
    Err(
        invalid(&"ssl_cert_reqs is missing, or none that Celery knows").with_hint(
            "add ?ssl_cert_reqs=CERT_REQUIRED to the URL, or CERT_OPTIONAL or CERT_NONE",
        ),
    )
}

fn address_error(error: &InvalidAddress) -> Error {
    match error {
        InvalidAddress::NoMasterName => invalid(
            &"master_name is missing in result_backend_transport_options: the sentinels watch \
              several masters",
        )
        .with_hint("set master_name to the name in the sentinels' configuration"),
        other => invalid(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn display(url: &str, options: Value) -> Result<String, Error> {
        let Value::Object(options) = options else {
            unreachable!()
        };
        let settings = Settings {
            options,
            ..Settings::default()
        };
        Address::new(url, &settings).map(|address| address.display)
    }

    #[test]
    fn urls_of_celery_are_understood_and_shown_without_passwords() {
        for (url, shown) in [
            ("redis://:secret@h:6380/2", "redis://:**@h:6380/2"),
            (
                "redis+socket:///run/r.sock?virtual_host=3",
                "redis+socket:///run/r.sock",
            ),
            ("socket:///run/r.sock", "redis+socket:///run/r.sock"),
            ("rediss://h/0?ssl_cert_reqs=CERT_NONE", "rediss://:**@h/0"),
            ("rediss://h/0?ssl_cert_reqs=required", "rediss://:**@h/0"),
        ] {
            assert_eq!(display(url, json!({})).unwrap(), shown);
        }
        let sentinels = "sentinel://:secret@a:26379/1;sentinel://:secret@b:26379/1";
        let shown = display(sentinels, json!({"master_name": "m"})).unwrap();
        assert!(!shown.contains("secret"), "{shown}");
        assert!(
            display(
                "redis://h",
                json!({"redis_backend_use_ssl": {"ssl_cert_reqs": 0}})
            )
            .is_ok()
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (url, options, word) in [
            ("redis://h/x", json!({}), "database"),
            ("rediss://:secret@h/0", json!({}), "ssl_cert_reqs"),
            (
                "rediss://h/0?ssl_cert_reqs=maybe",
                json!({}),
                "ssl_cert_reqs",
            ),
            ("redis://h/0?ssl_cert_reqs=none", json!({}), "rediss"),
            (
                "redis://h",
                json!({"redis_backend_use_ssl": {}}),
                "ssl_cert_reqs",
            ),
            ("sentinel://h", json!({}), "master_name"),
        ] {
            let error = display(url, options).unwrap_err();
            assert!(error.message.contains(word), "{error}");
            assert!(!format!("{error:?}").contains("secret"));
        }
    }
}
