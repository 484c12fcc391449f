//! Names of worker nodes, and the abbreviations in which they stand in file names.
//!
//! Celery's counterpart: `celery.utils.nodenames`.

/// The name part of a node that was given none.
const DEFAULT_NAME: &str = "celery";

/// A template holds an abbreviation that nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown format %{0} in {1:?}: use %h, %n, %d, %i, %I, %p or %%")]
pub struct UnknownFormat(char, String);

/// The complete name of a node: `name@host`, with what is missing filled in.
///
/// `%h`, `%n` and `%d` in it stand for the host, its first label and its domain.
///
/// # Errors
/// When another abbreviation stands in it.
pub fn complete(name: Option<&str>, host: &str) -> Result<String, UnknownFormat> {
    let (name, own_host) = split(name.unwrap_or_default());
    let name = name.filter(|name| !name.is_empty()).unwrap_or(DEFAULT_NAME);
    let own_host = if own_host.is_empty() { host } else { own_host };
    let label = host.split('.').next().unwrap_or(host);
    expand(&format!("{name}@{own_host}"), |key| match key {
        'i' => Some("0".to_owned()),
        'I' => Some(String::new()),
        key => host_part(key, host, label),
    })
}

/// Expands the abbreviations in a file name for the main process of the node `name`.
///
/// # Errors
/// When an unknown abbreviation stands in it.
pub fn format(template: &str, name: &str) -> Result<String, UnknownFormat> {
    let (short, host) = split(name);
    let short = short.unwrap_or(DEFAULT_NAME);
    expand(template, |key| match key {
        'p' => Some(name.to_owned()),
        // The index of a pool process: the main process has none.
        'i' => Some("0".to_owned()),
        'I' => Some(String::new()),
        key => host_part(key, host, short),
    })
}

fn host_part(key: char, host: &str, short: &str) -> Option<String> {
    match key {
        'h' => Some(host.to_owned()),
        'n' => Some(short.to_owned()),
        'd' => Some(
            host.split_once('.')
                .map_or("", |(_, domain)| domain)
                .to_owned(),
        ),
        _ => None,
    }
}

/// Splits `name@host`; without a name the whole is the host.
fn split(nodename: &str) -> (Option<&str>, &str) {
    match nodename.split_once('@') {
        Some((name, host)) => (Some(name), host),
        None => (None, nodename),
    }
}

fn expand(template: &str, value: impl Fn(char) -> Option<String>) -> Result<String, UnknownFormat> {
    let mut expanded = String::with_capacity(template.len());
    let mut characters = template.chars().peekable();
    while let Some(character) = characters.next() {
        let key = characters.peek().copied().filter(|key| is_key(*key));
        match (character, key) {
            ('%', Some(key)) => {
                characters.next();
                if key == '%' {
                    expanded.push('%');
                } else {
                    let value =
                        value(key).ok_or_else(|| UnknownFormat(key, template.to_owned()))?;
                    expanded.push_str(&value);
                }
            }
            _ => expanded.push(character),
        }
    }
    Ok(expanded)
}

/// What Celery's expression takes for an abbreviation.
fn is_key(character: char) -> bool {
    character == '%' || character == '_' || character.is_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_parts_are_filled_in() {
        let complete = |name| complete(name, "vm.example.com").unwrap();
        assert_eq!(complete(None), "celery@vm.example.com");
        assert_eq!(complete(Some("w1@%h")), "w1@vm.example.com");
        assert_eq!(complete(Some("w1@other")), "w1@other");
        assert_eq!(complete(Some("w1@")), "w1@vm.example.com");
        assert_eq!(complete(Some("box")), "celery@box");
        assert_eq!(complete(Some("%n@%d")), "vm@example.com");
        assert_eq!(complete(Some("100%%@h")), "100%@h");
    }

    #[test]
    fn file_names_are_expanded() {
        let format = |template| format(template, "w1@vm.example.com").unwrap();
        assert_eq!(format("/run/%n.pid"), "/run/w1.pid");
        assert_eq!(
            format("%p-%h-%d"),
            "w1@vm.example.com-vm.example.com-example.com"
        );
        assert_eq!(format("%n%I.log %i"), "w1.log 0");
        assert_eq!(format("50% done"), "50% done");
        assert_eq!(format("end%"), "end%");
    }

    #[test]
    fn unknown_abbreviations_are_named() {
        assert!(
            format("%x", "w@h")
                .unwrap_err()
                .to_string()
                .starts_with("unknown format %x")
        );
        assert!(complete(Some("%q@h"), "h").is_err());
    }
}
