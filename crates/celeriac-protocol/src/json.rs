//! Reading JSON objects without deserialising what they hold.
//!
//! Headers and properties travel through the worker as the text that the producer wrote, so that
//! nothing is lost on the way to the task. [`Object`] gives access to single members as raw text.
//!
//! Python's `json` module writes `NaN`, `Infinity` and `-Infinity`, which JSON forbids and
//! serde_json rejects; [`Object::parse`] accepts them as Python does and keeps them in the text.

use std::borrow::Cow;
use std::fmt;
use std::ops::Not as _;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The members of a JSON object in their order, the values as raw JSON text.
///
/// A name that occurs twice is kept twice; [`Object::get`] answers with the last, as Python does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Object<'a> {
    members: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Object<'a> {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// When `text` is not one JSON object with nothing after it.
    pub fn parse(text: &'a str) -> Result<Self, serde_json::Error> {
        match serde_json::from_str::<RawObject<'_>>(text) {
            Ok(raw) => Ok(raw.borrow_from(text, text)),
            Err(error) => match mask_python_floats(text) {
                Some(masked) => {
                    Ok(serde_json::from_str::<RawObject<'_>>(&masked)?.borrow_from(&masked, text))
                }
                None => Err(error),
            },
        }
    }

    /// The raw JSON text of the member `name`, or `None`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.members
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_ref())
    }

    /// Like [`Object::get`], borrowing from the parsed text where the value still stands in it.
    pub fn take(&mut self, name: &str) -> Option<Cow<'a, str>> {
        let at = self.members.iter().rposition(|(key, _)| key == name)?;
        Some(self.members.swap_remove(at).1)
    }

    /// Sets the member `name` to the JSON text `value`, in place when it exists.
    pub fn set(&mut self, name: &'a str, value: impl Into<Cow<'a, str>>) {
        let value = value.into();
        match self.members.iter().rposition(|(key, _)| key == name) {
            Some(at) => self.members[at].1 = value,
            None => self.members.push((Cow::Borrowed(name), value)),
        }
    }

    /// Adds a member behind all others.
    pub fn push(&mut self, name: Cow<'a, str>, value: Cow<'a, str>) {
        self.members.push((name, value));
    }

    /// The members in order, each with what it owns.
    pub fn into_members(self) -> impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)> {
        self.members.into_iter()
    }

    /// Removes every member called `name`.
    pub fn remove(&mut self, name: &str) {
        self.members.retain(|(key, _)| key != name);
    }

    /// The members in order: name and raw JSON text.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.members
            .iter()
            .map(|(name, value)| (name.as_ref(), value.as_ref()))
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}

impl fmt::Display for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (at, (name, value)) in self.members.iter().enumerate() {
            if at > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{}: {value}", quote(name))?;
        }
        f.write_str("}")
    }
}

/// The elements of a JSON array as raw JSON text.
///
/// # Errors
/// When `text` is not one JSON array with nothing after it.
pub fn parse_array(text: &str) -> Result<Vec<&str>, serde_json::Error> {
    let masked = mask_python_floats(text);
    let parsed = masked.as_deref().unwrap_or(text);
    let elements = serde_json::from_str::<Vec<&RawValue>>(parsed)?;
    Ok(elements
        .into_iter()
        .map(|element| cut_out(element.get(), parsed, text))
        .collect())
}

