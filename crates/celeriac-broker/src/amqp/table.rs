//! Between AMQP's tables and JSON.
//!
//! What comes is written as the JSON that kombu's own encoder would have written of what py-amqp
//! read (`amqp.serialization.loads`, `kombu.utils.json`): times, decimals and raw bytes as marked
//! objects. What goes is written in the types that py-amqp chooses.

use std::borrow::Cow;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use celeriac_protocol::json;
use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable, LongString, ShortString};
use serde_json::Value;

/// What can't be said in AMQP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unsayable {
    /// Names and keys have at most 255 bytes.
    #[error("{0:?} is longer than the 255 bytes that AMQP allows")]
    TooLong(String),
    /// It is no JSON.
    #[error("it is no JSON: {0}")]
    Json(String),
    /// A number beyond 64 bits, or one that is none: RabbitMQ breaks the connection over `NaN`.
    #[error("RabbitMQ does not know the number {0}")]
    Number(String),
}

/// How deep tables and arrays may stand in one another: Python's `json` reads somewhat less than
/// 1,000 levels, in a thread with little stack.
const MOST_LEVELS: usize = 500;

/// A table that no Python would read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the headers are nested too deeply")]
pub(super) struct TooDeep;

/// A text of at most 255 bytes.
pub(super) fn short(text: &str) -> Result<ShortString, Unsayable> {
    ShortString::try_new(text).map_err(|_| Unsayable::TooLong(text.to_owned()))
}

/// The table as a JSON object.
pub(super) fn write_table(table: &FieldTable, to: &mut String) -> Result<(), TooDeep> {
    write_members(table, MOST_LEVELS, to)
}

fn write_members(table: &FieldTable, levels: usize, to: &mut String) -> Result<(), TooDeep> {
    let levels = levels.checked_sub(1).ok_or(TooDeep)?;
    to.push('{');
    for (at, (name, value)) in table.inner().iter().enumerate() {
        if at > 0 {
            to.push_str(", ");
        }
        write_text(name.as_str(), to);
        to.push_str(": ");
        write_value(value, levels, to)?;
    }
    to.push('}');
    Ok(())
}

/// The text as a JSON string.
pub(super) fn write_text(text: &str, to: &mut String) {
    let is_plain = |byte: u8| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
    if text.bytes().all(is_plain) {
        to.push('"');
        to.push_str(text);
        to.push('"');
    } else {
        to.push_str(&json::quote(text));
    }
}

fn write_value(value: &AMQPValue, levels: usize, to: &mut String) -> Result<(), TooDeep> {
    match value {
        AMQPValue::Boolean(value) => to.push_str(if *value { "true" } else { "false" }),
        AMQPValue::ShortShortInt(value) => write_integer(i64::from(*value), to),
        AMQPValue::ShortShortUInt(value) => write_integer(i64::from(*value), to),
        AMQPValue::ShortInt(value) => write_integer(i64::from(*value), to),
        AMQPValue::ShortUInt(value) => write_integer(i64::from(*value), to),
        AMQPValue::LongInt(value) => write_integer(i64::from(*value), to),
        AMQPValue::LongUInt(value) => write_integer(i64::from(*value), to),
        AMQPValue::LongLongInt(value) => write_integer(*value, to),
        AMQPValue::Float(value) => write_float(f64::from(*value), to),
        AMQPValue::Double(value) => write_float(*value, to),
        AMQPValue::DecimalValue(value) => write_marked("decimal", &decimal(*value), to),
        AMQPValue::ShortString(value) => write_text(value.as_str(), to),
        AMQPValue::LongString(value) => write_bytes(value.as_bytes(), true, to),
        AMQPValue::ByteArray(value) => write_bytes(value.as_slice(), false, to),
        AMQPValue::FieldArray(values) => {
            let levels = levels.checked_sub(1).ok_or(TooDeep)?;
            to.push('[');
            for (at, value) in values.as_slice().iter().enumerate() {
                if at > 0 {
                    to.push_str(", ");
                }
                write_value(value, levels, to)?;
            }
            to.push(']');
        }
        AMQPValue::Timestamp(seconds) => match datetime(*seconds) {
            Some(datetime) => write_marked("datetime", &datetime, to),
            // Beyond what Python's datetime can say, py-amqp fails; the number says it all.
            None => write_integer(*seconds as i64, to),
        },
        AMQPValue::FieldTable(table) => write_members(table, levels, to)?,
        AMQPValue::Void => to.push_str("null"),
    }
    Ok(())
}

fn write_integer(value: i64, to: &mut String) {
    // Writing to a string does not fail.
    let _ = write!(to, "{value}");
}

