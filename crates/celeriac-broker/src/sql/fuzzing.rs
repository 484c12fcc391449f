//! What must hold of the addresses of databases, whatever the URL is.

use celeriac_net::ServerUrl;

use super::{dialect, identity};
use crate::open::Options;

/// Of a URL, one way to spell its identity; reading it twice finds the same.
pub fn sql_address(text: &str) {
    let Ok(url) = ServerUrl::parse(text) else {
        return;
    };
    let options = Options::default();
    let found = identity::identity(&url, &options);
    assert_eq!(found, identity::identity(&url, &options));
    let kind = found.split("://").next().unwrap_or_default();
    let expected = match dialect(&url) {
        "sqlite" => "sqlite",
        "mysql" | "mariadb" => "mysql",
        _ => "postgresql",
    };
    assert_eq!(kind, expected, "{text}");
    drop(super::SqlBroker::new(&url, &options));
}
