//! Results and exceptions as Python shows them, for lines of the log and for monitors.

use celeriac_protocol::{Exception, python, saferepr};
use serde_json::Value;

/// The longest representation of an exception, in bytes.
const LONGEST: usize = 32 * 1024;

/// A result, as long as `resultrepr_maxsize` says by default.
pub(crate) fn result(value: &Value) -> String {
    saferepr::value(value)
}

/// An exception: `ValueError('boom', 42)`.
pub(crate) fn exception(exception: &Exception) -> String {
    let arguments: Vec<_> = exception.exc_message.iter().map(python::repr).collect();
    let name = exception.exc_type.rsplit('.').next().unwrap_or_default();
    shortened(format!("{name}({})", arguments.join(", ")))
}

fn shortened(mut text: String) -> String {
    if text.len() > LONGEST {
        let end = (0..=LONGEST - 3)
            .rev()
            .find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_long_is_cut_between_characters() {
        let long = Exception::builtin("ValueError", "é".repeat(LONGEST));
        let shown = exception(&long);
        assert!(shown.len() <= LONGEST && shown.ends_with("..."));
        assert_eq!(result(&json!([1, null])), "[1, None]");
        let error = Exception {
            exc_message: vec![json!("boom"), json!(42)],
            ..Exception::builtin("ValueError", "")
        };
        assert_eq!(exception(&error), "ValueError('boom', 42)");
    }
}
