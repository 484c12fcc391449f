//! The first and the last bytes of an output of any length.

use std::collections::VecDeque;

/// Keeps the head and the tail of what it is given.
#[derive(Debug, Clone)]
pub struct Capture {
    head_limit: usize,
    tail_limit: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total: u64,
}

impl Capture {
    /// Keeps so many bytes of the beginning and of the end.
    pub fn new(head_limit: usize, tail_limit: usize) -> Self {
        Self {
            head_limit,
            tail_limit,
            head: Vec::new(),
            tail: VecDeque::new(),
            total: 0,
        }
    }

    /// Takes what comes next.
    pub fn push(&mut self, mut bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let room = self.head_limit - self.head.len();
        let (first, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(first);
        bytes = rest;
        let kept = &bytes[bytes.len().saturating_sub(self.tail_limit)..];
        let surplus = (self.tail.len() + kept.len()).saturating_sub(self.tail_limit);
        self.tail.drain(..surplus);
        self.tail.extend(kept);
    }

    /// How many bytes there were.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Whether bytes were left out.
    pub fn is_truncated(&self) -> bool {
        self.total > (self.head.len() + self.tail.len()) as u64
    }

    /// What is kept, with a line between head and tail that says how much is left out. What is no
    /// UTF-8 becomes U+FFFD.
    pub fn text(&self) -> String {
        let (front, back) = self.tail.as_slices();
        if !self.is_truncated() {
            return String::from_utf8_lossy(&[&self.head, front, back].concat()).into_owned();
        }
        let left_out = self.total - (self.head.len() + self.tail.len()) as u64;
        let tail = [front, back].concat();
        let head = String::from_utf8_lossy(whole_at_end(&self.head));
        let tail = String::from_utf8_lossy(whole_at_start(&tail));
        if head.is_empty() {
            return tail.into_owned();
        }
        format!("{head}\n[{left_out} bytes left out]\n{tail}")
    }

    /// The last `count` lines of what is kept, without the line ends.
    pub fn last_lines(&self, count: usize) -> String {
        let text = self.text();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

/// Without a character that is cut off at the end.
fn whole_at_end(bytes: &[u8]) -> &[u8] {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => &bytes[..error.valid_up_to()],
        _ => bytes,
    }
}

/// Without what is left of a character at the start.
fn whole_at_start(bytes: &[u8]) -> &[u8] {
    let is_continuation = |&byte: &u8| byte & 0b1100_0000 == 0b1000_0000;
    let skipped = bytes
        .iter()
        .take(3)
        .take_while(|byte| is_continuation(byte))
        .count();
    &bytes[skipped..]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_fits_is_kept_whole() {
        let mut capture = Capture::new(2, 3);
        capture.push(b"ab");
        capture.push(b"cde");
        assert_eq!(capture.text(), "abcde");
        assert!(!capture.is_truncated());
    }

    #[test]
    fn head_and_tail_are_kept_of_more() {
        let mut capture = Capture::new(4, 4);
        for byte in b"abcdefghijklmnop" {
            capture.push(&[*byte]);
        }
        assert_eq!(capture.text(), "abcd\n[8 bytes left out]\nmnop");
        assert!(capture.is_truncated());
        assert_eq!(capture.last_lines(1), "mnop");
    }

    #[test]
    fn a_character_is_not_cut_in_two() {
        let mut capture = Capture::new(3, 3);
        capture.push("ééééé".as_bytes());
        assert_eq!(capture.text(), "é\n[4 bytes left out]\né");
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(bytes: Vec<u8>, cut in 0..200usize, head in 0..20usize, tail in 0..20usize) {
            let mut whole = Capture::new(head, tail);
            whole.push(&bytes);
            let mut pieces = Capture::new(head, tail);
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            pieces.push(first);
            pieces.push(second);
            prop_assert_eq!(whole.text(), pieces.text());
            prop_assert_eq!(whole.is_truncated(), bytes.len() > head + tail);
            prop_assert_eq!(whole.total(), bytes.len() as u64);
        }
    }
}
