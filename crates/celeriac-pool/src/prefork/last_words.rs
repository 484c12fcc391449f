//! The lines that a child's task logged last, read when the child is dead.
//!
//! The child writes them into memory that both sides share, so that they outlive a SIGKILL and cost
//! nothing while nothing is logged: the number of the job that wrote, the number of bytes written
//! for it, and a ring of bytes. Counterpart: `python/celeriac/host/last_words.py`.

use celeriac_core::pool::RequestKey;

/// The most lines that are kept.
const LINES: usize = 20;
/// The most characters of a line that are kept.
const LINE_CHARS: usize = 500;

/// The last lines that a job wrote; none where the bytes are those of another job, or nonsense.
pub fn lines(bytes: &[u8], job: RequestKey) -> Vec<String> {
    try_lines(bytes, job).unwrap_or_default()
}

fn try_lines(bytes: &[u8], job: RequestKey) -> Option<Vec<String>> {
    let (writer, rest) = bytes.split_first_chunk()?;
    let (written, ring) = rest.split_first_chunk()?;
    if u64::from_le_bytes(*writer) != job.0 || ring.is_empty() {
        return None;
    }
    let written = u64::from_le_bytes(*written);
    let size = ring.len() as u64;
    let text = if written <= size {
        ring[..written as usize].to_vec()
    } else {
        let (newest, oldest) = ring.split_at((written % size) as usize);
        let whole = [oldest, newest].concat();
        // The first line has lost its beginning, and is shown only where there is no other.
        let end = whole.iter().position(|byte| *byte == b'\n');
        match end.and_then(|end| whole.get(end + 1..)) {
            Some(rest) if !rest.is_empty() => rest.to_vec(),
            _ => whole,
        }
    };
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let first = lines.len().saturating_sub(LINES);
    let cut = |line: &&str| line.chars().take(LINE_CHARS).collect();
    Some(lines[first..].iter().map(cut).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a child that wrote these texts for job 7 leaves in a ring of so many bytes.
    fn left(ring: usize, texts: &[&str]) -> Vec<u8> {
        let mut bytes = vec![0; 16 + ring];
        let mut written = 0;
        for byte in texts.concat().bytes() {
            bytes[16 + written % ring] = byte;
            written += 1;
        }
        bytes[..8].copy_from_slice(&7_u64.to_le_bytes());
        bytes[8..16].copy_from_slice(&(written as u64).to_le_bytes());
        bytes
    }

    #[test]
    fn the_last_lines_are_read() {
        let job = RequestKey(7);
        let table: [(usize, &[&str], &[&str]); 9] = [
            (32, &[], &[]),
            (32, &["one\n"], &["one"]),
            (32, &["one\n", "\n", "two\n"], &["one", "two"]),
            (32, &["no end"], &["no end"]),
            (8, &["12345678"], &["12345678"]),
            (8, &["one\n", "two\n", "six\n"], &["six"]),
            (8, &["one\n", "two\n", "six\n", "7"], &["six", "7"]),
            (8, &["0123456789\n"], &["3456789"]),
            (8, &["0123456789"], &["23456789"]),
        ];
        for (ring, texts, expected) in table {
            assert_eq!(lines(&left(ring, texts), job), expected, "{texts:?}");
        }
    }

    #[test]
    fn another_jobs_words_are_not_taken_for_a_jobs() {
        let bytes = left(32, &["one\n"]);
        assert_eq!(lines(&bytes, RequestKey(8)), Vec::<String>::new());
        assert_eq!(lines(&bytes[..10], RequestKey(7)), Vec::<String>::new());
    }

    #[test]
    fn many_and_long_lines_are_cut() {
        let numbers: Vec<String> = (0..100).map(|number| format!("{number}\n")).collect();
        let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
        let kept = lines(&left(8000, &numbers), RequestKey(7));
        assert_eq!((kept.len(), kept[0].as_str()), (LINES, "80"));
        let long = "é".repeat(600);
        let kept = lines(&left(8000, &[&long]), RequestKey(7));
        assert_eq!(kept, ["é".repeat(LINE_CHARS)]);
    }

    proptest! {
        /// A child may write anything there.
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200), written: u64) {
            let mut bytes = bytes;
            if bytes.len() >= 16 {
                bytes[..8].copy_from_slice(&7_u64.to_le_bytes());
                bytes[8..16].copy_from_slice(&written.to_le_bytes());
            }
            prop_assert!(lines(&bytes, RequestKey(7)).len() <= LINES);
        }
    }
}
