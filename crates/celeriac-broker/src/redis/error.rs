//! What Redis says, in the worker's kinds.

use celeriac_core::broker::{Error, ErrorKind};
use redis::RedisError;

/// Sorts an error of the client library. Its text holds no password: the library shows none.
pub(super) fn broker_error(error: &RedisError) -> Error {
    let code = error.code().unwrap_or_default();
    let detail = error.detail().unwrap_or_default();
    // Redis 6 says it within what it says of a script.
    let says = |word: &str| code == word || detail.contains(&format!("-{word} "));
    match (error.kind(), code) {
        (redis::ErrorKind::AuthenticationFailed, _) | (_, "NOAUTH" | "WRONGPASS") => Error::new(
            ErrorKind::Denied,
            format!("Redis refuses the user name or password: {error}"),
        )
        .with_hint("check the user and password in broker_url"),
        (_, "NOPERM") => Error::new(ErrorKind::Denied, error.to_string())
            .with_hint("the ACL of this Redis user must allow the broker's keys and commands"),
        _ if says("OOM") => Error::new(
            ErrorKind::Full,
            format!("Redis has no memory left: {error}"),
        )
        .with_hint("raise maxmemory, or remove data from this Redis"),
        _ if detail.contains("DB index is out of range") => Error::new(
            ErrorKind::Configuration,
            format!("Redis has no such database: {error}"),
        )
        .with_hint("check the number at the end of broker_url"),
        (redis::ErrorKind::MasterNameNotFoundBySentinel, _) => {
            Error::new(ErrorKind::Configuration, error.to_string())
                .with_hint("check master_name in broker_transport_options")
        }
        _ if says("MISCONF") => Error::new(
            ErrorKind::Full,
            format!("Redis can't save its data, and takes none: {error}"),
        )
        .with_hint("see its log, and make room on its disk"),
        // A script of somebody else's runs.
        (_, "BUSY") => Error::new(ErrorKind::Connection, error.to_string()),
        // The server is no master now, or can't be one: another is or will be.
        (_, "READONLY" | "MASTERDOWN" | "LOADING" | "NOREPLICAS" | "UNBLOCKED") => {
            Error::new(ErrorKind::Connection, error.to_string())
        }
        (redis::ErrorKind::InvalidClientConfig, _) => {
            Error::new(ErrorKind::Configuration, error.to_string())
        }
        _ if error.is_io_error() || error.is_connection_dropped() || error.is_timeout() => {
            Error::new(ErrorKind::Connection, error.to_string())
        }
        _ => Error::new(ErrorKind::Refused, error.to_string()),
    }
}
