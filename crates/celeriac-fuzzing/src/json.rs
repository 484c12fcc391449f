//! JSON: what serde_json reads, we read, and mean the same by it; what we read besides is what
//! Python writes.

use celeriac_protocol::json::{self, Object};
use serde_json::Value;

pub(crate) fn check(bytes: &[u8]) {
    crate::with_text(bytes, check_text);
}

fn check_text(text: &str) {
    assert_eq!(json::as_str(&json::quote(text)).as_deref(), Some(text));
    let value = serde_json::from_str::<Value>(text).ok();
    let object = Object::parse(text).ok();
    match (&value, &object) {
        (Some(Value::Object(members)), None) => panic!("{members:?} is an object"),
        (Some(Value::Object(members)), Some(object)) => {
            for (name, member) in members {
                let raw = object.get(name).expect("every member is found");
                means(raw, member);
            }
        }
        (Some(other), Some(_)) => panic!("{other} is no object"),
        (None, Some(_)) => assert!(is_pythons(text), "{text}"),
        (_, None) => {}
    }
    if let Some(object) = object {
        let again = object.to_string();
        assert_eq!(Object::parse(&again).ok(), Some(object));
    }
    if let Ok(elements) = json::parse_array(text) {
        match &value {
            Some(Value::Array(values)) => {
                assert_eq!(elements.len(), values.len());
                for (raw, value) in elements.into_iter().zip(values) {
                    means(raw, value);
                }
            }
            Some(other) => panic!("{other} is no array"),
            None => assert!(is_pythons(text), "{text}"),
        }
    } else if let Some(Value::Array(values)) = &value {
        panic!("{values:?} is an array");
    }
    if let Some(value) = &value {
        let depth = depth(value);
        assert!(!json::is_deeper_than(text, depth), "{depth}");
        assert!(
            depth == 0 || text.len() < 2 * (depth - 1) || json::is_deeper_than(text, depth - 1)
        );
    }
}

/// `raw` is the text of `value`.
fn means(raw: &str, value: &Value) {
    assert_eq!(
        serde_json::from_str::<Value>(raw).ok().as_ref(),
        Some(value)
    );
    assert_eq!(json::as_str(raw).as_deref(), value.as_str());
    if let Some(number) = value.as_i64() {
        assert_eq!(json::as_i64(raw), Some(number));
    }
    let is_true = match value {
        Value::Null => false,
        Value::Bool(is_true) => *is_true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(elements) => !elements.is_empty(),
        Value::Object(members) => !members.is_empty(),
    };
    assert_eq!(json::is_truthy(raw), is_true, "{raw}");
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(elements) => 1 + elements.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Whether all that stands outside of strings is punctuation, or a word or number that Python's
/// `json` reads: it takes `NaN`, infinities, numbers that fit no float, lone surrogates, and any
/// depth that serde_json's `Value` does not.
fn is_pythons(text: &str) -> bool {
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_between = |c: char| " \t\r\n,:[]{}\"".contains(c);
        if first == '"' {
            let Some(length) = string(rest) else {
                return false;
            };
            rest = &rest[length..];
        } else if is_between(first) {
            rest = &rest[1..];
        } else {
            let length = rest.find(is_between).unwrap_or(rest.len());
            let (token, after) = rest.split_at(length);
            let is_word =
                ["true", "false", "null", "NaN", "Infinity", "-Infinity"].contains(&token);
            if !is_word && !is_number(token) {
                return false;
            }
            rest = after;
        }
    }
    true
}

/// The length of the string that `text` begins with.
fn string(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 1),
            '\0'..='\x1f' => return None,
            _ => {}
        }
    }
    None
}

fn is_number(token: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = token.strip_prefix('-').unwrap_or(token);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|text| digits(text.strip_prefix(['+', '-']).unwrap_or(text)))
}
