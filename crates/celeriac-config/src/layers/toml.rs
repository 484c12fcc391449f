//! Files in TOML: their values, and the lines in which these stand.

use std::sync::Arc;

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Entry;
use super::source::{Layer, Problem, Source, position};

/// Reads a file: all of its values but tables, by their paths, and empty tables.
///
/// # Errors
/// With line and column where it is no TOML. The line itself is not shown: it may hold a secret.
pub(super) fn parse(layer: Layer, file: &Arc<str>, text: &str) -> Result<Vec<Entry>, Problem> {
    let table = DeTable::parse(text).map_err(|error| {
        let place = match error.span() {
            Some(span) => {
                let (line, column) = position(text, span.start);
                format!("{file}:{line}:{column}")
            }
            None => file.to_string(),
        };
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        Problem::new(place, format!("this is no TOML: {message}"))
    })?;
    let mut entries = Vec::new();
    let mut walk = Walk {
        layer,
        file,
        text,
        entries: &mut entries,
    };
    walk.table(&[], table.get_ref())?;
    entries.sort_by_key(|entry| entry.source.line);
    Ok(entries)
}

/// The value that a text is in TOML.
pub(super) fn value(text: &str) -> Option<Value> {
    json(&DeValue::parse(text).ok()?).ok()
}

struct Walk<'w> {
    layer: Layer,
    file: &'w Arc<str>,
    text: &'w str,
    entries: &'w mut Vec<Entry>,
}

impl Walk<'_> {
    fn table(&mut self, path: &[String], table: &DeTable<'_>) -> Result<(), Problem> {
        for (key, value) in table {
            let path: Vec<String> = path
                .iter()
                .cloned()
                .chain([key.get_ref().to_string()])
                .collect();
            match value.get_ref() {
                DeValue::Table(below) if !below.is_empty() => self.table(&path, below)?,
                _ => {
                    let (line, _) = position(self.text, key.span().start);
                    let source = Source::line(self.layer, self.file, line);
                    let value = json(value).map_err(|message| {
                        Problem::new(&source, format!("{}: {message}", path.join(".")))
                    })?;
                    self.entries.push(Entry::new(path, value, source));
                }
            }
        }
        Ok(())
    }
}

/// A value as JSON has it, which is how Python is told of it.
fn json(value: &Spanned<DeValue<'_>>) -> Result<Value, &'static str> {
    Ok(match value.get_ref() {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_err(|_| "this number is too large")?
            .into(),
        DeValue::Float(number) => {
            let number = number.as_str().parse::<f64>().ok();
            let number = number.and_then(serde_json::Number::from_f64);
            number.ok_or("inf and nan are no values")?.into()
        }
        DeValue::Boolean(value) => Value::from(*value),
        DeValue::Datetime(moment) => moment.to_string().into(),
        DeValue::Array(items) => items.iter().map(json).collect::<Result<_, _>>()?,
        DeValue::Table(table) => {
            let mut members = Map::new();
            for (key, value) in table {
                members.insert(key.get_ref().to_string(), json(value)?);
            }
            members.into()
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_found_with_their_lines() {
        let text = r#"
app = "proj"

[celery]
task_acks_late = true
broker_transport_options = { visibility_timeout = 1_000, "a.b" = [1, 2.5, { c = "d" }] }
empty = {}

[pools.io]
concurrency = 0x200
"#;
        let file = Arc::from("celeriac.toml");
        let entries = parse(Layer::File, &file, text).unwrap();
        let found = |entry: &Entry| {
            (
                entry.path.join("/"),
                entry.value.clone(),
                entry.source.to_string(),
            )
        };
        let found: Vec<_> = entries.iter().map(found).collect();
        let line =
            |path: &str, value, line| (path.to_owned(), value, format!("celeriac.toml:{line}"));
        assert_eq!(
            found,
            [
                line("app", json!("proj"), 2),
                line("celery/task_acks_late", json!(true), 5),
                line(
                    "celery/broker_transport_options/a.b",
                    json!([1, 2.5, {"c": "d"}]),
                    6
                ),
                line(
                    "celery/broker_transport_options/visibility_timeout",
                    json!(1000),
                    6
                ),
                line("celery/empty", json!({}), 7),
                line("pools/io/concurrency", json!(512), 10),
            ]
        );
    }

    #[test]
    fn what_is_no_toml_is_named_with_line_and_column_and_not_shown() {
        let file = Arc::from("celeriac.toml");
        for (text, expected) in [
            (
                "a = 1\nb = = \"secret\"",
                "celeriac.toml:2:5: this is no TOML: ",
            ),
            ("[a]\nx = 1\nx = 2", "celeriac.toml:3:1: this is no TOML: "),
            ("a = nan", "celeriac.toml:1: a: inf and nan are no values"),
        ] {
            let problem = parse(Layer::File, &file, text).unwrap_err().to_string();
            assert!(problem.starts_with(expected), "{text}: {problem}");
            assert!(!problem.contains("secret"), "{problem}");
        }
    }
}
