//! What the server says, in the worker's kinds.

use celeriac_core::broker::{Error, ErrorKind};

/// A transaction that the server has rolled back, since another waited for it.
const DEADLOCK: &str = "(1213)";

pub(super) fn broker_error(error: &mysql_async::Error) -> Error {
    // The library does not even send it.
    if let mysql_async::Error::Driver(mysql_async::DriverError::PacketTooLarge) = error {
        return Error::new(ErrorKind::Refused, format!("MySQL: {error}")).with_hint(TOO_LARGE);
    }
    let mysql_async::Error::Server(said) = error else {
        return Error::new(ErrorKind::Connection, format!("MySQL: {error}"));
    };
    let (kind, hint) = judge(said.code, &said.message);
    let error = Error::new(kind, format!("MySQL: {} ({})", said.message, said.code));
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// Whether the same transaction may succeed if it is tried again at once.
pub(super) fn is_deadlock(error: &Error) -> bool {
    error.message.ends_with(DEADLOCK)
}

/// The kind of an error's number, and what may help.
fn judge(code: u16, message: &str) -> (ErrorKind, Option<&'static str>) {
    match code {
        // Access denied: to the database, to the server, by a plugin.
        1044 | 1045 | 1698 => (
            ErrorKind::Denied,
            Some(
                "the user name or the password in broker_url is wrong, or the user may not use \
                  the database",
            ),
        ),
        // Denied: a command on a table, on a column; a privilege is needed.
        1142 | 1143 | 1227 => (
            ErrorKind::Denied,
            Some(
                "the user of broker_url must be able to read and write the tables kombu_queue, \
                  kombu_message, celeriac_lease, celeriac_worker, celeriac_delayed and \
                  celeriac_dead, or to create them",
            ),
        ),
        1049 => (
            ErrorKind::Configuration,
            Some("broker_url names a database that does not exist: CREATE DATABASE makes it"),
        ),
        // A full disk, a full table, and a full disk that the storage engine met.
        1021 | 1114 => (ErrorKind::Full, Some(MAKE_ROOM)),
        1030 | 1026 | 3 if message.contains("No space left on device") => {
            (ErrorKind::Full, Some(MAKE_ROOM))
        }
        // Read only: by an option of the server, by its mode, by the transaction.
        1290 | 1836 | 1792 => (
            ErrorKind::Connection,
            Some("a worker needs the primary server, not a replica"),
        ),
        // A packet that is too large for the server.
        1153 => (ErrorKind::Refused, Some(TOO_LARGE)),
        // Data too long for a column.
        1406 => (
            ErrorKind::Refused,
            Some(
                "kombu's column payload holds 64 KiB: ALTER TABLE kombu_message MODIFY payload \
                  LONGTEXT NOT NULL makes room for longer messages",
            ),
        ),
        // No memory, too many connections, shutdown, a lock that nobody gives up, a deadlock, killed.
        1037 | 1038 | 1040 | 1041 | 1053 | 1205 | 1213 | 1317 | 1927 => {
            (ErrorKind::Connection, None)
        }
        _ => (ErrorKind::Refused, None),
    }
}

const TOO_LARGE: &str = "raise max_allowed_packet of the server";
const MAKE_ROOM: &str = "make room on the server's disk: consuming goes on by itself then";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_kinds() {
        for (code, message, kind) in [
            (1045, "", ErrorKind::Denied),
            (1142, "", ErrorKind::Denied),
            (1049, "", ErrorKind::Configuration),
            (1114, "", ErrorKind::Full),
            (
                1030,
                "Got error 28 \"No space left on device\"",
                ErrorKind::Full,
            ),
            (1030, "Got error 122", ErrorKind::Refused),
            (1153, "", ErrorKind::Refused),
            (1041, "", ErrorKind::Connection),
            (1290, "", ErrorKind::Connection),
            (1213, "", ErrorKind::Connection),
            (1406, "", ErrorKind::Refused),
            (1146, "", ErrorKind::Refused),
        ] {
            assert_eq!(judge(code, message).0, kind, "{code}");
        }
    }

    #[test]
    fn a_deadlock_is_told_from_other_errors() {
        let error = |code| {
            broker_error(&mysql_async::Error::Server(mysql_async::ServerError {
                code,
                message: "1213".to_owned(),
                state: String::new(),
            }))
        };
        assert!(is_deadlock(&error(1213)));
        assert!(!is_deadlock(&error(1205)));
    }
}
