//! Lines of an output, each of bounded length.

/// Cuts bytes into lines. A line that is too long comes in several.
#[derive(Debug, Clone)]
pub struct Lines {
    limit: usize,
    begun: Vec<u8>,
}

impl Lines {
    /// Lines of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(4),
            begun: Vec::new(),
        }
    }

    /// Takes what comes next, and hands on each line that is whole, without its end. What is no
    /// UTF-8 becomes U+FFFD.
    pub fn push(&mut self, bytes: &[u8], mut line: impl FnMut(String)) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            let mut rest = text;
            while self.begun.len() + rest.len() > self.limit {
                let (now, later) = rest.split_at(self.limit - self.begun.len());
                self.begun.extend_from_slice(now);
                rest = later;
                let cut = whole(&self.begun);
                let cut_off = self.begun.split_off(cut);
                line(shown(&self.begun));
                self.begun = cut_off;
            }
            self.begun.extend_from_slice(rest);
            if ends {
                line(shown(&self.begun));
                self.begun.clear();
            }
        }
    }

    /// Hands on the last line, if it has no end.
    pub fn finish(&mut self, line: impl FnOnce(String)) {
        if !self.begun.is_empty() {
            line(shown(&self.begun));
            self.begun.clear();
        }
    }
}

/// How much of it ends with a whole character.
fn whole(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => bytes.len(),
    }
}

fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(limit: usize, pieces: &[&[u8]]) -> Vec<String> {
        let mut found = Vec::new();
        let mut lines = Lines::new(limit);
        for piece in pieces {
            lines.push(piece, |line| found.push(line));
        }
        lines.finish(|line| found.push(line));
        found
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        assert_eq!(
            lines(80, &[b"one\ntw", b"o\r\n\nthr", b"ee"]),
            ["one", "two", "", "three"]
        );
    }

    #[test]
    fn long_lines_come_in_several() {
        assert_eq!(lines(4, &[b"abcdefghij\nk"]), ["abcd", "efgh", "ij", "k"]);
        assert_eq!(lines(4, &["aéééé".as_bytes()]), ["aé", "éé", "é"]);
    }

    #[test]
    fn what_is_no_text_is_shown_all_the_same() {
        assert_eq!(lines(80, &[b"\xff\xfe\n"]), ["\u{fffd}\u{fffd}"]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_line_is_too_long(text: String, limit in 4..20usize) {
            let found = lines(limit, &[text.as_bytes()]);
            prop_assert!(found.iter().all(|line| line.len() <= limit));
            let flat: String = text.chars().filter(|&it| it != '\n' && it != '\r').collect();
            let joined: String = found.concat().chars().filter(|&it| it != '\r').collect();
            prop_assert_eq!(joined, flat);
        }
    }
}