/// As Python's `json` writes it.
fn write_float(value: f64, to: &mut String) {
    match serde_json::Number::from_f64(value) {
        Some(number) => {
            let _ = write!(to, "{number}");
        }
        None if value.is_nan() => to.push_str("NaN"),
        None => to.push_str(if value > 0.0 { "Infinity" } else { "-Infinity" }),
    }
}

/// Text where it is UTF-8 and `is_text`; otherwise as kombu marks bytes.
fn write_bytes(bytes: &[u8], is_text: bool, to: &mut String) {
    match std::str::from_utf8(bytes) {
        Ok(text) if is_text => write_text(text, to),
        Ok(text) => write_marked("bytes", text, to),
        Err(_) => write_marked("base64", &BASE64.encode(bytes), to),
    }
}

fn write_marked(kind: &str, value: &str, to: &mut String) {
    to.push_str("{\"__type__\": \"");
    to.push_str(kind);
    to.push_str("\", \"__value__\": ");
    write_text(value, to);
    to.push('}');
}

/// `str(Decimal(value) / Decimal(10 ** scale))`
fn decimal(decimal: DecimalValue) -> String {
    // py-amqp reads it with its sign.
    let value = decimal.value as i32;
    let (mut digits, mut scale) = (
        i64::from(value).unsigned_abs().to_string(),
        usize::from(decimal.scale),
    );
    while scale > 0 && digits.len() > 1 && digits.ends_with('0') {
        digits.pop();
        scale -= 1;
    }
    if value == 0 {
        // The quotient of zero keeps the exponent.
        return if scale == 0 {
            "0".to_owned()
        } else {
            "0E-".to_owned() + &scale.to_string()
        };
    }
    let sign = if value < 0 { "-" } else { "" };
    let adjusted = digits.len() as i64 - 1 - scale as i64;
    if scale == 0 {
        format!("{sign}{digits}")
    } else if adjusted >= -6 {
        let padded = format!("{digits:0>width$}", width = scale + 1);
        let (whole, fraction) = padded.split_at(padded.len() - scale);
        format!("{sign}{whole}.{fraction}")
    } else {
        let (first, rest) = digits.split_at(1);
        let point = if rest.is_empty() { "" } else { "." };
        format!("{sign}{first}{point}{rest}E{adjusted}")
    }
}

/// `datetime.isoformat()` of the naive time in UTC.
fn datetime(seconds: u64) -> Option<String> {
    let timestamp = jiff::Timestamp::from_second(i64::try_from(seconds).ok()?).ok()?;
    Some(timestamp.strftime("%Y-%m-%dT%H:%M:%S").to_string())
}

/// The JSON object `text` as a table, in py-amqp's types.
pub(super) fn read_table(text: &str) -> Result<FieldTable, Unsayable> {
    let object = json::Object::parse(text).map_err(|error| Unsayable::Json(error.to_string()))?;
    let mut table = FieldTable::default();
    for (name, value) in object.iter() {
        table.insert(short(name)?, read_value(value)?);
    }
    Ok(table)
}

fn read_value(raw: &str) -> Result<AMQPValue, Unsayable> {
    let invalid = |error: serde_json::Error| Unsayable::Json(error.to_string());
    Ok(match raw.as_bytes().first() {
        Some(b'{') => AMQPValue::FieldTable(read_table(raw)?),
        Some(b'[') => {
            let mut array = FieldArray::default();
            for element in json::parse_array(raw).map_err(invalid)? {
                array.push(read_value(element)?);
            }
            AMQPValue::FieldArray(array)
        }
        Some(b'"') => {
            let text: Cow<'_, str> = json::as_str(raw).unwrap_or_default();
            AMQPValue::LongString(LongString::from(text.as_bytes()))
        }
        _ => match raw {
            "null" => AMQPValue::Void,
            "true" => AMQPValue::Boolean(true),
            "false" => AMQPValue::Boolean(false),
            number => read_number(number)?,
        },
    })
}

fn read_number(raw: &str) -> Result<AMQPValue, Unsayable> {
    let is_integer = !raw.contains(['.', 'e', 'E', 'N', 'I']);
    if !is_integer {
        return match raw.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(AMQPValue::Double(number)),
            _ => Err(Unsayable::Number(raw.to_owned())),
        };
    }
    raw.parse()
        .map(integer)
        .map_err(|_| Unsayable::Number(raw.to_owned()))
}

fn integer(number: i64) -> AMQPValue {
    match i32::try_from(number) {
        Ok(number) if number > -i32::MAX => AMQPValue::LongInt(number),
        _ => AMQPValue::LongLongInt(number),
    }
}

