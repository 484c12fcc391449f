//! The file `.env`: variables that are set where nobody exports them.
//!
//! The crates that read such files put values of other variables in place of `$NAME`, which would
//! change passwords that have a `$`, and do not tell in which line a variable stands.

use std::sync::Arc;

use super::source::{Layer, Problem, Source, position};

/// A variable of the file.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Variable {
    /// Its name.
    pub(super) name: String,
    /// Its value.
    pub(super) value: String,
    /// Whether the value has a `${…}`, which other readers of such files replace.
    pub(super) has_reference: bool,
    /// Where it stands.
    pub(super) source: Source,
}

impl std::fmt::Debug for Variable {
    /// Without the value, which may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Variable({} of {})", self.name, self.source)
    }
}

/// Reads the file: lines `NAME=value`, `export` before them or not. Values may stand in single
/// quotes, as they are, or in double quotes, where `\n`, `\t`, `\"`, `\\` and `\$` are escapes;
/// both may go over several lines. Of plain values ` #` begins a comment. A name alone sets nothing.
///
/// # Errors
/// With the line and the column of what can't be read.
pub(super) fn parse(file: &Arc<str>, text: &str) -> Result<Vec<Variable>, Problem> {
    let mut variables = Vec::new();
    let mut reader = Reader { text, at: 0 };
    let wrong = |at: usize, message: &str, hint: &str| {
        let (line, column) = position(text, at);
        let problem = Problem::new(format!("{file}:{line}:{column}"), message);
        problem.with_hint(Some(hint.to_owned()))
    };
    // Editors of Windows write a mark before the first line.
    reader.skip("\u{feff}");
    while reader.at < text.len() {
        reader.skip_spaces();
        if reader.skip("#") {
            reader.rest_of_line();
            continue;
        }
        if reader.skip("\n") {
            continue;
        }
        if reader.rest().is_empty() {
            break;
        }
        if reader.rest().starts_with("export ") || reader.rest().starts_with("export\t") {
            reader.skip("export");
            reader.skip_spaces();
        }
        let begin = reader.at;
        let (line, _) = position(text, begin);
        let name = reader.name();
        if name.is_empty() {
            return Err(wrong(
                begin,
                "this is no name of a variable",
                "write NAME=value, and # before comments",
            ));
        }
        reader.skip_spaces();
        if !reader.skip("=") {
            let after = reader.at;
            if !reader
                .rest_of_line()
                .split('#')
                .next()
                .unwrap_or("")
                .is_empty()
            {
                return Err(wrong(
                    after,
                    "there is no = after the name",
                    "write NAME=value",
                ));
            }
            continue;
        }
        reader.skip_spaces();
        let value_at = reader.at;
        let (value, has_reference) = match reader.rest().chars().next() {
            Some(quote @ ('"' | '\'')) => {
                let Some(value) = reader.quoted(quote) else {
                    let hint = format!("end the value with {quote}");
                    return Err(wrong(
                        value_at,
                        "the quotes of this value do not end",
                        &hint,
                    ));
                };
                let after = reader.at;
                let rest = reader.rest_of_line().trim();
                if !(rest.is_empty() || rest.starts_with('#')) {
                    let hint = "put the whole value into quotes";
                    return Err(wrong(after, "something follows the quotes", hint));
                }
                let has_reference = quote == '"' && value.contains("${");
                (value, has_reference)
            }
            _ => {
                let line = reader.rest_of_line();
                let value = match line.find(" #").or_else(|| line.find("\t#")) {
                    Some(comment) => &line[..comment],
                    None if line.starts_with('#') => "",
                    None => line,
                };
                (value.trim().to_owned(), value.contains("${"))
            }
        };
        variables.push(Variable {
            source: Source {
                name: Some(name.clone()),
                ..Source::line(Layer::Dotenv, file, line)
            },
            name,
            value,
            has_reference,
        });
    }
    Ok(variables)
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Reader<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn skip(&mut self, what: &str) -> bool {
        let is_there = self.rest().starts_with(what);
        if is_there {
            self.at += what.len();
        }
        is_there
    }

    fn skip_spaces(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\r']).len();
    }

    /// What is left of the line, which is skipped with its end.
    fn rest_of_line(&mut self) -> &'t str {
        let rest = self.rest();
        let line = rest.split('\n').next().unwrap_or(rest);
        self.at = (self.at + line.len() + 1).min(self.text.len());
        line
    }

    fn name(&mut self) -> String {
        let rest = self.rest();
        let end = rest
            .find(|letter: char| !(letter.is_ascii_alphanumeric() || "_.-".contains(letter)))
            .unwrap_or(rest.len());
        self.at += end;
        rest[..end].to_owned()
    }

    /// A value in quotes; `None` where they do not end.
    fn quoted(&mut self, quote: char) -> Option<String> {
        let mut value = String::new();
        let mut letters = self.rest().char_indices().skip(1);
        while let Some((at, letter)) = letters.next() {
            if letter == quote {
                self.at += at + 1;
                return Some(value);
            }
            if letter != '\\' || quote == '\'' {
                value.push(letter);
                continue;
            }
            match letters.next()?.1 {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'r' => value.push('\r'),
                escaped @ ('"' | '\\' | '$') => value.push(escaped),
                other => value.extend(['\\', other]),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String, usize)>, String> {
        let file = Arc::from(".env");
        let variables = parse(&file, text).map_err(|problem| problem.to_string())?;
        let parts = |it: Variable| (it.name, it.value, it.source.line);
        Ok(variables.into_iter().map(parts).collect())
    }

    #[test]
    fn values_are_plain_or_in_quotes() {
        for (text, expected) in [
            ("A=1", "1"),
            ("export A = 1 ", "1"),
            ("A=a b # comment", "a b"),
            ("A=a#b", "a#b"),
            ("A=pa$word", "pa$word"),
            ("A=# nothing", ""),
            ("A=", ""),
            ("A='a # \\n \"b'", "a # \\n \"b"),
            ("A=\"a\\n\\\"b\\\" \\$c \\d\" # comment", "a\n\"b\" $c \\d"),
            ("A='two\nlines'", "two\nlines"),
            ("\u{feff}A=1\r\n", "1"),
        ] {
            let line = ("A".to_owned(), expected.to_owned(), 1);
            assert_eq!(read(text), Ok(vec![line]), "{text}");
        }
    }

    #[test]
    fn lines_are_counted_over_values_of_several_lines() {
        let text = "# first\n\nA='x\ny'\nALONE\nB=2";
        let expected = [("A", "x\ny", 3), ("B", "2", 6)];
        let expected = expected.map(|(name, value, line)| (name.into(), value.into(), line));
        assert_eq!(read(text), Ok(expected.to_vec()));
    }

    #[test]
    fn what_can_not_be_read_is_named_with_line_and_column() {
        for (text, expected) in [
            ("A=1\n  =2", ".env:2:3: this is no name of a variable"),
            ("A=\"1", ".env:1:3: the quotes of this value do not end"),
            ("A='1' x", ".env:1:6: something follows the quotes"),
            ("A b", ".env:1:3: there is no = after the name"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn references_are_found_where_other_readers_replace_them() {
        for (text, expected) in [
            ("A=${B}", true),
            ("A=\"${B}\"", true),
            ("A='${B}'", false),
            ("A=$B", false),
        ] {
            let variables = parse(&Arc::from(".env"), text).unwrap();
            assert_eq!(variables[0].has_reference, expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[A-Za-z0-9='\"\\\\#$ \t\r\né-]{0,40}") {
            let _ = read(&text);
        }

        #[test]
        fn what_is_quoted_is_read_back(value in "[^']{0,40}") {
            let read = read(&format!("A='{value}'"));
            prop_assert_eq!(read, Ok(vec![("A".to_owned(), value, 1)]));
        }
    }
}
