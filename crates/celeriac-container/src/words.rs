//! A command line as words, as Python's `shlex.split` makes them: the Docker SDK splits by it.

/// What is wrong with a command line, in Python's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A quote without its partner.
    #[error("No closing quotation")]
    Quotation,
    /// A backslash at the end.
    #[error("No escaped character")]
    Escape,
}

/// The words of a line.
///
/// # Errors
/// As Python's: a quote that is not closed, or a backslash at the end.
pub fn split(line: &str) -> Result<Vec<String>, Error> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            ' ' | '\t' | '\r' | '\n' => words.extend(word.take()),
            '\\' => {
                let escaped = letters.next().ok_or(Error::Escape)?;
                word.get_or_insert_default().push(escaped);
            }
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match letters.next().ok_or(Error::Quotation)? {
                        '\'' => break,
                        quoted => word.push(quoted),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match letters.next().ok_or(Error::Quotation)? {
                        '"' => break,
                        '\\' => {
                            let escaped = letters.next().ok_or(Error::Escape)?;
                            if !matches!(escaped, '"' | '\\') {
                                word.push('\\');
                            }
                            word.push(escaped);
                        }
                        quoted => word.push(quoted),
                    }
                }
            }
            plain => word.get_or_insert_default().push(plain),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines, and what Python 3.12 makes of them.
    #[test]
    fn words_are_python_s() {
        for (line, expected) in [
            ("", Ok(vec![])),
            (" a  b\tc\n", Ok(vec!["a", "b", "c"])),
            (
                "sh -c 'echo \"a b\" && x'",
                Ok(vec!["sh", "-c", "echo \"a b\" && x"]),
            ),
            ("a'b c'd\"e f\"", Ok(vec!["ab cde f"])),
            ("'' \"\"", Ok(vec!["", ""])),
            ("a\\ b \\# # c", Ok(vec!["a b", "#", "#", "c"])),
            (r#""a\"b\\c\nd" '\n'"#, Ok(vec![r#"a"b\c\nd"#, r"\n"])),
            ("é ünï", Ok(vec!["é", "ünï"])),
            ("'a", Err(Error::Quotation)),
            ("\"a", Err(Error::Quotation)),
            ("a\\", Err(Error::Escape)),
            ("\"a\\", Err(Error::Escape)),
        ] {
            let expected = expected.map(|words| words.into_iter().map(str::to_owned).collect());
            assert_eq!(split(line), expected, "{line}");
        }
    }
}
