//! Whether the name of a node matches a pattern.
//!
//! Celery's counterpart: `kombu.matcher`.

use regex::Regex;

/// Matches `hostname` with `pattern`, read as `matcher` says: `glob` (Python's `fnmatch`) or `pcre`
/// (Python's `re.match`, which looks at the beginning).
///
/// # Errors
/// With the reason, when the pattern or the way to read it makes no sense.
pub fn matches(hostname: &str, pattern: &str, matcher: &str) -> Result<bool, String> {
    let expression = match matcher {
        "glob" => format!("^(?s:{})$", glob(pattern)),
        "pcre" => format!("^(?:{pattern})"),
        _ => return Err(format!("No matcher installed for {matcher}")),
    };
    let expression = Regex::new(&expression)
        .map_err(|error| format!("The pattern {pattern:?} can't be read: {error}"))?;
    Ok(expression.is_match(hostname))
}

/// The regular expression that a pattern of `fnmatch` stands for.
fn glob(pattern: &str) -> String {
    let mut expression = String::new();
    let mut rest = pattern;
    while let Some(first) = rest.chars().next() {
        rest = &rest[first.len_utf8()..];
        match first {
            '*' => expression.push_str(".*"),
            '?' => expression.push('.'),
            '[' => match set(rest) {
                Some((set, after)) => {
                    expression.push_str(&set);
                    rest = after;
                }
                None => expression.push_str("\\["),
            },
            other => expression.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    expression
}

/// A set of characters, and what comes after it; `None` when it has no end.
fn set(rest: &str) -> Option<(String, &str)> {
    let (negation, body) = match rest.strip_prefix('!') {
        Some(body) => ("^", body),
        None => ("", rest),
    };
    // A bracket that comes first stands for itself.
    let first = body.chars().next()?.len_utf8();
    let end = first + body[first..].find(']')?;
    let mut members = String::new();
    for member in body[..end].chars() {
        if "\\[]^&~".contains(member) {
            members.push('\\');
        }
        members.push(member);
    }
    Some((format!("[{negation}{members}]"), &body[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_are_fnmatchs() {
        for (pattern, hostname, expected) in [
            ("*", "w1@host", true),
            ("w?@*", "w1@host", true),
            ("w?@*", "w12@host", false),
            ("w[12]@host", "w2@host", true),
            ("w[!12]@host", "w2@host", false),
            ("w[!12]@host", "w3@host", true),
            ("w[0-9]@host", "w7@host", true),
            ("w[]]", "w]", true),
            ("w[", "w[", true),
            ("w1", "w1@host", false),
            ("w.@host", "w1@host", false),
        ] {
            assert_eq!(
                matches(hostname, pattern, "glob"),
                Ok(expected),
                "{pattern} {hostname}"
            );
        }
    }

    #[test]
    fn expressions_match_at_the_beginning() {
        for (pattern, expected) in [
            ("w1", true),
            ("w[0-9]+@ho", true),
            ("host", false),
            ("a|w1", true),
        ] {
            assert_eq!(
                matches("w1@host", pattern, "pcre"),
                Ok(expected),
                "{pattern}"
            );
        }
        assert!(matches("w1@host", "(", "pcre").is_err());
        assert!(matches("w1@host", "w", "sql").is_err());
    }
}
