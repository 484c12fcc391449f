//! The name of a node, as an operator writes it.
//!
//! Celery's counterpart: `celery.utils.nodenames`.

use uuid::Uuid;

/// The node that `-n` names on this host, as `celery worker -n` reads it.
pub(super) fn name(given: &str, host: &str) -> String {
    let (name, given_host) = match given.split_once('@') {
        Some((name, given_host)) => (name, given_host),
        None => ("", given),
    };
    let name = if name.is_empty() { "celery" } else { name };
    let given_host = if given_host.is_empty() {
        host
    } else {
        given_host
    };
    let (short, domain) = host.split_once('.').unwrap_or((host, ""));
    let mut shown = String::new();
    let full = format!("{name}@{given_host}");
    let mut rest = full.as_str();
    while let Some((before, after)) = rest.split_once('%') {
        shown.push_str(before);
        let mut following = after.chars();
        match following.next() {
            Some('h') => shown.push_str(host),
            Some('n') => shown.push_str(short),
            Some('d') => shown.push_str(domain),
            Some('%') => shown.push('%'),
            Some(other) => shown.extend(['%', other]),
            None => shown.push('%'),
        }
        rest = following.as_str();
    }
    shown.push_str(rest);
    shown
}

/// Sixteen hex digits for a node: the path of a socket has little room.
pub(super) fn hash(node: &str) -> String {
    let mut hash = Uuid::new_v5(&Uuid::NAMESPACE_URL, node.as_bytes())
        .simple()
        .to_string();
    hash.truncate(16);
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Celery's `host_format(default_nodename(given))` answers on the host `web-1.example.org`.
    #[test]
    fn names_are_read_as_by_celery() {
        for (given, expected) in [
            ("w1@%h", "w1@web-1.example.org"),
            ("w1@%n", "w1@web-1"),
            ("%n@%d", "web-1@example.org"),
            ("w1@", "w1@web-1.example.org"),
            ("other", "celery@other"),
            ("", "celery@web-1.example.org"),
            ("w1@host", "w1@host"),
            ("100%%@x", "100%@x"),
        ] {
            assert_eq!(name(given, "web-1.example.org"), expected, "{given:?}");
        }
    }
}
