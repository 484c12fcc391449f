//! Words with placeholders for the arguments of a call: `--width={width}`.

use celeriac_protocol::Exception;
use serde_json::{Map, Value};

/// A word with placeholders.
///
/// `{name}` stands for an argument, `{name...}` as a whole word for the words of a list, and `{{`
/// and `}}` for braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Argument(String),
    Words(String),
}

/// What is wrong with a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A `{` without its `}`, or the other way round.
    #[error("`{0}` has a brace without its partner; a brace as such is written `{{{{` or `}}}}`")]
    Unbalanced(String),
    /// What is between braces is no name.
    #[error(
        "`{{{0}}}` is no placeholder: between braces stands the name of an argument; a brace as \
         such is written `{{{{` or `}}}}`"
    )]
    NoName(String),
    /// Several words within a word.
    #[error("`{{{0}...}}` stands for several words: it has to be a word of its own")]
    WordsWithin(String),
}

impl Template {
    /// Reads one.
    ///
    /// # Errors
    /// When a brace stands alone, or something other than a name stands between two.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text.chars().peekable();
        while let Some(next) = rest.next() {
            match next {
                '{' | '}' if rest.peek() == Some(&next) => {
                    rest.next();
                    plain.push(next);
                }
                '{' => {
                    let mut name = String::new();
                    loop {
                        match rest.next() {
                            Some('}') => break,
                            Some(letter) => name.push(letter),
                            None => return Err(Error::Unbalanced(text.to_owned())),
                        }
                    }
                    if !plain.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut plain)));
                    }
                    parts.push(Part::read(&name)?);
                }
                '}' => return Err(Error::Unbalanced(text.to_owned())),
                letter => plain.push(letter),
            }
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        if parts.len() > 1
            && let Some(Part::Words(name)) = parts.iter().find(|it| matches!(it, Part::Words(_)))
        {
            return Err(Error::WordsWithin(name.clone()));
        }
        Ok(Self(parts))
    }

    /// The names of the arguments that it stands for.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Argument(name) | Part::Words(name) => Some(name.as_str()),
        })
    }

    /// Whether it stands for any number of words.
    pub fn is_list(&self) -> bool {
        matches!(self.0.as_slice(), [Part::Words(_)])
    }

    /// The text with these arguments.
    ///
    /// # Errors
    /// A `TypeError` or `ValueError` when an argument can't stand in a command.
    pub fn text(&self, arguments: &Map<String, Value>) -> Result<String, Exception> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Argument(name) | Part::Words(name) => {
                    text.push_str(&word(name, arguments.get(name).unwrap_or(&Value::Null))?);
                }
            }
        }
        Ok(text)
    }

    /// The words with these arguments: one, unless a list stands for several.
    ///
    /// # Errors
    /// As [`Self::text`]; a `TypeError` when what is to be a list is none.
    pub fn words(&self, arguments: &Map<String, Value>) -> Result<Vec<String>, Exception> {
        let [Part::Words(name)] = self.0.as_slice() else {
            return Ok(vec![self.text(arguments)?]);
        };
        match arguments.get(name) {
            Some(Value::Array(items)) => items.iter().map(|item| word(name, item)).collect(),
            _ => Err(Exception::builtin(
                "TypeError",
                format!("argument '{name}' has to be a list"),
            )),
        }
    }
}

impl Part {
    fn read(between: &str) -> Result<Self, Error> {
        let name = between.strip_suffix("...").unwrap_or(between);
        let mut letters = name.chars();
        let is_name = letters
            .next()
            .is_some_and(|first| first.is_alphabetic() || first == '_')
            && letters.all(|letter| letter.is_alphanumeric() || letter == '_');
        if !is_name {
            return Err(Error::NoName(between.to_owned()));
        }
        Ok(if name.len() < between.len() {
            Self::Words(name.to_owned())
        } else {
            Self::Argument(name.to_owned())
        })
    }
}

/// An argument as a word: text as it is, all else as JSON.
fn word(name: &str, value: &Value) -> Result<String, Exception> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null => {
            let text = format!("argument '{name}' is None, which no command can be given");
            return Err(Exception::builtin("TypeError", text));
        }
        other => other.to_string(),
    };
    if text.contains('\0') {
        let text = format!("argument '{name}' has a null character, which no command can be given");
        return Err(Exception::builtin("ValueError", text));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn words(template: &str, arguments: Value) -> Result<Vec<String>, String> {
        let Value::Object(arguments) = arguments else {
            panic!("{arguments}");
        };
        let template = Template::parse(template).map_err(|error| error.to_string())?;
        template
            .words(&arguments)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn placeholders_stand_for_arguments() {
        for (template, arguments, expected) in [
            ("plain", json!({}), vec!["plain"]),
            (
                "--width={width}px",
                json!({"width": 3}),
                vec!["--width=3px"],
            ),
            ("{a}{b}", json!({"a": "x y", "b": "$(z)"}), vec!["x y$(z)"]),
            ("{{{a}}}", json!({"a": true}), vec!["{true}"]),
            ("{a}", json!({"a": [1, "2"]}), vec!["[1,\"2\"]"]),
            (
                "{a...}",
                json!({"a": [1, "two words"]}),
                vec!["1", "two words"],
            ),
            ("{a...}", json!({"a": []}), vec![]),
        ] {
            assert_eq!(words(template, arguments).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (template, arguments, expected) in [
            ("{a", json!({}), "`{a` has a brace without its partner"),
            ("a}", json!({}), "`a}` has a brace without its partner"),
            ("{}", json!({}), "`{}` is no placeholder"),
            ("{a-b}", json!({}), "`{a-b}` is no placeholder"),
            ("-{a...}", json!({}), "`{a...}` stands for several words"),
            ("{a}", json!({"a": null}), "TypeError: argument 'a' is None"),
            (
                "{a}",
                json!({"a": "\0"}),
                "ValueError: argument 'a' has a null character",
            ),
            (
                "{a...}",
                json!({"a": "b"}),
                "TypeError: argument 'a' has to be a list",
            ),
        ] {
            let error = words(template, arguments).unwrap_err();
            assert!(error.starts_with(expected), "{template}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_can_be_written(text: String) {
            let template = Template::parse(&text.replace('{', "{{").replace('}', "}}")).unwrap();
            prop_assert_eq!(template.text(&Map::new()).unwrap(), text);
        }
    }
}