/// Arguments of a queue, an exchange or a consumer.
pub(super) fn arguments(
    arguments: &serde_json::Map<String, Value>,
) -> Result<FieldTable, Unsayable> {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert(short(name)?, read_value(&value.to_string())?);
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use lapin::types::ByteArray;

    use super::*;

    fn written(value: &AMQPValue) -> String {
        let mut text = String::new();
        write_value(value, MOST_LEVELS, &mut text).unwrap();
        text
    }

    #[test]
    fn values_are_written_as_kombu_would() {
        let bytes = |bytes: &[u8]| AMQPValue::LongString(LongString::from(bytes));
        for (value, expected) in [
            (AMQPValue::Boolean(true), "true"),
            (AMQPValue::Void, "null"),
            (AMQPValue::ShortShortInt(-5), "-5"),
            (AMQPValue::LongUInt(u32::MAX), "4294967295"),
            (AMQPValue::LongLongInt(i64::MIN), "-9223372036854775808"),
            (AMQPValue::Double(1.0), "1.0"),
            (AMQPValue::Double(f64::NAN), "NaN"),
            (AMQPValue::Double(f64::NEG_INFINITY), "-Infinity"),
            (AMQPValue::Float(0.5), "0.5"),
            (bytes(b"text \"\\ \xc3\xa9"), "\"text \\\"\\\\ \u{e9}\""),
            (
                bytes(b"\xff\x00"),
                r#"{"__type__": "base64", "__value__": "/wA="}"#,
            ),
            (
                AMQPValue::ByteArray(ByteArray::from(b"raw".as_slice())),
                r#"{"__type__": "bytes", "__value__": "raw"}"#,
            ),
            (
                AMQPValue::Timestamp(1_700_000_000),
                r#"{"__type__": "datetime", "__value__": "2023-11-14T22:13:20"}"#,
            ),
            (AMQPValue::Timestamp(u64::MAX / 4), "4611686018427387903"),
            (
                AMQPValue::DecimalValue(DecimalValue {
                    scale: 2,
                    value: 1250,
                }),
                r#"{"__type__": "decimal", "__value__": "12.5"}"#,
            ),
        ] {
            assert_eq!(written(&value), expected);
        }
    }

    #[test]
    fn decimals_are_pythons() {
        for (value, scale, expected) in [
            (0, 0, "0"),
            (0, 2, "0E-2"),
            (150, 2, "1.5"),
            (-1, 1, "-0.1"),
            (100, 2, "1"),
            (100, 0, "100"),
            (12, 8, "1.2E-7"),
            (1, 6, "0.000001"),
            (1, 255, "1E-255"),
            (i32::MIN, 1, "-214748364.8"),
        ] {
            let value = DecimalValue {
                scale,
                value: value as u32,
            };
            assert_eq!(decimal(value), expected);
        }
    }

    #[test]
    fn what_was_read_is_written_again() {
        let text = r#"{"a": null, "b": [1, -2147483648, 2147483647, 9223372036854775807, 1.5], "c": {"d": "\u00e9\n", "e": true}, "f": [], "g": {}}"#;
        let mut again = String::new();
        write_table(&read_table(text).unwrap(), &mut again).unwrap();
        assert_eq!(again, text.replace("\\u00e9", "\u{e9}"));
    }

    #[test]
    fn what_is_nested_too_deeply_is_not_written() {
        for (levels, expected) in [(498, Ok(())), (499, Ok(())), (500, Err(TooDeep))] {
            let mut value = AMQPValue::Void;
            for level in 0..levels {
                value = if level % 2 == 0 {
                    AMQPValue::FieldArray(vec![value].into())
                } else {
                    let mut table = FieldTable::default();
                    table.insert("".into(), value);
                    AMQPValue::FieldTable(table)
                };
            }
            let mut table = FieldTable::default();
            table.insert("".into(), value);
            assert_eq!(write_table(&table, &mut String::new()), expected);
        }
    }

    #[test]
    fn what_amqp_cannot_say_is_an_error() {
        let long = "x".repeat(256);
        for text in [
            format!(r#"{{"{long}": 1}}"#),
            r#"{"a": 9223372036854775808}"#.to_owned(),
            r#"{"a": [NaN]}"#.to_owned(),
            "[]".to_owned(),
            "rubbish".to_owned(),
        ] {
            assert!(read_table(&text).is_err(), "{text}");
        }
        let number = AMQPValue::LongInt(5);
        let mut map = serde_json::Map::new();
        map.insert("x-max-priority".to_owned(), 5.into());
        assert_eq!(
            arguments(&map).unwrap().inner().get("x-max-priority"),
            Some(&number)
        );
    }
}
