//! What a dead child's task logged last, from memory that the task could write to.

use celeriac_core::pool::RequestKey;
use celeriac_pool::prefork::last_words;

pub(crate) fn check(bytes: &[u8]) {
    let Some(writer) = bytes.first_chunk() else {
        assert!(last_words::lines(bytes, RequestKey(0)).is_empty());
        return;
    };
    let writer = u64::from_le_bytes(*writer);
    let lines = last_words::lines(bytes, RequestKey(writer));
    assert!(lines.len() <= 20);
    for line in lines {
        assert!(!line.trim().is_empty() && line.chars().count() <= 500);
    }
    let other = RequestKey(writer.wrapping_add(1));
    assert!(last_words::lines(bytes, other).is_empty());
}
