//! Dead letters: a record that is read is written as the same, and so is what it holds.

use bytes::Bytes;
use celeriac_core::dead_letter::{Content, DeadLetter};
use celeriac_protocol::{Marks, envelope};

pub(crate) fn check(bytes: &[u8]) {
    assert_eq!(&Content::raw(bytes).bytes()[..], bytes);
    if let Ok(message) = envelope::decode(&Bytes::copy_from_slice(bytes)) {
        let kept = envelope::decode(&Content::message(&message).bytes());
        let kept = kept.expect("a message is kept as a message");
        assert_eq!(kept.body, message.body);
        assert_eq!(Marks::of(&kept), Marks::default());
    }
    crate::with_text(bytes, check_record);
}

fn check_record(text: &str) {
    let Ok(mut letter) = DeadLetter::from_json(text) else {
        return;
    };
    drop(letter.arguments());
    // Of a fraction of a second, the last digit may change.
    letter.remains.run_time = None;
    let again = DeadLetter::from_json(&letter.to_json());
    assert_eq!(again.ok(), Some(letter));
}
