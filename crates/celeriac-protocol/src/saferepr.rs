//! Values as Python would show them, and not too much of them: the headers `argsrepr` and
//! `kwargsrepr`.
//!
//! Celery's counterpart: `celery.utils.saferepr`.

use serde_json::{Map, Value};

use crate::dumps;

/// How much is shown at most, in characters: Celery's `argsrepr_maxsize`.
const MOST: usize = 1024;
/// How deep it is shown: Celery's `task_repr_maxlevels`.
const LEVELS: usize = 3;

/// Positional arguments as Python shows a tuple.
pub fn arguments(arguments: &[Value]) -> String {
    let mut shown = Shown::new();
    let close = if arguments.len() == 1 { ",)" } else { ")" };
    shown.sequence("(", arguments, close, 1);
    shown.text
}

/// Arguments by name as Python shows a dict.
pub fn named_arguments(arguments: &Map<String, Value>) -> String {
    let mut shown = Shown::new();
    shown.mapping(arguments, 1);
    shown.text
}

/// Any value.
pub fn value(value: &Value) -> String {
    let mut shown = Shown::new();
    shown.value(value, 0);
    shown.text
}

struct Shown {
    text: String,
    /// How many characters there is room for.
    left: usize,
    /// Whether there was no room: what is open is closed, and nothing else follows.
    is_cut: bool,
}

impl Shown {
    fn new() -> Self {
        Self {
            text: String::new(),
            left: MOST,
            is_cut: false,
        }
    }

    /// Adds text, if there is room for any; tells whether.
    fn put(&mut self, text: &str) -> bool {
        if self.is_cut {
            return false;
        }
        if self.left == 0 {
            self.text.push_str(", ...");
            self.is_cut = true;
            return false;
        }
        self.text.push_str(text);
        self.left = self.left.saturating_sub(text.chars().count());
        true
    }

    /// Closes what was opened; there is always room for that.
    fn close(&mut self, text: &str) {
        self.text.push_str(text);
        self.left = self.left.saturating_sub(text.chars().count());
    }

    fn quoted(&mut self, text: &str) {
        if self.is_cut {
            return;
        }
        let text = truncated(text, self.left).replace('\'', "\\'");
        self.put(&format!("'{text}'"));
    }

    fn value(&mut self, value: &Value, level: usize) {
        match value {
            Value::Null => drop(self.put("None")),
            Value::Bool(true) => drop(self.put("True")),
            Value::Bool(false) => drop(self.put("False")),
            Value::Number(number) => {
                let shown = match number.as_f64().filter(|_| number.is_f64()) {
                    Some(float) => dumps::float(float),
                    None => number.to_string(),
                };
                self.put(&truncated(&shown, self.left));
            }
            Value::String(text) => self.quoted(text),
            Value::Array(_) if level >= LEVELS => drop(self.put("[...]")),
            Value::Object(_) if level >= LEVELS => drop(self.put("{...}")),
            Value::Array(elements) => self.sequence("[", elements, "]", level + 1),
            Value::Object(members) => self.mapping(members, level + 1),
        }
    }

    fn sequence(&mut self, open: &str, elements: &[Value], close: &str, level: usize) {
        if !self.put(open) {
            return;
        }
        for (at, element) in elements.iter().enumerate() {
            if at > 0 && !self.put(", ") {
                break;
            }
            self.value(element, level);
        }
        self.close(close);
    }

    fn mapping(&mut self, members: &Map<String, Value>, level: usize) {
        if !self.put("{") {
            return;
        }
        for (at, (name, value)) in members.iter().enumerate() {
            if at > 0 && !self.put(", ") {
                break;
            }
            self.quoted(name);
            self.put(": ");
            self.value(value, level);
        }
        self.close("}");
    }
}

/// `celery.utils.text.truncate`: cut at the last space before the end, with dots. No room at all
/// cuts nothing.
fn truncated(text: &str, most: usize) -> String {
    let is_short = text.chars().nth(most.saturating_sub(1)).is_none();
    if most == 0 || is_short {
        return text.to_owned();
    }
    let cut: String = text.chars().take(most).collect();
    let kept = cut.rsplit_once(' ').map_or(&*cut, |(kept, _)| kept);
    format!("{kept}...")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(args: &Value) -> String {
        arguments(args.as_array().unwrap())
    }

    #[test]
    fn it_is_what_celery_shows() {
        for (args, expected) in [
            (json!([2, 3]), "(2, 3)"),
            (json!([]), "()"),
            (json!([1]), "(1,)"),
            (
                json!(["it's", null, true, 1.5, 1e20]),
                "('it\\'s', None, True, 1.5, 1e+20)",
            ),
            (json!([{"a": [1, {"b": [2]}]}]), "({'a': [1, {...}]},)"),
            (json!(["a\nb"]), "('a\nb',)"),
        ] {
            assert_eq!(shown(&args), expected);
        }
        let Value::Object(kwargs) = json!({"x": 1, "y": "z"}) else {
            unreachable!()
        };
        assert_eq!(named_arguments(&kwargs), "{'x': 1, 'y': 'z'}");
    }

    /// Written by `celery.utils.saferepr` 5.7.
    #[test]
    fn what_is_long_is_cut_as_celery_cuts_it() {
        let shown = shown(&json!(["x".repeat(2000), 5]));
        assert_eq!(shown, format!("('{}...', ...)", "x".repeat(1023)));
        let numbers: Vec<Value> = (0..2000).map(Value::from).collect();
        let shown = arguments(&numbers);
        assert!(shown.ends_with(", ...)"), "{shown}");
        assert!(shown.chars().count() < 1040);
    }
}
