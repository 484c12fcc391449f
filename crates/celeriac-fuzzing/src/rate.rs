//! Rate limits: what is shown is read as the same, and buckets bear any times.

use std::time::Duration;

use celeriac_protocol::RateLimit;
use celeriac_protocol::rate::TokenBucket;

/// A rate limit, a NUL, and the milliseconds between two looks at its bucket, in powers of two.
pub(crate) fn check(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0);
    let (text, steps) = bytes.split_at(end.unwrap_or(bytes.len()));
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let Ok(Some(limit)) = RateLimit::parse(text) else {
        return;
    };
    assert_eq!(RateLimit::parse(&limit.to_string()), Ok(Some(limit)));
    let mut now = Duration::ZERO;
    let mut bucket = TokenBucket::new(limit, now);
    assert!(bucket.try_take(now), "it is full at the start");
    for step in steps {
        now += Duration::from_millis(1 << (step % 40));
        let wait = bucket.wait(now);
        if bucket.try_take(now) {
            assert!(wait < Duration::from_secs(1), "{wait:?}");
        } else {
            assert!(!wait.is_zero(), "{limit}");
        }
    }
}
