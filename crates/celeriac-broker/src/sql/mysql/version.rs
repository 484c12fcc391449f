//! Which server it is: claiming needs `SKIP LOCKED`.

use celeriac_core::broker::{Error, ErrorKind};

/// Refuses a server, by its `VERSION()`, that has no `SKIP LOCKED`.
pub(super) fn check(version: &str) -> Result<(), Error> {
    let is_mariadb = version.contains("MariaDB");
    // What old clients are told comes before the version of MariaDB.
    let number = version.strip_prefix("5.5.5-").unwrap_or(version);
    let mut parts = number
        .split(['.', '-', '+', '~'])
        .map_while(|part| part.parse::<u32>().ok());
    let found = [0; 3].map(|_: u32| parts.next().unwrap_or(0));
    let (name, needed) = if is_mariadb {
        ("MariaDB", [10, 6, 0])
    } else {
        ("MySQL", [8, 0, 1])
    };
    if found >= needed {
        return Ok(());
    }
    let [major, minor, patch] = needed;
    Err(Error::new(
        ErrorKind::Configuration,
        format!("{name} {number} is too old to be a broker"),
    )
    .with_hint(format!(
        "claiming messages needs SELECT … SKIP LOCKED: {name} {major}.{minor}.{patch} or newer"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers_are_refused() {
        for (version, is_good) in [
            ("10.11.19-MariaDB-0+deb12u1", true),
            ("5.5.5-10.6.0-MariaDB", true),
            ("11.4.2-MariaDB-log", true),
            ("10.5.28-MariaDB", false),
            ("5.5.5-10.3.39-MariaDB-1:10.3.39+maria~focal", false),
            ("8.0.36", true),
            ("8.4.0-commercial", true),
            ("9.1.0", true),
            ("8.0.0", false),
            ("5.7.44-log", false),
        ] {
            assert_eq!(check(version).is_ok(), is_good, "{version}");
        }
    }
}
