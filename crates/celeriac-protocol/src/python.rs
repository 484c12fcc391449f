//! Values as Python shows them: representations of results, replies of commands, lines of the log.

use std::fmt::Write as _;

use serde_json::Value;

/// What `repr()` would make of a value that came as JSON.
pub fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => quoted(text),
        Value::Array(items) => format!("[{}]", joined(items.iter().map(repr))),
        Value::Object(members) => {
            let members = members
                .iter()
                .map(|(name, value)| format!("{}: {}", quoted(name), repr(value)));
            format!("{{{}}}", joined(members))
        }
    }
}

/// What `repr()` would make of a set of texts.
pub fn set<'t>(texts: impl IntoIterator<Item = &'t str>) -> String {
    let shown = joined(texts.into_iter().map(quoted));
    if shown.is_empty() {
        "set()".to_owned()
    } else {
        format!("{{{shown}}}")
    }
}

/// What `repr()` would make of a text.
pub fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut shown = String::with_capacity(text.len() + 2);
    shown.push(quote);
    for character in text.chars() {
        match character {
            '\\' => shown.push_str("\\\\"),
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            _ if character == quote => {
                shown.push('\\');
                shown.push(quote);
            }
            _ if (character as u32) < 0x20 || character == '\x7f' => {
                // Writing to a `String` can't fail.
                let _ = write!(shown, "\\x{:02x}", character as u32);
            }
            _ => shown.push(character),
        }
    }
    shown.push(quote);
    shown
}

/// Whether Python would take a value for true.
pub fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

fn joined(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_look_as_in_python() {
        for (value, shown) in [
            (json!(null), "None"),
            (json!([true, 1, 1.5]), "[True, 1, 1.5]"),
            (json!({"st": ["a", "b"]}), "{'st': ['a', 'b']}"),
            (json!("it's"), "\"it's\""),
            (json!("a\"'b\n\u{1}"), "'a\"\\'b\\n\\x01'"),
        ] {
            assert_eq!(repr(&value), shown);
        }
        assert_eq!(set(["a", "b"]), "{'a', 'b'}");
        assert_eq!(set([]), "set()");
    }
}