/// Whether arrays and objects stand in each other more than `limit` deep, or seem to: `text` need
/// not be valid JSON.
pub fn is_deeper_than(text: &str, limit: usize) -> bool {
    // Each level takes two characters.
    if text.len() < 2 * limit {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// `text` as a JSON string, quotes included.
pub fn quote(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_else(|_| "\"\"".to_owned())
}

/// The string that the JSON text `raw` stands for; `None` when it is not a string.
pub fn as_str(raw: &str) -> Option<Cow<'_, str>> {
    #[derive(serde::Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Text<'_>>(raw)
        .ok()
        .map(|text| text.0)
}

/// The integer that the JSON text `raw` stands for.
pub fn as_i64(raw: &str) -> Option<i64> {
    raw.parse().ok()
}

/// Whether Python would take the JSON text `raw` for true (`None`, `0`, `""`, `[]`, `{}` are not).
pub fn is_truthy(raw: &str) -> bool {
    let empty = |open: char, close: char| {
        raw.strip_prefix(open)
            .and_then(|rest| rest.strip_suffix(close))
            .is_some_and(|inner| inner.trim().is_empty())
    };
    match raw {
        "null" | "false" | "\"\"" => false,
        _ if empty('[', ']') || empty('{', '}') => false,
        _ => raw.parse::<f64>().is_ok_and(|number| number == 0.0).not(),
    }
}

/// A parsed object whose values still point into the text it was parsed from.
struct RawObject<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl RawObject<'_> {
    /// The same object with its values cut out of `original`, which is as long as `parsed`.
    fn borrow_from<'t>(self, parsed: &str, original: &'t str) -> Object<'t> {
        let members = self
            .0
            .into_iter()
            .map(|(name, value)| {
                let value = cut_out(value.get(), parsed, original);
                (Cow::Owned(name.into_owned()), Cow::Borrowed(value))
            })
            .collect();
        Object { members }
    }
}

/// The part of `original` that stands where `part` stands in `parsed`, which is as long.
fn cut_out<'t>(part: &str, parsed: &str, original: &'t str) -> &'t str {
    let start = part.as_ptr() as usize - parsed.as_ptr() as usize;
    &original[start..start + part.len()]
}

impl<'de: 'a, 'a> Deserialize<'de> for RawObject<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<'a>(std::marker::PhantomData<&'a ()>);

        impl<'de: 'a, 'a> Visitor<'de> for Members<'a> {
            type Value = RawObject<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                #[derive(serde::Deserialize)]
                struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
                let mut members = Vec::with_capacity(24);
                while let Some(Name(name)) = map.next_key::<Name<'de>>()? {
                    members.push((name, map.next_value::<&'de RawValue>()?));
                }
                Ok(RawObject(members))
            }
        }

        deserializer.deserialize_map(Members(std::marker::PhantomData))
    }
}

/// Python's words for numbers that JSON does not have, and numbers that are as long.
const PYTHON_FLOATS: [(&str, &str); 3] = [
    ("NaN", "0.0"),
    ("Infinity", "0.000000"),
    ("-Infinity", "-0.000000"),
];

