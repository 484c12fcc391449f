//! Times: where jiff reads one, we read the same, to the microseconds that Python keeps.

use celeriac_protocol::timestamp;
use jiff::Timestamp;

pub(crate) fn check(bytes: &[u8]) {
    crate::with_text(bytes, check_text);
}

fn check_text(text: &str) {
    let read = timestamp::parse(text);
    if is_rfc_3339(text.as_bytes()) {
        match text.parse::<Timestamp>() {
            Ok(expected) => {
                let nanoseconds = expected.as_nanosecond();
                let expected =
                    Timestamp::from_nanosecond(nanoseconds - nanoseconds.rem_euclid(1000));
                assert_eq!(read.ok(), expected.ok(), "{text}");
            }
            // The last hours of the year 9999 are beyond what a timestamp holds.
            Err(_) => assert!(read.is_err() || read == Ok(Timestamp::MAX), "{text}"),
        }
    }
}

/// `YYYY-MM-DDThh:mm:ss[.f…](Z|±hh:mm)`, without leap seconds, the year 0, and offsets of a day and
/// more: Python knows none of them.
fn is_rfc_3339(text: &[u8]) -> bool {
    let is_like = |text: &[u8], form: &[u8]| {
        text.len() == form.len()
            && text.iter().zip(form).all(|(byte, like)| match like {
                b'0' => byte.is_ascii_digit(),
                like => byte == like,
            })
    };
    let Some((seconds, rest)) = text.split_at_checked(19) else {
        return false;
    };
    let fraction = match rest {
        [b'.', digits @ ..] => digits
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count(),
        _ => 0,
    };
    let offset = match (rest, fraction) {
        (rest, 0) => rest,
        (rest, 1..=9) => &rest[1 + fraction..],
        _ => return false,
    };
    let is_offset = |sign: &[u8]| is_like(offset, sign) && &offset[1..3] < b"24".as_slice();
    is_like(seconds, b"0000-00-00T00:00:00")
        && !seconds.starts_with(b"0000")
        && !seconds.ends_with(b":60")
        && (offset == b"Z" || is_offset(b"+00:00") || is_offset(b"-00:00"))
}
