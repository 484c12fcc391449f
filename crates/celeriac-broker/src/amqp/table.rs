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
use serde_json::Value;

use super::wire::octets::{Malformed, Octets, put_long, put_short_text};

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
    /// Headers and properties go in one frame.
    #[error("the headers take {0} bytes, more than a frame of AMQP has room for")]
    TooLarge(usize),
}

/// How deep tables and arrays may stand in one another: Python's `json` reads somewhat less than
/// 1,000 levels, in a thread with little stack.
const MOST_LEVELS: usize = 500;

/// Why a table can't be written as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    /// No Python would read it.
    #[error("the headers are nested too deeply")]
    TooDeep,
    /// It ends too early, or holds a type that RabbitMQ does not know.
    #[error("the headers are malformed")]
    Malformed,
}

impl From<Malformed> for Unreadable {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed
    }
}

/// The members of a table as a JSON object.
pub(super) fn write_table(members: &[u8], to: &mut String) -> Result<(), Unreadable> {
    write_members(members, MOST_LEVELS, to)
}

fn write_members(members: &[u8], levels: usize, to: &mut String) -> Result<(), Unreadable> {
    let levels = levels.checked_sub(1).ok_or(Unreadable::TooDeep)?;
    let mut octets = Octets(members);
    to.push('{');
    while !octets.is_empty() {
        if octets.0.len() < members.len() {
            to.push_str(", ");
        }
        write_text(&octets.short_text()?, to);
        to.push_str(": ");
        write_value(&mut octets, levels, to)?;
    }
    to.push('}');
    Ok(())
}

fn write_elements(elements: &[u8], levels: usize, to: &mut String) -> Result<(), Unreadable> {
    let levels = levels.checked_sub(1).ok_or(Unreadable::TooDeep)?;
    let mut octets = Octets(elements);
    to.push('[');
    while !octets.is_empty() {
        if octets.0.len() < elements.len() {
            to.push_str(", ");
        }
        write_value(&mut octets, levels, to)?;
    }
    to.push(']');
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

/// The types are RabbitMQ's, which differ from the specification's in `s`.
fn write_value(octets: &mut Octets<'_>, levels: usize, to: &mut String) -> Result<(), Unreadable> {
    match octets.octet()? {
        b'S' => write_bytes(octets.long_bytes()?, true, to),
        b'x' => write_bytes(octets.long_bytes()?, false, to),
        b't' => to.push_str(if octets.octet()? == 0 {
            "false"
        } else {
            "true"
        }),
        b'V' => to.push_str("null"),
        b'b' => write_integer(i8::from_be_bytes(octets.array()?).into(), to),
        b'B' => write_integer(octets.octet()?.into(), to),
        b's' | b'U' => write_integer(i16::from_be_bytes(octets.array()?).into(), to),
        b'u' => write_integer(octets.short()?.into(), to),
        b'I' => write_integer(i32::from_be_bytes(octets.array()?).into(), to),
        b'i' => write_integer(octets.long()?.into(), to),
        b'L' | b'l' => write_integer(i64::from_be_bytes(octets.array()?), to),
        b'f' => write_float(f32::from_be_bytes(octets.array()?).into(), to),
        b'd' => write_float(f64::from_be_bytes(octets.array()?), to),
        b'D' => {
            let scale = octets.octet()?;
            let value = i32::from_be_bytes(octets.array()?);
            write_marked("decimal", &decimal(value, scale), to);
        }
        b'T' => {
            let seconds = octets.long_long()?;
            match datetime(seconds) {
                Some(datetime) => write_marked("datetime", &datetime, to),
                // Beyond what Python's datetime can say, py-amqp fails; the number says it all.
                None => write_integer(seconds as i64, to),
            }
        }
        b'F' => write_members(octets.long_bytes()?, levels, to)?,
        b'A' => write_elements(octets.long_bytes()?, levels, to)?,
        _ => return Err(Unreadable::Malformed),
    }
    Ok(())
}

/// A member of a table as it stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member<'t> {
    pub(super) name: &'t [u8],
    /// Its type and its value.
    pub(super) value: &'t [u8],
    /// All of it.
    pub(super) whole: &'t [u8],
}

/// The members of a table one after the other, at the first level only.
pub(super) fn members(members: &[u8]) -> impl Iterator<Item = Result<Member<'_>, Malformed>> {
    let mut octets = Octets(members);
    std::iter::from_fn(move || {
        (!octets.is_empty()).then(|| {
            let whole = octets.0;
            let name = octets.short_bytes()?;
            let value = octets.0;
            skip_value(&mut octets)?;
            let left = octets.0.len();
            Ok(Member {
                name,
                value: &value[..value.len() - left],
                whole: &whole[..whole.len() - left],
            })
        })
    })
}

/// The type and the value of a member of a table; the last, where there are several.
pub(super) fn find<'t>(table: &'t [u8], name: &str) -> Option<&'t [u8]> {
    let mut found = None;
    for member in members(table) {
        let member = member.ok()?;
        if member.name == name.as_bytes() {
            found = Some(member.value);
        }
    }
    found
}

