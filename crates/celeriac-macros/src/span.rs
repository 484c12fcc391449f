//! Spans of time as an attribute has them: `"30s"`, `"1.5h"`, or a number of seconds.

use syn::{Error, Lit, Result};

/// Units, and how many seconds each has.
const UNITS: [(&str, f64); 5] = [
    ("ms", 0.001),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
    ("d", 86_400.0),
];

/// The seconds that a literal stands for.
pub(crate) fn seconds(literal: &Lit) -> Result<f64> {
    let wrong = || {
        let text = "write a span of time, such as \"30s\", \"500ms\", \"5m\", or seconds: 1.5";
        Error::new_spanned(literal, text)
    };
    let seconds = match literal {
        Lit::Int(number) => number.base10_parse::<f64>()?,
        Lit::Float(number) => number.base10_parse::<f64>()?,
        Lit::Str(text) => parse(&text.value()).ok_or_else(wrong)?,
        _ => return Err(wrong()),
    };
    if seconds.is_finite() && seconds >= 0.0 {
        Ok(seconds)
    } else {
        Err(wrong())
    }
}

fn parse(text: &str) -> Option<f64> {
    let text = text.trim();
    let end = text
        .find(|it: char| !(it.is_ascii_digit() || it == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().ok()?;
    let unit = unit.trim();
    if unit.is_empty() {
        return Some(number);
    }
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
    Some(number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_units() {
        for (text, seconds) in [
            ("30s", Some(30.0)),
            ("500ms", Some(0.5)),
            ("1.5h", Some(5400.0)),
            ("2 m", Some(120.0)),
            ("7", Some(7.0)),
            ("1d", Some(86_400.0)),
            ("soon", None),
            ("3 weeks", None),
            ("", None),
        ] {
            assert_eq!(parse(text), seconds, "{text}");
        }
    }
}