/// A copy of `text` with Python's `NaN` and `Infinity` replaced by numbers of the same length, so
/// that offsets stay true; `None` when it has neither. Only whole words are replaced: `NaN0` and
/// `-NaN` are no numbers for Python either.
fn mask_python_floats(text: &str) -> Option<String> {
    if !text.contains("NaN") && !text.contains("Infinity") {
        return None;
    }
    let is_between = |c: char| " \t\r\n,:[]{}".contains(c);
    let mut masked = String::with_capacity(text.len());
    let mut in_string = false;
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let step = if in_string {
            in_string = next != '"';
            // A backslash hides what follows it.
            let escaped = if next == '\\' {
                rest[1..].chars().next()
            } else {
                None
            };
            next.len_utf8() + escaped.map_or(0, char::len_utf8)
        } else {
            let begins_word = masked.chars().next_back().is_none_or(is_between);
            let is_word = |word: &str| {
                let after = rest.strip_prefix(word)?;
                after.chars().next().is_none_or(is_between).then_some(after)
            };
            let float = PYTHON_FLOATS
                .iter()
                .filter(|_| begins_word)
                .find_map(|(word, number)| Some((is_word(word)?, number)));
            if let Some((after, number)) = float {
                masked.push_str(number);
                rest = after;
                continue;
            }
            in_string = next == '"';
            next.len_utf8()
        };
        masked.push_str(&rest[..step]);
        rest = &rest[step..];
    }
    Some(masked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn depth_is_measured_outside_of_strings() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(is_deeper_than(&deep(11), 10));
        assert!(!is_deeper_than(&deep(10), 10));
        assert!(!is_deeper_than(&"[]".repeat(100), 10));
        assert!(!is_deeper_than(&format!(r#""\"{}""#, "[{".repeat(50)), 10));
        assert!(is_deeper_than(&"[".repeat(100_000), 500));
    }

    #[test]
    fn members_keep_their_text_and_order() {
        let text = r#"{"b": [1, {"x":null}] , "a":"q\"uote", "u": 1e5}"#;
        let object = Object::parse(text).unwrap();
        assert_eq!(object.get("b"), Some(r#"[1, {"x":null}]"#));
        assert_eq!(object.get("a"), Some(r#""q\"uote""#));
        assert_eq!(object.get("missing"), None);
        assert_eq!(
            object.to_string(),
            r#"{"b": [1, {"x":null}], "a": "q\"uote", "u": 1e5}"#
        );
    }

    #[test]
    fn the_last_of_two_members_counts() {
        let mut object = Object::parse(r#"{"a": 1, "a": 2}"#).unwrap();
        assert_eq!(object.get("a"), Some("2"));
        object.set("a", "3");
        assert_eq!(object.get("a"), Some("3"));
    }

    #[test]
    fn python_floats_are_read_and_kept() {
        let text = r#"{"x": NaN, "y": [-Infinity, Infinity], "s": "NaN \" Infinity", "é": 1}"#;
        let object = Object::parse(text).unwrap();
        assert_eq!(object.get("x"), Some("NaN"));
        assert_eq!(object.get("y"), Some("[-Infinity, Infinity]"));
        assert_eq!(object.get("s"), Some(r#""NaN \" Infinity""#));
        assert_eq!(object.get("é"), Some("1"));
    }

    #[test]
    fn elements_of_an_array_keep_their_text() {
        let elements = parse_array(r#"[{"a": NaN}, "x", [1, 2], null]"#).unwrap();
        assert_eq!(elements, [r#"{"a": NaN}"#, r#""x""#, "[1, 2]", "null"]);
        for text in ["", "{}", "[1,]", "[1] x"] {
            assert!(parse_array(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in [
            "",
            "[]",
            "null",
            "1",
            "{\"a\": }",
            "{} x",
            "{\"a\": nan}",
            "{\"a\": NaN0}",
            "{\"a\": 1NaN}",
            "{\"a\": -NaN}",
            "{\"a\": 1Infinity}",
            "{\"a\": --Infinity}",
            "{\"a\": \"\"NaN}",
            "NaN",
        ] {
            assert!(Object::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn deep_nesting_costs_no_stack() {
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(
            Object::parse(&deep).unwrap().get("a").map(str::len),
            Some(200_000)
        );
    }

    #[test]
    fn truth_is_python_truth() {
        for falsy in ["null", "false", "0", "0.0", "-0", "\"\"", "[]", "{}", "[ ]"] {
            assert!(!is_truthy(falsy), "{falsy}");
        }
        for truthy in ["true", "1", "\"0\"", "[0]", "{\"a\": 0}", "0.1", "NaN"] {
            assert!(is_truthy(truthy), "{truthy}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".{0,200}") {
            drop(Object::parse(&text));
            drop(mask_python_floats(&text));
        }

        #[test]
        fn writing_and_reading_agree(members in prop::collection::vec((".{0,8}", ".{0,8}"), 0..6)) {
            let mut text = Object::default();
            for (name, value) in &members {
                text.set(name, quote(value));
            }
            let written = text.to_string();
            let read = Object::parse(&written).unwrap();
            for (name, value) in read.iter() {
                prop_assert_eq!(text.get(name), Some(value));
            }
        }
    }
}
