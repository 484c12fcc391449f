//! Dead letters as the databases keep them: in ASCII, which each of them has, whatever encoding it
//! was made with.

use std::fmt::Write as _;

use celeriac_core::dead_letter::{Bounds, Content, DeadLetter};

use super::store::{Limits, Record, Replay};

/// The longest key that the tables have room for.
const LONGEST: usize = 255;

/// The key of the letter with this id: the id itself, where the tables can hold it.
pub(super) fn key(id: &str) -> String {
    if id.len() <= LONGEST && id.bytes().all(|byte| byte.is_ascii_graphic()) {
        id.to_owned()
    } else {
        // No task's id looks like it.
        format!("other id {}", Content::id_of(id.as_bytes()))
    }
}

/// How a letter is kept.
pub(super) fn record(letter: &DeadLetter) -> Record {
    Record {
        key: key(&letter.id),
        died_at: letter.died_at.as_microsecond(),
        text: escaped(&letter.to_json()),
    }
}

/// Which records stay when this letter has come.
pub(super) fn limits(letter: &DeadLetter, bounds: Bounds) -> Limits {
    let age = i64::try_from(bounds.age.as_micros()).unwrap_or(i64::MAX);
    Limits {
        since: letter.died_at.as_microsecond().saturating_sub(age),
        number: bounds.number,
    }
}

/// Reads records. What somebody else has written, and is none, is left out.
pub(super) fn letters(records: &[String]) -> Vec<DeadLetter> {
    let read = records.iter().map(|text| DeadLetter::from_json(text));
    read.filter_map(Result::ok).collect()
}

/// How a letter goes back.
pub(super) fn replay(letter: DeadLetter) -> Replay {
    Replay {
        key: key(&letter.id),
        payload: letter.message.bytes(),
        queue: letter.queue,
    }
}

/// The same JSON in ASCII.
fn escaped(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for char in json.chars() {
        if char.is_ascii() {
            ascii.push(char);
            continue;
        }
        // What is not ASCII stands in strings alone.
        for unit in char.encode_utf16(&mut [0; 2]) {
            let _ = write!(ascii, "\\u{unit:04x}");
        }
    }
    ascii
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use celeriac_core::dead_letter::{Cause, Remains};
    use jiff::Timestamp;

    use super::*;

    fn letter(id: &str) -> DeadLetter {
        DeadLetter {
            id: id.to_owned(),
            queue: "tâches".to_owned(),
            task: Some("\u{1f600}\"\\\0".to_owned()),
            cause: Cause::Killed,
            reason: String::new(),
            remains: Remains::default(),
            attempts: 3,
            hostname: "w@h".to_owned(),
            died_at: Timestamp::UNIX_EPOCH,
            message: Content::raw(b"\xff\0"),
        }
    }

    #[test]
    fn a_key_is_the_id_unless_that_is_no_key() {
        let id = "4d2f6e0a-0b3c-4f0e-9c36-0d6f0c1d3a5b";
        assert_eq!(key(id), id);
        for other in ["", " ", "a b", "é", "\0", &"x".repeat(256)] {
            let key = key(other);
            let is_one = key.is_ascii() && key.len() <= LONGEST && !key.contains('\0');
            assert!(is_one && (key == other) == other.is_empty(), "{other:?}");
        }
        assert_ne!(key(&"x".repeat(256)), key(&"x".repeat(257)));
    }

    #[test]
    fn a_record_is_ascii_and_read_as_it_was() {
        let letter = letter("1");
        let record = record(&letter);
        assert!(record.text.is_ascii() && !record.text.contains('\0'));
        assert_eq!(letters(&[record.text, "{}".to_owned()]), [letter]);
    }

    #[test]
    fn bounds_of_any_size_are_kept() {
        for (age, since) in [(1, -1_000_000), (u64::MAX, -i64::MAX)] {
            let bounds = Bounds {
                number: 3,
                age: Duration::from_secs(age),
            };
            assert_eq!(limits(&letter("1"), bounds), Limits { since, number: 3 });
        }
    }
}
