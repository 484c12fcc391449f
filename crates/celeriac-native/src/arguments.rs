//! The arguments of a call, as its message has them.

use celeriac_protocol::Exception;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Positional arguments and arguments by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Arguments {
    /// By position.
    pub args: Vec<Value>,
    /// By name.
    pub kwargs: Map<String, Value>,
}

impl Arguments {
    /// The arguments in the order of a task's parameters, as Python would bind them: the value given
    /// for each, or `None` where its default holds.
    ///
    /// # Errors
    /// A `TypeError` in Python's words when there are too many, too few, or unknown ones.
    pub fn bind(self, task: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Option<Value>>> {
        let type_error =
            |text: String| Error::from(Exception::builtin("TypeError", format!("{task}() {text}")));
        let given = self.args.len();
        if given > parameters.len() {
            let plural = if parameters.len() == 1 { "" } else { "s" };
            let were = if given == 1 { "was" } else { "were" };
            return Err(type_error(format!(
                "takes {} positional argument{plural} but {given} {were} given",
                parameters.len()
            )));
        }
        let mut bound: Vec<Option<Value>> = self.args.into_iter().map(Some).collect();
        bound.resize(parameters.len(), None);
        for (name, value) in self.kwargs {
            let Some(at) = parameters.iter().position(|known| known.name == name) else {
                return Err(type_error(format!(
                    "got an unexpected keyword argument '{name}'"
                )));
            };
            if bound[at].is_some() {
                return Err(type_error(format!(
                    "got multiple values for argument '{name}'"
                )));
            }
            bound[at] = Some(value);
        }
        let missing: Vec<_> = parameters
            .iter()
            .zip(&bound)
            .filter(|(parameter, value)| value.is_none() && !parameter.has_default)
            .map(|(parameter, _)| format!("'{}'", parameter.name))
            .collect();
        if missing.is_empty() {
            return Ok(bound);
        }
        let plural = if missing.len() == 1 { "" } else { "s" };
        Err(type_error(format!(
            "missing {} required positional argument{plural}: {}",
            missing.len(),
            enumerate(&missing)
        )))
    }
}

/// One parameter of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it may be left out.
    pub has_default: bool,
}

/// Reads one argument.
///
/// # Errors
/// A `TypeError` that names the task, the argument, and what is wrong with it.
pub fn read<T: DeserializeOwned>(task: &str, name: &str, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| {
        Exception::builtin("TypeError", format!("{task}() argument '{name}': {error}")).into()
    })
}

/// As Python lists names: `'a'`, `'a' and 'b'`, `'a', 'b', and 'c'`.
fn enumerate(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [one, other] => format!("{one} and {other}"),
        [first @ .., last] => format!("{}, and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ADD: [Parameter<'_>; 3] = [
        Parameter {
            name: "x",
            has_default: false,
        },
        Parameter {
            name: "y",
            has_default: false,
        },
        Parameter {
            name: "z",
            has_default: true,
        },
    ];

    fn bind(args: Value, kwargs: Value) -> std::result::Result<Vec<Option<Value>>, String> {
        let arguments = Arguments {
            args: serde_json::from_value(args).unwrap(),
            kwargs: serde_json::from_value(kwargs).unwrap(),
        };
        arguments
            .bind("add", &ADD)
            .map_err(|error| error.exception().to_string())
    }

    #[test]
    fn arguments_are_bound_as_python_binds_them() {
        let expected = Ok(vec![Some(json!(1)), Some(json!(2)), None]);
        assert_eq!(bind(json!([1, 2]), json!({})), expected);
        assert_eq!(bind(json!([1]), json!({"y": 2})), expected);
        assert_eq!(bind(json!([]), json!({"y": 2, "x": 1})), expected);
        for (args, kwargs, error) in [
            (
                json!([1, 2, 3, 4]),
                json!({}),
                "TypeError: add() takes 3 positional arguments but 4 were given",
            ),
            (
                json!([1]),
                json!({}),
                "TypeError: add() missing 1 required positional argument: 'y'",
            ),
            (
                json!([]),
                json!({}),
                "TypeError: add() missing 2 required positional arguments: 'x' and 'y'",
            ),
            (
                json!([1, 2]),
                json!({"x": 1}),
                "TypeError: add() got multiple values for argument 'x'",
            ),
            (
                json!([1, 2]),
                json!({"w": 1}),
                "TypeError: add() got an unexpected keyword argument 'w'",
            ),
        ] {
            assert_eq!(bind(args, kwargs), Err(error.to_owned()));
        }
    }

    #[test]
    fn a_wrong_type_is_named() {
        let error = read::<i64>("add", "x", json!("two")).unwrap_err();
        assert_eq!(
            error.exception().to_string(),
            "TypeError: add() argument 'x': invalid type: string \"two\", expected i64"
        );
    }
}
