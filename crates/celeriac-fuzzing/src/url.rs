//! A URL opens a broker or is refused, and never shows its password.

use celeriac_broker::{Options, open};
use celeriac_net::ServerUrl;

const PASSWORD: &str = "Tr0ub4dor-and-3";

pub(crate) fn check(bytes: &[u8]) {
    crate::with_text(bytes, check_text);
}

fn check_text(text: &str) {
    let _ = open(text, &Options::default());
    if let Ok(url) = ServerUrl::parse(text) {
        assert_eq!(ServerUrl::parse(text), Ok(url));
    }
    let is_scheme = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    };
    if text.contains(PASSWORD) {
        return;
    }
    let Some((scheme, rest)) = text.split_once("://").filter(|(text, _)| is_scheme(text)) else {
        return;
    };
    let text = format!("{scheme}://user:{PASSWORD}@{rest}");
    let shown = match ServerUrl::parse(&text) {
        Ok(url) => format!("{url} {url:?}"),
        Err(error) => format!("{error} {error:?}"),
    };
    assert!(!shown.contains(PASSWORD), "{shown}");
    let shown = match open(&text, &Options::default()) {
        Ok(broker) => broker.display_url(),
        Err(error) => format!("{error} {error:?}"),
    };
    assert!(!shown.contains(PASSWORD), "{shown}");
}
