//! Values as Python writes them: JSON with the separators and escapes of its module `json`, and
//! `repr()`.

use std::io;

use celeriac_protocol::Exception;
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::Formatter;

/// `json.dumps(value)`, byte for byte but for the order of members where that is not kept.
pub fn dumps<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(256);
    value.serialize(&mut serde_json::Serializer::with_formatter(
        &mut out, Python,
    ))?;
    Ok(out)
}

/// Writes JSON as Python's `json` module does.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            return Ok(());
        }
        writer.write_all(b", ")
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.begin_array_value(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if fragment.bytes().all(is_plain) {
            return writer.write_all(fragment.as_bytes());
        }
        for character in fragment.chars() {
            if u8::try_from(character).is_ok_and(is_plain) {
                writer.write_all(&[character as u8])?;
                continue;
            }
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

/// Whether `json.dumps` leaves it as it is.
fn is_plain(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte)
}

/// `repr()` of a float.
fn float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        return format!("{value:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// `repr()` of what a JSON value is in Python.
pub fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => match number.as_f64() {
            Some(value) if number.is_f64() => float(value),
            _ => number.to_string(),
        },
        Value::String(text) => repr_text(text),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(repr).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(members) => {
            let members: Vec<String> = members
                .iter()
                .map(|(name, value)| format!("{}: {}", repr_text(name), repr(value)))
                .collect();
            format!("{{{}}}", members.join(", "))
        }
    }
}

/// `repr()` of an exception: `ValueError('boom', 42)`.
pub fn repr_exception(exception: &Exception) -> String {
    let arguments: Vec<String> = exception.exc_message.iter().map(repr).collect();
    let class = exception.exc_type.rsplit('.').next().unwrap_or_default();
    format!("{class}({})", arguments.join(", "))
}

fn repr_text(text: &str) -> String {
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
            _ if character < ' ' || ('\u{7f}'..='\u{a0}').contains(&character) => {
                shown.extend(format!("\\x{:02x}", u32::from(character)).chars());
            }
            _ => shown.push(character),
        }
    }
    shown.push(quote);
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn json_is_that_of_python() {
        // As Python 3.11 prints json.dumps() of each.
        for (value, text) in [
            (json!([1, "é", null]), r#"[1, "\u00e9", null]"#),
            (json!({"a": {}, "b": []}), r#"{"a": {}, "b": []}"#),
            (json!("😀\u{7f}\n\"\\"), r#""\ud83d\ude00\u007f\n\"\\""#),
            (
                json!([1.0, 1e22, 1e-7, 1e16, 1e15, 0.0001, 1.5e300]),
                "[1.0, 1e+22, 1e-07, 1e+16, 1000000000000000.0, 0.0001, 1.5e+300]",
            ),
            (
                json!([-0.0, 123_456_789.125, true]),
                "[-0.0, 123456789.125, true]",
            ),
        ] {
            assert_eq!(String::from_utf8(dumps(&value).unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn repr_is_that_of_python() {
        for (value, shown) in [
            (json!("boom"), "'boom'"),
            (json!("it's"), "\"it's\""),
            (json!("it's \"it\""), "'it\\'s \"it\"'"),
            (json!("a\nb\u{1}"), "'a\\nb\\x01'"),
            (json!([1, 2.0, true, null]), "[1, 2.0, True, None]"),
            (json!({"a": "b"}), "{'a': 'b'}"),
        ] {
            assert_eq!(repr(&value), shown);
        }
        let mut exception = Exception::builtin("ValueError", "boom");
        assert_eq!(repr_exception(&exception), "ValueError('boom')");
        exception.exc_message.push(json!(42));
        assert_eq!(repr_exception(&exception), "ValueError('boom', 42)");
    }

    proptest! {
        #[test]
        fn any_text_and_number_is_read_as_it_was(text in "\\PC{0,30}", float in any::<f64>(), int in any::<i64>()) {
            prop_assume!(float.is_finite());
            let value = json!([text, float, int]);
            let read: Value = serde_json::from_slice(&dumps(&value).unwrap()).unwrap();
            prop_assert_eq!(read, value);
        }
    }
}
