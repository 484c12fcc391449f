//! What values may be, and how the text of an environment variable becomes one.

use serde_json::{Map, Value};

/// What the values of a key are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// Text, or several texts of which the first that works is taken: URLs of brokers.
    Address,
    /// A list of texts, or one text with commas between them.
    Texts,
    /// Text, or a whole number: users and groups.
    TextOrWhole,
    /// A whole number, 0 or more, or -1 where Celery takes that for none.
    Whole,
    /// A number.
    Number,
    /// `true` or `false`.
    Bool,
    /// `true`, `false`, or a table of options.
    BoolOrTable,
    /// A number of processes, or `auto`.
    Concurrency,
    /// Most and fewest processes: a list of two numbers, one number, or text such as `10,3`.
    Autoscale,
    /// A table.
    Table,
    /// Anything.
    Any,
}

impl Kind {
    /// What a value of this kind is, in words.
    pub fn expected(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Address => "text, or a list of texts",
            Self::Texts => "a list of texts",
            Self::TextOrWhole => "text or a whole number",
            Self::Whole => "a whole number",
            Self::Number => "a number",
            Self::Bool => "true or false",
            Self::BoolOrTable => "true, false or a table",
            Self::Concurrency => "a whole number or \"auto\"",
            Self::Autoscale => "[MAX, MIN]",
            Self::Table => "a table",
            Self::Any => "any value",
        }
    }

    /// Whether a value is of this kind.
    pub fn admits(self, value: &Value) -> bool {
        let whole = |value: &Value| value.is_i64() || value.is_u64();
        let texts = |value: &Value| {
            let items = value.as_array();
            items.is_some_and(|items| items.iter().all(Value::is_string))
        };
        match self {
            Self::Text => value.is_string(),
            Self::Address | Self::Texts => value.is_string() || texts(value),
            Self::TextOrWhole => value.is_string() || whole(value),
            Self::Whole => whole(value),
            Self::Number => value.is_number(),
            Self::Bool => value.is_boolean(),
            Self::BoolOrTable => value.is_boolean() || value.is_object(),
            Self::Concurrency => value.is_u64() || value.as_str() == Some("auto"),
            Self::Autoscale => match value {
                Value::Array(sizes) => {
                    matches!(sizes.len(), 1 | 2) && sizes.iter().all(Value::is_u64)
                }
                other => other.is_u64() || other.is_string(),
            },
            Self::Table => value.is_object(),
            Self::Any => true,
        }
    }

    /// Whether there may be keys below one of this kind.
    pub fn has_keys(self) -> bool {
        matches!(self, Self::Table | Self::BoolOrTable | Self::Any)
    }

    /// The value that a text stands for, where there are no types: in the environment. What can't
    /// be read is given back as text, which [`Self::admits`] refuses where it matters.
    pub fn read(self, text: &str) -> Value {
        let as_text = || Value::from(text);
        match self {
            Self::Text | Self::Address => as_text(),
            Self::Texts if text.trim_start().starts_with('[') => literal(text),
            Self::Texts => {
                let names = text.split(',').map(str::trim);
                names.filter(|name| !name.is_empty()).collect()
            }
            Self::Bool | Self::BoolOrTable => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => true.into(),
                "false" | "no" | "off" | "0" => false.into(),
                _ => literal(text),
            },
            Self::Number => match literal(text) {
                number @ Value::Number(_) => number,
                _ => as_text(),
            },
            Self::TextOrWhole
            | Self::Whole
            | Self::Concurrency
            | Self::Autoscale
            | Self::Table
            | Self::Any => literal(text),
        }
    }
}

/// A text as TOML or JSON writes a value, or else as it is.
fn literal(text: &str) -> Value {
    let text = text.trim();
    super::toml::value(text)
        .or_else(|| serde_json::from_str(text).ok())
        .unwrap_or_else(|| text.into())
}

/// What a value is, in words: never the value itself, which may be a secret.
pub(super) fn found(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "a whole number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    }
}

/// The values of a tree and their paths; tables are gone into, but for empty ones.
pub(super) fn leaves(path: &[String], value: Value, found: &mut impl FnMut(Vec<String>, Value)) {
    match value {
        Value::Object(table) if !table.is_empty() => {
            for (key, value) in table {
                let below: Vec<String> = path.iter().cloned().chain([key]).collect();
                leaves(&below, value, found);
            }
        }
        other => found(path.to_vec(), other),
    }
}

/// Puts a value where a path says, over whatever is in its way.
pub(super) fn put(tree: &mut Map<String, Value>, path: &[String], value: Value) {
    let Some((key, rest)) = path.split_first() else {
        return;
    };
    if rest.is_empty() {
        tree.insert(key.clone(), value);
        return;
    }
    let below = tree.entry(key.clone()).or_insert_with(|| Map::new().into());
    if !below.is_object() {
        *below = Map::new().into();
    }
    if let Value::Object(below) = below {
        put(below, rest, value);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn variables_are_read_by_their_kinds() {
        for (kind, text, expected) in [
            (Kind::Text, "5", json!("5")),
            (
                Kind::Address,
                "redis://a;redis://b",
                json!("redis://a;redis://b"),
            ),
            (Kind::Texts, "a, b,", json!(["a", "b"])),
            (Kind::Texts, r#"["a", "b,c"]"#, json!(["a", "b,c"])),
            (Kind::Whole, "5", json!(5)),
            (Kind::Whole, "5.5", json!(5.5)),
            (Kind::Number, "5.5", json!(5.5)),
            (Kind::Number, "soon", json!("soon")),
            (Kind::Bool, "Yes", json!(true)),
            (Kind::Bool, "0", json!(false)),
            (Kind::Bool, "perhaps", json!("perhaps")),
            (Kind::Concurrency, "auto", json!("auto")),
            (Kind::Autoscale, "10,3", json!("10,3")),
            (Kind::Autoscale, "[10, 3]", json!([10, 3])),
            (Kind::Table, "{ a = 1 }", json!({"a": 1})),
            (
                Kind::Any,
                r#"{"a": {"b": null}}"#,
                json!({"a": {"b": null}}),
            ),
            (Kind::Any, "plain words", json!("plain words")),
        ] {
            assert_eq!(kind.read(text), expected, "{kind:?} {text}");
        }
    }

    #[test]
    fn values_of_other_kinds_are_not_admitted() {
        for (kind, value, is_admitted) in [
            (Kind::Text, json!("a"), true),
            (Kind::Text, json!(1), false),
            (Kind::Texts, json!(["a"]), true),
            (Kind::Texts, json!("a"), true),
            (Kind::Texts, json!([1]), false),
            (Kind::Whole, json!(-1), true),
            (Kind::Whole, json!(1.0), false),
            (Kind::Number, json!(1), true),
            (Kind::Number, json!("1"), false),
            (Kind::Bool, json!(1), false),
            (Kind::BoolOrTable, json!({}), true),
            (Kind::Concurrency, json!("auto"), true),
            (Kind::Concurrency, json!("many"), false),
            (Kind::Autoscale, json!([10, 3]), true),
            (Kind::Autoscale, json!([10, 3, 1]), false),
            (Kind::Autoscale, json!([-1, 3]), false),
            (Kind::Table, json!([]), false),
        ] {
            assert_eq!(kind.admits(&value), is_admitted, "{kind:?} {value}");
        }
    }
}
