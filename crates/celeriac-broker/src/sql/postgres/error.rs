//! What PostgreSQL says, in the worker's kinds.

use std::error::Error as _;

use celeriac_core::broker::{Error, ErrorKind};
use tokio_postgres::error::SqlState;

pub(super) fn broker_error(error: &tokio_postgres::Error) -> Error {
    let Some(said) = error.as_db_error() else {
        // The library's own words, and the causes below them.
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(below) = cause {
            let text = below.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            cause = below.source();
        }
        return Error::new(ErrorKind::Connection, format!("PostgreSQL: {message}"));
    };
    let message = format!("PostgreSQL: {} ({})", said.message(), said.code().code());
    let (kind, hint) = judge(said.code());
    let error = Error::new(kind, message);
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// The kind of an SQLSTATE, and what may help.
fn judge(state: &SqlState) -> (ErrorKind, Option<&'static str>) {
    let class = state.code().get(..2).unwrap_or_default();
    match class {
        _ if *state == SqlState::DISK_FULL => (
            ErrorKind::Full,
            Some("make room on the server's disk: consuming goes on by itself then"),
        ),
        _ if *state == SqlState::READ_ONLY_SQL_TRANSACTION => (
            ErrorKind::Connection,
            Some("a worker needs the primary server, not a standby"),
        ),
        _ if *state == SqlState::INSUFFICIENT_PRIVILEGE => (
            ErrorKind::Denied,
            Some(
                "the role of broker_url must be able to read and write the tables kombu_queue, \
                 kombu_message, celeriac_lease, celeriac_worker, celeriac_delayed and \
                 celeriac_dead, or to create them",
            ),
        ),
        // Invalid authorization.
        "28" => (
            ErrorKind::Denied,
            Some("the user name or the password in broker_url is wrong, or pg_hba.conf forbids it"),
        ),
        // Invalid catalog name.
        "3D" => (
            ErrorKind::Configuration,
            Some("broker_url names a database that does not exist: CREATE DATABASE makes it"),
        ),
        // Connection exceptions, rolled back transactions, too many connections, locks that others
        // have, an operator who shuts the server down, trouble with its disk or in itself.
        "08" | "40" | "53" | "55" | "57" | "58" | "XX" => (ErrorKind::Connection, None),
        _ => (ErrorKind::Refused, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_kinds() {
        for (code, kind) in [
            ("28P01", ErrorKind::Denied),
            ("28000", ErrorKind::Denied),
            ("42501", ErrorKind::Denied),
            ("3D000", ErrorKind::Configuration),
            ("53100", ErrorKind::Full),
            ("53300", ErrorKind::Connection),
            ("57P01", ErrorKind::Connection),
            ("25006", ErrorKind::Connection),
            ("40P01", ErrorKind::Connection),
            ("55P03", ErrorKind::Connection),
            ("58030", ErrorKind::Connection),
            ("XX001", ErrorKind::Connection),
            ("42P01", ErrorKind::Refused),
        ] {
            assert_eq!(judge(&SqlState::from_code(code)).0, kind, "{code}");
        }
    }
}