/// The text of a member of a table, where it is a text.
pub(super) fn find_text<'t>(table: &'t [u8], name: &str) -> Option<&'t [u8]> {
    match find(table, name)? {
        [b'S', text @ ..] => Octets(text).long_bytes().ok(),
        _ => None,
    }
}

/// The members of a member of a table, where that is a table.
pub(super) fn find_table<'t>(table: &'t [u8], name: &str) -> Option<&'t [u8]> {
    match find(table, name)? {
        [b'F', members @ ..] => Octets(members).long_bytes().ok(),
        _ => None,
    }
}

/// Writes a member that is a text.
pub(super) fn put_text(name: &str, text: &str, to: &mut Vec<u8>) -> Result<(), Unsayable> {
    put_short_text(name, to)?;
    to.push(b'S');
    put_long(to, |to| {
        to.extend_from_slice(text.as_bytes());
        Ok(())
    })
}

/// Writes a member that is a table, of the members that `write` writes.
pub(super) fn put_members(
    name: &str,
    to: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), Unsayable>,
) -> Result<(), Unsayable> {
    put_short_text(name, to)?;
    to.push(b'F');
    put_long(to, write)
}

fn skip_value(octets: &mut Octets<'_>) -> Result<(), Malformed> {
    let length = match octets.octet()? {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'U' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'L' | b'l' | b'd' | b'T' => 8,
        b'S' | b'x' | b'F' | b'A' => return octets.long_bytes().map(drop),
        _ => return Err(Malformed),
    };
    octets.bytes(length).map(drop)
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
fn decimal(value: i32, scale: u8) -> String {
    let (mut digits, mut scale) = (
        i64::from(value).unsigned_abs().to_string(),
        usize::from(scale),
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

/// Writes the JSON object `text` as a table, in py-amqp's types.
pub(super) fn put_table(text: &str, to: &mut Vec<u8>) -> Result<(), Unsayable> {
    let object = json::Object::parse(text).map_err(|error| Unsayable::Json(error.to_string()))?;
    put_long(to, |to| {
        for (name, value) in object.iter() {
            put_short_text(name, to)?;
            put_value(value, to)?;
        }
        Ok(())
    })
}

/// Writes arguments of a queue, an exchange or a consumer.
pub(super) fn put_arguments(
    arguments: &serde_json::Map<String, Value>,
    to: &mut Vec<u8>,
) -> Result<(), Unsayable> {
    put_long(to, |to| {
        for (name, value) in arguments {
            put_short_text(name, to)?;
            put_value(&value.to_string(), to)?;
        }
        Ok(())
    })
}

fn put_value(raw: &str, to: &mut Vec<u8>) -> Result<(), Unsayable> {
    match raw.as_bytes().first() {
        Some(b'{') => {
            to.push(b'F');
            put_table(raw, to)?;
        }
        Some(b'[') => {
            let elements =
                json::parse_array(raw).map_err(|error| Unsayable::Json(error.to_string()))?;
            to.push(b'A');
            put_long(to, |to| {
                let mut elements = elements.into_iter();
                elements.try_for_each(|element| put_value(element, to))
            })?;
        }
        Some(b'"') => {
            let text: Cow<'_, str> = json::as_str(raw).unwrap_or_default();
            to.push(b'S');
            put_long::<Unsayable>(to, |to| {
                to.extend_from_slice(text.as_bytes());
                Ok(())
            })?;
        }
        _ => match raw {
            "null" => to.push(b'V'),
            "true" => to.extend_from_slice(b"t\x01"),
            "false" => to.extend_from_slice(b"t\x00"),
            number => put_number(number, to)?,
        },
    }
    Ok(())
}

fn put_number(raw: &str, to: &mut Vec<u8>) -> Result<(), Unsayable> {
    let unsayable = || Unsayable::Number(raw.to_owned());
    let is_integer = !raw.contains(['.', 'e', 'E', 'N', 'I']);
    if !is_integer {
        let number: f64 = raw.parse().map_err(|_| unsayable())?;
        if !number.is_finite() {
            return Err(unsayable());
        }
        to.push(b'd');
        to.extend_from_slice(&number.to_be_bytes());
        return Ok(());
    }
    let number: i64 = raw.parse().map_err(|_| unsayable())?;
    match i32::try_from(number) {
        Ok(number) if number > -i32::MAX => {
            to.push(b'I');
            to.extend_from_slice(&number.to_be_bytes());
        }
        _ => {
            to.push(b'L');
            to.extend_from_slice(&number.to_be_bytes());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(value: &[u8]) -> String {
        let mut text = String::new();
        let mut octets = Octets(value);
        write_value(&mut octets, MOST_LEVELS, &mut text).unwrap();
        assert!(octets.is_empty(), "{text}");
        let mut octets = Octets(value);
        skip_value(&mut octets).unwrap();
        assert!(octets.is_empty(), "{text} is skipped");
        text
    }

    fn long(kind: u8, bytes: &[u8]) -> Vec<u8> {
        let length = (bytes.len() as u32).to_be_bytes();
        [&[kind], &length[..], bytes].concat()
    }

    fn number<const N: usize>(kind: u8, bytes: [u8; N]) -> Vec<u8> {
        [&[kind], &bytes[..]].concat()
    }

    #[test]
    fn values_are_written_as_kombu_would() {
        for (value, expected) in [
            (b"t\x01".to_vec(), "true"),
            (b"t\x00".to_vec(), "false"),
            (b"V".to_vec(), "null"),
            (number(b'b', (-5_i8).to_be_bytes()), "-5"),
            (number(b'B', [251]), "251"),
            (number(b's', (-2_i16).to_be_bytes()), "-2"),
            (number(b'U', (-2_i16).to_be_bytes()), "-2"),
            (number(b'u', u16::MAX.to_be_bytes()), "65535"),
            (number(b'I', (-1_i32).to_be_bytes()), "-1"),
            (number(b'i', u32::MAX.to_be_bytes()), "4294967295"),
            (number(b'L', i64::MIN.to_be_bytes()), "-9223372036854775808"),
            (number(b'l', (-1000_i64).to_be_bytes()), "-1000"),
            (number(b'd', 1.0_f64.to_be_bytes()), "1.0"),
            (number(b'd', f64::NAN.to_be_bytes()), "NaN"),
            (number(b'd', f64::NEG_INFINITY.to_be_bytes()), "-Infinity"),
            (number(b'f', 0.5_f32.to_be_bytes()), "0.5"),
            (
                long(b'S', b"text \"\\ \xc3\xa9"),
                "\"text \\\"\\\\ \u{e9}\"",
            ),
            (
                long(b'S', b"\xff\x00"),
                r#"{"__type__": "base64", "__value__": "/wA="}"#,
            ),
            (
                long(b'x', b"raw"),
                r#"{"__type__": "bytes", "__value__": "raw"}"#,
            ),
            (
                number(b'T', 1_700_000_000_u64.to_be_bytes()),
                r#"{"__type__": "datetime", "__value__": "2023-11-14T22:13:20"}"#,
            ),
            (
                number(b'T', (u64::MAX / 4).to_be_bytes()),
                "4611686018427387903",
            ),
            (
                b"D\x02\x00\x00\x04\xe2".to_vec(),
                r#"{"__type__": "decimal", "__value__": "12.5"}"#,
            ),
            (long(b'A', b""), "[]"),
            (long(b'A', b"VVt\x01"), "[null, null, true]"),
            (
                long(b'F', b"\x01aV\x01\xffV"),
                "{\"a\": null, \"\u{fffd}\": null}",
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
            assert_eq!(decimal(value, scale), expected);
        }
    }

    fn table(text: &str) -> Vec<u8> {
        let mut table = Vec::new();
        put_table(text, &mut table).unwrap();
        table.split_off(4)
    }

    #[test]
    fn what_was_read_is_written_again() {
        let text = r#"{"a": null, "b": [1, -2147483648, 2147483647, 9223372036854775807, 1.5], "c": {"d": "\u00e9\n", "e": true}, "f": [], "g": {}}"#;
        let mut again = String::new();
        write_table(&table(text), &mut again).unwrap();
        assert_eq!(again, text.replace("\\u00e9", "\u{e9}"));
    }

    #[test]
    fn what_is_nested_too_deeply_is_not_written() {
        for (levels, expected) in [
            (498, Ok(())),
            (499, Ok(())),
            (500, Err(Unreadable::TooDeep)),
            (10_000, Err(Unreadable::TooDeep)),
        ] {
            let mut value = b"V".to_vec();
            for level in 0..levels {
                value = if level % 2 == 0 {
                    long(b'A', &value)
                } else {
                    long(b'F', &[&[0], &value[..]].concat())
                };
            }
            let members = [&[0], &value[..]].concat();
            assert_eq!(write_table(&members, &mut String::new()), expected);
        }
    }

    #[test]
    fn what_is_malformed_is_not_written() {
        for members in [
            &b"\x01"[..],
            b"\x01a",
            b"\x01aS\x00",
            b"\x01a?",
            b"\x01aA\x00\x00\x00\x01S",
        ] {
            assert_eq!(
                write_table(members, &mut String::new()),
                Err(Unreadable::Malformed)
            );
        }
    }

    #[test]
    fn a_text_is_found_behind_anything() {
        let members = table(r#"{"a": [1, {"eta": "x"}], "b": 2.5, "eta": "then", "c": null}"#);
        assert_eq!(find_text(&members, "eta"), Some(&b"then"[..]));
        assert_eq!(find_text(&members, "b"), None);
        assert_eq!(find_text(&members, "d"), None);
        assert_eq!(find_text(&members[..members.len() - 1], "eta"), None);
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
            assert!(put_table(&text, &mut Vec::new()).is_err(), "{text}");
        }
        let mut map = serde_json::Map::new();
        map.insert("x-max-priority".to_owned(), 5.into());
        let mut put = Vec::new();
        put_arguments(&map, &mut put).unwrap();
        assert_eq!(put, b"\x00\x00\x00\x14\x0ex-max-priorityI\x00\x00\x00\x05");
    }
}
