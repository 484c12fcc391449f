//! What makes one database the same for all who use it on this machine.
//!
//! The local bus finds nodes by it: whoever looks for them has to come to the same text, from the
//! URL and its options alone. Its counterpart, `identity` in `python/celeriac/host/local.py`, goes
//! by the same rule, and the tests of both by the same table, `identities.tsv`.
//!
//! - A file: `sqlite://` and its real path.
//! - A server: `<dialect>://<host>:<port>/<database>`, or `mysql://<unix_socket>/<database>` where
//!   a socket is named. The dialect is `postgresql` or `mysql`, which MariaDB is as well. What the
//!   URL does not name is looked for in its query and then in the transport option `connect_args`,
//!   as a text or a number that is not empty. Without a host it is `localhost`, as are `127.0.0.1`
//!   and `::1`, whatever way the driver takes there. A host is in lower case, unless it is a path.
//!   Without a database it is `dbname`, and else the user's, as libpq has it. No password is part
//!   of it, and no user of a database that is named.

use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use celeriac_net::ServerUrl;
use serde_json::Value;

use super::{dialect, file};
use crate::open::Options;

/// The identity of the database that `url` names.
pub(super) fn identity(url: &ServerUrl, options: &Options) -> String {
    let (name, port) = match dialect(url) {
        "sqlite" => return format!("sqlite://{}", real_path(file(url)).display()),
        "mysql" | "mariadb" => ("mysql", "3306"),
        _ => ("postgresql", "5432"),
    };
    let option = |name: &str| argument(url, options, name);
    let named = |part: Option<&str>, name: &str| part.map(str::to_owned).or_else(|| option(name));

    let database = Some(url.path().trim_start_matches('/'))
        .filter(|database| !database.is_empty())
        .map(str::to_owned)
        .or_else(|| option("dbname"))
        .or_else(|| named(url.username(), "user"))
        .unwrap_or_default();
    if let Some(socket) = option("unix_socket").filter(|_| name == "mysql") {
        return format!("mysql://{socket}/{database}");
    }
    let host = named(url.host(), "host").unwrap_or_default();
    let host = host.trim_matches(['[', ']']);
    let host = match host.parse::<Ipv6Addr>() {
        Ok(address) => address.to_string(),
        Err(_) if host.starts_with('/') => host.to_owned(),
        Err(_) => host.to_lowercase(),
    };
    let host = match host.as_str() {
        "" | "127.0.0.1" | "::1" => "localhost",
        host => host,
    };
    let port = url
        .port()
        .map(|port| port.to_string())
        .or_else(|| option("port"))
        .unwrap_or_else(|| port.to_owned());
    format!("{name}://{host}:{port}/{database}")
}

/// What the URL's query, or else the transport option `connect_args`, has for the driver: a text or
/// a number.
pub(super) fn argument(url: &ServerUrl, options: &Options, name: &str) -> Option<String> {
    let is_there = |value: &String| !value.is_empty();
    let in_query = url.query(name).map(str::to_owned).filter(is_there);
    let in_options = || match options.transport.get("connect_args")?.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    in_query.or_else(in_options).filter(is_there)
}

/// The path without links and from the root, even of a file that is yet to be made.
fn real_path(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    if let Ok(real) = absolute.canonicalize() {
        return real;
    }
    match (
        absolute.parent().map(Path::canonicalize),
        absolute.file_name(),
    ) {
        (Some(Ok(folder)), Some(name)) => folder.join(name),
        _ => absolute,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_has_the_identity_that_python_finds() {
        let mut count = 0;
        for line in include_str!("identities.tsv").lines() {
            if line.starts_with('#') {
                continue;
            }
            let [url, arguments, expected] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("{line:?} has three columns");
            };
            let mut options = Options::default();
            if !arguments.is_empty() {
                let arguments = serde_json::from_str(arguments).unwrap();
                options
                    .transport
                    .insert("connect_args".to_owned(), arguments);
            }
            let parsed = ServerUrl::parse(url).unwrap();
            assert_eq!(identity(&parsed, &options), expected, "{line}");
            count += 1;
        }
        assert!(count > 0);
    }

    #[test]
    fn a_path_from_here_is_the_one_from_the_root() {
        let url = ServerUrl::parse("sqla+sqlite:///q.db").unwrap();
        let here = std::env::current_dir().unwrap().canonicalize().unwrap();
        let expected = format!("sqlite://{}/q.db", here.display());
        assert_eq!(identity(&url, &Options::default()), expected);
    }
}
