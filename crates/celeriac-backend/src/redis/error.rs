//! What Redis says, in the kinds of a result backend.

use celeriac_core::backend::{Error, ErrorKind};
use redis::RedisError;

/// Sorts an error of the client library. Its text holds no password: the library shows none.
pub(super) fn backend_error(error: &RedisError) -> Error {
    let code = error.code().unwrap_or_default();
    let detail = error.detail().unwrap_or_default();
    // Redis 6 says it within what it says of a script.
    let says = |word: &str| code == word || detail.contains(&format!("-{word} "));
    let shown = format!("Redis: {error}");
    match (error.kind(), code) {
        (redis::ErrorKind::AuthenticationFailed, _) | (_, "NOAUTH" | "WRONGPASS") => {
            Error::new(ErrorKind::Configuration, shown)
                .with_hint("check the user and password in result_backend")
        }
        (_, "NOPERM") => Error::new(ErrorKind::Configuration, shown)
            .with_hint("the ACL of this Redis user must allow the backend's keys and commands"),
        (redis::ErrorKind::MasterNameNotFoundBySentinel, _) => {
            Error::new(ErrorKind::Configuration, shown)
                .with_hint("check master_name in result_backend_transport_options")
        }
        (redis::ErrorKind::InvalidClientConfig, _) => Error::new(ErrorKind::Configuration, shown),
        _ if detail.contains("DB index is out of range") => {
            Error::new(ErrorKind::Configuration, shown)
                .with_hint("check the number at the end of result_backend")
        }
        // It may be told to forget, or another may be promoted.
        _ if says("OOM") => Error::new(ErrorKind::Connection, shown)
            .with_hint("raise maxmemory of the Redis that keeps results, or remove data from it"),
        _ if says("MISCONF") => Error::new(ErrorKind::Connection, shown)
            .with_hint("see the log of Redis, and make room on its disk"),
        (_, "BUSY" | "READONLY" | "MASTERDOWN" | "LOADING" | "NOREPLICAS" | "UNBLOCKED") => {
            Error::new(ErrorKind::Connection, shown)
        }
        _ if error.is_io_error() || error.is_connection_dropped() || error.is_timeout() => {
            Error::new(ErrorKind::Connection, shown)
        }
        _ => Error::new(ErrorKind::Refused, shown),
    }
}
